//! Which library this is.

use std::ffi::c_char;

/// The number of the ABI. It is part of the soname (`libstratalloc.so.0`), and goes up when a program built against an older header would
/// not work: not when functions are added, nor when a sized struct grows at its end.
pub const STRATALLOC_ABI_VERSION: u32 = 0;

/// `STRATALLOC_ABI_VERSION` of the library that is loaded, to compare with that of the header.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_abi_version() -> u32 {
    STRATALLOC_ABI_VERSION
}

/// The library's version, such as "0.1.0". Static.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
