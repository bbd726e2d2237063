//! Contexts that go take memory with them: what was allocated in them, and, with a device's primary context, what the allocator holds.

use std::ffi::c_uint;
use std::sync::atomic::Ordering::Relaxed;

use crate::abi::*;
use crate::device::{current_ordinal, with_context};
use crate::state::Shim;

/// # Safety
/// As for the C function.
pub(crate) unsafe fn retain(shim: &'static Shim, context: *mut Opaque, device: CUdevice) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuDevicePrimaryCtxRetain(context, device) };
    if code == SUCCESS
        && let Some(count) = usize::try_from(device).ok().and_then(|device| shim.retained.get(device))
    {
        count.fetch_add(1, Relaxed);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn release(shim: &'static Shim, device: CUdevice) -> Status {
    let count = usize::try_from(device).ok().and_then(|device| shim.retained.get(device));
    let is_last = count.is_some_and(|count| count.load(Relaxed) == 1);
    // The allocator's own reference would keep the context, and all memory in it, alive.
    let closed = if is_last { close(shim, device as usize) } else { None };
    // SAFETY: the program's own argument.
    let code = unsafe { shim.driver.cuDevicePrimaryCtxRelease_v2(device) };
    if code == SUCCESS
        && let Some(count) = count
    {
        let _ = count.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        // Others may hold it yet, whose releases are not seen here.
        if let Some(context) = closed.filter(|_| !is_active(shim, device)) {
            shim.captures.end_with_context(shim, context);
        }
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn reset(shim: &'static Shim, device: CUdevice) -> Status {
    let closed = usize::try_from(device).ok().and_then(|device| close(shim, device));
    // SAFETY: the program's own argument.
    let code = unsafe { shim.driver.cuDevicePrimaryCtxReset_v2(device) };
    if code == SUCCESS
        && let Some(context) = closed
    {
        shim.captures.end_with_context(shim, context);
    }
    code
}

/// Gives back all that the allocator holds on a device, before its primary context goes. Blocks that the program still has go with it, as
/// memory from the driver would. Returns the context, if it is active.
fn close(shim: &'static Shim, ordinal: usize) -> Option<usize> {
    let context = primary_of(shim, ordinal)?;
    shim.captures.abandon(shim, context);
    if let Some(device) = shim.devices.take(ordinal) {
        // Whatever this returns, the context goes.
        let _ = device.synchronize(shim.driver);
        let gone = shim.blocks.clear(ordinal);
        if let Some(recorder) = shim.recorder() {
            gone.into_iter().for_each(|ptr| recorder.free(ptr));
        }
        let _ = shim.captures.take_aside(ordinal);
        let (gate, plain) = (device.gate.clone(), device.plain);
        // The allocator's last reference: its chunks go back to the driver.
        drop(device);
        use stratalloc::driver::Driver as _;
        let _ = gate.destroy_stream(plain);
    }
    shim.ledger.remove_context(context);
    Some(context)
}

/// Whether a device's primary context is active. Where the driver does not say, it is taken to be.
fn is_active(shim: &Shim, device: CUdevice) -> bool {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: the pointers are to locals.
    let code = unsafe { shim.driver.cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) };
    code != SUCCESS || active != 0
}

/// A device's primary context, if it is active.
fn primary_of(shim: &Shim, ordinal: usize) -> Option<usize> {
    let device = CUdevice::try_from(ordinal).ok()?;
    let (mut flags, mut active, mut context) = (0, 0, std::ptr::null_mut());
    // SAFETY: the pointers are to locals; what is retained is released.
    unsafe {
        let code = shim.driver.cuDevicePrimaryCtxGetState(device, &mut flags, &mut active);
        if code != SUCCESS || active == 0 || shim.driver.cuDevicePrimaryCtxRetain(&mut context, device) != SUCCESS {
            return None;
        }
        shim.driver.cuDevicePrimaryCtxRelease_v2(device);
    }
    Some(context as usize)
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn destroy(shim: &'static Shim, context: Opaque) -> Status {
    // SAFETY: the program's own argument.
    let code = unsafe { shim.driver.cuCtxDestroy_v2(context) };
    if code == SUCCESS && !context.is_null() {
        shim.ledger.remove_context(context as usize);
        shim.captures.end_with_context(shim, context as usize);
    }
    code
}

/// Lets the current device reach the other's memory: what `cuMemAlloc` gives is reachable from then on, so blocks must be as well.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn enable_peer(shim: &'static Shim, peer: Opaque, flags: c_uint) -> Status {
    // SAFETY: the program's own arguments.
    let code = unsafe { shim.driver.cuCtxEnablePeerAccess(peer, flags) };
    if code != SUCCESS {
        return code;
    }
    shim.captures.note_peers();
    let Some(accessor) = current_ordinal(shim.driver) else { return code };
    let mut owner = None;
    let _ = with_context(shim.driver, peer, || {
        owner = current_ordinal(shim.driver);
        SUCCESS
    });
    admit(shim, owner, accessor)
}

/// Lets `accessor` reach the memory that the allocator holds on `owner`. Opens the owner's allocator, so that what it will hold is
/// reachable as well.
pub(super) fn admit(shim: &'static Shim, owner: Option<usize>, accessor: usize) -> Status {
    let Some(owner) = owner.filter(|&owner| owner != accessor) else { return SUCCESS };
    let context = primary_of(shim, owner).map_or(std::ptr::null_mut(), |context| context as Opaque);
    match shim.devices.of_context(shim, context) {
        Some(device) => device.gate.admit_peer(accessor as i32),
        None => SUCCESS,
    }
}
