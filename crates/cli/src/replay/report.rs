//! What a replay gave, as JSON and as a table.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use stratalloc::PlanStats;
use stratalloc::units::ByteSize;

use super::follow::{Failure, Manner};
use super::passes::{Measured, Plan};
use super::{MinCapacity, Options};
use crate::engine::Calls;
use crate::table::{Table, digits, median};
use crate::trace::Trace;

/// So many of the checker's reports are shown to people.
const SHOWN_REPORTS: usize = 10;

/// One trace's row. Keys that do not apply are left out; a replay that failed has `error` and where it was.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The trace's name.
    pub trace: String,
    /// Its operations, markers not counted.
    pub ops: usize,
    /// Its allocations.
    pub allocs: u32,
    /// Its frees.
    pub frees: u32,
    /// The most requested bytes live at one time; with several threads, as the allocator counted them.
    pub peak_live_bytes: u64,
    /// What was measured.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
    /// The smallest device on which the trace completes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_capacity_bytes: Option<u64>,
    /// That, over the peak of live bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_capacity_ratio: Option<f64>,
    /// The smallest ratio from which on every larger capacity that was tried completes; `null` if the largest failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robust_capacity_ratio: Option<f64>,
    /// Multiples of the smallest capacity on which the trace fails all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fails_above_min_capacity: Option<Vec<f64>>,
    /// Why the replay failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The number of the operation at which it failed, from 0, markers counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<usize>,
    /// The line of the trace on which that operation stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// What a completed replay measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Threads.
    pub threads: usize,
    /// Passes.
    pub passes: usize,
    /// The most physical memory held in the first pass.
    pub peak_reserved_bytes: u64,
    /// The same over all passes.
    pub peak_reserved_bytes_all_passes: u64,
    /// 1 - peak live / peak reserved, of the first pass.
    pub fragmentation: f64,
    /// The allocator's own time over the operations of one thread, from a second run on a device whose calls do nothing. The best pass
    /// but the first, unless that is the only one.
    pub ns_per_op_min: f64,
    /// The same, the median pass.
    pub ns_per_op_median: f64,
    /// The same on the software device, whose bookkeeping is part of it.
    pub ns_per_op_with_device_min: f64,
    /// Driver calls of the first pass.
    pub driver_calls: BTreeMap<&'static str, u64>,
    /// What they took on the driver's own clock.
    pub driver_time_us: f64,
    /// What those after the first third of the trace took.
    pub driver_time_steady_us: f64,
    /// Chunks touched in all later passes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_pass_chunk_calls: Option<ChunkCalls>,
    /// What plans did in all passes, where they are on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plans: Option<PlanFigures>,
    /// A hash of all addresses given out, in order, as a hexadecimal number; `null` with several threads.
    pub address_hash: Option<String>,
    /// What the checker found, if it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checker_reports: Option<Vec<String>>,
}

/// What plans did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlanFigures {
    /// Requests in the step followed at the end; 0 if none is.
    pub step: u64,
    /// Those with a planned place.
    pub planned: u64,
    /// Requests that got their planned place.
    pub hits: u64,
    /// Planned places that were not free.
    pub misses: u64,
    /// Requests that were not the step's next.
    pub deviations: u64,
    /// Steps learned.
    pub learned: u64,
    /// Layouts worked out.
    pub layouts: u64,
    /// Plans given up.
    pub dropped: u64,
}

impl PlanFigures {
    fn of(stats: PlanStats) -> PlanFigures {
        let PlanStats { step, planned, hits, misses, deviations, learned, layouts, dropped, .. } = stats;
        PlanFigures { step, planned, hits, misses, deviations, learned, layouts, dropped }
    }
}

/// How many chunks were created, mapped and released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ChunkCalls {
    /// `cuMemCreate`.
    pub created: u64,
    /// `cuMemMap`.
    pub mapped: u64,
    /// `cuMemRelease`.
    pub released: u64,
}

