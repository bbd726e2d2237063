//! Memory: allocation, copies, fills, what a pointer is.

mod alloc;
mod array;
mod copy;
pub(crate) mod copy_3d;
mod fill;
mod host;
mod ipc;
mod managed;
mod pointer;
mod pool;
mod symbol;

use std::ffi::c_void;

use crate::driver::types::DevicePtr;

/// `cudaPitchedPtr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PitchedPtr {
    pub(crate) ptr: *mut c_void,
    pub(crate) pitch: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// `cudaExtent`: the width in bytes, or in elements where an array takes part.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
}

/// `cudaPos`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Pos {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) z: usize,
}

/// The driver's pointers are numbers, the runtime's are pointers.
pub(crate) fn address(ptr: *const c_void) -> DevicePtr {
    ptr as DevicePtr
}

/// The runtime's pointer to what the driver calls `address`.
pub(crate) fn pointer(address: DevicePtr) -> *mut c_void {
    address as *mut c_void
}
