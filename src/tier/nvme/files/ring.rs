//! Files read and written through io_uring: no thread, one system call for many.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use parking_lot::Mutex;

use super::private::PrivateFile;
use super::{Done, Files, Op};
use crate::tier::Direction;

/// How many ranges of memory may be registered at a time, and how long the kernel lets one be.
const BUFFERS: usize = 64;
const BUFFER_BYTES: u64 = 1 << 30;

/// What waits where the kernel does not say when something has ended.
const NAP: Duration = Duration::from_micros(100);

/// What lies in the submission queue that the kernel has not taken.
#[derive(Default)]
struct Unsent {
    /// In the order of the queue.
    tokens: VecDeque<u32>,
    /// What the kernel will never take.
    failed: Vec<Done>,
    /// The kernel takes nothing any more.
    broken: Option<i32>,
}

/// A ring.
pub(in super::super) struct RingFiles {
    ring: IoUring,
    /// Outlives the ring's use of them: the ring holds its own references.
    files: Arc<Vec<PrivateFile>>,
    /// Held by whoever touches the submission queue.
    unsent: Mutex<Unsent>,
    /// Held by whoever touches the completion queue.
    completion: Mutex<()>,
    /// Memory that is registered, as address and size, by the kernel's number. Empty where the kernel registers none.
    buffers: Mutex<Vec<Option<(u64, u64)>>>,
}

impl RingFiles {
    /// A ring with room for `depth` reads and writes.
    pub(in super::super) fn new(files: Arc<Vec<PrivateFile>>, depth: usize) -> Result<RingFiles, i32> {
        let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        // A child after `fork` has no business with the rings.
        let ring = IoUring::builder().dontfork().build(depth as u32).map_err(errno)?;
        let descriptors: Vec<i32> = files.iter().map(PrivateFile::fd).collect();
        ring.submitter().register_files(&descriptors).map_err(errno)?;
        let sparse = ring.submitter().register_buffers_sparse(BUFFERS as u32);
        let buffers = Mutex::new(vec![None; if sparse.is_ok() { BUFFERS } else { 0 }]);
        Ok(RingFiles { ring, files, unsent: Mutex::default(), completion: Mutex::new(()), buffers })
    }

    fn entry(&self, op: &Op, buffers: &[Option<(u64, u64)>]) -> squeue::Entry {
        let file = types::Fixed(op.file as u32);
        let (start, end) = (op.buffer as u64, op.buffer as u64 + u64::from(op.size));
        let holds = |buffer: &Option<(u64, u64)>| buffer.is_some_and(|(at, size)| at <= start && end <= at + size);
        let number = buffers.iter().position(holds).map(|index| index as u16);
        let entry = match (op.direction, number) {
            (Direction::Read, Some(number)) => {
                opcode::ReadFixed::new(file, op.buffer, op.size, number).offset(op.offset).build()
            }
            (Direction::Read, None) => opcode::Read::new(file, op.buffer, op.size).offset(op.offset).build(),
            (Direction::Write, Some(number)) => {
                opcode::WriteFixed::new(file, op.buffer, op.size, number).offset(op.offset).build()
            }
            (Direction::Write, None) => opcode::Write::new(file, op.buffer, op.size).offset(op.offset).build(),
        };
        entry.user_data(op.token.into())
    }

    /// Has the kernel take what lies in the queue. What it does not take now for want of memory stays there.
    fn send(&self, unsent: &mut Unsent) {
        while !unsent.tokens.is_empty() {
            match self.ring.submitter().submit() {
                Ok(0) => return,
                Ok(taken) => {
                    let taken = taken.min(unsent.tokens.len());
                    unsent.tokens.drain(..taken);
                }
                Err(error) => match error.raw_os_error().unwrap_or(libc::EIO) {
                    libc::EINTR => {}
                    libc::EAGAIN | libc::EBUSY | libc::ENOMEM => return,
                    errno => {
                        unsent.broken = Some(errno);
                        let Unsent { tokens, failed, .. } = unsent;
                        failed.extend(tokens.drain(..).map(|token| Done { token, result: -errno }));
                    }
                },
            }
        }
    }

