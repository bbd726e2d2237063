//! Functions that exist and say `CUDA_ERROR_NOT_SUPPORTED`: a program finds them, and learns what it cannot do here.
//!
//! They are declared without parameters: on the platforms that this library runs on, a C caller removes its own arguments.

use super::Entry;
use crate::abi::codes::Code;

macro_rules! unsupported {
    ($($name:ident $($since:literal)?;)*) => {
        pub(super) static ENTRIES: &[&[Entry]] = &[$(&$name::ENTRIES),*];
        $(
            #[allow(non_snake_case, reason = "the name is C's")]
            mod $name {
                use super::*;

                pub(super) static ENTRIES: [Entry; 1] =
                    [Entry::new(stringify!($name), super::super::exports!(@since $($since)?), $name as *const (), true)];

                #[unsafe(no_mangle)]
                pub extern "C" fn $name() -> u32 {
                    ENTRIES[0].call(|| Err(Code::NOT_SUPPORTED))
                }
            }
        )*
    };
}

unsupported! {
    cuArrayGetPlane;
    cuArrayGetSparseProperties;
    cuCtxGetExecAffinity;
    cuDevSmResourceSplit;
    cuDeviceGetHostAtomicCapabilities;
    cuDeviceGetP2PAtomicCapabilities;
    cuDeviceRegisterAsyncNotification;
    cuDeviceUnregisterAsyncNotification;
    cuFuncGetParamCount;
    cuFuncSetBlockShape;
    cuFuncSetSharedSize;
    cuGraphAddExternalSemaphoresSignalNode;
    cuGraphAddExternalSemaphoresWaitNode;
    cuGraphAddNode_v3 13040;
    cuGraphBatchMemOpNodeGetParams;
    cuGraphBatchMemOpNodeSetParams;
    cuGraphEventRecordNodeSetEvent;
    cuGraphEventWaitNodeSetEvent;
    cuGraphExecBatchMemOpNodeSetParams;
    cuGraphExecChildGraphNodeSetParams;
    cuGraphExecEventRecordNodeSetEvent;
    cuGraphExecEventWaitNodeSetEvent;
    cuGraphExecExternalSemaphoresSignalNodeSetParams;
    cuGraphExecExternalSemaphoresWaitNodeSetParams;
    cuGraphExecGetId;
    cuGraphExecHostNodeSetParams;
    cuGraphExecKernelNodeSetParams;
    cuGraphExecKernelNodeSetParams_v2 12000;
    cuGraphExecMemcpyNodeSetParams;
    cuGraphExecMemsetNodeSetParams;
    cuGraphExecNodeSetParams;
    cuGraphExternalSemaphoresSignalNodeGetParams;
    cuGraphExternalSemaphoresSignalNodeSetParams;
    cuGraphExternalSemaphoresWaitNodeGetParams;
    cuGraphExternalSemaphoresWaitNodeSetParams;
    cuGraphGetId;
    cuGraphNodeGetContainingGraph;
    cuGraphNodeGetLocalId;
    cuGraphNodeGetParams;
    cuGraphNodeGetToolsId;
    cuGraphNodeSetParams;
    cuGraphNodeSetParams_v2 13040;
    cuGreenCtxGetId;
    cuKernelGetParamCount;
    cuLaunch;
    cuLaunchCooperativeKernelMultiDevice;
    cuLaunchGrid;
    cuLaunchGridAsync;
    cuLogsCurrent;
    cuLogsDumpToFile;
    cuLogsDumpToMemory;
    cuMemBatchDecompressAsync;
    cuMemBatchDecompressAsync_ptsz;
    cuMemGetLocationInfo;
    cuMemMapArrayAsync;
    cuMemMapArrayAsync_ptsz;
    cuMemcpy3DBatchAsync 12080;
    cuMemcpy3DBatchAsync_ptsz 12080;
    cuMemcpy3DBatchAsync_v2 13000;
    cuMemcpy3DBatchAsync_v2_ptsz 13000;
    cuMemcpy3DWithAttributesAsync;
    cuMemcpy3DWithAttributesAsync_ptsz;
    cuMemcpyAtoA_v2;
    cuMemcpyAtoA_v2_ptds;
    cuMemcpyAtoD_v2;
    cuMemcpyAtoD_v2_ptds;
    cuMemcpyAtoHAsync_v2;
    cuMemcpyAtoHAsync_v2_ptsz;
    cuMemcpyAtoH_v2;
    cuMemcpyAtoH_v2_ptds;
    cuMemcpyDtoA_v2;
    cuMemcpyDtoA_v2_ptds;
    cuMemcpyHtoAAsync_v2;
    cuMemcpyHtoAAsync_v2_ptsz;
    cuMemcpyHtoA_v2;
    cuMemcpyHtoA_v2_ptds;
    cuMipmappedArrayGetSparseProperties;
    cuModuleEnumerateFunctions;
    cuModuleGetSurfRef;
    cuModuleGetTexRef;
    cuMulticastAddDevice;
    cuMulticastBindAddr;
    cuMulticastBindAddr_v2 13010;
    cuMulticastBindMem;
    cuMulticastBindMem_v2 13010;
    cuMulticastUnbind;
    cuParamSetSize;
    cuParamSetTexRef;
    cuParamSetf;
    cuParamSeti;
    cuParamSetv;
    cuSignalExternalSemaphoresAsync;
    cuSignalExternalSemaphoresAsync_ptsz;
    cuStreamBeginCaptureToCig;
    cuStreamBeginRecaptureToGraph;
    cuStreamEndCaptureToCig;
    cuStreamGetDevResource;
    cuSurfObjectCreate;
    cuSurfObjectDestroy;
    cuSurfObjectGetResourceDesc;
    cuSurfRefGetArray;
    cuSurfRefSetArray;
    cuTensorMapEncodeIm2col;
    cuTensorMapEncodeIm2colWide;
    cuTexObjectCreate;
    cuTexObjectDestroy;
    cuTexObjectGetResourceDesc;
    cuTexObjectGetResourceViewDesc;
    cuTexObjectGetTextureDesc;
    cuTexRefCreate;
    cuTexRefDestroy;
    cuTexRefGetAddressMode;
    cuTexRefGetAddress_v2;
    cuTexRefGetArray;
    cuTexRefGetBorderColor;
    cuTexRefGetFilterMode;
    cuTexRefGetFlags;
    cuTexRefGetFormat;
    cuTexRefGetMaxAnisotropy;
    cuTexRefGetMipmapFilterMode;
    cuTexRefGetMipmapLevelBias;
    cuTexRefGetMipmapLevelClamp;
    cuTexRefGetMipmappedArray;
    cuTexRefSetAddress2D_v3;
    cuTexRefSetAddressMode;
    cuTexRefSetAddress_v2;
    cuTexRefSetArray;
    cuTexRefSetBorderColor;
    cuTexRefSetFilterMode;
    cuTexRefSetFlags;
    cuTexRefSetFormat;
    cuTexRefSetMaxAnisotropy;
    cuTexRefSetMipmapFilterMode;
    cuTexRefSetMipmapLevelBias;
    cuTexRefSetMipmapLevelClamp;
    cuTexRefSetMipmappedArray;
    cuWaitExternalSemaphoresAsync;
    cuWaitExternalSemaphoresAsync_ptsz;
}
