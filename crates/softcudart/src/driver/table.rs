//! The driver's entry points, with the version of each that this library is written against.
//!
//! The version chooses the signature: `cuGetProcAddress` gives the newest one that is not newer. For callers whose default
//! stream is the thread's own, the variants with that meaning came with 7.0, so no older version is asked for then.

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};

use super::types::{
    ArrayDescriptor, DevicePtr, Handle, HostFn, HostNodeParams, IpcHandle, KernelNodeParams, LaunchConfig, MemLocation,
    Memcpy2D, Memcpy3D, Memcpy3DPeer, MemsetNodeParams, PoolPointerExport, StreamCallback, Uuid,
};
use super::{FLAG_PER_THREAD, GetProc, entry_point};
use crate::error::{Error, Outcome};

/// The first version with entry points for per-thread default streams.
const PER_THREAD_SINCE: c_int = 7000;

macro_rules! driver_functions {
    ($($name:ident[$version:literal]($($arg:ident: $ty:ty),*);)*) => {
        /// One set of entry points. A field is null where the driver has no such function.
        pub(crate) struct Table {
            $($name: Option<unsafe extern "C" fn($($ty),*) -> c_int>,)*
        }

        #[allow(clippy::too_many_arguments, reason = "as many as the driver's functions take")]
        impl Table {
            /// Asks for every entry point.
            ///
            /// # Safety
            /// `get` is the driver's `cuGetProcAddress_v2`.
            pub(super) unsafe fn load(get: GetProc, flags: u64) -> Self {
                let since = if flags == FLAG_PER_THREAD { PER_THREAD_SINCE } else { 0 };
                Table {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: `get` is the driver's, as the caller promises, and the function that a driver gives for
                        // this name and version has this signature. A null pointer is `None`.
                        unsafe {
                            let name = std::ffi::CStr::from_bytes_with_nul_unchecked(name.as_bytes());
                            let found = entry_point(get, name, since.max($version), flags);
                            std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($ty),*) -> c_int>>(found)
                        }
                    },)*
                }
            }

            $(
                /// The driver's function of this name; its error, or that the driver has none.
                ///
                /// # Safety
                /// As the driver's documentation says of the arguments.
                #[inline]
                pub(crate) unsafe fn $name(&self, $($arg: $ty),*) -> Outcome {
                    let Some(function) = self.$name else { return Err(Error::NEWER_DRIVER) };
                    // SAFETY: the driver's own function, with arguments that the caller vouches for.
                    Error::check(unsafe { function($($arg),*) })
                }
            )*
        }
    };
}

