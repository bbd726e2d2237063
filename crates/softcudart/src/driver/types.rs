//! Structures of the driver API, laid out as C lays them out.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::error::Error;

pub(crate) type Handle = *mut c_void;
pub(crate) type DevicePtr = u64;

/// A function of the host, called in stream order.
pub(crate) type HostFn = Option<unsafe extern "C" fn(*mut c_void)>;
/// A stream's callback; the runtime's and the driver's have the same arguments and the same error numbers.
pub(crate) type StreamCallback = Option<unsafe extern "C" fn(Handle, c_int, *mut c_void)>;

/// `CUmemorytype`.
pub(crate) mod memory_type {
    pub(crate) const HOST: u32 = 1;
    pub(crate) const DEVICE: u32 = 2;
    pub(crate) const ARRAY: u32 = 3;
    pub(crate) const UNIFIED: u32 = 4;
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Memcpy2D {
    pub(crate) src: Place2D,
    pub(crate) dst: Place2D,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// One side of a [`Memcpy2D`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Place2D {
    pub(crate) x_bytes: usize,
    pub(crate) y: usize,
    pub(crate) memory_type: u32,
    pub(crate) host: *mut c_void,
    pub(crate) device: DevicePtr,
    pub(crate) array: Handle,
    pub(crate) pitch: usize,
}

/// `CUDA_MEMCPY3D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Memcpy3D {
    pub(crate) src: Place3D,
    pub(crate) dst: Place3D,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
}

/// `CUDA_MEMCPY3D_PEER`: the place that [`Memcpy3D`] reserves holds a context.
pub(crate) type Memcpy3DPeer = Memcpy3D;

/// One side of a [`Memcpy3D`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Place3D {
    pub(crate) x_bytes: usize,
    pub(crate) y: usize,
    pub(crate) z: usize,
    pub(crate) lod: usize,
    pub(crate) memory_type: u32,
    pub(crate) host: *mut c_void,
    pub(crate) device: DevicePtr,
    pub(crate) array: Handle,
    pub(crate) context: Handle,
    pub(crate) pitch: usize,
    pub(crate) height: usize,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ArrayDescriptor {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) format: u32,
    pub(crate) channels: c_uint,
    pub(crate) flags: c_uint,
}

impl ArrayDescriptor {
    /// Bytes of one element.
    pub(crate) fn element_bytes(&self) -> Result<usize, Error> {
        let channel = match self.format {
            // Unsigned and signed bytes.
            0x01 | 0x08 => 1,
            // 16 bits: unsigned, signed, half.
            0x02 | 0x09 | 0x10 => 2,
            // 32 bits: unsigned, signed, float.
            0x03 | 0x0a | 0x20 => 4,
            _ => return Err(Error::INVALID_CHANNEL_DESCRIPTOR),
        };
        Ok(channel * self.channels as usize)
    }
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`, and with the same fields `_v3`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct KernelNodeParams {
    pub(crate) func: Handle,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) params: *mut *mut c_void,
    pub(crate) extra: *mut *mut c_void,
    pub(crate) kernel: Handle,
    pub(crate) context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS_v2`; without the context it is `cudaMemsetParams`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemsetNodeParams {
    pub(crate) dst: DevicePtr,
    pub(crate) pitch: usize,
    pub(crate) value: c_uint,
    pub(crate) element_bytes: c_uint,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) context: Handle,
}

impl Default for MemsetNodeParams {
    fn default() -> Self {
        MemsetNodeParams {
            dst: 0,
            pitch: 0,
            value: 0,
            element_bytes: 0,
            width: 0,
            height: 0,
            context: std::ptr::null_mut(),
        }
    }
}

/// `CUDA_HOST_NODE_PARAMS`, which is `cudaHostNodeParams`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HostNodeParams {
    pub(crate) function: HostFn,
    pub(crate) data: *mut c_void,
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut c_void,
    pub(crate) attribute_count: c_uint,
}

/// `CUmemLocation`, which is `cudaMemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemLocation {
    pub(crate) kind: c_int,
    pub(crate) id: c_int,
}

impl MemLocation {
    pub(crate) const DEVICE: c_int = 1;
    pub(crate) const HOST: c_int = 2;

    /// The location that CUDA 12 named by a device's number, where -1 is the host.
    pub(crate) fn from_device(device: c_int) -> Self {
        if device < 0 {
            MemLocation { kind: Self::HOST, id: 0 }
        } else {
            MemLocation { kind: Self::DEVICE, id: device }
        }
    }
}

/// `CUipcMemHandle` and `CUipcEventHandle`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct IpcHandle {
    pub(crate) bytes: [c_char; 64],
}

/// `CUmemPoolPtrExportData`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PoolPointerExport {
    pub(crate) bytes: [u8; 64],
}

/// `CUuuid`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Uuid {
    pub(crate) bytes: [u8; 16],
}
