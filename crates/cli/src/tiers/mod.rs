//! Memory beyond the device, apart from any program: what its parts do, and how fast.

pub mod bench;
pub mod codecs;
mod device;
mod nvme;
pub mod policies;

use std::io::Write;

use clap::Subcommand;

use crate::{Failed, Finish};

/// Options of `stratalloc tiers`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bytes a second of every way, beside plain copies in the same run
    Bench(bench::Options),
    /// Compare victim policies on recorded traces
    Policies(policies::Options),
    /// Say what codecs make of numbers, and how fast
    Codecs(codecs::Options),
}

/// Runs one of them.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    match &options.command {
        Command::Bench(options) => bench::run(options, out),
        Command::Policies(options) => policies::run(options, out),
        Command::Codecs(options) => codecs::run(options, out),
    }
}
