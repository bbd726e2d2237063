//! `stratalloc tiers`: what moving bytes beyond the device costs on this machine.
//!
//! `bench` measures rows, each beside the plain thing that does the same work where there is one: a copy by the processor, or another program.
//! A row and its peer take turns, round after round, so that whatever else the machine does falls on both; medians are over the rounds.
//! The bias: the device is the software device, whose copies are the processor's, so what is compared is what the engine adds to copying:
//! cutting into pieces, checksums, events.

pub mod codecs;
mod device;
pub mod policies;
mod rows;

use std::io::Write;

use indicatif::ProgressBar;
use serde::Serialize;
use stratalloc::units::ByteSize;

use crate::table::{Table, digits, median};
use crate::{Failed, Finish};
use rows::{Beside, Row};

/// What `tiers` is told.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Bytes a second of every way, beside plain copies in the same run
    Bench(BenchOptions),
    /// Compare victim policies on recorded traces
    Policies(policies::Options),
    /// Say what codecs make of numbers, and how fast
    Codecs(codecs::Options),
}

/// What `tiers bench` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchOptions {
    /// Bytes that a row moves at a time, in one object
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = size)]
    pub size: ByteSize,

    /// Turns that a row and its peer get
    #[arg(long, value_name = "N", default_value = "9", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,

    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,

    /// Print JSON: an array with one object a row
    #[arg(long)]
    pub json: bool,
}

fn size(text: &str) -> Result<ByteSize, String> {
    let size = text.parse::<ByteSize>().map_err(|error| error.to_string())?;
    if (4096..=64 << 30).contains(&size.0) { Ok(size) } else { Err("write a size from 4 KiB to 64 GiB".to_owned()) }
}

/// What one row came to.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Which way, and how much at a time.
    pub name: String,
    /// The median round.
    pub bytes_per_s: f64,
    /// As a part of what `beside` does in the same time; for codecs, how many times smaller the bytes became. The median round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// What the ratio is to, or why there is none.
    pub beside: String,
}

/// Runs the command.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    match &options.command {
        Command::Bench(options) => bench(options, out),
        Command::Policies(options) => policies::run(options, out),
        Command::Codecs(options) => codecs::run(options, out),
    }
}

fn bench(options: &BenchOptions, out: &mut impl Write) -> Result<Finish, Failed> {
    let wanted = |name: &str| options.only.as_ref().is_none_or(|text| name.contains(text.as_str()));
    let makers: Vec<_> = rows::all(options).into_iter().filter(|maker| wanted(&maker.name)).collect();
    if makers.is_empty() {
        return Err(Failed::from(format!("no row has {:?} in its name", options.only.as_deref().unwrap_or(""))));
    }
    let progress = ProgressBar::new(makers.len() as u64);
    let mut figures = Vec::new();
    for maker in makers {
        progress.set_message(maker.name.clone());
        progress.tick();
        let name = maker.name;
        figures.push(measure(name, (maker.make)()?, options.rounds)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &figures)?;
        writeln!(out)?;
    } else {
        for_people(&figures, out)?;
    }
    Ok(Finish::Good)
}

/// Lets a row and its peer take turns.
fn measure(name: String, mut row: Row, rounds: u32) -> Result<Figure, Failed> {
    // The first time, memory is touched and pinned.
    (row.work)()?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    let mut beside = String::new();
    for round in 0..rounds {
        let mut own = None;
        // Who is first in a round is last in the next.
        if round % 2 == 0 {
            own = Some((row.work)()?.as_secs_f64());
        }
        let other = match &mut row.beside {
            Beside::Peer { name, work } => {
                beside.clone_from(name);
                Some(work()?.as_secs_f64())
            }
            Beside::Smaller(times) => {
                beside = "the bytes themselves".to_owned();
                ratios.push(*times);
                None
            }
            Beside::Nothing(why) => {
                beside.clone_from(why);
                None
            }
        };
        let own = match own {
            Some(own) => own,
            None => (row.work)()?.as_secs_f64(),
        };
        rates.push(row.bytes as f64 / own.max(1e-9));
        ratios.extend(other.map(|other| other / own.max(1e-9)));
    }
    rates.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    let ratio = (!ratios.is_empty()).then(|| median(&ratios));
    Ok(Figure { name, bytes_per_s: median(&rates), ratio, beside })
}

fn for_people(figures: &[Figure], out: &mut impl Write) -> std::io::Result<()> {
    let mut table = Table::new(&["name", "bytes_per_s", "ratio", "to"]);
    for figure in figures {
        table.row(vec![
            figure.name.clone(),
            format!("{}/s", ByteSize(figure.bytes_per_s as u64)),
            figure.ratio.map(digits).unwrap_or_default(),
            figure.beside.clone(),
        ]);
    }
    write!(out, "{table}")?;
    writeln!(
        out,
        "\nLook at: ratio, which is of the same run; 1 is as fast as what stands beside it. \
        The speed is that of this machine's memory, since the device is software."
    )
}
