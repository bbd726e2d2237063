//! A driver that counts and times the calls to another: what the allocator is measured by, on any device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use super::call::CallKind;
use super::kernels::Quant;
use super::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverResult, EventId, EventStatus, HostPtr,
    Location, MemoryInfo,
};
use crate::units::{DevicePtr, StreamId};

/// Passes every call on, and keeps count and time of each kind. Time is that of the inner driver's
/// [`clock_ns`](Driver::clock_ns): virtual on a software device, so that modelled time can be summed a call. Threads that
/// call at once share a virtual clock, so each also counts what the others add meanwhile.
#[derive(Debug)]
pub struct Metered {
    inner: Arc<dyn Driver>,
    meters: [Meter; CallKind::COUNT],
}

#[derive(Debug, Default)]
struct Meter {
    count: AtomicU64,
    time_ns: AtomicU64,
}

impl Metered {
    /// Counts the calls to `inner` from now on.
    pub fn new(inner: Arc<dyn Driver>) -> Metered {
        Metered { inner, meters: std::array::from_fn(|_| Meter::default()) }
    }

    /// The driver behind this one.
    pub fn inner(&self) -> &Arc<dyn Driver> {
        &self.inner
    }

    /// The counts so far. Each number is exact; numbers read while other threads call may be of slightly different moments.
    pub fn calls(&self) -> DriverCalls {
        let mut calls = DriverCalls::default();
        for (meter, tally) in self.meters.iter().zip(&mut calls.tallies) {
            *tally = Tally { count: meter.count.load(Relaxed), time_ns: meter.time_ns.load(Relaxed) };
        }
        calls
    }

    fn timed<T>(&self, kind: CallKind, call: impl FnOnce(&dyn Driver) -> T) -> T {
        let begin = self.inner.clock_ns();
        let result = call(&*self.inner);
        let meter = &self.meters[kind.index()];
        meter.count.fetch_add(1, Relaxed);
        let time_ns = self.inner.clock_ns().saturating_sub(begin);
        if time_ns > 0 {
            meter.time_ns.fetch_add(time_ns, Relaxed);
        }
        result
    }
}

/// Calls of one kind: how many, and how long they took together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many calls.
    pub count: u64,
    /// Their time on the driver's clock, in nanoseconds.
    pub time_ns: u64,
}

/// The calls made to a driver, by kind. Two snapshots subtract: `after - before` is what happened in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverCalls {
    tallies: [Tally; CallKind::COUNT],
}

impl Default for DriverCalls {
    fn default() -> DriverCalls {
        DriverCalls { tallies: [Tally::default(); CallKind::COUNT] }
    }
}

impl DriverCalls {
    /// The calls of one kind.
    pub fn of(&self, kind: CallKind) -> Tally {
        self.tallies[kind.index()]
    }

    /// The CUDA name, count and time in nanoseconds of every kind that was called.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        let all = CallKind::ALL.iter().zip(&self.tallies);
        all.filter(|(_, tally)| tally.count > 0).map(|(kind, tally)| (kind.name(), tally.count, tally.time_ns))
    }

    /// All calls together.
    pub fn total(&self) -> Tally {
        self.tallies.iter().fold(Tally::default(), |sum, tally| Tally {
            count: sum.count + tally.count,
            time_ns: sum.time_ns + tally.time_ns,
        })
    }
}

impl std::ops::Sub for DriverCalls {
    type Output = DriverCalls;

    /// What was called after `earlier` was taken.
    fn sub(mut self, earlier: DriverCalls) -> DriverCalls {
        for (tally, before) in self.tallies.iter_mut().zip(&earlier.tallies) {
            tally.count = tally.count.saturating_sub(before.count);
            tally.time_ns = tally.time_ns.saturating_sub(before.time_ns);
        }
        self
    }
}

impl Driver for Metered {
    fn properties(&self) -> &DeviceProperties {
        self.inner.properties()
    }

    fn clock_ns(&self) -> u64 {
        self.inner.clock_ns()
    }

