//! What a whole CUDA driver needs of a device beyond [`Driver`](crate::driver::Driver): functions of the host in stream order,
//! times of events, patterns, registered host memory, memory of other devices and processes.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;

use super::SoftDevice;
use super::host::{HostWork, Until};
use super::memory::{Chunk, Region, RegionKind, invalid};
use super::report::Access;
use super::schedule::{Action, Pattern, Recorded};
use super::state::Call;
use super::store::{Foreign, Store};
use crate::driver::call::CallKind;
use crate::driver::{ChunkHandle, DriverError, DriverErrorKind, DriverResult, EventId, Location};
use crate::units::{DevicePtr, StreamId};

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Its size, in bytes.
    pub size: u64,
    /// Where it lies.
    pub location: Location,
    /// How many handles are held. 0 where only mappings keep it.
    pub handles: u32,
    /// How many mappings there are.
    pub mappings: u32,
    /// Whether it is another device's memory.
    pub foreign: bool,
}

/// Where plain memory lies in the device's memory file, for [`SoftDevice::open_shared`] in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedMemory {
    /// The memory file's descriptor in this process.
    pub descriptor: RawFd,
    /// Where the memory begins in the file.
    pub offset: u64,
    /// Its size, in bytes.
    pub size: u64,
}

/// Virtual memory in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Chunks of the device's own that have a handle or a mapping.
    pub chunks: u64,
    /// Their bytes.
    pub chunk_bytes: u64,
    /// Mappings.
    pub mappings: u64,
    /// Their bytes.
    pub mapped_bytes: u64,
    /// Reservations.
    pub reservations: u64,
    /// Their bytes.
    pub reserved_bytes: u64,
}

/// How a value in memory is compared with another (`CUstreamWaitValue_flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The difference, as a signed number, is not negative.
    GreaterOrEqual,
    /// The values are the same.
    Equal,
    /// They have a bit in common.
    And,
    /// Some bit is set in neither.
    Nor,
}

impl Comparison {
    pub(super) fn holds(self, found: u64, wanted: u64, width: u64) -> bool {
        let mask = if width == 8 { u64::MAX } else { u64::from(u32::MAX) };
        let (found, wanted) = (found & mask, wanted & mask);
        match self {
            Comparison::GreaterOrEqual if width == 8 => found.wrapping_sub(wanted) as i64 >= 0,
            Comparison::GreaterOrEqual => (found as u32).wrapping_sub(wanted as u32) as i32 >= 0,
            Comparison::Equal => found == wanted,
            Comparison::And => found & wanted != 0,
            Comparison::Nor => !(found | wanted) & mask != 0,
        }
    }
}

impl SoftDevice {
    // ---- streams and events -----------------------------------------------------------------------------------------

    /// Creates a stream that is ordered with the default stream (`cuStreamCreate` without `CU_STREAM_NON_BLOCKING`).
    pub fn create_blocking_stream(&self) -> DriverResult<StreamId> {
        Ok(self.enter(Call::new(CallKind::CreateStream).args(1, 0))?.schedule.create_stream(true))
    }

    /// Whether all work of a stream is done (`cuStreamQuery`).
    pub fn is_idle(&self, stream: StreamId) -> DriverResult<bool> {
        let call = "cuStreamQuery";
        let state = &mut *self.enter(Call::new(CallKind::QueryEvent).args(stream.0, 1))?;
        let index = state.schedule.stream(stream, call)?;
        if index == 0 {
            state.join_default(0);
        }
        let idle = state.schedule.is_idle(index);
        if let Some(checker) = state.checker.as_mut().filter(|_| idle) {
            checker.host_saw_stream(stream);
        }
        Ok(idle)
    }

    /// When the work that `event` stands for was done, in nanoseconds of [`clock_ns`](crate::driver::Driver::clock_ns).
    /// `None` while the host cannot see that it is; an error where the event was never recorded.
    pub fn event_done_ns(&self, event: EventId) -> DriverResult<Option<u64>> {
        let call = "cuEventElapsedTime";
        let state = self.enter(Call::new(CallKind::QueryEvent).args(event.0, 2))?;
        match state.schedule.event(event, call)? {
            Recorded::Last(record) => Ok(state.schedule.done_at(record)),
            _ => Err(DriverError::new(DriverErrorKind::InvalidHandle, call, "the event was never recorded")),
        }
    }

    /// Queues a function of the host on a stream (`cuLaunchHostFunc`). It runs without the device's lock: on a thread that
    /// waits for it, or on one that calls [`SoftDevice::run_host_work`].
    pub fn launch_host(&self, stream: StreamId, function: Box<dyn FnOnce() + Send>) -> DriverResult<()> {
        let mut state = self.enter(Call::new(CallKind::Copy).args(stream.0, 0))?;
        let work = Arc::new(HostWork::new(function));
        state.submit(stream, Action::Host(work), 0, "cuLaunchHostFunc")
    }

