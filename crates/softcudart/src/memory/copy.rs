//! Copies of one range, and of rows.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use super::address;
use crate::context;
use crate::driver::Table;
use crate::driver::types::{DevicePtr, Handle, Memcpy2D, Place2D, memory_type};
use crate::entry::{api, stream_api};
use crate::error::{Error, Outcome};

/// `cudaMemcpyKind`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    HostToHost,
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
    Default,
}

impl Kind {
    pub(crate) fn from_c(kind: c_int) -> Result<Self, Error> {
        Ok(match kind {
            0 => Kind::HostToHost,
            1 => Kind::HostToDevice,
            2 => Kind::DeviceToHost,
            3 => Kind::DeviceToDevice,
            4 => Kind::Default,
            _ => return Err(Error::INVALID_COPY_DIRECTION),
        })
    }

    /// The driver's memory types of the source and of the destination.
    pub(crate) fn memory_types(self) -> (u32, u32) {
        match self {
            Kind::HostToHost => (memory_type::HOST, memory_type::HOST),
            Kind::HostToDevice => (memory_type::HOST, memory_type::DEVICE),
            Kind::DeviceToHost => (memory_type::DEVICE, memory_type::HOST),
            Kind::DeviceToDevice => (memory_type::DEVICE, memory_type::DEVICE),
            Kind::Default => (memory_type::UNIFIED, memory_type::UNIFIED),
        }
    }
}

/// Copies `bytes` on the null stream and waits as far as CUDA's documentation says.
///
/// # Safety
/// Both ranges are valid for the copy.
pub(super) unsafe fn copy(table: &Table, dst: *mut c_void, src: *const c_void, bytes: usize, kind: c_int) -> Outcome {
    let kind = Kind::from_c(kind)?;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe {
        match kind {
            Kind::HostToDevice => table.cuMemcpyHtoD(address(dst), src, bytes),
            Kind::DeviceToHost => table.cuMemcpyDtoH(dst, address(src), bytes),
            Kind::DeviceToDevice => table.cuMemcpyDtoD(address(dst), address(src), bytes),
            Kind::HostToHost | Kind::Default => table.cuMemcpy(address(dst), address(src), bytes),
        }
    }
}

/// Copies `bytes` in the order of `stream`.
///
/// # Safety
/// Both ranges are valid for the copy until it is done.
pub(super) unsafe fn copy_async(
    table: &Table,
    dst: *mut c_void,
    src: *const c_void,
    bytes: usize,
    kind: c_int,
    stream: Handle,
) -> Outcome {
    let kind = Kind::from_c(kind)?;
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe {
        match kind {
            Kind::HostToDevice => table.cuMemcpyHtoDAsync(address(dst), src, bytes, stream),
            Kind::DeviceToHost => table.cuMemcpyDtoHAsync(dst, address(src), bytes, stream),
            Kind::DeviceToDevice => table.cuMemcpyDtoDAsync(address(dst), address(src), bytes, stream),
            Kind::HostToHost | Kind::Default => table.cuMemcpyAsync(address(dst), address(src), bytes, stream),
        }
    }
}

