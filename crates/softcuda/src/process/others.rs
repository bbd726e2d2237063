//! Tensor maps, logs, the profiler, and what needs hardware that is not there.

use std::ffi::c_void;

use super::contexts;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::Text;

pub(crate) fn nothing() -> Res {
    Ok(())
}

/// Kernels that would read the map do not run, so it holds the address and the rank only.
#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn encode_tiled(
    map: Out<[u64; 16]>,
    _data_type: u32,
    rank: u32,
    address: u64,
    dims: In<u64>,
    _strides: In<u64>,
    boxes: In<u32>,
    element_strides: In<u32>,
    _interleave: u32,
    _swizzle: u32,
    _promotion: u32,
    _fill: u32,
) -> Res {
    map.check()?;
    if !(1..=5).contains(&rank) || !address.is_multiple_of(16) {
        return Err(Code::INVALID_VALUE);
    }
    let rank = rank as usize;
    let (dims, boxes) = (dims.all(rank)?, boxes.all(rank)?);
    element_strides.all(rank)?;
    if dims.contains(&0) || boxes.iter().any(|&size| size == 0 || size > 256) {
        return Err(Code::INVALID_VALUE);
    }
    let mut words = [0; 16];
    words[0] = address;
    words[1] = rank as u64;
    map.set(words)
}

pub(crate) fn replace_address(map: Out<[u64; 16]>, address: u64) -> Res {
    let mut words = map.get()?;
    if !address.is_multiple_of(16) {
        return Err(Code::INVALID_VALUE);
    }
    words[0] = address;
    map.set(words)
}

/// Nothing is ever logged.
pub(crate) fn register_logs(callback: *const c_void, _data: *mut c_void, handle: Out<usize>) -> Res {
    handle.check()?;
    if callback.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    handle.set(callback as usize)
}

pub(crate) fn unregister_logs(handle: usize) -> Res {
    if handle == 0 { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

pub(crate) fn profiler_initialize(_config: Text, _output: Text, mode: u32) -> Res {
    if mode > 1 { Err(Code::INVALID_VALUE) } else { Err(Code::NOT_SUPPORTED) }
}

pub(crate) fn flush_rdma(_target: u32, _scope: u32) -> Res {
    contexts::current()?;
    Err(Code::NOT_SUPPORTED)
}

pub(crate) fn import_external(object: Out<usize>, descriptor: *const c_void) -> Res {
    object.check()?;
    if descriptor.is_null() { Err(Code::INVALID_VALUE) } else { Err(Code::NOT_SUPPORTED) }
}

pub(crate) fn unknown_handle(_handle: usize) -> Res {
    Err(Code::INVALID_HANDLE)
}

pub(crate) fn external_buffer(ptr: Out<u64>, _memory: usize, descriptor: *const c_void) -> Res {
    ptr.check()?;
    if descriptor.is_null() { Err(Code::INVALID_VALUE) } else { Err(Code::INVALID_HANDLE) }
}

pub(crate) fn external_array(array: Out<usize>, _memory: usize, descriptor: *const c_void) -> Res {
    array.check()?;
    if descriptor.is_null() { Err(Code::INVALID_VALUE) } else { Err(Code::INVALID_HANDLE) }
}

pub(crate) fn multicast_create(handle: Out<u64>, properties: *const c_void) -> Res {
    handle.check()?;
    if properties.is_null() { Err(Code::INVALID_VALUE) } else { Err(Code::NOT_SUPPORTED) }
}

pub(crate) fn multicast_granularity(granularity: Out<usize>, properties: *const c_void, _option: u32) -> Res {
    granularity.check()?;
    if properties.is_null() { Err(Code::INVALID_VALUE) } else { Err(Code::NOT_SUPPORTED) }
}
