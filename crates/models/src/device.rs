//! The device under a model: so many bytes, addresses, a count of calls, and a clock for events.

use std::collections::BTreeMap;

use crate::Machine;

/// Calls of the driver by kind, failed ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the CUDA driver's call of that name")]
pub struct Calls {
    pub mem_alloc: u64,
    pub mem_free: u64,
    pub mem_address_reserve: u64,
    pub mem_address_free: u64,
    pub mem_create: u64,
    pub mem_release: u64,
    pub mem_map: u64,
    pub mem_set_access: u64,
    pub mem_unmap: u64,
    pub stream_synchronize: u64,
    pub event_record: u64,
    pub event_query: u64,
    pub event_synchronize: u64,
}

impl Calls {
    /// Each kind by its CUDA name.
    pub fn by_name(&self) -> [(&'static str, u64); 13] {
        [
            ("cuMemAlloc", self.mem_alloc),
            ("cuMemFree", self.mem_free),
            ("cuMemAddressReserve", self.mem_address_reserve),
            ("cuMemAddressFree", self.mem_address_free),
            ("cuMemCreate", self.mem_create),
            ("cuMemRelease", self.mem_release),
            ("cuMemMap", self.mem_map),
            ("cuMemSetAccess", self.mem_set_access),
            ("cuMemUnmap", self.mem_unmap),
            ("cuStreamSynchronize", self.stream_synchronize),
            ("cuEventRecord", self.event_record),
            ("cuEventQuery", self.event_query),
            ("cuEventSynchronize", self.event_synchronize),
        ]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_name().iter().map(|(_, count)| count).sum()
    }

    /// Those after which everything that was submitted has been waited for: `cudaFree` waits for the device, and an unmapping for its
    /// stream.
    pub fn waits(&self) -> u64 {
        self.mem_free + self.stream_synchronize + self.event_synchronize
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
    pub(crate) calls: Calls,
}

impl Device {
    pub(crate) fn new(machine: &Machine) -> Device {
        Device {
            capacity: machine.capacity,
            used: 0,
            free: BTreeMap::from([(BASE, u64::MAX)]),
            now: 0,
            event_lag: machine.event_lag_ns,
            calls: Calls::default(),
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

    /// Records an event: the time at which it is seen to complete.
    pub(crate) fn record_event(&mut self) -> u64 {
        self.calls.event_record += 1;
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
        self.calls.mem_alloc += 1;
        self.take(size).then(|| self.place(size))
    }

    /// `cudaFree`.
    pub(crate) fn free(&mut self, address: u64, size: u64) {
        self.calls.mem_free += 1;
        self.used -= size;
        self.unplace(address, size);
    }

    /// `cuMemCreate`. Whether there was room.
    pub(crate) fn create(&mut self, size: u64) -> bool {
        self.calls.mem_create += 1;
        self.take(size)
    }

    /// `cuMemRelease`.
    pub(crate) fn release(&mut self, size: u64) {
        self.calls.mem_release += 1;
        self.used -= size;
    }

    /// `cuMemAddressReserve`.
    pub(crate) fn reserve(&mut self, size: u64) -> u64 {
        self.calls.mem_address_reserve += 1;
        self.place(size)
    }

    /// `cuMemAddressFree`.
    pub(crate) fn unreserve(&mut self, address: u64, size: u64) {
        self.calls.mem_address_free += 1;
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
