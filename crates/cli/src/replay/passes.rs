//! Pass after pass over one trace on one allocator, by one thread or several, and what is measured meanwhile.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::bandwidth::Bandwidth;
use super::follow::{Failure, Follower, Manner};
use super::percentiles::Percentiles;
use crate::engine::{Engine, Setup, Spent};
use crate::trace::{Op, Trace};
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
    /// How fast kernels go through the blocks that they use.
    pub(super) bandwidth: Option<Bandwidth>,
}

/// What all passes gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Wall time of each pass, in nanoseconds: from the first thread's start to the last one's end.
    pub(super) wall_ns: Vec<f64>,
    /// The same on a device whose calls do nothing.
    pub(super) own_ns: Vec<f64>,
    /// What allocations after the first third of the trace take on that device, by thread and pass.
    pub(super) percentiles: Vec<Vec<Percentiles>>,
    /// What was spent in the first pass.
    pub(super) first: Spent,
    /// After the first third of it.
    pub(super) steady: Spent,
    /// In the steps of its second half.
    pub(super) second_half: Spent,
    /// In the second pass, if there was one.
    pub(super) second: Option<Spent>,
    /// In all passes but the first.
    pub(super) later: Spent,
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

/// Replays `trace` on a fresh device, and where time can mean anything twice more on one whose calls do nothing.
pub(super) fn measure(trace: &Trace, setup: &Setup, plan: &Plan) -> Result<Measured, Failure> {
    let mut measured = measure_once(trace, setup, plan)?;
    if plan.manner == Manner::Plain {
        let bare = Setup { bare: true, ..setup.clone() };
        measured.own_ns = measure_once(trace, &bare, plan)?.wall_ns;
        measured.percentiles =
            measure_once(trace, &bare, &Plan { manner: Manner::Sampled, ..plan.clone() })?.percentiles;
    } else {
        measured.own_ns = measured.wall_ns.clone();
    }
    Ok(measured)
}

