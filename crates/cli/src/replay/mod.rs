//! `stratalloc replay`: recorded traces against the allocator, on a software device that keeps addresses only.

mod follow;
mod min_capacity;
pub(crate) mod once;
mod passes;
mod report;

pub use min_capacity::MinCapacity;
pub(crate) use min_capacity::{seek, smallest};
pub use report::Report;

use std::io::Write;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use stratalloc::units::ByteSize;

use crate::engine::{Latency, Setup, configuration};
use crate::policy::{self, Policy};
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
        })
    }
}

/// Replays all traces and prints what was measured.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let setup = options.setup()?;
    // All of them first: a bad file is known before minutes are spent on the good ones.
    let traces = import::load_all(&options.traces)?;
    if options.policy != [Policy::Stratalloc] {
        return policy::run(options, &setup, &traces, out);
    }
    if options.changes.is_some() || options.torch_conf.is_some() {
        return Err(Failed::from("--changes and --torch-conf are for --policy native and expandable".to_owned()));
    }
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
        manner,
    };
    progress.say(format!("{}: {} passes", trace.name, plan.passes));
    let mut report = Report::new(trace, &plan, passes::measure(trace, setup, &plan));
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
