//! `stratalloc replay`: recorded traces against the allocator, on a software device that keeps addresses only, or on a GPU.

mod bandwidth;
mod columns;
mod explained;
mod fields;
mod follow;
mod min_capacity;
pub(crate) mod once;
mod passes;
mod percentiles;
mod report;
mod tiers;

pub use bandwidth::Bandwidth;
pub use columns::Columns;
pub use explained::{Advice, Explained};
pub use fields::{Smallest, Stop};
pub use min_capacity::MinCapacity;
pub(crate) use min_capacity::{seek, smallest};
pub(crate) use passes::second_half;
pub use percentiles::Percentiles;
pub use report::Report;

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use stratalloc::units::{ByteSize, PAGE};

use crate::engine::{Latency, Setup, configuration};
use crate::policy::{self, Policy};
use crate::target::Target;
use crate::trace::Trace;
use crate::{Failed, Finish, import};
use follow::Manner;
use passes::Plan;

/// What `replay` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Traces to replay, plain or zstd-compressed; PyTorch snapshots and RMM logs, which are imported first
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// Whose policy: stratalloc, or the models of PyTorch's, native and expandable; of several, side by side, the memory and the driver calls
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "stratalloc")]
    pub policy: Vec<Policy>,

    /// Settings of PyTorch's allocator, for its models, as in PYTORCH_ALLOC_CONF
    #[arg(long, value_name = "SETTINGS")]
    pub torch_conf: Option<String>,

    /// Write every change of what PyTorch's models hold: FOLDER/TRACE.POLICY.reserved, with lines `operation bytes`
    #[arg(long, value_name = "FOLDER")]
    pub changes: Option<PathBuf>,

    /// The device: `software`, or `cuda:0`, on which driver calls and kernels are real and take the time they take
    #[arg(long, value_name = "DEVICE", default_value = "software")]
    pub device: Target,

    /// Memory of the device; of a CUDA device, the most to hold [default: 80GiB for each thread; all of a CUDA device]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<ByteSize>,

    /// Memory of the device as a multiple of the trace's peak of live bytes, rounded up to 2 MiB: 1.02 leaves 2 % to spare
    #[arg(long, value_name = "FACTOR", conflicts_with = "capacity", value_parser = pressure)]
    pub pressure: Option<f64>,

    /// Also find the smallest device on which the trace completes: there it does, and 0.05 % of the peak of live bytes below it
    /// does not
    #[arg(long, conflicts_with = "threads")]
    pub min_capacity: bool,

    /// Also try so many larger devices, evenly up to 1.3 times the smallest: failing on one of them is an error
    #[arg(long, value_name = "N", requires = "min_capacity", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub capacities: Option<u32>,

    /// How many passes have to complete on the smallest device, on one allocator
    #[arg(long, value_name = "N", requires = "min_capacity", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub for_passes: u32,

    /// Passes over the trace on one allocator; of several, the first is not timed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,

    /// What the software device's driver calls cost, in virtual time [default: a100]
    #[arg(long, value_name = "MODEL")]
    pub latency: Option<Latency>,

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

    /// Lets the device lag the host: a kernel goes over each block that is allocated, on its stream, and over each that is
    /// recorded, on the stream it is recorded on, and takes as long as its bytes do at this rate. Streams run side by side, each
    /// at the full rate. An operation takes 300 ns of virtual time; the times include keeping that clock
    #[arg(long, value_name = "RATE")]
    pub gpu_bandwidth: Option<Bandwidth>,

    /// On a CUDA device: kernels write each block that is allocated, on its stream, and read each that is recorded, on the stream it is
    /// recorded on, so that the device lags the host as it does in a program
    #[arg(long, conflicts_with_all = ["gpu_bandwidth", "tiers"])]
    pub kernels: bool,

    /// Leave out the trace's empty_cache calls
    #[arg(long)]
    pub skip_empty_cache: bool,

    /// Which columns the table has; JSON has more
    #[arg(long, value_name = "WHICH", default_value = "default")]
    pub columns: Columns,
    /// Take each marker of the trace for the beginning of a step, as plans want to know
    #[arg(long)]
    pub steps: bool,

    /// A plan from an earlier replay of the trace; wants plan:on or plan:inline among the settings
    #[arg(long, value_name = "FILE")]
    pub plan_in: Option<PathBuf>,

    /// Where to write the plan at the end, for later replays; wants one trace, and plan:on or plan:inline among the settings
    #[arg(long, value_name = "FILE")]
    pub plan_out: Option<PathBuf>,

    /// Where evictable memory goes that the device has no room for: host:32GiB,nvme:/path:200GiB. All blocks are evictable then; they are used
    /// when they are allocated, recorded and freed, on the software device under the eyes of the checker. Before it runs the same with room for all
    #[arg(long, value_name = "TIERS", conflicts_with_all = ["min_capacity", "plan_in", "plan_out"])]
    pub tiers: Option<tiers::Tiers>,

    /// With tiers: give the device real memory, write to each block and compare before it is freed
    #[arg(long, requires = "tiers")]
    pub contents: bool,

    /// With tiers: divide all sizes by this, so that contents fit into the host's memory
    #[arg(long, value_name = "N", default_value_t = 1, requires = "tiers", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub shrink: u32,

    /// Print JSON: an array with one object a trace
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// The setup, but for a capacity that depends on the trace.
    fn setup(&self) -> Result<Setup, Failed> {
        self.check_device()?;
        let all = match self.device {
            Target::Software => ByteSize(ByteSize::gib(80).0 * u64::from(self.threads)),
            Target::Cuda(_) => ByteSize(0),
        };
        let capacity = self.capacity.unwrap_or(all);
        Ok(Setup {
            target: self.device,
            bare: false,
            capacity: capacity.0,
            latency: self.latency.unwrap_or_default(),
            event_lag_ns: self.event_lag_us * 1000,
            checker: self.checker,
            seed: self.seed,
            config: configuration(self.config.as_deref())?,
            contents: false,
            plan: self.plan_in.as_deref().map(read_plan).transpose()?,
        })
    }

    /// What is asked of a device that it does not have is an error, not silence.
    fn check_device(&self) -> Result<(), Failed> {
        if let Target::Software = self.device {
            return if self.kernels { Err(Failed::from("--kernels is for --device cuda".to_owned())) } else { Ok(()) };
        }
        let models = self.policy != [Policy::Stratalloc];
        let options = [
            ("--latency", self.latency.is_some()),
            ("--checker", self.checker),
            ("--gpu-bandwidth", self.gpu_bandwidth.is_some()),
            ("--event-lag-us", self.event_lag_us > 0),
            ("--seed", self.seed > 0),
            ("--policy", models),
        ];
        if let Some((option, _)) = options.iter().find(|(_, given)| *given) {
            return Err(Failed::from(format!("{option} is for the software device")));
        }
        if self.tiers.is_some() && self.capacity.is_none() && self.pressure.is_none() {
            return Err(Failed::from("--tiers on a CUDA device wants --capacity or --pressure".to_owned()));
        }
        Ok(())
    }
}

