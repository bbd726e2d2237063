//! What a call returns: a status, and the text of the thread's last failure.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use stratalloc::{DriverError, DriverErrorKind, Error, ResidencyError, TierError};

/// What a call came to. Anything but `STRATALLOC_OK` leaves a text for `stratalloc_last_error`, and has changed nothing else.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the names of the header")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum stratalloc_status {
    /// Done.
    STRATALLOC_OK = 0,
    /// No room now: free something, or wait for the device, and try again.
    STRATALLOC_OUT_OF_MEMORY = 1,
    /// Larger than the device, or its limit, could ever hold: ask for less.
    STRATALLOC_NEVER_FITS = 2,
    /// Over the limit of the request's tag; or a new limit that is below what is in use.
    STRATALLOC_OVER_LIMIT = 3,
    /// A pointer that is not the start of a block of this allocator.
    STRATALLOC_INVALID_POINTER = 4,
    /// A pointer whose block is free already.
    STRATALLOC_DOUBLE_FREE = 5,
    /// A block of another device than the one named.
    STRATALLOC_WRONG_DEVICE = 6,
    /// A size, alignment, flag, struct size, handle, device, pool, tag or null argument that cannot be.
    STRATALLOC_INVALID_ARGUMENT = 7,
    /// A configuration that is not understood.
    STRATALLOC_INVALID_CONFIG = 8,
    /// No CUDA driver, or no such device.
    STRATALLOC_LIBRARY_MISSING = 9,
    /// A driver call failed.
    STRATALLOC_DRIVER = 10,
    /// Not possible while a stream is being captured into a graph.
    STRATALLOC_CAPTURING = 11,
    /// A file cannot be written.
    STRATALLOC_IO = 12,
    /// This process was forked from one that had an allocator: neither CUDA nor the allocator can be used in it.
    STRATALLOC_FORKED = 13,
    /// A fault of this library: a panic was caught.
    STRATALLOC_INTERNAL = 14,
    /// A tier, or the disk behind it, has no room for the bytes. They are where they were.
    STRATALLOC_TIER_FULL = 15,
    /// A tier's read or write failed, or it has too many under way. The bytes are where they were.
    STRATALLOC_TIER_IO = 16,
    /// What came back from a tier is not what went there.
    STRATALLOC_TIER_CORRUPT = 17,
    /// There is no such tier, or it cannot be set up here, or a device cannot have evictable blocks.
    STRATALLOC_TIER_UNUSABLE = 18,
    /// Not possible with an evictable block as it is: asleep, awake, pinned, or not to be computed again.
    STRATALLOC_RESIDENCY = 19,
}

use stratalloc_status::*;

/// Every status with its name, by number.
const NAMES: [&str; 20] = [
    "OK\0",
    "OUT_OF_MEMORY\0",
    "NEVER_FITS\0",
    "OVER_LIMIT\0",
    "INVALID_POINTER\0",
    "DOUBLE_FREE\0",
    "WRONG_DEVICE\0",
    "INVALID_ARGUMENT\0",
    "INVALID_CONFIG\0",
    "LIBRARY_MISSING\0",
    "DRIVER\0",
    "CAPTURING\0",
    "IO\0",
    "FORKED\0",
    "INTERNAL\0",
    "TIER_FULL\0",
    "TIER_IO\0",
    "TIER_CORRUPT\0",
    "TIER_UNUSABLE\0",
    "RESIDENCY\0",
];

/// Why an export fails: what it returns, and what it tells.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: stratalloc_status,
    pub(crate) text: String,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    #[cold]
    pub(crate) fn new(status: stratalloc_status, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into() }
    }

    /// An argument that cannot be.
    #[cold]
    pub(crate) fn argument(text: impl Into<String>) -> Failure {
        Failure::new(STRATALLOC_INVALID_ARGUMENT, text)
    }

    /// A file that cannot be written.
    #[cold]
    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Failure {
        Failure::new(STRATALLOC_IO, format!("{}: {error}", path.display()))
    }

    /// Keeps the text for `stratalloc_last_error`.
    #[cold]
    pub(crate) fn report(self) -> stratalloc_status {
        set_last_error(self.text);
        self.status
    }
}

impl From<Error> for Failure {
    #[cold]
    fn from(error: Error) -> Failure {
        Failure::new(status_of(&error), error.to_string())
    }
}

