//! Pass after pass over one trace on one allocator, by one thread or several, and what is measured meanwhile.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::follow::{Failure, Follower, Manner};
use crate::engine::{Calls, Engine, Setup};
use crate::trace::Trace;
use stratalloc::PlanStats;

/// How a trace is replayed.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) threads: usize,
    pub(super) passes: usize,
    pub(super) skip_empty_cache: bool,
    /// Whether markers are told to the allocator.
    pub(super) steps: bool,
    pub(super) manner: Manner,
}

/// What all passes gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Wall time of each pass, in nanoseconds: from the first thread's start to the last one's end.
    pub(super) wall_ns: Vec<f64>,
    /// The same on a device whose calls do nothing.
    pub(super) own_ns: Vec<f64>,
    /// Driver calls of the first pass.
    pub(super) first: Calls,
    /// Those of them after the first third of the trace.
    pub(super) steady: Calls,
    /// Driver calls of all later passes together.
    pub(super) later: Calls,
    /// The most memory reserved in the first pass.
    pub(super) peak_reserved_bytes: u64,
    /// The same over all passes.
    pub(super) peak_reserved_bytes_all: u64,
    /// The most that the allocator counted as requested and live in the first pass.
    pub(super) peak_live_bytes: u64,
    /// A hash of all addresses given out, where one thread makes them a sequence.
    pub(super) address_hash: Option<u64>,
    /// What plans have done.
    pub(super) plans: PlanStats,
    /// The plan at the end; none where plans are off.
    pub(super) plan: Option<Vec<u8>>,
    /// What the checker found.
    pub(super) checker_reports: Vec<String>,
}

/// Replays `trace` on a fresh device, and where time can mean anything once more on one whose calls do nothing.
pub(super) fn measure(trace: &Trace, setup: &Setup, plan: &Plan) -> Result<Measured, Failure> {
    let mut measured = measure_once(trace, setup, plan)?;
    measured.own_ns = if setup.checker || setup.event_lag_ns > 0 {
        measured.wall_ns.clone()
    } else {
        measure_once(trace, &Setup { bare: true, ..setup.clone() }, plan)?.wall_ns
    };
    Ok(measured)
}

