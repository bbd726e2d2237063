//! What is done to files: they grow, and are read and written, many at a time.
//!
//! [`Files`] is the one door to the disk. Tests put another behind it, which fails when told.

pub(super) mod memory;
pub(super) mod private;
pub(super) mod ring;
pub(super) mod threads;

use super::super::Direction;

/// One read or write of one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    /// Comes back with the result.
    pub(super) token: u32,
    pub(super) direction: Direction,
    /// Which file.
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) buffer: *mut u8,
    pub(super) size: u32,
}

// SAFETY: the pointer is only used by who holds the contract of `Files::submit`, which is not bound to a thread.
unsafe impl Send for Op {}

/// How one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) token: u32,
    /// Bytes, possibly fewer than asked for, or an error number, negative.
    pub(super) result: i32,
}

/// The files of a tier.
pub(super) trait Files: Send + Sync {
    /// Makes a file `to` bytes long that was `from` bytes long, if it can so that the disk has room for them.
    ///
    /// # Errors
    /// The system's error number.
    fn extend(&self, file: usize, from: u64, to: u64) -> Result<(), i32>;

    /// Starts reads and writes, no more than the depth that was asked for at once. Each ends some time, well or not.
    ///
    /// # Safety
    /// Nobody else touches the buffers until [`Files::reap`] has said that these ended.
    unsafe fn submit(&self, ops: &[Op]);

    /// Appends what has ended.
    fn reap(&self, done: &mut Vec<Done>);

    /// Returns when something may have ended. Called with something under way, and while nobody calls [`Files::reap`].
    fn wait(&self);

    /// See [`Tier::attach`](super::super::Tier::attach).
    ///
    /// # Safety
    /// As there.
    unsafe fn attach(&self, memory: *mut u8, size: u64) {
        let _ = (memory, size);
    }

    /// See [`Tier::detach`](super::super::Tier::detach).
    fn detach(&self, memory: *mut u8) {
        let _ = memory;
    }

    /// What they are, for reports.
    fn describe(&self) -> String;
}
