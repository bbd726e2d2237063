//! Launches: the driver's, for the kernel behind a host function.

use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;

use super::{Dim3, registry, shared_bytes};
use crate::driver::Table;
use crate::driver::types::{Handle, LaunchConfig};
use crate::entry::{read, stream_api};
use crate::error::{Error, Outcome};

/// `cudaLaunchConfig_t`.
#[repr(C)]
pub(super) struct Config {
    grid: Dim3,
    block: Dim3,
    shared_bytes: usize,
    stream: Handle,
    attributes: *mut c_void,
    attribute_count: c_uint,
}

impl Config {
    pub(super) fn to_driver(&self) -> Result<LaunchConfig, Error> {
        Ok(LaunchConfig {
            grid: self.grid.into(),
            block: self.block.into(),
            shared_bytes: shared_bytes(self.shared_bytes)?,
            stream: self.stream,
            attributes: self.attributes,
            attribute_count: self.attribute_count,
        })
    }
}

/// The common part of a launch.
struct Launch {
    grid: Dim3,
    block: Dim3,
    params: *mut *mut c_void,
    shared_bytes: usize,
    stream: Handle,
}

impl Launch {
    /// # Safety
    /// `function` is a kernel of the driver's; the parameters are as it takes them.
    unsafe fn run(&self, table: &Table, function: Handle) -> Outcome {
        let (grid, block) = (self.grid, self.block);
        let shared = shared_bytes(self.shared_bytes)?;
        // SAFETY: as the caller promises.
        unsafe {
            table.cuLaunchKernel(
                function,
                grid.x,
                grid.y,
                grid.z,
                block.x,
                block.y,
                block.z,
                shared,
                self.stream,
                self.params,
                null_mut(),
            )
        }
    }
}

stream_api! {
    fn cudaLaunchKernel / cudaLaunchKernel_ptsz(
        host: *const c_void, grid: Dim3, block: Dim3, params: *mut *mut c_void, shared_bytes: usize, stream: Handle
    ) |table| {
        let function = registry::kernel(table, host)?;
        Launch { grid, block, params, shared_bytes, stream }.run(table, function)
    }

    // The stubs of newer compilers ask for the kernel once, and launch by it.
    fn __cudaLaunchKernel / __cudaLaunchKernel_ptsz(
        kernel: Handle, grid: Dim3, block: Dim3, params: *mut *mut c_void, shared_bytes: usize, stream: Handle
    ) |table| {
        Launch { grid, block, params, shared_bytes, stream }.run(table, kernel)
    }

    fn cudaLaunchCooperativeKernel / cudaLaunchCooperativeKernel_ptsz(
        host: *const c_void, grid: Dim3, block: Dim3, params: *mut *mut c_void, bytes: usize, stream: Handle
    ) |table| {
        let function = registry::kernel(table, host)?;
        let shared = shared_bytes(bytes)?;
        table.cuLaunchCooperativeKernel(
            function, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, stream, params,
        )
    }

    fn cudaLaunchKernelExC / cudaLaunchKernelExC_ptsz(
        config: *const Config, host: *const c_void, params: *mut *mut c_void
    ) |table| {
        let config = read(config)?.to_driver()?;
        table.cuLaunchKernelEx(&raw const config, registry::kernel(table, host)?, params, null_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launch_configurations_have_cudas_sizes() {
        assert_eq!(size_of::<Config>(), 56, "cudaLaunchConfig_t");
        assert_eq!(size_of::<LaunchConfig>(), 56, "CUlaunchConfig");
    }
}
