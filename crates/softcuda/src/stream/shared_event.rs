//! Events that several processes share: a page with two numbers, of recordings made and of recordings done.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::codes::{Code, Res};

const PAGE: usize = 4096;

/// The page, mapped for as long as anybody holds it.
#[derive(Debug)]
pub(crate) struct SharedEvent {
    file: File,
    page: *mut AtomicU64,
}

// SAFETY: the page is shared memory that is only touched through atomics.
unsafe impl Send for SharedEvent {}
// SAFETY: as above.
unsafe impl Sync for SharedEvent {}

impl SharedEvent {
    pub(crate) fn new() -> Res<SharedEvent> {
        // SAFETY: the name is a C string; the result is checked.
        let descriptor = unsafe { libc::memfd_create(c"softcuda-event".as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(Code::OPERATING_SYSTEM);
        }
        // SAFETY: the descriptor was just made, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        file.set_len(PAGE as u64).map_err(|_| Code::OPERATING_SYSTEM)?;
        SharedEvent::open(file)
    }

    /// Maps the page of a file that another process has made.
    pub(crate) fn open(file: File) -> Res<SharedEvent> {
        if file.metadata().map_or(0, |metadata| metadata.len()) < PAGE as u64 {
            return Err(Code::INVALID_VALUE);
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file that is as long as the mapping.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED { Err(Code::MAP_FAILED) } else { Ok(SharedEvent { file, page: page.cast() }) }
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the page is mapped until `self` is dropped, and both numbers lie in it.
        unsafe { &*self.page.add(at) }
    }

    /// Begins a recording. Gives its number.
    pub(crate) fn begin(&self) -> u64 {
        self.word(0).fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Ends a recording.
    pub(crate) fn end(&self, number: u64) {
        self.word(1).fetch_max(number, Ordering::AcqRel);
    }

    /// Whether the last recording has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.word(1).load(Ordering::Acquire) >= self.word(0).load(Ordering::Acquire)
    }
}

impl Drop for SharedEvent {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own.
        unsafe { libc::munmap(self.page.cast(), PAGE) };
    }
}
