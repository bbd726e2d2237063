//! Advice about managed memory. CUDA 12 names places by a device's number, CUDA 13 by location.

use std::ffi::{c_int, c_uint, c_void};

use super::address;
use crate::driver::types::{DevicePtr, Handle, MemLocation};
use crate::entry::{forward, forward_stream};

forward! {
    softcudart12_cudaMemAdvise(ptr: *const c_void, bytes: usize, advice: c_int, device: c_int)
        => cuMemAdvise(address(ptr), bytes, advice, MemLocation::from_device(device));
    softcudart12_cudaMemAdvise_v2(ptr: *const c_void, bytes: usize, advice: c_int, location: MemLocation)
        => cuMemAdvise(address(ptr), bytes, advice, location);
    softcudart13_cudaMemAdvise(ptr: *const c_void, bytes: usize, advice: c_int, location: MemLocation)
        => cuMemAdvise(address(ptr), bytes, advice, location);
    cudaMemRangeGetAttribute(value: *mut c_void, size: usize, attribute: c_int, ptr: *const c_void, bytes: usize)
        => cuMemRangeGetAttribute(value, size, attribute, address(ptr), bytes);
    cudaMemRangeGetAttributes(
        values: *mut *mut c_void, sizes: *mut usize, attributes: *mut c_int, count: usize, ptr: *const c_void,
        bytes: usize
    ) => cuMemRangeGetAttributes(values, sizes, attributes, count, address(ptr), bytes);
}

forward_stream! {
    softcudart12_cudaMemPrefetchAsync / softcudart12_cudaMemPrefetchAsync_ptsz(
        ptr: *const c_void, bytes: usize, device: c_int, stream: Handle
    ) => cuMemPrefetchAsync(address(ptr), bytes, MemLocation::from_device(device), 0, stream);
    softcudart12_cudaMemPrefetchAsync_v2 / softcudart12_cudaMemPrefetchAsync_v2_ptsz(
        ptr: *const c_void, bytes: usize, location: MemLocation, flags: c_uint, stream: Handle
    ) => cuMemPrefetchAsync(address(ptr), bytes, location, flags, stream);
    softcudart13_cudaMemPrefetchAsync / softcudart13_cudaMemPrefetchAsync_ptsz(
        ptr: *const c_void, bytes: usize, location: MemLocation, flags: c_uint, stream: Handle
    ) => cuMemPrefetchAsync(address(ptr), bytes, location, flags, stream);
    softcudart13_cudaMemPrefetchBatchAsync / softcudart13_cudaMemPrefetchBatchAsync_ptsz(
        ptrs: *mut DevicePtr, sizes: *mut usize, count: usize, locations: *mut c_void, indices: *mut usize,
        location_count: usize, flags: u64, stream: Handle
    ) => cuMemPrefetchBatchAsync(ptrs, sizes, count, locations, indices, location_count, flags, stream);
    softcudart13_cudaMemDiscardBatchAsync / softcudart13_cudaMemDiscardBatchAsync_ptsz(
        ptrs: *mut DevicePtr, sizes: *mut usize, count: usize, flags: u64, stream: Handle
    ) => cuMemDiscardBatchAsync(ptrs, sizes, count, flags, stream);
    softcudart13_cudaMemDiscardAndPrefetchBatchAsync / softcudart13_cudaMemDiscardAndPrefetchBatchAsync_ptsz(
        ptrs: *mut DevicePtr, sizes: *mut usize, count: usize, locations: *mut c_void, indices: *mut usize,
        location_count: usize, flags: u64, stream: Handle
    ) => cuMemDiscardAndPrefetchBatchAsync(ptrs, sizes, count, locations, indices, location_count, flags, stream);
}
