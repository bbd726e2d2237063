//! What all entry points have in common.

use std::cell::Cell;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::context;
use crate::driver::{self, Streams, Table};
use crate::error::{Error, Outcome};

thread_local! {
    static LAST_ERROR: Cell<c_int> = const { Cell::new(0) };
}

/// Remembers `code` for `cudaGetLastError`, and gives it back.
pub(crate) fn remember(code: c_int) -> c_int {
    if code != 0 {
        // A thread that is ending has no last error any more, and nobody to ask for it.
        let _ = LAST_ERROR.try_with(|last| last.set(code));
    }
    code
}

/// The thread's last error; `clear` forgets it.
pub(crate) fn last_error(clear: bool) -> c_int {
    LAST_ERROR.try_with(|last| if clear { last.replace(0) } else { last.get() }).unwrap_or(0)
}

/// Runs the body of an entry point that needs the driver, but no context.
pub(crate) fn with_driver(streams: Streams, body: impl FnOnce(&'static Table) -> Outcome) -> c_int {
    plain(|| body(driver::table(streams)?))
}

/// Runs the body of an entry point that needs a current context.
pub(crate) fn with_context(streams: Streams, body: impl FnOnce(&'static Table) -> Outcome) -> c_int {
    plain(|| {
        let table = driver::table(streams)?;
        context::ensure(table)?;
        body(table)
    })
}

/// Runs the body of an entry point that needs nothing.
pub(crate) fn plain(body: impl FnOnce() -> Outcome) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => remember(error.code()),
        Err(_) => remember(Error::UNKNOWN.code()),
    }
}

/// Writes through an out-parameter; a null one is an invalid argument.
///
/// # Safety
/// `out` is null or valid for a write of `T`.
pub(crate) unsafe fn write<T>(out: *mut T, value: T) -> Outcome {
    if out.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, and so valid, as the caller promises.
    unsafe { out.write(value) };
    Ok(())
}

/// Reads what an in-parameter points to; a null one is an invalid argument.
///
/// # Safety
/// `from` is null or valid for reads for as long as the result is used.
pub(crate) unsafe fn read<'a, T>(from: *const T) -> Result<&'a T, Error> {
    // SAFETY: null or valid, as the caller promises.
    unsafe { from.as_ref() }.ok_or(Error::INVALID_VALUE)
}

/// Entry points that need a current context. The body returns an `Outcome`; the table is bound to the name between bars.
macro_rules! api {
    ($($(#[$meta:meta])* fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) |$table:ident| $body:block)*) => {$(
        $(#[$meta])*
        /// # Safety
        /// As CUDA's documentation says of this function's pointers and handles.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> ::std::ffi::c_int {
            $crate::entry::with_context($crate::driver::Streams::Legacy, |$table| {
                // SAFETY: the caller keeps to what CUDA's documentation says of this function's pointers and handles.
                #[allow(unused_unsafe, reason = "some bodies only compute")]
                unsafe { $body }
            })
        }
    )*};
}

/// Entry points that need the driver but no context.
macro_rules! driver_only_api {
    ($($(#[$meta:meta])* fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) |$table:ident| $body:block)*) => {$(
        $(#[$meta])*
        /// # Safety
        /// As CUDA's documentation says of this function's pointers and handles.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> ::std::ffi::c_int {
            $crate::entry::with_driver($crate::driver::Streams::Legacy, |$table| {
                // SAFETY: the caller keeps to what CUDA's documentation says of this function's pointers and handles.
                #[allow(unused_unsafe, reason = "some bodies only compute")]
                unsafe { $body }
            })
        }
    )*};
}

/// Entry points with a second name for programs whose default stream is the thread's own: the same body over the
/// driver's functions for such programs.
macro_rules! stream_api {
    ($($(#[$meta:meta])* fn $name:ident / $per_thread:ident ($($arg:ident : $ty:ty),* $(,)?) |$table:ident| $body:block)*) => {$(
        $(#[$meta])*
        /// # Safety
        /// As CUDA's documentation says of this function's pointers and handles.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> ::std::ffi::c_int {
            $crate::entry::with_context($crate::driver::Streams::Legacy, |$table| {
                // SAFETY: the caller keeps to what CUDA's documentation says of this function's pointers and handles.
                unsafe { $body }
            })
        }

        $(#[$meta])*
        /// # Safety
        /// As CUDA's documentation says of this function's pointers and handles.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $per_thread($($arg: $ty),*) -> ::std::ffi::c_int {
            $crate::entry::with_context($crate::driver::Streams::PerThread, |$table| {
                // SAFETY: the caller keeps to what CUDA's documentation says of this function's pointers and handles.
                unsafe { $body }
            })
        }
    )*};
}

/// Entry points that hand their arguments to one driver function, in another order or the same.
macro_rules! forward {
    ($($name:ident ($($arg:ident : $ty:ty),*) => $driver:ident ($($given:expr),*);)*) => {
        $crate::entry::api! {$(
            fn $name($($arg: $ty),*) |table| { table.$driver($($given),*) }
        )*}
    };
}

/// As `forward`, with the second name of `stream_api`.
macro_rules! forward_stream {
    ($($name:ident / $per_thread:ident ($($arg:ident : $ty:ty),*) => $driver:ident ($($given:expr),*);)*) => {
        $crate::entry::stream_api! {$(
            fn $name / $per_thread ($($arg: $ty),*) |table| { table.$driver($($given),*) }
        )*}
    };
}

pub(crate) use {api, driver_only_api, forward, forward_stream, stream_api};
