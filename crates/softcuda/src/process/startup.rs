//! `cuInit`, the look-up of functions, names of errors.

use std::ffi::{c_char, c_void};
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::devices::Device;
use super::{FAULTS, FORKED, Ordered, PROCESS, Process, READY, STATE, UNUSED, report};
use crate::abi::codes::{Code, Res, describe};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{Text, Uuid};
use crate::export::{Found, find};
use crate::options::Options;

/// In a child of `fork`, the parent's devices are gone, as with the real driver.
extern "C" fn after_fork() {
    if STATE.load(Ordering::Acquire) == READY {
        STATE.store(FORKED, Ordering::Release);
    }
}

extern "C" fn at_exit() {
    report::at_exit();
}

pub(crate) fn init(flags: u32) -> Res {
    static INITIALISING: Mutex<()> = Mutex::new(());
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    match STATE.load(Ordering::Acquire) {
        READY => return no_device_is_an_error(),
        FORKED => return Err(Code::NOT_INITIALIZED),
        _ => {}
    }
    let _one_at_a_time = INITIALISING.lock();
    if STATE.load(Ordering::Acquire) != UNUSED {
        return no_device_is_an_error();
    }
    let options = Options::from_environment().map_err(|malformed| complain(&malformed, Code::SYSTEM_NOT_READY))?;
    let mut devices = Vec::new();
    for ordinal in 0..options.devices {
        let device = Device::new(ordinal, &options).map_err(|error| complain(&error, Code::SYSTEM_NOT_READY))?;
        devices.push(&*Box::leak(Box::new(device)));
    }
    FAULTS.store(!options.faults.is_empty(), Ordering::Relaxed);
    let order = |fault| Ordered { fault, seen: 0, random: 0x9e37_79b9_7f4a_7c15 };
    let faults = Mutex::new(options.faults.iter().cloned().map(order).collect());
    if PROCESS.set(Process { options, devices, faults }).is_err() {
        return Err(Code::UNKNOWN);
    }
    // SAFETY: both are functions of this library, which is never unloaded (build.rs).
    unsafe {
        libc::pthread_atfork(None, None, Some(after_fork));
        libc::atexit(at_exit);
    }
    STATE.store(READY, Ordering::Release);
    no_device_is_an_error()
}

fn no_device_is_an_error() -> Res {
    if PROCESS.get().is_some_and(|process| process.devices.is_empty()) { Err(Code::NO_DEVICE) } else { Ok(()) }
}

#[allow(clippy::print_stderr, reason = "a driver has no other way to say what is wrong with its environment")]
fn complain(what: &dyn std::fmt::Display, code: Code) -> Code {
    eprintln!("softcuda: {what}");
    code
}

pub(crate) fn driver_version(version: Out<i32>) -> Res {
    let chosen = match PROCESS.get() {
        Some(process) => process.options.driver_version,
        None => Options::from_environment().unwrap_or_default().driver_version,
    };
    version.set(chosen)
}

const PER_THREAD: u64 = 2;
const FLAGS: u64 = 1 | PER_THREAD;
const STATUS_FOUND: u32 = 0;
const STATUS_MISSING: u32 = 1;
const STATUS_TOO_OLD: u32 = 2;

/// Looks a name up. Gives the function, or null, and the status of the search.
fn look_up(symbol: Text, version: i32, flags: u64) -> Res<(*const (), u32)> {
    let name = symbol.text()?;
    let version = u32::try_from(version).map_err(|_| Code::INVALID_VALUE)?;
    if flags & !FLAGS != 0 || name.is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    Ok(match find(&name, version, flags & PER_THREAD != 0) {
        Found::Function(entry) => (entry.address(), STATUS_FOUND),
        Found::TooOld => (std::ptr::null(), STATUS_TOO_OLD),
        Found::Missing => (std::ptr::null(), STATUS_MISSING),
    })
}

pub(crate) fn get_proc_address(symbol: Text, function: Out<*const ()>, version: i32, flags: u64) -> Res {
    get_proc_address_v2(symbol, function, version, flags, Out(std::ptr::null_mut()))
}

pub(crate) fn get_proc_address_v2(
    symbol: Text,
    function: Out<*const ()>,
    version: i32,
    flags: u64,
    status: Out<u32>,
) -> Res {
    function.check()?;
    let (address, found) = look_up(symbol, version, flags)?;
    function.set(address)?;
    if status.is_null() && found != STATUS_FOUND {
        return Err(Code::NOT_FOUND);
    }
    status.set_if(found);
    Ok(())
}

fn error_text(text: Out<*const c_char>, found: Option<&'static std::ffi::CStr>) -> Res {
    text.check()?;
    match found {
        Some(found) => text.set(found.as_ptr()),
        None => {
            text.set(std::ptr::null())?;
            Err(Code::INVALID_VALUE)
        }
    }
}

pub(crate) fn error_name(code: u32, text: Out<*const c_char>) -> Res {
    error_text(text, describe(code).map(|(name, _)| name))
}

pub(crate) fn error_string(code: u32, text: Out<*const c_char>) -> Res {
    error_text(text, describe(code).map(|(_, words)| words))
}

/// There are none: NVIDIA's own libraries ask for these to see whether the driver is NVIDIA's, and it is not.
pub(crate) fn export_table(table: Out<*const c_void>, _id: In<Uuid>) -> Res {
    table.set(std::ptr::null())?;
    Err(Code::NOT_FOUND)
}
