//! What a replay gave, as JSON and as a table.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use stratalloc::PlanStats;
use stratalloc::units::ByteSize;

use super::columns::{self, Column};
use super::fields::{Smallest, Stop};
use super::follow::{Failure, Manner};
use super::passes::{Measured, Plan};
use super::percentiles::{self, Percentiles};
use super::{Explained, MinCapacity, Options, passes};
use crate::engine::{Calls, Spent};
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
    /// The smallest device on which the trace completes, if it was sought.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub smallest: Option<Smallest>,
    /// Multiples of the smallest capacity on which the trace fails all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fails_above_min_capacity: Option<Vec<f64>>,
    /// How many capacities above the smallest were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacities_tried: Option<usize>,
    /// Whether failing on one of those is an error.
    #[serde(skip)]
    must_be_robust: bool,
    /// Why and where the replay failed, if it did.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Why there was no room, and what to do, if that was it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explained>,
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
    /// Peak reserved / peak live, of the first pass.
    pub reserved_ratio: f64,
    /// 1 - peak live / peak reserved, of the first pass.
    pub fragmentation: f64,
    /// The allocator's own time over the operations of one thread, from a second run on a device whose calls do nothing. The best pass
    /// but the first, unless that is the only one.
    pub ns_per_op_min: f64,
    /// The same, the median pass.
    pub ns_per_op_median: f64,
    /// The same on the software device, whose bookkeeping is part of it.
    pub ns_per_op_with_device_min: f64,
    /// The allocator's own time for single allocations after the first third of the trace, on the device whose calls do nothing: the median
    /// over all passes but the first, unless that is the only one. Left out where virtual time is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_ns: Option<Percentiles>,
    /// The same in the first pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_ns_first_pass: Option<Percentiles>,
    /// What it takes to look at the time, which was subtracted from these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_ns_timer: Option<u32>,
    /// Driver calls of the first pass.
    pub driver_calls: BTreeMap<&'static str, u64>,
    /// What each of these took together in virtual time, waits included.
    pub driver_calls_us: BTreeMap<&'static str, f64>,
    /// What all of them cost in virtual time, waits not included.
    pub driver_time_us: f64,
    /// What those after the first third of the trace cost.
    pub driver_time_steady_us: f64,
    /// What a step in the second half of the trace cost in the mean, where markers say what steps are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_time_us_per_step_second_half: Option<f64>,
    /// What a step of the second pass cost in the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_time_us_per_step_second_pass: Option<f64>,
    /// How long the host was blocked in waits in the first pass, in virtual time.
    pub stall_us: f64,
    /// Calls of the first pass that waited for the whole device.
    pub device_syncs: u64,
    /// Those that waited for a stream or an event.
    pub stream_waits: u64,
    /// How long the first pass took in virtual time.
    pub virtual_time_us: f64,
    /// What the second pass cost, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_pass: Option<Cost>,
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

/// What a pass cost the host, in virtual time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Driver calls.
    pub driver_calls: BTreeMap<&'static str, u64>,
    /// What they cost, waits not included.
    pub driver_time_us: f64,
    /// How long the host was blocked in waits.
    pub stall_us: f64,
    /// Calls that waited for the whole device.
    pub device_syncs: u64,
    /// Calls that waited for a stream or an event.
    pub stream_waits: u64,
    /// How long it took.
    pub virtual_time_us: f64,
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

