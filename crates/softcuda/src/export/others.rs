//! Green contexts, tensor maps, logs, the profiler, external memory.

use std::ffi::c_void;

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{DevResource, Text};
use crate::process::{green, others};

exports! {
    plain fn cuDeviceGetDevResource(device: i32, resource: Out<DevResource>, kind: u32) = green::device_resource;
    plain fn cuCtxGetDevResource(context: usize, resource: Out<DevResource>, kind: u32) = green::context_resource;
    plain fn cuGreenCtxGetDevResource(green: usize, resource: Out<DevResource>, kind: u32) = green::green_resource;
    plain fn cuDevSmResourceSplitByCount(result: Out<DevResource>, groups: Out<u32>, input: In<DevResource>, remaining: Out<DevResource>, flags: u32, minimum: u32) = green::split;
    plain fn cuDevResourceGenerateDesc(descriptor: Out<usize>, resources: In<DevResource>, count: u32) = green::describe;
    plain fn cuGreenCtxCreate(green: Out<usize>, descriptor: usize, device: i32, flags: u32) = green::create;
    plain fn cuGreenCtxDestroy(green: usize) = green::destroy;
    plain fn cuCtxFromGreenCtx(context: Out<usize>, green: usize) = green::context;
    plain fn cuGreenCtxStreamCreate(stream: Out<usize>, green: usize, flags: u32, priority: i32) = green::create_stream;
    plain fn cuGreenCtxRecordEvent(green: usize, event: usize) = green::record_event;
    plain fn cuGreenCtxWaitEvent(green: usize, event: usize) = green::wait_event;
    ptsz(stream) fn cuStreamGetGreenCtx(stream: usize, green: Out<usize>) = green::of_stream;

    plain fn cuTensorMapEncodeTiled(map: Out<[u64; 16]>, data_type: u32, rank: u32, address: u64, dims: In<u64>, strides: In<u64>, boxes: In<u32>, element_strides: In<u32>, interleave: u32, swizzle: u32, promotion: u32, fill: u32) = others::encode_tiled;
    plain fn cuTensorMapReplaceAddress(map: Out<[u64; 16]>, address: u64) = others::replace_address;
    plain fn cuLogsRegisterCallback(callback: *const c_void, data: *mut c_void, handle: Out<usize>) = others::register_logs;
    plain fn cuLogsUnregisterCallback(handle: usize) = others::unregister_logs;
    plain fn cuProfilerInitialize(config: Text, output: Text, mode: u32) = others::profiler_initialize;
    plain fn cuProfilerStart() = others::nothing;
    plain fn cuProfilerStop() = others::nothing;
    plain fn cuFlushGPUDirectRDMAWrites(target: u32, scope: u32) = others::flush_rdma;
    plain fn cuImportExternalMemory(memory: Out<usize>, descriptor: *const c_void) = others::import_external;
    plain fn cuDestroyExternalMemory(memory: usize) = others::unknown_handle;
    plain fn cuExternalMemoryGetMappedBuffer(ptr: Out<u64>, memory: usize, descriptor: *const c_void) = others::external_buffer;
    plain fn cuExternalMemoryGetMappedMipmappedArray(array: Out<usize>, memory: usize, descriptor: *const c_void) = others::external_array;
    plain fn cuImportExternalSemaphore(semaphore: Out<usize>, descriptor: *const c_void) = others::import_external;
    plain fn cuDestroyExternalSemaphore(semaphore: usize) = others::unknown_handle;
    plain fn cuMulticastCreate(handle: Out<u64>, properties: *const c_void) = others::multicast_create;
    plain fn cuMulticastGetGranularity(granularity: Out<usize>, properties: *const c_void, option: u32) = others::multicast_granularity;
}
