//! Virtual memory management: reservations, chunks, mappings.
//!
//! Addresses belong to no device in CUDA, and to one here: that of the context in which they are reserved. A chunk of another
//! device is mapped there through its memory file, and kept by a handle of its own for as long as the mapping is there.

use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};

use parking_lot::Mutex;
use stratalloc::driver::{ChunkHandle, Driver, Location};
use stratalloc::units::DevicePtr;

use super::space::{self, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{
    AccessDesc, AllocationProp, HANDLE_POSIX_FD, LOCATION_DEVICE, LOCATION_HOST, LOCATION_HOST_NUMA,
    LOCATION_HOST_NUMA_CURRENT, MemLocation,
};
use crate::process::contexts;
use crate::process::devices::{self, Device, code_of};

const PINNED: u32 = 1;
/// A chunk's handle is its device's ordinal and the number that the software device gave.
const DEVICE_SHIFT: u32 = 48;

fn handle_of(device: &Device, chunk: ChunkHandle) -> u64 {
    (device.ordinal as u64 + 1) << DEVICE_SHIFT | chunk.0
}

/// The device and chunk of a handle that is held.
fn chunk_of(handle: u64) -> Res<(&'static Device, ChunkHandle)> {
    let ordinal = (handle >> DEVICE_SHIFT).checked_sub(1).ok_or(Code::INVALID_HANDLE)?;
    let device = devices::by_ordinal(i32::try_from(ordinal).map_err(|_| Code::INVALID_HANDLE)?)
        .map_err(|_| Code::INVALID_HANDLE)?;
    let chunk = ChunkHandle(handle & ((1 << DEVICE_SHIFT) - 1));
    match device.soft.chunk_info(chunk) {
        Some(info) if info.handles > 0 => Ok((device, chunk)),
        _ => Err(Code::INVALID_HANDLE),
    }
}

/// What chunks were asked to be, beyond size and location.
static PROPS: Mutex<Option<HashMap<u64, AllocationProp>>> = Mutex::new(None);

fn remember(handle: u64, prop: AllocationProp) {
    let mut props = PROPS.lock();
    let props = props.get_or_insert_default();
    if props.len() >= 1024 && props.len().is_power_of_two() {
        // Chunks that ended with their last mapping are still listed.
        props.retain(|&handle, _| {
            let device = (handle >> DEVICE_SHIFT).checked_sub(1).and_then(|at| devices::by_ordinal(at as i32).ok());
            let chunk = ChunkHandle(handle & ((1 << DEVICE_SHIFT) - 1));
            device.is_some_and(|device| device.soft.chunk_info(chunk).is_some())
        });
    }
    props.insert(handle, prop);
}

/// The device whose memory a property means, and where that is, seen from it.
fn home(prop: &AllocationProp) -> Res<(&'static Device, Location)> {
    if prop.kind != PINNED || prop.handle_types & !HANDLE_POSIX_FD != 0 {
        return Err(if prop.kind == PINNED && prop.handle_types < 16 {
            Code::NOT_SUPPORTED
        } else {
            Code::INVALID_VALUE
        });
    }
    match prop.location.kind {
        LOCATION_DEVICE => Ok((devices::by_ordinal(prop.location.id)?, Location::Device)),
        LOCATION_HOST | LOCATION_HOST_NUMA_CURRENT => Ok((any_device()?, Location::Host)),
        LOCATION_HOST_NUMA if prop.location.id >= 0 => Ok((any_device()?, Location::Host)),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// The current context's device, or the first.
fn any_device() -> Res<&'static Device> {
    contexts::device().or_else(|_| devices::by_ordinal(0))
}

/// The reservation that a whole range lies in, by its device.
fn owner(ptr: u64, size: usize) -> Res<&'static Device> {
    let block = space::find(ptr).filter(|block| block.kind == Kind::Reservation).ok_or(Code::INVALID_VALUE)?;
    let end = ptr.checked_add(size as u64).ok_or(Code::INVALID_VALUE)?;
    if size == 0 || end > block.base + block.size { Err(Code::INVALID_VALUE) } else { Ok(block.device) }
}

pub(crate) fn reserve(ptr: Out<u64>, size: usize, alignment: usize, _hint: u64, flags: u64) -> Res {
    ptr.check()?;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let device = any_device()?;
    let reserved = device.soft.reserve(size as u64, alignment as u64).map_err(code_of)?;
    space::insert(reserved.0, size as u64, Kind::Reservation, device, None);
    ptr.set(reserved.0)
}

pub(crate) fn unreserve(ptr: u64, size: usize) -> Res {
    supported()?;
    space::take(ptr, |block| block.kind == Kind::Reservation && block.size == size as u64).and_then(space::release)
}

/// Where there is no virtual memory management, all of it says so.
fn supported() -> Res {
    if any_device()?.soft.properties().vmm { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
}

pub(crate) fn create(handle: Out<u64>, size: usize, prop: In<AllocationProp>, flags: u64) -> Res {
    handle.check()?;
    let prop = prop.get()?;
    supported()?;
    let (device, location) = home(&prop)?;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let chunk = match device.soft.create(size as u64, location) {
        Err(error) if error.is_out_of_memory() && super::pools::give_up_idle(device) => {
            device.soft.create(size as u64, location)
        }
        result => result,
    };
    let made = handle_of(device, chunk.map_err(code_of)?);
    remember(made, prop);
    handle.set(made)
}

pub(crate) fn release(handle: u64) -> Res {
    supported()?;
    let (device, chunk) = chunk_of(handle)?;
    device.soft.release(chunk).map_err(code_of)?;
    if device.soft.chunk_info(chunk).is_none()
        && let Some(props) = PROPS.lock().as_mut()
    {
        props.remove(&handle);
    }
    Ok(())
}

pub(crate) fn map(ptr: u64, size: usize, offset: usize, handle: u64, flags: u64) -> Res {
    supported()?;
    let (device, chunk) = chunk_of(handle)?;
    let home = owner(ptr, size)?;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let at = DevicePtr(ptr);
    if device.ordinal == home.ordinal {
        return home.soft.map(at, size as u64, chunk, offset as u64).map_err(code_of);
    }
    let descriptor = device.soft.export(chunk).map_err(code_of)?;
    let guest = home.soft.import_chunk(descriptor.as_fd(), Location::Peer(device.ordinal as u32)).map_err(code_of)?;
    let mapped = home.soft.map(at, size as u64, guest, offset as u64).map_err(code_of);
    if mapped.is_ok() {
        // The mapping keeps the other device's chunk, until it is unmapped.
        device.soft.retain_chunk(chunk).map_err(code_of)?;
        GUESTS.lock().get_or_insert_default().push(Guest { home: home.ordinal, guest, device, chunk });
    }
    home.soft.release(guest).map_err(code_of)?;
    mapped
}

/// A chunk of one device, mapped into another's addresses.
#[derive(Debug)]
struct Guest {
    home: usize,
    guest: ChunkHandle,
    device: &'static Device,
    chunk: ChunkHandle,
}

static GUESTS: Mutex<Option<Vec<Guest>>> = Mutex::new(None);

pub(crate) fn unmap(ptr: u64, size: usize) -> Res {
    supported()?;
    let home = owner(ptr, size)?;
    home.soft.unmap(DevicePtr(ptr), size as u64).map_err(code_of)?;
    if let Some(guests) = GUESTS.lock().as_mut().filter(|guests| !guests.is_empty()) {
        guests.retain(|entry| {
            let gone = entry.home == home.ordinal && home.soft.chunk_info(entry.guest).is_none();
            if gone {
                // It was retained when it was mapped.
                let _ = entry.device.soft.release(entry.chunk);
            }
            !gone
        });
    }
    Ok(())
}

pub(crate) fn set_access(ptr: u64, size: usize, descriptors: In<AccessDesc>, count: usize) -> Res {
    supported()?;
    if count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    for descriptor in descriptors.all(count)? {
        match descriptor.location.kind {
            LOCATION_DEVICE => drop(devices::by_ordinal(descriptor.location.id)?),
            LOCATION_HOST..=LOCATION_HOST_NUMA_CURRENT => {}
            _ => return Err(Code::INVALID_VALUE),
        }
        // Nothing, reading, or reading and writing. A software device opens all or nothing.
        if !matches!(descriptor.flags, 0 | 1 | 3) {
            return Err(Code::INVALID_VALUE);
        }
    }
    owner(ptr, size)?.soft.set_access(DevicePtr(ptr), size as u64).map_err(code_of)
}

pub(crate) fn get_access(flags: Out<u64>, location: In<MemLocation>, ptr: u64) -> Res {
    flags.check()?;
    let location = location.get()?;
    if location.kind == LOCATION_DEVICE {
        devices::by_ordinal(location.id)?;
    }
    let device = owner(ptr, 1)?;
    let (_, _, access) = device.soft.mapping_at(DevicePtr(ptr)).ok_or(Code::INVALID_VALUE)?;
    flags.set(if access { 3 } else { 0 })
}

pub(crate) fn granularity(granularity: Out<usize>, prop: In<AllocationProp>, option: u32) -> Res {
    granularity.check()?;
    let prop = prop.get()?;
    supported()?;
    let (device, _) = home(&prop)?;
    if option > 1 {
        return Err(Code::INVALID_VALUE);
    }
    granularity.set(device.soft.properties().granularity as usize)
}

pub(crate) fn properties(prop: Out<AllocationProp>, handle: u64) -> Res {
    prop.check()?;
    let (device, chunk) = chunk_of(handle)?;
    prop.set(prop_of(device, chunk, handle))
}

fn prop_of(device: &Device, chunk: ChunkHandle, handle: u64) -> AllocationProp {
    if let Some(prop) = PROPS.lock().as_ref().and_then(|props| props.get(&handle).copied()) {
        return prop;
    }
    // An imported chunk.
    let location = match device.soft.chunk_info(chunk).map(|info| info.location) {
        Some(Location::Host) => MemLocation { kind: LOCATION_HOST_NUMA, id: 0 },
        _ => MemLocation { kind: LOCATION_DEVICE, id: device.ordinal as i32 },
    };
    AllocationProp {
        kind: PINNED,
        handle_types: HANDLE_POSIX_FD,
        location,
        win32: 0,
        compression: 0,
        rdma: 0,
        usage: 0,
        reserved: [0; 4],
    }
}

pub(crate) fn retain(handle: Out<u64>, ptr: u64) -> Res {
    handle.check()?;
    supported()?;
    let device = owner(ptr, 1)?;
    let (chunk, _) = device.soft.chunk_at(DevicePtr(ptr)).ok_or(Code::INVALID_VALUE)?;
    device.soft.retain_chunk(chunk).map_err(code_of)?;
    handle.set(handle_of(device, chunk))
}

pub(crate) fn export(shareable: Out<c_void>, handle: u64, kind: u32, flags: u64) -> Res {
    shareable.check()?;
    supported()?;
    let (device, chunk) = chunk_of(handle)?;
    if kind != HANDLE_POSIX_FD || flags != 0 {
        return Err(if kind == 0 || flags != 0 { Code::INVALID_VALUE } else { Code::NOT_SUPPORTED });
    }
    if prop_of(device, chunk, handle).handle_types & HANDLE_POSIX_FD == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let descriptor = device.soft.export(chunk).map_err(code_of)?;
    shareable.cast::<i32>().set(descriptor.into_raw_fd())
}

/// The file descriptor comes as a pointer; it stays its owner's.
pub(crate) fn import(handle: Out<u64>, shareable: usize, kind: u32) -> Res {
    handle.check()?;
    supported()?;
    if kind != HANDLE_POSIX_FD {
        return Err(Code::NOT_SUPPORTED);
    }
    let descriptor = i32::try_from(shareable).map_err(|_| Code::INVALID_VALUE)?;
    // SAFETY: an fcntl on a number; it fails where no file is open by it.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the descriptor is open, as was just seen, and the caller keeps it open during the call.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let device = any_device()?;
    let chunk = device.soft.import_chunk(descriptor, Location::Device).map_err(code_of)?;
    handle.set(handle_of(device, chunk))
}
