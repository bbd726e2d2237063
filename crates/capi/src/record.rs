//! Recording what an allocator is asked, as a trace that `stratalloc replay` reads.

use std::ffi::c_char;
use std::panic::catch_unwind;
use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use parking_lot::Mutex;
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

/// The recordings under way, for the process's exit: allocators that are never destroyed have one too.
static UNDER_WAY: Mutex<Vec<Weak<Recorder>>> = Mutex::new(Vec::new());

/// Has what is in a recording's buffer written when the process exits.
fn write_at_exit(recorder: &Arc<Recorder>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a function of this library; one that is unloaded has it called first. Where there is no memory to register
        // it, the buffer's rest is lost, as it is when the process is killed.
        unsafe { libc::atexit(at_exit) };
    });
    let mut under_way = UNDER_WAY.lock();
    under_way.retain(|recorder| recorder.strong_count() > 0);
    under_way.push(Arc::downgrade(recorder));
}

extern "C" fn at_exit() {
    // In a child after `fork`, locks may be held by threads that it does not have.
    if mode::is_forked() {
        return;
    }
    // Nothing may unwind out of here, and nobody is left to be told. Nor may a lock be waited for that is never opened again.
    let _ = catch_unwind(|| {
        let Some(under_way) = UNDER_WAY.try_lock_for(Duration::from_millis(200)) else { return };
        under_way.iter().filter_map(Weak::upgrade).for_each(|recorder| recorder.flush_at_exit());
    });
}

/// Records every call from now on that allocates, frees, records a stream or empties the cache, to a file that `stratalloc replay` reads. One
/// recording at a time. Costs every call a lock. `STRATALLOC_IO` if the file cannot be made; one that fills up later ends the recording
/// with one line on stderr. Frees of blocks from before are left out. Calls are written some thousands at a time: all of them when the
/// process exits, but the last ones are lost where it is killed.
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
        let recorder = Arc::new(recorder);
        write_at_exit(&recorder);
        *slot = Some(recorder);
        mode::count_recording(true);
        Ok(())
    })
}

/// Ends the recording and closes the file. `operations`, which may be null, receives the number of calls in it. `STRATALLOC_IO` if not all could
/// be written, now or earlier: the recording has ended, and the file has the calls from before that, as has `operations`.
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
        let finished = recorder.finish();
        let calls = recorder.recorded().ops as u64;
        if !operations.is_null() {
            // SAFETY: aligned, and writable as the caller promises.
            unsafe { *operations = calls };
        }
        finished.map(drop).map_err(|error| {
            let mut failure = Failure::io(recorder.path(), &error);
            failure.text += &format!("; the trace ends after {calls} calls");
            failure
        })
    })
}
