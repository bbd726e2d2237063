//! `libstratalloc_preload.so`: any CUDA program on the stratalloc allocator, through `LD_PRELOAD`. The README beside this crate says how it is
//! used; the section "The preload shim" of DESIGN.md says why it is as it is.
//!
//! | file | what |
//! |---|---|
//! | `entries`, `table` | every interposed function: its C signature, its handler, the driver's own |
//! | `resolve` | `dlsym` and `cuGetProcAddress`: which function a program gets |
//! | `guard` | what stands around every exported function |
//! | `hooks` | what the functions do, by subject |
//! | `device` | the allocators, one a device, and the driver that they see |
//! | `ledger` | what the process holds, to the byte, and the limit |
//! | `state` | all state, and the blocks that the program has |
//! | `nvml` | NVML's memory figures |
//! | `settings`, `report` | what the environment says, what is written at exit |
//!
//! Three rules hold throughout. No work is done before the first call. Whatever this library does not know goes to the driver. And no
//! lock of this library is held while it calls the driver, but for the one that keeps a device from being opened twice.

#![cfg_attr(test, allow(dead_code, reason = "the exports are C's to call, and are not exported in tests"))]

mod abi;
mod device;
mod entries;
mod guard;
mod hooks;
mod ledger;
mod nvml;
mod report;
mod resolve;
mod settings;
mod state;
mod table;

use std::ffi::{CStr, c_char, c_int, c_ulonglong};

use ledger::LedgerView;
use state::Shim;

/// Writes a device's figures. Returns 0, 1 for a null pointer, a size that is too small or a device that there is not, and 3 where nothing was
/// allocated yet.
///
/// # Safety
/// `out` is null, or its first field is the number of bytes that may be written there.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn stratalloc_preload_ledger(device: c_int, out: *mut LedgerView) -> c_int {
    guard::caught(|| {
        let Ok(device) = usize::try_from(device) else { return abi::INVALID_VALUE };
        if out.is_null() || device >= ledger::DEVICES {
            return abi::INVALID_VALUE;
        }
        // SAFETY: the caller says that the first field is there.
        let size = unsafe { out.cast::<usize>().read() };
        if size < size_of::<usize>() {
            return abi::INVALID_VALUE;
        }
        let Some(shim) = Shim::existing().filter(|_| !guard::is_orphan()) else { return 3 };
        let mut view = LedgerView::of(shim, device);
        let length = size.min(size_of::<LedgerView>());
        view.size = length;
        // SAFETY: the caller says that so many bytes may be written; the structure is plain numbers.
        unsafe { std::ptr::copy_nonoverlapping(std::ptr::from_ref(&view).cast::<u8>(), out.cast::<u8>(), length) };
        abi::SUCCESS
    })
}

/// How often an entry point was called; the largest number for a name that is not interposed.
///
/// # Safety
/// `name` is null or a string.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn stratalloc_preload_calls(name: *const c_char) -> c_ulonglong {
    let mut found = c_ulonglong::MAX;
    guard::caught(|| {
        if !name.is_null() {
            // SAFETY: the caller passes a string.
            let name = unsafe { CStr::from_ptr(name) };
            let entry = guard::calls().find(|(entry, _)| entry.as_bytes() == name.to_bytes());
            found = entry.map_or(c_ulonglong::MAX, |(_, calls)| calls);
        }
        abi::SUCCESS
    });
    found
}