impl ChunkCalls {
    fn of(calls: &Calls) -> ChunkCalls {
        let [created, mapped, released] = ["cuMemCreate", "cuMemMap", "cuMemRelease"].map(|name| calls.count(name));
        ChunkCalls { created, mapped, released }
    }
}

impl Report {
    pub(super) fn new(trace: &Trace, plan: &Plan, outcome: Result<Measured, Failure>) -> Report {
        let mut report = Report {
            trace: trace.name.clone(),
            ops: trace.calls() - if plan.skip_empty_cache { trace.empty_caches as usize } else { 0 },
            allocs: trace.allocs,
            frees: trace.frees,
            peak_live_bytes: trace.peak_live_bytes,
            figures: None,
            min_capacity_bytes: None,
            min_capacity_ratio: None,
            robust_capacity_ratio: None,
            fails_above_min_capacity: None,
            error: None,
            op: None,
            line: None,
        };
        match outcome {
            Ok(measured) => report.set_figures(plan, measured),
            Err(failure) => report.set_failure(trace, &failure),
        }
        report
    }

    fn set_figures(&mut self, plan: &Plan, measured: Measured) {
        if plan.threads > 1 {
            self.peak_live_bytes = measured.peak_live_bytes;
        }
        let per_op = |wall_ns: &[f64]| {
            let warm = if plan.passes > 1 { &wall_ns[1..] } else { wall_ns };
            let mut ns: Vec<f64> = warm.iter().map(|wall| wall / self.ops.max(1) as f64).collect();
            ns.sort_by(f64::total_cmp);
            ns
        };
        let (own, with_device) = (per_op(&measured.own_ns), per_op(&measured.wall_ns));
        let reserved = measured.peak_reserved_bytes;
        self.figures = Some(Figures {
            threads: plan.threads,
            passes: plan.passes,
            peak_reserved_bytes: reserved,
            peak_reserved_bytes_all_passes: measured.peak_reserved_bytes_all,
            fragmentation: 1.0 - self.peak_live_bytes as f64 / reserved.max(1) as f64,
            ns_per_op_min: own.first().copied().unwrap_or_default(),
            ns_per_op_median: median(&own),
            ns_per_op_with_device_min: with_device.first().copied().unwrap_or_default(),
            driver_calls: measured.first.0.iter().map(|(name, call)| (*name, call.count)).collect(),
            driver_time_us: measured.first.total().time_ns as f64 / 1e3,
            driver_time_steady_us: measured.steady.total().time_ns as f64 / 1e3,
            second_pass_chunk_calls: (plan.passes > 1).then(|| ChunkCalls::of(&measured.later)),
            plans: measured.plan.is_some().then(|| PlanFigures::of(measured.plans)),
            address_hash: measured.address_hash.map(|hash| format!("{hash:016x}")),
            checker_reports: (plan.manner == Manner::Checked).then_some(measured.checker_reports),
        });
    }

    pub(super) fn set_min_capacity(&mut self, found: &MinCapacity) {
        self.min_capacity_bytes = Some(found.bytes);
        self.min_capacity_ratio = Some(found.ratio);
        self.robust_capacity_ratio = Some(found.robust_ratio);
        self.fails_above_min_capacity = Some(found.fails_above.clone());
    }

    pub(super) fn set_failure(&mut self, trace: &Trace, failure: &Failure) {
        self.error = Some(failure.error.to_string());
        self.op = failure.op;
        self.line = failure.op.map(|op| trace.line_of(op));
    }

    /// Whether the replay completed, and the checker found nothing.
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.checker_reports().is_empty()
    }

    fn checker_reports(&self) -> &[String] {
        self.figures.as_ref().and_then(|figures| figures.checker_reports.as_deref()).unwrap_or_default()
    }

    /// Why and where the replay failed, in words.
    fn failure(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        Some(match (self.op, self.line) {
            (Some(op), Some(line)) => format!("failed at operation {op} (line {line}): {error}"),
            _ => format!("failed: {error}"),
        })
    }
}

