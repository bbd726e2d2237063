//! Files that nobody else can open by name, and of which nothing is left when the process ends, however it ends.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::super::spec::{Means, NvmePath};
use crate::units::ByteSize;

/// What files with a name are called for the moment that they have one.
const PREFIX: &str = ".stratalloc-tier-";

/// A file without a name.
#[derive(Debug)]
pub(in super::super) struct PrivateFile {
    fd: OwnedFd,
    /// The folder, for messages.
    pub(in super::super) folder: String,
    direct: AtomicBool,
    preallocated: AtomicBool,
    /// What is not as it was asked for, and why.
    notes: Mutex<Vec<String>>,
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// What the system calls an error.
pub(in super::super) fn reason(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

impl PrivateFile {
    /// Makes one.
    ///
    /// # Errors
    /// Why not, and what to do, in words.
    pub(in super::super) fn make(path: &NvmePath, means: Means) -> Result<PrivateFile, String> {
        let folder = path.folder.display().to_string();
        match fs::metadata(&path.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("{folder}: there is no such folder; make it, or name another"));
            }
            Err(error) => return Err(format!("{folder}: {error}")),
            Ok(metadata) if !metadata.is_dir() => return Err(format!("{folder} is not a folder; name one")),
            Ok(_) => {}
        }
        check_size_limit(path.bytes)?;
        let mut notes = Vec::new();
        let nameless =
            if means.contains(Means::NAMELESS) { open_nameless(&path.folder) } else { Err(libc::EOPNOTSUPP) };
        let fd = match nameless {
            Ok(fd) => fd,
            // What file systems and old kernels say that have no files without a name.
            Err(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT | libc::EINVAL) => {
                notes.push("named for a moment".to_string());
                open_and_unlink(&path.folder)?
            }
            Err(errno) => return Err(format!("{folder}: cannot make a file there: {}", reason(errno))),
        };
        let direct = AtomicBool::new(false);
        let preallocated = AtomicBool::new(means.contains(Means::PREALLOCATED));
        let file = PrivateFile { fd, folder, direct, preallocated, notes: Mutex::new(notes) };
        if means.contains(Means::DIRECT) {
            match file.set_direct(true) {
                Ok(()) => {}
                Err(errno) => file.note(format!("O_DIRECT refused: {}", reason(errno))),
            }
        }
        if let Some(free) = file.free_bytes().filter(|&free| free < path.bytes) {
            file.note(format!("{} of {} free now", ByteSize(free), ByteSize(path.bytes)));
        }
        Ok(file)
    }

    pub(in super::super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(in super::super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Reads and writes from now on without the page cache, or through it.
    pub(in super::super) fn set_direct(&self, direct: bool) -> Result<(), i32> {
        // SAFETY: the descriptor is open, and F_GETFL takes no further argument.
        let flags = unsafe { libc::fcntl(self.fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(errno());
        }
        let flags = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
        // SAFETY: as above; F_SETFL takes an int.
        if unsafe { libc::fcntl(self.fd(), libc::F_SETFL, flags) } != 0 {
            return Err(errno());
        }
        self.direct.store(direct, Ordering::Relaxed);
        Ok(())
    }

    /// See [`Files::extend`](super::Files::extend).
    pub(super) fn extend(&self, from: u64, to: u64) -> Result<(), i32> {
        let offset = |bytes: u64| libc::off64_t::try_from(bytes).map_err(|_| libc::EFBIG);
        while self.preallocated.load(Ordering::Relaxed) {
            // SAFETY: the descriptor is open; the call touches no memory of ours.
            if unsafe { libc::fallocate64(self.fd(), 0, offset(from)?, offset(to - from)?) } == 0 {
                return Ok(());
            }
            match errno() {
                libc::EINTR => {}
                libc::EOPNOTSUPP | libc::ENOSYS => self.preallocated.store(false, Ordering::Relaxed),
                errno => return Err(errno),
            }
        }
        // SAFETY: as above.
        if unsafe { libc::ftruncate64(self.fd(), offset(to)?) } == 0 { Ok(()) } else { Err(errno()) }
    }

    /// Something that reports say of it.
    pub(in super::super) fn note(&self, note: String) {
        self.notes.lock().push(note);
    }

    fn free_bytes(&self) -> Option<u64> {
        // SAFETY: all bytes zero are a valid value of this structure of integers.
        let mut stat: libc::statvfs64 = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and the structure is ours.
        let failed = unsafe { libc::fstatvfs64(self.fd(), &mut stat) } != 0;
        (!failed).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    pub(super) fn describe(&self) -> String {
        let mut words = vec![if self.is_direct() { "O_DIRECT" } else { "page cache" }.to_string()];
        words.push(if self.preallocated.load(Ordering::Relaxed) { "preallocated" } else { "sparse" }.to_string());
        words.extend(self.notes.lock().iter().cloned());
        format!("{} ({})", self.folder, words.join(", "))
    }
}

/// A process that writes beyond its limit on file sizes is ended by a signal: that must not come from here.
fn check_size_limit(bytes: u64) -> Result<(), String> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours.
    let failed = unsafe { libc::getrlimit64(libc::RLIMIT_FSIZE, &mut limit) } != 0;
    if !failed && limit.rlim_cur < bytes {
        let limit = ByteSize(limit.rlim_cur);
        return Err(format!("files of this process may have {limit}, not {}: see `ulimit -f`", ByteSize(bytes)));
    }
    Ok(())
}

fn c_string(path: &Path) -> Result<CString, i32> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)
}

fn open(path: &Path, flags: i32) -> Result<OwnedFd, i32> {
    let path = c_string(path)?;
    let mode: libc::c_uint = 0o600;
    // SAFETY: the path ends with a zero, and the mode is passed as the call wants it.
    let fd = unsafe { libc::open64(path.as_ptr(), flags | libc::O_RDWR | libc::O_CLOEXEC, mode) };
    // SAFETY: the descriptor is new and nobody else's.
    if fd < 0 { Err(errno()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// O_EXCL: it cannot be given a name later either.
fn open_nameless(folder: &Path) -> Result<OwnedFd, i32> {
    open(folder, libc::O_TMPFILE | libc::O_EXCL)
}

/// Makes a file with a name and takes the name away. A process that is killed in between leaves an empty file, which the next one removes:
/// whoever made such a file needs the name no more, or is about to take it away itself.
fn open_and_unlink(folder: &Path) -> Result<OwnedFd, String> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) && is_empty_file(&entry) {
            // Another process may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
    let say = |errno| format!("{}: cannot make a file there: {}", folder.display(), reason(errno));
    let mut tries = 0;
    loop {
        let mut random = [0; 16];
        draw(&mut random).map_err(say)?;
        let path = folder.join(format!("{PREFIX}{:032x}", u128::from_ne_bytes(random)));
        match open(&path, libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW) {
            Ok(fd) => {
                return match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(format!("{}: {error}", path.display()))
                    }
                    _ => Ok(fd),
                };
            }
            Err(libc::EEXIST) if tries < 10 => tries += 1,
            Err(errno) => return Err(say(errno)),
        }
    }
}

fn is_empty_file(entry: &fs::DirEntry) -> bool {
    entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

/// Fills `bytes` with what nobody can guess.
pub(in super::super) fn draw(bytes: &mut [u8]) -> Result<(), i32> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the call writes into `rest`, at most its length.
        match unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) } {
            count if count > 0 => filled += count as usize,
            _ if errno() == libc::EINTR => {}
            _ => return Err(errno()),
        }
    }
    Ok(())
}
