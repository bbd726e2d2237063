//! What concerns a device as a whole: its limits, tags, and giving memory back.

use std::ffi::c_char;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use stratalloc::{ByteSize, Limit, Tag};

use crate::handle::{check_out, device_number, get, stratalloc_allocator, text};
use crate::status::{Failure, Outcome, guard, stratalloc_status};

impl stratalloc_allocator {
    /// The tag with a number that `stratalloc_tag` gave.
    pub(crate) fn tag_of(&self, number: u32) -> Outcome<Tag> {
        let known = self.tags.load(Acquire);
        let tag = u8::try_from(number).ok().filter(|_| number < known).and_then(Tag::from_number);
        tag.ok_or_else(|| {
            Failure::argument(format!("no tag {number}: stratalloc_tag has given numbers up to {}", known - 1))
        })
    }
}

/// Waits for the device and compares every red zone and all poison on it: what the configuration keys `poison` and `redzone` are for. Each damage
/// found is a line on stderr, once; `faults` receives how many there were. 0 where no debug aid is on.
///
/// # Safety
/// `allocator` is null or a handle; `faults` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_check_memory(
    allocator: *mut stratalloc_allocator,
    device: i32,
    faults: *mut usize,
) -> stratalloc_status {
    guard(|| {
        check_out(faults, "faults")?;
        // SAFETY: as the caller promises.
        let found = unsafe { get(allocator) }?.allocator.check_memory(device_number(device)?)?.len();
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *faults = found };
        Ok(())
    })
}

/// Gives free memory back to the device, after waiting for the streams it was last used on. `given_back`, which may be null, receives the bytes.
///
/// # Safety
/// `allocator` is null or a handle; `given_back` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_empty_cache(
    allocator: *mut stratalloc_allocator,
    device: i32,
    given_back: *mut usize,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        if !given_back.is_null() {
            check_out(given_back, "given_back")?;
        }
        let bytes = handle.allocator.empty_cache(device_number(device)?)?;
        if let Some(recorder) = handle.recording() {
            recorder.empty_cache();
        }
        if !given_back.is_null() {
            // SAFETY: aligned, and writable as the caller promises.
            unsafe { *given_back = bytes as usize };
        }
        Ok(())
    })
}

/// Bounds the physical memory held on a device; more than the device has is all of it. Gives free memory back if need be.
/// `STRATALLOC_OVER_LIMIT` where more is in use.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_set_limit(
    allocator: *mut stratalloc_allocator,
    device: i32,
    bytes: u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        Ok(handle.allocator.set_limit(device_number(device)?, Limit::Bytes(ByteSize(bytes)))?)
    })
}

/// Bounds the physical memory held on a device to a part of what it has, above 0 and at most 1.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_set_limit_fraction(
    allocator: *mut stratalloc_allocator,
    device: i32,
    fraction: f64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        // A NaN is in no range.
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Failure::argument(format!(
                "a limit of {fraction} of the device: it must be above 0 and at most 1"
            )));
        }
        Ok(handle.allocator.set_limit(device_number(device)?, Limit::Fraction(fraction))?)
    })
}

/// The number of the tag with this name, made if there is none yet. Tags say what memory is for; there may be 63. Number 0 is "none".
///
/// # Safety
/// `allocator` is null or a handle; `name` is null or ends in 0; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_tag(
    allocator: *mut stratalloc_allocator,
    name: *const c_char,
    out: *mut u32,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, name) = unsafe { (get(allocator)?, text(name, "name")?) };
        check_out(out, "out")?;
        let number = u32::from(handle.allocator.tag(name)?.number());
        handle.tags.fetch_max(number + 1, AcqRel);
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = number };
        Ok(())
    })
}

/// Bounds the live bytes of a tag on a device; `UINT64_MAX` lifts the bound. `STRATALLOC_OVER_LIMIT` where more is live.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_set_tag_limit(
    allocator: *mut stratalloc_allocator,
    device: i32,
    tag: u32,
    bytes: u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let limit = (bytes != u64::MAX).then_some(Limit::Bytes(ByteSize(bytes)));
        Ok(handle.allocator.set_tag_limit(device_number(device)?, handle.tag_of(tag)?, limit)?)
    })
}

/// Says that a step of the program begins here, of training or of decoding: from here on it asks for what it asked for after the last such
/// word. Helps plans (the key `plan`), and does nothing else.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_step(allocator: *mut stratalloc_allocator) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        unsafe { get(allocator) }?.allocator.step();
        Ok(())
    })
}
