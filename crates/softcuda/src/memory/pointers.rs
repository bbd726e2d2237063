//! Questions about addresses, and advice.

use std::ffi::c_void;

use stratalloc::driver::Location;
use stratalloc::units::DevicePtr;

use super::plain::range_of;
use super::space::{self, Block, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{LOCATION_DEVICE, LOCATION_HOST, LOCATION_HOST_NUMA_CURRENT, MemLocation};
use crate::process::{contexts, devices};
use crate::stream::streams;

const TYPE_HOST: u32 = 1;
const TYPE_DEVICE: u32 = 2;

/// Where the memory at an address is: of which chunk, for virtual memory.
struct Place {
    block: Block,
    host: bool,
    /// Whether there is memory: reserved addresses may have none.
    mapped: bool,
    ordinal: usize,
}

fn place(ptr: u64) -> Option<Place> {
    let block = space::find(ptr)?;
    let mut place = Place { block, host: block.kind.is_host(), mapped: true, ordinal: block.device.ordinal };
    if block.kind == Kind::Reservation {
        let soft = &block.device.soft;
        let chunk = soft.chunk_at(DevicePtr(ptr)).and_then(|(chunk, _)| soft.chunk_info(chunk));
        place.mapped = chunk.is_some();
        match chunk.map(|chunk| chunk.location) {
            Some(Location::Host) => place.host = true,
            Some(Location::Peer(ordinal)) => place.ordinal = ordinal as usize,
            _ => {}
        }
    }
    Some(place)
}

/// Writes one attribute of an address. An address that is not CUDA's has few.
pub(crate) fn attribute(data: Out<c_void>, attribute: u32, ptr: u64) -> Res {
    data.check()?;
    contexts::current()?;
    write_attribute(data, attribute, ptr)
}

fn write_attribute(data: Out<c_void>, attribute: u32, ptr: u64) -> Res {
    let place = place(ptr).ok_or(Code::INVALID_VALUE)?;
    let Place { block, host, mapped, ordinal } = place;
    let (start, size) = range_of(ptr).unwrap_or((block.base, block.size));
    let known = if mapped { Ok(()) } else { Err(Code::INVALID_VALUE) };
    match attribute {
        // context
        1 => known.and(data.cast::<usize>().set(block.context.map_or(0, |context| context.handle))),
        // memory type
        2 => known.and(data.cast::<u32>().set(if host { TYPE_HOST } else { TYPE_DEVICE })),
        // device pointer
        3 => known.and(data.cast::<u64>().set(ptr)),
        // host pointer
        4 if host || block.kind == Kind::Managed => data.cast::<u64>().set(ptr),
        4 => Err(Code::INVALID_VALUE),
        // peer-to-peer tokens are of the past
        5 => Err(Code::NOT_SUPPORTED),
        // whether memory operations are synchronous
        6 => data.cast::<u32>().set(0),
        // buffer id
        7 => data.cast::<u64>().set(block.id),
        // managed
        8 => data.cast::<u8>().set(u8::from(block.kind == Kind::Managed)),
        // device ordinal
        9 => data.cast::<i32>().set(ordinal as i32),
        // fit for cuIpcGetMemHandle
        10 => data.cast::<u8>().set(u8::from(block.kind == Kind::Plain)),
        // range: start and size
        11 => data.cast::<u64>().set(start),
        12 => data.cast::<usize>().set(size as usize),
        // mapped
        13 => data.cast::<u8>().set(u8::from(mapped)),
        // handle types that it may be shared as
        14 => data.cast::<u64>().set(u64::from(block.kind == Kind::Reservation)),
        // GPUDirect RDMA
        15 => data.cast::<u8>().set(0),
        // access
        16 => {
            let access = match block.kind {
                Kind::Reservation => block.device.soft.is_accessible(DevicePtr(ptr), 1),
                _ => true,
            };
            data.cast::<u32>().set(if access { 3 } else { 0 })
        }
        // the pool
        17 => match block.kind {
            Kind::Pool { pool } => data.cast::<usize>().set(pool),
            _ => data.cast::<usize>().set(0),
        },
        // the mapping: size and start; the block's id
        18 => data.cast::<usize>().set(size as usize),
        19 => data.cast::<u64>().set(start),
        20 => data.cast::<u64>().set(block.id),
        21 => data.cast::<u8>().set(0),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// Many at once. What an address does not have is written as zeros, and is no error.
pub(crate) fn attributes(count: u32, attributes: In<u32>, data: In<*mut c_void>, ptr: u64) -> Res {
    contexts::current()?;
    if count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let attributes = attributes.all(count as usize)?;
    let places = data.all(count as usize)?;
    for (&attribute, &place) in attributes.iter().zip(&places) {
        let data = Out(place);
        data.check()?;
        if write_attribute(data, attribute, ptr).is_ok() {
            continue;
        }
        match attribute {
            9 => data.cast::<i32>().set(-2)?,
            2 | 6 | 16 => data.cast::<u32>().set(0)?,
            8 | 10 | 13 | 15 | 21 => data.cast::<u8>().set(0)?,
            1 | 3 | 4 | 7 | 11 | 12 | 14 | 17 | 18 | 19 | 20 => data.cast::<u64>().set(0)?,
            _ => return Err(Code::INVALID_VALUE),
        }
    }
    Ok(())
}

/// Whether memory operations on the allocation are synchronous: accepted, and without effect.
pub(crate) fn set_attribute(value: In<u32>, attribute: u32, ptr: u64) -> Res {
    contexts::current()?;
    value.get()?;
    if attribute != 6 || space::find(ptr).is_none_or(|block| block.kind.is_host()) {
        return Err(Code::INVALID_VALUE);
    }
    Ok(())
}

/// DMA buffers need a kernel module.
pub(crate) fn handle_for_range(handle: Out<i32>, ptr: u64, size: usize, _kind: u32, _flags: u64) -> Res {
    handle.check()?;
    contexts::current()?;
    let whole = space::find(ptr).is_some_and(|block| size > 0 && ptr - block.base + size as u64 <= block.size);
    if whole { Err(Code::NOT_SUPPORTED) } else { Err(Code::INVALID_VALUE) }
}

fn managed(ptr: u64, size: usize) -> Res {
    contexts::current()?;
    let block = space::find(ptr).filter(|block| block.kind == Kind::Managed).ok_or(Code::INVALID_VALUE)?;
    if size == 0 || size as u64 > block.size - (ptr - block.base) { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

/// Read-mostly, preferred location, accessed by, last prefetch: none was advised.
pub(crate) fn range_attribute(data: Out<c_void>, size: usize, attribute: u32, ptr: u64, count: usize) -> Res {
    data.check()?;
    managed(ptr, count)?;
    match attribute {
        1 if size == 4 => data.cast::<i32>().set(0),
        2 | 4 if size == 4 => data.cast::<i32>().set(-2),
        3 if size > 0 && size.is_multiple_of(4) => data.cast::<i32>().set_all((0..size / 4).map(|_| -2)),
        5 | 7 if size == 4 => data.cast::<i32>().set(0),
        6 | 8 if size == 4 => data.cast::<i32>().set(-2),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn range_attributes(
    data: In<*mut c_void>,
    sizes: In<usize>,
    attributes: In<u32>,
    attribute_count: usize,
    ptr: u64,
    count: usize,
) -> Res {
    let attributes = attributes.all(attribute_count)?;
    let (data, sizes) = (data.all(attribute_count)?, sizes.all(attribute_count)?);
    if attributes.is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    for ((&place, &size), &attribute) in data.iter().zip(&sizes).zip(&attributes) {
        range_attribute(Out(place), size, attribute, ptr, count)?;
    }
    Ok(())
}

fn check_location(location: MemLocation) -> Res {
    match location.kind {
        LOCATION_DEVICE => devices::by_ordinal(location.id).map(|_| ()),
        LOCATION_HOST..=LOCATION_HOST_NUMA_CURRENT => Ok(()),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn advise(ptr: u64, size: usize, advice: u32, location: MemLocation) -> Res {
    managed(ptr, size)?;
    if !(1..=6).contains(&advice) {
        return Err(Code::INVALID_VALUE);
    }
    // Advice that names no location ignores it.
    if matches!(advice, 1 | 2 | 4) { Ok(()) } else { check_location(location) }
}

/// In the first version -1 is the host.
fn location_v1(device: i32) -> MemLocation {
    match device {
        -1 => MemLocation { kind: LOCATION_HOST, id: 0 },
        id => MemLocation { kind: LOCATION_DEVICE, id },
    }
}

pub(crate) fn advise_v1(ptr: u64, size: usize, advice: u32, device: i32) -> Res {
    advise(ptr, size, advice, location_v1(device))
}

pub(crate) fn prefetch(ptr: u64, size: usize, location: MemLocation, flags: u32, stream: usize) -> Res {
    managed(ptr, size)?;
    streams::resolve(stream)?;
    if flags != 0 { Err(Code::INVALID_VALUE) } else { check_location(location) }
}

pub(crate) fn prefetch_v1(ptr: u64, size: usize, device: i32, stream: usize) -> Res {
    prefetch(ptr, size, location_v1(device), 0, stream)
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn prefetch_batch(
    ptrs: In<u64>,
    sizes: In<usize>,
    count: usize,
    locations: In<MemLocation>,
    indices: In<usize>,
    location_count: usize,
    flags: u64,
    stream: usize,
) -> Res {
    locations.all(location_count)?.into_iter().try_for_each(check_location)?;
    indices.all(location_count)?;
    if location_count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    discard_batch(ptrs, sizes, count, flags, stream)
}

pub(crate) fn discard_batch(ptrs: In<u64>, sizes: In<usize>, count: usize, flags: u64, stream: usize) -> Res {
    let (ptrs, sizes) = (ptrs.all(count)?, sizes.all(count)?);
    if count == 0 || flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    streams::resolve(stream)?;
    ptrs.iter().zip(&sizes).try_for_each(|(&ptr, &size)| managed(ptr, size))
}
