//! The device under a model: so many bytes, addresses, a count of calls, and a clock for events.

use std::collections::BTreeMap;

use crate::Machine;

/// A call of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    MemAlloc,
    MemFree,
    MemAddressReserve,
    MemAddressFree,
    MemCreate,
    MemRelease,
    MemMap,
    MemSetAccess,
    MemUnmap,
    StreamSynchronize,
    EventRecord,
    EventQuery,
    EventSynchronize,
}

/// The CUDA names, in the order of [`Call`].
const NAMES: [&str; 13] = [
    "cuMemAlloc",
    "cuMemFree",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuStreamSynchronize",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
];

/// Calls of the driver by kind, failed ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls([u64; NAMES.len()]);

impl Calls {
    /// Each kind by its CUDA name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0)
    }

    /// How often `name` was called, by its CUDA name.
    pub fn count(&self, name: &str) -> u64 {
        self.by_name().find(|call| call.0 == name).map_or(0, |call| call.1)
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that wait for work on the device: `cuMemFree` for all of it, the others for a stream or an event.
    pub fn waits(&self) -> u64 {
        [Call::MemFree, Call::StreamSynchronize, Call::EventSynchronize].iter().map(|&call| self.0[call as usize]).sum()
    }
}

/// Where addresses begin: above zero, so that no address is null.
const BASE: u64 = 1 << 40;

#[derive(Debug)]
pub(crate) struct Device {
    capacity: u64,
    used: u64,
    /// Free addresses, by start, with their ends.
    free: BTreeMap<u64, u64>,
    pub(crate) now: u64,
    event_lag: u64,
    cost: fn(&'static str, u64) -> u64,
    pub(crate) calls: Calls,
    /// What the calls took.
    pub(crate) driver_ns: u64,
}

impl Device {
    pub(crate) fn new(machine: &Machine) -> Device {
        Device {
            capacity: machine.capacity,
            used: 0,
            free: BTreeMap::from([(BASE, u64::MAX)]),
            now: 0,
            event_lag: machine.event_lag_ns,
            cost: machine.cost,
            calls: Calls::default(),
            driver_ns: 0,
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.capacity - self.used
    }

    pub(crate) fn advance(&mut self, ns: u64) {
        self.now += ns;
    }

    /// Counts a call about so many bytes, and lets its time pass.
    pub(crate) fn call(&mut self, call: Call, size: u64) {
        self.calls.0[call as usize] += 1;
        let ns = (self.cost)(NAMES[call as usize], size);
        self.driver_ns += ns;
        self.now += ns;
    }

    /// Records an event: the time at which it is seen to complete.
    pub(crate) fn record_event(&mut self) -> u64 {
        self.call(Call::EventRecord, 0);
        self.now + self.event_lag
    }

    fn take(&mut self, size: u64) -> bool {
        let fits = size <= self.free_bytes();
        if fits {
            self.used += size;
        }
        fits
    }

    /// `cudaMalloc`.
    pub(crate) fn malloc(&mut self, size: u64) -> Option<u64> {
        self.call(Call::MemAlloc, size);
        self.take(size).then(|| self.place(size))
    }

    /// `cudaFree`.
    pub(crate) fn free(&mut self, address: u64, size: u64) {
        self.call(Call::MemFree, size);
        self.used -= size;
        self.unplace(address, size);
    }

    /// `cuMemCreate`. Whether there was room.
    pub(crate) fn create(&mut self, size: u64) -> bool {
        self.call(Call::MemCreate, size);
        self.take(size)
    }

    /// `cuMemRelease`.
    pub(crate) fn release(&mut self, size: u64) {
        self.call(Call::MemRelease, size);
        self.used -= size;
    }

    /// `cuMemAddressReserve`.
    pub(crate) fn reserve(&mut self, size: u64) -> u64 {
        self.call(Call::MemAddressReserve, size);
        self.place(size)
    }

    /// `cuMemAddressFree`.
    pub(crate) fn unreserve(&mut self, address: u64, size: u64) {
        self.call(Call::MemAddressFree, size);
        self.unplace(address, size);
    }

    /// The lowest addresses that are free: there are always some, since 2^64 are many times any device's memory.
    fn place(&mut self, size: u64) -> u64 {
        let found = self.free.iter().find(|&(&start, &end)| end - start >= size).map(|(&start, &end)| (start, end));
        let (start, end) = found.expect("segments outgrow 64 bits of address space");
        self.free.remove(&start);
        if end - start > size {
            self.free.insert(start + size, end);
        }
        start
    }

    fn unplace(&mut self, mut start: u64, size: u64) {
        let mut end = start + size;
        if let Some((&before, &before_end)) = self.free.range(..start).next_back()
            && before_end == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(after) = self.free.remove(&end) {
            end = after;
        }
        self.free.insert(start, end);
    }
}
