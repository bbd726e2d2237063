//! What lies behind the addresses of a software device: a sparse memory file mapped as CUDA maps chunks, or nothing.
//!
//! All of the device's unsafe code is here. It knows no rules of the driver: `memory` has checked every argument, and calls
//! with the device's lock held.

use std::fs::File;
use std::io::{Error as OsError, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::Arc;

use super::memory::invalid;
use super::ranges::Window;
use super::schedule::Pattern;
use super::streaming;
use crate::driver::{DriverError, DriverErrorKind, DriverResult};

/// Host pages. Linux maps in units of it.
pub(super) const HOST_PAGE: u64 = 4096;

/// As long as a file may be; only what is written takes memory.
const FILE_BYTES: libc::off_t = libc::off_t::MAX & !(HOST_PAGE as libc::off_t - 1);

/// Physical memory of another device, maybe in another process: its memory file, and where in it.
#[derive(Debug, Clone)]
pub(super) struct Foreign {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
}

/// Where in the memory file the sizes of exported memory are noted: behind all physical memory, 16 bytes a host page.
const NOTES: u64 = 1 << 62;
const NOTE_BYTES: u64 = 16;
const NOTE_MARK: [u8; 8] = *b"strata\0\x01";

fn note_of(size: u64) -> [u8; 16] {
    let mut note = [0; 16];
    note[..8].copy_from_slice(&NOTE_MARK);
    note[8..].copy_from_slice(&size.to_le_bytes());
    note
}

fn size_of_note(note: [u8; 16]) -> Option<u64> {
    let (mark, size) = note.split_at(8);
    (mark == NOTE_MARK).then(|| size.try_into().map(u64::from_le_bytes).ok()).flatten()
}

/// What lies behind the addresses.
#[derive(Debug)]
pub(super) enum Store {
    /// Physical memory is this file; an address is a host address at which part of it is mapped.
    File(File),
    /// Addresses are numbers.
    Addresses(Window),
}

fn os_error(call: &'static str, what: &str) -> DriverError {
    let error = OsError::last_os_error();
    let (kind, hint) = match error.raw_os_error() {
        Some(libc::ENOMEM) => (
            DriverErrorKind::OutOfMemory,
            " (Linux allows a process vm.max_map_count mappings; the addresses-only mode needs none)",
        ),
        _ => (DriverErrorKind::Other, ""),
    };
    DriverError::new(kind, call, format!("{what}: {error}{hint}"))
}

/// `mmap` with the result as an address.
///
/// # Safety
/// With `MAP_FIXED` in `flags`, `[address, address + size)` holds no mapping but the caller's own.
unsafe fn map_pages(
    address: u64,
    size: u64,
    access: libc::c_int,
    flags: libc::c_int,
    file: Option<(&File, u64)>,
    call: &'static str,
) -> DriverResult<u64> {
    let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
    // SAFETY: without MAP_FIXED the kernel picks free addresses; with it, the caller vouches for the range.
    let at = unsafe { libc::mmap(address as *mut _, size as usize, access, flags, fd, offset as libc::off_t) };
    if at == libc::MAP_FAILED { Err(os_error(call, &format!("mmap of {size} bytes"))) } else { Ok(at as u64) }
}

const EMPTY: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// `size` in whole host pages.
fn whole_pages(size: u64) -> u64 {
    size.next_multiple_of(HOST_PAGE)
}

impl Store {
    /// A store over a sparse memory file.
    pub(super) fn file() -> DriverResult<Store> {
        let call = "memfd_create";
        // SAFETY: the name is a C string; the result is checked below.
        let fd = unsafe { libc::memfd_create(c"stratalloc-soft-device".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(os_error(call, "memfd_create"));
        }
        // SAFETY: the descriptor was just created, and nothing else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        // SAFETY: the descriptor is open.
        if unsafe { libc::ftruncate(fd, FILE_BYTES) } != 0 {
            return Err(os_error(call, "ftruncate"));
        }
        Ok(Store::File(file))
    }

    /// Whether there are bytes behind the addresses.
    pub(super) fn has_bytes(&self) -> bool {
        matches!(self, Store::File(_))
    }

    /// Reserves addresses. Touching them faults.
    pub(super) fn reserve(&mut self, size: u64, alignment: u64, call: &'static str) -> DriverResult<u64> {
        let no_room = || DriverError::new(DriverErrorKind::OutOfMemory, call, format!("no {size} addresses are free"));
        match self {
            Store::Addresses(window) => window.free.take(size, alignment).ok_or_else(no_room),
            Store::File(_) => {
                let slack = alignment.saturating_sub(HOST_PAGE);
                let padded = size.checked_add(slack).filter(|&n| n < 1 << 47).ok_or_else(no_room)?;
                // SAFETY: no MAP_FIXED.
                let at = unsafe { map_pages(0, padded, libc::PROT_NONE, EMPTY, None, call)? };
                let start = at.next_multiple_of(alignment);
                // SAFETY: both ends belong to the mapping just made, and nobody knows it yet.
                unsafe {
                    unmap_pages(at, start - at);
                    unmap_pages(start + size, at + padded - (start + size));
                }
                Ok(start)
            }
        }
    }

    /// Gives reserved addresses back, with whatever is mapped there.
    pub(super) fn unreserve(&mut self, ptr: u64, size: u64) {
        match self {
            Store::Addresses(window) => window.free.give(ptr, size),
            // SAFETY: the range is a reservation of this device, and its table no longer lists anything in it.
            Store::File(_) => unsafe { unmap_pages(ptr, size) },
        }
    }

    /// Maps physical bytes into a reservation, without access. They are another device's where `foreign` says whose.
    pub(super) fn map(
        &self,
        ptr: u64,
        size: u64,
        phys: u64,
        foreign: Option<&Foreign>,
        call: &'static str,
    ) -> DriverResult<()> {
        if let Store::File(file) = self {
            let (file, phys) = foreign.map_or((file, phys), |foreign| (&*foreign.file, foreign.offset + phys));
            let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
            // SAFETY: the range lies in a reservation of this device where nothing is mapped, as the caller has checked.
            unsafe { map_pages(ptr, size, libc::PROT_NONE, flags, Some((file, phys)), call)? };
        }
        Ok(())
    }

    /// Opens a mapped range to reads and writes.
    pub(super) fn allow(&self, ptr: u64, size: u64, call: &'static str) -> DriverResult<()> {
        if let Store::File(_) = self {
            // SAFETY: the range is mapped by this device, as the caller has checked.
            if unsafe { libc::mprotect(ptr as *mut _, size as usize, READ_WRITE) } != 0 {
                return Err(os_error(call, "mprotect"));
            }
        }
        Ok(())
    }

    /// Takes a mapping away; the addresses stay reserved.
    pub(super) fn unmap(&self, ptr: u64, size: u64, call: &'static str) -> DriverResult<()> {
        if let Store::File(_) = self {
            // SAFETY: the range is mapped by this device inside a reservation of its own, as the caller has checked.
            unsafe { map_pages(ptr, size, libc::PROT_NONE, EMPTY | libc::MAP_FIXED, None, call)? };
        }
        Ok(())
    }

    /// Gives physical memory back to the host.
    pub(super) fn discard(&self, phys: u64, size: u64) {
        if let Store::File(file) = self {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: a plain system call on an open descriptor. Its failure costs memory, not correctness, because
            // physical offsets are never used twice.
            unsafe { libc::fallocate(file.as_raw_fd(), mode, phys as libc::off_t, size as libc::off_t) };
        }
    }

    /// Maps plain device memory somewhere.
    pub(super) fn map_plain(&mut self, size: u64, phys: u64, call: &'static str) -> DriverResult<u64> {
        match self {
            Store::Addresses(_) => self.reserve(whole_pages(size), HOST_PAGE, call),
            Store::File(file) => {
                let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
                // SAFETY: no MAP_FIXED.
                unsafe { map_pages(0, size, READ_WRITE, flags, Some((file, phys)), call) }
            }
        }
    }

    /// Takes plain memory away again.
    pub(super) fn unmap_plain(&mut self, ptr: u64, size: u64) {
        self.unreserve(ptr, whole_pages(size));
    }

    /// Host memory. It is real in both modes.
    pub(super) fn map_host(size: u64, call: &'static str) -> DriverResult<u64> {
        // SAFETY: no MAP_FIXED.
        unsafe { map_pages(0, size, READ_WRITE, EMPTY, None, call) }
    }

    /// Frees host memory.
    pub(super) fn unmap_host(ptr: u64, size: u64) {
        // SAFETY: the range came from `map_host`, and the device's table no longer lists it.
        unsafe { unmap_pages(ptr, size) }
    }

    /// A descriptor of the memory file whose position is the start of these physical bytes. Their size is noted in the file,
    /// far behind all memory, for whoever imports it.
    pub(super) fn export(
        &self,
        phys: u64,
        size: u64,
        foreign: Option<&Foreign>,
        call: &'static str,
    ) -> DriverResult<OwnedFd> {
        let Store::File(file) = self else {
            let detail = "an addresses-only device has no memory to share";
            return Err(DriverError::new(DriverErrorKind::NotSupported, call, detail));
        };
        let (file, phys) = foreign.map_or((file, phys), |foreign| (&*foreign.file, foreign.offset));
        let open = || {
            file.write_all_at(&note_of(size), NOTES + phys / HOST_PAGE * NOTE_BYTES)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let mut file = File::options().read(true).write(true).open(path)?;
            file.seek(SeekFrom::Start(phys))?;
            Ok(OwnedFd::from(file))
        };
        open().map_err(|error: OsError| DriverError::new(DriverErrorKind::Other, call, error.to_string()))
    }

    /// The memory that a descriptor from [`Store::export`], of this or another process, stands for, and its size. The
    /// descriptor stays its owner's.
    pub(super) fn import(fd: BorrowedFd<'_>, call: &'static str) -> DriverResult<(Foreign, u64)> {
        let refuse = || invalid(call, "the descriptor stands for no memory of a software device");
        let mut file = File::from(fd.try_clone_to_owned().map_err(|_| refuse())?);
        let offset = file.stream_position().map_err(|_| refuse())?;
        let mut note = [0; NOTE_BYTES as usize];
        file.read_exact_at(&mut note, NOTES + offset / HOST_PAGE * NOTE_BYTES).map_err(|_| refuse())?;
        let size = size_of_note(note).filter(|_| offset < NOTES).ok_or_else(refuse)?;
        Ok((Foreign { file: Arc::new(file), offset }, size))
    }

    /// Maps plain memory of another device.
    pub(super) fn map_foreign(foreign: &Foreign, size: u64, call: &'static str) -> DriverResult<u64> {
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: no MAP_FIXED.
        unsafe { map_pages(0, size, READ_WRITE, flags, Some((&foreign.file, foreign.offset)), call) }
    }

    /// The memory file, where there is one.
    pub(super) fn file_descriptor(&self) -> Option<RawFd> {
        match self {
            Store::File(file) => Some(file.as_raw_fd()),
            Store::Addresses(_) => None,
        }
    }

    /// Copies bytes between device or pinned addresses.
    ///
    /// # Safety
    /// Both ranges are mapped and open to access, as [`Memory::resolve`](super::memory::Memory::resolve) finds it, and the
    /// device's lock is held.
    pub(super) unsafe fn copy(&self, dst: u64, src: u64, size: u64) {
        if let Store::File(_) = self {
            // SAFETY: the ranges are readable and writable (the caller's promise), and their addresses do not overlap: such copies were refused.
            unsafe { streaming::copy(dst as *mut u8, src as *const u8, size as usize) }
        }
    }

    /// Repeats a pattern.
    ///
    /// # Safety
    /// As for [`Store::copy`].
    pub(super) unsafe fn fill(&self, dst: u64, size: u64, pattern: Pattern) {
        if let Store::File(_) = self {
            let same = pattern.bytes[..pattern.width].iter().all(|&byte| byte == pattern.bytes[0]);
            if same {
                // SAFETY: the range is writable (the caller's promise).
                return unsafe { ptr::write_bytes(dst as *mut u8, pattern.bytes[0], size as usize) };
            }
            for at in (0..size).step_by(pattern.width) {
                let width = pattern.width.min((size - at) as usize);
                // SAFETY: as above; the last repetition is cut at the end of the range.
                unsafe { ptr::copy_nonoverlapping(pattern.bytes.as_ptr(), (dst + at) as *mut u8, width) };
            }
        }
    }

    /// Copies bytes in.
    ///
    /// # Safety
    /// As for [`Store::copy`], for `bytes.len()` bytes at `dst`.
    pub(super) unsafe fn write(&self, dst: u64, bytes: &[u8]) {
        if let Store::File(_) = self {
            // SAFETY: the range is writable (the caller's promise).
            unsafe { ptr::copy(bytes.as_ptr(), dst as *mut u8, bytes.len()) }
        }
    }

    /// Copies bytes out.
    ///
    /// # Safety
    /// As for [`Store::copy`], for `bytes.len()` bytes at `src`.
    pub(super) unsafe fn read(&self, bytes: &mut [u8], src: u64) {
        if let Store::File(_) = self {
            // SAFETY: the range is readable (the caller's promise).
            unsafe { ptr::copy(src as *const u8, bytes.as_mut_ptr(), bytes.len()) }
        }
    }
}

/// Unmaps host pages.
///
/// # Safety
/// The range is the caller's own and nothing refers to it any more.
unsafe fn unmap_pages(ptr: u64, size: u64) {
    if size > 0 {
        // SAFETY: the caller's promise. The only failure left is a full table of mappings, which leaves the range mapped.
        unsafe { libc::munmap(ptr as *mut _, size as usize) };
    }
}
