//! Memory of other processes.

use std::ffi::{c_uint, c_void};

use super::{address, pointer};
use crate::driver::types::IpcHandle;
use crate::entry::{api, write};

api! {
    fn cudaIpcGetMemHandle(handle: *mut IpcHandle, ptr: *mut c_void) |table| {
        table.cuIpcGetMemHandle(handle, address(ptr))
    }

    fn cudaIpcOpenMemHandle(out: *mut *mut c_void, handle: IpcHandle, flags: c_uint) |table| {
        let mut ptr = 0;
        table.cuIpcOpenMemHandle(&raw mut ptr, handle, flags)?;
        write(out, pointer(ptr))
    }

    fn cudaIpcCloseMemHandle(ptr: *mut c_void) |table| { table.cuIpcCloseMemHandle(address(ptr)) }
}
