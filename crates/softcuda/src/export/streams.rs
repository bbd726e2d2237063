//! Streams, events, captures.

use std::ffi::c_void;

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{BatchMemOp, EdgeData, HostFn, StreamCallback};
use crate::stream::{capture, events, host_functions, streams, values};

exports! {
    plain fn cuStreamCreate(stream: Out<usize>, flags: u32) = streams::create;
    plain fn cuStreamCreateWithPriority(stream: Out<usize>, flags: u32, priority: i32) = streams::create_with_priority;
    plain fn cuStreamDestroy(stream: usize) = streams::destroy;
    plain fn cuStreamDestroy_v2(stream: usize) [4000] = streams::destroy;
    ptsz(stream) fn cuStreamQuery(stream: usize) = streams::query;
    ptsz(stream) fn cuStreamSynchronize(stream: usize) = streams::synchronize;
    ptsz(stream) fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) = events::wait;
    ptsz(stream) fn cuStreamGetPriority(stream: usize, priority: Out<i32>) = streams::priority;
    ptsz(stream) fn cuStreamGetFlags(stream: usize, flags: Out<u32>) = streams::flags;
    ptsz(stream) fn cuStreamGetId(stream: usize, id: Out<u64>) = streams::id;
    ptsz(stream) fn cuStreamGetCtx(stream: usize, context: Out<usize>) = streams::context;
    ptsz(stream) fn cuStreamGetCtx_v2(stream: usize, context: Out<usize>, green: Out<usize>) [12050] = streams::context_v2;
    ptsz(stream) fn cuStreamGetDevice(stream: usize, device: Out<i32>) = streams::device;
    ptsz(dst) fn cuStreamCopyAttributes(dst: usize, src: usize) = streams::copy_attributes;
    ptsz(stream) fn cuStreamGetAttribute(stream: usize, attribute: u32, value: Out<[u64; 8]>) = streams::get_attribute;
    ptsz(stream) fn cuStreamSetAttribute(stream: usize, attribute: u32, value: In<[u64; 8]>) = streams::set_attribute;
    ptsz(stream) fn cuStreamAttachMemAsync(stream: usize, ptr: u64, length: usize, flags: u32) = streams::attach_memory;
    ptsz(stream) fn cuStreamAddCallback(stream: usize, callback: Option<StreamCallback>, data: *mut c_void, flags: u32) = host_functions::add_callback;
    ptsz(stream) fn cuLaunchHostFunc(stream: usize, function: Option<HostFn>, data: *mut c_void) = host_functions::launch;
    ptsz(stream) fn cuLaunchHostFunc_v2(stream: usize, function: Option<HostFn>, data: *mut c_void, mode: u32) [13020] = host_functions::launch_v2;
    ptsz(stream) fn cuStreamWriteValue32(stream: usize, ptr: u64, value: u32, flags: u32) = values::write_32;
    ptsz(stream) fn cuStreamWriteValue64(stream: usize, ptr: u64, value: u64, flags: u32) = values::write_64;
    ptsz(stream) fn cuStreamWaitValue32(stream: usize, ptr: u64, value: u32, flags: u32) = values::wait_32;
    ptsz(stream) fn cuStreamWaitValue64(stream: usize, ptr: u64, value: u64, flags: u32) = values::wait_64;
    ptsz(stream) fn cuStreamBatchMemOp(stream: usize, count: u32, ops: In<BatchMemOp>, flags: u32) = values::batch;
    ptsz(stream) fn cuStreamWriteValue32_v2(stream: usize, ptr: u64, value: u32, flags: u32) [11070] = values::write_32;
    ptsz(stream) fn cuStreamWriteValue64_v2(stream: usize, ptr: u64, value: u64, flags: u32) [11070] = values::write_64;
    ptsz(stream) fn cuStreamWaitValue32_v2(stream: usize, ptr: u64, value: u32, flags: u32) [11070] = values::wait_32;
    ptsz(stream) fn cuStreamWaitValue64_v2(stream: usize, ptr: u64, value: u64, flags: u32) [11070] = values::wait_64;
    ptsz(stream) fn cuStreamBatchMemOp_v2(stream: usize, count: u32, ops: In<BatchMemOp>, flags: u32) [11070] = values::batch;

    plain fn cuEventCreate(event: Out<usize>, flags: u32) = events::create;
    plain fn cuEventDestroy(event: usize) = events::destroy;
    plain fn cuEventDestroy_v2(event: usize) [4000] = events::destroy;
    ptsz(stream) fn cuEventRecord(event: usize, stream: usize) = events::record;
    ptsz(stream) fn cuEventRecordWithFlags(event: usize, stream: usize, flags: u32) = events::record_with_flags;
    plain fn cuEventQuery(event: usize) = events::query;
    plain fn cuEventSynchronize(event: usize) = events::synchronize;
    plain fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) = events::elapsed;
    plain fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) [12080] = events::elapsed;

    plain fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) = capture::exchange_mode;
    ptsz(stream) fn cuStreamBeginCapture(stream: usize) = capture::begin_v1;
    ptsz(stream) fn cuStreamBeginCapture_v2(stream: usize, mode: u32) [10010] = capture::begin;
    ptsz(stream) fn cuStreamBeginCaptureToGraph(stream: usize, graph: usize, dependencies: In<usize>, edges: In<EdgeData>, count: usize, mode: u32) = capture::begin_to_graph;
    ptsz(stream) fn cuStreamEndCapture(stream: usize, graph: Out<usize>) = capture::end;
    ptsz(stream) fn cuStreamIsCapturing(stream: usize, status: Out<u32>) = capture::is_capturing;
    ptsz(stream) fn cuStreamGetCaptureInfo(stream: usize, status: Out<u32>, id: Out<u64>) = capture::info_v1;
    ptsz(stream) fn cuStreamGetCaptureInfo_v2(stream: usize, status: Out<u32>, id: Out<u64>, graph: Out<usize>, dependencies: Out<*const usize>, count: Out<usize>) [11030] = capture::info_v2;
    ptsz(stream) fn cuStreamGetCaptureInfo_v3(stream: usize, status: Out<u32>, id: Out<u64>, graph: Out<usize>, dependencies: Out<*const usize>, edges: Out<*const EdgeData>, count: Out<usize>) [12030] = capture::info_v3;
    ptsz(stream) fn cuStreamUpdateCaptureDependencies(stream: usize, dependencies: In<usize>, count: usize, flags: u32) = capture::update_v1;
    ptsz(stream) fn cuStreamUpdateCaptureDependencies_v2(stream: usize, dependencies: In<usize>, edges: In<EdgeData>, count: usize, flags: u32) [12030] = capture::update;
}
