//! A driver that makes calls to another fail: the n-th, every one from the n-th on, or some at random by seed.
//!
//! A test that wants to see every failure counts the calls of a faultless run with [`FaultDriver::calls`], then repeats the
//! run once for every `n` with [`When::Nth`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

pub use super::call::CallKind;
use super::kernels::Quant;
use super::rng::Rng;
use super::soft::SoftDevice;
use super::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverError, DriverErrorKind, DriverResult, EventId,
    EventStatus, HostPtr, Location, MemoryInfo,
};
use crate::units::{DevicePtr, StreamId};

/// Which calls a [`Fault`] makes fail. Calls are counted from 1, from the moment that the fault is injected; a fault that
/// is restricted to one kind of call counts only those.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// The n-th call, once.
    Nth(u64),
    /// The n-th call and every later one.
    From(u64),
    /// Every call with this probability.
    Random {
        /// From 0 to 1.
        probability: f64,
        /// The same seed fails the same calls.
        seed: u64,
    },
}

/// A failure to inject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Which calls fail.
    pub when: When,
    /// What they fail with.
    pub kind: DriverErrorKind,
    /// Only calls of this kind, where given.
    pub only: Option<CallKind>,
}

/// Passes calls on to `D`, except those that an injected [`Fault`] makes fail: they never reach `D`.
#[derive(Debug)]
pub struct FaultDriver<D: Driver + ?Sized> {
    inner: Arc<D>,
    calls: AtomicU64,
    failures: AtomicU64,
    faults: Mutex<Vec<Injected>>,
    stalls: Option<Stalls>,
}

#[derive(Debug)]
struct Injected {
    fault: Fault,
    seen: u64,
    rng: Rng,
}

#[derive(Debug)]
struct Stalls {
    clock: Arc<SoftDevice>,
    stall_ns: u64,
    probability: f64,
    rng: Mutex<Rng>,
}

impl<D: Driver + ?Sized> FaultDriver<D> {
    /// A driver in which nothing fails until a fault is injected.
    pub fn new(inner: Arc<D>) -> FaultDriver<D> {
        FaultDriver {
            inner,
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            faults: Mutex::default(),
            stalls: None,
        }
    }

    /// Makes calls stall at random: `clock`, the software device behind this driver, then moves on by `stall_ns` before the
    /// call. Real drivers stall about 2 ms in `cuMemSetAccess` and `cuMemUnmap` at times.
    pub fn with_stalls(mut self, clock: Arc<SoftDevice>, stall_ns: u64, probability: f64, seed: u64) -> FaultDriver<D> {
        self.stalls = Some(Stalls { clock, stall_ns, probability, rng: Mutex::new(Rng::new(seed)) });
        self
    }

    /// The driver behind this one.
    pub fn inner(&self) -> &Arc<D> {
        &self.inner
    }

    /// Makes calls fail from now on. Several faults may be injected; the first that applies to a call decides.
    pub fn inject(&self, fault: Fault) {
        let seed = if let When::Random { seed, .. } = fault.when { seed } else { 0 };
        self.faults.lock().push(Injected { fault, seen: 0, rng: Rng::new(seed) });
    }

    /// Takes all faults back.
    pub fn clear(&self) {
        self.faults.lock().clear();
    }

    /// How many fallible calls there were, failed ones included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// How many calls were made to fail.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Counts the call, and fails it where a fault applies.
    fn pass(&self, call: CallKind) -> DriverResult<&D> {
        let number = self.calls.fetch_add(1, Relaxed) + 1;
        if let Some(stalls) = &self.stalls
            && stalls.rng.lock().chance(stalls.probability)
        {
            stalls.clock.advance_clock(stalls.stall_ns);
        }
        let mut hit = None;
        for injected in self.faults.lock().iter_mut() {
            if injected.applies_to(call) && hit.is_none() {
                hit = Some(injected.fault.kind);
            }
        }
        let Some(kind) = hit else { return Ok(&self.inner) };
        self.failures.fetch_add(1, Relaxed);
        Err(DriverError::new(kind, call.name(), format!("injected fault: {kind:?} in call {number}")))
    }
}

impl Injected {
    fn applies_to(&mut self, call: CallKind) -> bool {
        if self.fault.only.is_some_and(|only| only != call) {
            return false;
        }
        self.seen += 1;
        match self.fault.when {
            When::Nth(n) => self.seen == n,
            When::From(n) => self.seen >= n,
            When::Random { probability, .. } => self.rng.chance(probability),
        }
    }
}