    fn memory_info(&self) -> DriverResult<MemoryInfo> {
        self.timed(CallKind::MemoryInfo, |d| d.memory_info())
    }

    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr> {
        self.timed(CallKind::Reserve, |d| d.reserve(size, alignment))
    }

    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.timed(CallKind::Unreserve, |d| d.unreserve(ptr, size))
    }

    fn create(&self, size: u64, location: Location) -> DriverResult<ChunkHandle> {
        self.timed(CallKind::Create, |d| d.create(size, location))
    }

    fn release(&self, chunk: ChunkHandle) -> DriverResult<()> {
        self.timed(CallKind::Release, |d| d.release(chunk))
    }

    fn map(&self, ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()> {
        self.timed(CallKind::Map, |d| d.map(ptr, size, chunk, offset))
    }

    fn unmap(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.timed(CallKind::Unmap, |d| d.unmap(ptr, size))
    }

    fn set_access(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.timed(CallKind::SetAccess, |d| d.set_access(ptr, size))
    }

    fn export(&self, chunk: ChunkHandle) -> DriverResult<std::os::fd::OwnedFd> {
        self.timed(CallKind::Export, |d| d.export(chunk))
    }

    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr> {
        self.timed(CallKind::AllocPlain, |d| d.alloc_plain(size))
    }

    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()> {
        self.timed(CallKind::FreePlain, |d| d.free_plain(ptr))
    }

    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr> {
        self.timed(CallKind::AllocHost, |d| d.alloc_host(size))
    }

    fn free_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.timed(CallKind::FreeHost, |d| d.free_host(ptr))
    }

    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()> {
        self.timed(CallKind::PinHost, |d| d.pin_host(ptr, size))
    }

    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.timed(CallKind::UnpinHost, |d| d.unpin_host(ptr))
    }

    fn create_stream(&self) -> DriverResult<StreamId> {
        self.timed(CallKind::CreateStream, |d| d.create_stream())
    }

    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::DestroyStream, |d| d.destroy_stream(stream))
    }

    fn synchronize_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::SynchronizeStream, |d| d.synchronize_stream(stream))
    }

    fn synchronize_device(&self) -> DriverResult<()> {
        self.timed(CallKind::SynchronizeDevice, |d| d.synchronize_device())
    }

    fn create_event(&self) -> DriverResult<EventId> {
        self.timed(CallKind::CreateEvent, |d| d.create_event())
    }

    fn destroy_event(&self, event: EventId) -> DriverResult<()> {
        self.timed(CallKind::DestroyEvent, |d| d.destroy_event(event))
    }

    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::RecordEvent, |d| d.record_event(event, stream))
    }

    fn query_event(&self, event: EventId) -> DriverResult<EventStatus> {
        self.timed(CallKind::QueryEvent, |d| d.query_event(event))
    }

    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()> {
        self.timed(CallKind::WaitEvent, |d| d.wait_event(stream, event))
    }

    fn synchronize_event(&self, event: EventId) -> DriverResult<()> {
        self.timed(CallKind::SynchronizeEvent, |d| d.synchronize_event(event))
    }

    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus> {
        self.timed(CallKind::CaptureStatus, |d| d.capture_status(stream))
    }

    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::Copy, |d| d.copy(ops, stream))
    }

    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::Fill, |d| d.fill(ptr, size, byte, stream))
    }

    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::CopyBlocks, |d| d.copy_blocks(ops, stream))
    }

    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::FillWords, |d| d.fill_words(ptr, size, pattern, stream))
    }

    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.timed(CallKind::CheckWords, |d| d.check_words(ptr, size, pattern, result, stream))
    }

    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::Checksum, |d| d.checksum(ptr, size, result, stream))
    }

    fn quantize(&self, src: DevicePtr, dst: DevicePtr, size: u64, quant: Quant, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::Quantize, |d| d.quantize(src, dst, size, quant, stream))
    }

    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.timed(CallKind::Dequantize, |d| d.dequantize(src, dst, size, quant, stream))
    }

    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::Write, |d| d.write(dst, src, stream))
    }

    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()> {
        self.timed(CallKind::Read, |d| d.read(dst, src, stream))
    }
}
