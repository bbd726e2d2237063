//! Structures of `cuda.h`, as far as they are read or written here. Enums are numbers, since C may put any number there.

use std::ffi::{c_char, c_void};

use super::pointers::{In, Out};

/// `CUmemLocation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MemLocation {
    pub(crate) kind: u32,
    pub(crate) id: i32,
}

pub(crate) const LOCATION_DEVICE: u32 = 1;
pub(crate) const LOCATION_HOST: u32 = 2;
pub(crate) const LOCATION_HOST_NUMA: u32 = 3;
pub(crate) const LOCATION_HOST_NUMA_CURRENT: u32 = 4;

/// `CUmemAllocationProp`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AllocationProp {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: MemLocation,
    pub(crate) win32: usize,
    pub(crate) compression: u8,
    pub(crate) rdma: u8,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 4],
}

pub(crate) const HANDLE_POSIX_FD: u32 = 1;

/// `CUmemAccessDesc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct AccessDesc {
    pub(crate) location: MemLocation,
    pub(crate) flags: u32,
}

/// `CUmemPoolProps`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct PoolProps {
    pub(crate) kind: u32,
    pub(crate) handle_types: u32,
    pub(crate) location: MemLocation,
    pub(crate) win32: usize,
    pub(crate) max_size: usize,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 54],
}

/// `CUDA_MEMCPY2D`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Memcpy2D {
    pub(crate) src_x: usize,
    pub(crate) src_y: usize,
    pub(crate) src_kind: u32,
    pub(crate) src_host: usize,
    pub(crate) src_device: u64,
    pub(crate) src_array: usize,
    pub(crate) src_pitch: usize,
    pub(crate) dst_x: usize,
    pub(crate) dst_y: usize,
    pub(crate) dst_kind: u32,
    pub(crate) dst_host: usize,
    pub(crate) dst_device: u64,
    pub(crate) dst_array: usize,
    pub(crate) dst_pitch: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// `CUDA_MEMCPY3D`, and `CUDA_MEMCPY3D_PEER`, which has contexts where this has reserved fields.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Memcpy3D {
    pub(crate) src_x: usize,
    pub(crate) src_y: usize,
    pub(crate) src_z: usize,
    pub(crate) src_lod: usize,
    pub(crate) src_kind: u32,
    pub(crate) src_host: usize,
    pub(crate) src_device: u64,
    pub(crate) src_array: usize,
    pub(crate) src_context: usize,
    pub(crate) src_pitch: usize,
    pub(crate) src_height: usize,
    pub(crate) dst_x: usize,
    pub(crate) dst_y: usize,
    pub(crate) dst_z: usize,
    pub(crate) dst_lod: usize,
    pub(crate) dst_kind: u32,
    pub(crate) dst_host: usize,
    pub(crate) dst_device: u64,
    pub(crate) dst_array: usize,
    pub(crate) dst_context: usize,
    pub(crate) dst_pitch: usize,
    pub(crate) dst_height: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
}

/// `CUDA_ARRAY_DESCRIPTOR`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct ArrayDescriptor {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: u32,
    pub(crate) channels: u32,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Array3DDescriptor {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) format: u32,
    pub(crate) channels: u32,
    pub(crate) flags: u32,
}

/// `CUDA_MEMSET_NODE_PARAMS`; the context that its second version ends with is not read.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct MemsetParams {
    pub(crate) dst: u64,
    pub(crate) pitch: usize,
    pub(crate) value: u32,
    pub(crate) element_size: u32,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct HostParams {
    pub(crate) function: Option<HostFn>,
    pub(crate) data: *mut c_void,
}

/// `CUhostFn`.
pub(crate) type HostFn = extern "C" fn(*mut c_void);
/// `CUstreamCallback`.
pub(crate) type StreamCallback = extern "C" fn(usize, u32, *mut c_void);

/// The first version of `CUDA_KERNEL_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct KernelParams {
    pub(crate) function: usize,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) params: usize,
    pub(crate) extra: usize,
}

/// Its second version.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct KernelParamsV2 {
    pub(crate) first: KernelParams,
    pub(crate) kernel: usize,
    pub(crate) context: usize,
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct MemAllocParams {
    pub(crate) props: PoolProps,
    pub(crate) access: *const AccessDesc,
    pub(crate) access_count: usize,
    pub(crate) size: usize,
    pub(crate) ptr: u64,
}

/// `CUDA_CONDITIONAL_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct ConditionalParams {
    pub(crate) handle: u64,
    pub(crate) kind: u32,
    pub(crate) size: u32,
    pub(crate) graphs: usize,
    pub(crate) context: usize,
}

/// `CUgraphNodeParams`: the number of the kind, and 232 bytes that are one of the structures above.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct NodeParams {
    pub(crate) kind: u32,
    pub(crate) reserved: [i32; 3],
    pub(crate) body: [u64; 29],
    pub(crate) reserved2: i64,
}

/// `CUgraphEdgeData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(crate) struct EdgeData {
    pub(crate) from_port: u8,
    pub(crate) to_port: u8,
    pub(crate) kind: u8,
    pub(crate) reserved: [u8; 5],
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct InstantiateParams {
    pub(crate) flags: u64,
    pub(crate) upload_stream: usize,
    pub(crate) error_node: usize,
    pub(crate) result: u32,
}

/// `CUgraphExecUpdateResultInfo`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct UpdateResult {
    pub(crate) result: u32,
    pub(crate) error_node: usize,
    pub(crate) error_from_node: usize,
}

/// `CUlaunchConfig`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) stream: usize,
    pub(crate) attributes: usize,
    pub(crate) attribute_count: u32,
}

/// `CUipcMemHandle`, `CUipcEventHandle` and `CUmemPoolPtrExportData`: 64 bytes of ours.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Opaque64(pub(crate) [u8; 64]);

/// `CUuuid`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Uuid(pub(crate) [u8; 16]);

/// `CUdevprop`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct DevProp {
    pub(crate) threads_per_block: i32,
    pub(crate) block: [i32; 3],
    pub(crate) grid: [i32; 3],
    pub(crate) shared_per_block: i32,
    pub(crate) constant_memory: i32,
    pub(crate) simd_width: i32,
    pub(crate) pitch: i32,
    pub(crate) registers: i32,
    pub(crate) clock_rate: i32,
    pub(crate) texture_align: i32,
}

/// `CUstreamBatchMemOpParams`: a union of 48 bytes, read as numbers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct BatchMemOp(pub(crate) [u64; 6]);

/// `CUdevResource`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct DevResource {
    pub(crate) kind: u32,
    pub(crate) padding: [u8; 92],
    /// Multiprocessors, the smallest part, its alignment, flags; the rest is unused.
    pub(crate) sm: [u32; 12],
}

const _: () = {
    assert!(size_of::<AllocationProp>() == 32);
    assert!(size_of::<PoolProps>() == 88);
    assert!(size_of::<Memcpy2D>() == 128);
    assert!(size_of::<Memcpy3D>() == 200);
    assert!(size_of::<NodeParams>() == 256);
    assert!(size_of::<KernelParamsV2>() == 72);
    assert!(size_of::<MemAllocParams>() == 120);
    assert!(size_of::<DevResource>() == 144);
    assert!(size_of::<LaunchConfig>() == 56);
};

/// Text that the library writes.
pub(crate) type OutText = Out<c_char>;
/// Text that the library reads.
pub(crate) type Text = In<c_char>;
