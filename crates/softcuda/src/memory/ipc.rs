//! Memory and events shared between processes of one machine.
//!
//! A handle names the process, the descriptor of its device's memory file there, and where in the file the memory lies. The
//! other process opens that file through `/proc`, which needs the same user, as CUDA's own handles do.

use std::fs::File;

use stratalloc::units::DevicePtr;

use super::space::{self, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::abi::structs::Opaque64;
use crate::process::contexts;
use crate::process::devices::code_of;
use crate::stream::events;

const MEMORY_MARK: u64 = 0x7374_7261_7461_6d01;
const EVENT_MARK: u64 = 0x7374_7261_7461_6501;

/// Eight numbers as a handle.
fn seal(words: [u64; 8]) -> Opaque64 {
    let mut bytes = [0; 64];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Opaque64(bytes)
}

fn unseal(handle: &Opaque64, mark: u64) -> Res<[u64; 8]> {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(handle.0.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    if words[0] == mark { Ok(words) } else { Err(Code::INVALID_VALUE) }
}

/// Opens a file that another process has open.
fn open_of(process: u64, descriptor: u64) -> Res<File> {
    let path = format!("/proc/{process}/fd/{descriptor}");
    File::options().read(true).write(true).open(path).map_err(|_| Code::MAP_FAILED)
}

pub(crate) fn get_memory(handle: Out<Opaque64>, ptr: u64) -> Res {
    handle.check()?;
    contexts::current()?;
    let block = space::find(ptr).ok_or(Code::INVALID_VALUE)?;
    if block.kind != Kind::Plain {
        return Err(Code::INVALID_VALUE);
    }
    let shared = block.device.soft.shared_memory(DevicePtr(block.base)).map_err(code_of)?;
    let process = u64::from(std::process::id());
    handle.set(seal([
        MEMORY_MARK,
        process,
        shared.descriptor as u64,
        shared.offset,
        shared.size,
        block.size,
        block.device.ordinal as u64,
        block.id,
    ]))
}

pub(crate) fn open_memory(ptr: Out<u64>, handle: Opaque64, flags: u32) -> Res {
    ptr.check()?;
    let context = contexts::current()?;
    let [_, process, descriptor, offset, size, asked, _, _] = unseal(&handle, MEMORY_MARK)?;
    // Peer access is enabled lazily, or not: both are right here.
    if flags > 1 || asked > size {
        return Err(Code::INVALID_VALUE);
    }
    if process == u64::from(std::process::id()) {
        // A process has its own memory already.
        return Err(Code::INVALID_CONTEXT);
    }
    let file = open_of(process, descriptor)?;
    let opened = context.device.soft.open_shared(file, offset, size).map_err(code_of)?;
    space::insert(opened.0, asked, Kind::Shared, context.device, Some(context));
    ptr.set(opened.0)
}

pub(crate) fn close_memory(ptr: u64) -> Res {
    contexts::current()?;
    space::take(ptr, |block| block.kind == Kind::Shared).and_then(space::release)
}

pub(crate) fn get_event(handle: Out<Opaque64>, event: usize) -> Res {
    handle.check()?;
    contexts::current()?;
    let descriptor = events::shared_descriptor(event)?;
    handle.set(seal([EVENT_MARK, u64::from(std::process::id()), descriptor as u64, 0, 0, 0, 0, 0]))
}

pub(crate) fn open_event(event: Out<usize>, handle: Opaque64) -> Res {
    event.check()?;
    contexts::current()?;
    let [_, process, descriptor, ..] = unseal(&handle, EVENT_MARK)?;
    if process == u64::from(std::process::id()) {
        return Err(Code::INVALID_CONTEXT);
    }
    event.set(events::open_shared(open_of(process, descriptor)?)?)
}
