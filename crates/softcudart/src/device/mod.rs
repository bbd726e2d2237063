//! Devices: which there are, which is the thread's, what they can do.

mod properties;
mod settings;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use crate::context;
use crate::driver::types::Handle;
use crate::driver::{self, Streams, Table};
use crate::entry::{self, api, driver_only_api, write};
use crate::error::{Error, Outcome};

/// What the two libraries say of themselves.
const RUNTIME_12: c_int = 12080;
const RUNTIME_13: c_int = 13020;

/// How many devices there are.
fn count(table: &Table) -> Result<c_int, Error> {
    let mut count = 0;
    // SAFETY: `count` is a local.
    unsafe { table.cuDeviceGetCount(&raw mut count)? };
    Ok(count)
}

/// An argument that must be the number of a device.
fn check_device(table: &Table, device: c_int) -> Outcome {
    if (0..count(table)?).contains(&device) { Ok(()) } else { Err(Error::INVALID_DEVICE) }
}

/// # Safety
/// `version` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softcudart12_cudaRuntimeGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: as the caller promises.
    entry::plain(|| unsafe { write(version, RUNTIME_12) })
}

/// # Safety
/// `version` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softcudart13_cudaRuntimeGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: as the caller promises.
    entry::plain(|| unsafe { write(version, RUNTIME_13) })
}

/// A machine without a driver has version 0, which is no error.
///
/// # Safety
/// `version` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudaDriverGetVersion(version: *mut c_int) -> c_int {
    entry::plain(|| match driver::table(Streams::Legacy) {
        // SAFETY: as the caller promises.
        Err(Error::INSUFFICIENT_DRIVER) => unsafe { write(version, 0) },
        Err(error) => Err(error),
        // SAFETY: as the caller promises; the driver checks for null.
        Ok(table) => unsafe { table.cuDriverGetVersion(version) },
    })
}

driver_only_api! {
    fn cudaGetDeviceCount(out: *mut c_int) |table| { write(out, count(table)?) }

    fn cudaGetDevice(out: *mut c_int) |table| { write(out, context::device(table)?) }

    fn cudaSetDevice(device: c_int) |table| { context::set_device(table, device) }

    fn cudaInitDevice(device: c_int, flags: c_uint, which: c_uint) |table| {
        check_device(table, device)?;
        // cudaInitDeviceFlagsAreValid
        if which & 1 != 0 {
            table.cuDevicePrimaryCtxSetFlags(device, flags)?;
        }
        context::primary(table, device).map(drop)
    }

    fn cudaDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) |table| {
        table.cuDeviceGetAttribute(value, attribute, device)
    }

    fn cudaDeviceGetP2PAttribute(value: *mut c_int, attribute: c_int, from: c_int, to: c_int) |table| {
        table.cuDeviceGetP2PAttribute(value, attribute, from, to)
    }

    fn cudaDeviceGetByPCIBusId(device: *mut c_int, id: *const c_char) |table| {
        table.cuDeviceGetByPCIBusId(device, id)
    }

    fn cudaDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: c_int) |table| {
        table.cuDeviceGetPCIBusId(id, len, device)
    }

    fn cudaDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) |table| {
        check_device(table, device)?;
        check_device(table, peer)?;
        if device == peer { write(can, 0) } else { table.cuDeviceCanAccessPeer(can, device, peer) }
    }

    fn cudaSetValidDevices(devices: *mut c_int, len: c_int) |table| {
        if len < 0 || (len > 0 && devices.is_null()) {
            return Err(Error::INVALID_VALUE);
        }
        for index in 0..usize::try_from(len).unwrap_or(0) {
            check_device(table, devices.add(index).read())?;
        }
        // The first of the list is where a thread starts; this library starts no thread elsewhere.
        if len > 0 { context::choose_lazily(table, devices.read()) } else { Ok(()) }
    }

    fn cudaDeviceReset() |table| { context::reset(table) }
}

api! {
    fn cudaDeviceSynchronize() |table| { table.cuCtxSynchronize() }

    fn cudaDeviceEnablePeerAccess(peer: c_int, flags: c_uint) |table| {
        check_device(table, peer)?;
        table.cuCtxEnablePeerAccess(context::primary(table, peer)?, flags)
    }

    fn cudaDeviceDisablePeerAccess(peer: c_int) |table| {
        check_device(table, peer)?;
        table.cuCtxDisablePeerAccess(context::primary(table, peer)?)
    }

    fn cudaProfilerStart() |table| { optional(table.cuProfilerStart()) }

    fn cudaProfilerStop() |table| { optional(table.cuProfilerStop()) }

    fn cudaGetExportTable(out: *mut *const c_void, id: *const c_void) |table| {
        table.cuGetExportTable(out, id)
    }
}

