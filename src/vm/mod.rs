//! Address space and physical memory of one device: reservations, the chunks mapped in them, and a reserve of chunks that are
//! mapped nowhere. Where the driver has no virtual memory management, segments of plain memory take their place.
//!
//! Conservation: [`Space::physical_bytes`] == chunk size * (mapped + stuck + reserve) + bytes of plain segments.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::driver::{ChunkHandle, Driver, DriverResult, Location};
use crate::units::{DevicePtr, PAGE, align_up};

/// The memory of one device that this allocator holds.
#[derive(Debug)]
pub struct Space {
    driver: Arc<dyn Driver>,
    chunk_size: u64,
    reservations: Vec<(DevicePtr, u64)>,
    /// By address.
    mapped: BTreeMap<u64, ChunkHandle>,
    /// Mapped where a hole is meant to be, by address: the driver refused to undo a mapping that had failed half-way.
    stuck: BTreeMap<u64, ChunkHandle>,
    /// Created, mapped nowhere.
    reserve: Vec<ChunkHandle>,
    /// Plain segments by address, with their sizes.
    plain: BTreeMap<u64, u64>,
    physical: u64,
    cleanup_failures: u64,
}

impl Space {
    /// Nothing is reserved yet. `chunk_size` is a power of two of at least [`PAGE`].
    pub fn new(driver: Arc<dyn Driver>, chunk_size: u64) -> Space {
        debug_assert!(chunk_size.is_power_of_two() && chunk_size >= PAGE);
        Space {
            driver,
            chunk_size,
            reservations: Vec::new(),
            mapped: BTreeMap::new(),
            stuck: BTreeMap::new(),
            reserve: Vec::new(),
            plain: BTreeMap::new(),
            physical: 0,
            cleanup_failures: 0,
        }
    }

    /// Bytes a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    /// Physical memory held, mapped or not.
    pub fn physical_bytes(&self) -> u64 {
        self.physical
    }

