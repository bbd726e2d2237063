//! Every entry point of the driver that is interposed, in the order of `cuda.h`'s chapters, and who handles it.
//!
//! A name without a suffix beside one with `_ptsz` is the same call for programs built with the per-thread default stream: a null
//! stream means another thing there.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr::NonNull;

use crate::abi::*;
use crate::hooks::{arrays, context, graph, host, info, ordered, plain, pools, share, stream, vmm};
use crate::table::interpose;
use crate::{guard, resolve};

interpose! {
    hooked {
        // ---- resolution ----
        fn cuGetProcAddress(symbol: *const c_char, found: *mut *mut c_void, version: c_int, flags: c_ulonglong) => resolve::proc_address;
        fn cuGetProcAddress_v2(symbol: *const c_char, found: *mut *mut c_void, version: c_int, flags: c_ulonglong, status: *mut c_int) => resolve::proc_address_v2;
        // ---- device memory ----
        fn cuMemAlloc_v2(ptr: *mut CUdeviceptr, size: usize) => plain::alloc;
        fn cuMemAllocPitch_v2(ptr: *mut CUdeviceptr, pitch: *mut usize, width: usize, height: usize, element: c_uint) => plain::alloc_pitch;
        fn cuMemAllocManaged(ptr: *mut CUdeviceptr, size: usize, flags: c_uint) => plain::alloc_managed;
        fn cuMemFree_v2(ptr: CUdeviceptr) => plain::free;
        fn cuMemAllocAsync(ptr: *mut CUdeviceptr, size: usize, stream: Opaque) => ordered::alloc;
        fn cuMemAllocAsync_ptsz(ptr: *mut CUdeviceptr, size: usize, stream: Opaque) => ordered::alloc_ptsz;
        fn cuMemAllocFromPoolAsync(ptr: *mut CUdeviceptr, size: usize, pool: Opaque, stream: Opaque) => ordered::alloc_from_pool;
        fn cuMemAllocFromPoolAsync_ptsz(ptr: *mut CUdeviceptr, size: usize, pool: Opaque, stream: Opaque) => ordered::alloc_from_pool_ptsz;
        fn cuMemFreeAsync(ptr: CUdeviceptr, stream: Opaque) => ordered::free;
        fn cuMemFreeAsync_ptsz(ptr: CUdeviceptr, stream: Opaque) => ordered::free_ptsz;
        // ---- pools ----
        fn cuMemPoolCreate(pool: *mut Opaque, props: *const CUmemPoolProps) => pools::create;
        fn cuMemPoolDestroy(pool: Opaque) => pools::destroy;
        fn cuMemPoolTrimTo(pool: Opaque, keep: usize) => pools::trim;
        fn cuMemPoolGetAttribute(pool: Opaque, attribute: c_int, value: *mut c_void) => pools::get_attribute;
        fn cuMemPoolSetAttribute(pool: Opaque, attribute: c_int, value: *mut c_void) => pools::set_attribute;
        fn cuMemPoolSetAccess(pool: Opaque, access: *const CUmemAccessDesc, count: usize) => pools::set_access;
        fn cuMemPoolImportFromShareableHandle(pool: *mut Opaque, handle: *mut c_void, kind: c_int, flags: c_ulonglong) => pools::import;
        fn cuMemPoolImportPointer(ptr: *mut CUdeviceptr, pool: Opaque, data: *mut c_void) => pools::import_pointer;
        fn cuMemPoolExportPointer(data: *mut c_void, ptr: CUdeviceptr) => share::export_pool_pointer;
        fn cuDeviceSetMemPool(device: CUdevice, pool: Opaque) => pools::set_current;
        fn cuMemSetMemPool(location: *mut CUmemLocation, kind: c_int, pool: Opaque) => pools::set_current_at;
        // ---- virtual memory ----
        fn cuMemAddressReserve(ptr: *mut CUdeviceptr, size: usize, alignment: usize, hint: CUdeviceptr, flags: c_ulonglong) => vmm::reserve;
        fn cuMemAddressFree(ptr: CUdeviceptr, size: usize) => vmm::unreserve;
        fn cuMemCreate(handle: *mut CUmemHandle, size: usize, prop: *const CUmemAllocationProp, flags: c_ulonglong) => vmm::create;
        fn cuMemRelease(handle: CUmemHandle) => vmm::release;
        fn cuMemMap(ptr: CUdeviceptr, size: usize, offset: usize, handle: CUmemHandle, flags: c_ulonglong) => vmm::map;
        fn cuMemUnmap(ptr: CUdeviceptr, size: usize) => vmm::unmap;
        fn cuMemImportFromShareableHandle(handle: *mut CUmemHandle, os_handle: *mut c_void, kind: c_int) => vmm::import;
        fn cuMemRetainAllocationHandle(handle: *mut CUmemHandle, address: *mut c_void) => share::retain_handle;
        fn cuMemGetHandleForAddressRange(handle: *mut c_void, ptr: CUdeviceptr, size: usize, kind: c_int, flags: c_ulonglong) => share::handle_for_range;
        fn cuMulticastBindAddr(handle: CUmemHandle, offset: usize, ptr: CUdeviceptr, size: usize, flags: c_ulonglong) => share::bind_address;
        fn cuMulticastBindAddr_v2(handle: CUmemHandle, device: CUdevice, offset: usize, ptr: CUdeviceptr, size: usize, flags: c_ulonglong) => share::bind_address_v2;
        // ---- arrays ----
        fn cuArrayCreate_v2(array: *mut Opaque, desc: *const CUDA_ARRAY_DESCRIPTOR) => arrays::create;
        fn cuArray3DCreate_v2(array: *mut Opaque, desc: *const CUDA_ARRAY3D_DESCRIPTOR) => arrays::create_3d;
        fn cuArrayDestroy(array: Opaque) => arrays::destroy;
        fn cuMipmappedArrayCreate(array: *mut Opaque, desc: *const CUDA_ARRAY3D_DESCRIPTOR, levels: c_uint) => arrays::create_mipmapped;
        fn cuMipmappedArrayDestroy(array: Opaque) => arrays::destroy_mipmapped;
        // ---- host memory ----
        fn cuMemAllocHost_v2(ptr: *mut *mut c_void, size: usize) => host::alloc;
        fn cuMemHostAlloc(ptr: *mut *mut c_void, size: usize, flags: c_uint) => host::alloc_flags;
        fn cuMemFreeHost(ptr: *mut c_void) => host::free;
        fn cuMemHostRegister_v2(ptr: *mut c_void, size: usize, flags: c_uint) => host::register;
        fn cuMemHostUnregister(ptr: *mut c_void) => host::unregister;
        // ---- memory of others ----
        fn cuIpcGetMemHandle(handle: *mut CUipcMemHandle, ptr: CUdeviceptr) => share::ipc_get;
        fn cuIpcOpenMemHandle(ptr: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) => share::ipc_open_v1;
        fn cuIpcOpenMemHandle_v2(ptr: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) => share::ipc_open;
        fn cuIpcCloseMemHandle(ptr: CUdeviceptr) => share::ipc_close;
        fn cuImportExternalMemory(memory: *mut Opaque, desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC) => share::import_external;
        fn cuExternalMemoryGetMappedBuffer(ptr: *mut CUdeviceptr, memory: Opaque, desc: *const c_void) => share::external_buffer;
        fn cuExternalMemoryGetMappedMipmappedArray(array: *mut Opaque, memory: Opaque, desc: *const c_void) => share::external_array;
        fn cuDestroyExternalMemory(memory: Opaque) => share::destroy_external;
        // ---- what is said of memory ----
        fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) => info::mem_info;
        fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) => info::total;
        fn cuMemGetAddressRange_v2(base: *mut CUdeviceptr, size: *mut usize, ptr: CUdeviceptr) => info::address_range;
        fn cuPointerGetAttribute(data: *mut c_void, attribute: c_int, ptr: CUdeviceptr) => info::attribute;
        fn cuPointerGetAttributes(count: c_uint, attributes: *mut c_int, data: *mut *mut c_void, ptr: CUdeviceptr) => info::attributes;
        // ---- contexts ----
        fn cuDevicePrimaryCtxRetain(context: *mut Opaque, device: CUdevice) => context::retain;
        // The first versions are no history: NVIDIA's runtime asks for these, by the version 7000.
        fn cuDevicePrimaryCtxRelease(device: CUdevice) => context::release;
        fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) => context::release;
        fn cuDevicePrimaryCtxReset(device: CUdevice) => context::reset;
        fn cuDevicePrimaryCtxReset_v2(device: CUdevice) => context::reset;
        fn cuCtxDestroy_v2(context: Opaque) => context::destroy;
        fn cuCtxEnablePeerAccess(peer: Opaque, flags: c_uint) => context::enable_peer;
        // ---- streams and captures ----
        fn cuStreamDestroy_v2(stream: Opaque) => stream::destroy;
        fn cuStreamBeginCapture_v2(stream: Opaque, mode: c_int) => stream::begin_capture;
        fn cuStreamBeginCapture_v2_ptsz(stream: Opaque, mode: c_int) => stream::begin_capture_ptsz;
        fn cuStreamBeginCaptureToGraph(stream: Opaque, graph: Opaque, dependencies: *const Opaque, data: *const c_void, count: usize, mode: c_int) => stream::begin_capture_to;
        fn cuStreamBeginCaptureToGraph_ptsz(stream: Opaque, graph: Opaque, dependencies: *const Opaque, data: *const c_void, count: usize, mode: c_int) => stream::begin_capture_to_ptsz;
        fn cuStreamEndCapture(stream: Opaque, graph: *mut Opaque) => stream::end_capture;
        fn cuStreamEndCapture_ptsz(stream: Opaque, graph: *mut Opaque) => stream::end_capture_ptsz;
        // ---- graphs ----
        fn cuGraphAddMemAllocNode(node: *mut Opaque, graph: Opaque, dependencies: *const Opaque, count: usize, params: *mut CUDA_MEM_ALLOC_NODE_PARAMS) => graph::add_alloc;
        fn cuGraphAddNode(node: *mut Opaque, graph: Opaque, dependencies: *const Opaque, count: usize, params: *mut CUgraphNodeParams) => graph::add_node;
        fn cuGraphAddNode_v2(node: *mut Opaque, graph: Opaque, dependencies: *const Opaque, data: *const c_void, count: usize, params: *mut CUgraphNodeParams) => graph::add_node_v2;
    }
    counted {
        fn cuInit(flags: c_uint);
        fn cuGetExportTable(table: *mut *const c_void, id: *const c_void);
        fn cuMemMapArrayAsync(list: *mut c_void, count: c_uint, stream: Opaque);
        fn cuMemMapArrayAsync_ptsz(list: *mut c_void, count: c_uint, stream: Opaque);
        fn cuMemSetAccess(ptr: CUdeviceptr, size: usize, access: *const CUmemAccessDesc, count: usize);
        fn cuMemGetAccess(flags: *mut c_ulonglong, location: *const CUmemLocation, ptr: CUdeviceptr);
        fn cuMemGetAllocationPropertiesFromHandle(prop: *mut CUmemAllocationProp, handle: CUmemHandle);
        fn cuMemExportToShareableHandle(shareable: *mut c_void, handle: CUmemHandle, kind: c_int, flags: c_ulonglong);
        fn cuMemPoolExportToShareableHandle(handle: *mut c_void, pool: Opaque, kind: c_int, flags: c_ulonglong);
        fn cuDeviceGetDefaultMemPool(pool: *mut Opaque, device: CUdevice);
        fn cuDeviceGetMemPool(pool: *mut Opaque, device: CUdevice);
        fn cuMemGetDefaultMemPool(pool: *mut Opaque, location: *mut CUmemLocation, kind: c_int);
        fn cuMemGetMemPool(pool: *mut Opaque, location: *mut CUmemLocation, kind: c_int);
        fn cuDeviceGetGraphMemAttribute(device: CUdevice, attribute: c_int, value: *mut c_void);
        fn cuDeviceSetGraphMemAttribute(device: CUdevice, attribute: c_int, value: *mut c_void);
        fn cuDeviceGraphMemTrim(device: CUdevice);
        fn cuGraphAddMemFreeNode(node: *mut Opaque, graph: Opaque, dependencies: *const Opaque, count: usize, ptr: CUdeviceptr);
        fn cuGraphDestroy(graph: Opaque);
        fn cuGraphExecDestroy(exec: Opaque);
        fn cuGraphInstantiate(exec: *mut Opaque, graph: Opaque, error: *mut Opaque, log: *mut c_char, size: usize);
        fn cuGraphInstantiate_v2(exec: *mut Opaque, graph: Opaque, error: *mut Opaque, log: *mut c_char, size: usize);
        fn cuGraphInstantiateWithFlags(exec: *mut Opaque, graph: Opaque, flags: c_ulonglong);
        fn cuGraphInstantiateWithParams(exec: *mut Opaque, graph: Opaque, params: *mut c_void);
        fn cuGraphInstantiateWithParams_ptsz(exec: *mut Opaque, graph: Opaque, params: *mut c_void);
        fn cuGraphLaunch(exec: Opaque, stream: Opaque);
        fn cuGraphLaunch_ptsz(exec: Opaque, stream: Opaque);
        fn cuCtxCreate_v2(context: *mut Opaque, flags: c_uint, device: CUdevice);
        fn cuCtxCreate_v3(context: *mut Opaque, params: *mut c_void, count: c_int, flags: c_uint, device: CUdevice);
        fn cuCtxCreate_v4(context: *mut Opaque, params: *mut c_void, flags: c_uint, device: CUdevice);
        fn cuCtxSetLimit(limit: c_int, value: usize);
        fn cuModuleLoad(module: *mut Opaque, name: *const c_char);
        fn cuModuleLoadData(module: *mut Opaque, image: *const c_void);
        fn cuModuleLoadDataEx(module: *mut Opaque, image: *const c_void, count: c_uint, options: *mut c_int, values: *mut *mut c_void);
        fn cuModuleLoadFatBinary(module: *mut Opaque, image: *const c_void);
        fn cuLibraryLoadData(library: *mut Opaque, code: *const c_void, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint);
        fn cuLibraryLoadFromFile(library: *mut Opaque, name: *const c_char, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint);
        fn cuMulticastCreate(handle: *mut CUmemHandle, prop: *const c_void);
        fn cuMulticastBindMem(handle: CUmemHandle, offset: usize, memory: CUmemHandle, memory_offset: usize, size: usize, flags: c_ulonglong);
        fn cuMulticastBindMem_v2(handle: CUmemHandle, device: CUdevice, offset: usize, memory: CUmemHandle, memory_offset: usize, size: usize, flags: c_ulonglong);
        fn cuMemPrefetchBatchAsync(ptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, location_count: usize, flags: c_ulonglong, stream: Opaque);
        fn cuMemPrefetchBatchAsync_ptsz(ptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, location_count: usize, flags: c_ulonglong, stream: Opaque);
        fn cuMemDiscardBatchAsync(ptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, flags: c_ulonglong, stream: Opaque);
        fn cuMemDiscardBatchAsync_ptsz(ptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, flags: c_ulonglong, stream: Opaque);
        fn cuMemDiscardAndPrefetchBatchAsync(ptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, location_count: usize, flags: c_ulonglong, stream: Opaque);
        fn cuMemDiscardAndPrefetchBatchAsync_ptsz(ptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, locations: *mut CUmemLocation, indices: *mut usize, location_count: usize, flags: c_ulonglong, stream: Opaque);
        fn cuMemcpyBatchAsync_v2(dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, attribute_count: usize, stream: Opaque);
        fn cuMemcpyBatchAsync_v2_ptsz(dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, attribute_count: usize, stream: Opaque);
        fn cuMemcpy3DBatchAsync_v2(count: usize, list: *mut c_void, flags: c_ulonglong, stream: Opaque);
        fn cuMemcpy3DBatchAsync_v2_ptsz(count: usize, list: *mut c_void, flags: c_ulonglong, stream: Opaque);
        fn cuMemcpyWithAttributesAsync(dst: CUdeviceptr, src: CUdeviceptr, size: usize, attributes: *mut c_void, stream: Opaque);
        fn cuMemcpyWithAttributesAsync_ptsz(dst: CUdeviceptr, src: CUdeviceptr, size: usize, attributes: *mut c_void, stream: Opaque);
        fn cuMemcpy3DWithAttributesAsync(operation: *mut c_void, flags: c_ulonglong, stream: Opaque);
        fn cuMemcpy3DWithAttributesAsync_ptsz(operation: *mut c_void, flags: c_ulonglong, stream: Opaque);
    }
    needed {
        fn cuCtxGetCurrent(context: *mut Opaque);
        fn cuCtxGetDevice(device: *mut CUdevice);
        fn cuCtxPushCurrent_v2(context: Opaque);
        fn cuCtxPopCurrent_v2(context: *mut Opaque);
        fn cuCtxSynchronize();
        fn cuStreamGetCtx(stream: Opaque, context: *mut Opaque);
        fn cuStreamIsCapturing(stream: Opaque, status: *mut c_int);
        fn cuStreamIsCapturing_ptsz(stream: Opaque, status: *mut c_int);
        fn cuStreamSynchronize(stream: Opaque);
        fn cuStreamSynchronize_ptsz(stream: Opaque);
        fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int);
        fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut c_uint, active: *mut c_int);
        fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: CUdevice);
        fn cuDeviceGetCount(count: *mut c_int);
        fn cuArrayGetMemoryRequirements(requirements: *mut CUDA_ARRAY_MEMORY_REQUIREMENTS, array: Opaque, device: CUdevice);
        fn cuMipmappedArrayGetMemoryRequirements(requirements: *mut CUDA_ARRAY_MEMORY_REQUIREMENTS, array: Opaque, device: CUdevice);
    }
}
