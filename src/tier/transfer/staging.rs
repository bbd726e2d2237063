//! The bounce pool: pinned buffers through which bytes pass on their way to and from tiers that the device does not reach.
//!
//! Loads find two buffers even where saves have all others, so that neither waits for the other: a piece takes all the buffers that it needs
//! at once, and gives them back without waiting for another piece.

use crate::driver::{Driver, DriverError, DriverErrorKind, DriverResult, HostPtr};

/// Fewer buffers than this are of no use: two for a save with a codec, two for a load.
pub(super) const LEAST: usize = 4;

/// One buffer, by its address.
#[derive(Debug)]
pub(super) struct Buffer(usize);

impl Buffer {
    pub(super) fn address(&self) -> usize {
        self.0
    }

    /// The first bytes.
    ///
    /// # Safety
    /// The buffer is as long, and nothing writes it meanwhile: neither a copy of the device nor a read.
    pub(super) unsafe fn bytes(&self, size: usize) -> &[u8] {
        // SAFETY: the memory was initialised when it was allocated, and lives until the engine has ended; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0 as *const u8, size) }
    }

    /// The first bytes, to be written.
    ///
    /// # Safety
    /// As [`Buffer::bytes`], and nothing reads it either.
    pub(super) unsafe fn bytes_mut(&mut self, size: usize) -> &mut [u8] {
        // SAFETY: as above; the buffer is owned, so there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.0 as *mut u8, size) }
    }
}

/// All buffers. Conservation: free + with pieces == total.
#[derive(Debug, Default)]
pub(super) struct Staging {
    memory: Option<HostPtr>,
    free: Vec<Buffer>,
    /// Those that are not lost, and all that there ever were.
    total: usize,
    made: usize,
}

impl Staging {
    pub(super) fn is_made(&self) -> bool {
        self.memory.is_some()
    }

    /// The memory, and its size where a buffer has so many bytes.
    pub(super) fn memory(&self, bytes: u64) -> Option<(HostPtr, u64)> {
        self.memory.map(|memory| (memory, self.made as u64 * bytes))
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Pinned memory for at most `count` buffers of `bytes`: fewer where the host has not as much.
    pub(super) fn pin(driver: &dyn Driver, bytes: u64, count: usize) -> DriverResult<(HostPtr, usize)> {
        let mut count = count;
        loop {
            match driver.alloc_host(bytes * count as u64) {
                Err(error) if error.is_out_of_memory() && count / 2 >= LEAST => count /= 2,
                Err(error) => return Err(error),
                Ok(memory) if memory.0 == 0 => {
                    let detail = "the driver returned no memory";
                    return Err(DriverError::new(DriverErrorKind::Other, "cuMemHostAlloc", detail));
                }
                Ok(memory) => {
                    // SAFETY: the driver has just given out so many bytes of host memory, and nobody else knows them.
                    unsafe { std::ptr::write_bytes(memory.0 as *mut u8, 0, bytes as usize * count) };
                    return Ok((memory, count));
                }
            }
        }
    }

    /// Takes over what [`Staging::pin`] has pinned.
    pub(super) fn fill(&mut self, memory: HostPtr, bytes: u64, count: usize) {
        self.memory = Some(memory);
        self.total = count;
        self.made = count;
        self.free = (0..count).rev().map(|at| Buffer(memory.0 + at * bytes as usize)).collect();
    }

    /// Whether so many buffers are free beyond `left`.
    pub(super) fn has(&self, count: usize, left: usize) -> bool {
        self.free.len() >= count + left
    }

    pub(super) fn take(&mut self) -> Option<Buffer> {
        self.free.pop()
    }

    pub(super) fn give(&mut self, buffer: Buffer) {
        self.free.push(buffer);
    }

    /// A buffer is never used again: something may still write it.
    pub(super) fn lose(&mut self, buffer: Buffer) {
        let Buffer(_) = buffer;
        self.total -= 1;
    }

    /// Frees the memory.
    pub(super) fn clear(&mut self, driver: &dyn Driver) {
        self.free.clear();
        if let Some(memory) = self.memory.take() {
            // Memory that cannot be freed belongs to a context that is gone.
            let _ = driver.free_host(memory);
        }
    }
}