impl Options {
    /// The setup with the capacity that is meant for a trace.
    pub(crate) fn for_trace(&self, setup: &Setup, trace: &Trace) -> Setup {
        let under = |factor| under_pressure(trace, factor, self.threads);
        Setup { capacity: self.pressure.map_or(setup.capacity, under), ..setup.clone() }
    }
}

fn pressure(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (0.5..=100.0).contains(factor));
    factor.ok_or_else(|| format!("'{text}' is not a number from 0.5 to 100, such as 1.02"))
}

/// The smallest number of whole pages that is `factor` times the peak of live bytes of a trace that so many threads follow.
fn under_pressure(trace: &Trace, factor: f64, threads: u32) -> u64 {
    let peak = trace.peak_live_bytes.saturating_mul(u64::from(threads)).max(1);
    ((peak as f64 * factor).ceil() as u64).next_multiple_of(PAGE)
}

fn read_plan(path: &Path) -> Result<Vec<u8>, Failed> {
    std::fs::read(path).map_err(|error| Failed::from(format!("{}: {error}", path.display())))
}

/// Replays all traces and prints what was measured.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let setup = options.setup()?;
    // All of them first: a bad file is known before minutes are spent on the good ones.
    let traces = import::load_all(&options.traces)?;
    if let Some(list) = &options.tiers {
        return tiers::run(options, list, &setup, &traces, out);
    }
    if options.plan_out.is_some() {
        if options.policy != [Policy::Stratalloc] {
            return Err(Failed::from("--plan-out is for --policy stratalloc alone".to_owned()));
        }
        if traces.len() > 1 {
            return Err(Failed::from(
                "--plan-out is for one trace: each would replace the plan of the one before".to_owned(),
            ));
        }
    }
    if options.policy != [Policy::Stratalloc] {
        return policy::run(options, &setup, &traces, out);
    }
    if options.changes.is_some() || options.torch_conf.is_some() {
        return Err(Failed::from("--changes and --torch-conf are for --policy native and expandable".to_owned()));
    }
    let progress = Progress::new(traces.len());
    // What was measured is printed even where the plan could not be written.
    let mut unwritten = Ok(());
    let rows: Vec<Report> = traces
        .iter()
        .map(|trace| {
            let (report, written) = replay(trace, options, &setup, &progress);
            unwritten = std::mem::replace(&mut unwritten, Ok(())).and(written);
            report
        })
        .collect();
    progress.finish();
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        report::for_people(&rows, options, out)?;
    }
    unwritten?;
    Ok(if rows.iter().all(Report::is_good) { Finish::Good } else { Finish::Bad })
}

