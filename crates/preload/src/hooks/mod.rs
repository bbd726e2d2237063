//! What each interposed function does, by subject. Every function here has the C function's arguments after the [`Shim`], keeps its contract,
//! and is called by the export of its name, see `entries`.
//!
//! | file | what |
//! |---|---|
//! | `plain` | `cuMemAlloc`, `cuMemFree` and what behaves like them |
//! | `ordered` | `cuMemAllocAsync`, `cuMemFreeAsync` |
//! | `stream` | captures, and streams that are destroyed |
//! | `context` | contexts that go, and take memory with them |
//! | `info` | what the program is told of memory |
//! | `share` | exports and imports |
//! | `callers` | whether a library that exports is among the callers |
//! | `pools`, `vmm`, `arrays`, `host`, `graph` | passed on, and accounted |
//!
//! The order everywhere: charge, call the driver, account. A null out-parameter is the driver's to refuse.

pub(crate) mod arrays;
mod callers;
pub(crate) mod context;
pub(crate) mod graph;
pub(crate) mod host;
pub(crate) mod info;
pub(crate) mod ordered;
pub(crate) mod plain;
pub(crate) mod pools;
pub(crate) mod share;
pub(crate) mod stream;
pub(crate) mod vmm;

use crate::abi::{CUdevice, OUT_OF_MEMORY, Opaque, SUCCESS, Status};
use crate::device::{current_context, current_ordinal};
use crate::ledger::{Charge, Kind, Object};
use crate::state::Shim;

/// Charges device memory, after giving cached memory back if need be. `Err` is what the call returns.
pub(crate) fn charge(shim: &Shim, device: usize, kind: Kind, bytes: u64) -> Result<Charge<'_>, Status> {
    learn_total(shim, device);
    if let Some(charge) = shim.ledger.charge(device, kind, bytes) {
        return Ok(charge);
    }
    make_room(shim, device);
    shim.ledger.charge(device, kind, bytes).ok_or(OUT_OF_MEMORY)
}

/// Gives back to the driver what the allocator holds and nobody uses.
pub(crate) fn make_room(shim: &Shim, device: usize) {
    plain::settle_aside(shim);
    if let Some(served) = shim.devices.of_ordinal(device) {
        // Where it cannot be given back now, during a capture for instance, there is no room.
        let _ = served.allocator.empty_cache(0);
    }
}

/// The same on every device: a call that found no room does not say where it looked.
pub(crate) fn make_room_everywhere(shim: &Shim) {
    for device in shim.devices.all() {
        make_room(shim, device.ordinal);
    }
}

/// Asks how much memory a device has, where that is not known yet.
pub(crate) fn learn_total(shim: &Shim, device: usize) {
    if !shim.ledger.knows(device) {
        let mut total = 0usize;
        // SAFETY: the pointer is to a local.
        if unsafe { shim.driver.cuDeviceTotalMem_v2(&mut total, device as CUdevice) } == SUCCESS {
            shim.ledger.set_total(device, total as u64);
        }
    }
}

/// Passes an allocation on: charges `bytes` to the current device, makes the call, and writes down the object that `made` reads from where the
/// call has put it. With no context, or a null out-parameter, the call is the driver's to refuse.
pub(crate) fn accounted(
    shim: &Shim,
    kind: Kind,
    bytes: u64,
    call: impl Fn() -> Status,
    made: impl FnOnce() -> Option<Object>,
) -> Status {
    let Some(device) = current_ordinal(shim.driver) else { return call() };
    let charge = match charge(shim, device, kind, bytes) {
        Ok(charge) => charge,
        Err(code) => return code,
    };
    let code = plain::retried(shim, device, call);
    if code == SUCCESS
        && let Some(object) = made()
    {
        charge.keep_as(object, current_context(shim.driver) as usize);
    }
    code
}

/// What a call has written to an out-parameter, where there is one.
///
/// # Safety
/// `out` is null or was written by a call that succeeded.
pub(crate) unsafe fn written<T: Copy>(out: *const T) -> Option<T> {
    // SAFETY: the caller says so.
    unsafe { out.as_ref() }.copied()
}

/// A stream's handle as a number, with the two names of the legacy stream as one.
pub(crate) fn stream_number(stream: Opaque) -> u64 {
    if stream as usize == crate::abi::STREAM_LEGACY { 0 } else { stream as u64 }
}
