//! The calls of stream-ordered memory.

use std::ffi::c_void;
use std::sync::atomic::Ordering;

use super::pools::{self, Pool};
use super::space::{self, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{
    AccessDesc, LOCATION_DEVICE, LOCATION_HOST, LOCATION_HOST_NUMA, LOCATION_HOST_NUMA_CURRENT, MemLocation, Opaque64,
    PoolProps,
};
use crate::process::contexts;
use crate::process::devices::{self, Device};
use crate::stream::streams::Stream;
use crate::stream::work::Op;
use crate::stream::{capture, streams};

pub(crate) fn alloc(ptr: Out<u64>, size: usize, stream: usize) -> Res {
    ptr.check()?;
    let stream = streams::for_work(stream)?;
    let pool = pools::current_of(stream.device)?;
    ptr.set(alloc_on(&stream, size, &pool)?)
}

pub(crate) fn alloc_from(ptr: Out<u64>, size: usize, pool: usize, stream: usize) -> Res {
    ptr.check()?;
    let stream = streams::for_work(stream)?;
    ptr.set(alloc_on(&stream, size, &*pools::by_handle(pool)?)?)
}

fn alloc_on(stream: &Stream, size: usize, pool: &Pool) -> Res<u64> {
    if size == 0 {
        return Err(Code::INVALID_VALUE);
    }
    if stream.is_capturing() {
        let memory = crate::graph::memory::GraphMemory::allocate(pool.device, size as u64)?;
        let ptr = memory.ptr;
        capture::record(stream, Op::Alloc { memory, props: pool.props })?;
        return Ok(ptr);
    }
    pool.alloc(size as u64, stream)
}

pub(crate) fn free(ptr: u64, stream: usize) -> Res {
    let stream = streams::for_work(stream)?;
    if ptr == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let block = space::find(ptr).filter(|block| block.base == ptr).ok_or(Code::INVALID_VALUE)?;
    match block.kind {
        Kind::Graph if stream.is_capturing() => capture::record(&stream, Op::Free { ptr }),
        // The graph keeps its memory as long as it exists.
        Kind::Graph => Ok(()),
        Kind::Pool { .. } if stream.is_capturing() => Err(capture::refuse(&stream)),
        Kind::Pool { pool } => {
            let pool = pools::by_handle(pool)?;
            let block = space::take(ptr, |block| matches!(block.kind, Kind::Pool { .. }))?;
            let on = if block.device.ordinal == stream.device.ordinal {
                stream.soft
            } else {
                // Freed on another device's stream: its work is done before.
                stream.device.wait_stream(stream.soft)?;
                stratalloc::units::StreamId::DEFAULT
            };
            pool.free(block, on).inspect_err(|_| space::put_back(block))
        }
        // Plain memory may be freed in stream order as well. Here that waits for the device, which is one legal order.
        Kind::Plain | Kind::Managed if stream.is_capturing() => Err(capture::refuse(&stream)),
        Kind::Plain | Kind::Managed => {
            space::take(ptr, |block| matches!(block.kind, Kind::Plain | Kind::Managed)).and_then(space::release)
        }
        _ => Err(Code::INVALID_VALUE),
    }
}

// ---- pools --------------------------------------------------------------------------------------------------------------

/// The device of a location, and whether memory there is host memory.
fn home(location: MemLocation) -> Res<(&'static Device, bool)> {
    match location.kind {
        LOCATION_DEVICE => Ok((devices::by_ordinal(location.id)?, false)),
        LOCATION_HOST | LOCATION_HOST_NUMA | LOCATION_HOST_NUMA_CURRENT => {
            Ok((contexts::device().or_else(|_| devices::by_ordinal(0))?, true))
        }
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn create(pool: Out<usize>, props: In<PoolProps>) -> Res {
    pool.check()?;
    let props = props.get()?;
    // Pinned memory, shared with nobody or as a file descriptor.
    if props.kind != 1 {
        return Err(if props.kind == 2 { Code::NOT_SUPPORTED } else { Code::INVALID_VALUE });
    }
    if props.handle_types > 1 {
        return Err(Code::NOT_SUPPORTED);
    }
    let (device, host) = home(props.location)?;
    pool.set(Pool::make(device, props, host)?.handle)
}

pub(crate) fn destroy(pool: usize) -> Res {
    pools::destroy(pool)
}

pub(crate) fn trim(pool: usize, keep: usize) -> Res {
    pools::by_handle(pool)?.trim(keep as u64);
    Ok(())
}

const RELEASE_THRESHOLD: u32 = 4;

pub(crate) fn get_attribute(pool: usize, attribute: u32, value: Out<c_void>) -> Res {
    value.check()?;
    let pool = pools::by_handle(pool)?;
    let state = pool.state.lock();
    match attribute {
        1..=3 => value.cast::<u32>().set(state.reuse[attribute as usize - 1]),
        RELEASE_THRESHOLD => value.cast::<u64>().set(state.threshold),
        5 => value.cast::<u64>().set(state.reserved),
        6 => value.cast::<u64>().set(state.reserved_high),
        7 => value.cast::<u64>().set(state.in_use),
        8 => value.cast::<u64>().set(state.in_use_high),
        9 => value.cast::<u32>().set(pool.props.kind),
        10 => value.cast::<u32>().set(pool.props.handle_types),
        11 => value.cast::<i32>().set(pool.props.location.id),
        12 => value.cast::<u32>().set(pool.props.location.kind),
        13 => value.cast::<u64>().set(pool.props.max_size as u64),
        14 => value.cast::<u32>().set(0),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn set_attribute(pool: usize, attribute: u32, value: Out<c_void>) -> Res {
    value.check()?;
    let pool = pools::by_handle(pool)?;
    let mut state = pool.state.lock();
    match attribute {
        1..=3 => state.reuse[attribute as usize - 1] = value.cast::<u32>().get()?,
        RELEASE_THRESHOLD => state.threshold = value.cast::<u64>().get()?,
        // High marks can only be reset.
        6 if value.cast::<u64>().get()? == 0 => state.reserved_high = state.reserved,
        8 if value.cast::<u64>().get()? == 0 => state.in_use_high = state.in_use,
        _ => return Err(Code::INVALID_VALUE),
    }
    Ok(())
}

pub(crate) fn set_access(pool: usize, descriptors: In<AccessDesc>, count: usize) -> Res {
    let pool = pools::by_handle(pool)?;
    if count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    for descriptor in descriptors.all(count)? {
        let (device, host) = home(descriptor.location)?;
        if !matches!(descriptor.flags, 0 | 1 | 3) || host && !pool.host {
            return Err(Code::INVALID_VALUE);
        }
        let own = device.ordinal == pool.device.ordinal && !pool.host;
        if own && descriptor.flags != 3 {
            // A pool's own device keeps its access.
            return Err(Code::INVALID_DEVICE);
        }
        let ordinal = device.ordinal as i32;
        let mut state = pool.state.lock();
        state.access.retain(|(other, _)| *other != ordinal);
        state.access.push((ordinal, descriptor.flags));
    }
    Ok(())
}

pub(crate) fn get_access(flags: Out<u32>, pool: usize, location: In<MemLocation>) -> Res {
    flags.check()?;
    let location = location.get()?;
    let pool = pools::by_handle(pool)?;
    let (device, host) = home(location)?;
    let own = host == pool.host && (host || device.ordinal == pool.device.ordinal);
    let set =
        pool.state.lock().access.iter().find(|(other, _)| *other == device.ordinal as i32).map(|(_, flags)| *flags);
    flags.set(set.unwrap_or(if own { 3 } else { 0 }))
}

pub(crate) fn device_default(pool: Out<usize>, device: i32) -> Res {
    pool.check()?;
    pool.set(pools::default_of(devices::by_ordinal(device)?)?.handle)
}

pub(crate) fn device_current(pool: Out<usize>, device: i32) -> Res {
    pool.check()?;
    pool.set(pools::current_of(devices::by_ordinal(device)?)?.handle)
}

pub(crate) fn set_device_current(device: i32, pool: usize) -> Res {
    let device = devices::by_ordinal(device)?;
    let pool = pools::by_handle(pool)?;
    if pool.device.ordinal != device.ordinal || pool.host {
        return Err(Code::INVALID_DEVICE);
    }
    device.pools.lock().current = Some(pool);
    Ok(())
}

/// Only device memory has pools of its own.
fn located(location: In<MemLocation>, kind: u32) -> Res<&'static Device> {
    let (device, host) = home(location.get()?)?;
    match kind {
        1 if !host => Ok(device),
        1 | 2 => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn location_default(pool: Out<usize>, location: In<MemLocation>, kind: u32) -> Res {
    pool.check()?;
    pool.set(pools::default_of(located(location, kind)?)?.handle)
}

pub(crate) fn location_current(pool: Out<usize>, location: In<MemLocation>, kind: u32) -> Res {
    pool.check()?;
    pool.set(pools::current_of(located(location, kind)?)?.handle)
}

pub(crate) fn set_location_current(location: In<MemLocation>, kind: u32, pool: usize) -> Res {
    let device = located(location, kind)?;
    set_device_current(device.ordinal as i32, pool)
}

// ---- sharing, which pools do not do here ----------------------------------------------------------------------------------

pub(crate) fn export(handle: Out<c_void>, pool: usize, _kind: u32, _flags: u64) -> Res {
    handle.check()?;
    pools::by_handle(pool)?;
    Err(Code::NOT_SUPPORTED)
}

pub(crate) fn import(pool: Out<usize>, _handle: usize, _kind: u32, _flags: u64) -> Res {
    pool.check()?;
    Err(Code::NOT_SUPPORTED)
}

pub(crate) fn export_pointer(data: Out<Opaque64>, ptr: u64) -> Res {
    data.check()?;
    match space::find(ptr).map(|block| block.kind) {
        Some(Kind::Pool { .. }) => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn import_pointer(ptr: Out<u64>, pool: usize, data: In<Opaque64>) -> Res {
    ptr.check()?;
    data.get()?;
    pools::by_handle(pool)?;
    Err(Code::NOT_SUPPORTED)
}

// ---- memory of graphs -------------------------------------------------------------------------------------------------------

/// Used now and at most, reserved now and at most: memory of nodes is allocated with them.
pub(crate) fn graph_attribute(device: i32, attribute: u32, value: Out<u64>) -> Res {
    value.check()?;
    let device = devices::by_ordinal(device)?;
    match attribute {
        0 | 2 => value.set(device.graph_used.load(Ordering::Relaxed)),
        1 | 3 => value.set(device.graph_used_high.load(Ordering::Relaxed)),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn set_graph_attribute(device: i32, attribute: u32, value: In<u64>) -> Res {
    let device = devices::by_ordinal(device)?;
    if !matches!(attribute, 1 | 3) || value.get()? != 0 {
        return Err(Code::INVALID_VALUE);
    }
    device.graph_used_high.store(device.graph_used.load(Ordering::Relaxed), Ordering::Relaxed);
    Ok(())
}

pub(crate) fn graph_trim(device: i32) -> Res {
    devices::by_ordinal(device).map(|_| ())
}
