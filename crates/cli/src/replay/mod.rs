//! `stratalloc replay`: recorded traces against the allocator, on a software device that keeps addresses only.

mod follow;
mod min_capacity;
mod passes;
mod report;

pub use min_capacity::MinCapacity;
pub use report::Report;

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use stratalloc::units::ByteSize;

use crate::engine::{Latency, Setup, configuration};
use crate::trace::Trace;
use crate::{Failed, Finish};
use follow::Manner;
use passes::Plan;

/// What `replay` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Traces to replay, plain or zstd-compressed
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// Memory of the device [default: 80GiB for each thread]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<ByteSize>,

    /// Also find the smallest device on which the trace completes
    #[arg(long, conflicts_with = "threads")]
    pub min_capacity: bool,

    /// Passes over the trace on one allocator; of several, the first is not timed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,

    /// What the device's driver calls cost, in virtual time
    #[arg(long, value_name = "MODEL", default_value = "a100")]
    pub latency: Latency,

    /// Threads, each with its own copy of the trace on its own streams, on one allocator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,

    /// The allocator's configuration, key:value,key:value [default: STRATALLOC_CONF]
    #[arg(long, value_name = "SETTINGS")]
    pub config: Option<String>,

    /// Check the order of all accesses; the times then mean nothing
    #[arg(long)]
    pub checker: bool,

    /// The seed of all that the device chooses; equal seeds give equal replays
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// How long after its work is done an event is seen to complete, in microseconds of virtual time; each operation then
    /// takes 300 ns of it, and the times include keeping that clock
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub event_lag_us: u64,

    /// Leave out the trace's empty_cache calls
    #[arg(long)]
    pub skip_empty_cache: bool,

    /// Take each marker of the trace for the beginning of a step, as plans want to know
    #[arg(long)]
    pub steps: bool,

    /// A plan from an earlier replay of the trace; wants plan:on or plan:inline among the settings
    #[arg(long, value_name = "FILE")]
    pub plan_in: Option<PathBuf>,

    /// Where to write the plan at the end, for later replays
    #[arg(long, value_name = "FILE")]
    pub plan_out: Option<PathBuf>,

    /// Print JSON: an array with one object a trace
    #[arg(long)]
    pub json: bool,
}

impl Options {
    fn setup(&self) -> Result<Setup, Failed> {
        let capacity = self.capacity.unwrap_or(ByteSize(ByteSize::gib(80).0 * u64::from(self.threads)));
        Ok(Setup {
            bare: false,
            capacity: capacity.0,
            latency: self.latency,
            event_lag_ns: self.event_lag_us * 1000,
            checker: self.checker,
            seed: self.seed,
            config: configuration(self.config.as_deref())?,
            plan: self.plan_in.as_deref().map(read_plan).transpose()?,
        })
    }
}

fn read_plan(path: &Path) -> Result<Vec<u8>, Failed> {
    std::fs::read(path).map_err(|error| Failed::from(format!("{}: {error}", path.display())))
}

/// Replays all traces and prints what was measured.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let setup = options.setup()?;
    // All of them first: a bad file is known before minutes are spent on the good ones.
    let traces: Vec<Trace> = options.traces.iter().map(|path| Trace::load(path)).collect::<Result<_, _>>()?;
    let progress = Progress::new(traces.len());
    let rows: Vec<Report> = traces.iter().map(|trace| replay(trace, options, &setup, &progress)).collect();
    progress.finish();
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        report::for_people(&rows, options, out)?;
    }
    Ok(if rows.iter().all(Report::is_good) { Finish::Good } else { Finish::Bad })
}

/// Replays one trace.
fn replay(trace: &Trace, options: &Options, setup: &Setup, progress: &Progress) -> Report {
    let manner = match (options.checker, options.event_lag_us) {
        (true, _) => Manner::Checked,
        (false, 0) => Manner::Plain,
        (false, _) => Manner::Paced,
    };
    let plan = Plan {
        threads: options.threads as usize,
        passes: options.repeat as usize,
        skip_empty_cache: options.skip_empty_cache,
        steps: options.steps,
        manner,
    };
    progress.say(format!("{}: {} passes", trace.name, plan.passes));
    let outcome = passes::measure(trace, setup, &plan);
    let written = options.plan_out.as_deref().zip(outcome.as_ref().ok().and_then(|measured| measured.plan.as_deref()));
    let mut report = Report::new(trace, &plan, outcome.clone());
    if let Some((path, bytes)) = written
        && let Err(error) = std::fs::write(path, bytes)
    {
        progress.say(format!("{}: {error}", path.display()));
    }
    if options.min_capacity && report.is_good() {
        match min_capacity::find(trace, setup, &plan, &|doing| progress.say(format!("{}: {doing}", trace.name))) {
            Ok(found) => report.set_min_capacity(&found),
            Err(failure) => report.set_failure(trace, &failure),
        }
    }
    progress.step();
    report
}

/// A bar on stderr, which draws nothing where stderr is no terminal.
struct Progress(ProgressBar);

impl Progress {
    fn new(steps: usize) -> Progress {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Progress(bar)
    }

    fn say(&self, doing: String) {
        self.0.set_message(doing);
        self.0.tick();
    }

    fn step(&self) {
        self.0.inc(1);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