driver_functions! {
    cuInit[2000](flags: c_uint);
    cuDriverGetVersion[2020](version: *mut c_int);
    cuDeviceGetCount[2000](count: *mut c_int);
    cuDeviceGetName[2000](name: *mut c_char, len: c_int, device: c_int);
    cuDeviceGetUuid[11040](uuid: *mut Uuid, device: c_int);
    cuDeviceTotalMem[3020](bytes: *mut usize, device: c_int);
    cuDeviceGetAttribute[2000](value: *mut c_int, attribute: c_int, device: c_int);
    cuDeviceGetP2PAttribute[8000](value: *mut c_int, attribute: c_int, from: c_int, to: c_int);
    cuDeviceCanAccessPeer[4000](can: *mut c_int, device: c_int, peer: c_int);
    cuDeviceGetByPCIBusId[4010](device: *mut c_int, id: *const c_char);
    cuDeviceGetPCIBusId[4010](id: *mut c_char, len: c_int, device: c_int);
    cuDeviceGetDefaultMemPool[11020](pool: *mut Handle, device: c_int);
    cuDeviceGetMemPool[11020](pool: *mut Handle, device: c_int);
    cuDeviceSetMemPool[11020](device: c_int, pool: Handle);
    cuDeviceGetGraphMemAttribute[11040](device: c_int, attribute: c_int, value: *mut c_void);
    cuDeviceSetGraphMemAttribute[11040](device: c_int, attribute: c_int, value: *mut c_void);
    cuDeviceGraphMemTrim[11040](device: c_int);
    cuDevicePrimaryCtxRetain[7000](context: *mut Handle, device: c_int);
    cuDevicePrimaryCtxReset[7000](device: c_int);
    cuDevicePrimaryCtxGetState[7000](device: c_int, flags: *mut c_uint, active: *mut c_int);
    cuDevicePrimaryCtxSetFlags[11000](device: c_int, flags: c_uint);
    cuCtxGetCurrent[4000](context: *mut Handle);
    cuCtxSetCurrent[4000](context: Handle);
    cuCtxGetDevice[2000](device: *mut c_int);
    cuCtxSynchronize[2000]();
    cuCtxGetLimit[3010](value: *mut usize, limit: c_int);
    cuCtxSetLimit[3010](limit: c_int, value: usize);
    cuCtxGetCacheConfig[3020](config: *mut c_int);
    cuCtxSetCacheConfig[3020](config: c_int);
    cuCtxGetStreamPriorityRange[5050](least: *mut c_int, greatest: *mut c_int);
    cuCtxResetPersistingL2Cache[11000]();
    cuCtxEnablePeerAccess[4000](peer: Handle, flags: c_uint);
    cuCtxDisablePeerAccess[4000](peer: Handle);
    cuFlushGPUDirectRDMAWrites[11030](target: c_int, scope: c_int);
    cuMemAlloc[3020](ptr: *mut DevicePtr, bytes: usize);
    cuMemAllocPitch[3020](ptr: *mut DevicePtr, pitch: *mut usize, width: usize, height: usize, element: c_uint);
    cuMemAllocManaged[6000](ptr: *mut DevicePtr, bytes: usize, flags: c_uint);
    cuMemFree[3020](ptr: DevicePtr);
    cuMemGetInfo[3020](free: *mut usize, total: *mut usize);
    cuMemHostAlloc[2020](ptr: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemAllocHost[3020](ptr: *mut *mut c_void, bytes: usize);
    cuMemFreeHost[2000](ptr: *mut c_void);
    cuMemHostRegister[6050](ptr: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister[4000](ptr: *mut c_void);
    cuMemHostGetDevicePointer[3020](device: *mut DevicePtr, ptr: *mut c_void, flags: c_uint);
    cuMemHostGetFlags[2030](flags: *mut c_uint, ptr: *mut c_void);
    cuPointerGetAttributes[7000](count: c_uint, attributes: *mut c_int, values: *mut *mut c_void, ptr: DevicePtr);
    cuMemcpy[4000](dst: DevicePtr, src: DevicePtr, bytes: usize);
    cuMemcpyAsync[4000](dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Handle);
    cuMemcpyPeer[4000](dst: DevicePtr, dst_context: Handle, src: DevicePtr, src_context: Handle, bytes: usize);
    cuMemcpyPeerAsync[4000](dst: DevicePtr, dst_context: Handle, src: DevicePtr, src_context: Handle, bytes: usize, stream: Handle);
    cuMemcpyHtoD[3020](dst: DevicePtr, src: *const c_void, bytes: usize);
    cuMemcpyDtoH[3020](dst: *mut c_void, src: DevicePtr, bytes: usize);
    cuMemcpyDtoD[3020](dst: DevicePtr, src: DevicePtr, bytes: usize);
    cuMemcpyHtoDAsync[3020](dst: DevicePtr, src: *const c_void, bytes: usize, stream: Handle);
    cuMemcpyDtoHAsync[3020](dst: *mut c_void, src: DevicePtr, bytes: usize, stream: Handle);
    cuMemcpyDtoDAsync[3020](dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Handle);
    cuMemcpy2DUnaligned[3020](copy: *const Memcpy2D);
    cuMemcpy2DAsync[3020](copy: *const Memcpy2D, stream: Handle);
    cuMemcpy3D[3020](copy: *const Memcpy3D);
    cuMemcpy3DAsync[3020](copy: *const Memcpy3D, stream: Handle);
    cuMemcpy3DPeer[4000](copy: *const Memcpy3DPeer);
    cuMemcpy3DPeerAsync[4000](copy: *const Memcpy3DPeer, stream: Handle);
    cuMemcpyBatchAsync[13000](dsts: *mut DevicePtr, srcs: *mut DevicePtr, bytes: *mut usize, count: usize, attributes: *mut c_void, indices: *mut usize, attribute_count: usize, stream: Handle);
    cuMemsetD8[3020](dst: DevicePtr, value: c_uchar, count: usize);
    cuMemsetD8Async[3020](dst: DevicePtr, value: c_uchar, count: usize, stream: Handle);
    cuMemsetD2D8[3020](dst: DevicePtr, pitch: usize, value: c_uchar, width: usize, height: usize);
    cuMemsetD2D8Async[3020](dst: DevicePtr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: Handle);
    cuMemAdvise[12020](ptr: DevicePtr, bytes: usize, advice: c_int, location: MemLocation);
    cuMemPrefetchAsync[12020](ptr: DevicePtr, bytes: usize, location: MemLocation, flags: c_uint, stream: Handle);
    cuMemRangeGetAttribute[8000](value: *mut c_void, size: usize, attribute: c_int, ptr: DevicePtr, bytes: usize);
    cuMemRangeGetAttributes[8000](values: *mut *mut c_void, sizes: *mut usize, attributes: *mut c_int, count: usize, ptr: DevicePtr, bytes: usize);
    cuMemAllocAsync[11020](ptr: *mut DevicePtr, bytes: usize, stream: Handle);
    cuMemAllocFromPoolAsync[11020](ptr: *mut DevicePtr, bytes: usize, pool: Handle, stream: Handle);
    cuMemFreeAsync[11020](ptr: DevicePtr, stream: Handle);
    cuMemPoolCreate[11020](pool: *mut Handle, props: *const c_void);
    cuMemPoolDestroy[11020](pool: Handle);
    cuMemPoolTrimTo[11020](pool: Handle, keep: usize);
    cuMemPoolSetAttribute[11020](pool: Handle, attribute: c_int, value: *mut c_void);
    cuMemPoolGetAttribute[11020](pool: Handle, attribute: c_int, value: *mut c_void);
    cuMemPoolSetAccess[11020](pool: Handle, descriptors: *const c_void, count: usize);
    cuMemPoolGetAccess[11020](flags: *mut c_int, pool: Handle, location: *mut MemLocation);
    cuMemPoolExportToShareableHandle[11020](handle: *mut c_void, pool: Handle, kind: c_int, flags: u64);
    cuMemPoolImportFromShareableHandle[11020](pool: *mut Handle, handle: *mut c_void, kind: c_int, flags: u64);
    cuMemPoolExportPointer[11020](data: *mut PoolPointerExport, ptr: DevicePtr);
    cuMemPoolImportPointer[11020](ptr: *mut DevicePtr, pool: Handle, data: *mut PoolPointerExport);
    cuMemGetDefaultMemPool[13000](pool: *mut Handle, location: *mut MemLocation, kind: c_int);
    cuMemGetMemPool[13000](pool: *mut Handle, location: *mut MemLocation, kind: c_int);
    cuMemSetMemPool[13000](location: *mut MemLocation, kind: c_int, pool: Handle);
    cuIpcGetMemHandle[4010](handle: *mut IpcHandle, ptr: DevicePtr);
    cuIpcOpenMemHandle[4010](ptr: *mut DevicePtr, handle: IpcHandle, flags: c_uint);
    cuIpcCloseMemHandle[4010](ptr: DevicePtr);
    cuIpcGetEventHandle[4010](handle: *mut IpcHandle, event: Handle);
    cuIpcOpenEventHandle[4010](event: *mut Handle, handle: IpcHandle);
    cuArray3DCreate[3020](array: *mut Handle, descriptor: *const ArrayDescriptor);
    cuArray3DGetDescriptor[3020](descriptor: *mut ArrayDescriptor, array: Handle);
    cuArrayDestroy[2000](array: Handle);
    cuMipmappedArrayCreate[5000](array: *mut Handle, descriptor: *const ArrayDescriptor, levels: c_uint);
    cuMipmappedArrayGetLevel[5000](level_array: *mut Handle, array: Handle, level: c_uint);
    cuMipmappedArrayDestroy[5000](array: Handle);
    cuImportExternalMemory[10000](memory: *mut Handle, descriptor: *const c_void);
    cuExternalMemoryGetMappedBuffer[10000](ptr: *mut DevicePtr, memory: Handle, descriptor: *const c_void);
    cuDestroyExternalMemory[10000](memory: Handle);
    cuStreamCreate[2000](stream: *mut Handle, flags: c_uint);
    cuStreamCreateWithPriority[5050](stream: *mut Handle, flags: c_uint, priority: c_int);
    cuStreamDestroy[4000](stream: Handle);
    cuStreamQuery[2000](stream: Handle);
    cuStreamSynchronize[2000](stream: Handle);
    cuStreamWaitEvent[3020](stream: Handle, event: Handle, flags: c_uint);
    cuStreamAddCallback[5000](stream: Handle, callback: StreamCallback, data: *mut c_void, flags: c_uint);
    cuStreamGetPriority[5050](stream: Handle, priority: *mut c_int);
    cuStreamGetFlags[5050](stream: Handle, flags: *mut c_uint);
    cuStreamGetId[12000](stream: Handle, id: *mut u64);
    cuStreamGetDevice[12080](stream: Handle, device: *mut c_int);
    cuStreamAttachMemAsync[6000](stream: Handle, ptr: DevicePtr, bytes: usize, flags: c_uint);
    cuStreamCopyAttributes[11000](dst: Handle, src: Handle);
    cuStreamGetAttribute[11000](stream: Handle, attribute: c_int, value: *mut c_void);
    cuStreamSetAttribute[11000](stream: Handle, attribute: c_int, value: *const c_void);
    cuLaunchHostFunc[10000](stream: Handle, function: HostFn, data: *mut c_void);
    cuStreamBeginCapture[10010](stream: Handle, mode: c_int);
    cuStreamBeginCaptureToGraph[12030](stream: Handle, graph: Handle, dependencies: *const Handle, edges: *const c_void, count: usize, mode: c_int);
    cuStreamEndCapture[10000](stream: Handle, graph: *mut Handle);
    cuStreamIsCapturing[10000](stream: Handle, status: *mut c_int);
    cuStreamGetCaptureInfo[12030](stream: Handle, status: *mut c_int, id: *mut u64, graph: *mut Handle, dependencies: *mut *const Handle, edges: *mut *const c_void, count: *mut usize);
    cuStreamUpdateCaptureDependencies[12030](stream: Handle, dependencies: *mut Handle, edges: *const c_void, count: usize, flags: c_uint);
    cuThreadExchangeStreamCaptureMode[10010](mode: *mut c_int);
    cuEventCreate[2000](event: *mut Handle, flags: c_uint);
    cuEventRecord[2000](event: Handle, stream: Handle);
    cuEventRecordWithFlags[11010](event: Handle, stream: Handle, flags: c_uint);
    cuEventQuery[2000](event: Handle);
    cuEventSynchronize[2000](event: Handle);
    cuEventDestroy[4000](event: Handle);
    cuEventElapsedTime[12080](ms: *mut f32, start: Handle, end: Handle);
    cuGraphCreate[10000](graph: *mut Handle, flags: c_uint);
    cuGraphDestroy[10000](graph: Handle);
    cuGraphClone[10000](clone: *mut Handle, graph: Handle);
    cuGraphAddNode[12030](node: *mut Handle, graph: Handle, dependencies: *const Handle, edges: *const c_void, count: usize, params: *mut c_void);
    cuGraphAddKernelNode[12000](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const KernelNodeParams);
    cuGraphAddMemcpyNode[10000](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const Memcpy3D, context: Handle);
    cuGraphAddMemsetNode[10000](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const MemsetNodeParams, context: Handle);
    cuGraphAddHostNode[10000](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const HostNodeParams);
    cuGraphAddChildGraphNode[10000](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, child: Handle);
    cuGraphAddEmptyNode[10000](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize);
    cuGraphAddEventRecordNode[11010](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, event: Handle);
    cuGraphAddEventWaitNode[11010](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, event: Handle);
    cuGraphAddMemAllocNode[11040](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *mut c_void);
    cuGraphAddMemFreeNode[11040](node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, ptr: DevicePtr);
    cuGraphMemAllocNodeGetParams[11040](node: Handle, params: *mut c_void);
    cuGraphMemFreeNodeGetParams[11040](node: Handle, ptr: *mut DevicePtr);
    cuGraphAddDependencies[12030](graph: Handle, from: *const Handle, to: *const Handle, edges: *const c_void, count: usize);
    cuGraphGetNodes[10000](graph: Handle, nodes: *mut Handle, count: *mut usize);
    cuGraphGetRootNodes[10000](graph: Handle, nodes: *mut Handle, count: *mut usize);
    cuGraphGetEdges[12030](graph: Handle, from: *mut Handle, to: *mut Handle, edges: *mut c_void, count: *mut usize);
    cuGraphNodeGetDependencies[12030](node: Handle, dependencies: *mut Handle, edges: *mut c_void, count: *mut usize);
    cuGraphNodeGetDependentNodes[12030](node: Handle, dependents: *mut Handle, edges: *mut c_void, count: *mut usize);
    cuGraphNodeGetType[10000](node: Handle, kind: *mut c_int);
    cuGraphDestroyNode[10000](node: Handle);
    cuGraphInstantiateWithFlags[11040](exec: *mut Handle, graph: Handle, flags: u64);
    cuGraphInstantiateWithParams[12000](exec: *mut Handle, graph: Handle, params: *mut c_void);
    cuGraphExecUpdate[12000](exec: Handle, graph: Handle, result: *mut c_void);
    cuGraphExecGetFlags[12000](exec: Handle, flags: *mut u64);
    cuGraphExecDestroy[10000](exec: Handle);
    cuGraphLaunch[10000](exec: Handle, stream: Handle);
    cuGraphUpload[11010](exec: Handle, stream: Handle);
    cuGraphDebugDotPrint[11030](graph: Handle, path: *const c_char, flags: c_uint);
    cuGraphConditionalHandleCreate[12030](handle: *mut u64, graph: Handle, context: Handle, default: c_uint, flags: c_uint);
    cuGraphRetainUserObject[11030](graph: Handle, object: Handle, count: c_uint, flags: c_uint);
    cuGraphReleaseUserObject[11030](graph: Handle, object: Handle, count: c_uint);
    cuUserObjectCreate[11030](object: *mut Handle, data: *mut c_void, destroy: HostFn, count: c_uint, flags: c_uint);
    cuUserObjectRetain[11030](object: Handle, count: c_uint);
    cuUserObjectRelease[11030](object: Handle, count: c_uint);
    cuLibraryLoadData[12000](library: *mut Handle, code: *const c_void, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint);
    cuLibraryLoadFromFile[12000](library: *mut Handle, path: *const c_char, jit: *mut c_int, jit_values: *mut *mut c_void, jit_count: c_uint, options: *mut c_int, values: *mut *mut c_void, count: c_uint);
    cuLibraryUnload[12000](library: Handle);
    cuLibraryGetKernel[12000](kernel: *mut Handle, library: Handle, name: *const c_char);
    cuLibraryGetKernelCount[12040](count: *mut c_uint, library: Handle);
    cuLibraryEnumerateKernels[12040](kernels: *mut Handle, count: c_uint, library: Handle);
    cuLibraryGetGlobal[12000](ptr: *mut DevicePtr, bytes: *mut usize, library: Handle, name: *const c_char);
    cuLibraryGetManaged[12000](ptr: *mut DevicePtr, bytes: *mut usize, library: Handle, name: *const c_char);
    cuLibraryGetUnifiedFunction[12000](function: *mut *mut c_void, library: Handle, name: *const c_char);
    cuKernelGetFunction[12000](function: *mut Handle, kernel: Handle);
    cuKernelSetAttribute[12000](attribute: c_int, value: c_int, kernel: Handle, device: c_int);
    cuFuncGetAttribute[2020](value: *mut c_int, attribute: c_int, function: Handle);
    cuFuncSetAttribute[9000](function: Handle, attribute: c_int, value: c_int);
    cuFuncSetCacheConfig[3000](function: Handle, config: c_int);
    cuFuncGetName[12030](name: *mut *const c_char, function: Handle);
    cuLaunchKernel[4000](function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void);
    cuLaunchKernelEx[11060](config: *const LaunchConfig, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void);
    cuLaunchCooperativeKernel[9000](function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: Handle, params: *mut *mut c_void);
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags[7000](blocks: *mut c_int, function: Handle, threads: c_int, shared: usize, flags: c_uint);
    cuOccupancyAvailableDynamicSMemPerBlock[10020](bytes: *mut usize, function: Handle, blocks: c_int, threads: c_int);
    cuOccupancyMaxPotentialClusterSize[11070](size: *mut c_int, function: Handle, config: *const LaunchConfig);
    cuOccupancyMaxActiveClusters[11070](count: *mut c_int, function: Handle, config: *const LaunchConfig);
    cuProfilerStart[4000]();
    cuProfilerStop[4000]();
    cuGetProcAddress[12000](name: *const c_char, function: *mut *mut c_void, version: c_int, flags: u64, status: *mut c_int);
    cuGetExportTable[3000](table: *mut *const c_void, id: *const c_void);
    cuMemPrefetchBatchAsync[13000](ptrs: *mut DevicePtr, sizes: *mut usize, count: usize, locations: *mut c_void, indices: *mut usize, location_count: usize, flags: u64, stream: Handle);
    cuMemDiscardBatchAsync[13000](ptrs: *mut DevicePtr, sizes: *mut usize, count: usize, flags: u64, stream: Handle);
    cuMemDiscardAndPrefetchBatchAsync[13000](ptrs: *mut DevicePtr, sizes: *mut usize, count: usize, locations: *mut c_void, indices: *mut usize, location_count: usize, flags: u64, stream: Handle);
    cuGraphRemoveDependencies[12030](graph: Handle, from: *const Handle, to: *const Handle, edges: *const c_void, count: usize);
    cuGraphChildGraphNodeGetGraph[10000](node: Handle, graph: *mut Handle);
    cuGraphEventRecordNodeGetEvent[11010](node: Handle, event: *mut Handle);
    cuGraphEventWaitNodeGetEvent[11010](node: Handle, event: *mut Handle);
    cuGraphHostNodeGetParams[10000](node: Handle, params: *mut HostNodeParams);
    cuGraphMemsetNodeGetParams[10000](node: Handle, params: *mut MemsetNodeParams);
    cuGraphNodeFindInClone[10000](node: *mut Handle, original: Handle, clone: Handle);
    cuGraphNodeSetEnabled[11060](exec: Handle, node: Handle, enabled: c_uint);
    cuGraphNodeGetEnabled[11060](exec: Handle, node: Handle, enabled: *mut c_uint);
    cuGraphExecMemcpyNodeSetParams[10020](exec: Handle, node: Handle, copy: *const Memcpy3D, context: Handle);
    cuGraphExecMemsetNodeSetParams[10020](exec: Handle, node: Handle, params: *const MemsetNodeParams, context: Handle);
    cuGraphExecKernelNodeSetParams[12000](exec: Handle, node: Handle, params: *const KernelNodeParams);
    cuGraphExecHostNodeSetParams[10020](exec: Handle, node: Handle, params: *const HostNodeParams);
    cuGraphExecNodeSetParams[12020](exec: Handle, node: Handle, params: *mut c_void);
    cuGraphNodeSetParams[12020](node: Handle, params: *mut c_void);
}
