//! Copies of boxes, between linear memory and arrays.

use std::ffi::c_int;
use std::ptr::null_mut;

use super::copy::Kind;
use super::{Extent, PitchedPtr, Pos, address};
use crate::context;
use crate::driver::Table;
use crate::driver::types::{ArrayDescriptor, Handle, Memcpy3D, Place3D, memory_type};
use crate::entry::{read, stream_api};
use crate::error::Error;

/// `cudaMemcpy3DParms`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Copy3D {
    src_array: Handle,
    src_pos: Pos,
    src: PitchedPtr,
    dst_array: Handle,
    dst_pos: Pos,
    dst: PitchedPtr,
    extent: Extent,
    kind: c_int,
}

/// `cudaMemcpy3DPeerParms`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PeerCopy3D {
    src_array: Handle,
    src_pos: Pos,
    src: PitchedPtr,
    src_device: c_int,
    dst_array: Handle,
    dst_pos: Pos,
    dst: PitchedPtr,
    dst_device: c_int,
    extent: Extent,
}

/// One side of a copy as the runtime states it.
struct Side {
    array: Handle,
    pos: Pos,
    linear: PitchedPtr,
    memory_type: u32,
}

/// The bytes of one element of an array.
fn element_bytes(table: &Table, array: Handle) -> Result<usize, Error> {
    let mut descriptor = ArrayDescriptor::default();
    // SAFETY: `descriptor` is a local; the driver checks the handle.
    unsafe { table.cuArray3DGetDescriptor(&raw mut descriptor, array)? };
    descriptor.element_bytes()
}

impl Side {
    /// The place, and how many bytes one unit of the extent's width has where this side is an array.
    fn place(&self, table: &Table) -> Result<(Place3D, Option<usize>), Error> {
        let Pos { x, y, z } = self.pos;
        let mut place = Place3D {
            x_bytes: x,
            y,
            z,
            lod: 0,
            memory_type: self.memory_type,
            host: self.linear.ptr,
            device: address(self.linear.ptr),
            array: null_mut(),
            context: null_mut(),
            pitch: self.linear.pitch,
            height: self.linear.height,
        };
        if self.array.is_null() {
            return Ok((place, None));
        }
        let element = element_bytes(table, self.array)?;
        place.x_bytes = x.checked_mul(element).ok_or(Error::INVALID_VALUE)?;
        place.memory_type = memory_type::ARRAY;
        place.array = self.array;
        place.host = null_mut();
        place.device = 0;
        Ok((place, Some(element)))
    }
}

fn build(table: &Table, src: &Side, dst: &Side, extent: Extent) -> Result<Memcpy3D, Error> {
    let (src, src_element) = src.place(table)?;
    let (dst, dst_element) = dst.place(table)?;
    let unit = src_element.or(dst_element).unwrap_or(1);
    let width = extent.width.checked_mul(unit).ok_or(Error::INVALID_VALUE)?;
    Ok(Memcpy3D { src, dst, width, height: extent.height, depth: extent.depth })
}

/// The driver's form of a copy.
pub(crate) fn convert(table: &Table, copy: &Copy3D) -> Result<Memcpy3D, Error> {
    let (from, to) = Kind::from_c(copy.kind)?.memory_types();
    let src = Side { array: copy.src_array, pos: copy.src_pos, linear: copy.src, memory_type: from };
    let dst = Side { array: copy.dst_array, pos: copy.dst_pos, linear: copy.dst, memory_type: to };
    build(table, &src, &dst, copy.extent)
}

fn convert_peer(table: &Table, copy: &PeerCopy3D) -> Result<Memcpy3D, Error> {
    let memory_type = memory_type::DEVICE;
    let src = Side { array: copy.src_array, pos: copy.src_pos, linear: copy.src, memory_type };
    let dst = Side { array: copy.dst_array, pos: copy.dst_pos, linear: copy.dst, memory_type };
    let mut built = build(table, &src, &dst, copy.extent)?;
    built.src.context = context::primary(table, copy.src_device)?;
    built.dst.context = context::primary(table, copy.dst_device)?;
    Ok(built)
}

/// A copy of `bytes` from one place to another, as graph nodes want it.
pub(crate) fn linear(
    dst: *mut std::ffi::c_void,
    src: *const std::ffi::c_void,
    bytes: usize,
    kind: c_int,
) -> Result<Memcpy3D, Error> {
    let (from, to) = Kind::from_c(kind)?.memory_types();
    let place = |ptr: *mut std::ffi::c_void, memory_type| Place3D {
        x_bytes: 0,
        y: 0,
        z: 0,
        lod: 0,
        memory_type,
        host: ptr,
        device: address(ptr),
        array: null_mut(),
        context: null_mut(),
        pitch: bytes,
        height: 1,
    };
    Ok(Memcpy3D { src: place(src.cast_mut(), from), dst: place(dst, to), width: bytes, height: 1, depth: 1 })
}

stream_api! {
    fn cudaMemcpy3D / cudaMemcpy3D_ptds(copy: *const Copy3D) |table| {
        let copy = convert(table, read(copy)?)?;
        table.cuMemcpy3D(&raw const copy)
    }

    fn cudaMemcpy3DAsync / cudaMemcpy3DAsync_ptsz(copy: *const Copy3D, stream: Handle) |table| {
        let copy = convert(table, read(copy)?)?;
        table.cuMemcpy3DAsync(&raw const copy, stream)
    }

    fn cudaMemcpy3DPeer / cudaMemcpy3DPeer_ptds(copy: *const PeerCopy3D) |table| {
        let copy = convert_peer(table, read(copy)?)?;
        table.cuMemcpy3DPeer(&raw const copy)
    }

    fn cudaMemcpy3DPeerAsync / cudaMemcpy3DPeerAsync_ptsz(copy: *const PeerCopy3D, stream: Handle) |table| {
        let copy = convert_peer(table, read(copy)?)?;
        table.cuMemcpy3DPeerAsync(&raw const copy, stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_have_cudas_sizes() {
        assert_eq!(size_of::<Copy3D>(), 160, "cudaMemcpy3DParms");
        assert_eq!(size_of::<PeerCopy3D>(), 168, "cudaMemcpy3DPeerParms");
        assert_eq!(size_of::<Memcpy3D>(), 200, "CUDA_MEMCPY3D");
        assert_eq!(size_of::<crate::driver::types::Memcpy2D>(), 128, "CUDA_MEMCPY2D");
    }
}
