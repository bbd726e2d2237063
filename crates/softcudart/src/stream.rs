//! Streams, and what is captured from them.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::ptr::{null, null_mut};

use crate::driver::types::{DevicePtr, Handle, HostFn, StreamCallback};
use crate::entry::{forward, forward_stream};

forward! {
    cudaStreamCreate(stream: *mut Handle) => cuStreamCreate(stream, 0);
    cudaStreamCreateWithFlags(stream: *mut Handle, flags: c_uint) => cuStreamCreate(stream, flags);
    cudaStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int)
        => cuStreamCreateWithPriority(stream, flags, priority);
    cudaStreamDestroy(stream: Handle) => cuStreamDestroy(stream);
    cudaThreadExchangeStreamCaptureMode(mode: *mut c_int) => cuThreadExchangeStreamCaptureMode(mode);
}

forward_stream! {
    cudaStreamQuery / cudaStreamQuery_ptsz(stream: Handle) => cuStreamQuery(stream);
    cudaStreamSynchronize / cudaStreamSynchronize_ptsz(stream: Handle) => cuStreamSynchronize(stream);
    cudaStreamWaitEvent / cudaStreamWaitEvent_ptsz(stream: Handle, event: Handle, flags: c_uint)
        => cuStreamWaitEvent(stream, event, flags);
    cudaStreamAddCallback / cudaStreamAddCallback_ptsz(
        stream: Handle, callback: StreamCallback, data: *mut c_void, flags: c_uint
    ) => cuStreamAddCallback(stream, callback, data, flags);
    cudaStreamGetPriority / cudaStreamGetPriority_ptsz(stream: Handle, priority: *mut c_int)
        => cuStreamGetPriority(stream, priority);
    cudaStreamGetFlags / cudaStreamGetFlags_ptsz(stream: Handle, flags: *mut c_uint) => cuStreamGetFlags(stream, flags);
    cudaStreamGetId / cudaStreamGetId_ptsz(stream: Handle, id: *mut c_ulonglong) => cuStreamGetId(stream, id);
    cudaStreamGetDevice / cudaStreamGetDevice_ptsz(stream: Handle, device: *mut c_int)
        => cuStreamGetDevice(stream, device);
    cudaStreamAttachMemAsync / cudaStreamAttachMemAsync_ptsz(
        stream: Handle, ptr: DevicePtr, bytes: usize, flags: c_uint
    ) => cuStreamAttachMemAsync(stream, ptr, bytes, flags);
    cudaStreamCopyAttributes / cudaStreamCopyAttributes_ptsz(dst: Handle, src: Handle)
        => cuStreamCopyAttributes(dst, src);
    cudaStreamGetAttribute / cudaStreamGetAttribute_ptsz(stream: Handle, attribute: c_int, value: *mut c_void)
        => cuStreamGetAttribute(stream, attribute, value);
    cudaStreamSetAttribute / cudaStreamSetAttribute_ptsz(stream: Handle, attribute: c_int, value: *const c_void)
        => cuStreamSetAttribute(stream, attribute, value);
    cudaLaunchHostFunc / cudaLaunchHostFunc_ptsz(stream: Handle, function: HostFn, data: *mut c_void)
        => cuLaunchHostFunc(stream, function, data);
    cudaStreamBeginCapture / cudaStreamBeginCapture_ptsz(stream: Handle, mode: c_int)
        => cuStreamBeginCapture(stream, mode);
    cudaStreamBeginCaptureToGraph / cudaStreamBeginCaptureToGraph_ptsz(
        stream: Handle, graph: Handle, dependencies: *const Handle, edges: *const c_void, count: usize, mode: c_int
    ) => cuStreamBeginCaptureToGraph(stream, graph, dependencies, edges, count, mode);
    cudaStreamEndCapture / cudaStreamEndCapture_ptsz(stream: Handle, graph: *mut Handle)
        => cuStreamEndCapture(stream, graph);
    cudaStreamIsCapturing / cudaStreamIsCapturing_ptsz(stream: Handle, status: *mut c_int)
        => cuStreamIsCapturing(stream, status);
    // CUDA 12 has three of these: with the id only, with the graph, with the edges. CUDA 13 has the third.
    softcudart12_cudaStreamGetCaptureInfo / softcudart12_cudaStreamGetCaptureInfo_ptsz(
        stream: Handle, status: *mut c_int, id: *mut c_ulonglong
    ) => cuStreamGetCaptureInfo(stream, status, id, null_mut(), null_mut(), null_mut(), null_mut());
    softcudart12_cudaStreamGetCaptureInfo_v2 / softcudart12_cudaStreamGetCaptureInfo_v2_ptsz(
        stream: Handle, status: *mut c_int, id: *mut c_ulonglong, graph: *mut Handle,
        dependencies: *mut *const Handle, count: *mut usize
    ) => cuStreamGetCaptureInfo(stream, status, id, graph, dependencies, null_mut(), count);
    softcudart12_cudaStreamGetCaptureInfo_v3 / softcudart12_cudaStreamGetCaptureInfo_v3_ptsz(
        stream: Handle, status: *mut c_int, id: *mut c_ulonglong, graph: *mut Handle,
        dependencies: *mut *const Handle, edges: *mut *const c_void, count: *mut usize
    ) => cuStreamGetCaptureInfo(stream, status, id, graph, dependencies, edges, count);
    softcudart13_cudaStreamGetCaptureInfo / softcudart13_cudaStreamGetCaptureInfo_ptsz(
        stream: Handle, status: *mut c_int, id: *mut c_ulonglong, graph: *mut Handle,
        dependencies: *mut *const Handle, edges: *mut *const c_void, count: *mut usize
    ) => cuStreamGetCaptureInfo(stream, status, id, graph, dependencies, edges, count);
    softcudart12_cudaStreamUpdateCaptureDependencies / softcudart12_cudaStreamUpdateCaptureDependencies_ptsz(
        stream: Handle, dependencies: *mut Handle, count: usize, flags: c_uint
    ) => cuStreamUpdateCaptureDependencies(stream, dependencies, null(), count, flags);
    softcudart12_cudaStreamUpdateCaptureDependencies_v2 / softcudart12_cudaStreamUpdateCaptureDependencies_v2_ptsz(
        stream: Handle, dependencies: *mut Handle, edges: *const c_void, count: usize, flags: c_uint
    ) => cuStreamUpdateCaptureDependencies(stream, dependencies, edges, count, flags);
    softcudart13_cudaStreamUpdateCaptureDependencies / softcudart13_cudaStreamUpdateCaptureDependencies_ptsz(
        stream: Handle, dependencies: *mut Handle, edges: *const c_void, count: usize, flags: c_uint
    ) => cuStreamUpdateCaptureDependencies(stream, dependencies, edges, count, flags);
}
