//! Which of the means there are: found out by writing a page of every file and reading it back.

use std::sync::Arc;

use super::super::Direction;
use super::files::memory::Memory;
use super::files::private::{PrivateFile, reason};
use super::files::ring::RingFiles;
use super::files::threads::ThreadFiles;
use super::files::{Files, Op};
use super::spec::{Means, NvmeSpec, PAGE};

/// Files that have been read and written.
pub(super) struct Opened {
    pub(super) files: Box<dyn Files>,
    /// By file.
    pub(super) folders: Vec<String>,
    /// Why io_uring is not used, where it is not.
    pub(super) note: Option<String>,
}

/// Makes the files, by the best means that work.
pub(super) fn open(spec: &NvmeSpec) -> Result<Opened, String> {
    let made: Result<Vec<PrivateFile>, String> =
        spec.paths.iter().map(|path| PrivateFile::make(path, spec.means)).collect();
    let made = Arc::new(made?);
    let folders = made.iter().map(|file| file.folder.clone()).collect();
    let mut note = None;
    if spec.means.contains(Means::RING) {
        let ring = RingFiles::new(Arc::clone(&made), spec.depth).map_err(reason);
        let probed = ring.and_then(|ring| probe_all(&ring, &made).map(|()| ring));
        match probed {
            Ok(ring) => return Ok(Opened { files: Box::new(ring), folders, note }),
            Err(reason) => note = Some(format!("no io_uring: {reason}")),
        }
    }
    let threads = ThreadFiles::new(Arc::clone(&made), spec.depth)?;
    probe_all(&threads, &made)?;
    Ok(Opened { files: Box::new(threads), folders, note })
}

fn probe_all(files: &dyn Files, made: &[PrivateFile]) -> Result<(), String> {
    let mut page = Memory::new(PAGE as usize).ok_or("out of memory")?;
    for (index, file) in made.iter().enumerate() {
        let say = |what: &str, errno: i32| format!("{}: cannot {what} a file there: {}", file.folder, reason(errno));
        files.extend(index, 0, PAGE).map_err(|errno| say("make room in", errno))?;
        if file.is_direct()
            && let Err(errno) = probe(files, index, &mut page)
        {
            // A file system may take the flag and refuse what it means.
            file.set_direct(false).map_err(|errno| say("change", errno))?;
            file.note(format!("O_DIRECT does not work: {}", reason(errno)));
        }
        if !file.is_direct() {
            probe(files, index, &mut page).map_err(|errno| say("use", errno))?;
        }
    }
    Ok(())
}

/// Writes a page and reads it back.
fn probe(files: &dyn Files, file: usize, page: &mut Memory) -> Result<(), i32> {
    const PATTERN: u8 = 0xA5;
    for (direction, fill) in [(Direction::Write, PATTERN), (Direction::Read, 0)] {
        page.bytes_mut().fill(fill);
        let op = Op { token: 0, direction, file, offset: 0, buffer: page.start(), size: PAGE as u32 };
        // SAFETY: the page is ours, and is not touched until the operation has ended, below.
        unsafe { files.submit(&[op]) };
        let mut done = Vec::new();
        while done.is_empty() {
            files.wait();
            files.reap(&mut done);
        }
        match done[0].result {
            errno if errno < 0 => return Err(-errno),
            count if count as u64 == PAGE => {}
            _ => return Err(libc::EIO),
        }
    }
    if page.bytes().iter().all(|&byte| byte == PATTERN) { Ok(()) } else { Err(libc::EIO) }
}
