//! A bounded ring of events: the newest overwrite the oldest.

use std::collections::VecDeque;
use std::time::Instant;

use crate::sync::Mutex;
use crate::units::{DevicePtr, StreamId};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A block was handed out.
    Alloc,
    /// A block was freed.
    Free,
    /// A stream was recorded for a block.
    RecordStream,
    /// A request found no room.
    OutOfMemory,
    /// Free memory was given back to the device.
    EmptyCache,
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
    /// The block, or null.
    pub ptr: DevicePtr,
    /// Requested bytes, or bytes given back.
    pub size: u64,
    /// The stream.
    pub stream: StreamId,
    /// The tag's number.
    pub tag: u8,
}

/// The newest events. A capacity of 0 keeps none.
#[derive(Debug)]
pub struct TraceRing {
    capacity: usize,
    start: Instant,
    events: Mutex<(u64, VecDeque<Event>)>,
}

impl TraceRing {
    /// A ring that keeps `capacity` events.
    pub fn new(capacity: usize) -> TraceRing {
        TraceRing { capacity, start: Instant::now(), events: Mutex::new((0, VecDeque::new())) }
    }

    /// Whether events are kept at all.
    pub fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Adds an event, over the oldest if need be.
    pub fn push(&self, kind: EventKind, ptr: DevicePtr, size: u64, stream: StreamId, tag: u8) {
        if !self.is_on() {
            return;
        }
        let time_us = self.start.elapsed().as_micros() as u64;
        let (number, events) = &mut *self.events.lock();
        if events.len() == self.capacity {
            events.pop_front();
        }
        events.push_back(Event { number: *number, time_us, kind, ptr, size, stream, tag });
        *number += 1;
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
            ring.push(EventKind::Alloc, DevicePtr(1), size, StreamId::DEFAULT, 0);
        }
        assert_eq!(ring.events().iter().map(|e| (e.number, e.size)).collect::<Vec<_>>(), [(7, 7), (8, 8), (9, 9)]);
        let off = TraceRing::new(0);
        off.push(EventKind::Free, DevicePtr(1), 1, StreamId::DEFAULT, 0);
        assert!(off.events().is_empty() && !off.is_on());
    }
}
