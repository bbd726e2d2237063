//! The driver that the allocator sees: the real one, with three things added.
//!
//! * Every chunk is charged to the ledger before it is created, so that one limit holds for what the allocator holds and what is
//!   passed on together. Where there is no room, the allocator is told that the device is full, and helps itself as then.
//! * No event is recorded on a stream that was destroyed. The driver may crash on such a handle; here it is an invalid handle, which
//!   the allocator takes for a stream with nothing left to do. `hooks::stream` waits for a stream before it is destroyed.
//! * Memory is made accessible to the devices that were given peer access, as memory from `cuMemAlloc` would be.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use stratalloc::driver::cuda::CudaDriver;
use stratalloc::driver::kernels::Quant;
use stratalloc::driver::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverResult, EventId, EventStatus, HostPtr,
    Location, MemoryInfo,
};
use stratalloc::{DevicePtr, DriverError, DriverErrorKind, StreamId};

use crate::abi::{CUmemAccessDesc, CUmemLocation, LOCATION_DEVICE, OUT_OF_MEMORY, SUCCESS, Status};
use crate::entries;
use crate::ledger::{Kind, Ledger};

/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: i32 = 3;

/// The allocator's driver for one device.
pub(crate) struct Gate {
    cuda: Arc<CudaDriver>,
    real: &'static entries::Driver,
    ledger: &'static Ledger,
    device: usize,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    /// Sizes of chunks, by handle.
    chunks: HashMap<u64, u64>,
    /// Where chunks are mapped, and how long each mapping is.
    mapped: BTreeMap<u64, u64>,
    /// Segments from `cuMemAlloc`, where there is no virtual memory management.
    segments: BTreeMap<u64, u64>,
    /// Reserved address space.
    reserved: HashMap<u64, u64>,
    /// Streams that were destroyed.
    dead: HashSet<u64>,
    /// Devices with peer access.
    peers: Vec<i32>,
    /// How often something was unmapped.
    unmaps: u64,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Gate {
    pub(crate) fn new(
        cuda: Arc<CudaDriver>,
        real: &'static entries::Driver,
        ledger: &'static Ledger,
        device: usize,
    ) -> Gate {
        Gate { cuda, real, ledger, device, state: Mutex::default() }
    }

    /// The primary context.
    pub(crate) fn context(&self) -> usize {
        self.cuda.context()
    }

    /// A stream is about to be destroyed.
    pub(crate) fn bury(&self, stream: u64) {
        self.state.lock().dead.insert(stream);
    }

    /// A stream of this handle is in use.
    pub(crate) fn revive(&self, stream: u64) {
        self.state.lock().dead.remove(&stream);
    }

    /// Whether an address lies in memory that the allocator holds.
    pub(crate) fn owns(&self, ptr: u64) -> bool {
        let state = self.state.lock();
        let covers = |ranges: &BTreeMap<u64, u64>| {
            ranges.range(..=ptr).next_back().is_some_and(|(start, size)| ptr - start < *size)
        };
        covers(&state.mapped) || covers(&state.segments)
    }

    /// Address space that the allocator has mapped and reserved, in bytes.
    pub(crate) fn address_space(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.mapped.values().sum(), state.reserved.values().sum())
    }

    /// Lets another device reach all that is mapped and will be. Returns the driver's code where it refuses.
    pub(crate) fn admit_peer(&self, peer: i32) -> Status {
        {
            let mut state = self.state.lock();
            if state.peers.contains(&peer) {
                return SUCCESS;
            }
            // First: what is mapped from now on is made accessible by `set_access`.
            state.peers.push(peer);
        }
        let walk = || {
            let state = self.state.lock();
            (state.unmaps, state.mapped.iter().map(|(ptr, size)| (*ptr, *size)).collect())
        };
        let code = let_in_everywhere(walk, |ptr, size| self.let_in(ptr, size, peer));
        if code != SUCCESS {
            // The program is told that there is no access, and may try again.
            self.state.lock().peers.retain(|&admitted| admitted != peer);
        }
        code
    }

