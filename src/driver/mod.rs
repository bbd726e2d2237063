//! What the allocator asks of a device: one method a driver call, no policy.
//!
//! Three drivers implement [`Driver`]: `cuda::CudaDriver` over the real one, [`soft::SoftDevice`] in host memory with a
//! happens-before checker, and the adaptors [`fault::FaultDriver`], which makes calls fail, and [`metered::Metered`], which
//! counts and times them. One contract suite (`tests/driver_contract.rs`) holds for all.
//!
//! All methods may be called from any thread. A method that fails has changed nothing.

pub mod call;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod fault;
pub mod kernels;
pub mod metered;
pub(crate) mod rng;
pub mod soft;

pub use crate::error::{DriverError, DriverErrorKind};
use crate::units::{DevicePtr, StreamId};

/// What a driver call returns.
pub type DriverResult<T> = Result<T, DriverError>;

/// One physical allocation (`CUmemGenericAllocationHandle`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkHandle(pub u64);

/// An event (`CUevent` as a number), created without timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u64);

/// Pinned host memory, reachable from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostPtr(pub usize);

/// Where physical memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Location {
    /// In the memory of this driver's device.
    Device,
    /// In host memory, pinned.
    Host,
    /// In the memory of another device, by the driver's ordinal.
    Peer(u32),
}

/// Whether the work before an event has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum EventStatus {
    /// All work recorded before the event is done.
    Complete,
    /// Some is not.
    Pending,
}

/// Whether a stream is being captured into a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureStatus {
    /// Work is executed.
    None,
    /// Work is recorded into the graph with this id.
    Active(u64),
    /// The capture has been invalidated by an unsafe call.
    Invalidated,
}

/// Device and free memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anyone.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// What a device is and can do. Read once, when the driver is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProperties {
    /// The device's name.
    pub name: String,
    /// The driver's ordinal.
    pub ordinal: u32,
    /// Memory in bytes.
    pub total_memory: u64,
    /// The driver's version as CUDA counts it, 12080 for 12.8. 0 for the software device.
    pub driver_version: u32,
    /// Virtual memory management: reserve, create, map.
    pub vmm: bool,
    /// The unit of chunk sizes and mapping addresses, in bytes. A power of two.
    pub granularity: u64,
    /// Whether a part of a chunk may be mapped or unmapped. Where not, a chunk is mapped whole, at offset 0.
    pub partial_mapping: bool,
    /// The host's NUMA node nearest to the device, where that is known.
    pub host_node: Option<u32>,
    /// Whether this is a software device.
    pub software: bool,
}

/// One copy of a batch: `size` bytes from `src` to `dst`. Either may be device memory or pinned host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOp {
    /// Where the bytes go.
    pub dst: DevicePtr,
    /// Where the bytes come from.
    pub src: DevicePtr,
    /// How many bytes.
    pub size: u64,
}