/// Replays one trace. Tells whether its plan was written, if it was to be.
fn replay(trace: &Trace, options: &Options, setup: &Setup, progress: &Progress) -> (Report, Result<(), Failed>) {
    let manner = match (options.checker, options.gpu_bandwidth.is_some() || options.kernels, options.event_lag_us) {
        (true, ..) => Manner::Checked,
        (false, true, _) => Manner::Busy,
        (false, false, 0) => Manner::Plain,
        (false, false, _) => Manner::Paced,
    };
    let setup = &options.for_trace(setup, trace);
    let plan = Plan {
        threads: options.threads as usize,
        passes: options.repeat as usize,
        skip_empty_cache: options.skip_empty_cache,
        steps: options.steps,
        manner,
        bandwidth: options.gpu_bandwidth,
    };
    progress.say(format!("{}: {} passes", trace.name, plan.passes));
    let outcome = passes::measure(trace, setup, &plan);
    let written = match (&options.plan_out, &outcome) {
        (Some(path), Ok(measured)) => write_plan(path, measured.plan.as_deref()),
        // A trace that fails has no plan, and says so by itself.
        _ => Ok(()),
    };
    let mut report = Report::new(trace, &plan, outcome);
    if options.min_capacity && report.is_good() {
        let say = |doing| progress.say(format!("{}: {doing}", trace.name));
        let plan = Plan { passes: options.for_passes as usize, ..plan.clone() };
        match min_capacity::find(trace, setup, &plan, options.capacities, &say) {
            Ok(found) => report.set_min_capacity(&found, options.capacities.is_some()),
            Err(failure) => report.set_failure(trace, &failure),
        }
    }
    progress.step();
    (report, written)
}

fn write_plan(path: &Path, plan: Option<&[u8]>) -> Result<(), Failed> {
    let plan =
        plan.ok_or_else(|| Failed::from("--plan-out wants plan:on or plan:inline among the settings".to_owned()))?;
    std::fs::write(path, plan).map_err(|error| Failed::from(format!("{}: cannot be written: {error}", path.display())))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_rounded_up_to_pages() {
        let trace = Trace::decode(b"# stratalloc-trace 1\na 0 1073741824 0\n").unwrap();
        assert_eq!(under_pressure(&trace, 1.0, 1), 1 << 30);
        assert_eq!(under_pressure(&trace, 1.0, 3), 3 << 30);
        assert_eq!(under_pressure(&trace, 1.02, 1), 523 * PAGE, "522.24 pages");
        assert!(pressure("1.02") == Ok(1.02) && pressure("0.4").is_err() && pressure("NaN").is_err());
    }
}
