//! Events.

use std::ffi::c_uint;

use crate::driver::types::{Handle, IpcHandle};
use crate::entry::{forward, forward_stream};

forward! {
    cudaEventCreate(event: *mut Handle) => cuEventCreate(event, 0);
    cudaEventCreateWithFlags(event: *mut Handle, flags: c_uint) => cuEventCreate(event, flags);
    cudaEventQuery(event: Handle) => cuEventQuery(event);
    cudaEventSynchronize(event: Handle) => cuEventSynchronize(event);
    cudaEventDestroy(event: Handle) => cuEventDestroy(event);
    cudaEventElapsedTime(ms: *mut f32, start: Handle, end: Handle) => cuEventElapsedTime(ms, start, end);
    softcudart12_cudaEventElapsedTime_v2(ms: *mut f32, start: Handle, end: Handle)
        => cuEventElapsedTime(ms, start, end);
    cudaIpcGetEventHandle(handle: *mut IpcHandle, event: Handle) => cuIpcGetEventHandle(handle, event);
    cudaIpcOpenEventHandle(event: *mut Handle, handle: IpcHandle) => cuIpcOpenEventHandle(event, handle);
}

forward_stream! {
    cudaEventRecord / cudaEventRecord_ptsz(event: Handle, stream: Handle) => cuEventRecord(event, stream);
    cudaEventRecordWithFlags / cudaEventRecordWithFlags_ptsz(event: Handle, stream: Handle, flags: c_uint)
        => cuEventRecordWithFlags(event, stream, flags);
}