/// A test reads the variants of `Error` and this function, so that none is left to the last line.
fn status_of(error: &Error) -> stratalloc_status {
    match error {
        Error::OutOfMemory(_) => STRATALLOC_OUT_OF_MEMORY,
        Error::NeverFits { .. } => STRATALLOC_NEVER_FITS,
        Error::OverLimit { .. } | Error::LimitBelowUse { .. } => STRATALLOC_OVER_LIMIT,
        Error::InvalidPointer { .. } => STRATALLOC_INVALID_POINTER,
        Error::DoubleFree { .. } => STRATALLOC_DOUBLE_FREE,
        Error::WrongDevice { .. } => STRATALLOC_WRONG_DEVICE,
        Error::InvalidSize { .. }
        | Error::InvalidAlignment { .. }
        | Error::InvalidTag { .. }
        | Error::UnknownDevice { .. }
        | Error::UnknownPool { .. }
        | Error::Plan(_)
        | Error::NotCapturing => STRATALLOC_INVALID_ARGUMENT,
        Error::Residency(residency) => status_of_residency(residency),
        Error::Tier(tier) => status_of_tier(tier),
        Error::Config(_) => STRATALLOC_INVALID_CONFIG,
        Error::Capturing { .. } => STRATALLOC_CAPTURING,
        Error::Driver(driver) => status_of_driver(driver),
        _ => STRATALLOC_INTERNAL,
    }
}

fn status_of_driver(error: &DriverError) -> stratalloc_status {
    match error.kind {
        DriverErrorKind::LibraryMissing | DriverErrorKind::SymbolMissing | DriverErrorKind::NoDevice => {
            STRATALLOC_LIBRARY_MISSING
        }
        DriverErrorKind::OutOfMemory => STRATALLOC_OUT_OF_MEMORY,
        DriverErrorKind::Capturing => STRATALLOC_CAPTURING,
        _ => STRATALLOC_DRIVER,
    }
}

fn status_of_residency(error: &ResidencyError) -> stratalloc_status {
    match error {
        ResidencyError::NoRoom { .. } => STRATALLOC_OUT_OF_MEMORY,
        ResidencyError::NotEvictable { .. } => STRATALLOC_INVALID_POINTER,
        ResidencyError::NoTiers | ResidencyError::NoVirtualMemory => STRATALLOC_TIER_UNUSABLE,
        _ => STRATALLOC_RESIDENCY,
    }
}

fn status_of_tier(error: &TierError) -> stratalloc_status {
    match error {
        _ if error.is_full() => STRATALLOC_TIER_FULL,
        TierError::Corrupt { .. } => STRATALLOC_TIER_CORRUPT,
        TierError::Unusable { .. } => STRATALLOC_TIER_UNUSABLE,
        TierError::Driver(driver) => status_of_driver(driver),
        _ => STRATALLOC_TIER_IO,
    }
}

/// Does an export's work. Nothing unwinds out of here.
#[inline]
pub(crate) fn guard(work: impl FnOnce() -> Outcome<()>) -> stratalloc_status {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => STRATALLOC_OK,
        Ok(Err(failure)) => failure.report(),
        Err(panic) => caught(&*panic),
    }
}

/// A panic is a fault of ours: its words are kept, and the process goes on.
#[cold]
pub(crate) fn caught(panic: &(dyn std::any::Any + Send)) -> stratalloc_status {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
    Failure::new(STRATALLOC_INTERNAL, format!("a fault of the library: {words}")).report()
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Does nothing on a thread that is ending.
#[cold]
fn set_last_error(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(text)));
}

/// What the calling thread's last failing call has to say, with numbers: one line, "" where no call has failed. Valid until the thread's
/// next failing call; calls that succeed leave it as it is.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ref().map(|text| text.as_ptr())).ok().flatten().unwrap_or(c"".as_ptr())
}

/// Copies that text, cut to fit and with its final 0, into `capacity` bytes at `buffer`, which may be null if `capacity` is 0. Returns the
/// length that the whole text needs, with its final 0.
///
/// # Safety
/// `buffer` is null or has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_last_error_copy(buffer: *mut c_char, capacity: usize) -> usize {
    let copy = |last: &RefCell<Option<CString>>| {
        let last = last.borrow();
        // SAFETY: as the caller promises; the text is not in the caller's memory.
        unsafe { copy_out(last.as_ref().map_or(&b""[..], |text| text.as_bytes()), buffer, capacity) }
    };
    LAST_ERROR.try_with(copy).unwrap_or(1)
}