    /// Physical memory in the reserve.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve.len() as u64 * self.chunk_size
    }

    /// Driver calls that failed while giving memory back, and lost it.
    pub fn cleanup_failures(&self) -> u64 {
        self.cleanup_failures
    }

    /// Reserves `wanted` bytes of address space, or less, down to `least`, where the driver has no more in one piece.
    pub fn reserve_segment(&mut self, wanted: u64, least: u64) -> DriverResult<(u64, u64)> {
        let round = |size: u64| align_up(size, self.chunk_size).unwrap_or(size);
        let (mut size, least) = (round(wanted.max(least)), round(least));
        loop {
            match self.driver.reserve(size, self.chunk_size) {
                Ok(ptr) => {
                    self.reservations.push((ptr, size));
                    return Ok((ptr.0, size));
                }
                Err(_) if size / 2 >= least => size = round(size / 2),
                Err(error) => return Err(error),
            }
        }
    }

    /// Creates one chunk into the reserve.
    pub fn create(&mut self) -> DriverResult<()> {
        let chunk = self.driver.create(self.chunk_size, Location::Device)?;
        self.reserve.push(chunk);
        self.physical += self.chunk_size;
        Ok(())
    }

    /// Maps `bytes` at `at` with chunks of the reserve, which holds enough. All or nothing.
    pub fn map(&mut self, at: u64, bytes: u64) -> DriverResult<()> {
        assert!(bytes.is_multiple_of(self.chunk_size) && bytes <= self.reserve_bytes(), "the reserve is too small");
        self.free_stuck(at, at + bytes)?;
        let addrs = (at..at + bytes).step_by(self.chunk_size as usize);
        for addr in addrs {
            let chunk = *self.reserve.last().expect("counted above");
            if let Err(error) = self.driver.map(DevicePtr(addr), self.chunk_size, chunk, 0) {
                self.undo_map(at, addr - at);
                return Err(error);
            }
            self.reserve.pop();
            self.mapped.insert(addr, chunk);
        }
        self.driver.set_access(DevicePtr(at), bytes).inspect_err(|_| self.undo_map(at, bytes))
    }

    #[cold]
    fn undo_map(&mut self, at: u64, bytes: u64) {
        if bytes > 0 && self.unmap(at, bytes).is_err() {
            // The chunks stay mapped at addresses that are a hole for the arena, until those are wanted.
            self.cleanup_failures += 1;
            let mut rest = self.mapped.split_off(&at);
            self.mapped.append(&mut rest.split_off(&(at + bytes)));
            self.stuck.append(&mut rest);
        }
    }

    /// Unmaps whole chunks, which go to the reserve. No unfinished work touches the range.
    pub fn unmap(&mut self, at: u64, bytes: u64) -> DriverResult<()> {
        self.driver.unmap(DevicePtr(at), bytes)?;
        for addr in (at..at + bytes).step_by(self.chunk_size as usize) {
            let chunk = self.mapped.remove(&addr).expect("a chunk is mapped at every step of the range");
            self.reserve.push(chunk);
        }
        Ok(())
    }

    /// Unmaps what is stuck in the range into the reserve.
    fn free_stuck(&mut self, from: u64, to: u64) -> DriverResult<()> {
        while let Some((&addr, &chunk)) = self.stuck.range(from..to).next() {
            self.driver.unmap(DevicePtr(addr), self.chunk_size)?;
            self.stuck.remove(&addr);
            self.reserve.push(chunk);
        }
        Ok(())
    }

    /// Gives chunks of the reserve back to the driver until at most `keep` bytes are left there. Returns the bytes released.
    pub fn release_reserve(&mut self, keep: u64) -> u64 {
        // What is stuck still is so afterwards, and counted.
        let _ = self.free_stuck(0, u64::MAX);
        let mut released = 0;
        while self.reserve_bytes() > keep {
            let Some(chunk) = self.reserve.pop() else { break };
            match self.driver.release(chunk) {
                Ok(()) => released += self.chunk_size,
                Err(_) => self.cleanup_failures += 1,
            }
            self.physical -= self.chunk_size;
        }
        released
    }

    /// Allocates a segment of plain memory.
    pub fn alloc_plain(&mut self, size: u64) -> DriverResult<u64> {
        let ptr = self.driver.alloc_plain(size)?;
        self.plain.insert(ptr.0, size);
        self.physical += size;
        Ok(ptr.0)
    }

    /// The bytes of the plain segment that starts at `addr`, if one does.
    pub fn plain_segment(&self, addr: u64) -> Option<u64> {
        self.plain.get(&addr).copied()
    }

    /// Frees a segment of plain memory.
    pub fn free_plain(&mut self, addr: u64) -> DriverResult<()> {
        self.driver.free_plain(DevicePtr(addr))?;
        if let Some(size) = self.plain.remove(&addr) {
            self.physical -= size;
        }
        Ok(())
    }

    /// Checks the conservation equation.
    pub fn validate(&self) -> Result<(), String> {
        let chunks = (self.mapped.len() + self.stuck.len() + self.reserve.len()) as u64 * self.chunk_size;
        let total = chunks + self.plain.values().sum::<u64>();
        if total == self.physical { Ok(()) } else { Err(format!("{total} bytes of chunks, {} counted", self.physical)) }
    }

    /// Bytes of chunks mapped now.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped.len() as u64 * self.chunk_size + self.plain.values().sum::<u64>()
    }
}

impl Drop for Space {
    /// Unmaps and releases everything. Failures have nowhere to go: the device's owner is going down with the space.
    fn drop(&mut self) {
        let mut mapped = std::mem::take(&mut self.mapped);
        mapped.append(&mut self.stuck);
        let mut run: Option<(u64, u64)> = None;
        for &addr in mapped.keys() {
            run = match run {
                Some((start, end)) if end == addr => Some((start, end + self.chunk_size)),
                Some((start, end)) => {
                    let _ = self.driver.unmap(DevicePtr(start), end - start);
                    Some((addr, addr + self.chunk_size))
                }
                None => Some((addr, addr + self.chunk_size)),
            };
        }
        if let Some((start, end)) = run {
            let _ = self.driver.unmap(DevicePtr(start), end - start);
        }
        for chunk in mapped.into_values().chain(self.reserve.drain(..)) {
            let _ = self.driver.release(chunk);
        }
        for &addr in self.plain.keys() {
            let _ = self.driver.free_plain(DevicePtr(addr));
        }
        for &(ptr, size) in &self.reservations {
            let _ = self.driver.unreserve(ptr, size);
        }
    }
}