    /// Tells the kernel what buffer of this number is: nothing, where `size` is 0.
    fn register(&self, number: usize, address: u64, size: u64) -> std::io::Result<()> {
        let memory = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: size as usize };
        // SAFETY: the memory stays mapped until it is taken back, as `Tier::attach` requires.
        unsafe { self.ring.submitter().register_buffers_update(number as u32, &[memory], None) }
    }
}

impl Drop for RingFiles {
    /// The kernel takes a ring down when it comes to it. Files and memory are let go at once.
    fn drop(&mut self) {
        let _ = self.ring.submitter().unregister_files();
        if !self.buffers.lock().is_empty() {
            let _ = self.ring.submitter().unregister_buffers();
        }
    }
}

impl Files for RingFiles {
    fn extend(&self, file: usize, from: u64, to: u64) -> Result<(), i32> {
        self.files[file].extend(from, to)
    }

    // SAFETY: as the trait says.
    unsafe fn submit(&self, ops: &[Op]) {
        let mut unsent = self.unsent.lock();
        if let Some(errno) = unsent.broken {
            return unsent.failed.extend(ops.iter().map(|op| Done { token: op.token, result: -errno }));
        }
        let buffers = self.buffers.lock();
        // SAFETY: `unsent` is locked, and whoever touches this queue holds that lock.
        let mut queue = unsafe { self.ring.submission_shared() };
        for op in ops {
            // SAFETY: the buffer is the kernel's until the operation has ended, as this function requires; the file is registered.
            match unsafe { queue.push(&self.entry(op, &buffers)) } {
                Ok(()) => unsent.tokens.push_back(op.token),
                // Not with at most `depth` under way. The caller tries again.
                Err(_) => unsent.failed.push(Done { token: op.token, result: -libc::EAGAIN }),
            }
        }
        drop(queue);
        drop(buffers);
        self.send(&mut unsent);
    }

    fn reap(&self, done: &mut Vec<Done>) {
        let completion = self.completion.lock();
        // SAFETY: `completion` is locked, and whoever touches this queue holds that lock.
        let queue = unsafe { self.ring.completion_shared() };
        done.extend(queue.map(|entry| Done { token: entry.user_data() as u32, result: entry.result() }));
        drop(completion);
        let mut unsent = self.unsent.lock();
        self.send(&mut unsent);
        done.append(&mut unsent.failed);
    }

    fn wait(&self) {
        {
            let mut unsent = self.unsent.lock();
            self.send(&mut unsent);
            if !unsent.failed.is_empty() {
                return;
            }
            if unsent.broken.is_some() || !unsent.tokens.is_empty() {
                drop(unsent);
                return std::thread::sleep(NAP);
            }
        }
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument is passed, and nothing is submitted: this only waits until one entry or more lies in the completion queue.
        let waited = unsafe { self.ring.submitter().enter::<()>(0, 1, GETEVENTS, None) };
        if waited.is_err_and(|error| error.raw_os_error() != Some(libc::EINTR)) {
            std::thread::sleep(NAP);
        }
    }

    // SAFETY: as the trait says.
    unsafe fn attach(&self, memory: *mut u8, size: u64) {
        let mut buffers = self.buffers.lock();
        let mut at = memory as u64;
        let end = at + size;
        while at < end {
            let Some(number) = buffers.iter().position(Option::is_none) else { return };
            let part = (end - at).min(BUFFER_BYTES);
            // Memory that cannot be registered, for the limit on locked memory for instance, is used as any other.
            if self.register(number, at, part).is_err() {
                return;
            }
            buffers[number] = Some((at, part));
            at += part;
        }
    }

    fn detach(&self, memory: *mut u8) {
        let mut buffers = self.buffers.lock();
        let mut at = memory as u64;
        // The parts of one range follow on each other.
        while let Some(number) = buffers.iter().position(|buffer| buffer.is_some_and(|(start, _)| start == at)) {
            let (_, size) = buffers[number].take().expect("found above");
            // An entry that cannot be emptied is not used any more: it has no range here.
            if self.register(number, 0, 0).is_err() {
                buffers[number] = Some((u64::MAX, 0));
            }
            if size < BUFFER_BYTES {
                return;
            }
            at += size;
        }
    }

    fn describe(&self) -> String {
        let files: Vec<String> = self.files.iter().map(PrivateFile::describe).collect();
        let buffers = if self.buffers.lock().is_empty() { " without registered buffers" } else { "" };
        format!("io_uring{buffers}, {}", files.join(", "))
    }
}
