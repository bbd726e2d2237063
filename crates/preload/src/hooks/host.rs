//! Host memory: passed on, and accounted apart from the devices' own.

use std::ffi::{c_uint, c_void};

use super::{accounted, written};
use crate::abi::*;
use crate::ledger::{Kind, Object};
use crate::state::Shim;

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc(shim: &'static Shim, ptr: *mut *mut c_void, size: usize) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemAllocHost_v2(ptr, size) };
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Pinned, size as u64, real, || unsafe { written(ptr) }.map(|at| Object::Host(at as usize)))
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn alloc_flags(shim: &'static Shim, ptr: *mut *mut c_void, size: usize, flags: c_uint) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemHostAlloc(ptr, size, flags) };
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Pinned, size as u64, real, || unsafe { written(ptr) }.map(|at| Object::Host(at as usize)))
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn free(shim: &'static Shim, ptr: *mut c_void) -> Status {
    // SAFETY: the program's own argument.
    shim.ledger.giving_back(Object::Host(ptr as usize), || unsafe { shim.driver.cuMemFreeHost(ptr) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn register(shim: &'static Shim, ptr: *mut c_void, size: usize, flags: c_uint) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemHostRegister_v2(ptr, size, flags) };
    accounted(shim, Kind::Registered, size as u64, real, || Some(Object::Registered(ptr as usize)))
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn unregister(shim: &'static Shim, ptr: *mut c_void) -> Status {
    // SAFETY: the program's own argument.
    shim.ledger.giving_back(Object::Registered(ptr as usize), || unsafe { shim.driver.cuMemHostUnregister(ptr) })
}
