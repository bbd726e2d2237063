//! Streams, events and virtual time: which queued work runs when.
//!
//! Work runs in stream order, and a wait holds its stream back until the event's work has run. Beyond that the order is
//! free: eager (seed 0) runs all that can run, a seed runs some of it at random. Work that takes time runs when the clock
//! has passed its end, so bytes move no earlier than they would on a device that is as late as can be.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::checker::Clock;
use super::host::{HostWork, Until};
use super::memory::Memory;
use super::report::Access;
use super::state::touches_of;
use crate::driver::kernels;
use crate::driver::rng::Rng;
use crate::driver::{CopyOp, DriverError, DriverErrorKind, DriverResult, EventId};
use crate::units::{DevicePtr, StreamId};

/// One recording of an event.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) stream: usize,
    /// How much work of the stream must have run.
    position: u64,
    /// When it was done; unset until the recording has run.
    done_ns: OnceLock<u64>,
    /// What the checker knows by it.
    pub(super) clock: Clock,
}

/// What an event stands for.
#[derive(Debug, Clone)]
pub(super) enum Recorded {
    Never,
    /// Its newest recording.
    Last(Arc<Record>),
    /// A node of the capture with this id.
    Captured(u64),
}

/// A piece of work.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Copy(Vec<CopyOp>),
    Fill {
        ptr: DevicePtr,
        size: u64,
        pattern: Pattern,
    },
    Write {
        dst: DevicePtr,
        bytes: Vec<u8>,
        size: u64,
    },
    Kernel(Vec<Access>),
    /// A kernel of the library's own, which runs.
    Own(kernels::Call),
    /// A function of the host.
    Host(Arc<HostWork>),
    /// Holds the stream up until memory has a value.
    Until(Until),
    Record(Arc<Record>),
    Wait(Arc<Record>),
}

/// Bytes that are repeated: the first `width` of `bytes`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern {
    pub(super) bytes: [u8; 4],
    pub(super) width: usize,
}

impl Pattern {
    pub(super) fn of_byte(byte: u8) -> Pattern {
        Pattern { bytes: [byte; 4], width: 1 }
    }
}

#[derive(Debug)]
struct Work {
    action: Action,
    submitted_ns: u64,
    duration_ns: u64,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    queue: VecDeque<Work>,
    /// How much work was ever submitted, and has run.
    pub(super) submitted: u64,
    executed: u64,
    /// When the last work that ran was done, and when the host can have seen all of it.
    done_ns: u64,
    seen_ns: u64,
    destroyed: bool,
    /// Whether it is ordered with the default stream, as CUDA's blocking streams are.
    pub(super) blocking: bool,
    /// For a blocking stream: how much of it the default stream comes after, and the other way round.
    pub(super) default_waits: u64,
    pub(super) waits_default: u64,
    /// The capture that takes this stream's work.
    pub(super) capture: Option<u64>,
}

/// All streams and events of a device, and its clock.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) streams: Vec<Stream>,
    /// Streams with work to do.
    active: BTreeSet<usize>,
    events: HashMap<u64, Recorded>,
    next_event: u64,
    /// Chooses what runs. Eager where there is none.
    rng: Option<Rng>,
    event_lag_ns: u64,
    real_time: Option<Instant>,
    /// The host's clock, where virtual time moves with it, and what it last showed.
    host_clock: Option<(Instant, u64)>,
    /// Functions of the host whose turn has come.
    ready: VecDeque<Arc<HostWork>>,
    /// How many streams were ever created as blocking ones.
    pub(super) blocking: usize,
    now_ns: u64,
    pub(super) stall_ns: u64,
    /// Whether any work has taken time so far.
    pub(super) takes_time: bool,
    /// What broke the device.
    pub(super) broken: Option<String>,
}

