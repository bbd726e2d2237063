//! Device memory: `cuMemAlloc` and its like.

use stratalloc::driver::Driver;
use stratalloc::units::DevicePtr;

use super::space::{self, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::process::contexts;
use crate::process::devices::code_of;
use crate::stream::capture;

/// Rows of pitched memory begin at multiples of it.
pub(crate) const PITCH: usize = 512;

pub(crate) fn info(free: Out<usize>, total: Out<usize>) -> Res {
    let (now_free, all) = contexts::memory_of(contexts::device()?)?;
    free.set_if(now_free as usize);
    total.set_if(all as usize);
    Ok(())
}

pub(crate) fn info_v1(free: Out<u32>, total: Out<u32>) -> Res {
    let (now_free, all) = contexts::memory_of(contexts::device()?)?;
    free.set_if(u32::try_from(now_free).unwrap_or(u32::MAX));
    total.set_if(u32::try_from(all).unwrap_or(u32::MAX));
    Ok(())
}

/// Allocates device memory of a kind in the current context.
pub(crate) fn allocate(size: u64, kind: Kind) -> Res<u64> {
    let context = contexts::current()?;
    capture::refuse_unsafe()?;
    if size == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let device = context.device;
    let ptr = match device.soft.alloc_plain(size) {
        Err(error) if error.is_out_of_memory() && super::pools::give_up_idle(device) => device.soft.alloc_plain(size),
        result => result,
    };
    let ptr = ptr.map_err(code_of)?.0;
    space::insert(ptr, size, kind, device, Some(context));
    Ok(ptr)
}

pub(crate) fn alloc(ptr: Out<u64>, size: usize) -> Res {
    ptr.check()?;
    ptr.set(allocate(size as u64, Kind::Plain)?)
}

/// The first interface, whose addresses have 32 bits: what it would need is not to be had.
pub(crate) fn alloc_v1(ptr: Out<u32>, _size: u32) -> Res {
    ptr.check()?;
    Err(Code::NOT_SUPPORTED)
}

pub(crate) fn alloc_pitch(ptr: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) -> Res {
    ptr.check()?;
    pitch.check()?;
    if !matches!(element, 4 | 8 | 16) || width == 0 || height == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let row = width.checked_next_multiple_of(PITCH).ok_or(Code::INVALID_VALUE)?;
    let size = row.checked_mul(height).ok_or(Code::OUT_OF_MEMORY)?;
    ptr.set(allocate(size as u64, Kind::Plain)?)?;
    pitch.set(row)
}

/// Host and device see managed memory at one address, as all memory of a software device.
pub(crate) fn alloc_managed(ptr: Out<u64>, size: usize, flags: u32) -> Res {
    ptr.check()?;
    // Attached to all streams, to the host, or to one stream.
    if !matches!(flags, 1 | 2) {
        return Err(Code::INVALID_VALUE);
    }
    ptr.set(allocate(size as u64, Kind::Managed)?)
}

pub(crate) fn free(ptr: u64) -> Res {
    if ptr == 0 {
        return Ok(());
    }
    contexts::current()?;
    capture::refuse_unsafe()?;
    let ours = |block: &space::Block| matches!(block.kind, Kind::Plain | Kind::Managed | Kind::Pool { .. });
    space::take(ptr, ours).and_then(space::release)
}

pub(crate) fn free_v1(ptr: u32) -> Res {
    free(u64::from(ptr))
}

pub(crate) fn address_range(base: Out<u64>, size: Out<usize>, ptr: u64) -> Res {
    contexts::current()?;
    let (start, length) = range_of(ptr).ok_or(Code::NOT_FOUND)?;
    base.set_if(start);
    size.set_if(length as usize);
    Ok(())
}

/// Where the allocation at an address begins, and its size; for virtual memory that of the mapping.
pub(crate) fn range_of(ptr: u64) -> Option<(u64, u64)> {
    let block = space::find(ptr)?;
    if block.kind == Kind::Reservation {
        let (start, size, _) = block.device.soft.mapping_at(DevicePtr(ptr))?;
        return Some((start.0, size));
    }
    Some((block.base, block.size))
}
