//! Address space and physical memory of one device: reservations, the chunks mapped in them, and a reserve of chunks that are
//! mapped nowhere. Where the driver has no virtual memory management, segments of plain memory take their place.
//!
//! Conservation: [`Space::physical_bytes`] == chunk size * (mapped + stuck + reserve) + bytes of plain segments.

mod mesh;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::driver::{ChunkHandle, Driver, DriverResult, Location};
use crate::units::{DevicePtr, PAGE, align_up};

/// A range of addresses, and the chunks mapped in it by their place.
#[derive(Debug)]
struct Reservation {
    ptr: DevicePtr,
    size: u64,
    /// Grows with the highest place in use.
    chunks: Vec<Option<ChunkHandle>>,
}

/// The memory of one device that this allocator holds.
#[derive(Debug)]
pub struct Space {
    driver: Arc<dyn Driver>,
    chunk_size: u64,
    reservations: Vec<Reservation>,
    /// Chunks mapped.
    mapped: u64,
    /// Mapped where a hole is meant to be, by address: the driver refused to undo a mapping that had failed half-way.
    stuck: BTreeMap<u64, ChunkHandle>,
    /// Created, mapped nowhere.
    reserve: Vec<ChunkHandle>,
    /// Plain segments by address, with their sizes.
    plain: BTreeMap<u64, u64>,
    physical: u64,
    cleanup_failures: u64,
    /// Addresses in use whose chunk is counted at another address.
    shared: BTreeSet<u64>,
    /// Addresses in use that the driver left without a mapping.
    broken: BTreeSet<u64>,
}