/// The table, what the checker found, and what to look at.
pub(super) fn for_people(rows: &[Report], options: &Options, out: &mut impl Write) -> io::Result<()> {
    let mut headings = vec![
        "trace",
        "ops",
        "peak live",
        "reserved",
        "frag",
        "ns/op min",
        "median",
        "with device",
        "driver calls",
        "time ms",
        "steady ms",
    ];
    if options.min_capacity {
        headings.extend(["min capacity", "/ live", "robust"]);
    }
    let mut table = Table::new(&headings);
    for row in rows {
        table.row(cells(row, options));
    }
    write!(out, "{table}")?;
    for row in rows {
        let found = row.checker_reports();
        for report in found.iter().take(SHOWN_REPORTS) {
            writeln!(out, "{}: checker: {report}", row.trace)?;
        }
        if found.len() > SHOWN_REPORTS {
            writeln!(out, "{}: checker: and {} more; --json has them all", row.trace, found.len() - SHOWN_REPORTS)?;
        }
    }
    writeln!(out, "\n{}", look_at(rows, options))
}

fn cells(row: &Report, options: &Options) -> Vec<String> {
    let mut cells = vec![row.trace.clone(), row.ops.to_string(), ByteSize(row.peak_live_bytes).to_string()];
    if let Some(failure) = row.failure() {
        cells.push(failure);
        return cells;
    }
    if let Some(figures) = &row.figures {
        cells.extend([
            ByteSize(figures.peak_reserved_bytes).to_string(),
            format!("{:.2}%", figures.fragmentation * 100.0),
            digits(figures.ns_per_op_min),
            digits(figures.ns_per_op_median),
            digits(figures.ns_per_op_with_device_min),
            figures.driver_calls.values().sum::<u64>().to_string(),
            digits(figures.driver_time_us / 1e3),
            digits(figures.driver_time_steady_us / 1e3),
        ]);
    }
    if options.min_capacity {
        cells.push(row.min_capacity_bytes.map_or("-".to_owned(), |bytes| ByteSize(bytes).to_string()));
        cells.extend([row.min_capacity_ratio, row.robust_capacity_ratio].map(|ratio| match ratio {
            Some(ratio) => format!("{ratio:.4}"),
            None => "-".to_owned(),
        }));
    }
    cells
}

/// What is most worth a look.
fn look_at(rows: &[Report], options: &Options) -> String {
    let good: Vec<(&Report, &Figures)> =
        rows.iter().filter(|row| row.error.is_none()).filter_map(|row| Some((row, row.figures.as_ref()?))).collect();
    let failed = rows.len() - good.len();
    let mut words = Vec::new();
    if failed > 0 {
        words.push(format!("{failed} of {} failed", rows.len()));
    }
    let worst = |figure: fn(&Figures) -> f64| good.iter().max_by(|a, b| figure(a.1).total_cmp(&figure(b.1)));
    if let Some((row, figures)) = worst(|figures| figures.fragmentation) {
        words.push(format!(
            "most waste: {} reserves {:.2}% more than it ever has live",
            row.trace,
            (1.0 / (1.0 - figures.fragmentation) - 1.0) * 100.0
        ));
    }
    if let Some((row, figures)) = worst(|figures| figures.ns_per_op_median).filter(|_| !options.checker) {
        words.push(format!("slowest: {} at {} ns an operation", row.trace, digits(figures.ns_per_op_median)));
    }
    match worst(|figures| figures.driver_time_steady_us) {
        Some((row, figures)) if figures.driver_time_steady_us > 0.0 => words.push(format!(
            "after its first third {} still spends {} ms in the driver (0 is the goal)",
            row.trace,
            digits(figures.driver_time_steady_us / 1e3)
        )),
        Some(_) => words.push("no driver time after the first third".to_owned()),
        None => {}
    }
    if options.checker {
        let found: usize = rows.iter().map(|row| row.checker_reports().len()).sum();
        words.push(if found == 0 {
            "the checker found nothing".to_owned()
        } else {
            format!("the checker found {found}")
        });
    }
    format!("Look at:\n  {}", words.join("\n  "))
}
