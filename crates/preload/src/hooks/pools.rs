//! The driver's pools. The allocator stands in for each device's default pool; pools that the program makes are passed on.

use std::ffi::{c_int, c_ulonglong, c_void};
use std::ptr;

use super::{accounted, written};
use crate::abi::*;
use crate::ledger::{Kind, Object};
use crate::state::Shim;

/// Whether a pool is the default one of a device.
pub(super) fn is_default_of(shim: &Shim, device: usize, pool: Opaque) -> bool {
    let mut default: Opaque = ptr::null_mut();
    // SAFETY: the pointer is to a local.
    let code = unsafe { shim.driver.cuDeviceGetDefaultMemPool(&mut default, device as CUdevice) };
    code == SUCCESS && default == pool && !pool.is_null()
}

/// The served device whose default pool this is.
fn device_of(shim: &Shim, pool: Opaque) -> Option<std::sync::Arc<crate::device::Device>> {
    shim.devices.all().into_iter().find(|device| is_default_of(shim, device.ordinal, pool))
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn create(shim: &'static Shim, pool: *mut Opaque, props: *const CUmemPoolProps) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMemPoolCreate(pool, props) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn destroy(shim: &'static Shim, pool: Opaque) -> Status {
    // A pool that goes while it is a device's current one is replaced by the default one.
    let current_on: Vec<usize> = (0..crate::ledger::DEVICES)
        .filter(|&device| shim.has_own_pool(device))
        .filter(|&device| {
            let mut current: Opaque = ptr::null_mut();
            // SAFETY: the pointer is to a local.
            let code = unsafe { shim.driver.cuDeviceGetMemPool(&mut current, device as CUdevice) };
            code == SUCCESS && current == pool
        })
        .collect();
    // SAFETY: the program's own argument.
    let code = unsafe { shim.driver.cuMemPoolDestroy(pool) };
    if code == SUCCESS {
        current_on.into_iter().for_each(|device| shim.set_own_pool(device, false));
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn trim(shim: &'static Shim, pool: Opaque, keep: usize) -> Status {
    if let Some(device) = device_of(shim, pool)
        && device.allocator.stats(0).is_ok_and(|stats| stats.reserved.current > keep as u64)
    {
        // What cannot be given back now stays, as in the driver's pool.
        let _ = device.allocator.empty_cache(0);
    }
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMemPoolTrimTo(pool, keep) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn get_attribute(shim: &'static Shim, pool: Opaque, attribute: c_int, value: *mut c_void) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemPoolGetAttribute(pool, attribute, value) };
    if code != SUCCESS || value.is_null() {
        return code;
    }
    let Some(device) = device_of(shim, pool) else { return code };
    let (Ok(stats), live) = (device.allocator.stats(0), shim.blocks.live_on(device.ordinal)) else { return code };
    let more = match attribute {
        pool::RESERVED_CURRENT => stats.reserved.current,
        pool::RESERVED_HIGH => stats.reserved.peak,
        pool::USED_CURRENT => live.ordered,
        pool::USED_HIGH => live.ordered_peak,
        _ => return code,
    };
    let value = value.cast::<u64>();
    // SAFETY: for these attributes the driver has written a 64-bit number there.
    unsafe { value.write_unaligned(value.read_unaligned().saturating_add(more)) };
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn set_attribute(shim: &'static Shim, pool: Opaque, attribute: c_int, value: *mut c_void) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemPoolSetAttribute(pool, attribute, value) };
    if code == SUCCESS
        && matches!(attribute, pool::RESERVED_HIGH | pool::USED_HIGH)
        && let Some(device) = device_of(shim, pool)
    {
        if attribute == pool::USED_HIGH {
            shim.blocks.reset_peak(device.ordinal);
        } else {
            // Device 0 exists.
            let _ = device.allocator.reset_peaks(0);
        }
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn set_access(
    shim: &'static Shim,
    pool: Opaque,
    access: *const CUmemAccessDesc,
    count: usize,
) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemPoolSetAccess(pool, access, count) };
    let Some(device) = device_of(shim, pool).filter(|_| code == SUCCESS && !access.is_null()) else { return code };
    for index in 0..count {
        // SAFETY: the driver has read as many descriptions.
        let CUmemAccessDesc { location, flags } = unsafe { *access.add(index) };
        if location.kind == LOCATION_DEVICE && flags != 0 && location.id != device.ordinal as i32 {
            shim.captures.note_peers();
            let code = device.gate.admit_peer(location.id);
            if code != SUCCESS {
                return code;
            }
        }
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn import(
    shim: &'static Shim,
    pool: *mut Opaque,
    handle: *mut c_void,
    kind: c_int,
    flags: c_ulonglong,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe { shim.driver.cuMemPoolImportFromShareableHandle(pool, handle, kind, flags) }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn import_pointer(
    shim: &'static Shim,
    ptr: *mut CUdeviceptr,
    pool: Opaque,
    data: *mut c_void,
) -> Status {
    // SAFETY: the program's own arguments.
    let real = || unsafe { shim.driver.cuMemPoolImportPointer(ptr, pool, data) };
    // Its bytes are the exporter's.
    // SAFETY: the driver has written there.
    accounted(shim, Kind::Imported, 0, real, || unsafe { written(ptr) }.map(Object::Pointer))
}

/// Notes which pool a device's requests are for from now on.
fn chosen(shim: &Shim, device: c_int, pool: Opaque) {
    if let Ok(device) = usize::try_from(device) {
        shim.set_own_pool(device, !is_default_of(shim, device, pool));
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn set_current(shim: &'static Shim, device: CUdevice, pool: Opaque) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuDeviceSetMemPool(device, pool) };
    if code == SUCCESS {
        chosen(shim, device, pool);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn set_current_at(
    shim: &'static Shim,
    location: *mut CUmemLocation,
    kind: c_int,
    pool: Opaque,
) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuMemSetMemPool(location, kind, pool) };
    if code == SUCCESS
        // SAFETY: the driver has read there.
        && let Some(location) = unsafe { location.as_ref() }
        && location.kind == LOCATION_DEVICE
    {
        chosen(shim, location.id, pool);
    }
    code
}
