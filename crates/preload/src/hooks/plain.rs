//! `cuMemAlloc` and `cuMemFree`: memory that any stream may use at once, and that is free only when no stream uses it.
//!
//! Blocks are served from a lane of their own, that of a stream on which no work is ever submitted but that of debug aids, which is waited
//! for. `cuMemFree` waits for the device before the block goes back, as the driver's own does, so whatever is free in that lane is done
//! with everywhere and may be handed out for any stream at once. Memory of other lanes gets there only after their streams have passed it. During a capture the device must not be waited
//! for: the block is set aside, and goes back with the first free after the capture.

use std::cell::Cell;
use std::ffi::c_uint;
use std::sync::Arc;

use stratalloc::driver::Driver as _;
use stratalloc::units::GRANULE;
use stratalloc::{AllocRequest, DevicePtr, Error};

use super::{accounted, callers, make_room, written};
use crate::abi::*;
use crate::device::{Device, current_context, current_ordinal, with_context};
use crate::ledger::{Kind, Object};
use crate::state::{Block, Home, Shim, trace_stream};

/// How a request went.
pub(super) enum Served {
    /// From the allocator.
    At(u64),
    /// There is no room.
    NoRoom,
    /// The driver is to answer.
    NotHere,
}

/// Serves a request from the allocator.
pub(super) fn serve(shim: &'static Shim, device: &Arc<Device>, size: u64, home: Home) -> Served {
    let stream = match home {
        Home::Plain => device.plain,
        Home::Stream(stream) => stratalloc::StreamId(stream),
    };
    let request = AllocRequest::new(size).stream(stream);
    let mut outcome = device.allocator.raw_alloc(request);
    if matches!(outcome, Err(Error::OutOfMemory(_))) && shim.captures.set_aside() > 0 {
        settle_aside(shim);
        outcome = device.allocator.raw_alloc(request);
    }
    match outcome {
        Ok(ptr) => {
            if home == Home::Plain && shim.settings.config.works_on_blocks() {
                // Any stream may use it now, and debug aids have worked on it in the order of this one. A failure shows in the program's
                // own next call.
                let _ = device.gate.synchronize_stream(device.plain);
            }
            if shim.blocks.insert(ptr.0, size, device.ordinal, home) {
                device.gate.revive(stream.0);
            }
            if let Some(recorder) = shim.recorder() {
                recorder.alloc(ptr.0, size, trace_stream(device.ordinal, home));
            }
            Served::At(ptr.0)
        }
        Err(Error::OutOfMemory(_) | Error::NeverFits { .. } | Error::OverLimit { .. }) => Served::NoRoom,
        Err(_) => Served::NotHere,
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc(shim: &'static Shim, ptr: *mut CUdeviceptr, size: usize) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { alloc_with(shim, ptr, size, || shim.driver.cuMemAlloc_v2(ptr, size)) }
}

/// Serves `size` bytes, or passes the request on as `real`.
///
/// # Safety
/// As for the C function.
unsafe fn alloc_with(shim: &'static Shim, ptr: *mut CUdeviceptr, size: usize, real: impl Fn() -> Status) -> Status {
    if ptr.is_null() || size == 0 {
        return real();
    }
    let device = shim.devices.of_context(shim, current_context(shim.driver));
    if let Some(device) = device.filter(|_| !callers::include_exporter(&shim.settings)) {
        match serve(shim, &device, size as u64, Home::Plain) {
            Served::At(block) => {
                // SAFETY: not null, and the program's to be written.
                unsafe { *ptr = block };
                return SUCCESS;
            }
            // The driver has the last word: it may have memory where the allocator finds none, in its own pools.
            Served::NoRoom | Served::NotHere => {}
        }
    }
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Plain, size as u64, real, || unsafe { written(ptr) }.map(|at| passed(shim, at, size as u64)))
}

/// Notes device memory that the driver has given for a request that was passed on.
fn passed(shim: &Shim, ptr: u64, size: u64) -> Object {
    if let Some(recorder) = shim.recorder() {
        let device = current_ordinal(shim.driver).unwrap_or(0);
        recorder.alloc(ptr, size, trace_stream(device, Home::Plain));
    }
    Object::Pointer(ptr)
}

/// The pitch that rows of `width` bytes get: as the driver's, a multiple of 512, so that rows start where the widest access may.
fn pitch_of(width: usize) -> Option<usize> {
    Some(width.checked_add(GRANULE as usize - 1)? & !(GRANULE as usize - 1))
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc_pitch(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: c_uint,
) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemAllocPitch_v2(ptr, pitch, width, height, element) };
    let own_pitch = pitch_of(width).filter(|_| matches!(element, 4 | 8 | 16) && width > 0 && height > 0);
    let size = own_pitch.and_then(|own| own.checked_mul(height));
    let (Some(own), Some(size), false) = (own_pitch, size, pitch.is_null()) else { return real() };
    let is_passed_on = Cell::new(false);
    let passing_on = || {
        is_passed_on.set(true);
        real()
    };
    // SAFETY: as above; `pitch` is not null.
    unsafe {
        let code = alloc_with(shim, ptr, size, passing_on);
        if code == SUCCESS && !is_passed_on.get() {
            *pitch = own;
        }
        code
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc_managed(shim: &'static Shim, ptr: *mut CUdeviceptr, size: usize, flags: c_uint) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemAllocManaged(ptr, size, flags) };
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Managed, size as u64, real, || unsafe { written(ptr) }.map(Object::Pointer))
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn free(shim: &'static Shim, ptr: CUdeviceptr) -> Status {
    let Some(block) = shim.blocks.remove(ptr) else {
        // SAFETY: the program's own argument.
        return unsafe { free_passed(shim, ptr, || shim.driver.cuMemFree_v2(ptr)) };
    };
    let code = release(shim, ptr, block);
    if code != SUCCESS {
        shim.blocks.restore(ptr, block);
    }
    code
}

/// Passes a free on, unless it would free what the allocator holds: where segments come from `cuMemAlloc`, a block that is freed twice may
/// bear a segment's address.
///
/// # Safety
/// As for the C function.
pub(super) unsafe fn free_passed(shim: &Shim, ptr: u64, real: impl FnOnce() -> Status) -> Status {
    if ptr != 0 && shim.devices.all().iter().any(|device| device.gate.owns(ptr)) {
        return INVALID_VALUE;
    }
    if let Some(recorder) = shim.recorder() {
        recorder.free(ptr);
    }
    shim.ledger.giving_back(Object::Pointer(ptr), real)
}

/// Gives a block back once the device is done with it.
fn release(shim: &'static Shim, ptr: u64, block: Block) -> Status {
    let Some(device) = shim.devices.of_ordinal(block.device) else { return INVALID_VALUE };
    if shim.captures.any() {
        // The device must not be waited for now. The block stays out of reach until it has been.
        note_free(shim, ptr);
        shim.captures.put_aside(ptr, block.device);
        return SUCCESS;
    }
    let code = quiesce(shim, &device);
    if CAPTURE_CODES.contains(&code) {
        note_free(shim, ptr);
        shim.captures.put_aside(ptr, block.device);
        return SUCCESS;
    }
    if code != SUCCESS {
        return code;
    }
    note_free(shim, ptr);
    give_back(&device, ptr);
    settle_quiet(shim, &device);
    SUCCESS
}

fn note_free(shim: &Shim, ptr: u64) {
    if let Some(recorder) = shim.recorder() {
        recorder.free(ptr);
    }
}

fn give_back(device: &Device, ptr: u64) {
    // It was taken out of the list of live blocks by us alone, so it is live for the allocator.
    let _ = device.allocator.raw_free(DevicePtr(ptr));
}

/// Waits for all work that may touch a device's memory.
fn quiesce(shim: &Shim, device: &Arc<Device>) -> Status {
    let code = device.synchronize(shim.driver);
    if code != SUCCESS {
        return code;
    }
    let current = current_context(shim.driver);
    if !current.is_null() && current as usize != device.context {
        // SAFETY: takes nothing.
        let code = with_context(shim.driver, current, || unsafe { shim.driver.cuCtxSynchronize() });
        if code != SUCCESS {
            return code;
        }
    }
    if !shim.captures.has_peers() {
        return SUCCESS;
    }
    // Other devices may reach this one's memory.
    let others = shim.devices.all().into_iter().filter(|other| other.ordinal != device.ordinal);
    others.map(|other| other.synchronize(shim.driver)).find(|&code| code != SUCCESS).unwrap_or(SUCCESS)
}

/// Gives back what was set aside on a device that has just been waited for. What is set aside meanwhile waits for the next time.
fn settle_quiet(shim: &Shim, device: &Arc<Device>) {
    if shim.captures.set_aside() > 0 && !shim.captures.any() {
        // Taken before the wait, so that what is set aside meanwhile is not given back too early.
        let aside = shim.captures.take_aside(device.ordinal);
        // As for a free: other devices, and the thread's own context, may use what was set aside.
        if quiesce(shim, device) == SUCCESS {
            aside.into_iter().for_each(|ptr| give_back(device, ptr));
        } else {
            aside.into_iter().for_each(|ptr| shim.captures.put_aside(ptr, device.ordinal));
        }
    }
}

/// Gives back what was set aside during captures, if they are over.
pub(crate) fn settle_aside(shim: &Shim) {
    for device in shim.devices.all() {
        settle_quiet(shim, &device);
    }
}

/// Makes room for a request that was passed on and failed, and tries it once more.
pub(super) fn retried(shim: &Shim, device: usize, call: impl Fn() -> Status) -> Status {
    let code = call();
    if code != OUT_OF_MEMORY {
        return code;
    }
    make_room(shim, device);
    call()
}
