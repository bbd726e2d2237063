//! Files read and written by threads, where there is no io_uring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::private::PrivateFile;
use super::{Done, Files, Op};
use crate::tier::Direction;

/// More gain nothing: a disk is kept busy by as many.
const THREADS_MAX: usize = 16;

#[derive(Default)]
struct Work {
    waiting: VecDeque<Op>,
    done: Vec<Done>,
    stopped: bool,
}

struct Shared {
    files: Arc<Vec<PrivateFile>>,
    work: Mutex<Work>,
    /// There is work, or there will be none any more.
    more: Condvar,
    /// Something is done.
    ended: Condvar,
}

/// Threads that read and write.
pub(in super::super) struct ThreadFiles {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadFiles {
    /// As many threads as reads and writes may be under way, within reason.
    pub(in super::super) fn new(files: Arc<Vec<PrivateFile>>, depth: usize) -> Result<ThreadFiles, String> {
        let work = Mutex::new(Work::default());
        let shared = Arc::new(Shared { files, work, more: Condvar::new(), ended: Condvar::new() });
        let mut threads = Vec::new();
        for _ in 0..depth.min(THREADS_MAX) {
            let theirs = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("stratalloc-nvme".to_string()).stack_size(256 << 10);
            match builder.spawn(move || theirs.work()) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(format!("no thread can be made: {error}")),
                Err(_) => break,
            }
        }
        Ok(ThreadFiles { shared, threads })
    }
}

impl Drop for ThreadFiles {
    fn drop(&mut self) {
        self.shared.work.lock().stopped = true;
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // It cannot have panicked in a way that matters now.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        block_signals();
        let mut work = self.work.lock();
        loop {
            if let Some(op) = work.waiting.pop_front() {
                drop(work);
                let done = Done { token: op.token, result: self.carry_out(&op) };
                work = self.work.lock();
                work.done.push(done);
                self.ended.notify_all();
            } else if work.stopped {
                return;
            } else {
                self.more.wait(&mut work);
            }
        }
    }

    fn carry_out(&self, op: &Op) -> i32 {
        let (fd, size, offset) = (self.files[op.file].fd(), op.size as usize, op.offset as libc::off64_t);
        // SAFETY: nobody else touches the buffer's `size` bytes until this has ended, as `Files::submit` requires; the file is open as long as
        // `files` is there.
        let result = unsafe {
            match op.direction {
                Direction::Read => libc::pread64(fd, op.buffer.cast(), size, offset),
                Direction::Write => libc::pwrite64(fd, op.buffer.cast(), size, offset),
            }
        };
        if result < 0 { -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { result as i32 }
    }
}

/// The host's signals are for the host's threads.
fn block_signals() {
    // SAFETY: the set is ours, filled before it is used; the calling thread is ours too.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

impl Files for ThreadFiles {
    fn extend(&self, file: usize, from: u64, to: u64) -> Result<(), i32> {
        self.shared.files[file].extend(from, to)
    }

    // SAFETY: as the trait says.
    unsafe fn submit(&self, ops: &[Op]) {
        self.shared.work.lock().waiting.extend(ops);
        self.shared.more.notify_all();
    }

    fn reap(&self, done: &mut Vec<Done>) {
        done.append(&mut self.shared.work.lock().done);
    }

    fn wait(&self) {
        let mut work = self.shared.work.lock();
        while work.done.is_empty() {
            self.shared.ended.wait(&mut work);
        }
    }

    fn describe(&self) -> String {
        let files: Vec<String> = self.shared.files.iter().map(PrivateFile::describe).collect();
        format!("{} threads, {}", self.threads.len(), files.join(", "))
    }
}
