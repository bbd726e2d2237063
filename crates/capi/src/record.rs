//! Recording what an allocator is asked, as a trace that `stratalloc replay` reads.

use std::ffi::c_char;
use std::sync::Arc;

use stratalloc_trace::Recorder;

use crate::handle::{check_out, get, path, stratalloc_allocator};
use crate::mode;
use crate::status::{Failure, guard, stratalloc_status};

/// What is recorded of a stream: devices share one trace, and their streams are told apart by the highest byte, which no handle uses.
pub(crate) fn stream_number(device: usize, stream: u64) -> u64 {
    stream ^ (device as u64) << 56
}

impl stratalloc_allocator {
    /// The recording that is under way.
    #[inline]
    pub(crate) fn recording(&self) -> Option<Arc<Recorder>> {
        if mode::is_recording() { self.recorder.read().clone() } else { None }
    }
}

/// Ends the recording of an allocator that goes.
pub(crate) fn forget(handle: &stratalloc_allocator) {
    if handle.recorder.write().take().is_some() {
        mode::count_recording(false);
    }
}

/// Records every call from now on that allocates, frees, records a stream or empties the cache, to a file that `stratalloc replay` reads. One
/// recording at a time. Costs every call a lock. `STRATALLOC_IO` if the file cannot be made; one that fills up later ends the recording
/// with one line on stderr. Frees of blocks from before are left out.
///
/// # Safety
/// `allocator` is null or a handle; `path` is null or ends in 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_trace_start(
    allocator: *mut stratalloc_allocator,
    path: *const c_char,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, path) = unsafe { (get(allocator)?, self::path(path)?) };
        let mut slot = handle.recorder.write();
        if let Some(recorder) = &*slot {
            let path = recorder.path().display();
            return Err(Failure::argument(format!("a trace is being recorded already, to {path}")));
        }
        let capacity = |device| {
            handle.allocator.driver(device).map_or(0, |driver| {
                use stratalloc::driver::Driver;
                driver.properties().total_memory
            })
        };
        let memory: Vec<String> =
            (0..handle.allocator.device_count()).map(|device| capacity(device).to_string()).collect();
        let header =
            [("recorded-by", concat!("stratalloc ", env!("CARGO_PKG_VERSION"))), ("device-bytes", &memory.join(" "))];
        let recorder = Recorder::create(path, &header).map_err(|error| Failure::io(path, &error))?;
        *slot = Some(Arc::new(recorder));
        mode::count_recording(true);
        Ok(())
    })
}

/// Ends the recording and closes the file. `operations`, which may be null, receives the number of calls in it.
///
/// # Safety
/// `allocator` is null or a handle; `operations` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_trace_stop(
    allocator: *mut stratalloc_allocator,
    operations: *mut u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        if !operations.is_null() {
            check_out(operations, "operations")?;
        }
        let recorder = handle.recorder.write().take().ok_or_else(|| Failure::argument("no trace is being recorded"))?;
        mode::count_recording(false);
        let recorded = recorder.finish().map_err(|error| Failure::io(recorder.path(), &error))?;
        if !operations.is_null() {
            // SAFETY: aligned, and writable as the caller promises.
            unsafe { *operations = recorded.ops as u64 };
        }
        Ok(())
    })
}
