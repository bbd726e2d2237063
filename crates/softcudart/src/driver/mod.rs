//! The driver, found at run time.

mod table;
pub(crate) mod types;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use crate::error::Error;
pub(crate) use table::Table;

/// The version that `cuGetProcAddress_v2` is asked with by a name's own; this one is for `cuGetProcAddress` itself.
const PROC_ADDRESS_VERSION: c_int = 12000;
/// `CU_GET_PROC_ADDRESS_LEGACY_STREAM` and `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const FLAG_LEGACY: u64 = 1;
const FLAG_PER_THREAD: u64 = 2;

/// What the null stream means to the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    Legacy,
    PerThread,
}

/// `cuGetProcAddress_v2`.
type GetProc = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_int) -> c_int;

struct Tables {
    legacy: Table,
    per_thread: Table,
}

static TABLES: OnceLock<Tables> = OnceLock::new();

/// The function table for callers whose null stream is `streams`; found, and the driver initialised, at the first call.
///
/// A failure is not kept: a program may set its environment and try again.
#[inline]
pub(crate) fn table(streams: Streams) -> Result<&'static Table, Error> {
    let tables = match TABLES.get() {
        Some(tables) => tables,
        None => find()?,
    };
    Ok(match streams {
        Streams::Legacy => &tables.legacy,
        Streams::PerThread => &tables.per_thread,
    })
}

#[cold]
fn find() -> Result<&'static Tables, Error> {
    let get = get_proc()?;
    // SAFETY: `get` is the driver's `cuGetProcAddress_v2`.
    let legacy = unsafe { Table::load(get, FLAG_LEGACY) };
    // SAFETY: as above.
    let per_thread = unsafe { Table::load(get, FLAG_PER_THREAD) };
    // SAFETY: 0 is the one value that `cuInit` takes.
    unsafe { legacy.cuInit(0) }?;
    // Two threads may get here; both tables hold the same pointers.
    Ok(TABLES.get_or_init(|| Tables { legacy, per_thread }))
}

fn get_proc() -> Result<GetProc, Error> {
    // SAFETY: a plain load of a library by name; it stays loaded for good.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return Err(Error::INSUFFICIENT_DRIVER);
    }
    // SAFETY: `library` is an open handle, and the name is a C string.
    let second = unsafe { libc::dlsym(library, c"cuGetProcAddress_v2".as_ptr()) };
    if !second.is_null() {
        // SAFETY: this name has this signature since CUDA 12.
        return Ok(unsafe { std::mem::transmute::<*mut c_void, GetProc>(second) });
    }
    // SAFETY: as above.
    let first = unsafe { libc::dlsym(library, c"cuGetProcAddress".as_ptr()) };
    if first.is_null() {
        return Err(Error::INSUFFICIENT_DRIVER);
    }
    // SAFETY: in a driver without `_v2` this name takes the same arguments but for the last, which it does not read.
    let first = unsafe { std::mem::transmute::<*mut c_void, GetProc>(first) };
    let mut found = null_mut();
    // SAFETY: `found` is a local.
    let code =
        unsafe { first(c"cuGetProcAddress".as_ptr(), &raw mut found, PROC_ADDRESS_VERSION, FLAG_LEGACY, null_mut()) };
    if code != 0 || found.is_null() {
        return Ok(first);
    }
    // SAFETY: the driver gives the function of that version, whose signature this is.
    Ok(unsafe { std::mem::transmute::<*mut c_void, GetProc>(found) })
}

/// One entry point, or null where the driver has none of this name and version.
///
/// # Safety
/// `get` is the driver's `cuGetProcAddress_v2`.
unsafe fn entry_point(get: GetProc, name: &CStr, version: c_int, flags: u64) -> *mut c_void {
    let mut found = null_mut();
    let mut status = 0;
    // SAFETY: `get` takes these, as the caller promises; the pointers are to locals.
    let code = unsafe { get(name.as_ptr(), &raw mut found, version, flags, &raw mut status) };
    if code == 0 && status == 0 { found } else { null_mut() }
}
