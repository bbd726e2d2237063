//! The types of `cuda.h` and `nvml.h` that pass through here, by size and order. Enums are numbers: a program newer than this
//! library may pass values that no Rust enum has.

#![allow(non_camel_case_types, reason = "C's names, so that they can be searched for")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

/// `CUresult`.
pub(crate) type Status = c_int;
/// `CUdeviceptr`.
pub(crate) type CUdeviceptr = c_ulonglong;
/// `CUdevice`.
pub(crate) type CUdevice = c_int;
/// `CUmemGenericAllocationHandle`.
pub(crate) type CUmemHandle = c_ulonglong;
/// Any pointer to an opaque object of the driver: `CUcontext`, `CUstream`, `CUgraph` and so on.
pub(crate) type Opaque = *mut c_void;

pub(crate) const SUCCESS: Status = 0;
pub(crate) const INVALID_VALUE: Status = 1;
pub(crate) const OUT_OF_MEMORY: Status = 2;
pub(crate) const STUB_LIBRARY: Status = 34;
pub(crate) const NOT_FOUND: Status = 500;
pub(crate) const NOT_SUPPORTED: Status = 801;
/// The first and last of the codes that say that a stream is being captured.
pub(crate) const CAPTURE_CODES: std::ops::RangeInclusive<Status> = 900..=908;
pub(crate) const UNKNOWN: Status = 999;

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` as numbers.
pub(crate) const STREAM_LEGACY: usize = 1;
pub(crate) const STREAM_PER_THREAD: usize = 2;

/// `CUmemLocationType` of device memory.
pub(crate) const LOCATION_DEVICE: c_int = 1;

/// Attributes of pointers that a block answers for itself.
pub(crate) mod pointer {
    pub(crate) const CONTEXT: i32 = 1;
    pub(crate) const BUFFER_ID: i32 = 7;
    pub(crate) const RANGE_START_ADDR: i32 = 11;
    pub(crate) const RANGE_SIZE: i32 = 12;
}

/// Attributes of pools in bytes.
pub(crate) mod pool {
    pub(crate) const RESERVED_CURRENT: i32 = 5;
    pub(crate) const RESERVED_HIGH: i32 = 6;
    pub(crate) const USED_CURRENT: i32 = 7;
    pub(crate) const USED_HIGH: i32 = 8;
}

/// `CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT`.
pub(crate) const GRAPH_RESERVED_CURRENT: i32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemLocation {
    pub(crate) kind: c_int,
    pub(crate) id: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemAccessDesc {
    pub(crate) location: CUmemLocation,
    pub(crate) flags: c_int,
}

/// The head of `CUmemAllocationProp`: what follows is not looked at.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemAllocationProp {
    pub(crate) kind: c_int,
    pub(crate) handle_types: c_int,
    pub(crate) location: CUmemLocation,
}

/// The head of `CUmemPoolProps`.
pub(crate) type CUmemPoolProps = CUmemAllocationProp;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_ARRAY_DESCRIPTOR {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: c_int,
    pub(crate) channels: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_ARRAY3D_DESCRIPTOR {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) format: c_int,
    pub(crate) channels: c_uint,
    pub(crate) flags: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct CUDA_ARRAY_MEMORY_REQUIREMENTS {
    pub(crate) size: usize,
    pub(crate) alignment: usize,
    pub(crate) reserved: [c_uint; 4],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_EXTERNAL_MEMORY_HANDLE_DESC {
    pub(crate) kind: c_int,
    pub(crate) handle: [*mut c_void; 2],
    pub(crate) size: c_ulonglong,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_MEM_ALLOC_NODE_PARAMS {
    pub(crate) pool_head: CUmemPoolProps,
    pub(crate) pool_rest: [u64; 9],
    pub(crate) access: *const CUmemAccessDesc,
    pub(crate) access_count: usize,
    pub(crate) bytes: usize,
    pub(crate) ptr: CUdeviceptr,
}

const _: () = assert!(size_of::<CUDA_MEM_ALLOC_NODE_PARAMS>() == 88 + 32);

/// The head of `CUgraphNodeParams`: the kind of node, and where it is an allocation, its parameters.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUgraphNodeParams {
    pub(crate) kind: c_int,
    pub(crate) reserved: [c_int; 3],
    pub(crate) alloc: CUDA_MEM_ALLOC_NODE_PARAMS,
}

/// `CU_GRAPH_NODE_TYPE_MEM_ALLOC`.
pub(crate) const GRAPH_NODE_MEM_ALLOC: c_int = 10;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUipcMemHandle {
    pub(crate) reserved: [u8; 64],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct nvmlMemory_t {
    pub(crate) total: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct nvmlMemory_v2_t {
    pub(crate) version: c_uint,
    pub(crate) total: c_ulonglong,
    pub(crate) reserved: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}
