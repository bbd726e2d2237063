//! Two addresses, one chunk: what is served at the second lies in the memory of the first.

use super::Space;
use crate::driver::DriverResult;
use crate::units::DevicePtr;

impl Space {
    /// Bytes at addresses whose memory is counted at another address.
    pub fn shared_bytes(&self) -> u64 {
        self.shared.len() as u64 * self.chunk_size
    }

    /// Of the chunk at this address: its bytes, where they are counted at another address.
    pub fn aliased_bytes(&self, addr: u64) -> u64 {
        if self.shared.contains(&addr) { self.chunk_size } else { 0 }
    }

    /// Bytes at addresses that the driver left without memory: it failed to map a chunk, and then to undo that.
    pub fn broken_bytes(&self) -> u64 {
        self.broken.len() as u64 * self.chunk_size
    }

    /// Whether exactly one chunk lies at `addr`, which nothing else shares.
    pub fn is_own_chunk(&self, addr: u64, bytes: u64) -> bool {
        bytes == self.chunk_size && !self.shared.contains(&addr) && !self.broken.contains(&addr)
    }

    /// Maps the chunk at `keep` at `give`, too; the one that was there goes to the reserve. No unfinished work touches either, and what is
    /// in use at `give` has been copied. Where that fails, all is as it was.
    pub fn share(&mut self, keep: u64, give: u64) -> DriverResult<()> {
        let (kept, given) = (self.chunk_at(keep), self.chunk_at(give));
        self.driver.unmap(DevicePtr(give), self.chunk_size)?;
        if let Err(error) = self.map_whole(give, kept) {
            if self.map_whole(give, given).is_err() {
                self.cleanup_failures += 1;
                self.broken.insert(give);
            }
            return Err(error);
        }
        self.set_chunk(give, Some(kept));
        self.shared.insert(give);
        self.reserve.push(given);
        self.mapped -= 1;
        Ok(())
    }

    /// Unmaps `leave`, whose chunk serves `heir`, too. No unfinished work touches it.
    pub fn unshare(&mut self, leave: u64, heir: u64) -> DriverResult<()> {
        self.driver.unmap(DevicePtr(leave), self.chunk_size)?;
        self.set_chunk(leave, None);
        if !self.shared.remove(&leave) {
            self.shared.remove(&heir);
        }
        Ok(())
    }

    /// Maps what an earlier failure has left without memory.
    pub fn heal(&mut self) -> DriverResult<()> {
        while let Some(&addr) = self.broken.first() {
            // Where a mapping without access was left, it is in the way; where none was, this fails.
            let _ = self.driver.unmap(DevicePtr(addr), self.chunk_size);
            self.map_whole(addr, self.chunk_at(addr))?;
            self.broken.remove(&addr);
        }
        Ok(())
    }

    /// Maps a chunk where nothing is mapped, or leaves it so.
    fn map_whole(&self, at: u64, chunk: crate::driver::ChunkHandle) -> DriverResult<()> {
        let ptr = DevicePtr(at);
        self.driver.map(ptr, self.chunk_size, chunk, 0)?;
        self.driver.set_access(ptr, self.chunk_size).inspect_err(|_| {
            // If this fails too, whoever maps there next says so.
            let _ = self.driver.unmap(ptr, self.chunk_size);
        })
    }

    fn chunk_at(&self, addr: u64) -> crate::driver::ChunkHandle {
        let (index, places) = self.places(addr, self.chunk_size);
        self.reservations[index].chunks[places.start].expect("a chunk is mapped here")
    }

    fn set_chunk(&mut self, addr: u64, chunk: Option<crate::driver::ChunkHandle>) {
        let (index, places) = self.places(addr, self.chunk_size);
        self.reservations[index].chunks[places.start] = chunk;
    }
}
