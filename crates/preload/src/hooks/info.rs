//! What the program is told of memory: the limit for the device's memory, and a block for the chunk it lies in.

use std::ffi::{c_int, c_uint, c_void};

use super::learn_total;
use crate::abi::*;
use crate::device::current_ordinal;
use crate::state::{Block, Shim};

/// Free and total memory of a device as the program is to see them, from what the driver says.
///
/// What the allocator holds and nobody uses is free for the program. What is held, by whatever kind, is not.
pub(crate) fn seen(shim: &Shim, device: usize, free: u64, total: u64) -> (u64, u64) {
    let limit = shim.ledger.limit_of(total).min(total);
    let cached = shim.devices.of_ordinal(device).and_then(|served| {
        let stats = served.allocator.stats(0).ok()?;
        Some(stats.reserved.current.saturating_sub(stats.active.current))
    });
    let cached = cached.unwrap_or(0);
    let graphs = super::graph::reserved(shim, device);
    let used = shim.ledger.held(device).saturating_sub(cached).saturating_add(graphs);
    (free.saturating_add(cached).min(limit.saturating_sub(used)), limit)
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn mem_info(shim: &'static Shim, free: *mut usize, total: *mut usize) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemGetInfo_v2(free, total) };
    if code != SUCCESS {
        return code;
    }
    let Some(device) = current_ordinal(shim.driver) else { return code };
    let (mut real_free, mut real_total) = (0usize, 0usize);
    // SAFETY: the pointers are to locals. Asked again, since the program may have passed null for either.
    if unsafe { shim.driver.cuMemGetInfo_v2(&mut real_free, &mut real_total) } != SUCCESS {
        return code;
    }
    let (seen_free, seen_total) = seen(shim, device, real_free as u64, real_total as u64);
    // SAFETY: the program's own pointers, where they are not null.
    unsafe {
        if let Some(free) = free.as_mut() {
            *free = seen_free as usize;
        }
        if let Some(total) = total.as_mut() {
            *total = seen_total as usize;
        }
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn total(shim: &'static Shim, bytes: *mut usize, device: CUdevice) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuDeviceTotalMem_v2(bytes, device) };
    if code == SUCCESS
        // SAFETY: the driver has written there.
        && let Some(bytes) = unsafe { bytes.as_mut() }
    {
        if let Ok(device) = usize::try_from(device) {
            learn_total(shim, device);
        }
        *bytes = shim.ledger.limit_of(*bytes as u64) as usize;
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn address_range(
    shim: &'static Shim,
    base: *mut CUdeviceptr,
    size: *mut usize,
    ptr: CUdeviceptr,
) -> Status {
    let Some((start, block)) = shim.blocks.find(ptr) else {
        // SAFETY: the program's own arguments.
        return unsafe { shim.driver.cuMemGetAddressRange_v2(base, size, ptr) };
    };
    // SAFETY: the program's own pointers, where they are not null.
    unsafe {
        if let Some(base) = base.as_mut() {
            *base = start;
        }
        if let Some(size) = size.as_mut() {
            *size = block.size as usize;
        }
    }
    SUCCESS
}

/// Ids of blocks have the highest bit set, so that they are unlike the driver's.
const BLOCK_ID: u64 = 1 << 63;

/// Writes what a block answers for itself. Returns whether it does for this attribute.
///
/// # Safety
/// `data` is valid for the attribute's type.
unsafe fn answer(shim: &Shim, data: *mut c_void, attribute: c_int, start: u64, block: &Block) -> bool {
    let number = match attribute {
        pointer::RANGE_START_ADDR => start,
        pointer::RANGE_SIZE => block.size,
        pointer::BUFFER_ID => BLOCK_ID | block.id,
        // Memory that is mapped rather than allocated has no context of its own for the driver.
        pointer::CONTEXT => match shim.devices.of_ordinal(block.device) {
            Some(device) => device.context as u64,
            None => return false,
        },
        _ => return false,
    };
    // SAFETY: all four attributes are 64 bits wide: an address, a size, a number and a handle.
    unsafe { data.cast::<u64>().write_unaligned(number) };
    true
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn attribute(shim: &'static Shim, data: *mut c_void, attribute: c_int, ptr: CUdeviceptr) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        if !data.is_null()
            && let Some((start, block)) = shim.blocks.find(ptr)
            && answer(shim, data, attribute, start, &block)
        {
            return SUCCESS;
        }
        shim.driver.cuPointerGetAttribute(data, attribute, ptr)
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn attributes(
    shim: &'static Shim,
    count: c_uint,
    attributes: *mut c_int,
    data: *mut *mut c_void,
    ptr: CUdeviceptr,
) -> Status {
    // SAFETY: the program's own arguments: both arrays have `count` elements, each of `data` valid for its attribute.
    unsafe {
        let code = shim.driver.cuPointerGetAttributes(count, attributes, data, ptr);
        if code == SUCCESS
            && let Some((start, block)) = shim.blocks.find(ptr)
        {
            for index in 0..count as usize {
                let (attribute, data) = (*attributes.add(index), *data.add(index));
                if !data.is_null() {
                    answer(shim, data, attribute, start, &block);
                }
            }
        }
        code
    }
}
