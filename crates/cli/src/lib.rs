//! The parts of the `stratalloc` command, as a library so that tests and fuzz targets reach them.
//!
//! | module | what |
//! |---|---|
//! | [`trace`] | the format of recorded traces: a strict decoder and a writer |
//! | [`import`] | PyTorch snapshots and RMM logs as traces |
//! | [`policy`] | traces under PyTorch's policies and ours, side by side |
//! | [`tune`] | which settings suit a trace |
//! | [`replay`] | traces against the allocator: time, fragmentation, driver calls, smallest device |
//! | [`mod@bench`] | pairs and churn beside mimalloc and offset-allocator |
//! | [`plan_trace`] | the steps that a trace repeats, laid out and drawn |
//! | [`doctor`] | what this machine has and what the allocator would use |
//! | [`defrag`] | what letting pages of small blocks share memory gives on traces |
//! | [`run`] | a program started with the preload library in front of its CUDA driver |
//! | [`tiers`] | memory beyond the device: how fast it is, victim policies on traces, codecs |
//! | [`engine`] | the one place that touches the allocator's API |
//! | [`table`] | aligned columns |

mod bare;
pub mod bench;
pub mod defrag;
pub mod doctor;
pub mod engine;
pub mod import;
pub mod plan_trace;
pub mod policy;
pub mod replay;
pub mod run;
pub mod table;
pub mod target;
pub mod tiers;
pub mod tune;

pub use stratalloc_trace as trace;

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "stratalloc",
    version,
    about = "The stratalloc GPU memory allocator: replay traces, benchmark, diagnose, run programs on it"
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replay recorded traces: time an operation, fragmentation, driver calls, smallest device
    Replay(replay::Options),
    /// Time the allocator beside mimalloc and offset-allocator
    Bench(bench::Options),
    /// Find the steps that a trace repeats, lay them out, and draw one
    PlanTrace(plan_trace::Options),
    /// Say what this machine has and what the allocator would use
    Doctor(doctor::Options),
    /// Replay traces, and say what letting pages of small blocks share memory gives at points of each
    Defrag(defrag::Options),
    /// Start a CUDA program on this allocator, as it is
    Run(run::Options),
    /// Make a trace of a PyTorch snapshot or an RMM log
    Import(import::Options),
    /// Search for the settings that suit a trace
    Tune(tune::Options),
    /// Look at the parts of tiers, memory beyond the device: how fast they are, which victims they choose
    Tiers(tiers::Options),
}

/// What is printed when nothing is asked.
const OVERVIEW: &str = "\
stratalloc: one allocator for GPU memory. What this command can do:

  stratalloc doctor                               say what this machine has and what would be used
  stratalloc replay step.trace.zst                replay a recorded trace: ns an operation, fragmentation
  stratalloc replay --min-capacity *.trace.zst    find the smallest device on which traces complete
  stratalloc replay --gpu-bandwidth 2TB/s --pressure 1.02 step.trace.zst
                                                  on a device that lags and has 2 % to spare: stall and waits
  stratalloc replay --checker step.trace.zst      replay with the order of all accesses checked
  stratalloc replay --threads 2 --json a.trace    two threads on one allocator, figures as JSON
  stratalloc replay --policy native,expandable,stratalloc snapshot.pickle
                                                  would it have fitted? under PyTorch's policies and ours
  stratalloc import snapshot.pickle -o a.trace    make a trace of a PyTorch snapshot or an RMM log
  stratalloc tune step.trace.zst                  search for the settings that suit a trace
  stratalloc plan-trace step.trace.zst -o plan.svg
                                                  find the steps that repeat, lay them out, draw one
  stratalloc tiers policies requests.jsonl.zst    compare victim policies on a trace
  stratalloc bench --seconds 20                   time it beside mimalloc and offset-allocator
  stratalloc tiers bench                          bytes a second beyond the device and back, beside memcpy
  stratalloc run --limit 0.8 -- python train.py   start a CUDA program on this allocator, with a limit

`stratalloc help COMMAND` tells more. Settings are taken from STRATALLOC_CONF, as key:value,key:value.
";

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Nothing to complain of.
    Good,
    /// It found something wrong, and said so.
    Bad,
}

/// Why a command did not run to its end: one line for stderr.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    message: String,
    /// Whoever reads the output has closed it, as `head` does: nothing to complain of.
    reader_gone: bool,
}

impl From<String> for Failed {
    fn from(message: String) -> Failed {
        Failed { message, reader_gone: false }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed { message: format!("writing: {error}"), reader_gone: error.kind() == io::ErrorKind::BrokenPipe }
    }
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Failed {
        Failed::from(io::Error::from(error))
    }
}

impl From<trace::TraceError> for Failed {
    fn from(error: trace::TraceError) -> Failed {
        Failed::from(error.to_string())
    }
}

impl From<trace::import::ImportError> for Failed {
    fn from(error: trace::import::ImportError) -> Failed {
        Failed::from(error.to_string())
    }
}

impl From<stratalloc::error::ConfigError> for Failed {
    fn from(error: stratalloc::error::ConfigError) -> Failed {
        Failed::from(format!("in the configuration: {error}"))
    }
}

impl From<stratalloc::error::Error> for Failed {
    fn from(error: stratalloc::error::Error) -> Failed {
        Failed::from(error.to_string())
    }
}

/// The whole command: `args` as from the shell, the program's name first. Bad arguments end the process with status 2.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(args);
    let mut out = BufWriter::new(io::stdout().lock());
    let finish = match &args.command {
        Some(Command::Replay(options)) => replay::run(options, &mut out),
        Some(Command::Bench(options)) => bench::run(options, &mut out),
        Some(Command::PlanTrace(options)) => plan_trace::run(options, &mut out),
        Some(Command::Doctor(options)) => doctor::run(options, &mut out),
        Some(Command::Defrag(options)) => defrag::run(options, &mut out),
        Some(Command::Run(options)) => run::run(options, &mut out),
        Some(Command::Import(options)) => import::run(options, &mut out),
        Some(Command::Tune(options)) => tune::run(options, &mut out),
        Some(Command::Tiers(options)) => tiers::run(options, &mut out),
        None => out.write_all(OVERVIEW.as_bytes()).map(|()| Finish::Good).map_err(Failed::from),
    };
    match finish.and_then(|finish| Ok(out.flush().map(|()| finish)?)) {
        Ok(Finish::Good) => ExitCode::SUCCESS,
        Ok(Finish::Bad) => ExitCode::FAILURE,
        Err(failed) if failed.reader_gone => ExitCode::SUCCESS,
        Err(failed) => {
            // Where stderr is closed too, nobody is left to tell.
            let _ = writeln!(io::stderr(), "error: {failed}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Args::command().debug_assert();
    }
}
