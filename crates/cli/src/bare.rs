//! A device whose calls do nothing: to time the allocator and not the software device, whose bookkeeping a call would come on top.
//!
//! Addresses, properties and streams are those of the device behind it. Creating, mapping and releasing always succeed (the allocator's own limit bounds
//! them, so that it decides as on the software device), and every event is complete at once.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use stratalloc::driver::kernels::Quant;
use stratalloc::driver::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverResult, EventId, EventStatus, HostPtr,
    Location, MemoryInfo,
};
use stratalloc::units::{DevicePtr, StreamId};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct BareDriver {
    inner: Arc<dyn Driver>,
    next: AtomicU64,
}

impl BareDriver {
    pub(crate) fn new(inner: Arc<dyn Driver>) -> BareDriver {
        BareDriver { inner, next: AtomicU64::new(1) }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }
}

impl Driver for BareDriver {
    fn properties(&self) -> &DeviceProperties {
        self.inner.properties()
    }
    fn memory_info(&self) -> DriverResult<MemoryInfo> {
        self.inner.memory_info()
    }
    fn clock_ns(&self) -> u64 {
        0
    }
    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr> {
        self.inner.reserve(size, alignment)
    }
    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        self.inner.unreserve(ptr, size)
    }
    fn create(&self, _size: u64, _location: Location) -> DriverResult<ChunkHandle> {
        // All alike: nobody looks.
        Ok(ChunkHandle(1))
    }
    fn release(&self, _chunk: ChunkHandle) -> DriverResult<()> {
        Ok(())
    }
    fn map(&self, _ptr: DevicePtr, _size: u64, _chunk: ChunkHandle, _offset: u64) -> DriverResult<()> {
        Ok(())
    }
    fn unmap(&self, _ptr: DevicePtr, _size: u64) -> DriverResult<()> {
        Ok(())
    }
    fn set_access(&self, _ptr: DevicePtr, _size: u64) -> DriverResult<()> {
        Ok(())
    }
    fn export(&self, chunk: ChunkHandle) -> DriverResult<OwnedFd> {
        self.inner.export(chunk)
    }
    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr> {
        self.inner.alloc_plain(size)
    }
    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()> {
        self.inner.free_plain(ptr)
    }
    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr> {
        self.inner.alloc_host(size)
    }
    fn free_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.inner.free_host(ptr)
    }
    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()> {
        self.inner.pin_host(ptr, size)
    }
    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()> {
        self.inner.unpin_host(ptr)
    }
    fn create_stream(&self) -> DriverResult<StreamId> {
        self.inner.create_stream()
    }
    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()> {
        self.inner.destroy_stream(stream)
    }
    fn synchronize_stream(&self, _stream: StreamId) -> DriverResult<()> {
        Ok(())
    }
    fn synchronize_device(&self) -> DriverResult<()> {
        Ok(())
    }
    fn create_event(&self) -> DriverResult<EventId> {
        Ok(EventId(self.number()))
    }
    fn destroy_event(&self, _event: EventId) -> DriverResult<()> {
        Ok(())
    }
    fn record_event(&self, _event: EventId, _stream: StreamId) -> DriverResult<()> {
        Ok(())
    }
    fn query_event(&self, _event: EventId) -> DriverResult<EventStatus> {
        Ok(EventStatus::Complete)
    }
    fn wait_event(&self, _stream: StreamId, _event: EventId) -> DriverResult<()> {
        Ok(())
    }
    fn synchronize_event(&self, _event: EventId) -> DriverResult<()> {
        Ok(())
    }
    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus> {
        self.inner.capture_status(stream)
    }
    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.inner.copy(ops, stream)
    }
    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()> {
        self.inner.fill(ptr, size, byte, stream)
    }
    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        self.inner.copy_blocks(ops, stream)
    }
    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()> {
        self.inner.fill_words(ptr, size, pattern, stream)
    }
    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.inner.check_words(ptr, size, pattern, result, stream)
    }
    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()> {
        self.inner.checksum(ptr, size, result, stream)
    }
    fn quantize(&self, src: DevicePtr, dst: DevicePtr, size: u64, quant: Quant, stream: StreamId) -> DriverResult<()> {
        self.inner.quantize(src, dst, size, quant, stream)
    }

    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        self.inner.dequantize(src, dst, size, quant, stream)
    }

    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()> {
        self.inner.write(dst, src, stream)
    }
    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()> {
        self.inner.read(dst, src, stream)
    }
}
