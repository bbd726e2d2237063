//! `stratalloc bench`: the cost of an allocation and its free, beside two allocators for host memory in the same run.
//!
//! Every row is one workload. After a warm-up that also finds out how many pairs take the time that a row has, the rows take
//! turns, round after round, so that whatever else the machine does falls on all of them. The minimum and the median are
//! over the rounds. The bias: all memory here is addresses of a software device, so what is timed is the allocator alone.

mod rows;
mod work;

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use stratalloc::units::ByteSize;

use crate::engine::configuration;
use crate::table::{Table, digits, median};
use crate::{Failed, Finish};
pub use rows::Metadata;
use rows::Row;

/// Turns that every row gets.
const ROUNDS: u32 = 9;

/// What `bench` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long to measure, all rows together
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub seconds: Duration,

    /// Print JSON: an array with one object a row
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write a number of seconds from 0 to 86400".to_owned())
}

/// The measured cost of one workload.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// The workload.
    pub name: String,
    /// Threads, each with all of the work.
    pub threads: usize,
    /// Wall time of an allocation and a free, each thread doing as many: the best round.
    pub ns_min: f64,
    /// The same: the median round.
    pub ns_median: f64,
    /// Host memory for the blocks kept live, in the rows that are about those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// Measures all rows and prints them.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let mut rows = rows::all(&configuration(None)?)?;
    let turn = options.seconds / (ROUNDS * rows.len() as u32);
    let progress = ProgressBar::new(u64::from(ROUNDS) + 1);
    progress.tick();
    let pairs: Vec<u64> = rows.iter_mut().map(|row| pairs_in(row, turn)).collect::<Result<_, _>>()?;
    progress.inc(1);
    let mut samples = vec![Vec::new(); rows.len()];
    for _ in 0..ROUNDS {
        for ((row, pairs), samples) in rows.iter_mut().zip(&pairs).zip(&mut samples) {
            samples.push(row.time(*pairs)?);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let figures: Vec<Figure> = rows.iter().zip(samples).map(|(row, samples)| figure(row, samples)).collect();
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &figures)?;
        writeln!(out)?;
    } else {
        for_people(&figures, out)?;
    }
    Ok(Finish::Good)
}

/// How many pairs a row does in about the time of its turn; doing them warms it up.
fn pairs_in(row: &mut Row, turn: Duration) -> Result<u64, Failed> {
    const AT_LEAST: u64 = 256;
    let mut pairs = AT_LEAST;
    loop {
        let start = Instant::now();
        let ns = row.time(pairs)?;
        // What a turn takes besides, such as filling and warming up again, counts as well.
        let besides = start.elapsed().as_secs_f64() - ns * pairs as f64 / 1e9;
        if ns * pairs as f64 / 1e9 + besides >= turn.as_secs_f64() / 4.0 || pairs > 1 << 40 {
            let left = (turn.as_secs_f64() - besides).max(0.0);
            return Ok(((left * 1e9 / ns.max(0.1)) as u64).max(AT_LEAST));
        }
        pairs *= 2;
    }
}

fn figure(row: &Row, mut samples: Vec<f64>) -> Figure {
    samples.sort_by(f64::total_cmp);
    Figure {
        name: row.name.clone(),
        threads: row.threads(),
        ns_min: samples.first().copied().unwrap_or_default(),
        ns_median: median(&samples),
        metadata: row.metadata,
    }
}

fn for_people(figures: &[Figure], out: &mut impl Write) -> std::io::Result<()> {
    let mimalloc = |threads| figures.iter().find(|figure| figure.name == rows::MIMALLOC && figure.threads == threads);
    let mut table = Table::new(&["an allocation and a free", "threads", "ns min", "median", "x mimalloc"]);
    for figure in figures {
        let ratio = mimalloc(figure.threads).map(|mimalloc| digits(figure.ns_min / mimalloc.ns_min.max(0.01)));
        table.row(vec![
            figure.name.clone(),
            figure.threads.to_string(),
            digits(figure.ns_min),
            digits(figure.ns_median),
            ratio.unwrap_or_default(),
        ]);
    }
    write!(out, "{table}")?;
    if let Some(metadata) = figures.iter().filter_map(|figure| figure.metadata).next_back() {
        let Metadata { blocks, resident_bytes, counted_bytes } = metadata;
        writeln!(
            out,
            "\nMetadata with {blocks} blocks of 512 B live: {} resident, {:.1} bytes a block ({:.1} without the software device's)",
            ByteSize(resident_bytes),
            resident_bytes as f64 / blocks as f64,
            counted_bytes as f64 / blocks as f64
        )?;
    }
    writeln!(
        out,
        "\nLook at: min, which noise only raises; the rows with 2 threads, which should cost what those with 1 do; \
         and live 1e3 to 1e6, which should not grow. x mimalloc is of the row with as many threads."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_checked() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "x", "-1", "NaN", "inf", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
