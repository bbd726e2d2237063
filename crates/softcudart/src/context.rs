//! The current device of a thread, and the primary contexts behind it.
//!
//! A thread has a context current or has not. Where it has, that context decides the device, whoever made it current: so
//! programs may mix runtime and driver. Where it has none, the device of `cudaSetDevice` decides, and its primary context
//! is made current at the first call that needs one.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::driver::Table;
use crate::error::{Error, Outcome};

/// More devices than any machine has.
const MAX_DEVICES: usize = 64;

/// The primary contexts that this library has retained. A slot is written under `RETAIN`, and read without.
static PRIMARY: [AtomicPtr<c_void>; MAX_DEVICES] = [const { AtomicPtr::new(null_mut()) }; MAX_DEVICES];
static RETAIN: Mutex<()> = Mutex::new(());
/// Counts `cudaDeviceReset`s: whatever was cached for a context is gone then.
static RESETS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static DEVICE: Cell<c_int> = const { Cell::new(0) };
}

/// How often a device was reset so far.
pub(crate) fn resets() -> u32 {
    RESETS.load(Ordering::Acquire)
}

/// The device that `cudaSetDevice` chose on this thread.
fn chosen() -> c_int {
    DEVICE.try_with(Cell::get).unwrap_or(0)
}

fn choose(device: c_int) {
    // A thread that is ending keeps device 0: it has nothing left to do on another.
    let _ = DEVICE.try_with(|chosen| chosen.set(device));
}

fn slot(device: c_int) -> Result<&'static AtomicPtr<c_void>, Error> {
    usize::try_from(device).ok().and_then(|index| PRIMARY.get(index)).ok_or(Error::INVALID_DEVICE)
}

/// The primary context of `device`, retained by the first caller for the life of the process.
pub(crate) fn primary(table: &Table, device: c_int) -> Result<*mut c_void, Error> {
    let slot = slot(device)?;
    let known = slot.load(Ordering::Acquire);
    if !known.is_null() {
        return Ok(known);
    }
    let _guard = RETAIN.lock();
    let known = slot.load(Ordering::Acquire);
    if !known.is_null() {
        return Ok(known);
    }
    let mut context = null_mut();
    // SAFETY: `context` is a local; the driver checks the device's number.
    unsafe { table.cuDevicePrimaryCtxRetain(&raw mut context, device) }
        .map_err(|error| if error == Error::INVALID_VALUE { Error::INVALID_DEVICE } else { error })?;
    slot.store(context, Ordering::Release);
    Ok(context)
}

/// The context that is current on this thread, null if none is.
fn current(table: &Table) -> Result<*mut c_void, Error> {
    let mut context = null_mut();
    // SAFETY: `context` is a local.
    unsafe { table.cuCtxGetCurrent(&raw mut context)? };
    Ok(context)
}

/// Makes the primary context of the chosen device current, if no context is.
pub(crate) fn ensure(table: &Table) -> Outcome {
    if current(table)?.is_null() {
        let context = primary(table, chosen())?;
        // SAFETY: a context that the driver gave and this library retains.
        unsafe { table.cuCtxSetCurrent(context)? };
    }
    Ok(())
}

/// The thread's device: that of its current context, else the chosen one.
pub(crate) fn device(table: &Table) -> Result<c_int, Error> {
    let context = current(table)?;
    let chosen = chosen();
    if context.is_null() || slot(chosen)?.load(Ordering::Relaxed) == context {
        return Ok(chosen);
    }
    let known = PRIMARY.iter().position(|slot| slot.load(Ordering::Relaxed) == context);
    if let Some(device) = known.and_then(|device| c_int::try_from(device).ok()) {
        return Ok(device);
    }
    let mut device = 0;
    // SAFETY: `device` is a local.
    unsafe { table.cuCtxGetDevice(&raw mut device)? };
    Ok(device)
}

/// Chooses `device` for this thread and makes its primary context current.
pub(crate) fn set_device(table: &Table, device: c_int) -> Outcome {
    // Asked first: in a forked child this fails, before any lock that was held at the fork.
    let before = current(table)?;
    let context = primary(table, device)?;
    if before != context {
        // SAFETY: a context that the driver gave and this library retains.
        unsafe { table.cuCtxSetCurrent(context)? };
    }
    choose(device);
    Ok(())
}

/// Chooses `device` without a context: the next call that needs one makes it.
pub(crate) fn choose_lazily(table: &Table, device: c_int) -> Outcome {
    // SAFETY: a null context takes the current one off this thread.
    unsafe { table.cuCtxSetCurrent(null_mut())? };
    choose(device);
    Ok(())
}

/// Resets the thread's device: all that its primary context held is gone.
pub(crate) fn reset(table: &Table) -> Outcome {
    let device = device(table)?;
    let _guard = RETAIN.lock();
    slot(device)?.store(null_mut(), Ordering::Release);
    RESETS.fetch_add(1, Ordering::AcqRel);
    // SAFETY: the device's number is the driver's own, and a null context takes the current one off this thread.
    unsafe {
        table.cuCtxSetCurrent(null_mut())?;
        table.cuDevicePrimaryCtxReset(device)
    }
}
