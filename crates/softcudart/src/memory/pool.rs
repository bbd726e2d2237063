//! Pools of stream-ordered memory. Their structures are the same in runtime and driver.

use std::ffi::{c_int, c_void};

use super::{address, pointer};
use crate::driver::types::{Handle, MemLocation, PoolPointerExport};
use crate::entry::{api, forward, write};

forward! {
    cudaMemPoolCreate(pool: *mut Handle, props: *const c_void) => cuMemPoolCreate(pool, props);
    cudaMemPoolDestroy(pool: Handle) => cuMemPoolDestroy(pool);
    cudaMemPoolTrimTo(pool: Handle, keep: usize) => cuMemPoolTrimTo(pool, keep);
    cudaMemPoolSetAttribute(pool: Handle, attribute: c_int, value: *mut c_void)
        => cuMemPoolSetAttribute(pool, attribute, value);
    cudaMemPoolGetAttribute(pool: Handle, attribute: c_int, value: *mut c_void)
        => cuMemPoolGetAttribute(pool, attribute, value);
    cudaMemPoolSetAccess(pool: Handle, descriptors: *const c_void, count: usize)
        => cuMemPoolSetAccess(pool, descriptors, count);
    cudaMemPoolGetAccess(flags: *mut c_int, pool: Handle, location: *mut MemLocation)
        => cuMemPoolGetAccess(flags, pool, location);
    cudaMemPoolExportToShareableHandle(handle: *mut c_void, pool: Handle, kind: c_int, flags: u32)
        => cuMemPoolExportToShareableHandle(handle, pool, kind, u64::from(flags));
    cudaMemPoolImportFromShareableHandle(pool: *mut Handle, handle: *mut c_void, kind: c_int, flags: u32)
        => cuMemPoolImportFromShareableHandle(pool, handle, kind, u64::from(flags));
    cudaMemPoolExportPointer(data: *mut PoolPointerExport, ptr: *mut c_void)
        => cuMemPoolExportPointer(data, address(ptr));
    softcudart13_cudaMemGetDefaultMemPool(pool: *mut Handle, location: *mut MemLocation, kind: c_int)
        => cuMemGetDefaultMemPool(pool, location, kind);
    softcudart13_cudaMemGetMemPool(pool: *mut Handle, location: *mut MemLocation, kind: c_int)
        => cuMemGetMemPool(pool, location, kind);
    softcudart13_cudaMemSetMemPool(location: *mut MemLocation, kind: c_int, pool: Handle)
        => cuMemSetMemPool(location, kind, pool);
}

api! {
    fn cudaMemPoolImportPointer(out: *mut *mut c_void, pool: Handle, data: *mut PoolPointerExport) |table| {
        let mut ptr = 0;
        table.cuMemPoolImportPointer(&raw mut ptr, pool, data)?;
        write(out, pointer(ptr))
    }
}
