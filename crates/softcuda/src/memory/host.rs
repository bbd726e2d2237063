//! Pinned host memory.

use stratalloc::driver::Driver;
use stratalloc::units::DevicePtr;

use super::space::{self, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::process::contexts;
use crate::process::devices::code_of;
use crate::stream::capture;

/// Portable, mapped, write-combined.
const ALLOC_FLAGS: u32 = 7;
/// Portable, mapped, of a device's own memory space, read-only.
const REGISTER_FLAGS: u32 = 0xf;
const IO_MEMORY: u32 = 4;

pub(crate) fn alloc_flags(ptr: Out<u64>, size: usize, flags: u32) -> Res {
    ptr.check()?;
    let context = contexts::current()?;
    capture::refuse_unsafe()?;
    if size == 0 || flags & !ALLOC_FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let host = context.device.soft.alloc_host(size as u64).map_err(|error| match code_of(error) {
        // More than the host has.
        Code::INVALID_VALUE => Code::OUT_OF_MEMORY,
        code => code,
    })?;
    space::insert(host.0 as u64, size as u64, Kind::Host { flags }, context.device, Some(context));
    ptr.set(host.0 as u64)
}

pub(crate) fn alloc(ptr: Out<u64>, size: usize) -> Res {
    alloc_flags(ptr, size, 0)
}

pub(crate) fn alloc_v1(ptr: Out<u64>, size: u32) -> Res {
    alloc_flags(ptr, size as usize, 0)
}

pub(crate) fn free(ptr: u64) -> Res {
    contexts::current()?;
    capture::refuse_unsafe()?;
    if ptr == 0 {
        return Err(Code::INVALID_VALUE);
    }
    space::take(ptr, |block| matches!(block.kind, Kind::Host { .. })).and_then(space::release)
}

pub(crate) fn register(ptr: u64, size: usize, flags: u32) -> Res {
    let context = contexts::current()?;
    capture::refuse_unsafe()?;
    if ptr == 0 || size == 0 || flags & !REGISTER_FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    if flags & IO_MEMORY != 0 {
        return Err(Code::NOT_SUPPORTED);
    }
    let last = ptr.checked_add(size as u64 - 1).ok_or(Code::INVALID_VALUE)?;
    if space::find(ptr).or_else(|| space::find(last)).is_some() {
        return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
    }
    if !super::copies::is_host_memory(ptr, size as u64) {
        return Err(Code::INVALID_VALUE);
    }
    context.device.soft.register_host(DevicePtr(ptr), size as u64).map_err(|_| Code::HOST_MEMORY_ALREADY_REGISTERED)?;
    space::insert(ptr, size as u64, Kind::Registered { flags }, context.device, Some(context));
    Ok(())
}

pub(crate) fn unregister(ptr: u64) -> Res {
    contexts::current()?;
    capture::refuse_unsafe()?;
    if ptr == 0 {
        return Err(Code::INVALID_VALUE);
    }
    space::take(ptr, |block| matches!(block.kind, Kind::Registered { .. }))
        .map_err(|_| Code::HOST_MEMORY_NOT_REGISTERED)
        .and_then(space::release)
}

/// All pinned memory has one address, on the host and on devices.
pub(crate) fn device_pointer(device: Out<u64>, ptr: u64, flags: u32) -> Res {
    device.check()?;
    contexts::current()?;
    let pinned = space::find(ptr).is_some_and(|block| block.kind.is_host());
    if flags != 0 || !pinned {
        return Err(Code::INVALID_VALUE);
    }
    device.set(ptr)
}

pub(crate) fn flags(flags: Out<u32>, ptr: u64) -> Res {
    flags.check()?;
    contexts::current()?;
    match space::find(ptr).map(|block| block.kind) {
        Some(Kind::Host { flags: found } | Kind::Registered { flags: found }) => flags.set(found | 2),
        _ => Err(Code::INVALID_VALUE),
    }
}