/// Copies a text, cut to fit and with a final 0. Returns the length that the whole text needs, with its final 0.
///
/// # Safety
/// `buffer` is null or has room for `capacity` bytes, and `text` lies elsewhere.
pub(crate) unsafe fn copy_out(text: &[u8], buffer: *mut c_char, capacity: usize) -> usize {
    if !buffer.is_null() && capacity > 0 {
        let length = text.len().min(capacity - 1);
        // SAFETY: the caller promises `capacity` bytes, and `length` is less; the text is not in the caller's memory.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, length);
            *buffer.add(length) = 0;
        }
    }
    text.len() + 1
}

/// The name of a status, such as "OUT_OF_MEMORY"; "unknown" for any other number. Static.
#[unsafe(no_mangle)]
pub extern "C" fn stratalloc_status_name(status: i32) -> *const c_char {
    let name = usize::try_from(status).ok().and_then(|status| NAMES.get(status));
    name.map_or(c"unknown".as_ptr(), |name| name.as_ptr().cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    /// `Error` may grow, and says so: the compiler cannot ask for every variant here, so this does.
    #[test]
    fn every_error_has_its_status() {
        let errors = include_str!("../../../src/error/mod.rs");
        let (_, after) = errors.split_once("pub enum Error {").unwrap();
        let (body, _) = after.split_once("\n}\n").unwrap();
        let is_variant = |line: &&str| line.starts_with("    ") && line[4..].starts_with(char::is_uppercase);
        let variants: Vec<String> = body
            .lines()
            .filter(is_variant)
            .map(|line| line.trim().chars().take_while(|c| c.is_alphanumeric()).collect())
            .collect();
        assert!(variants.len() >= 14, "{variants:?}");
        let (_, mapping) = include_str!("status.rs").split_once("fn status_of").unwrap();
        let (mapping, _) = mapping.split_once("\n}\n").unwrap();
        for variant in variants {
            let named = [" {", "(", " =>", ")"].iter().any(|end| mapping.contains(&format!("Error::{variant}{end}")));
            assert!(named, "Error::{variant} has no status of its own");
        }
    }

    #[test]
    fn texts_are_kept_by_thread_and_copied_in_part() {
        let failing = || guard(|| Err(Failure::argument("a \0 b")));
        assert_eq!(failing(), STRATALLOC_INVALID_ARGUMENT);
        // SAFETY: the text ends in 0, and no call fails meanwhile.
        let text = unsafe { CStr::from_ptr(stratalloc_last_error()) };
        assert_eq!(text.to_str(), Ok("a   b"));
        let mut buffer = [1; 4];
        // SAFETY: the buffer is as long as is said.
        assert_eq!(unsafe { stratalloc_last_error_copy(buffer.as_mut_ptr(), 4) }, 6);
        assert_eq!(buffer, [b'a' as c_char, b' ' as c_char, b' ' as c_char, 0]);
        // SAFETY: nothing is written to no bytes.
        assert_eq!(unsafe { stratalloc_last_error_copy(std::ptr::null_mut(), 0) }, 6);
        let elsewhere = std::thread::spawn(|| {
            // SAFETY: the text ends in 0.
            unsafe { CStr::from_ptr(stratalloc_last_error()) }.to_bytes().len()
        });
        assert_eq!(elsewhere.join().unwrap(), 0);
    }

    #[test]
    fn a_panic_is_a_status() {
        assert_eq!(guard(|| panic!("words {}", 1)), STRATALLOC_INTERNAL);
        // SAFETY: the text ends in 0, and no call fails meanwhile.
        let text = unsafe { CStr::from_ptr(stratalloc_last_error()) };
        assert!(text.to_str().unwrap().ends_with("words 1"), "{text:?}");
    }

    #[test]
    fn every_status_has_a_name() {
        // SAFETY: names are static and end in 0.
        let name = |status| unsafe { CStr::from_ptr(stratalloc_status_name(status)) }.to_str().unwrap();
        assert_eq!((name(0), name(13), name(STRATALLOC_INTERNAL as i32)), ("OK", "FORKED", "INTERNAL"));
        assert_eq!(name(STRATALLOC_RESIDENCY as i32), "RESIDENCY");
        assert_eq!((name(20), name(-1)), ("unknown", "unknown"));
    }
}
