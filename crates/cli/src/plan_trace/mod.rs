//! `stratalloc plan-trace`: the steps that a trace repeats, what each needs at least, what a layout of it takes, and a picture.

mod again;
mod find;
mod svg;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use stratalloc::plan::{Layout, PLANNED_ABOVE, Room, Step, solve};
use stratalloc::units::{ByteSize, GRANULE};

use crate::table::Table;
use crate::trace::Trace;
use crate::{Failed, Finish};
use find::Found;

/// Rows of steps that are shown to people one by one.
const SHOWN: usize = 24;

/// What `plan-trace` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The trace, plain or zstd-compressed
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,

    /// How often the trace is gone through, as if its program did it all again
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub repeat: u32,

    /// Draw a step as an SVG: requests from left to right, addresses upwards
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Which step to draw or to write, by its number in the table [default: the one with the most bytes]
    #[arg(long, value_name = "N")]
    pub step: Option<usize>,

    /// Write that step as a trace of its own, done over and over, as by a program whose batches are all alike
    #[arg(long, value_name = "FILE")]
    pub again: Option<PathBuf>,

    /// How often the step is done in that trace
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub times: u32,

    /// Print JSON: an array with one object a step
    #[arg(long)]
    pub json: bool,
}

/// One step, laid out.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its number.
    pub number: usize,
    /// Where it comes from: `repeated` if it was found without markers, or the marker's label.
    pub source: String,
    /// The stream whose requests it has.
    pub stream: u16,
    /// The first of its requests, counted in the stream from the beginning of the first pass.
    pub first: u64,
    /// Its requests: those for large blocks.
    pub requests: usize,
    /// Those of them that can be planned.
    pub planned: usize,
    /// The most bytes of large blocks in use in the stream meanwhile, planned or not.
    pub peak_live_bytes: u64,
    /// What the planned blocks have in use at their peak: no layout needs less.
    pub bound_bytes: u64,
    /// What the layout takes.
    pub packed_bytes: u64,
    /// That, over the bound.
    pub ratio: f64,
}

/// Finds the steps of a trace, lays them out, and prints and draws what comes of it.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let trace = Trace::load(&options.trace)?;
    let found = find::steps(&trace, options.repeat);
    let laid_out: Vec<(Row, &Step, Layout)> =
        found.iter().enumerate().map(|(number, found)| lay_out(number, found)).collect();
    let rows: Vec<&Row> = laid_out.iter().map(|(row, ..)| row).collect();
    if let Some(number) = options.step.filter(|&number| number >= rows.len()) {
        return Err(Failed::from(format!("no step {number}: {} were found, numbered from 0", rows.len())));
    }
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        for_people(&trace, options, &rows, out)?;
    }
    if options.output.is_none() && options.again.is_none() {
        return Ok(Finish::Good);
    }
    let wanted = match options.step {
        Some(number) => laid_out.get(number),
        None => laid_out.iter().max_by_key(|(row, ..)| (row.bound_bytes, row.requests)),
    };
    let (row, step, layout) = wanted.ok_or_else(|| match options.step {
        Some(number) => format!("no step {number}: {} were found, numbered from 0", laid_out.len()),
        None => format!("{}: no step was found", options.trace.display()),
    })?;
    let write = |path: &PathBuf, what: &str, text: String| {
        std::fs::write(path, text).map_err(|error| Failed::from(format!("{}: {error}", path.display())))?;
        Ok::<_, Failed>(format!("step {} {what} {}", row.number, path.display()))
    };
    let drawn =
        options.output.as_ref().map(|path| write(path, "is drawn in", svg::draw(&trace.name, row, step, layout)));
    let again = options.again.as_ref().map(|path| {
        let name = format!("{}, {} of stream {} again", trace.name, row.source, row.stream);
        write(path, "is done over and over in", again::trace(&name, step, options.times))
    });
    for done in [drawn, again].into_iter().flatten() {
        let done = done?;
        if !options.json {
            writeln!(out, "{done}")?;
        }
    }
    Ok(Finish::Good)
}

fn lay_out(number: usize, found: &Found) -> (Row, &Step, Layout) {
    let step = &found.step;
    let layout = solve(step, &[Room { from: 0, to: 1 << 47 }], &[]);
    let bound_bytes = step.bound() * GRANULE;
    let row = Row {
        number,
        source: found.source.clone(),
        stream: found.stream,
        first: found.first,
        requests: step.len(),
        planned: step.planned(),
        peak_live_bytes: found.peak * GRANULE,
        bound_bytes,
        packed_bytes: layout.top,
        ratio: if bound_bytes > 0 { layout.top as f64 / bound_bytes as f64 } else { 1.0 },
    };
    (row, step, layout)
}

fn for_people(trace: &Trace, options: &Options, rows: &[&Row], out: &mut impl Write) -> Result<(), Failed> {
    writeln!(out, "{}, gone through {} times; blocks above {}\n", trace.name, options.repeat, ByteSize(PLANNED_ABOVE))?;
    let headings =
        ["step", "source", "stream", "first", "requests", "planned", "peak live", "bound", "packed", "/ bound"];
    let mut table = Table::new(&headings);
    for row in rows.iter().take(SHOWN) {
        let bytes = |bytes| ByteSize(bytes).to_string();
        table.row(vec![
            row.number.to_string(),
            row.source.clone(),
            row.stream.to_string(),
            row.first.to_string(),
            row.requests.to_string(),
            row.planned.to_string(),
            bytes(row.peak_live_bytes),
            bytes(row.bound_bytes),
            bytes(row.packed_bytes),
            format!("{:.4}", row.ratio),
        ]);
    }
    write!(out, "{table}")?;
    if rows.len() > SHOWN {
        writeln!(out, "and {} more; --json has them all", rows.len() - SHOWN)?;
    }
    let repeated = rows.iter().filter(|row| row.source == find::REPEATED).count();
    let ratios = || rows.iter().map(|row| row.ratio);
    let mean = ratios().sum::<f64>() / rows.len().max(1) as f64;
    let worst = ratios().fold(1.0, f64::max);
    writeln!(out, "\n{repeated} found without markers, {} between markers", rows.len() - repeated)?;
    writeln!(out, "packed over bound: {mean:.4} in the mean, {worst:.4} at worst")?;
    Ok(())
}
