//! `cuMemAllocAsync` and `cuMemFreeAsync`: memory in the order of a stream.
//!
//! A block is served for its stream, and its free takes effect in that stream's order. A free on another stream takes effect when both have got
//! there: that of the free, and the home stream, whose lane it goes to. Passed on to the driver are requests
//! * on the per-thread stream, whose handle means another stream in each thread,
//! * on streams of contexts other than the primary one,
//! * on streams under capture, where the allocation becomes a node of the graph,
//! * from a pool of the program's own choice.

use std::ffi::c_int;
use std::sync::Arc;

use stratalloc::{DevicePtr, StreamId};

use super::plain::{self, Served, serve};
use super::{accounted, stream_number, written};
use crate::abi::*;
use crate::device::{Device, current_context, current_ordinal};
use crate::ledger::{Kind, Object};
use crate::state::{Home, Shim, trace_stream};

/// Which of the two meanings a null stream has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Null {
    Legacy,
    PerThread,
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc(shim: &'static Shim, ptr: *mut CUdeviceptr, size: usize, stream: Opaque) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { alloc_on(shim, ptr, size, stream, Null::Legacy, None, || shim.driver.cuMemAllocAsync(ptr, size, stream)) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc_ptsz(shim: &'static Shim, ptr: *mut CUdeviceptr, size: usize, stream: Opaque) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        alloc_on(shim, ptr, size, stream, Null::PerThread, None, || shim.driver.cuMemAllocAsync_ptsz(ptr, size, stream))
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc_from_pool(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    size: usize,
    pool: Opaque,
    stream: Opaque,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        alloc_on(shim, ptr, size, stream, Null::Legacy, Some(pool), || {
            shim.driver.cuMemAllocFromPoolAsync(ptr, size, pool, stream)
        })
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc_from_pool_ptsz(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    size: usize,
    pool: Opaque,
    stream: Opaque,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        alloc_on(shim, ptr, size, stream, Null::PerThread, Some(pool), || {
            shim.driver.cuMemAllocFromPoolAsync_ptsz(ptr, size, pool, stream)
        })
    }
}

/// # Safety
/// As for the C function.
unsafe fn alloc_on(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    size: usize,
    stream: Opaque,
    null: Null,
    pool: Option<Opaque>,
    real: impl Fn() -> Status,
) -> Status {
    if ptr.is_null() || size == 0 {
        return real();
    }
    let capturing = is_capturing(shim, stream, null);
    if !capturing
        && let Some(device) = device_of(shim, stream, null)
        && takes_from_default_pool(shim, &device, pool)
        && let Served::At(block) = serve(shim, &device, size as u64, Home::Stream(stream_number(stream)))
    {
        // SAFETY: not null, and the program's to be written.
        unsafe { *ptr = block };
        return SUCCESS;
    }
    if capturing {
        // A node of a graph, whose memory is the graph's: see `graph`.
        return super::graph::captured_alloc(shim, size as u64, real);
    }
    let Some(ordinal) = current_ordinal(shim.driver) else { return real() };
    accounted(shim, Kind::Pooled, size as u64, &real, || {
        // SAFETY: the driver has written there.
        let at = unsafe { written(ptr) }?;
        if let Some(recorder) = shim.recorder() {
            recorder.alloc(at, size as u64, trace_stream(ordinal, Home::Stream(stream_number(stream))));
        }
        Some(Object::Pointer(at))
    })
}

/// Whether a stream is being captured. Where the driver refuses to say, it is: the legacy stream beside a global capture.
fn is_capturing(shim: &Shim, stream: Opaque, null: Null) -> bool {
    let mut status: c_int = 0;
    // SAFETY: the pointer is to a local, the stream is the program's own argument.
    let code = unsafe {
        match null {
            Null::Legacy => shim.driver.cuStreamIsCapturing(stream, &mut status),
            Null::PerThread if shim.driver.cuStreamIsCapturing_ptsz.is_some() => {
                shim.driver.cuStreamIsCapturing_ptsz(stream, &mut status)
            }
            Null::PerThread => shim.driver.cuStreamIsCapturing(stream, &mut status),
        }
    };
    code != SUCCESS || status != 0
}

