//! NVML over the software device.
//!
//! What it says of a device comes from `libcuda.so.1`, asked by name: the count, names, ids, the memory in all, and, where
//! the driver is softcuda, how much of it is in use. It makes no context and allocates nothing on a device. What the
//! software device has no counterpart for (links, fabric, clocks) is answered with `NVML_ERROR_NOT_SUPPORTED`, as NVML does
//! on boards without it.
#![allow(non_snake_case, reason = "entry points have NVML's names")]
#![allow(
    missing_docs,
    reason = "NVML's documentation says what an entry point does; here is said only what is particular"
)]

mod device;
mod driver;
mod memory;
mod system;
mod topology;

use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An `nvmlReturn_t` other than success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Error(c_int);

impl Error {
    pub(crate) const UNINITIALIZED: Error = Error(1);
    pub(crate) const INVALID_ARGUMENT: Error = Error(2);
    pub(crate) const NOT_SUPPORTED: Error = Error(3);
    pub(crate) const NOT_FOUND: Error = Error(6);
    pub(crate) const INSUFFICIENT_SIZE: Error = Error(7);
    pub(crate) const DRIVER_NOT_LOADED: Error = Error(9);
    pub(crate) const VERSION_MISMATCH: Error = Error(25);
    pub(crate) const UNKNOWN: Error = Error(999);
}

pub(crate) type Outcome = Result<(), Error>;

/// Runs the body of an entry point: a panic does not leave it.
pub(crate) fn answer(body: impl FnOnce() -> Outcome) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(Error(code))) => code,
        Err(_) => Error::UNKNOWN.0,
    }
}

/// Writes through an out-parameter; a null one is an invalid argument.
///
/// # Safety
/// `out` is null or valid for a write of `T`.
pub(crate) unsafe fn write<T>(out: *mut T, value: T) -> Outcome {
    if out.is_null() {
        return Err(Error::INVALID_ARGUMENT);
    }
    // SAFETY: not null, and so valid, as the caller promises.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes a string with its end into a buffer of `len` bytes.
///
/// # Safety
/// `out` is null or valid for writes of `len` bytes.
pub(crate) unsafe fn write_text(out: *mut c_char, len: u32, text: &str) -> Outcome {
    if out.is_null() {
        return Err(Error::INVALID_ARGUMENT);
    }
    if text.len() >= len as usize {
        return Err(Error::INSUFFICIENT_SIZE);
    }
    // SAFETY: valid for `len` bytes, and the text and its end are shorter or as long.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// Entry points. The body returns an `Outcome`.
macro_rules! nvml {
    ($($(#[$meta:meta])* fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        /// # Safety
        /// As NVML's documentation says of this function's pointers and handles.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> ::std::ffi::c_int {
            $crate::answer(|| {
                // SAFETY: the caller keeps to what NVML's documentation says of this function's pointers and handles.
                #[allow(unused_unsafe, reason = "some bodies only compute")]
                unsafe { $body }
            })
        }
    )*};
}
pub(crate) use nvml;