impl Space {
    /// Nothing is reserved yet. `chunk_size` is a power of two of at least [`PAGE`].
    pub fn new(driver: Arc<dyn Driver>, chunk_size: u64) -> Space {
        debug_assert!(chunk_size.is_power_of_two() && chunk_size >= PAGE);
        Space {
            driver,
            chunk_size,
            reservations: Vec::new(),
            mapped: 0,
            stuck: BTreeMap::new(),
            reserve: Vec::new(),
            plain: BTreeMap::new(),
            physical: 0,
            cleanup_failures: 0,
            shared: BTreeSet::new(),
            broken: BTreeSet::new(),
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

    /// Chunks and plain segments held.
    pub fn chunk_count(&self) -> u64 {
        self.mapped + (self.stuck.len() + self.reserve.len() + self.plain.len()) as u64
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
                    self.reservations.push(Reservation { ptr, size, chunks: Vec::new() });
                    return Ok((ptr.0, size));
                }
                Err(_) if size / 2 >= least => size = round(size / 2),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives back a reservation of [`Space::reserve_segment`] in which nothing is mapped. Returns whether that went well.
    pub fn unreserve_segment(&mut self, addr: u64, size: u64) -> bool {
        let at = self.reservations.iter().position(|r| r.ptr.0 == addr && r.size == size);
        let Some(at) = at.filter(|_| self.free_stuck(addr, addr + size).is_ok()) else { return false };
        if self.driver.unreserve(DevicePtr(addr), size).is_err() {
            self.cleanup_failures += 1;
            return false;
        }
        self.reservations.swap_remove(at);
        true
    }

    /// Creates one chunk into the reserve.
    pub fn create(&mut self) -> DriverResult<()> {
        let chunk = self.driver.create(self.chunk_size, Location::Device)?;
        self.reserve.push(chunk);
        self.physical += self.chunk_size;
        Ok(())
    }

    /// The places of a range's chunks: which reservation, and which of its chunks.
    fn places(&self, at: u64, bytes: u64) -> (usize, Range<usize>) {
        let inside = |r: &Reservation| r.ptr.0 <= at && at + bytes <= r.ptr.0 + r.size;
        let index = self.reservations.iter().position(inside).expect("segments lie in reservations");
        let first = ((at - self.reservations[index].ptr.0) / self.chunk_size) as usize;
        (index, first..first + (bytes / self.chunk_size) as usize)
    }

    /// Maps `bytes` at `at` with chunks of the reserve, which holds enough. All or nothing.
    pub fn map(&mut self, at: u64, bytes: u64) -> DriverResult<()> {
        assert!(bytes.is_multiple_of(self.chunk_size) && bytes <= self.reserve_bytes(), "the reserve is too small");
        self.free_stuck(at, at + bytes)?;
        let (index, places) = self.places(at, bytes);
        let chunks = &mut self.reservations[index].chunks;
        if chunks.len() < places.end {
            chunks.resize(places.end, None);
        }
        for (place, addr) in places.zip((at..).step_by(self.chunk_size as usize)) {
            let chunk = *self.reserve.last().expect("counted above");
            if let Err(error) = self.driver.map(DevicePtr(addr), self.chunk_size, chunk, 0) {
                self.undo_map(at, addr - at);
                return Err(error);
            }
            self.reservations[index].chunks[place] = self.reserve.pop();
            self.mapped += 1;
        }
        self.driver.set_access(DevicePtr(at), bytes).inspect_err(|_| self.undo_map(at, bytes))
    }

    #[cold]
    fn undo_map(&mut self, at: u64, bytes: u64) {
        if bytes > 0 && self.unmap(at, bytes).is_err() {
            // The chunks stay mapped at addresses that are a hole for the arena, until those are wanted.
            self.cleanup_failures += 1;
            let (index, places) = self.places(at, bytes);
            self.mapped -= places.len() as u64;
            let chunks = self.reservations[index].chunks[places].iter_mut().map(|chunk| chunk.take());
            let addrs = (at..).step_by(self.chunk_size as usize);
            self.stuck.extend(addrs.zip(chunks).filter_map(|(addr, chunk)| Some((addr, chunk?))));
        }
    }

    /// Unmaps whole chunks, which go to the reserve. No unfinished work touches the range.
    pub fn unmap(&mut self, at: u64, bytes: u64) -> DriverResult<()> {
        self.driver.unmap(DevicePtr(at), bytes)?;
        let (index, places) = self.places(at, bytes);
        self.mapped -= places.len() as u64;
        let chunks = self.reservations[index].chunks[places].iter_mut();
        self.reserve.extend(chunks.map(|chunk| chunk.take().expect("a chunk is mapped at every step of the range")));
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
        let found: usize = self.reservations.iter().map(|r| r.chunks.iter().flatten().count()).sum();
        if found as u64 != self.mapped + self.shared.len() as u64 {
            return Err(format!("{found} chunks mapped, {} counted", self.mapped));
        }
        let chunks = (self.mapped + self.stuck.len() as u64) * self.chunk_size + self.reserve_bytes();
        let total = chunks + self.plain.values().sum::<u64>();
        if total == self.physical { Ok(()) } else { Err(format!("{total} bytes of chunks, {} counted", self.physical)) }
    }

    /// Bytes of chunks mapped now.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped * self.chunk_size + self.shared_bytes() + self.plain.values().sum::<u64>()
    }
}

impl Drop for Space {
    /// Unmaps and releases everything, once the device is done: what was freed in stream order may still be in use. Failures have nowhere to
    /// go: the device's owner is going down with the space.
    fn drop(&mut self) {
        let holds_any = self.mapped > 0 || !self.stuck.is_empty() || !self.plain.is_empty();
        if holds_any && self.driver.synchronize_device().is_err() {
            // Memory under running work must stay where it is. It goes with the context.
            return;
        }
        for reservation in &self.reservations {
            let addr = |place: usize| DevicePtr(reservation.ptr.0 + place as u64 * self.chunk_size);
            let mut place = 0;
            for run in reservation.chunks.chunk_by(|a, b| a.is_some() == b.is_some()) {
                if run[0].is_some() {
                    let _ = self.driver.unmap(addr(place), run.len() as u64 * self.chunk_size);
                }
                place += run.len();
            }
            for (place, chunk) in reservation.chunks.iter().enumerate() {
                if let Some(chunk) = chunk.filter(|_| !self.shared.contains(&addr(place).0)) {
                    let _ = self.driver.release(chunk);
                }
            }
        }
        for (&addr, &chunk) in &self.stuck {
            let _ = self.driver.unmap(DevicePtr(addr), self.chunk_size);
            let _ = self.driver.release(chunk);
        }
        for chunk in self.reserve.drain(..) {
            let _ = self.driver.release(chunk);
        }
        for &addr in self.plain.keys() {
            let _ = self.driver.free_plain(DevicePtr(addr));
        }
        for reservation in &self.reservations {
            let _ = self.driver.unreserve(reservation.ptr, reservation.size);
        }
    }
}
