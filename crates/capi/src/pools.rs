//! Private pools: memory that graphs, or whoever asks for it, keep to themselves. And captures, and checkpoints.

use std::ffi::c_void;

use stratalloc::{Checkpoint, PoolId, StreamId};

use crate::blocks::stratalloc_stream;
use crate::handle::{check_out, device_number, get, stratalloc_allocator};
use crate::status::{Failure, Outcome, guard, stratalloc_status};

/// A private pool's name, chosen by the caller: PyTorch's `MempoolId_t`. {0, 0} is no private pool.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct stratalloc_pool_id {
    /// The first number.
    pub first: u64,
    /// The second number.
    pub second: u64,
}

impl From<Option<PoolId>> for stratalloc_pool_id {
    fn from(pool: Option<PoolId>) -> stratalloc_pool_id {
        let PoolId(first, second) = pool.unwrap_or(PoolId(0, 0));
        stratalloc_pool_id { first, second }
    }
}

fn named(pool: stratalloc_pool_id) -> Outcome<PoolId> {
    match pool {
        stratalloc_pool_id { first: 0, second: 0 } => Err(Failure::argument("pool {0, 0} is not a private pool")),
        stratalloc_pool_id { first, second } => Ok(PoolId(first, second)),
    }
}

/// The allocator, the device's number and the pool's name of a call.
///
/// # Safety
/// As for [`get`].
unsafe fn target<'a>(
    allocator: *const stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
) -> Outcome<(&'a stratalloc_allocator, usize, PoolId)> {
    // SAFETY: as the caller promises.
    Ok((unsafe { get(allocator) }?, device_number(device)?, named(pool)?))
}

/// Says whether requests of a stream go to a private pool. Called with a lock held: it must not call the allocator, nor unwind.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_stream_filter =
    Option<unsafe extern "C" fn(context: *mut c_void, stream: stratalloc_stream) -> bool>;

/// Called when a context is not needed any more.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_drop = Option<unsafe extern "C" fn(context: *mut c_void)>;

/// A filter of the caller's with its context, which goes when this goes.
struct Filter {
    ask: unsafe extern "C" fn(*mut c_void, stratalloc_stream) -> bool,
    context: *mut c_void,
    drop: stratalloc_drop,
}

// SAFETY: the context is handed to the caller's own functions and nothing else, and the header asks them to work on any thread.
unsafe impl Send for Filter {}
// SAFETY: as above; calls are made under the device's lock.
unsafe impl Sync for Filter {}

impl Filter {
    fn asks(&self, stream: StreamId) -> bool {
        // SAFETY: the caller has given function and context for each other.
        unsafe { (self.ask)(self.context, stream.0 as stratalloc_stream) }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: as above; nothing calls the filter any more.
            unsafe { drop(self.context) }
        }
    }
}

/// # Safety
/// As for [`stratalloc_pool_begin`].
unsafe fn route(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    filter: Filter,
    capture: bool,
) -> Outcome<()> {
    // SAFETY: as the caller promises.
    let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
    let filter = move |stream| filter.asks(stream);
    if capture {
        handle.allocator.begin_private_pool(device, pool, filter)?;
    } else {
        handle.allocator.route_private_pool(device, pool, filter)?;
    }
    Ok(())
}

/// Every stream.
extern "C" fn any_stream(_: *mut c_void, _: stratalloc_stream) -> bool {
    true
}

/// From now on, requests of the streams that `filter` names (null: all) are served from a private pool, whose memory nobody else gets: what a
/// graph capture needs. Until `stratalloc_pool_end` no events are recorded or asked for, and every call takes a lock. Counts one user of
/// the pool, which `stratalloc_pool_release` takes back. `drop`, which may be null, is called with `context` once the filter is not needed
/// any more, and also if this call fails.
///
/// # Safety
/// `allocator` is null or a handle; `filter` and `drop` take `context`, on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_begin(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    filter: stratalloc_stream_filter,
    context: *mut c_void,
    drop: stratalloc_drop,
) -> stratalloc_status {
    let filter = Filter { ask: filter.unwrap_or(any_stream), context, drop };
    // SAFETY: as the caller promises.
    guard(|| unsafe { route(allocator, device, pool, filter, true) })
}

/// `stratalloc_pool_begin` that says nothing of a capture: `stratalloc_capture_begin` and `stratalloc_capture_end` do so apart, and outside of
/// captures events are recorded and asked for as ever.
///
/// # Safety
/// As for `stratalloc_pool_begin`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_route(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    filter: stratalloc_stream_filter,
    context: *mut c_void,
    drop: stratalloc_drop,
) -> stratalloc_status {
    let filter = Filter { ask: filter.unwrap_or(any_stream), context, drop };
    // SAFETY: as the caller promises.
    guard(|| unsafe { route(allocator, device, pool, filter, false) })
}

/// Ends `stratalloc_pool_begin` or `stratalloc_pool_route`. The pool keeps its memory, for replays.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_end(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        Ok(handle.allocator.end_private_pool(device, pool)?)
    })
}

/// Counts one user more of a private pool, which comes into being if need be.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_retain(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        Ok(handle.allocator.retain_private_pool(device, pool)?)
    })
}