    /// Lets the device get on, and runs one function of the host whose turn has come. Whether there was one.
    pub fn run_host_work(&self) -> bool {
        let work = {
            let state = &mut *self.state.lock();
            state.schedule.tick();
            state.schedule.run_some(&state.memory);
            state.schedule.take_ready()
        };
        let Some(work) = work else { return false };
        work.run();
        let state = &mut *self.state.lock();
        state.schedule.run_some(&state.memory);
        self.host_ended.notify_all();
        true
    }

    /// Holds a stream up until the 4 or 8 bytes at `ptr` compare with `value` (`cuStreamWaitValue32` and its like).
    pub fn wait_value(
        &self,
        stream: StreamId,
        ptr: DevicePtr,
        width: u64,
        value: u64,
        comparison: Comparison,
    ) -> DriverResult<()> {
        let call = "cuStreamWaitValue";
        let mut state = self.enter(Call::new(CallKind::WaitEvent).range(ptr, width).args(stream.0, value))?;
        if !matches!(width, 4 | 8) || !ptr.0.is_multiple_of(width) {
            return Err(invalid(call, format!("{width} bytes at {ptr} are no aligned number of 4 or 8 bytes")));
        }
        state.submit(stream, Action::Until(Until { ptr, width, value, comparison }), 0, call)
    }

    // ---- data ---------------------------------------------------------------------------------------------------------

    /// Repeats the first `width` bytes, 1 to 4, of `pattern` over `size` bytes (`cuMemsetD16Async`, `cuMemsetD32Async`).
    pub fn fill_pattern(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: [u8; 4],
        width: usize,
        stream: StreamId,
    ) -> DriverResult<()> {
        let call = CallKind::Fill.name();
        let word = u64::from(u32::from_le_bytes(pattern));
        let mut state = self.enter(Call::new(CallKind::Fill).range(ptr, size).args(stream.0, word))?;
        if !(1..=4).contains(&width) {
            return Err(invalid(call, format!("a pattern of {width} bytes")));
        }
        let duration = state.settings.latency.fill_ns(size);
        state.submit(stream, Action::Fill { ptr, size, pattern: Pattern { bytes: pattern, width } }, duration, call)
    }

    /// Whether the device may touch `size` bytes at `ptr`.
    pub fn is_accessible(&self, ptr: DevicePtr, size: u64) -> bool {
        self.state.lock().memory.resolve(ptr, size, "is_accessible").is_ok()
    }

    /// Lets the checker see accesses that the host makes itself, once it has waited for `stream`.
    pub fn touch(&self, stream: StreamId, accesses: &[Access]) -> DriverResult<()> {
        self.launch(stream, accesses, 0)
    }

    // ---- memory -------------------------------------------------------------------------------------------------------

    /// Frees plain memory without waiting for anything. No unfinished work may touch it, which the checker watches.
    pub fn free_plain_unsynchronized(&self, ptr: DevicePtr) -> DriverResult<()> {
        let kind = CallKind::FreePlain;
        let state = &mut *self.enter(Call::new(kind).range(ptr, 0))?;
        let size = state.memory.region_size(ptr.0, RegionKind::Plain, kind.name())?;
        if let Some(checker) = &mut state.checker {
            checker.unmapped(ptr, size);
        }
        let ended = state.memory.free_region(ptr.0);
        state.forget(ended);
        Ok(())
    }

    /// Pins the program's own host memory (`cuMemHostRegister`). It may not overlap memory that is known already.
    pub fn register_host(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.register(CallKind::PinHost, ptr, size)
    }

    pub(super) fn register(&self, kind: CallKind, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let call = kind.name();
        let mut state = self.enter(Call { host: true, ..Call::new(kind).range(ptr, size) })?;
        let end = ptr.0.checked_add(size).filter(|_| size > 0 && !ptr.is_null());
        let end = end.ok_or_else(|| invalid(call, format!("{size} bytes at {ptr}")))?;
        if let Some(at) = state.memory.in_the_way(ptr.0, end) {
            return Err(invalid(call, format!("{size} bytes at {ptr}: {at:#x} is pinned or device memory already")));
        }
        let phys = state.memory.fresh_phys(size, call)?;
        state.memory.regions.insert(ptr.0, Region { size, phys, kind: RegionKind::Registered });
        Ok(())
    }

    /// Ends what [`SoftDevice::register_host`] began. Waits for the device.
    pub fn unregister_host(&self, ptr: DevicePtr) -> DriverResult<()> {
        self.free(CallKind::UnpinHost, ptr, RegionKind::Registered)
    }

    /// Where plain memory lies in the memory file, by its first address.
    pub fn shared_memory(&self, ptr: DevicePtr) -> DriverResult<SharedMemory> {
        let call = "cuIpcGetMemHandle";
        let state = self.enter(Call::new(CallKind::Export).range(ptr, 0))?;
        let size = state.memory.region_size(ptr.0, RegionKind::Plain, call)?;
        let phys = state.memory.regions.get(&ptr.0).map_or(0, |region| region.phys);
        match state.memory.store.file_descriptor() {
            Some(descriptor) => Ok(SharedMemory { descriptor, offset: phys, size }),
            None => {
                Err(DriverError::new(DriverErrorKind::NotSupported, call, "an addresses-only device shares nothing"))
            }
        }
    }

