//! Exports and imports. A block is a part of a chunk that other blocks share, so it cannot be given to another process, or by its handle.
//! Whoever tries gets the driver's error for memory that cannot be exported, and stderr one line that says what helps.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::sync::atomic::AtomicBool;

use super::{accounted, written};
use crate::abi::*;
use crate::guard::say_once;
use crate::ledger::{Kind, Object};
use crate::state::Shim;

/// Whether `ptr` lies in a block. If so, it is said once that it cannot be exported.
fn refused(shim: &Shim, ptr: u64, call: &'static str) -> bool {
    if shim.blocks.find(ptr).is_none() {
        return false;
    }
    static SAID: AtomicBool = AtomicBool::new(false);
    let helps =
        "name the library that allocates in STRATALLOC_PRELOAD_OWN, or set it to *, to give it allocations of its own";
    say_once(&SAID, format_args!("{call}: {ptr:#x} is a part of a larger allocation and cannot be exported; {helps}"));
    true
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn ipc_get(shim: &'static Shim, handle: *mut CUipcMemHandle, ptr: CUdeviceptr) -> Status {
    if refused(shim, ptr, "cuIpcGetMemHandle") {
        return INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuIpcGetMemHandle(handle, ptr) }
}

/// The first version, which the driver may hold to other rules, so it is not called by the second one's name.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn ipc_open_v1(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    handle: CUipcMemHandle,
    flags: c_uint,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { super::vmm::mapped_from_elsewhere(shim, ptr, || shim.driver.cuIpcOpenMemHandle(ptr, handle, flags)) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn ipc_open(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    handle: CUipcMemHandle,
    flags: c_uint,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { super::vmm::mapped_from_elsewhere(shim, ptr, || shim.driver.cuIpcOpenMemHandle_v2(ptr, handle, flags)) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn ipc_close(shim: &'static Shim, ptr: CUdeviceptr) -> Status {
    // SAFETY: the program's own argument.
    shim.ledger.giving_back(Object::Pointer(ptr), || unsafe { shim.driver.cuIpcCloseMemHandle(ptr) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn retain_handle(shim: &'static Shim, handle: *mut CUmemHandle, address: *mut c_void) -> Status {
    if refused(shim, address as u64, "cuMemRetainAllocationHandle") {
        return INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemRetainAllocationHandle(handle, address) };
    if code == SUCCESS
        // SAFETY: the driver has written there.
        && let Some(found) = unsafe { written(handle) }
    {
        shim.ledger.retain_chunk(found, address as u64);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn handle_for_range(
    shim: &'static Shim,
    handle: *mut c_void,
    ptr: CUdeviceptr,
    size: usize,
    kind: c_int,
    flags: c_ulonglong,
) -> Status {
    if refused(shim, ptr, "cuMemGetHandleForAddressRange") {
        return NOT_SUPPORTED;
    }
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMemGetHandleForAddressRange(handle, ptr, size, kind, flags) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn export_pool_pointer(shim: &'static Shim, data: *mut c_void, ptr: CUdeviceptr) -> Status {
    if refused(shim, ptr, "cuMemPoolExportPointer") {
        return INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMemPoolExportPointer(data, ptr) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn bind_address(
    shim: &'static Shim,
    handle: CUmemHandle,
    offset: usize,
    ptr: CUdeviceptr,
    size: usize,
    flags: c_ulonglong,
) -> Status {
    if refused(shim, ptr, "cuMulticastBindAddr") {
        return INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMulticastBindAddr(handle, offset, ptr, size, flags) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn bind_address_v2(
    shim: &'static Shim,
    handle: CUmemHandle,
    device: CUdevice,
    offset: usize,
    ptr: CUdeviceptr,
    size: usize,
    flags: c_ulonglong,
) -> Status {
    if refused(shim, ptr, "cuMulticastBindAddr") {
        return INVALID_VALUE;
    }
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMulticastBindAddr_v2(handle, device, offset, ptr, size, flags) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn import_external(
    shim: &'static Shim,
    memory: *mut Opaque,
    desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC,
) -> Status {
    // SAFETY: the program's own arguments; a description that is not null is valid.
    unsafe {
        let size = desc.as_ref().map_or(0, |desc| desc.size);
        let real = || shim.driver.cuImportExternalMemory(memory, desc);
        accounted(shim, Kind::Imported, size, real, || written(memory).map(|made| Object::External(made as usize)))
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn external_buffer(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    memory: Opaque,
    desc: *const c_void,
) -> Status {
    // The memory was counted when it was imported.
    // SAFETY: the program's own arguments.
    unsafe {
        let real = || shim.driver.cuExternalMemoryGetMappedBuffer(ptr, memory, desc);
        super::vmm::mapped_from_elsewhere(shim, ptr, real)
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn external_array(
    shim: &'static Shim,
    array: *mut Opaque,
    memory: Opaque,
    desc: *const c_void,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        let real = || shim.driver.cuExternalMemoryGetMappedMipmappedArray(array, memory, desc);
        super::arrays::over_imported(shim, array, real)
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn destroy_external(shim: &'static Shim, memory: Opaque) -> Status {
    // SAFETY: the program's own argument.
    shim.ledger
        .giving_back(Object::External(memory as usize), || unsafe { shim.driver.cuDestroyExternalMemory(memory) })
}
