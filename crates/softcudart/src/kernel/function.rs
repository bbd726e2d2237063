//! What a kernel is like.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null;

use super::registry;
use crate::context;
use crate::driver::Table;
use crate::driver::types::Handle;
use crate::entry::{api, write};
use crate::error::{Error, Outcome};

/// `cudaFuncAttributes`.
#[repr(C)]
struct Attributes {
    shared_bytes: usize,
    const_bytes: usize,
    local_bytes: usize,
    max_threads_per_block: c_int,
    registers: c_int,
    ptx_version: c_int,
    binary_version: c_int,
    cache_mode: c_int,
    max_dynamic_shared_bytes: c_int,
    preferred_carveout: c_int,
    must_set_cluster: c_int,
    cluster: [c_int; 3],
    cluster_scheduling: c_int,
    non_portable_cluster: c_int,
    reserved: [c_int; 16],
}

/// The driver's function for the current context.
pub(super) fn function(table: &Table, host: *const c_void) -> Result<Handle, Error> {
    let kernel = registry::kernel(table, host)?;
    let mut function = std::ptr::null_mut();
    // SAFETY: `function` is a local, `kernel` the driver's own.
    unsafe { table.cuKernelGetFunction(&raw mut function, kernel)? };
    Ok(function)
}

/// An attribute by the driver's number. One that the driver does not know is 0.
fn attribute(table: &Table, function: Handle, number: c_int) -> Result<c_int, Error> {
    let mut value = 0;
    // SAFETY: `value` is a local, `function` the driver's own.
    match unsafe { table.cuFuncGetAttribute(&raw mut value, number, function) } {
        Ok(()) => Ok(value),
        Err(Error::INVALID_VALUE) => Ok(0),
        Err(error) => Err(error),
    }
}

fn attributes(table: &Table, function: Handle) -> Result<Attributes, Error> {
    let get = |number| attribute(table, function, number);
    let bytes = |number| get(number).map(|value| usize::try_from(value).unwrap_or(0));
    Ok(Attributes {
        shared_bytes: bytes(1)?,
        const_bytes: bytes(2)?,
        local_bytes: bytes(3)?,
        max_threads_per_block: get(0)?,
        registers: get(4)?,
        ptx_version: get(5)?,
        binary_version: get(6)?,
        cache_mode: get(7)?,
        max_dynamic_shared_bytes: get(8)?,
        preferred_carveout: get(9)?,
        must_set_cluster: get(10)?,
        cluster: [get(11)?, get(12)?, get(13)?],
        cluster_scheduling: get(15)?,
        non_portable_cluster: get(14)?,
        reserved: [0; 16],
    })
}

fn set_shared_memory(table: &Table, host: *const c_void) -> Outcome {
    // Shared memory has had banks of four bytes on every device since Maxwell, and no other setting.
    registry::kernel(table, host).map(drop)
}

api! {
    fn cudaFuncGetAttributes(out: *mut Attributes, host: *const c_void) |table| {
        write(out, attributes(table, function(table, host)?)?)
    }

    fn cudaFuncSetAttribute(host: *const c_void, attribute: c_int, value: c_int) |table| {
        table.cuFuncSetAttribute(function(table, host)?, attribute, value)
    }

    fn cudaFuncSetCacheConfig(host: *const c_void, config: c_int) |table| {
        table.cuFuncSetCacheConfig(function(table, host)?, config)
    }

    fn cudaFuncSetSharedMemConfig(host: *const c_void, _config: c_int) |table| { set_shared_memory(table, host) }

    fn cudaFuncGetName(out: *mut *const c_char, host: *const c_void) |table| {
        let mut name = null();
        table.cuFuncGetName(&raw mut name, function(table, host)?)?;
        write(out, name)
    }

    fn cudaGetFuncBySymbol(out: *mut Handle, host: *const c_void) |table| { write(out, function(table, host)?) }

    fn cudaGetKernel(out: *mut Handle, host: *const c_void) |table| { write(out, registry::kernel(table, host)?) }

    fn __cudaGetKernel(out: *mut Handle, host: *const c_void) |table| { write(out, registry::kernel(table, host)?) }

    fn cudaKernelSetAttributeForDevice(kernel: Handle, attribute: c_int, value: c_int, device: c_int) |table| {
        context::primary(table, device)?;
        table.cuKernelSetAttribute(attribute, value, kernel, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_cudas_size() {
        assert_eq!(size_of::<Attributes>(), 144);
    }
}
