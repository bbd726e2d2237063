//! Stream-ordered memory.

use std::ffi::c_void;

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{AccessDesc, MemLocation, Opaque64, PoolProps};
use crate::memory::pool_calls as pools;

exports! {
    ptsz(stream) fn cuMemAllocAsync(ptr: Out<u64>, size: usize, stream: usize) = pools::alloc;
    ptsz(stream) fn cuMemAllocFromPoolAsync(ptr: Out<u64>, size: usize, pool: usize, stream: usize) = pools::alloc_from;
    ptsz(stream) fn cuMemFreeAsync(ptr: u64, stream: usize) = pools::free;
    plain fn cuMemPoolCreate(pool: Out<usize>, props: In<PoolProps>) = pools::create;
    plain fn cuMemPoolDestroy(pool: usize) = pools::destroy;
    plain fn cuMemPoolTrimTo(pool: usize, keep: usize) = pools::trim;
    plain fn cuMemPoolGetAttribute(pool: usize, attribute: u32, value: Out<c_void>) = pools::get_attribute;
    plain fn cuMemPoolSetAttribute(pool: usize, attribute: u32, value: Out<c_void>) = pools::set_attribute;
    plain fn cuMemPoolSetAccess(pool: usize, descriptors: In<AccessDesc>, count: usize) = pools::set_access;
    plain fn cuMemPoolGetAccess(flags: Out<u32>, pool: usize, location: In<MemLocation>) = pools::get_access;
    plain fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: i32) = pools::device_default;
    plain fn cuDeviceGetMemPool(pool: Out<usize>, device: i32) = pools::device_current;
    plain fn cuDeviceSetMemPool(device: i32, pool: usize) = pools::set_device_current;
    plain fn cuMemGetDefaultMemPool(pool: Out<usize>, location: In<MemLocation>, kind: u32) [13000] = pools::location_default;
    plain fn cuMemGetMemPool(pool: Out<usize>, location: In<MemLocation>, kind: u32) [13000] = pools::location_current;
    plain fn cuMemSetMemPool(location: In<MemLocation>, kind: u32, pool: usize) [13000] = pools::set_location_current;
    plain fn cuMemPoolExportToShareableHandle(handle: Out<c_void>, pool: usize, kind: u32, flags: u64) = pools::export;
    plain fn cuMemPoolImportFromShareableHandle(pool: Out<usize>, handle: usize, kind: u32, flags: u64) = pools::import;
    plain fn cuMemPoolExportPointer(data: Out<Opaque64>, ptr: u64) = pools::export_pointer;
    plain fn cuMemPoolImportPointer(ptr: Out<u64>, pool: usize, data: In<Opaque64>) = pools::import_pointer;
    plain fn cuDeviceGetGraphMemAttribute(device: i32, attribute: u32, value: Out<u64>) = pools::graph_attribute;
    plain fn cuDeviceSetGraphMemAttribute(device: i32, attribute: u32, value: In<u64>) = pools::set_graph_attribute;
    plain fn cuDeviceGraphMemTrim(device: i32) = pools::graph_trim;
}
