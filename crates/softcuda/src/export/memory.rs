//! Device memory, host memory, pointers, virtual memory, arrays, sharing between processes.

use std::ffi::c_void;

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{AccessDesc, AllocationProp, Array3DDescriptor, ArrayDescriptor, MemLocation, Opaque64};
use crate::memory::{arrays, host, ipc, plain, pointers, virtual_memory as vmm};

exports! {
    plain fn cuMemGetInfo(free: Out<u32>, total: Out<u32>) = plain::info_v1;
    plain fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) = plain::info;
    plain fn cuMemAlloc(ptr: Out<u32>, size: u32) = plain::alloc_v1;
    plain fn cuMemAlloc_v2(ptr: Out<u64>, size: usize) = plain::alloc;
    plain fn cuMemAllocPitch_v2(ptr: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) = plain::alloc_pitch;
    plain fn cuMemAllocManaged(ptr: Out<u64>, size: usize, flags: u32) = plain::alloc_managed;
    plain fn cuMemFree(ptr: u32) = plain::free_v1;
    plain fn cuMemFree_v2(ptr: u64) = plain::free;
    plain fn cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, ptr: u64) = plain::address_range;
    plain fn cuMemAllocHost(ptr: Out<u64>, size: u32) = host::alloc_v1;
    plain fn cuMemAllocHost_v2(ptr: Out<u64>, size: usize) = host::alloc;
    plain fn cuMemHostAlloc(ptr: Out<u64>, size: usize, flags: u32) = host::alloc_flags;
    plain fn cuMemFreeHost(ptr: u64) = host::free;
    plain fn cuMemHostRegister(ptr: u64, size: usize, flags: u32) = host::register;
    plain fn cuMemHostRegister_v2(ptr: u64, size: usize, flags: u32) [6050] = host::register;
    plain fn cuMemHostUnregister(ptr: u64) = host::unregister;
    plain fn cuMemHostGetDevicePointer_v2(device: Out<u64>, ptr: u64, flags: u32) = host::device_pointer;
    plain fn cuMemHostGetFlags(flags: Out<u32>, ptr: u64) = host::flags;
    plain fn cuPointerGetAttribute(data: Out<c_void>, attribute: u32, ptr: u64) = pointers::attribute;
    plain fn cuPointerGetAttributes(count: u32, attributes: In<u32>, data: In<*mut c_void>, ptr: u64) = pointers::attributes;
    plain fn cuPointerSetAttribute(value: In<u32>, attribute: u32, ptr: u64) = pointers::set_attribute;
    plain fn cuMemGetHandleForAddressRange(handle: Out<i32>, ptr: u64, size: usize, kind: u32, flags: u64) = pointers::handle_for_range;
    plain fn cuMemRangeGetAttribute(data: Out<c_void>, size: usize, attribute: u32, ptr: u64, count: usize) = pointers::range_attribute;
    plain fn cuMemRangeGetAttributes(data: In<*mut c_void>, sizes: In<usize>, attributes: In<u32>, attribute_count: usize, ptr: u64, count: usize) = pointers::range_attributes;
    plain fn cuMemAdvise(ptr: u64, size: usize, advice: u32, device: i32) = pointers::advise_v1;
    plain fn cuMemAdvise_v2(ptr: u64, size: usize, advice: u32, location: MemLocation) [12020] = pointers::advise;
    ptsz(stream) fn cuMemPrefetchAsync(ptr: u64, size: usize, device: i32, stream: usize) = pointers::prefetch_v1;
    ptsz(stream) fn cuMemPrefetchAsync_v2(ptr: u64, size: usize, location: MemLocation, flags: u32, stream: usize) [12020] = pointers::prefetch;
    ptsz(stream) fn cuMemPrefetchBatchAsync(ptrs: In<u64>, sizes: In<usize>, count: usize, locations: In<MemLocation>, indices: In<usize>, location_count: usize, flags: u64, stream: usize) = pointers::prefetch_batch;
    ptsz(stream) fn cuMemDiscardBatchAsync(ptrs: In<u64>, sizes: In<usize>, count: usize, flags: u64, stream: usize) = pointers::discard_batch;
    ptsz(stream) fn cuMemDiscardAndPrefetchBatchAsync(ptrs: In<u64>, sizes: In<usize>, count: usize, locations: In<MemLocation>, indices: In<usize>, location_count: usize, flags: u64, stream: usize) = pointers::prefetch_batch;

    plain fn cuMemAddressReserve(ptr: Out<u64>, size: usize, alignment: usize, hint: u64, flags: u64) = vmm::reserve;
    plain fn cuMemAddressFree(ptr: u64, size: usize) = vmm::unreserve;
    plain fn cuMemCreate(handle: Out<u64>, size: usize, prop: In<AllocationProp>, flags: u64) = vmm::create;
    plain fn cuMemRelease(handle: u64) = vmm::release;
    plain fn cuMemMap(ptr: u64, size: usize, offset: usize, handle: u64, flags: u64) = vmm::map;
    plain fn cuMemUnmap(ptr: u64, size: usize) = vmm::unmap;
    plain fn cuMemSetAccess(ptr: u64, size: usize, descriptors: In<AccessDesc>, count: usize) = vmm::set_access;
    plain fn cuMemGetAccess(flags: Out<u64>, location: In<MemLocation>, ptr: u64) = vmm::get_access;
    plain fn cuMemGetAllocationGranularity(granularity: Out<usize>, prop: In<AllocationProp>, option: u32) = vmm::granularity;
    plain fn cuMemGetAllocationPropertiesFromHandle(prop: Out<AllocationProp>, handle: u64) = vmm::properties;
    plain fn cuMemRetainAllocationHandle(handle: Out<u64>, ptr: u64) = vmm::retain;
    plain fn cuMemExportToShareableHandle(shareable: Out<c_void>, handle: u64, kind: u32, flags: u64) = vmm::export;
    plain fn cuMemImportFromShareableHandle(handle: Out<u64>, shareable: usize, kind: u32) = vmm::import;

    plain fn cuArrayCreate_v2(array: Out<usize>, descriptor: In<ArrayDescriptor>) = arrays::create;
    plain fn cuArrayGetDescriptor_v2(descriptor: Out<ArrayDescriptor>, array: usize) = arrays::descriptor;
    plain fn cuArray3DCreate_v2(array: Out<usize>, descriptor: In<Array3DDescriptor>) = arrays::create_3d;
    plain fn cuArray3DGetDescriptor_v2(descriptor: Out<Array3DDescriptor>, array: usize) = arrays::descriptor_3d;
    plain fn cuArrayDestroy(array: usize) = arrays::destroy;
    plain fn cuArrayGetMemoryRequirements(requirements: Out<[usize; 4]>, array: usize, device: i32) = arrays::requirements;
    plain fn cuMipmappedArrayCreate(array: Out<usize>, descriptor: In<Array3DDescriptor>, levels: u32) = arrays::create_mipmapped;
    plain fn cuMipmappedArrayGetLevel(level_array: Out<usize>, array: usize, level: u32) = arrays::level;
    plain fn cuMipmappedArrayDestroy(array: usize) = arrays::destroy_mipmapped;
    plain fn cuMipmappedArrayGetMemoryRequirements(requirements: Out<[usize; 4]>, array: usize, device: i32) = arrays::mipmapped_requirements;

    plain fn cuIpcGetMemHandle(handle: Out<Opaque64>, ptr: u64) = ipc::get_memory;
    plain fn cuIpcOpenMemHandle(ptr: Out<u64>, handle: Opaque64, flags: u32) = ipc::open_memory;
    plain fn cuIpcOpenMemHandle_v2(ptr: Out<u64>, handle: Opaque64, flags: u32) [11000] = ipc::open_memory;
    plain fn cuIpcCloseMemHandle(ptr: u64) = ipc::close_memory;
    plain fn cuIpcGetEventHandle(handle: Out<Opaque64>, event: usize) = ipc::get_event;
    plain fn cuIpcOpenEventHandle(event: Out<usize>, handle: Opaque64) = ipc::open_event;
}