/// Takes one user of a private pool back: one call for each begin, route and retain. After the last, its free memory becomes everyone's, once the
/// device has been waited for. Fails while the pool is being filled.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_release(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        Ok(handle.allocator.release_private_pool(device, pool)?)
    })
}

/// How many users a private pool has; 0 where there is none.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_users(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    out: *mut usize,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        let users = handle.allocator.private_pool_users(device, pool)?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = users };
        Ok(())
    })
}

/// Gives the free memory of a private pool whose last user has gone back to the device, after waiting for it. A pool that has users keeps all of
/// it. `given_back`, which may be null, receives the bytes.
///
/// # Safety
/// `allocator` is null or a handle; `given_back` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_empty(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    given_back: *mut usize,
) -> stratalloc_status {
    guard(|| {
        if !given_back.is_null() {
            check_out(given_back, "given_back")?;
        }
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        let bytes = handle.allocator.empty_private_pool(device, pool)?;
        if !given_back.is_null() {
            // SAFETY: aligned, writable as the caller promises.
            unsafe { *given_back = bytes as usize };
        }
        Ok(())
    })
}

/// Whether free memory of a private pool may serve other requests of the same stream rather than have them fail.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_set_use_on_oom(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    use_on_oom: bool,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        Ok(handle.allocator.lend_private_pool(device, pool, use_on_oom)?)
    })
}

/// A stream of the device is being captured from now on: no event may be recorded or asked for. Captures may nest.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_capture_begin(
    allocator: *mut stratalloc_allocator,
    device: i32,
) -> stratalloc_status {
    // SAFETY: as the caller promises.
    guard(|| Ok(unsafe { get(allocator) }?.allocator.begin_capture(device_number(device)?)?))
}

/// Ends `stratalloc_capture_begin`.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_capture_end(
    allocator: *mut stratalloc_allocator,
    device: i32,
) -> stratalloc_status {
    // SAFETY: as the caller promises.
    guard(|| Ok(unsafe { get(allocator) }?.allocator.end_capture(device_number(device)?)?))
}

/// Which blocks of a private pool were live at one time.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub struct stratalloc_checkpoint(Checkpoint);

/// Notes which blocks of a private pool are live. The checkpoint is the caller's, who destroys it.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_checkpoint(
    allocator: *mut stratalloc_allocator,
    device: i32,
    pool: stratalloc_pool_id,
    out: *mut *mut stratalloc_checkpoint,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: as the caller promises.
        let (handle, device, pool) = unsafe { target(allocator, device, pool) }?;
        let checkpoint = handle.allocator.checkpoint(device, pool)?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = Box::into_raw(Box::new(stratalloc_checkpoint(checkpoint))) };
        Ok(())
    })
}

/// Told of a block that was live before a restore.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_freed_visitor = Option<unsafe extern "C" fn(context: *mut c_void, address: *mut c_void)>;

/// Told of a block that is live after a restore.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_allocated_visitor =
    Option<unsafe extern "C" fn(context: *mut c_void, address: *mut c_void, bytes: usize)>;

/// Makes exactly those blocks of a private pool live again that were when the checkpoint was taken, at the same addresses: others are freed,
/// missing ones handed out. Whoever held a freed block must not free it again. Then tells `freed` of what was live before and `allocated` of
/// what is live now: a block that was live and stays so is told to both. Either may be null; no lock is held.
///
/// # Safety
/// `allocator` is null or a handle; `checkpoint` is null or from `stratalloc_pool_checkpoint`; the visitors take `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pool_restore(
    allocator: *mut stratalloc_allocator,
    device: i32,
    checkpoint: *const stratalloc_checkpoint,
    freed: stratalloc_freed_visitor,
    allocated: stratalloc_allocated_visitor,
    context: *mut c_void,
) -> stratalloc_status {
    guard(|| {
        check_out(checkpoint, "checkpoint")?;
        // SAFETY: as the caller promises; the checkpoint is not null.
        let (handle, checkpoint) = unsafe { (get(allocator)?, &*checkpoint) };
        let restored = handle.allocator.restore(device_number(device)?, &checkpoint.0)?;
        if let Some(freed) = freed {
            // SAFETY: the caller has given function and context for each other.
            restored.freed.iter().for_each(|ptr| unsafe { freed(context, ptr.0 as *mut c_void) });
        }
        if let Some(allocated) = allocated {
            for &(ptr, bytes) in &restored.allocated {
                // SAFETY: as above.
                unsafe { allocated(context, ptr.0 as *mut c_void, bytes as usize) };
            }
        }
        Ok(())
    })
}

/// Destroys a checkpoint. Null is none.
///
/// # Safety
/// `checkpoint` is null or from `stratalloc_pool_checkpoint`, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_checkpoint_destroy(checkpoint: *mut stratalloc_checkpoint) {
    if !checkpoint.is_null() {
        guard(|| {
            // SAFETY: it came from `Box::into_raw`, as the caller promises.
            drop(unsafe { Box::from_raw(checkpoint) });
            Ok(())
        });
    }
}
