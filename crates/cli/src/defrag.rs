//! What letting pages of small blocks share memory gives on recorded traces: at points of a replay, the device is waited for and the allocator
//! defragments.

use std::io::Write;
use std::path::PathBuf;

use stratalloc::DefragReport;
use stratalloc::units::{ByteSize, PAGE};

use crate::engine::{Defragmented, Engine, Setup, configuration};
use crate::table::Table;
use crate::trace::{Op, Trace};
use crate::{Failed, Finish};

/// Options of `stratalloc defrag`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Recorded traces, plain or compressed
    #[arg(required = true)]
    pub traces: Vec<PathBuf>,
    /// At so many points of each trace, evenly spaced
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: u32,
    /// Memory of the software device
    #[arg(long, default_value = "80GiB")]
    pub capacity: ByteSize,
    /// Settings, as in STRATALLOC_CONF, which they go before
    #[arg(long)]
    pub config: Option<String>,
}

/// Replays each trace, and prints what defragmenting gave at each point.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let config = configuration(options.config.as_deref())?;
    let mut finish = Finish::Good;
    for path in &options.traces {
        let trace = Trace::load(path)?;
        let setup = Setup { capacity: options.capacity.0, config: config.clone(), ..Setup::default() };
        match replay(&trace, &setup, options.steps as usize) {
            Ok(points) => print(&trace, &points, out)?,
            Err((op, error)) => {
                finish = Finish::Bad;
                writeln!(out, "{}: line {}: {error}", trace.name, trace.line_of(op))?;
            }
        }
    }
    Ok(finish)
}

/// Follows a trace on a fresh device. Gives what was found at each point, with the index of the operation.
fn replay(
    trace: &Trace,
    setup: &Setup,
    steps: usize,
) -> Result<Vec<(usize, Defragmented)>, (usize, stratalloc::Error)> {
    let open = || {
        let engine = Engine::open(setup)?;
        let streams = (0..trace.streams).map(|_| engine.create_stream()).collect::<stratalloc::Result<Vec<_>>>()?;
        Ok((engine, streams))
    };
    let (engine, streams) = open().map_err(|error| (0, error))?;
    let mut ptrs = Vec::with_capacity(trace.allocs as usize);
    let mut points = Vec::with_capacity(steps);
    for (index, &op) in trace.ops.iter().enumerate() {
        let done = match op {
            Op::Alloc { bytes, stream } => engine.alloc(bytes, streams[usize::from(stream)]).map(|ptr| ptrs.push(ptr)),
            Op::Free { id } => engine.free(ptrs[id as usize]),
            Op::Record { id, stream } => engine.record_stream(ptrs[id as usize], streams[usize::from(stream)]),
            Op::EmptyCache => engine.empty_cache(),
            Op::Marker { .. } => Ok(()),
        };
        done.map_err(|error| (index, error))?;
        if points.len() < (index + 1) * steps / trace.ops.len() {
            points.push((index, engine.defragment().map_err(|error| (index, error))?));
        }
    }
    Ok(points)
}

fn print(trace: &Trace, points: &[(usize, Defragmented)], out: &mut impl Write) -> std::io::Result<()> {
    let headings = [
        "after line",
        "live",
        "reserved",
        "pages",
        "in use",
        "share",
        "chunks",
        "share",
        "given back",
        "reserved / live",
    ];
    let mut table = Table::new(&headings);
    for (index, point) in points {
        let DefragReport { pages, meshed, chunks, paired, released, .. } = point.report;
        let in_use = point.small_live as f64 / (pages.max(1) * PAGE) as f64;
        let ratio = |reserved: u64| reserved as f64 / point.live.max(1) as f64;
        table.row(vec![
            trace.line_of(*index).to_string(),
            ByteSize(point.live).to_string(),
            ByteSize(point.reserved).to_string(),
            pages.to_string(),
            format!("{:.0} %", 100.0 * in_use),
            meshed.to_string(),
            chunks.to_string(),
            paired.to_string(),
            ByteSize(released).to_string(),
            format!("{:.4} -> {:.4}", ratio(point.reserved), ratio(point.reserved - released)),
        ]);
    }
    let sum = |of: fn(&DefragReport) -> u64| points.iter().map(|(_, point)| of(&point.report)).sum::<u64>();
    let (pages, meshed) = (sum(|report| report.pages), sum(|report| report.meshed));
    let (chunks, paired) = (sum(|report| report.chunks), sum(|report| report.paired));
    writeln!(out, "{}\n{table}", trace.name)?;
    writeln!(out, "{meshed} of {pages} pages of small blocks, {paired} of {chunks} chunks used in part\n")
}
