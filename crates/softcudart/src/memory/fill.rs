//! Fills with a byte.

use std::ffi::{c_int, c_uchar, c_void};

use super::{Extent, PitchedPtr, address};
use crate::driver::Table;
use crate::driver::types::Handle;
use crate::entry::stream_api;
use crate::error::{Error, Outcome};

/// C passes an `int` and means its low byte.
fn byte(value: c_int) -> c_uchar {
    (value & 0xff) as c_uchar
}

/// Fills each slice of a box; `fill` takes an address, and fills `extent.height` rows there.
fn slices(ptr: &PitchedPtr, extent: Extent, mut fill: impl FnMut(u64) -> Outcome) -> Outcome {
    if extent.width == 0 || extent.height == 0 || extent.depth == 0 {
        return Ok(());
    }
    if extent.width > ptr.pitch {
        return Err(Error::INVALID_PITCH);
    }
    let slice = ptr.pitch.checked_mul(ptr.height).ok_or(Error::INVALID_VALUE)? as u64;
    for z in 0..extent.depth as u64 {
        let offset = z.checked_mul(slice).and_then(|offset| address(ptr.ptr).checked_add(offset));
        fill(offset.ok_or(Error::INVALID_VALUE)?)?;
    }
    Ok(())
}

/// # Safety
/// The rows are the caller's to fill.
unsafe fn rows(table: &Table, dst: u64, pitch: usize, value: c_int, width: usize, height: usize) -> Outcome {
    if width == 0 || height == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe { table.cuMemsetD2D8(dst, pitch, byte(value), width, height) }
}

/// # Safety
/// The rows are the caller's to fill until the stream has got there.
unsafe fn rows_async(
    table: &Table,
    dst: u64,
    pitch: usize,
    value: c_int,
    width: usize,
    height: usize,
    stream: Handle,
) -> Outcome {
    if width == 0 || height == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe { table.cuMemsetD2D8Async(dst, pitch, byte(value), width, height, stream) }
}

stream_api! {
    fn cudaMemset / cudaMemset_ptds(dst: *mut c_void, value: c_int, bytes: usize) |table| {
        if bytes == 0 { Ok(()) } else { table.cuMemsetD8(address(dst), byte(value), bytes) }
    }

    fn cudaMemsetAsync / cudaMemsetAsync_ptsz(
        dst: *mut c_void, value: c_int, bytes: usize, stream: Handle
    ) |table| {
        if bytes == 0 { Ok(()) } else { table.cuMemsetD8Async(address(dst), byte(value), bytes, stream) }
    }

    fn cudaMemset2D / cudaMemset2D_ptds(
        dst: *mut c_void, pitch: usize, value: c_int, width: usize, height: usize
    ) |table| {
        rows(table, address(dst), pitch, value, width, height)
    }

    fn cudaMemset2DAsync / cudaMemset2DAsync_ptsz(
        dst: *mut c_void, pitch: usize, value: c_int, width: usize, height: usize, stream: Handle
    ) |table| {
        rows_async(table, address(dst), pitch, value, width, height, stream)
    }

    fn cudaMemset3D / cudaMemset3D_ptds(ptr: PitchedPtr, value: c_int, extent: Extent) |table| {
        slices(&ptr, extent, |dst| rows(table, dst, ptr.pitch, value, extent.width, extent.height))
    }

    fn cudaMemset3DAsync / cudaMemset3DAsync_ptsz(
        ptr: PitchedPtr, value: c_int, extent: Extent, stream: Handle
    ) |table| {
        slices(&ptr, extent, |dst| rows_async(table, dst, ptr.pitch, value, extent.width, extent.height, stream))
    }
}