/// Where the second half of a trace's steps begins, as an index into its operations, and how many steps that is. Each marker
/// begins a step, and the last ends with the trace. Without markers there are no steps.
pub(crate) fn second_half(trace: &Trace) -> (usize, usize) {
    let first = trace.labels.len() / 2;
    let is_marker = |op: &Op| *op == Op::Marker { label: first as u32 };
    let begins = trace.ops.iter().position(is_marker).unwrap_or(trace.ops.len());
    (begins, trace.labels.len() - first)
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
    measured.percentiles = followers.iter_mut().map(Follower::take_percentiles).collect();
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
    let (third, half) = (trace.first_third(), second_half(trace).0);
    let mut rest = Ok(());
    for pass in 0..plan.passes {
        follower.begin();
        if !gate.meet(rest)? {
            return Ok(spans);
        }
        let start = Instant::now();
        let (mut outcome, mut from) = (Ok(()), 0);
        for to in [third.min(half), third.max(half), trace.ops.len()] {
            if outcome.is_ok() {
                outcome = follower.follow(from, to);
            }
            if let (0, Some(leader)) = (pass, &mut leader) {
                leader.at(to, third, half);
            }
            from = to;
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
    before: Spent,
    at_third: Spent,
    at_half: Spent,
    after_first: Spent,
    second: Option<Spent>,
    peak_reserved_bytes: u64,
    peak_live_bytes: u64,
    hash: AddressHash,
}

impl<'a> Leader<'a> {
    fn new(engine: &'a Engine) -> Leader<'a> {
        Leader {
            engine,
            before: engine.spent(),
            at_third: Spent::default(),
            at_half: Spent::default(),
            after_first: Spent::default(),
            second: None,
            peak_reserved_bytes: 0,
            peak_live_bytes: 0,
            hash: AddressHash::new(),
        }
    }

    /// In the first pass, so many operations have been followed.
    fn at(&mut self, ops: usize, third: usize, half: usize) {
        if ops == third {
            self.at_third = self.engine.spent();
        }
        if ops == half {
            self.at_half = self.engine.spent();
        }
    }

    fn after_pass(&mut self, pass: usize, follower: &Follower<'_>) -> Result<(), Failure> {
        if pass == 0 {
            self.after_first = self.engine.spent();
            self.peak_reserved_bytes = self.engine.peak_reserved_bytes()?;
            self.peak_live_bytes = self.engine.peak_live_bytes()?;
        }
        if pass == 1 {
            self.second = Some(&self.engine.spent() - &self.after_first);
        }
        follower.ptrs().iter().for_each(|ptr| self.hash.add(ptr.0));
        Ok(())
    }

    fn finish(self) -> Result<Measured, Failure> {
        Ok(Measured {
            wall_ns: Vec::new(),
            own_ns: Vec::new(),
            percentiles: Vec::new(),
            first: &self.after_first - &self.before,
            steady: &self.after_first - &self.at_third,
            second_half: &self.after_first - &self.at_half,
            second: self.second,
            later: &self.engine.spent() - &self.after_first,
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
    use crate::engine::Latency;

    fn plan(threads: usize, passes: usize) -> Plan {
        Plan { threads, passes, skip_empty_cache: false, steps: false, manner: Manner::Plain, bandwidth: None }
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

    /// Followed at a byte a nanosecond, on a device whose calls cost nothing.
    fn busy(text: &str, passes: usize, event_lag_ns: u64) -> Measured {
        let setup = Setup { capacity: 1 << 30, latency: Latency::Off, event_lag_ns, ..Setup::default() };
        let bandwidth = Some("1GB/s".parse().unwrap());
        let plan = Plan { manner: Manner::Busy, bandwidth, ..plan(1, passes) };
        let header = "# stratalloc-trace 1\n".to_owned();
        measure(&Trace::decode((header + text).as_bytes()).unwrap(), &setup, &plan).unwrap()
    }

    #[test]
    fn a_busy_device_is_waited_for_to_the_nanosecond() {
        // Three operations of 300 ns, and the kernel began after the first: the last, which waits, finds it at 600 of 3,000,000.
        let one = busy("a 0 3000000 0\nf 0\ne\n", 1, 0);
        assert_eq!((one.first.stall_ns, one.first.clock_ns), (3_000_000 - 600, 300 + 3_000_000));
        assert_eq!(one.first.driver_ns, 0);
        assert!(one.first.calls.device_waits() + one.first.calls.stream_waits() > 0, "{:?}", one.first.calls);
        // On another stream a kernel as long begins 300 ns later, and runs beside.
        let beside = busy("a 0 3000000 0\na 1 3000000 1\nf 0\nf 1\ne\n", 1, 0);
        assert_eq!(beside.first.clock_ns, 600 + 3_000_000);
        // On the same, after the other.
        let after = busy("a 0 3000000 0\na 1 3000000 0\nf 0\nf 1\ne\n", 1, 0);
        assert_eq!(after.first.clock_ns, 300 + 6_000_000);
        // One that is recorded is used there too, from 900 on, after what that stream has to do.
        let recorded = busy("a 0 3000000 0\na 1 4000000 1\nr 0 1\nf 0\nf 1\ne\n", 1, 0);
        assert_eq!(recorded.first.clock_ns, 600 + 4_000_000 + 3_000_000);
        // The host sees it later where events lag.
        let lagging = busy("a 0 3000000 0\na 1 4000000 1\nr 0 1\nf 0\nf 1\ne\n", 1, 5_000);
        assert_eq!(lagging.first.clock_ns, 600 + 4_000_000 + 3_000_000 + 5_000);
        // Where nobody waits, nothing stalls, and the second pass begins when the host is ready.
        let idle = busy("a 0 3000000 0\nf 0\nm end\n", 2, 0);
        assert_eq!((idle.first.stall_ns, idle.first.clock_ns, idle.later.clock_ns), (0, 600, 600));
    }

    #[test]
    fn costs_add_up() {
        let setup = Setup { capacity: 1 << 30, ..Setup::default() };
        let measured = measure(&trace(), &setup, &plan(1, 2)).unwrap();
        let Measured { first, second, later, .. } = measured;
        let costs: u64 = first.calls.0.values().map(|call| call.time_ns).sum();
        assert_eq!(first.driver_ns + first.stall_ns, costs);
        assert_eq!(first.clock_ns, costs, "nothing else takes time");
        assert_eq!(second, Some(later));
        assert!(first.calls.count("cuMemCreate") > 0 && first.driver_ns > 193_000);
    }

    #[test]
    fn the_second_half_is_half_of_the_steps() {
        let of = |text: &str| second_half(&Trace::decode(format!("# stratalloc-trace 1\n{text}").as_bytes()).unwrap());
        assert_eq!(of("a 0 512 0\nf 0\n"), (2, 0));
        assert_eq!(of("a 0 512 0\nm 1\nf 0\n"), (1, 1));
        assert_eq!(of("m 1\na 0 512 0\nm 2\nf 0\n"), (2, 1));
        assert_eq!(of("m 1\nm 2\na 0 512 0\nm 3\nf 0\n"), (1, 2));
    }

    #[test]
    fn single_allocations_are_timed_where_time_means_anything() {
        let setup = Setup { capacity: 1 << 30, ..Setup::default() };
        let sampled = measure(&trace(), &setup, &plan(2, 3)).unwrap().percentiles;
        assert_eq!(sampled.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(busy("a 0 512 0\n", 2, 0).percentiles, [[]; 1]);
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