impl Cost {
    fn of(spent: &Spent) -> Cost {
        Cost {
            driver_calls: spent.calls.0.iter().map(|(name, call)| (*name, call.count)).collect(),
            driver_time_us: us(spent.driver_ns),
            stall_us: us(spent.stall_ns),
            device_syncs: spent.calls.device_waits(),
            stream_waits: spent.calls.stream_waits(),
            virtual_time_us: us(spent.clock_ns),
        }
    }
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
            smallest: None,
            fails_above_min_capacity: None,
            capacities_tried: None,
            must_be_robust: false,
            stop: None,
            explanation: None,
        };
        match outcome {
            Ok(measured) => report.set_figures(trace, plan, measured),
            Err(failure) => report.set_failure(trace, &failure),
        }
        report
    }

    fn set_figures(&mut self, trace: &Trace, plan: &Plan, measured: Measured) {
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
        let (first, second) = (Cost::of(&measured.first), measured.second.as_ref().map(Cost::of));
        let per_step = |time_us: f64, steps: usize| (steps > 0).then(|| time_us / steps as f64);
        let (_, steps_of_second_half) = passes::second_half(trace);
        let of_first: Vec<Percentiles> =
            measured.percentiles.iter().filter_map(|passes| passes.first().copied()).collect();
        let alloc_ns_first_pass = Percentiles::median_of(&of_first);
        let of_later: Vec<Percentiles> =
            measured.percentiles.iter().flat_map(|passes| passes.iter().skip(1)).copied().collect();
        self.figures = Some(Figures {
            threads: plan.threads,
            passes: plan.passes,
            peak_reserved_bytes: reserved,
            peak_reserved_bytes_all_passes: measured.peak_reserved_bytes_all,
            reserved_ratio: reserved as f64 / self.peak_live_bytes.max(1) as f64,
            fragmentation: 1.0 - self.peak_live_bytes as f64 / reserved.max(1) as f64,
            ns_per_op_min: own.first().copied().unwrap_or_default(),
            ns_per_op_median: median(&own),
            ns_per_op_with_device_min: with_device.first().copied().unwrap_or_default(),
            alloc_ns: Percentiles::median_of(&of_later).or(alloc_ns_first_pass),
            alloc_ns_first_pass,
            alloc_ns_timer: alloc_ns_first_pass.map(|_| percentiles::timer_ns()),
            driver_calls: first.driver_calls,
            driver_calls_us: measured.first.calls.0.iter().map(|(name, call)| (*name, us(call.time_ns))).collect(),
            driver_time_us: first.driver_time_us,
            driver_time_steady_us: us(measured.steady.driver_ns),
            driver_time_us_per_step_second_half: per_step(us(measured.second_half.driver_ns), steps_of_second_half),
            driver_time_us_per_step_second_pass: second
                .as_ref()
                .and_then(|pass| per_step(pass.driver_time_us, trace.labels.len())),
            stall_us: first.stall_us,
            device_syncs: first.device_syncs,
            stream_waits: first.stream_waits,
            virtual_time_us: first.virtual_time_us,
            second_pass: second,
            second_pass_chunk_calls: (plan.passes > 1).then(|| ChunkCalls::of(&measured.later.calls)),
            plans: measured.plan.is_some().then(|| PlanFigures::of(measured.plans)),
            address_hash: measured.address_hash.map(|hash| format!("{hash:016x}")),
            checker_reports: (plan.manner == Manner::Checked).then_some(measured.checker_reports),
        });
    }

    /// Enters the smallest capacity. Where it `must_be_robust`, failing above it is an error.
    pub(super) fn set_min_capacity(&mut self, found: &MinCapacity, must_be_robust: bool) {
        self.must_be_robust = must_be_robust;
        self.capacities_tried = Some(found.tried_above);
        self.smallest = Some(found.into());
        self.fails_above_min_capacity = Some(found.fails_above.clone());
    }

    pub(super) fn set_failure(&mut self, trace: &Trace, failure: &Failure) {
        self.stop = Some(Stop::new(trace, failure.op, failure.error.to_string()));
        self.explanation = Explained::of(&failure.error);
    }

    /// Whether the replay completed, on every capacity that it had to, and the checker found nothing.
    pub fn is_good(&self) -> bool {
        let robust = !self.must_be_robust || self.fails_above().is_empty();
        self.stop.is_none() && self.checker_reports().is_empty() && robust
    }

    /// Multiples of the smallest capacity on which the trace fails.
    pub(super) fn fails_above(&self) -> &[f64] {
        self.fails_above_min_capacity.as_deref().unwrap_or_default()
    }

    fn checker_reports(&self) -> &[String] {
        self.figures.as_ref().and_then(|figures| figures.checker_reports.as_deref()).unwrap_or_default()
    }

    /// Why and where the replay failed, in words.
    fn failure(&self) -> Option<String> {
        let stop = self.stop.as_ref()?;
        Some(format!("failed{}: {}", stop.place(), stop.error))
    }
}

