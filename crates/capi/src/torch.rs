//! What `torch.cuda.memory.CUDAPluggableAllocator` takes, over the process's own allocator. For processes where torch's headers or a compiler are
//! missing: the extension of the Python package is the better way.
//!
//! None of these can return a status to torch, so each failure is kept for `stratalloc_last_error`; of those that torch does not ask about, a
//! line goes to stderr.

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use stratalloc::{AllocRequest, DevicePtr, Limit, PoolId, StreamId};

use crate::blocks::{self, stratalloc_stream};
use crate::handle::{default_allocator, device_number};
use crate::pools::stratalloc_pool_id;
use crate::status::stratalloc_status::{STRATALLOC_FORKED, STRATALLOC_OK};
use crate::status::{Failure, Outcome, guard, stratalloc_last_error};

/// So many failures are told on stderr: a loop that goes wrong must not fill a disk.
const LINES_MAX: u32 = 16;

/// Does the work of a function that returns nothing. What fails is told on stderr, but for children after `fork`, whose tensors of the parent go
/// when they end.
fn tell(name: &str, work: impl FnOnce() -> Outcome<()>) {
    static LINES: AtomicU32 = AtomicU32::new(0);
    let status = guard(work);
    if status != STRATALLOC_OK && status != STRATALLOC_FORKED && LINES.fetch_add(1, Relaxed) < LINES_MAX {
        // SAFETY: the text ends in 0, and this thread makes no call meanwhile.
        let text = unsafe { std::ffi::CStr::from_ptr(stratalloc_last_error()) };
        // Where stderr is closed, nobody is left to tell.
        let _ = writeln!(std::io::stderr(), "stratalloc: {name}: {}", text.to_string_lossy());
    }
}

/// torch's `alloc_fn`. Null for a size of 0, and where there is no room: torch takes that for an address, so the caller has to look and throw;
/// `stratalloc_last_error` tells why.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_alloc(size: usize, device: c_int, stream: stratalloc_stream) -> *mut c_void {
    let mut made = ptr::null_mut();
    guard(|| {
        if size > 0 {
            let request = AllocRequest::new(size as u64).device(device_number(device)?).stream(StreamId(stream as u64));
            made = blocks::alloc(default_allocator()?, request)?.0 as *mut c_void;
        }
        Ok(())
    });
    made
}

/// torch's `free_fn`. The stream that torch gives is the block's home stream, which the allocator knows.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_free(ptr: *mut c_void, _size: usize, device: c_int, _stream: stratalloc_stream) {
    tell("free", || blocks::free(default_allocator()?, DevicePtr(ptr as u64), Some(device_number(device)?)));
}

/// torch's `init_fn`: makes the allocator.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_init(device_count: c_int) {
    tell("init", || {
        let made = default_allocator()?.allocator.device_count();
        match device_number(device_count)? {
            wanted if wanted > made => Err(Failure::argument(format!("torch has {wanted} devices, the driver {made}"))),
            _ => Ok(()),
        }
    });
}

/// torch's `reset_fn`: gives free memory back, on all devices.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_reset() {
    tell("reset", || {
        let handle = default_allocator()?;
        for device in 0..handle.allocator.device_count() {
            handle.allocator.empty_cache(device)?;
        }
        if let Some(recorder) = handle.recording() {
            recorder.empty_cache();
        }
        Ok(())
    });
}

/// torch's `memory_fraction_fn`.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_memory_fraction(fraction: f64, device: c_int) {
    tell("memory fraction", || {
        // A NaN is in no range.
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Failure::argument(format!("a fraction of {fraction}: it must be above 0 and at most 1")));
        }
        Ok(default_allocator()?.allocator.set_limit(device_number(device)?, Limit::Fraction(fraction))?)
    });
}

/// torch's `base_alloc_fn`: the block that contains an address, and its size. Null where there is none.
///
/// # Safety
/// `size` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_torch_base_alloc(ptr: *mut c_void, size: *mut usize) -> *mut c_void {
    let mut base = ptr::null_mut();
    tell("base allocation", || {
        let (_, info) = blocks::find(default_allocator()?, DevicePtr(ptr as u64))?;
        if !size.is_null() {
            // SAFETY: not null, writable as the caller promises.
            unsafe { size.write_unaligned(info.size as usize) };
        }
        base = info.ptr.0 as *mut c_void;
        Ok(())
    });
    base
}

/// torch's `record_stream_fn`.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_record_stream(ptr: *mut c_void, stream: stratalloc_stream) {
    tell("record_stream", || {
        blocks::record_stream(default_allocator()?, DevicePtr(ptr as u64), StreamId(stream as u64))
    });
}

/// torch's hook for the end of `stratalloc_pool_begin`, which itself takes a `std::function` there and so needs C++.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_end_allocate_to_pool(device: c_int, pool: stratalloc_pool_id) {
    tell("end of a pool", || {
        let pool = PoolId(pool.first, pool.second);
        Ok(default_allocator()?.allocator.end_private_pool(device_number(device)?, pool)?)
    });
}

/// torch's hook for `stratalloc_pool_release`.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_torch_release_pool(device: c_int, pool: stratalloc_pool_id) {
    tell("release of a pool", || {
        let pool = PoolId(pool.first, pool.second);
        Ok(default_allocator()?.allocator.release_private_pool(device_number(device)?, pool)?)
    });
}
