//! Launches.

use std::ffi::c_void;
use std::sync::Arc;

use stratalloc::driver::kernels::Call;

use super::functions;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::In;
use crate::abi::structs::{KernelParams, KernelParamsV2, LaunchConfig};
use crate::stream::work::Op;
use crate::stream::{LEGACY, PER_THREAD, capture, streams};

const MOST_THREADS: u64 = 1024;

fn launch(
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: usize,
    values: *const *const c_void,
) -> Res {
    let function = functions::get(function)?;
    let (function, own) = (function.handle, function.own);
    let threads = block.iter().fold(1u64, |product, &n| product.saturating_mul(u64::from(n)));
    if grid.contains(&0) || threads == 0 || threads > MOST_THREADS {
        return Err(Code::INVALID_VALUE);
    }
    let stream = streams::for_work(stream)?;
    let first = KernelParams { function, grid, block, shared_bytes, params: 0, extra: 0 };
    let params = KernelParamsV2 { first, kernel: 0, context: 0 };
    let op = match own {
        Some(_) if values.is_null() => return Err(Code::INVALID_VALUE),
        // SAFETY: the caller of the C API passes a pointer for each parameter of the kernel; these are our own kernels.
        Some(kernel) => Op::OwnKernel(params, Arc::new(unsafe { Call::from_params(kernel, values) })),
        None => Op::Kernel(params),
    };
    if stream.is_capturing() { capture::record(&stream, op) } else { op.run(&stream) }
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn kernel(
    function: usize,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: usize,
    params: usize,
    _extra: usize,
) -> Res {
    launch(function, [gx, gy, gz], [bx, by, bz], shared, stream, params as *const _)
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn cooperative(
    function: usize,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: usize,
    params: usize,
) -> Res {
    launch(function, [gx, gy, gz], [bx, by, bz], shared, stream, params as *const _)
}

/// `null` says what a stream of 0 means to the caller.
pub(crate) fn with_config(null: usize, config: In<LaunchConfig>, function: usize, params: usize, _extra: usize) -> Res {
    let config = config.get()?;
    let stream = if config.stream == 0 && null == PER_THREAD { PER_THREAD } else { config.stream };
    let stream = if stream == 0 { LEGACY } else { stream };
    launch(function, config.grid, config.block, config.shared_bytes, stream, params as *const _)
}
