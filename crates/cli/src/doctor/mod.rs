//! `stratalloc doctor`: what this machine has, what the allocator would use, and what stands in the way, in plain words.

mod probe;

use std::io::Write;

use serde::Serialize;
use stratalloc::units::ByteSize;

use crate::engine::{CONF_VARIABLE, config_in_force, configuration, cuda_device};
use crate::{Failed, Finish};

/// What `doctor` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Print JSON: one object
    #[arg(long)]
    pub json: bool,
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something works less well, or not at all, but nothing fails for it.
    Note,
    /// The allocator cannot be used like this.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is to be taken.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What follows, and what to do about it; nothing where all is well.
    pub advice: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn note(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Note, found: found.into(), advice: advice.into() }
    }

    fn problem(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Problem, found: found.into(), advice: advice.into() }
    }
}

/// Everything that the doctor says.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// What will be used: `cuda` or `software`.
    pub device: &'static str,
    /// The CUDA device, where there is one.
    pub cuda: Option<CudaFacts>,
    /// The settings in force; `null` if they are refused.
    pub config: Option<String>,
    /// All that was looked at.
    pub findings: Vec<Finding>,
}

/// What is known of the CUDA device.
#[derive(Debug, Clone, Serialize)]
pub struct CudaFacts {
    /// Its name.
    pub name: String,
    /// As CUDA counts it, 12080 for 12.8.
    pub driver_version: u32,
    /// Virtual memory management.
    pub vmm: bool,
    /// The unit of chunks, in bytes.
    pub granularity: u64,
    /// Its memory, in bytes.
    pub total_memory_bytes: u64,
    /// What of it is free now, in bytes.
    pub free_memory_bytes: u64,
}

/// Looks at everything and prints it.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let diagnosis = diagnose();
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &diagnosis)?;
        writeln!(out)?;
    } else {
        for_people(&diagnosis, out)?;
    }
    let is_problem = |finding: &Finding| finding.verdict == Verdict::Problem;
    Ok(if diagnosis.findings.iter().any(is_problem) { Finish::Bad } else { Finish::Good })
}

fn diagnose() -> Diagnosis {
    let mut findings = Vec::new();
    let cuda = cuda(&mut findings);
    let config = config(&mut findings);
    findings.extend(probe::all());
    let usable = cuda.is_some();
    Diagnosis { device: if usable { "cuda" } else { "software" }, cuda, config, findings }
}

fn cuda(findings: &mut Vec<Finding>) -> Option<CudaFacts> {
    findings.push(probe::kernel_driver());
    let (device, free) = match cuda_device(0) {
        Ok(found) => found,
        Err(error) => {
            findings.push(Finding::note(
                "CUDA device",
                format!("none: {error}"),
                "no GPU memory can be handed out; the software device takes its place, which is for tests and replays only",
            ));
            return None;
        }
    };
    let version = device.driver_version;
    let version = format!("{}.{}", version / 1000, version % 1000 / 10);
    let memory = format!("{} of {} free", ByteSize(free), ByteSize(device.total_memory));
    findings.push(Finding::ok("CUDA device", format!("{}, driver {version}, {memory}", device.name)));
    findings.push(if device.vmm {
        Finding::ok("virtual memory", format!("yes, in units of {}", ByteSize(device.granularity)))
    } else {
        Finding::note("virtual memory", "no", "memory comes in plain, unmovable pieces: expect more fragmentation")
    });
    if free < device.total_memory / 2 {
        findings.push(Finding::note(
            "GPU memory",
            memory,
            "something else holds more than half of it; `nvidia-smi` tells which process",
        ));
    }
    Some(CudaFacts {
        name: device.name,
        driver_version: device.driver_version,
        vmm: device.vmm,
        granularity: device.granularity,
        total_memory_bytes: device.total_memory,
        free_memory_bytes: free,
    })
}

fn config(findings: &mut Vec<Finding>) -> Option<String> {
    match configuration(None).and_then(|text| Ok((config_in_force(&text)?, text))) {
        Ok((in_force, text)) => {
            findings.push(Finding::ok(CONF_VARIABLE, if text.is_empty() { "not set" } else { &text }));
            Some(in_force)
        }
        Err(error) => {
            findings.push(Finding::problem(CONF_VARIABLE, format!("refused: {error}"), "correct it, or unset it"));
            None
        }
    }
}

fn for_people(diagnosis: &Diagnosis, out: &mut impl Write) -> std::io::Result<()> {
    let width = diagnosis.findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    for finding in &diagnosis.findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Note => "note   ",
            Verdict::Problem => "PROBLEM",
        };
        writeln!(out, "{mark}  {:width$}  {}", finding.what, finding.found)?;
        if !finding.advice.is_empty() {
            writeln!(out, "         {:width$}  -> {}", "", finding.advice)?;
        }
    }
    writeln!(out)?;
    match &diagnosis.cuda {
        Some(cuda) => writeln!(out, "Will be used: the CUDA device {}.", cuda.name)?,
        None => writeln!(out, "Will be used: the software device. Programs that need a GPU will not work here.")?,
    }
    match &diagnosis.config {
        Some(config) => writeln!(out, "Settings in force: {config}."),
        None => writeln!(
            out,
            "Settings in force: none, since those in {CONF_VARIABLE} are refused; no allocator can be built."
        ),
    }
}
