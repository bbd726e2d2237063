//! [`Driver`] for [`CudaDriver`]: each method makes the context current and makes one driver call.
//!
//! Two facts make every call here sound, and the SAFETY comments name them. **Local**: a pointer that the driver writes
//! or reads during the call is a local variable. **Handle**: a handle or device address is a number to us; the driver
//! checks it, and the trait's contract is that it is one the driver gave out.

use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE,
    CUevent, CUevent_flags, CUmemAllocationHandleType, CUmemcpyAttributes, CUmemcpySrcAccessOrder, CUstream,
    CUstream_flags, CUstreamCaptureStatus,
};

use super::CudaDriver;
use crate::driver::kernels::{self, COPIES_A_LAUNCH};
use crate::driver::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverError, DriverErrorKind, DriverResult, EventId,
    EventStatus, HostPtr, Location, MemoryInfo,
};
use crate::units::{DevicePtr, StreamId};

fn raw_stream(stream: StreamId) -> CUstream {
    stream.0 as usize as CUstream
}

fn raw_event(event: EventId) -> CUevent {
    event.0 as usize as CUevent
}

impl Driver for CudaDriver {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn memory_info(&self) -> DriverResult<MemoryInfo> {
        let _current = self.current()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: Local.
        unsafe { self.table.cuMemGetInfo_v2(&mut free, &mut total) }?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    fn clock_ns(&self) -> u64 {
        self.opened.elapsed().as_nanos() as u64
    }

    fn reserve(&self, size: u64, alignment: u64) -> DriverResult<DevicePtr> {
        let _current = self.current()?;
        let mut ptr = 0;
        // SAFETY: Local.
        unsafe { self.table.cuMemAddressReserve(&mut ptr, size as usize, alignment as usize, 0, 0) }?;
        Ok(DevicePtr(ptr))
    }

    fn unreserve(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuMemAddressFree(ptr.0, size as usize) }
    }

    fn create(&self, size: u64, location: Location) -> DriverResult<ChunkHandle> {
        let _current = self.current()?;
        let prop = self.allocation_prop(location)?;
        let mut handle = 0;
        // SAFETY: Local.
        unsafe { self.table.cuMemCreate(&mut handle, size as usize, &prop, 0) }?;
        Ok(ChunkHandle(handle))
    }

