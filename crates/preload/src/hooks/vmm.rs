//! The program's own virtual memory management: passed on, and accounted by handles and mappings.

use std::ffi::{c_int, c_ulonglong, c_void};

use super::{accounted, charge, written};
use crate::abi::*;
use crate::device::current_ordinal;
use crate::ledger::{Kind, Object};
use crate::state::Shim;

/// # Safety
/// As for the C function.
pub(crate) unsafe fn reserve(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    size: usize,
    alignment: usize,
    hint: CUdeviceptr,
    flags: c_ulonglong,
) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemAddressReserve(ptr, size, alignment, hint, flags) };
    if code == SUCCESS
        // SAFETY: the driver has written there.
        && let Some(at) = unsafe { written(ptr) }
    {
        // Address space is no device's: it outlives contexts.
        let device = current_ordinal(shim.driver).unwrap_or(0);
        shim.ledger.charge_anyway(device, Kind::Reserved, size as u64).keep_as(Object::Reservation(at), 0);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn unreserve(shim: &'static Shim, ptr: CUdeviceptr, size: usize) -> Status {
    // SAFETY: the program's own arguments.
    shim.ledger.giving_back(Object::Reservation(ptr), || unsafe { shim.driver.cuMemAddressFree(ptr, size) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn create(
    shim: &'static Shim,
    handle: *mut CUmemHandle,
    size: usize,
    prop: *const CUmemAllocationProp,
    flags: c_ulonglong,
) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemCreate(handle, size, prop, flags) };
    // SAFETY: a description that is not null is valid.
    let Some(location) = (unsafe { prop.as_ref() }).map(|prop| prop.location) else { return real() };
    // Host memory comes in several kinds of location; one kind is a device's.
    let (kind, device) = match (location.kind, usize::try_from(location.id)) {
        (LOCATION_DEVICE, Ok(device)) => (Kind::Chunk, device),
        (LOCATION_DEVICE, Err(_)) => return real(),
        _ => (Kind::HostChunk, current_ordinal(shim.driver).unwrap_or(0)),
    };
    let charge = match charge(shim, device, kind, size as u64) {
        Ok(charge) => charge,
        Err(code) => return code,
    };
    let code = super::plain::retried(shim, device, real);
    if code == SUCCESS
        // SAFETY: the driver has written there.
        && let Some(made) = unsafe { written(handle) }
    {
        charge.keep();
        shim.ledger.add_chunk(made, device, kind, size as u64);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn release(shim: &'static Shim, handle: CUmemHandle) -> Status {
    // SAFETY: the program's own argument.
    shim.ledger.releasing_chunk(handle, || unsafe { shim.driver.cuMemRelease(handle) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn map(
    shim: &'static Shim,
    ptr: CUdeviceptr,
    size: usize,
    offset: usize,
    handle: CUmemHandle,
    flags: c_ulonglong,
) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemMap(ptr, size, offset, handle, flags) };
    if code == SUCCESS {
        shim.ledger.map_chunk(ptr, size as u64, handle);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn unmap(shim: &'static Shim, ptr: CUdeviceptr, size: usize) -> Status {
    // SAFETY: the program's own arguments.
    shim.ledger.unmapping_chunks(ptr, size as u64, || unsafe { shim.driver.cuMemUnmap(ptr, size) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn import(
    shim: &'static Shim,
    handle: *mut CUmemHandle,
    os_handle: *mut c_void,
    kind: c_int,
) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemImportFromShareableHandle(handle, os_handle, kind) };
    if code == SUCCESS
        // SAFETY: the driver has written there.
        && let Some(made) = unsafe { written(handle) }
    {
        // Its bytes are the exporter's, and nothing says how many they are.
        let device = current_ordinal(shim.driver).unwrap_or(0);
        shim.ledger.charge_anyway(device, Kind::Imported, 0).keep();
        shim.ledger.add_chunk(made, device, Kind::Imported, 0);
    }
    code
}

/// Accounts memory that another process allocated, and that `call` maps here at `ptr`.
///
/// # Safety
/// As for the C function.
pub(super) unsafe fn mapped_from_elsewhere(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    call: impl Fn() -> Status,
) -> Status {
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Imported, 0, call, || unsafe { written(ptr) }.map(Object::Pointer))
}
