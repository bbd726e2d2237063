//! `cudaGraphNodeParams`, and the driver's form of it.
//!
//! Both are a type, and behind it one of several structures. Most are the same in both; kernels, copies, fills and
//! conditionals differ in a handle or a context.

use std::ffi::{c_int, c_void};

use crate::context;
use crate::driver::Table;
use crate::driver::types::{Handle, KernelNodeParams, Memcpy3D, MemsetNodeParams};
use crate::error::Error;
use crate::kernel;
use crate::memory::copy_3d::{self, Copy3D};

/// The runtime's and the driver's structure alike: 256 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct NodeParams {
    kind: c_int,
    reserved: [c_int; 3],
    body: Body,
    tail: i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
union Body {
    words: [i64; 29],
    kernel: KernelNodeParams,
    copy: RuntimeCopy,
    driver_copy: DriverCopy,
    fill: MemsetNodeParams,
    conditional: Conditional,
}

/// `cudaMemcpyNodeParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RuntimeCopy {
    flags: c_int,
    reserved: [c_int; 3],
    copy: Copy3D,
}

/// `CUDA_MEMCPY_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DriverCopy {
    flags: c_int,
    reserved: c_int,
    context: Handle,
    copy: Memcpy3D,
}

/// `CUDA_CONDITIONAL_NODE_PARAMS`; without the context it is the runtime's.
#[repr(C)]
#[derive(Clone, Copy)]
struct Conditional {
    handle: u64,
    kind: c_int,
    size: u32,
    bodies: *mut Handle,
    context: Handle,
}

/// `cudaGraphNodeType`, where something has to be translated.
const KERNEL: c_int = 0;
const COPY: c_int = 1;
const FILL: c_int = 2;
const CONDITIONAL: c_int = 13;

/// The context that nodes of the thread's device run in.
pub(super) fn node_context(table: &Table) -> Result<Handle, Error> {
    context::primary(table, context::device(table)?)
}

impl NodeParams {
    /// The driver's form. The fields behind the runtime's structure are filled in: the runtime's structure is read only as
    /// far as it reaches.
    pub(super) fn to_driver(self, table: &Table) -> Result<Self, Error> {
        let mut params = self;
        // SAFETY: `kind` says which structure the program has filled in; all are plain data, for which any bytes are a
        // value, and what the program has not filled in is written here before the driver reads it.
        unsafe {
            match self.kind {
                KERNEL => {
                    let host: *const c_void = self.body.kernel.func.cast_const();
                    params.body.kernel.func = std::ptr::null_mut();
                    params.body.kernel.kernel = kernel::function(table, host)?;
                    params.body.kernel.context = std::ptr::null_mut();
                }
                COPY => {
                    let copy = copy_3d::convert(table, &self.body.copy.copy)?;
                    let flags = self.body.copy.flags;
                    params.body.driver_copy = DriverCopy { flags, reserved: 0, context: node_context(table)?, copy };
                }
                FILL => params.body.fill.context = node_context(table)?,
                CONDITIONAL => params.body.conditional.context = node_context(table)?,
                _ => {}
            }
        }
        Ok(params)
    }

    /// What the driver has written for the caller: the graphs of a conditional, the address of an allocation.
    pub(super) fn take_results(&mut self, driver: &NodeParams) {
        const ALLOCATION: c_int = 10;
        // SAFETY: all members of the union are plain data.
        unsafe {
            match self.kind {
                CONDITIONAL => self.body.conditional.bodies = driver.body.conditional.bodies,
                ALLOCATION => self.body.words = driver.body.words,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_cudas_sizes() {
        assert_eq!(size_of::<NodeParams>(), 256, "cudaGraphNodeParams");
        assert_eq!(size_of::<RuntimeCopy>(), 176, "cudaMemcpyNodeParams");
        assert_eq!(size_of::<KernelNodeParams>(), 72, "CUDA_KERNEL_NODE_PARAMS_v2");
        assert_eq!(size_of::<MemsetNodeParams>(), 48, "CUDA_MEMSET_NODE_PARAMS_v2");
    }
}