    fn release(&self, chunk: ChunkHandle) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuMemRelease(chunk.0) }
    }

    fn map(&self, ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuMemMap(ptr.0, size as usize, offset as usize, chunk.0, 0) }
    }

    fn unmap(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuMemUnmap(ptr.0, size as usize) }
    }

    fn set_access(&self, ptr: DevicePtr, size: u64) -> DriverResult<()> {
        let _current = self.current()?;
        let access = self.own_access();
        // SAFETY: Local, Handle; `access` is the one descriptor that the count announces.
        unsafe { self.table.cuMemSetAccess(ptr.0, size as usize, &access, 1) }
    }

    /// Only chunks in device memory can be exported, and only where the device supports file descriptors.
    fn export(&self, chunk: ChunkHandle) -> DriverResult<OwnedFd> {
        let _current = self.current()?;
        let mut fd: c_int = -1;
        let shareable = ptr::from_mut(&mut fd).cast::<c_void>();
        let kind = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR.0;
        // SAFETY: Local, Handle; for this kind of shareable handle the driver writes an `int`.
        unsafe { self.table.cuMemExportToShareableHandle(shareable, chunk.0, kind, 0) }?;
        if fd < 0 {
            let detail = "the driver returned no file descriptor";
            return Err(DriverError::new(DriverErrorKind::Other, "cuMemExportToShareableHandle", detail));
        }
        // SAFETY: the driver opened this descriptor for us, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn alloc_plain(&self, size: u64) -> DriverResult<DevicePtr> {
        let _guards = self.relaxed()?;
        let mut ptr = 0;
        // SAFETY: Local.
        unsafe { self.table.cuMemAlloc_v2(&mut ptr, size as usize) }?;
        Ok(DevicePtr(ptr))
    }

    fn free_plain(&self, ptr: DevicePtr) -> DriverResult<()> {
        let _guards = self.relaxed()?;
        // SAFETY: Handle.
        unsafe { self.table.cuMemFree_v2(ptr.0) }
    }

    fn alloc_host(&self, size: u64) -> DriverResult<HostPtr> {
        let _guards = self.relaxed()?;
        let mut ptr: *mut c_void = ptr::null_mut();
        let flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: Local.
        unsafe { self.table.cuMemHostAlloc(&mut ptr, size as usize, flags) }?;
        Ok(HostPtr(ptr as usize))
    }

    fn free_host(&self, ptr: HostPtr) -> DriverResult<()> {
        let _guards = self.relaxed()?;
        // SAFETY: Handle: an address that the driver does not know is an error, not a read.
        unsafe { self.table.cuMemFreeHost(ptr.0 as *mut c_void) }
    }

    fn pin_host(&self, ptr: HostPtr, size: u64) -> DriverResult<()> {
        let _guards = self.relaxed()?;
        let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the driver pins what is mapped there, and reports an address that is not mapped; it reads nothing.
        unsafe { self.table.cuMemHostRegister_v2(ptr.0 as *mut c_void, size as usize, flags) }
    }

    fn unpin_host(&self, ptr: HostPtr) -> DriverResult<()> {
        let _guards = self.relaxed()?;
        // SAFETY: Handle: an address that the driver does not know is an error, not a read.
        unsafe { self.table.cuMemHostUnregister(ptr.0 as *mut c_void) }
    }

    fn create_stream(&self) -> DriverResult<StreamId> {
        let _current = self.current()?;
        let mut stream: CUstream = ptr::null_mut();
        // SAFETY: Local.
        unsafe { self.table.cuStreamCreate(&mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) }?;
        Ok(StreamId(stream as u64))
    }

    fn destroy_stream(&self, stream: StreamId) -> DriverResult<()> {
        if stream == StreamId::DEFAULT {
            return Err(default_stream("cuStreamDestroy"));
        }
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuStreamDestroy_v2(raw_stream(stream)) }
    }

    fn synchronize_stream(&self, stream: StreamId) -> DriverResult<()> {
        let _guards = self.relaxed()?;
        // SAFETY: Handle.
        unsafe { self.table.cuStreamSynchronize(raw_stream(stream)) }
    }

    fn synchronize_device(&self) -> DriverResult<()> {
        if self.context.get().is_none() {
            // Nothing was ever done on the device through this driver, so there is nothing of its to wait for.
            return Ok(());
        }
        let _guards = self.relaxed()?;
        // SAFETY: the call takes no arguments.
        unsafe { self.table.cuCtxSynchronize() }
    }

    fn create_event(&self) -> DriverResult<EventId> {
        let _current = self.current()?;
        let mut event: CUevent = ptr::null_mut();
        // SAFETY: Local.
        unsafe { self.table.cuEventCreate(&mut event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) }?;
        Ok(EventId(event as u64))
    }

    fn destroy_event(&self, event: EventId) -> DriverResult<()> {
        let event = known_event("cuEventDestroy", event)?;
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuEventDestroy_v2(event) }
    }

    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()> {
        let event = known_event("cuEventRecord", event)?;
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuEventRecord(event, raw_stream(stream)) }
    }

    fn query_event(&self, event: EventId) -> DriverResult<EventStatus> {
        let event = known_event("cuEventQuery", event)?;
        let _guards = self.relaxed()?;
        // SAFETY: Handle.
        match unsafe { self.table.query_event(event) } {
            Ok(true) => Ok(EventStatus::Complete),
            Ok(false) => Ok(EventStatus::Pending),
            Err(error) => Err(error),
        }
    }

    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()> {
        let event = known_event("cuStreamWaitEvent", event)?;
        let _current = self.current()?;
        // SAFETY: Handle.
        unsafe { self.table.cuStreamWaitEvent(raw_stream(stream), event, 0) }
    }

    fn synchronize_event(&self, event: EventId) -> DriverResult<()> {
        let event = known_event("cuEventSynchronize", event)?;
        let _guards = self.relaxed()?;
        // SAFETY: Handle.
        unsafe { self.table.cuEventSynchronize(event) }
    }

    /// A driver that cannot tell one capture from another (before CUDA 11.3) gives all the id 0.
    fn capture_status(&self, stream: StreamId) -> DriverResult<CaptureStatus> {
        const ACTIVE: u32 = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE as u32;
        const NONE: u32 = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as u32;
        let _current = self.current()?;
        let stream = raw_stream(stream);
        let (mut status, mut id) = (0, 0);
        if self.table.has_capture_info() {
            let (graph, dependencies, count) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
            // SAFETY: Local, Handle; the last three may be null, and are then not written.
            unsafe { self.table.cuStreamGetCaptureInfo_v2(stream, &mut status, &mut id, graph, dependencies, count) }?;
        } else {
            // SAFETY: Local, Handle.
            unsafe { self.table.cuStreamIsCapturing(stream, &mut status) }?;
        }
        Ok(match status {
            NONE => CaptureStatus::None,
            ACTIVE => CaptureStatus::Active(id),
            _ => CaptureStatus::Invalidated,
        })
    }

    /// A batch is one call where the driver has it. A failure in the midst of single copies leaves the earlier ones submitted.
    fn copy(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        let _current = self.current()?;
        if self.takes_batch(ops, stream)? {
            match self.copy_batch(ops, stream) {
                Err(error) if error.kind == DriverErrorKind::NotSupported => {}
                result => return result,
            }
        }
        for op in ops {
            // SAFETY: Handle; the caller keeps both ranges until the stream has passed the copy.
            unsafe { self.table.cuMemcpyAsync(op.dst.0, op.src.0, op.size as usize, raw_stream(stream)) }?;
        }
        Ok(())
    }

    fn fill(&self, ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()> {
        let _current = self.current()?;
        // SAFETY: Handle; the caller keeps the range until the stream has passed the call.
        unsafe { self.table.cuMemsetD8Async(ptr.0, byte, size as usize, raw_stream(stream)) }
    }

    fn copy_blocks(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        for ops in ops.chunks(COPIES_A_LAUNCH) {
            match self.launch(&kernels::Call::CopyBlocks(ops.to_vec()), raw_stream(stream)) {
                Err(error) if error.kind == DriverErrorKind::NotSupported => self.copy(ops, stream)?,
                result => result?,
            }
        }
        Ok(())
    }

    fn fill_words(&self, ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()> {
        self.launch(&kernels::Call::FillWords { ptr, size, pattern }, raw_stream(stream))
    }

    fn check_words(
        &self,
        ptr: DevicePtr,
        size: u64,
        pattern: u32,
        result: HostPtr,
        stream: StreamId,
    ) -> DriverResult<()> {
        let result = DevicePtr(result.0 as u64);
        self.launch(&kernels::Call::CheckWords { ptr, size, pattern, result }, raw_stream(stream))
    }

    fn checksum(&self, ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()> {
        let result = DevicePtr(result.0 as u64);
        self.launch(&kernels::Call::Checksum { ptr, size, result }, raw_stream(stream))
    }

    fn quantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: kernels::Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        let requant = kernels::Requant { src, dst, size, format: quant.format() };
        self.launch(&kernels::Call::Quantize(requant), raw_stream(stream))
    }

    fn dequantize(
        &self,
        src: DevicePtr,
        dst: DevicePtr,
        size: u64,
        quant: kernels::Quant,
        stream: StreamId,
    ) -> DriverResult<()> {
        let requant = kernels::Requant { src, dst, size, format: quant.format() };
        self.launch(&kernels::Call::Dequantize(requant), raw_stream(stream))
    }

    /// Not possible on a stream that is being captured: the graph would keep the address of `src`.
    fn write(&self, dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()> {
        self.refuse_capture("cuMemcpyHtoDAsync", stream)?;
        let _guards = self.relaxed()?;
        let stream = raw_stream(stream);
        // SAFETY: `src` is borrowed until the synchronisation below, after which the driver no longer reads it.
        unsafe {
            self.table.cuMemcpyHtoDAsync_v2(dst.0, src.as_ptr().cast(), src.len(), stream)?;
            self.table.cuStreamSynchronize(stream)
        }
    }

    /// Not possible on a stream that is being captured: the graph would keep the address of `dst`.
    fn read(&self, dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()> {
        self.refuse_capture("cuMemcpyDtoHAsync", stream)?;
        let _guards = self.relaxed()?;
        let stream = raw_stream(stream);
        // SAFETY: `dst` is borrowed until the synchronisation below, after which the driver no longer writes it.
        unsafe {
            self.table.cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src.0, dst.len(), stream)?;
            self.table.cuStreamSynchronize(stream)
        }
    }
}

impl CudaDriver {
    /// Whether `ops` may go as one call: the driver refuses batches on the default stream and in captures.
    fn takes_batch(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<bool> {
        Ok(ops.len() > 1
            && stream != StreamId::DEFAULT
            && self.table.has_batch_copy()
            && self.capture_status(stream)? == CaptureStatus::None)
    }

    fn copy_batch(&self, ops: &[CopyOp], stream: StreamId) -> DriverResult<()> {
        // A batch may not hold empty copies.
        let ops = || ops.iter().filter(|op| op.size > 0);
        let mut dsts: Vec<u64> = ops().map(|op| op.dst.0).collect();
        let mut srcs: Vec<u64> = ops().map(|op| op.src.0).collect();
        let mut sizes: Vec<usize> = ops().map(|op| op.size as usize).collect();
        let count = sizes.len();
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the structure is plain C data, for which all zeros are valid: its enums have a member of value 0.
        let mut attributes: CUmemcpyAttributes = unsafe { std::mem::zeroed() };
        attributes.srcAccessOrder = CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
        let (attributes, mut first) = (&mut attributes, 0usize);
        let (dsts, srcs, sizes) = (dsts.as_mut_ptr(), srcs.as_mut_ptr(), sizes.as_mut_ptr());
        let stream = raw_stream(stream);
        // SAFETY: Local, Handle: three arrays of `count`, one attribute that holds from the first copy on; the driver copies
        // them before it returns. The caller keeps all ranges until the stream has passed the copies.
        unsafe {
            if self.table.has_batch_copy_v2() {
                self.table.cuMemcpyBatchAsync_v2(dsts, srcs, sizes, count, attributes, &mut first, 1, stream)
            } else {
                let mut failed = 0usize;
                let failed = &mut failed;
                self.table.cuMemcpyBatchAsync(dsts, srcs, sizes, count, attributes, &mut first, 1, failed, stream)
            }
        }
    }

    fn refuse_capture(&self, call: &'static str, stream: StreamId) -> DriverResult<()> {
        match self.capture_status(stream)? {
            CaptureStatus::None => Ok(()),
            _ => Err(DriverError::new(DriverErrorKind::Capturing, call, format!("{stream} is being captured"))),
        }
    }
}

/// The event's handle, unless it is null.
fn known_event(call: &'static str, event: EventId) -> DriverResult<CUevent> {
    match event {
        EventId(0) => Err(DriverError::new(DriverErrorKind::InvalidHandle, call, "event 0 does not exist")),
        event => Ok(raw_event(event)),
    }
}

#[cold]
fn default_stream(call: &'static str) -> DriverError {
    DriverError::new(DriverErrorKind::InvalidHandle, call, "the default stream is not ours to destroy")
}
