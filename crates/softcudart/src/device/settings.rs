//! Limits, caches, flags and priorities of the current device.

use std::ffi::{c_int, c_uint};

use super::check_device;
use crate::context;
use crate::entry::{api, driver_only_api, forward, write};

forward! {
    cudaDeviceGetLimit(value: *mut usize, limit: c_int) => cuCtxGetLimit(value, limit);
    cudaDeviceSetLimit(limit: c_int, value: usize) => cuCtxSetLimit(limit, value);
    cudaDeviceGetCacheConfig(config: *mut c_int) => cuCtxGetCacheConfig(config);
    cudaDeviceSetCacheConfig(config: c_int) => cuCtxSetCacheConfig(config);
    cudaDeviceGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int)
        => cuCtxGetStreamPriorityRange(least, greatest);
    cudaCtxResetPersistingL2Cache() => cuCtxResetPersistingL2Cache();
    cudaDeviceFlushGPUDirectRDMAWrites(target: c_int, scope: c_int) => cuFlushGPUDirectRDMAWrites(target, scope);
}

api! {
    // Shared memory has had banks of four bytes on every device since Maxwell, and no other setting.
    fn cudaDeviceGetSharedMemConfig(config: *mut c_int) |_table| { write(config, 1) }

    fn cudaDeviceSetSharedMemConfig(_config: c_int) |_table| { Ok(()) }
}

driver_only_api! {
    fn cudaSetDeviceFlags(flags: c_uint) |table| {
        table.cuDevicePrimaryCtxSetFlags(context::device(table)?, flags)
    }

    fn cudaGetDeviceFlags(flags: *mut c_uint) |table| {
        let device = context::device(table)?;
        check_device(table, device)?;
        let mut active = 0;
        table.cuDevicePrimaryCtxGetState(device, flags, &raw mut active)
    }
}
