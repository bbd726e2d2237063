//! Arrays: passed on, and accounted with the size that the driver says they have.

use std::ffi::c_uint;

use super::{accounted, written};
use crate::abi::*;
use crate::device::{current_context, current_ordinal};
use crate::ledger::{Kind, Object};
use crate::state::Shim;

/// Bytes a channel, by `CUarray_format`. Compressed formats are counted as one byte a channel where the driver does not say better.
fn channel_bytes(format: i32) -> u64 {
    match format {
        0x02 | 0x09 | 0x10 => 2,
        0x03 | 0x0a | 0x20 => 4,
        _ => 1,
    }
}

/// The size of an array by its description: a lower bound, which the driver's own figure then replaces.
fn estimate(width: usize, height: usize, depth: usize, format: i32, channels: u32) -> u64 {
    let texels = (width as u64).saturating_mul(height.max(1) as u64).saturating_mul(depth.max(1) as u64);
    texels.saturating_mul(channel_bytes(format) * u64::from(channels.max(1)))
}

/// What kind of array a handle is of.
#[derive(Clone, Copy)]
enum Shape {
    Plain,
    Mipmapped,
}

/// The size that the driver says an array has.
fn real_size(shim: &Shim, array: Opaque, shape: Shape) -> Option<u64> {
    let device = current_ordinal(shim.driver)? as CUdevice;
    let mut found = CUDA_ARRAY_MEMORY_REQUIREMENTS::default();
    // SAFETY: the pointer is to a local, and the driver has just given the handle out.
    let code = unsafe {
        match shape {
            Shape::Plain => shim.driver.cuArrayGetMemoryRequirements(&mut found, array, device),
            Shape::Mipmapped => shim.driver.cuMipmappedArrayGetMemoryRequirements(&mut found, array, device),
        }
    };
    (code == SUCCESS && found.size > 0).then_some(found.size as u64)
}

/// # Safety
/// As for the C function.
unsafe fn create_with(
    shim: &'static Shim,
    array: *mut Opaque,
    estimate: u64,
    shape: Shape,
    real: impl Fn() -> Status,
) -> Status {
    let Some(device) = current_ordinal(shim.driver) else { return real() };
    let mut charge = match super::charge(shim, device, Kind::Array, estimate) {
        Ok(charge) => charge,
        Err(code) => return code,
    };
    let code = super::plain::retried(shim, device, real);
    if code == SUCCESS
        // SAFETY: the driver has written there.
        && let Some(made) = unsafe { written(array) }
    {
        if let Some(size) = real_size(shim, made, shape) {
            charge.adjust(size);
        }
        charge.keep_as(Object::Array(made as usize), current_context(shim.driver) as usize);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn create(shim: &'static Shim, array: *mut Opaque, desc: *const CUDA_ARRAY_DESCRIPTOR) -> Status {
    // SAFETY: the program's own arguments; a description that is not null is valid.
    unsafe {
        let size = desc.as_ref().map_or(0, |d| estimate(d.width, d.height, 1, d.format, d.channels));
        create_with(shim, array, size, Shape::Plain, || shim.driver.cuArrayCreate_v2(array, desc))
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn create_3d(
    shim: &'static Shim,
    array: *mut Opaque,
    desc: *const CUDA_ARRAY3D_DESCRIPTOR,
) -> Status {
    // SAFETY: the program's own arguments; a description that is not null is valid.
    unsafe {
        let size = desc.as_ref().map_or(0, |d| estimate(d.width, d.height, d.depth, d.format, d.channels));
        create_with(shim, array, size, Shape::Plain, || shim.driver.cuArray3DCreate_v2(array, desc))
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn create_mipmapped(
    shim: &'static Shim,
    array: *mut Opaque,
    desc: *const CUDA_ARRAY3D_DESCRIPTOR,
    levels: c_uint,
) -> Status {
    // SAFETY: the program's own arguments; a description that is not null is valid.
    unsafe {
        let size = desc.as_ref().map_or(0, |d| estimate(d.width, d.height, d.depth, d.format, d.channels));
        let real = || shim.driver.cuMipmappedArrayCreate(array, desc, levels);
        create_with(shim, array, size, Shape::Mipmapped, real)
    }
}

fn destroyed(shim: &Shim, array: Opaque, real: impl FnOnce() -> Status) -> Status {
    shim.ledger.giving_back(Object::Array(array as usize), real)
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn destroy(shim: &'static Shim, array: Opaque) -> Status {
    // SAFETY: the program's own argument.
    destroyed(shim, array, || unsafe { shim.driver.cuArrayDestroy(array) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn destroy_mipmapped(shim: &'static Shim, array: Opaque) -> Status {
    // SAFETY: the program's own argument.
    destroyed(shim, array, || unsafe { shim.driver.cuMipmappedArrayDestroy(array) })
}

/// An array over imported memory holds none of its own.
///
/// # Safety
/// As for the C function.
pub(super) unsafe fn over_imported(shim: &'static Shim, array: *mut Opaque, real: impl Fn() -> Status) -> Status {
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Imported, 0, real, || unsafe { written(array) }.map(|array| Object::Array(array as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_arrays() {
        assert_eq!(estimate(100, 0, 0, 0x20, 4), 1600);
        assert_eq!(estimate(64, 64, 2, 0x10, 1), 64 * 64 * 2 * 2);
        assert_eq!(estimate(usize::MAX, usize::MAX, 2, 0x20, 4), u64::MAX);
    }
}
