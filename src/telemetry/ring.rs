//! A bounded ring of events: the newest overwrite the oldest. And an observer of the rare ones.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use crate::sync::Mutex;
use crate::units::{DevicePtr, PoolId, StreamId};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A block was handed out.
    Alloc,
    /// A block was freed.
    Free,
    /// A block was freed that waits for recorded streams.
    FreeDeferred,
    /// Such a block has become free.
    FreeCompleted,
    /// Physical memory was mapped, or a segment of plain memory allocated.
    Map,
    /// Physical memory was unmapped, or a segment of plain memory freed.
    Unmap,
    /// A stream was recorded for a block.
    RecordStream,
    /// A request found no room.
    OutOfMemory,
    /// Free memory was given back to the device.
    EmptyCache,
    /// Evictable memory has gone to a tier, or was dropped to be computed again.
    Evicted,
    /// It has gone on to a slower tier.
    Spilled,
    /// It is back.
    Restored,
}

impl EventKind {
    /// Whether observers are told: never because of a call that a magazine served.
    fn is_rare(self) -> bool {
        !matches!(self, EventKind::Alloc | EventKind::Free | EventKind::FreeDeferred | EventKind::RecordStream)
    }
}

/// One entry of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Entries have numbers from 0, also those that have been overwritten.
    pub number: u64,
    /// Microseconds since the ring was made.
    pub time_us: u64,
    /// What happened.
    pub kind: EventKind,
    /// The block or the range, or null.
    pub ptr: DevicePtr,
    /// Requested bytes; bytes mapped, unmapped or given back.
    pub size: u64,
    /// The stream.
    pub stream: StreamId,
    /// The private pool, if one.
    pub pool: Option<PoolId>,
    /// The tag's number.
    pub tag: u8,
}

impl Event {
    /// An event on the default stream, not yet in any ring.
    pub(crate) fn new(kind: EventKind, ptr: DevicePtr, size: u64) -> Event {
        Event { number: 0, time_us: 0, kind, ptr, size, stream: StreamId::DEFAULT, pool: None, tag: 0 }
    }

    pub(crate) fn on(self, stream: StreamId, pool: Option<PoolId>) -> Event {
        Event { stream, pool, ..self }
    }

    pub(crate) fn tag(self, tag: u8) -> Event {
        Event { tag, ..self }
    }
}

/// Told of rare events as they happen: memory mapped and unmapped, deferred frees completed, requests without room, caches emptied. Called with
/// the device's lock held: it must not call the allocator. One that panics is not called again.
pub type EventObserver = Arc<dyn Fn(&Event) + Send + Sync>;

/// The newest events. A capacity of 0 keeps none.
pub struct TraceRing {
    capacity: usize,
    start: Instant,
    events: Mutex<(u64, VecDeque<Event>)>,
    observed: AtomicBool,
    observer: Mutex<Option<EventObserver>>,
}

impl fmt::Debug for TraceRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceRing").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl TraceRing {
    /// A ring that keeps `capacity` events.
    pub fn new(capacity: usize) -> TraceRing {
        TraceRing {
            capacity,
            start: Instant::now(),
            events: Mutex::new((0, VecDeque::new())),
            observed: AtomicBool::new(false),
            observer: Mutex::new(None),
        }
    }

    /// Sets who is told of rare events. Returns who was.
    pub fn observe(&self, observer: Option<EventObserver>) -> Option<EventObserver> {
        let mut slot = self.observer.lock();
        self.observed.store(observer.is_some(), Relaxed);
        std::mem::replace(&mut slot, observer)
    }

    /// Whether events are kept at all.
    pub fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Events and microseconds since the block at `ptr` was handed out, if the newest events tell. Looks at a bounded number of them.
    pub(crate) fn age_of(&self, ptr: DevicePtr) -> Option<(u64, u64)> {
        const LOOKED_AT: usize = 1 << 16;
        let now = self.start.elapsed().as_micros() as u64;
        let (next, events) = &*self.events.lock();
        let is_it = |event: &&Event| event.kind == EventKind::Alloc && event.ptr == ptr;
        let found = events.iter().rev().take(LOOKED_AT).find(is_it)?;
        Some((next - found.number, now.saturating_sub(found.time_us)))
    }

    /// Adds an event, over the oldest if need be.
    // Inlined, so that nothing is put together where nobody listens.
    #[inline]
    pub fn push(&self, event: Event) {
        if self.is_on() || self.observed.load(Relaxed) {
            self.keep(event);
        }
    }

    #[cold]
    #[inline(never)]
    fn keep(&self, event: Event) {
        let observed = self.observed.load(Relaxed) && event.kind.is_rare();
        let mut event = Event { time_us: self.start.elapsed().as_micros() as u64, ..event };
        if self.is_on() {
            let (number, events) = &mut *self.events.lock();
            if events.len() == self.capacity {
                events.pop_front();
            }
            event.number = *number;
            events.push_back(event);
            *number += 1;
        }
        let observer = if observed { self.observer.lock().clone() } else { None };
        if let Some(observer) = observer
            && catch_unwind(AssertUnwindSafe(|| observer(&event))).is_err()
        {
            // Whoever is being served has nothing to do with it.
            self.observe(None);
        }
    }

    /// The events that are kept, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().1.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let ring = TraceRing::new(3);
        for size in 0..10 {
            ring.push(Event::new(EventKind::Alloc, DevicePtr(1), size));
        }
        assert_eq!(ring.events().iter().map(|e| (e.number, e.size)).collect::<Vec<_>>(), [(7, 7), (8, 8), (9, 9)]);
        let off = TraceRing::new(0);
        off.push(Event::new(EventKind::Free, DevicePtr(1), 1));
        assert!(off.events().is_empty() && !off.is_on());
    }

    #[test]
    fn observers_are_told_of_what_is_rare() {
        let ring = TraceRing::new(0);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        assert!(ring.observe(Some(Arc::new(move |event: &Event| sink.lock().push(event.kind)))).is_none());
        for kind in [EventKind::Alloc, EventKind::Map, EventKind::Free, EventKind::Unmap] {
            ring.push(Event::new(kind, DevicePtr(1), 1));
        }
        assert!(ring.observe(None).is_some());
        ring.push(Event::new(EventKind::Map, DevicePtr(1), 1));
        assert_eq!(*seen.lock(), [EventKind::Map, EventKind::Unmap]);
    }
}
