//! What a pointer is.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use super::{address, pointer};
use crate::driver::Table;
use crate::driver::types::memory_type;
use crate::entry::api;
use crate::error::{Error, Outcome};

/// `cudaMemoryType`.
const UNREGISTERED: c_int = 0;
const HOST: c_int = 1;
const DEVICE: c_int = 2;
const MANAGED: c_int = 3;

/// `CUpointer_attribute`, in the order in which they are asked for.
const ATTRIBUTES: [c_int; 5] = [2, 3, 4, 8, 9];

/// `cudaPointerAttributes` of CUDA 12; CUDA 13 has 64 bytes more, all 0.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    kind: c_int,
    device: c_int,
    device_pointer: *mut c_void,
    host_pointer: *mut c_void,
}

/// The part that CUDA 13 has added.
const RESERVED_13: usize = 64;

fn attributes(table: &Table, ptr: *const c_void) -> Result<Attributes, Error> {
    let unregistered =
        Attributes { kind: UNREGISTERED, device: -2, device_pointer: null_mut(), host_pointer: ptr.cast_mut() };
    if ptr.is_null() {
        return Ok(Attributes { host_pointer: null_mut(), ..unregistered });
    }
    let mut names = ATTRIBUTES;
    let (mut memory, mut device_pointer, mut host_pointer) = (0 as c_uint, 0_u64, null_mut::<c_void>());
    let (mut managed, mut device) = (0 as c_int, 0 as c_int);
    let mut values: [*mut c_void; 5] = [
        (&raw mut memory).cast(),
        (&raw mut device_pointer).cast(),
        (&raw mut host_pointer).cast(),
        (&raw mut managed).cast(),
        (&raw mut device).cast(),
    ];
    // SAFETY: as many names as values, each value a local of its attribute's type.
    let asked = unsafe {
        table.cuPointerGetAttributes(ATTRIBUTES.len() as c_uint, names.as_mut_ptr(), values.as_mut_ptr(), address(ptr))
    };
    match asked {
        Ok(()) => {}
        // Not a pointer that the driver knows.
        Err(Error::INVALID_VALUE) => return Ok(unregistered),
        Err(error) => return Err(error),
    }
    let kind = match memory {
        _ if managed & 0xff != 0 => MANAGED,
        memory_type::HOST => HOST,
        memory_type::DEVICE => DEVICE,
        _ => return Ok(unregistered),
    };
    Ok(Attributes { kind, device, device_pointer: pointer(device_pointer), host_pointer })
}

/// # Safety
/// `out` is null or valid for a write of `Attributes` and `more` bytes behind.
unsafe fn answer(table: &Table, out: *mut c_void, ptr: *const c_void, more: usize) -> Outcome {
    if out.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    let found = attributes(table, ptr)?;
    // SAFETY: valid for both writes, as the caller promises.
    unsafe {
        out.cast::<Attributes>().write(found);
        out.cast::<u8>().add(size_of::<Attributes>()).write_bytes(0, more);
    }
    Ok(())
}

api! {
    fn softcudart12_cudaPointerGetAttributes(out: *mut c_void, ptr: *const c_void) |table| {
        answer(table, out, ptr, 0)
    }

    fn softcudart13_cudaPointerGetAttributes(out: *mut c_void, ptr: *const c_void) |table| {
        answer(table, out, ptr, RESERVED_13)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_cudas_size() {
        assert_eq!(size_of::<Attributes>(), 24);
        assert_eq!(size_of::<Attributes>() + RESERVED_13, 88);
    }
}
