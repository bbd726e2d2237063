//! Host memory that the device can reach.

use std::ffi::{c_uint, c_void};

use super::pointer;
use crate::entry::{api, write};
use crate::error::Error;

api! {
    fn cudaHostAlloc(out: *mut *mut c_void, bytes: usize, flags: c_uint) |table| {
        if out.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        let mut ptr = std::ptr::null_mut();
        if bytes > 0 {
            table.cuMemHostAlloc(&raw mut ptr, bytes, flags)?;
        }
        write(out, ptr)
    }

    fn cudaMallocHost(out: *mut *mut c_void, bytes: usize) |table| {
        if out.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        let mut ptr = std::ptr::null_mut();
        if bytes > 0 {
            table.cuMemAllocHost(&raw mut ptr, bytes)?;
        }
        write(out, ptr)
    }

    fn cudaFreeHost(ptr: *mut c_void) |table| {
        if ptr.is_null() { Ok(()) } else { table.cuMemFreeHost(ptr) }
    }

    fn cudaHostRegister(ptr: *mut c_void, bytes: usize, flags: c_uint) |table| {
        table.cuMemHostRegister(ptr, bytes, flags)
    }

    fn cudaHostUnregister(ptr: *mut c_void) |table| { table.cuMemHostUnregister(ptr) }

    fn cudaHostGetDevicePointer(out: *mut *mut c_void, ptr: *mut c_void, flags: c_uint) |table| {
        let mut device = 0;
        table.cuMemHostGetDevicePointer(&raw mut device, ptr, flags)?;
        write(out, pointer(device))
    }

    fn cudaHostGetFlags(flags: *mut c_uint, ptr: *mut c_void) |table| { table.cuMemHostGetFlags(flags, ptr) }
}
