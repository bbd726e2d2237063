//! One chunk, served at several addresses.

use super::Space;
use crate::driver::{ChunkHandle, DriverResult};
use crate::units::DevicePtr;

impl Space {
    /// Bytes at addresses whose memory is counted at another address.
    pub fn shared_bytes(&self) -> u64 {
        self.shared_bytes
    }

    /// Whether blocks are served from the mapping at this address, and its chunk is counted at another one.
    pub fn is_shared(&self, addr: u64) -> bool {
        self.shared.contains(&addr)
    }

    /// Whether a chunk of exactly so many bytes has its front here.
    pub fn is_front(&self, addr: u64, bytes: u64) -> bool {
        let is_it = |id| self.chunk(id).front == Some(addr) && self.chunk(id).size == bytes;
        self.mappings.get(addr).is_some_and(is_it)
    }

    /// Whether blocks are served from this address, and the driver has left it without memory.
    pub fn is_broken(&self, addr: u64) -> bool {
        self.broken.contains(&addr)
    }

    /// Serves what was served from the front at `give` from the chunk at `keep`, of the same size; the chunk that was there goes to the
    /// reserve. No unfinished work touches either address, and what is in use at `give` has been copied. Where that fails, all is as
    /// it was; where the driver even fails to put back what it undid, [`Space::heal`] does that later.
    pub fn share(&mut self, keep: u64, give: u64) -> DriverResult<()> {
        let (kept, given) = (self.mapped_at(keep), self.mapped_at(give));
        let (size, from, to) = (self.chunk(given).size, self.chunk(given).handle, self.chunk(kept).handle);
        assert!(self.is_front(give, size) && self.chunk(kept).size == size, "pages of one size, one of them unshared");
        self.driver.unmap(DevicePtr(give), size)?;
        if let Err(error) = self.map_whole(give, to, size) {
            if self.map_whole(give, from, size).is_err() {
                self.cleanup_failures += 1;
                self.broken.insert(give);
            }
            return Err(error);
        }
        self.mappings.insert(give, kept, size);
        self.chunk_mut(kept).mappings += 1;
        let chunk = self.chunk_mut(given);
        (chunk.front, chunk.mappings) = (None, chunk.mappings - 1);
        self.front_bytes -= size;
        self.enter_reserve(given);
        self.shared.insert(give);
        self.shared_bytes += size;
        Ok(())
    }

    /// Unmaps `leave`, from whose chunk `heir` is served, too. No unfinished work touches it.
    pub fn unshare(&mut self, leave: u64, heir: u64) -> DriverResult<()> {
        let chunk = self.mapped_at(leave);
        let size = self.chunk(chunk).size;
        self.unmap(leave, leave + size)?;
        if !self.shared.remove(&leave) {
            self.shared.remove(&heir);
            self.chunk_mut(chunk).front = Some(heir);
        }
        self.shared_bytes -= size;
        Ok(())
    }

    /// Maps what an earlier failure has left without memory.
    pub fn heal(&mut self) -> DriverResult<()> {
        while let Some(&addr) = self.broken.first() {
            let chunk = *self.chunk(self.mapped_at(addr));
            // A mapping without access may have been left there. Where none was, this may fail or do nothing.
            let _ = self.driver.unmap(DevicePtr(addr), chunk.size);
            self.map_whole(addr, chunk.handle, chunk.size)?;
            self.broken.remove(&addr);
        }
        Ok(())
    }

    /// Maps a chunk where nothing is mapped, or leaves it so.
    fn map_whole(&self, at: u64, chunk: ChunkHandle, size: u64) -> DriverResult<()> {
        self.driver.map(DevicePtr(at), size, chunk, 0)?;
        self.driver.set_access(DevicePtr(at), size).inspect_err(|_| {
            // Where this fails too, the next mapping does.
            let _ = self.driver.unmap(DevicePtr(at), size);
        })
    }

    /// Checks that what is shared is mapped, and no front, and that its chunk has one.
    pub(super) fn validate_shared(&self) -> Result<(), String> {
        let mut bytes = 0;
        for &addr in &self.shared {
            let chunk = self.mappings.get(addr).map(|id| self.chunk(id));
            match chunk.filter(|chunk| chunk.front.is_some_and(|front| front != addr) && chunk.mappings > 1) {
                Some(chunk) => bytes += chunk.size,
                None => return Err(format!("shared mapping at {addr:#x}: {chunk:?}")),
            }
        }
        if bytes == self.shared_bytes {
            Ok(())
        } else {
            Err(format!("{bytes} bytes shared, {} counted", self.shared_bytes))
        }
    }
}