    fn let_in(&self, ptr: u64, size: u64, peer: i32) -> Status {
        let location = CUmemLocation { kind: LOCATION_DEVICE, id: peer };
        let access = CUmemAccessDesc { location, flags: READ_WRITE };
        // SAFETY: one descriptor, a local, is announced; the driver checks the range.
        unsafe { self.real.cuMemSetAccess(ptr, size as usize, &access, 1) }
    }

    fn charge(&self, size: u64, call: &'static str) -> DriverResult<crate::ledger::Charge<'static>> {
        self.ledger.charge(self.device, Kind::Served, size).ok_or_else(|| {
            DriverError::new(DriverErrorKind::OutOfMemory, call, format!("the limit is reached ({OUT_OF_MEMORY})"))
        })
    }
}

/// Lets a device in on all ranges of a walk, which also says how often something was unmapped. Another thread may unmap a range before its turn
/// comes, which the driver then refuses: a refusal counts only where nothing was unmapped since the walk.
fn let_in_everywhere(walk: impl Fn() -> (u64, Vec<(u64, u64)>), let_in: impl Fn(u64, u64) -> Status) -> Status {
    loop {
        let (unmaps, ranges) = walk();
        let refused = ranges.into_iter().map(|(ptr, size)| let_in(ptr, size)).find(|&code| code != SUCCESS);
        match refused {
            None => return SUCCESS,
            Some(code) if walk().0 == unmaps => return code,
            Some(_) => {}
        }
    }
}

impl Driver for Gate {
    fn properties(&self) -> &DeviceProperties {
        self.cuda.properties()
    }

    fn memory_info(&self) -> DriverResult<MemoryInfo> {
        self.cuda.memory_info()
    }

    fn clock_ns(&self) -> u64 {
        self.cuda.clock_ns()
    }

    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr> {
        let ptr = self.cuda.reserve(size, alignment)?;
        self.state.lock().reserved.insert(ptr.0, size);
        Ok(ptr)
    }

    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.cuda.unreserve(ptr, size)?;
        self.state.lock().reserved.remove(&ptr.0);
        Ok(())
    }

    fn create(&self, size: u64, location: Location) -> DriverResult<ChunkHandle> {
        if location != Location::Device {
            return self.cuda.create(size, location);
        }
        let charge = self.charge(size, "cuMemCreate")?;
        let chunk = self.cuda.create(size, location)?;
        charge.keep();
        self.state.lock().chunks.insert(chunk.0, size);
        Ok(chunk)
    }

    fn release(&self, chunk: ChunkHandle) -> DriverResult<()> {
        // Taken out first: once the driver has it back, another thread may be given the same handle.
        let size = self.state.lock().chunks.remove(&chunk.0);
        let released = self.cuda.release(chunk);
        match (size, &released) {
            (Some(size), Ok(())) => self.ledger.strike(self.device, Kind::Served, size),
            (Some(size), Err(_)) => drop(self.state.lock().chunks.insert(chunk.0, size)),
            (None, _) => {}
        }
        released
    }