pub(super) fn measure_once(trace: &Trace, setup: &Setup, plan: &Plan) -> Result<Measured, Failure> {
    let engine = &Engine::open(setup)?;
    let follower = |_| Follower::new(engine, trace, plan);
    let mut followers = (0..plan.threads).map(follower).collect::<Result<Vec<_>, _>>()?;
    let gate = &Gate { barrier: Barrier::new(plan.threads), failed: AtomicBool::new(false) };
    let mut leader = Leader::new(engine);
    let (mine, others) = followers.split_at_mut(1);

    let spans = thread::scope(|scope| {
        let others: Vec<_> = others
            .iter_mut()
            .map(|follower| scope.spawn(move || all_passes(follower, trace, plan, gate, None)))
            .collect();
        let mut spans = vec![all_passes(&mut mine[0], trace, plan, gate, Some(&mut leader))];
        for other in others {
            match other.join() {
                Ok(outcome) => spans.push(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        spans.into_iter().collect::<Result<Vec<_>, _>>()
    })?;

    let mut measured = leader.finish()?;
    measured.wall_ns = (0..plan.passes).map(|pass| wall_ns(spans.iter().map(|spans| spans[pass]))).collect();
    if plan.threads > 1 {
        measured.address_hash = None;
    }
    Ok(measured)
}

/// From the first start to the last end.
fn wall_ns(spans: impl Iterator<Item = Span> + Clone) -> f64 {
    let start = spans.clone().map(|span| span.start).min();
    let end = spans.map(|span| span.end).max();
    start.zip(end).map_or(0.0, |(start, end)| (end - start).as_nanos() as f64)
}

/// When one thread's pass began and ended.
#[derive(Clone, Copy)]
struct Span {
    start: Instant,
    end: Instant,
}

/// Keeps threads together: all begin a pass at one time, and all stop where one failed.
struct Gate {
    barrier: Barrier,
    failed: AtomicBool,
}

impl Gate {
    /// Waits for all threads. Whether to go on: not if this thread failed, which is its error, nor if another did.
    fn meet(&self, outcome: Result<(), Failure>) -> Result<bool, Failure> {
        if outcome.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.barrier.wait();
        let failed = self.failed.load(Ordering::Relaxed);
        // Nobody may fail at the next meeting before all have read of this one.
        self.barrier.wait();
        outcome.map(|()| !failed)
    }
}

/// One thread's part: all its passes. The first thread brings the leader along, who looks at the counters between times.
fn all_passes(
    follower: &mut Follower<'_>,
    trace: &Trace,
    plan: &Plan,
    gate: &Gate,
    mut leader: Option<&mut Leader<'_>>,
) -> Result<Vec<Span>, Failure> {
    let mut spans = Vec::with_capacity(plan.passes);
    let third = trace.first_third();
    let mut rest = Ok(());
    for pass in 0..plan.passes {
        follower.begin();
        if !gate.meet(rest)? {
            return Ok(spans);
        }
        let start = Instant::now();
        let mut outcome = follower.follow(0, third);
        if let (0, Some(leader)) = (pass, &mut leader) {
            leader.at_third();
        }
        if outcome.is_ok() {
            outcome = follower.follow(third, trace.ops.len());
        }
        spans.push(Span { start, end: Instant::now() });
        if !gate.meet(outcome)? {
            return Ok(spans);
        }
        let seen = leader.as_mut().map_or(Ok(()), |leader| leader.after_pass(pass, follower));
        if !gate.meet(seen)? {
            return Ok(spans);
        }
        rest = follower.free_rest().map_err(Failure::from);
    }
    rest.map(|()| spans)
}

/// Reads the counters while nobody is in a pass.
struct Leader<'a> {
    engine: &'a Engine,
    before: Calls,
    at_third: Calls,
    after_first: Calls,
    peak_reserved_bytes: u64,
    peak_live_bytes: u64,
    hash: AddressHash,
}

impl<'a> Leader<'a> {
    fn new(engine: &'a Engine) -> Leader<'a> {
        Leader {
            engine,
            before: engine.driver_calls(),
            at_third: Calls::default(),
            after_first: Calls::default(),
            peak_reserved_bytes: 0,
            peak_live_bytes: 0,
            hash: AddressHash::new(),
        }
    }

    fn at_third(&mut self) {
        self.at_third = self.engine.driver_calls();
    }

    fn after_pass(&mut self, pass: usize, follower: &Follower<'_>) -> Result<(), Failure> {
        if pass == 0 {
            self.after_first = self.engine.driver_calls();
            self.peak_reserved_bytes = self.engine.peak_reserved_bytes()?;
            self.peak_live_bytes = self.engine.peak_live_bytes()?;
        }
        follower.ptrs().iter().for_each(|ptr| self.hash.add(ptr.0));
        Ok(())
    }

    fn finish(self) -> Result<Measured, Failure> {
        Ok(Measured {
            wall_ns: Vec::new(),
            own_ns: Vec::new(),
            first: &self.after_first - &self.before,
            steady: &self.after_first - &self.at_third,
            later: &self.engine.driver_calls() - &self.after_first,
            peak_reserved_bytes: self.peak_reserved_bytes,
            peak_reserved_bytes_all: self.engine.peak_reserved_bytes()?,
            peak_live_bytes: self.peak_live_bytes,
            address_hash: Some(self.hash.value),
            plans: self.engine.plan_stats()?,
            plan: self.engine.export_plan(),
            checker_reports: self.engine.reports(),
        })
    }
}

/// FNV-1a over addresses, each counted from the first: where a device's memory begins makes no difference.
struct AddressHash {
    first: Option<u64>,
    value: u64,
}

impl AddressHash {
    fn new() -> AddressHash {
        AddressHash { first: None, value: 0xcbf2_9ce4_8422_2325 }
    }

    fn add(&mut self, address: u64) {
        let first = *self.first.get_or_insert(address);
        for byte in address.wrapping_sub(first).to_le_bytes() {
            self.value = (self.value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(threads: usize, passes: usize) -> Plan {
        Plan { threads, passes, skip_empty_cache: false, steps: false, manner: Manner::Plain }
    }

    fn trace() -> Trace {
        Trace::decode(
            b"# stratalloc-trace 1\na 0 5000000 0\nm 1\na 1 512 1\nr 1 0\nf 0\nm 2\na 2 512 0\nm 3\ne\nm 4\nf 1\n",
        )
        .unwrap()
    }

    #[test]
    fn passes_are_measured_and_repeat_exactly() {
        let setup = Setup { capacity: 1 << 30, ..Setup::default() };
        let one = measure(&trace(), &setup, &plan(1, 3)).unwrap();
        assert_eq!(one.wall_ns.len(), 3);
        assert!(one.peak_reserved_bytes >= 5_000_000 && one.peak_reserved_bytes <= one.peak_reserved_bytes_all);
        assert_eq!(one.address_hash, measure(&trace(), &setup, &plan(1, 3)).unwrap().address_hash);
        let two = measure(&trace(), &setup, &plan(2, 3)).unwrap();
        assert_eq!((two.wall_ns.len(), two.address_hash), (3, None));
    }

    #[test]
    fn a_replay_that_does_not_fit_names_the_operation() {
        let setup = Setup { capacity: 4 << 20, ..Setup::default() };
        for threads in [1, 3] {
            assert_eq!(measure(&trace(), &setup, &plan(threads, 2)).unwrap_err().op, Some(0));
        }
    }

    #[test]
    fn the_hash_does_not_depend_on_where_memory_begins() {
        let hash = |addresses: &[u64]| {
            let mut hash = AddressHash::new();
            addresses.iter().for_each(|address| hash.add(*address));
            hash.value
        };
        assert_eq!(hash(&[100, 200, 50]), hash(&[1100, 1200, 1050]));
        assert_ne!(hash(&[100, 200, 50]), hash(&[100, 200, 51]));
    }
}
