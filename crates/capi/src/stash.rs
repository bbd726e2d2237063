//! Bytes of device memory in a tier, without an address of their own: what activations are between the passes of a training step.

use std::ffi::{c_char, c_void};

use stratalloc::tier::Stash;
use stratalloc::{DevicePtr, StreamId};

use crate::blocks::stratalloc_stream;
use crate::handle::{check_out, check_process, get, stratalloc_allocator, text};
use crate::status::{Outcome, guard, stratalloc_status};

/// Bytes in a tier.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub struct stratalloc_stashed {
    stash: Stash,
}

/// Copies `bytes` at `ptr` to a tier, behind what `stream` has been given to do, and returns at once. The block that `ptr` is in must
/// be neither freed nor written to before `stratalloc_stash_may_free` says so. `tier` names a configured tier; null is the first with room. `*out`
/// is null after a failure.
///
/// # Safety
/// `allocator` is null or a handle, which outlives what is stashed; `tier` is null or ends in 0; `out` is null or may be written. `ptr` is
/// device memory of so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_stash(
    allocator: *mut stratalloc_allocator,
    ptr: *const c_void,
    bytes: usize,
    stream: stratalloc_stream,
    tier: *const c_char,
    out: *mut *mut stratalloc_stashed,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = std::ptr::null_mut() };
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let tier = if tier.is_null() {
            None
        } else {
            // SAFETY: as the caller promises.
            Some(unsafe { text(tier, "tier") }?)
        };
        let (from, stream) = (DevicePtr(ptr as u64), StreamId(stream as u64));
        let stash = handle.allocator.stash(from, bytes as u64, stream, tier)?;
        // SAFETY: as above.
        unsafe { *out = Box::into_raw(Box::new(stratalloc_stashed { stash })) };
        Ok(())
    })
}

/// What is behind a pointer to something stashed.
///
/// # Safety
/// `stashed` is null or from [`stratalloc_stash`], and lives during `'a`.
unsafe fn stashed<'a>(stashed: *const stratalloc_stashed) -> Outcome<&'a Stash> {
    check_process()?;
    check_out(stashed, "stashed")?;
    // SAFETY: not null, aligned, and it lives, as the caller promises.
    Ok(unsafe { &(*stashed).stash })
}

/// Tells whether the block that was stashed may be freed, in stream order: whether its bytes are safe without it. True at once where the device itself
/// copies to the tier; else when they have arrived. With `wait`, it is so when this returns. A copy that failed is its error, and
/// the block has the bytes still.
///
/// # Safety
/// `stashed` is null or from `stratalloc_stash`; `may` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_stash_may_free(
    stashed: *mut stratalloc_stashed,
    wait: bool,
    may: *mut bool,
) -> stratalloc_status {
    guard(|| {
        check_out(may, "may")?;
        // SAFETY: as the caller promises.
        let answer = unsafe { self::stashed(stashed) }?.may_free(wait)?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *may = answer };
        Ok(())
    })
}

/// Begins to copy the bytes to `to`, which has room for them, once `stream` has done what it has been given so far. Does not wait. The memory is filled for
/// those streams that `stratalloc_stash_order` names, and must not be freed before it has named the stream that the free takes effect on.
///
/// # Safety
/// `stashed` is null or from `stratalloc_stash`. `to` is device memory with room for the bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_stash_fetch(
    stashed: *mut stratalloc_stashed,
    to: *mut c_void,
    stream: stratalloc_stream,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let stash = unsafe { self::stashed(stashed) }?;
        Ok(stash.fetch(DevicePtr(to as u64), StreamId(stream as u64))?)
    })
}

/// Has `stream` wait, on the device, for the copy that `stratalloc_stash_fetch` began last. Waits on the host until the bytes have been checked.
///
/// # Safety
/// `stashed` is null or from `stratalloc_stash`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_stash_order(
    stashed: *mut stratalloc_stashed,
    stream: stratalloc_stream,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let stash = unsafe { self::stashed(stashed) }?;
        Ok(stash.order(StreamId(stream as u64))?)
    })
}

/// Forgets what was stashed. Null is nothing.
///
/// # Safety
/// `stashed` is null or from `stratalloc_stash`, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_stash_drop(stashed: *mut stratalloc_stashed) {
    guard(|| {
        if !stashed.is_null() {
            // In a child after `fork`, it is the parent's.
            check_process()?;
            // SAFETY: it came from `Box::into_raw`, as the caller promises.
            drop(unsafe { Box::from_raw(stashed) });
        }
        Ok(())
    });
}