    /// Maps plain memory of another process's device (`cuIpcOpenMemHandle`), whose memory file is `file`.
    pub fn open_shared(&self, file: File, offset: u64, size: u64) -> DriverResult<DevicePtr> {
        let call = "cuIpcOpenMemHandle";
        let mut state = self.enter(Call::new(CallKind::AllocPlain).range(DevicePtr::NULL, size).args(1, 0))?;
        if size == 0 || !state.memory.store.has_bytes() {
            return Err(DriverError::new(DriverErrorKind::NotSupported, call, "this device maps no other's memory"));
        }
        let phys = state.memory.fresh_phys(size, call)?;
        let ptr = Store::map_foreign(&Foreign { file: Arc::new(file), offset }, size, call)?;
        state.memory.regions.insert(ptr, Region { size, phys, kind: RegionKind::Foreign });
        Ok(DevicePtr(ptr))
    }

    /// Unmaps what [`SoftDevice::open_shared`] mapped. Waits for the device.
    pub fn close_shared(&self, ptr: DevicePtr) -> DriverResult<()> {
        self.free(CallKind::FreePlain, ptr, RegionKind::Foreign)
    }

    /// Memory that nobody uses, as [`memory_info`](crate::driver::Driver::memory_info) says; but looking costs no time.
    pub fn free_bytes(&self) -> u64 {
        let memory = &self.state.lock().memory;
        memory.rules.capacity - memory.used
    }

    /// How much virtual memory is in use.
    pub fn usage(&self) -> Usage {
        let state = self.state.lock();
        let memory = &state.memory;
        let own = || memory.chunks.values().filter(|chunk| chunk.foreign.is_none());
        let mapped = || memory.regions.values().filter(|region| matches!(region.kind, RegionKind::Mapped { .. }));
        Usage {
            chunks: own().count() as u64,
            chunk_bytes: own().map(|chunk| chunk.size).sum(),
            mappings: mapped().count() as u64,
            mapped_bytes: mapped().map(|region| region.size).sum(),
            reservations: memory.reservations.len() as u64,
            reserved_bytes: memory.reservations.values().map(|reservation| reservation.size).sum(),
        }
    }

    // ---- chunks -------------------------------------------------------------------------------------------------------

    /// What is known of a chunk that has a handle or a mapping.
    pub fn chunk_info(&self, chunk: ChunkHandle) -> Option<ChunkInfo> {
        let state = self.state.lock();
        let Chunk { size, location, handles, mappings, ref foreign, .. } = *state.memory.chunks.get(&chunk.0)?;
        Some(ChunkInfo { size, location, handles, mappings, foreign: foreign.is_some() })
    }

    /// The chunk that is mapped at an address, and where in it the address lies.
    pub fn chunk_at(&self, ptr: DevicePtr) -> Option<(ChunkHandle, u64)> {
        let state = self.state.lock();
        let (start, region) = state.memory.overlapping(ptr.0, ptr.0.checked_add(1)?).next()?;
        let RegionKind::Mapped { chunk, .. } = region.kind else { return None };
        let base = state.memory.chunks.get(&chunk).map_or(region.phys, |chunk| chunk.phys);
        Some((ChunkHandle(chunk), region.phys - base + (ptr.0 - start)))
    }

    /// The mapping at an address: where it begins, its size, and whether it has access.
    pub fn mapping_at(&self, ptr: DevicePtr) -> Option<(DevicePtr, u64, bool)> {
        let state = self.state.lock();
        let (start, region) = state.memory.overlapping(ptr.0, ptr.0.checked_add(1)?).next()?;
        match region.kind {
            RegionKind::Mapped { access, .. } => Some((DevicePtr(start), region.size, access)),
            _ => None,
        }
    }

    /// One more handle to a chunk, to be released like the first (`cuMemRetainAllocationHandle`).
    pub fn retain_chunk(&self, chunk: ChunkHandle) -> DriverResult<()> {
        let mut state = self.enter(Call::new(CallKind::Create).args(chunk.0, 1))?;
        state.memory.retain(chunk, "cuMemRetainAllocationHandle")
    }

    /// A chunk of what a descriptor from [`export`](crate::driver::Driver::export) stands for, of this or another device or
    /// process (`cuMemImportFromShareableHandle`). It counts against no capacity but its owner's. The descriptor stays open.
    pub fn import_chunk(&self, descriptor: BorrowedFd<'_>, location: Location) -> DriverResult<ChunkHandle> {
        let call = "cuMemImportFromShareableHandle";
        let mut state = self.enter(Call::new(CallKind::Create).args(0, 2))?;
        state.memory.check_vmm(call)?;
        let (foreign, size) = Store::import(descriptor.as_fd(), call)?;
        let phys = state.memory.fresh_phys(size, call)?;
        let serial = state.memory.serial();
        let chunk = Chunk { size, phys, location, handles: 1, mappings: 0, foreign: Some(foreign), exported: true };
        state.memory.chunks.insert(serial, chunk);
        Ok(ChunkHandle(serial))
    }
}