impl<D: Driver + ?Sized> Driver for FaultDriver<D> {
    fn properties(&self) -> &DeviceProperties {
        self.inner.properties()
    }

    fn clock_ns(&self) -> u64 {
        self.inner.clock_ns()
    }

    fn memory_info(&self) -> DriverResult<MemoryInfo> {
        self.pass(CallKind::MemoryInfo)?.memory_info()
    }

    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr> {
        self.pass(CallKind::Reserve)?.reserve(size, alignment)
    }

    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.pass(CallKind::Unreserve)?.unreserve(ptr, size)
    }

    fn create(&self, size: u64, location: Location) -> DriverResult<ChunkHandle> {
        self.pass(CallKind::Create)?.create(size, location)
    }

    fn release(&self, chunk: ChunkHandle) -> DriverResult<()> {
        self.pass(CallKind::Release)?.release(chunk)
    }

    fn map(&self, ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()> {
        self.pass(CallKind::Map)?.map(ptr, size, chunk, offset)
    }

    fn unmap(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.pass(CallKind::Unmap)?.unmap(ptr, size)
    }

    fn set_access(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.pass(CallKind::SetAccess)?.set_access(ptr, size)
    }

    fn export(&self, chunk: ChunkHandle) -> DriverResult<std::os::fd::OwnedFd> {
        self.pass(CallKind::Export)?.export(chunk)
    }

    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr> {
        self.pass(CallKind::AllocPlain)?.alloc_plain(size)
    }

    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()> {
        self.pass(CallKind::FreePlain)?.free_plain(ptr)
    }

    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr> {
        self.pass(CallKind::AllocHost)?.alloc_host(size)
    }

    fn free_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.pass(CallKind::FreeHost)?.free_host(ptr)
    }

    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()> {
        self.pass(CallKind::PinHost)?.pin_host(ptr, size)
    }

    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.pass(CallKind::UnpinHost)?.unpin_host(ptr)
    }

    fn create_stream(&self) -> DriverResult<StreamId> {
        self.pass(CallKind::CreateStream)?.create_stream()
    }

    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::DestroyStream)?.destroy_stream(stream)
    }

    fn synchronize_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::SynchronizeStream)?.synchronize_stream(stream)
    }

    fn synchronize_device(&self) -> DriverResult<()> {
        self.pass(CallKind::SynchronizeDevice)?.synchronize_device()
    }

    fn create_event(&self) -> DriverResult<EventId> {
        self.pass(CallKind::CreateEvent)?.create_event()
    }

    fn destroy_event(&self, event: EventId) -> DriverResult<()> {
        self.pass(CallKind::DestroyEvent)?.destroy_event(event)
    }

    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::RecordEvent)?.record_event(event, stream)
    }

    fn query_event(&self, event: EventId) -> DriverResult<EventStatus> {
        self.pass(CallKind::QueryEvent)?.query_event(event)
    }

    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()> {
        self.pass(CallKind::WaitEvent)?.wait_event(stream, event)
    }

    fn synchronize_event(&self, event: EventId) -> DriverResult<()> {
        self.pass(CallKind::SynchronizeEvent)?.synchronize_event(event)
    }

    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus> {
        self.pass(CallKind::CaptureStatus)?.capture_status(stream)
    }

    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::Copy)?.copy(ops, stream)
    }

    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::Fill)?.fill(ptr, size, byte, stream)
    }

    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::CopyBlocks)?.copy_blocks(ops, stream)
    }

    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::FillWords)?.fill_words(ptr, size, pattern, stream)
    }

    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.pass(CallKind::CheckWords)?.check_words(ptr, size, pattern, result, stream)
    }

    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::Checksum)?.checksum(ptr, size, result, stream)
    }

    fn quantize(&self, src: DevicePtr, dst: DevicePtr, size: u64, quant: Quant, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::Quantize)?.quantize(src, dst, size, quant, stream)
    }

    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.pass(CallKind::Dequantize)?.dequantize(src, dst, size, quant, stream)
    }

    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::Write)?.write(dst, src, stream)
    }

    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()> {
        self.pass(CallKind::Read)?.read(dst, src, stream)
    }
}