/// A call that may be missing in a driver without harm.
fn optional(outcome: Outcome) -> Outcome {
    match outcome {
        Err(Error::NEWER_DRIVER | Error::NOT_SUPPORTED) => Ok(()),
        outcome => outcome,
    }
}

/// Looks a driver function up for a program; the driver's answer about it goes to `status`.
///
/// # Safety
/// `name` is null or a C string, `function` and `status` are null or valid for a write.
unsafe fn driver_entry_point(
    streams: Streams,
    name: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
    status: *mut c_int,
) -> c_int {
    entry::with_driver(streams, |table| {
        if name.is_null() || function.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        let mut found = null_mut();
        let mut answer = 0;
        // cudaEnableDefault leaves the choice to how the program was compiled.
        let flags = if flags == 0 && streams == Streams::PerThread { 2 } else { flags };
        // SAFETY: `name` is a C string, the rest are locals.
        let outcome = unsafe { table.cuGetProcAddress(name, &raw mut found, version, flags, &raw mut answer) };
        match outcome {
            Ok(()) | Err(Error::NOT_FOUND) => {}
            Err(error) => return Err(error),
        }
        if outcome.is_err() && answer == 0 {
            // A driver that gives the code only.
            answer = 1;
        }
        // SAFETY: not null, and so valid.
        unsafe { function.write(if answer == 0 { found } else { null_mut() }) };
        if !status.is_null() {
            // SAFETY: not null, and so valid.
            unsafe { status.write(answer) };
        }
        Ok(())
    })
}

macro_rules! entry_points {
    ($($name:ident = $streams:ident, $version:expr;)*) => {$(
        /// # Safety
        /// `name` is null or a C string, `function` and `status` are null or valid for a write.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            name: *const c_char, function: *mut *mut c_void, flags: u64, status: *mut c_int,
        ) -> c_int {
            // SAFETY: as the caller promises.
            unsafe { driver_entry_point(Streams::$streams, name, function, $version, flags, status) }
        }
    )*};
}

entry_points! {
    softcudart12_cudaGetDriverEntryPoint = Legacy, RUNTIME_12;
    softcudart12_cudaGetDriverEntryPoint_ptsz = PerThread, RUNTIME_12;
    softcudart13_cudaGetDriverEntryPoint = Legacy, RUNTIME_13;
    softcudart13_cudaGetDriverEntryPoint_ptsz = PerThread, RUNTIME_13;
}

macro_rules! versioned_entry_points {
    ($($name:ident = $streams:ident;)*) => {$(
        /// # Safety
        /// `name` is null or a C string, `function` and `status` are null or valid for a write.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            name: *const c_char, function: *mut *mut c_void, version: c_uint, flags: u64, status: *mut c_int,
        ) -> c_int {
            let version = c_int::try_from(version).unwrap_or(c_int::MAX);
            // SAFETY: as the caller promises.
            unsafe { driver_entry_point(Streams::$streams, name, function, version, flags, status) }
        }
    )*};
}

versioned_entry_points! {
    cudaGetDriverEntryPointByVersion = Legacy;
    cudaGetDriverEntryPointByVersion_ptsz = PerThread;
}

/// The pool that a device's allocations come from.
///
/// # Safety
/// `pool` is null or valid for a write.
unsafe fn default_pool(table: &Table, pool: *mut Handle, device: c_int) -> Outcome {
    check_device(table, device)?;
    // SAFETY: as the caller promises; the driver checks for null.
    unsafe { table.cuDeviceGetDefaultMemPool(pool, device) }
}

driver_only_api! {
    fn cudaDeviceGetDefaultMemPool(pool: *mut Handle, device: c_int) |table| { default_pool(table, pool, device) }

    fn cudaDeviceGetMemPool(pool: *mut Handle, device: c_int) |table| {
        check_device(table, device)?;
        table.cuDeviceGetMemPool(pool, device)
    }

    fn cudaDeviceSetMemPool(device: c_int, pool: Handle) |table| {
        check_device(table, device)?;
        table.cuDeviceSetMemPool(device, pool)
    }

    fn cudaDeviceGetGraphMemAttribute(device: c_int, attribute: c_int, value: *mut c_void) |table| {
        table.cuDeviceGetGraphMemAttribute(device, attribute, value)
    }

    fn cudaDeviceSetGraphMemAttribute(device: c_int, attribute: c_int, value: *mut c_void) |table| {
        table.cuDeviceSetGraphMemAttribute(device, attribute, value)
    }

    fn cudaDeviceGraphMemTrim(device: c_int) |table| { table.cuDeviceGraphMemTrim(device) }
}
