//! What holds while a call is made: the device's context is current, and the calling thread's capture mode is relaxed.
//!
//! This library is a guest in another's process. Both guards put back what they found.

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{CUcontext, CUstreamCaptureMode};

use super::table::Table;
use crate::error::DriverError;

/// Cleanup calls of this process that failed. A plain `std` atomic, since loom's cannot be `static`.
static FAILED_CLEANUPS: AtomicU64 = AtomicU64::new(0);

/// How many cleanup calls have failed in this process.
pub(super) fn failed_cleanups() -> u64 {
    FAILED_CLEANUPS.load(Ordering::Relaxed)
}

/// Counts a cleanup call that failed where no error can be returned.
pub(super) fn count_failure(result: Result<(), DriverError>) {
    if result.is_err() {
        FAILED_CLEANUPS.fetch_add(1, Ordering::Relaxed);
    }
}

/// The context is current for this thread. Dropping it makes the caller's own current again.
#[must_use]
pub(super) struct Current<'a> {
    table: &'a Table,
    pushed: bool,
}

impl<'a> Current<'a> {
    /// Makes `context` current. Where it is current already, as in most programs, this is one cheap query.
    pub(super) fn enter(table: &'a Table, context: CUcontext) -> Result<Current<'a>, DriverError> {
        let mut found: CUcontext = ptr::null_mut();
        // SAFETY: `found` is valid for the one handle that is written.
        unsafe { table.cuCtxGetCurrent(&mut found) }?;
        let pushed = found != context;
        if pushed {
            // SAFETY: `context` is a primary context that the driver object retains for as long as it lives.
            unsafe { table.cuCtxPushCurrent_v2(context) }?;
        }
        Ok(Current { table, pushed })
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped: CUcontext = ptr::null_mut();
            // SAFETY: `popped` is valid for the one handle that is written.
            count_failure(unsafe { self.table.cuCtxPopCurrent_v2(&mut popped) });
        }
    }
}

/// The calling thread's capture mode is relaxed. Dropping it restores the mode that was found.
///
/// While any stream is captured in global mode, a call such as `cuMemAlloc` or `cuEventQuery` fails on every thread and
/// invalidates the capture, although it touches no captured stream. In relaxed mode it does neither.
#[must_use]
pub(super) struct Relaxed<'a> {
    table: &'a Table,
    found: u32,
}

impl<'a> Relaxed<'a> {
    /// Relaxes the mode. A driver without the function (before CUDA 10.1) has no modes either.
    pub(super) fn enter(table: &'a Table) -> Result<Relaxed<'a>, DriverError> {
        let mut mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as u32;
        if table.has_capture_mode() {
            // SAFETY: `mode` is valid, holds one of the three modes, and receives another.
            unsafe { table.cuThreadExchangeStreamCaptureMode(&mut mode) }?;
        }
        Ok(Relaxed { table, found: mode })
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        if self.table.has_capture_mode() {
            // SAFETY: `found` is valid and holds the mode that the driver gave.
            count_failure(unsafe { self.table.cuThreadExchangeStreamCaptureMode(&mut self.found) });
        }
    }
}