stream_api! {
    fn cudaMemcpy / cudaMemcpy_ptds(dst: *mut c_void, src: *const c_void, bytes: usize, kind: c_int) |table| {
        copy(table, dst, src, bytes, kind)
    }

    fn cudaMemcpyAsync / cudaMemcpyAsync_ptsz(
        dst: *mut c_void, src: *const c_void, bytes: usize, kind: c_int, stream: Handle
    ) |table| {
        copy_async(table, dst, src, bytes, kind, stream)
    }

    fn cudaMemcpy2D / cudaMemcpy2D_ptds(
        dst: *mut c_void, dst_pitch: usize, src: *const c_void, src_pitch: usize, width: usize, height: usize,
        kind: c_int
    ) |table| {
        match rows(Linear { ptr: dst, pitch: dst_pitch }, Linear { ptr: src.cast_mut(), pitch: src_pitch }, width, height, kind)? {
            Some(copy) => table.cuMemcpy2DUnaligned(&raw const copy),
            None => Ok(()),
        }
    }

    fn cudaMemcpy2DAsync / cudaMemcpy2DAsync_ptsz(
        dst: *mut c_void, dst_pitch: usize, src: *const c_void, src_pitch: usize, width: usize, height: usize,
        kind: c_int, stream: Handle
    ) |table| {
        match rows(Linear { ptr: dst, pitch: dst_pitch }, Linear { ptr: src.cast_mut(), pitch: src_pitch }, width, height, kind)? {
            Some(copy) => table.cuMemcpy2DAsync(&raw const copy, stream),
            None => Ok(()),
        }
    }

    fn cudaMemcpy2DToArray / cudaMemcpy2DToArray_ptds(
        dst: Handle, x: usize, y: usize, src: *const c_void, pitch: usize, width: usize, height: usize, kind: c_int
    ) |table| {
        let copy = to_array(dst, x, y, Linear { ptr: src.cast_mut(), pitch }, width, height, kind)?;
        table.cuMemcpy2DUnaligned(&raw const copy)
    }

    fn cudaMemcpy2DToArrayAsync / cudaMemcpy2DToArrayAsync_ptsz(
        dst: Handle, x: usize, y: usize, src: *const c_void, pitch: usize, width: usize, height: usize, kind: c_int,
        stream: Handle
    ) |table| {
        let copy = to_array(dst, x, y, Linear { ptr: src.cast_mut(), pitch }, width, height, kind)?;
        table.cuMemcpy2DAsync(&raw const copy, stream)
    }

    fn cudaMemcpy2DFromArray / cudaMemcpy2DFromArray_ptds(
        dst: *mut c_void, pitch: usize, src: Handle, x: usize, y: usize, width: usize, height: usize, kind: c_int
    ) |table| {
        let copy = from_array(Linear { ptr: dst, pitch }, src, x, y, width, height, kind)?;
        table.cuMemcpy2DUnaligned(&raw const copy)
    }

    fn cudaMemcpy2DFromArrayAsync / cudaMemcpy2DFromArrayAsync_ptsz(
        dst: *mut c_void, pitch: usize, src: Handle, x: usize, y: usize, width: usize, height: usize, kind: c_int,
        stream: Handle
    ) |table| {
        let copy = from_array(Linear { ptr: dst, pitch }, src, x, y, width, height, kind)?;
        table.cuMemcpy2DAsync(&raw const copy, stream)
    }

    fn softcudart13_cudaMemcpyBatchAsync / softcudart13_cudaMemcpyBatchAsync_ptsz(
        dsts: *mut DevicePtr, srcs: *mut DevicePtr, sizes: *mut usize, count: usize, attributes: *mut c_void,
        indices: *mut usize, attribute_count: usize, stream: Handle
    ) |table| {
        table.cuMemcpyBatchAsync(dsts, srcs, sizes, count, attributes, indices, attribute_count, stream)
    }
}

api! {
    fn cudaMemcpyPeer(
        dst: *mut c_void, dst_device: c_int, src: *const c_void, src_device: c_int, bytes: usize
    ) |table| {
        let (to, from) = (context::primary(table, dst_device)?, context::primary(table, src_device)?);
        if bytes == 0 { Ok(()) } else { table.cuMemcpyPeer(address(dst), to, address(src), from, bytes) }
    }

    fn cudaMemcpyPeerAsync(
        dst: *mut c_void, dst_device: c_int, src: *const c_void, src_device: c_int, bytes: usize, stream: Handle
    ) |table| {
        let (to, from) = (context::primary(table, dst_device)?, context::primary(table, src_device)?);
        if bytes == 0 { Ok(()) } else { table.cuMemcpyPeerAsync(address(dst), to, address(src), from, bytes, stream) }
    }
}

/// Rows in linear memory.
struct Linear {
    ptr: *mut c_void,
    pitch: usize,
}

impl Linear {
    fn place(&self, memory_type: u32) -> Place2D {
        Place2D {
            x_bytes: 0,
            y: 0,
            memory_type,
            host: self.ptr,
            device: address(self.ptr),
            array: null_mut(),
            pitch: self.pitch,
        }
    }
}

fn array_place(array: Handle, x_bytes: usize, y: usize) -> Place2D {
    Place2D { x_bytes, y, memory_type: memory_type::ARRAY, host: null_mut(), device: 0, array, pitch: 0 }
}

/// A copy of rows between linear memory; none if it is empty.
fn rows(dst: Linear, src: Linear, width: usize, height: usize, kind: c_int) -> Result<Option<Memcpy2D>, Error> {
    let (from, to) = Kind::from_c(kind)?.memory_types();
    if width == 0 || height == 0 {
        return Ok(None);
    }
    if width > dst.pitch || width > src.pitch {
        return Err(Error::INVALID_PITCH);
    }
    Ok(Some(Memcpy2D { src: src.place(from), dst: dst.place(to), width, height }))
}

fn to_array(
    dst: Handle,
    x: usize,
    y: usize,
    src: Linear,
    width: usize,
    height: usize,
    kind: c_int,
) -> Result<Memcpy2D, Error> {
    let (from, _) = Kind::from_c(kind)?.memory_types();
    Ok(Memcpy2D { src: src.place(from), dst: array_place(dst, x, y), width, height })
}

fn from_array(
    dst: Linear,
    src: Handle,
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    kind: c_int,
) -> Result<Memcpy2D, Error> {
    let (_, to) = Kind::from_c(kind)?.memory_types();
    Ok(Memcpy2D { src: array_place(src, x, y), dst: dst.place(to), width, height })
}
