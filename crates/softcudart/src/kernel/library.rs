//! Libraries of device code that a program loads while it runs.

use std::collections::HashSet;
use std::ffi::{c_char, c_int, c_uint, c_void};

use parking_lot::RwLock;

use crate::driver::types::Handle;
use crate::entry::{api, write};
use crate::error::Error;
use crate::memory;

/// Kernels that programs got from libraries: they may stand where a host function does.
static HANDED_OUT: RwLock<Option<HashSet<usize>>> = RwLock::new(None);

pub(super) fn is_handed_out(kernel: usize) -> bool {
    HANDED_OUT.read().as_ref().is_some_and(|kernels| kernels.contains(&kernel))
}

fn hand_out(kernel: Handle) {
    HANDED_OUT.write().get_or_insert_default().insert(kernel as usize);
}

api! {
    fn cudaLibraryLoadData(
        library: *mut Handle, code: *const c_void, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint,
        options: *mut c_int, values: *mut *mut c_void, count: c_uint
    ) |table| {
        table.cuLibraryLoadData(library, code, jit, jit_values, jit_count, options, values, count)
    }

    fn cudaLibraryLoadFromFile(
        library: *mut Handle, path: *const c_char, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint,
        options: *mut c_int, values: *mut *mut c_void, count: c_uint
    ) |table| {
        table.cuLibraryLoadFromFile(library, path, jit, jit_values, jit_count, options, values, count)
    }

    fn cudaLibraryUnload(library: Handle) |table| { table.cuLibraryUnload(library) }

    fn cudaLibraryGetKernel(out: *mut Handle, library: Handle, name: *const c_char) |table| {
        let mut kernel = std::ptr::null_mut();
        table.cuLibraryGetKernel(&raw mut kernel, library, name)?;
        hand_out(kernel);
        write(out, kernel)
    }

    fn cudaLibraryGetKernelCount(count: *mut c_uint, library: Handle) |table| {
        table.cuLibraryGetKernelCount(count, library)
    }

    fn cudaLibraryEnumerateKernels(kernels: *mut Handle, count: c_uint, library: Handle) |table| {
        if count > 0 && kernels.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        table.cuLibraryEnumerateKernels(kernels, count, library)?;
        for index in 0..count as usize {
            hand_out(kernels.add(index).read());
        }
        Ok(())
    }

    fn cudaLibraryGetGlobal(out: *mut *mut c_void, bytes: *mut usize, library: Handle, name: *const c_char) |table| {
        let mut address = 0;
        table.cuLibraryGetGlobal(&raw mut address, bytes, library, name)?;
        write(out, memory::pointer(address))
    }

    fn cudaLibraryGetManaged(out: *mut *mut c_void, bytes: *mut usize, library: Handle, name: *const c_char) |table| {
        let mut address = 0;
        table.cuLibraryGetManaged(&raw mut address, bytes, library, name)?;
        write(out, memory::pointer(address))
    }

    fn cudaLibraryGetUnifiedFunction(function: *mut *mut c_void, library: Handle, name: *const c_char) |table| {
        table.cuLibraryGetUnifiedFunction(function, library, name)
    }
}
