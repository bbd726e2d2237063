//! Device memory.

use std::ffi::{c_uint, c_void};

use super::{Extent, PitchedPtr, address, pointer};
use crate::driver::Table;
use crate::driver::types::Handle;
use crate::entry::{api, driver_only_api, stream_api, write};
use crate::error::{Error, Outcome};

/// The widest element that `cudaMallocPitch` aligns rows for.
const PITCH_ELEMENT: c_uint = 16;

/// Rows of `width` bytes, padded so that each begins well aligned.
fn pitched(table: &Table, width: usize, height: usize) -> Result<(*mut c_void, usize), Error> {
    if width == 0 || height == 0 {
        return Ok((std::ptr::null_mut(), 0));
    }
    let mut ptr = 0;
    let mut pitch = 0;
    // SAFETY: both are locals.
    unsafe { table.cuMemAllocPitch(&raw mut ptr, &raw mut pitch, width, height, PITCH_ELEMENT)? };
    Ok((pointer(ptr), pitch))
}

/// Checks the out-parameter before anything is allocated, so that nothing is lost.
fn check_out<T>(out: *mut T) -> Outcome {
    if out.is_null() { Err(Error::INVALID_VALUE) } else { Ok(()) }
}

api! {
    fn cudaMalloc(out: *mut *mut c_void, bytes: usize) |table| {
        check_out(out)?;
        let mut ptr = 0;
        if bytes > 0 {
            table.cuMemAlloc(&raw mut ptr, bytes)?;
        }
        write(out, pointer(ptr))
    }

    fn cudaFree(ptr: *mut c_void) |table| {
        if ptr.is_null() { Ok(()) } else { table.cuMemFree(address(ptr)) }
    }

    fn cudaMallocPitch(out: *mut *mut c_void, pitch_out: *mut usize, width: usize, height: usize) |table| {
        check_out(out)?;
        check_out(pitch_out)?;
        let (ptr, pitch) = pitched(table, width, height)?;
        write(out, ptr)?;
        write(pitch_out, pitch)
    }

    fn cudaMalloc3D(out: *mut PitchedPtr, extent: Extent) |table| {
        check_out(out)?;
        let rows = extent.height.checked_mul(extent.depth).ok_or(Error::OUT_OF_MEMORY)?;
        let (ptr, pitch) = pitched(table, extent.width, rows)?;
        write(out, PitchedPtr { ptr, pitch, width: extent.width, height: extent.height })
    }

    fn cudaMallocManaged(out: *mut *mut c_void, bytes: usize, flags: c_uint) |table| {
        check_out(out)?;
        let mut ptr = 0;
        table.cuMemAllocManaged(&raw mut ptr, bytes, flags)?;
        write(out, pointer(ptr))
    }

    fn cudaMemGetInfo(free: *mut usize, total: *mut usize) |table| { table.cuMemGetInfo(free, total) }
}

stream_api! {
    fn cudaMallocAsync / cudaMallocAsync_ptsz(out: *mut *mut c_void, bytes: usize, stream: Handle) |table| {
        check_out(out)?;
        let mut ptr = 0;
        if bytes > 0 {
            table.cuMemAllocAsync(&raw mut ptr, bytes, stream)?;
        }
        write(out, pointer(ptr))
    }

    fn cudaMallocFromPoolAsync / cudaMallocFromPoolAsync_ptsz(
        out: *mut *mut c_void, bytes: usize, pool: Handle, stream: Handle
    ) |table| {
        check_out(out)?;
        let mut ptr = 0;
        if bytes > 0 {
            table.cuMemAllocFromPoolAsync(&raw mut ptr, bytes, pool, stream)?;
        }
        write(out, pointer(ptr))
    }

    fn cudaFreeAsync / cudaFreeAsync_ptsz(ptr: *mut c_void, stream: Handle) |table| {
        if ptr.is_null() { Ok(()) } else { table.cuMemFreeAsync(address(ptr), stream) }
    }
}

driver_only_api! {
    fn cudaImportExternalMemory(memory: *mut Handle, descriptor: *const c_void) |table| {
        table.cuImportExternalMemory(memory, descriptor)
    }

    fn cudaExternalMemoryGetMappedBuffer(out: *mut *mut c_void, memory: Handle, descriptor: *const c_void) |table| {
        check_out(out)?;
        let mut ptr = 0;
        table.cuExternalMemoryGetMappedBuffer(&raw mut ptr, memory, descriptor)?;
        write(out, pointer(ptr))
    }

    fn cudaDestroyExternalMemory(memory: Handle) |table| { table.cuDestroyExternalMemory(memory) }
}