impl Schedule {
    pub(super) fn new(seed: u64, event_lag_ns: u64, real_time: bool, host_clock: bool) -> Schedule {
        Schedule {
            streams: vec![Stream::default()],
            active: BTreeSet::new(),
            events: HashMap::new(),
            next_event: 1,
            rng: (seed != 0 && !real_time).then(|| Rng::new(seed)),
            event_lag_ns: if real_time { 0 } else { event_lag_ns },
            real_time: real_time.then(Instant::now),
            host_clock: (host_clock && !real_time).then(|| (Instant::now(), 0)),
            ready: VecDeque::new(),
            blocking: 0,
            now_ns: 0,
            stall_ns: 0,
            takes_time: false,
            broken: None,
        }
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    pub(super) fn now_ns(&self) -> u64 {
        self.real_time.map_or(self.now_ns, |start| start.elapsed().as_nanos() as u64)
    }

    /// The host is busy.
    pub(super) fn advance(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
    }

    /// Looks at the host's clock, where virtual time moves with it.
    pub(super) fn tick(&mut self) {
        if let Some((start, last)) = &mut self.host_clock {
            let shown = start.elapsed().as_nanos() as u64;
            self.now_ns = self.now_ns.saturating_add(shown - *last);
            *last = shown;
        }
    }

    /// The host waits for the device.
    fn wait_until(&mut self, ns: u64) {
        self.stall_ns = self.stall_ns.saturating_add(ns.saturating_sub(self.now_ns));
        self.now_ns = self.now_ns.max(ns);
    }

    /// The host waits for so long.
    pub(super) fn stall(&mut self, ns: u64) {
        if self.real_time.is_none() {
            self.wait_until(self.now_ns.saturating_add(ns));
        }
    }

    // ---- streams and events -------------------------------------------------------------------------------------------

    pub(super) fn create_stream(&mut self, blocking: bool) -> StreamId {
        self.blocking += usize::from(blocking);
        self.streams.push(Stream { blocking, ..Stream::default() });
        StreamId(self.streams.len() as u64 - 1)
    }

    pub(super) fn destroy_stream(&mut self, stream: usize) {
        self.streams[stream].destroyed = true;
    }

    /// The number of a stream that exists.
    pub(super) fn stream(&self, stream: StreamId, call: &'static str) -> DriverResult<usize> {
        let index = usize::try_from(stream.0).unwrap_or(usize::MAX);
        match self.streams.get(index) {
            Some(found) if !found.destroyed => Ok(index),
            _ => Err(DriverError::new(DriverErrorKind::InvalidHandle, call, format!("there is no {stream}"))),
        }
    }

    /// Streams that were created and not destroyed.
    pub(super) fn live_streams(&self) -> usize {
        self.streams.iter().skip(1).filter(|stream| !stream.destroyed).count()
    }

    pub(super) fn live_events(&self) -> usize {
        self.events.len()
    }

    pub(super) fn create_event(&mut self) -> EventId {
        let id = self.next_event;
        self.next_event += 1;
        self.events.insert(id, Recorded::Never);
        EventId(id)
    }

    pub(super) fn destroy_event(&mut self, event: EventId, call: &'static str) -> DriverResult<()> {
        self.event(event, call)?;
        self.events.remove(&event.0);
        Ok(())
    }

    pub(super) fn event(&self, event: EventId, call: &'static str) -> DriverResult<&Recorded> {
        self.events.get(&event.0).ok_or_else(|| {
            DriverError::new(DriverErrorKind::InvalidHandle, call, format!("there is no event {}", event.0))
        })
    }

    /// Makes an event stand for the work of a stream so far; the caller submits the record.
    pub(super) fn record(&mut self, event: EventId, stream: usize, clock: Clock) -> Arc<Record> {
        let position = self.streams[stream].submitted + 1;
        let record = Arc::new(Record { stream, position, done_ns: OnceLock::new(), clock });
        self.events.insert(event.0, Recorded::Last(record.clone()));
        record
    }

    /// A recording of a stream's work so far that belongs to no event; the caller submits it.
    pub(super) fn mark(&self, stream: usize, clock: Clock) -> Arc<Record> {
        let position = self.streams[stream].submitted + 1;
        Arc::new(Record { stream, position, done_ns: OnceLock::new(), clock })
    }

    /// Whether all work of a stream has run, as the host sees it.
    pub(super) fn is_idle(&self, stream: usize) -> bool {
        let stream = &self.streams[stream];
        stream.queue.is_empty() && stream.seen_ns <= self.now_ns
    }

    pub(super) fn set_event(&mut self, event: EventId, recorded: Recorded) {
        self.events.insert(event.0, recorded);
    }

    /// The events that stand for a node of a capture which is over stand for nothing.
    pub(super) fn forget_captured(&mut self, capture: u64) {
        for recorded in self.events.values_mut() {
            if matches!(recorded, Recorded::Captured(id) if *id == capture) {
                *recorded = Recorded::Never;
            }
        }
    }

    /// Whether the host can see that a recording has run.
    pub(super) fn is_seen(&self, record: &Record) -> bool {
        record.done_ns.get().is_some_and(|done| done.saturating_add(self.event_lag_ns) <= self.now_ns)
    }

    /// When a recording was done; `None` while the host cannot see that it is.
    pub(super) fn done_at(&self, record: &Record) -> Option<u64> {
        self.is_seen(record).then(|| record.done_ns.get().copied()).flatten()
    }

    // ---- functions of the host ------------------------------------------------------------------------------------------

    /// A function whose turn has come.
    pub(super) fn take_ready(&mut self) -> Option<Arc<HostWork>> {
        self.ready.pop_front()
    }

    /// Puts the function that a stream waits for, if it waits for one, where it can be taken.
    fn offer(&mut self, stream: usize) {
        if let Some(Work { action: Action::Host(work), .. }) = self.streams[stream].queue.front()
            && work.offer()
        {
            self.ready.push_back(work.clone());
        }
    }

    // ---- running ----------------------------------------------------------------------------------------------------

    pub(super) fn submit(&mut self, stream: usize, action: Action, duration_ns: u64, memory: &Memory) {
        let duration_ns = if self.real_time.is_some() { 0 } else { duration_ns };
        self.takes_time |= duration_ns > 0;
        let work = Work { action, submitted_ns: self.now_ns, duration_ns };
        self.streams[stream].submitted += 1;
        self.streams[stream].queue.push_back(work);
        if self.rng.is_none() && self.active.is_empty() {
            // Nothing else is under way: what is due is at the head of this stream.
            while self.run_due(stream, memory) {}
            if !self.streams[stream].queue.is_empty() {
                self.active.insert(stream);
            }
            return;
        }
        self.active.insert(stream);
        if self.rng.is_none() {
            self.run_some(memory);
        }
    }

    /// When the first work of a stream would be done; `None` while it waits for an event, or there is none.
    fn head_done_ns(&self, stream: usize, memory: &Memory) -> Option<u64> {
        let stream = &self.streams[stream];
        let work = stream.queue.front()?;
        let mut begin = work.submitted_ns.max(stream.done_ns);
        match &work.action {
            Action::Wait(record) => begin = begin.max(*record.done_ns.get()?),
            Action::Host(work) if !work.is_done() => return None,
            Action::Until(until) if !until.holds(memory) => return None,
            // It ended when the host says that it did, not when it was submitted.
            Action::Host(_) | Action::Until(_) => begin = begin.max(self.now_ns),
            _ => {}
        }
        Some(begin.saturating_add(work.duration_ns))
    }

    /// Runs the first work of a stream, which waits for nothing.
    fn run_head(&mut self, index: usize, done_ns: u64, memory: &Memory) {
        let shuffle = self.rng.as_mut().map_or(0, Rng::bits) as usize;
        let stream = &mut self.streams[index];
        let Some(work) = stream.queue.pop_front() else { return };
        stream.executed += 1;
        stream.done_ns = done_ns;
        stream.seen_ns = stream.seen_ns.max(done_ns);
        match &work.action {
            Action::Record(record) => {
                // Each recording is queued once, so it is set once.
                let _ = record.done_ns.set(done_ns);
                stream.seen_ns = done_ns.saturating_add(self.event_lag_ns);
            }
            // Who has waited for this stream sees the event as well.
            Action::Wait(record) => {
                let done_ns = record.done_ns.get().copied().unwrap_or(0);
                stream.seen_ns = stream.seen_ns.max(done_ns.saturating_add(self.event_lag_ns));
            }
            _ => {}
        }
        if stream.queue.is_empty() {
            self.active.remove(&index);
        }
        if let Err(error) = work.action.run(memory, shuffle) {
            self.broken
                .get_or_insert_with(|| format!("illegal address in work of stream {index:#x}: {}", error.detail));
        }
    }

    /// Runs the first work of a stream if it can have ended by now.
    fn run_due(&mut self, stream: usize, memory: &Memory) -> bool {
        match self.head_done_ns(stream, memory) {
            Some(done) if done <= self.now_ns => {
                self.run_head(stream, done, memory);
                true
            }
            Some(_) => false,
            None => {
                self.offer(stream);
                false
            }
        }
    }

    /// Lets the device get on: by all that is due, or by a random part of it.
    pub(super) fn run_some(&mut self, memory: &Memory) {
        if let Some(mut rng) = self.rng.take() {
            while !self.active.is_empty() && rng.below(4) == 0 {
                let pick = rng.below(self.active.len());
                let Some(&stream) = self.active.iter().nth(pick) else { break };
                for _ in 0..=rng.below(self.streams[stream].queue.len()) {
                    if !self.run_due(stream, memory) {
                        break;
                    }
                }
            }
            self.rng = Some(rng);
            return;
        }
        let mut ran = !self.active.is_empty();
        while ran {
            ran = false;
            let mut next = self.active.first().copied();
            while let Some(stream) = next {
                while self.run_due(stream, memory) {
                    ran = true;
                }
                next = self.active.range(stream + 1..).next().copied();
            }
        }
    }

    /// Runs a stream up to its `target`-th work, and whatever that waits for in other streams. Whether it got there: work that
    /// waits for the host holds it up.
    fn run_until(&mut self, stream: usize, target: u64, memory: &Memory) -> bool {
        let mut goals = vec![(stream, target)];
        while let Some(&(stream, target)) = goals.last() {
            if self.streams[stream].executed >= target {
                goals.pop();
                continue;
            }
            match (self.head_done_ns(stream, memory), self.streams[stream].queue.front().map(|work| &work.action)) {
                (Some(done), _) => self.run_head(stream, done, memory),
                (None, Some(Action::Wait(record))) => goals.push((record.stream, record.position)),
                (None, _) => {
                    self.offer(stream);
                    return false;
                }
            }
        }
        true
    }

    /// Waits for a recording. `false` where it waits for the host; so do the next two.
    #[must_use]
    pub(super) fn synchronize_record(&mut self, record: &Record, memory: &Memory) -> bool {
        if !self.run_until(record.stream, record.position, memory) {
            return false;
        }
        if let Some(&done) = record.done_ns.get() {
            self.wait_until(done.saturating_add(self.event_lag_ns));
        }
        self.run_some(memory);
        true
    }

    #[must_use]
    pub(super) fn synchronize_stream(&mut self, stream: usize, memory: &Memory) -> bool {
        if !self.run_until(stream, self.streams[stream].submitted, memory) {
            return false;
        }
        self.wait_until(self.streams[stream].seen_ns);
        self.run_some(memory);
        true
    }

    #[must_use]
    pub(super) fn synchronize_all(&mut self, memory: &Memory) -> bool {
        while let Some(&first) = self.active.first() {
            let pick = self.rng.as_mut().map_or(0, |rng| rng.below(self.active.len()));
            let stream = self.active.iter().nth(pick).copied().unwrap_or(first);
            if self.run_until(stream, self.streams[stream].executed + 1, memory) {
                continue;
            }
            // Held up: whatever else can run does, and then there is nothing but to wait for the host.
            let all: Vec<usize> = self.active.iter().copied().collect();
            let mut ran = false;
            for stream in all {
                ran |= self.run_until(stream, self.streams[stream].executed + 1, memory);
            }
            if !ran {
                return false;
            }
        }
        let seen = self.streams.iter().map(|stream| stream.seen_ns).max();
        self.wait_until(seen.unwrap_or(0));
        true
    }
}

impl Action {
    /// Does what is to be done to the bytes. Fails where an address is no longer mapped, as a kernel faults on a device.
    fn run(self, memory: &Memory, shuffle: usize) -> DriverResult<()> {
        const CALL: &str = "work";
        match self {
            Action::Copy(mut ops) => {
                if !ops.is_empty() {
                    let middle = shuffle % ops.len();
                    ops.rotate_left(middle);
                }
                for CopyOp { dst, src, size } in ops {
                    memory.resolve(dst, size, CALL)?;
                    memory.resolve(src, size, CALL)?;
                    // SAFETY: both ranges were just resolved, under the device's lock.
                    unsafe { memory.store.copy(dst.0, src.0, size) };
                }
            }
            Action::Fill { ptr, size, pattern } => {
                memory.resolve(ptr, size, CALL)?;
                // SAFETY: the range was just resolved, under the device's lock.
                unsafe { memory.store.fill(ptr.0, size, pattern) };
            }
            Action::Write { dst, bytes, size } => {
                memory.resolve(dst, size, CALL)?;
                // SAFETY: the range was just resolved, under the device's lock, and `bytes` is no longer than `size`.
                unsafe { memory.store.write(dst.0, &bytes) };
            }
            Action::Kernel(accesses) => {
                for access in accesses {
                    memory.resolve(access.ptr, access.size, CALL)?;
                }
            }
            Action::Own(call) => {
                for (_, _, ptr, size) in touches_of(&call) {
                    memory.resolve(ptr, size, CALL)?;
                }
                if memory.store.has_bytes() {
                    // SAFETY: all ranges were just resolved, under the device's lock; where results go was aligned when it was submitted.
                    unsafe { call.run() };
                }
            }
            Action::Host(_) | Action::Until(_) | Action::Record(_) | Action::Wait(_) => {}
        }
        Ok(())
    }
}
