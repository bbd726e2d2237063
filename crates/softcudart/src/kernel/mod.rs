//! Device code: what programs register at load time, and launches.

mod call_configuration;
mod function;
mod launch;
mod library;
mod occupancy;
mod registry;

use std::ffi::{c_int, c_uint, c_void};

pub(crate) use registry::variable;

/// `dim3`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Dim3 {
    pub(crate) x: c_uint,
    pub(crate) y: c_uint,
    pub(crate) z: c_uint,
}

impl From<Dim3> for [c_uint; 3] {
    fn from(dim: Dim3) -> Self {
        [dim.x, dim.y, dim.z]
    }
}

/// The driver's handle of the kernel behind a host function; `cudaKernelNodeParams` wants it.
pub(crate) fn function(
    table: &crate::driver::Table,
    host: *const c_void,
) -> Result<crate::driver::types::Handle, crate::error::Error> {
    registry::kernel(table, host)
}

/// Shared memory as the driver takes it.
fn shared_bytes(bytes: usize) -> Result<c_uint, crate::error::Error> {
    c_uint::try_from(bytes).map_err(|_| crate::error::Error::INVALID_VALUE)
}

/// A C boolean.
const TRUE: c_int = 1;