/// What the allocator asks of one device. Methods that take a stream are stream-ordered and return at once.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// What the device is and can do.
    fn properties(&self) -> &DeviceProperties;

    /// Free and total memory (`cuMemGetInfo`).
    fn memory_info(&self) -> DriverResult<MemoryInfo>;

    /// Time on the clock that this driver's calls take time from, in nanoseconds: real for CUDA, virtual for the software device.
    fn clock_ns(&self) -> u64;

    // ---- virtual memory -------------------------------------------------------------------------------------------

    /// Reserves `size` bytes of address space (`cuMemAddressReserve`). `size` and `alignment` are multiples of the granularity,
    /// `alignment` a power of two. Nothing is mapped there.
    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr>;

    /// Gives back a whole reservation (`cuMemAddressFree`) in which nothing is mapped.
    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()>;

    /// Creates a chunk of physical memory (`cuMemCreate`). `size` is a multiple of the granularity.
    fn create(&self, size: u64, location: Location) -> DriverResult<ChunkHandle>;

    /// Gives a chunk up (`cuMemRelease`). Its memory is free once no mapping of it is left.
    fn release(&self, chunk: ChunkHandle) -> DriverResult<()>;

    /// Maps `size` bytes of `chunk` from `offset` on at `ptr` (`cuMemMap`), inside a reservation, where nothing is mapped.
    /// The range may not be touched before [`Driver::set_access`]. A chunk may be mapped at several addresses.
    fn map(&self, ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()>;

    /// Unmaps `size` bytes at `ptr` (`cuMemUnmap`): whole mappings, one or several adjacent ones. No unfinished work may touch the range.
    ///
    /// Where a part of the range is not mapped, or only a part of a mapping is named, nothing may be relied on: some drivers refuse, and some say
    /// that all is well. What is mapped where is the caller's to know. A reservation in which nothing is mapped stays usable either way.
    fn unmap(&self, ptr: DevicePtr, size: u64) -> DriverResult<()>;

    /// Lets this device read and write `size` mapped bytes at `ptr` (`cuMemSetAccess`); one call may span several mappings. Fails where nothing
    /// is mapped.
    fn set_access(&self, ptr: DevicePtr, size: u64) -> DriverResult<()>;

    /// A file descriptor for sharing a chunk with another process (`cuMemExportToShareableHandle`).
    fn export(&self, chunk: ChunkHandle) -> DriverResult<std::os::fd::OwnedFd>;

    // ---- plain memory, where virtual memory management is missing ---------------------------------------------------

    /// Allocates device memory (`cuMemAlloc`), aligned to at least 512 bytes.
    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr>;

    /// Frees memory from [`Driver::alloc_plain`] (`cuMemFree`). Waits for the device.
    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()>;

    /// Allocates pinned host memory (`cuMemHostAlloc`).
    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr>;

    /// Frees memory from [`Driver::alloc_host`]. Waits for the work that uses it.
    fn free_host(&self, ptr: HostPtr) -> DriverResult<()>;

    /// Pins `size` bytes of the program's own host memory at `ptr` (`cuMemHostRegister`), so that copies reach them by their address. Both
    /// are multiples of the host's pages, nothing of the range is pinned yet, and a copy does not leave what one call has pinned.
    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()>;

    /// Ends what [`Driver::pin_host`] began, by its first address. Waits for the work that uses it.
    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()>;

    // ---- streams and events ---------------------------------------------------------------------------------------

    /// Creates a stream that does not synchronise with the default stream.
    fn create_stream(&self) -> DriverResult<StreamId>;

    /// Destroys a stream. Its work goes on to its end.
    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()>;

    /// Waits until all work submitted to `stream` is done.
    fn synchronize_stream(&self, stream: StreamId) -> DriverResult<()>;

    /// Waits until all work submitted to the device is done.
    fn synchronize_device(&self) -> DriverResult<()>;

    /// Creates an event without timing.
    fn create_event(&self) -> DriverResult<EventId>;

    /// Destroys an event.
    fn destroy_event(&self, event: EventId) -> DriverResult<()>;

    /// Makes `event` stand for all work submitted to `stream` so far (`cuEventRecord`).
    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()>;

    /// Whether the work that `event` stands for is done (`cuEventQuery`). An event never recorded is complete.
    fn query_event(&self, event: EventId) -> DriverResult<EventStatus>;

    /// Makes later work of `stream` wait for `event` (`cuStreamWaitEvent`).
    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()>;

    /// Waits, on the host, until the work that `event` stands for is done.
    fn synchronize_event(&self, event: EventId) -> DriverResult<()>;

    /// Whether `stream` is being captured.
    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus>;

    // ---- data ------------------------------------------------------------------------------------------------------

    /// Copies a batch in stream order (`cuMemcpyAsync`, or one batched call where the driver has it). The copies of a batch may run in any order.
    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()>;

    /// Fills `size` bytes at `ptr` with `byte` in stream order (`cuMemsetD8Async`).
    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()>;

    // ---- kernels -----------------------------------------------------------------------------------------------------
    //
    // The library's own, in `kernels/`. They return at once. What they write to `result`, 8-byte aligned pinned memory, may be read when
    // the stream has passed them; until then the memory is theirs. Where there is no code for the device, they are `NotSupported`.

    /// Copies a batch in stream order, like [`Driver::copy`], with kernels: one launch for every
    /// [`COPIES_A_LAUNCH`](kernels::COPIES_A_LAUNCH). Better for many small pieces; no two of a batch may overlap. Where there are no
    /// kernels, this is [`Driver::copy`].
    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()>;

    /// Fills `size` bytes at `ptr` with a pattern in stream order: byte k of the range becomes byte k % 4 of `pattern`, the lowest first.
    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()>;

    /// Compares `size` bytes at `ptr` with what [`Driver::fill_words`] would write, in stream order, and adds what differs to the
    /// [`Finding`](kernels::Finding) at `result`.
    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()>;

    /// Adds [`kernels::checksum`] of `size` bytes at `ptr` to the `u64` at `result`, in stream order.
    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()>;

    /// Makes codes of `size` bytes of numbers at `src`, in stream order: what [`kernels::quantize`] makes, to the bit. There is room for
    /// [`Quant::encoded_size`](kernels::Quant::encoded_size) at `dst`. Both are multiples of 16.
    fn quantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: kernels::Quant,
        stream: StreamId,
    ) -> DriverResult<()>;

    /// Makes `size` bytes of numbers at `dst` of the codes at `src`, in stream order, as [`kernels::dequantize`] does. Whether they are
    /// codes is not looked at. Both are multiples of 16.
    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: kernels::Quant,
        stream: StreamId,
    ) -> DriverResult<()>;

    // ---- data by the host ----------------------------------------------------------------------------------------------

    /// Copies pinned or pageable host bytes to the device in stream order; returns when `src` has been read.
    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()>;

    /// Copies device bytes to the host in stream order; returns when `dst` has been written.
    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()>;
}