    fn map(&self, ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()> {
        self.cuda.map(ptr, size, chunk, offset)?;
        self.state.lock().mapped.insert(ptr.0, size);
        Ok(())
    }

    fn unmap(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let end = ptr.0.saturating_add(size);
        let ranges: Vec<(u64, u64)> = {
            let mut state = self.state.lock();
            let inside: Vec<_> = state.mapped.range(ptr.0..end).map(|(ptr, size)| (*ptr, *size)).collect();
            for (start, _) in &inside {
                state.mapped.remove(start);
            }
            state.unmaps += 1;
            inside
        };
        let unmapped = self.cuda.unmap(ptr, size);
        if unmapped.is_err() {
            self.state.lock().mapped.extend(ranges);
        }
        unmapped
    }

    fn set_access(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.cuda.set_access(ptr, size)?;
        let peers = self.state.lock().peers.clone();
        for peer in peers {
            let code = self.let_in(ptr.0, size, peer);
            if code != SUCCESS {
                let detail = format!("access for device {peer}: error {code}");
                return Err(DriverError::new(DriverErrorKind::Other, "cuMemSetAccess", detail));
            }
        }
        Ok(())
    }

    fn export(&self, chunk: ChunkHandle) -> DriverResult<OwnedFd> {
        self.cuda.export(chunk)
    }

    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr> {
        let charge = self.charge(size, "cuMemAlloc")?;
        let ptr = self.cuda.alloc_plain(size)?;
        charge.keep();
        self.state.lock().segments.insert(ptr.0, size);
        Ok(ptr)
    }

    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()> {
        let size = self.state.lock().segments.remove(&ptr.0);
        let freed = self.cuda.free_plain(ptr);
        match (size, &freed) {
            (Some(size), Ok(())) => self.ledger.strike(self.device, Kind::Served, size),
            (Some(size), Err(_)) => drop(self.state.lock().segments.insert(ptr.0, size)),
            (None, _) => {}
        }
        freed
    }

    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr> {
        self.cuda.alloc_host(size)
    }

    fn free_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.cuda.free_host(ptr)
    }

    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()> {
        self.cuda.pin_host(ptr, size)
    }

    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.cuda.unpin_host(ptr)
    }

    fn create_stream(&self) -> DriverResult<StreamId> {
        self.cuda.create_stream()
    }

    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.cuda.destroy_stream(stream)
    }

    fn synchronize_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.cuda.synchronize_stream(stream)
    }

    fn synchronize_device(&self) -> DriverResult<()> {
        self.cuda.synchronize_device()
    }

    fn create_event(&self) -> DriverResult<EventId> {
        self.cuda.create_event()
    }

    fn destroy_event(&self, event: EventId) -> DriverResult<()> {
        self.cuda.destroy_event(event)
    }

    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()> {
        if self.state.lock().dead.contains(&stream.0) {
            let detail = format!("{stream} was destroyed");
            return Err(DriverError::new(DriverErrorKind::InvalidHandle, "cuEventRecord", detail));
        }
        self.cuda.record_event(event, stream)
    }

    fn query_event(&self, event: EventId) -> DriverResult<EventStatus> {
        self.cuda.query_event(event)
    }

    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()> {
        self.cuda.wait_event(stream, event)
    }

    fn synchronize_event(&self, event: EventId) -> DriverResult<()> {
        self.cuda.synchronize_event(event)
    }

    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus> {
        self.cuda.capture_status(stream)
    }

    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.cuda.copy(ops, stream)
    }

    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()> {
        self.cuda.fill(ptr, size, byte, stream)
    }

    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.cuda.copy_blocks(ops, stream)
    }

    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()> {
        self.cuda.fill_words(ptr, size, pattern, stream)
    }

    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.cuda.check_words(ptr, size, pattern, result, stream)
    }

    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()> {
        self.cuda.checksum(ptr, size, result, stream)
    }

    fn quantize(&self, src: DevicePtr, dst: DevicePtr, size: u64, quant: Quant, stream: StreamId) -> DriverResult<()> {
        self.cuda.quantize(src, dst, size, quant, stream)
    }

    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.cuda.dequantize(src, dst, size, quant, stream)
    }

    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()> {
        self.cuda.write(dst, src, stream)
    }

    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()> {
        self.cuda.read(dst, src, stream)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn a_range_that_goes_during_the_walk_is_no_refusal() {
        let (unmaps, ranges) = (Cell::new(0), RefCell::new(vec![(0x1000, 1), (0x2000, 1)]));
        let walk = || (unmaps.get(), ranges.borrow().clone());
        let code = let_in_everywhere(walk, |ptr, _| {
            if ptr == 0x1000 && unmaps.get() == 0 {
                // Another thread unmaps the second while the first is let in.
                unmaps.set(1);
                ranges.borrow_mut().pop();
            }
            if ranges.borrow().iter().any(|(start, _)| *start == ptr) { SUCCESS } else { 1 }
        });
        assert_eq!(code, SUCCESS);
        assert_eq!(let_in_everywhere(walk, |_, _| 217), 217, "the driver's refusal");
    }
}