/// The table, what the checker found, and what to look at.
pub(super) fn for_people(rows: &[Report], options: &Options, out: &mut impl Write) -> io::Result<()> {
    let chosen: Vec<&Column> = columns::chosen(options).collect();
    let mut headings = vec!["trace"];
    headings.extend(columns::shows_ops(options).then_some("ops"));
    headings.push("peak live");
    headings.extend(chosen.iter().map(|column| column.heading));
    let mut table = Table::new(&headings);
    for row in rows {
        let mut cells = vec![row.trace.clone()];
        cells.extend(columns::shows_ops(options).then(|| row.ops.to_string()));
        cells.push(ByteSize(row.peak_live_bytes).to_string());
        match (row.failure(), &row.figures) {
            (None, Some(figures)) => cells.extend(chosen.iter().map(|column| (column.cell)(row, figures))),
            (failure, _) => cells.extend(failure),
        }
        table.row(cells);
    }
    write!(out, "{table}")?;
    for row in rows {
        if let Some(explanation) = &row.explanation {
            writeln!(out, "{}: {}", row.trace, explanation.text)?;
        }
        let found = row.checker_reports();
        for report in found.iter().take(SHOWN_REPORTS) {
            writeln!(out, "{}: checker: {report}", row.trace)?;
        }
        if found.len() > SHOWN_REPORTS {
            writeln!(out, "{}: checker: and {} more; --json has them all", row.trace, found.len() - SHOWN_REPORTS)?;
        }
        let smallest = row.smallest.as_ref().map_or(0, |found| found.min_capacity_bytes);
        for factor in row.fails_above() {
            let bytes = ByteSize((smallest as f64 * factor).round() as u64);
            writeln!(out, "{}: fails on {bytes}, {factor:.4} times the smallest capacity", row.trace)?;
        }
    }
    writeln!(out, "\n{}", look_at(rows, options))
}

/// What is most worth a look.
fn look_at(rows: &[Report], options: &Options) -> String {
    let good: Vec<(&Report, &Figures)> =
        rows.iter().filter(|row| row.stop.is_none()).filter_map(|row| Some((row, row.figures.as_ref()?))).collect();
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
    if let Some((row, figures)) = worst(|figures| figures.stall_us).filter(|(_, figures)| figures.stall_us > 0.0) {
        words.push(format!(
            "{} stalls the host for {} ms: it waits {} times for the device, {} times for a stream or an event",
            row.trace,
            digits(figures.stall_us / 1e3),
            figures.device_syncs,
            figures.stream_waits
        ));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_above_the_smallest_is_bad_where_it_was_asked() {
        let trace = Trace::decode(b"# stratalloc-trace 1\na 0 512 0\n").unwrap();
        let plan = Plan {
            threads: 1,
            passes: 1,
            skip_empty_cache: false,
            steps: false,
            manner: Manner::Plain,
            bandwidth: None,
        };
        let found = |fails_above: &[f64]| MinCapacity {
            bytes: 1 << 30,
            ratio: 1.0,
            robust_ratio: 1.1,
            tried_above: 40,
            fails_above: fails_above.to_vec(),
        };
        for (fails_above, must_be_robust, good) in
            [(&[1.075][..], true, false), (&[1.075], false, true), (&[], true, true)]
        {
            let mut report = Report::new(&trace, &plan, Ok(Measured::default()));
            report.set_min_capacity(&found(fails_above), must_be_robust);
            assert_eq!(report.is_good(), good, "{fails_above:?}");
        }
    }
}
