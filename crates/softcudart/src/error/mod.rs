//! The runtime's errors. The driver's have the same numbers.

mod names;

use std::ffi::{CStr, c_char, c_int};

use crate::entry;

/// What an entry point comes to.
pub(crate) type Outcome = Result<(), Error>;

/// A `cudaError_t` other than success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Error(c_int);

impl Error {
    pub(crate) const INVALID_VALUE: Error = Error(1);
    pub(crate) const OUT_OF_MEMORY: Error = Error(2);
    pub(crate) const INVALID_PITCH: Error = Error(12);
    pub(crate) const INVALID_SYMBOL: Error = Error(13);
    pub(crate) const INVALID_CHANNEL_DESCRIPTOR: Error = Error(20);
    pub(crate) const INVALID_COPY_DIRECTION: Error = Error(21);
    pub(crate) const INSUFFICIENT_DRIVER: Error = Error(35);
    pub(crate) const NEWER_DRIVER: Error = Error(36);
    pub(crate) const MISSING_CONFIGURATION: Error = Error(52);
    pub(crate) const INVALID_DEVICE_FUNCTION: Error = Error(98);
    pub(crate) const INVALID_DEVICE: Error = Error(101);
    pub(crate) const NOT_FOUND: Error = Error(500);
    pub(crate) const NOT_SUPPORTED: Error = Error(801);
    pub(crate) const UNKNOWN: Error = Error(999);

    /// The number that C sees.
    pub(crate) fn code(self) -> c_int {
        self.0
    }

    /// What a driver's return code means.
    #[inline]
    pub(crate) fn check(code: c_int) -> Outcome {
        if code == 0 { Ok(()) } else { Err(Error(code)) }
    }
}

const UNRECOGNIZED: &CStr = c"unrecognized error code";

fn known(code: c_int) -> Option<&'static (c_int, &'static CStr, &'static CStr)> {
    names::ERRORS.binary_search_by_key(&code, |(known, _, _)| *known).ok().and_then(|index| names::ERRORS.get(index))
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaGetErrorName(code: c_int) -> *const c_char {
    known(code).map_or(UNRECOGNIZED, |(_, name, _)| name).as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaGetErrorString(code: c_int) -> *const c_char {
    known(code).map_or(UNRECOGNIZED, |(_, _, text)| text).as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaGetLastError() -> c_int {
    entry::last_error(true)
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaPeekAtLastError() -> c_int {
    entry::last_error(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_in_order_and_found() {
        assert!(names::ERRORS.is_sorted_by_key(|(code, _, _)| *code), "binary search needs ascending codes");
        let (_, name, text) = known(2).expect("out of memory is known");
        assert_eq!((*name, *text), (c"cudaErrorMemoryAllocation", c"out of memory"));
        assert!(known(12345).is_none(), "no such code");
    }
}