/// The device that serves a stream: none for per-thread streams, and for those of contexts other than a primary one.
fn device_of(shim: &'static Shim, stream: Opaque, null: Null) -> Option<Arc<Device>> {
    let context = match stream as usize {
        0 if null == Null::PerThread => return None,
        STREAM_PER_THREAD => return None,
        0 | STREAM_LEGACY => current_context(shim.driver),
        _ => {
            let mut context: Opaque = std::ptr::null_mut();
            // SAFETY: the pointer is to a local, the stream is the program's own argument.
            if unsafe { shim.driver.cuStreamGetCtx(stream, &mut context) } != SUCCESS {
                return None;
            }
            context
        }
    };
    shim.devices.of_context(shim, context)
}

/// Whether a request is for the default pool of a device, which the allocator stands in for.
fn takes_from_default_pool(shim: &Shim, device: &Device, pool: Option<Opaque>) -> bool {
    match pool {
        None => !device.uses_own_pool(),
        Some(pool) => super::pools::is_default_of(shim, device.ordinal, pool),
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn free(shim: &'static Shim, ptr: CUdeviceptr, stream: Opaque) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { free_on(shim, ptr, stream, Null::Legacy, || shim.driver.cuMemFreeAsync(ptr, stream)) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn free_ptsz(shim: &'static Shim, ptr: CUdeviceptr, stream: Opaque) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { free_on(shim, ptr, stream, Null::PerThread, || shim.driver.cuMemFreeAsync_ptsz(ptr, stream)) }
}

/// # Safety
/// As for the C function.
unsafe fn free_on(
    shim: &'static Shim,
    ptr: CUdeviceptr,
    stream: Opaque,
    null: Null,
    real: impl FnOnce() -> Status,
) -> Status {
    let Some(block) = shim.blocks.remove(ptr) else {
        // SAFETY: the program's own argument.
        return unsafe { plain::free_passed(shim, ptr, real) };
    };
    let Some(device) = shim.devices.of_ordinal(block.device) else { return INVALID_VALUE };
    if is_capturing(shim, stream, null) {
        // Such a free is of a graph's memory only, which a block is not: the driver says so.
        shim.blocks.restore(ptr, block);
        return real();
    }
    let number = stream_number(stream);
    if device_of(shim, stream, null).is_some_and(|other| other.ordinal == device.ordinal) {
        if block.home != Home::Stream(number) {
            if shim.blocks.note_stream(device.ordinal, number) {
                device.gate.revive(number);
            }
            if let Err(_refused) = device.allocator.record_stream(DevicePtr(ptr), StreamId(number)) {
                shim.blocks.restore(ptr, block);
                return OUT_OF_MEMORY;
            }
            if let Some(recorder) = shim.recorder() {
                recorder.record_stream(ptr, trace_stream(device.ordinal, Home::Stream(number)));
            }
        }
    } else {
        // A per-thread stream, or one of another context or device: the allocator cannot follow it, so it is waited for.
        // SAFETY: the stream is the program's own argument.
        let code = unsafe {
            match null {
                Null::PerThread if shim.driver.cuStreamSynchronize_ptsz.is_some() => {
                    shim.driver.cuStreamSynchronize_ptsz(stream)
                }
                _ => shim.driver.cuStreamSynchronize(stream),
            }
        };
        if code != SUCCESS {
            shim.blocks.restore(ptr, block);
            return code;
        }
    }
    if let Some(recorder) = shim.recorder() {
        recorder.free(ptr);
    }
    // It was taken out of the list of live blocks by us alone, so it is live for the allocator.
    let _ = device.allocator.raw_free(DevicePtr(ptr));
    SUCCESS
}
