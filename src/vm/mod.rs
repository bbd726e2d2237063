//! Address space and physical memory of one device: reservations, chunks of several sizes, and which chunk is mapped where. Where the
//! driver has no virtual memory management, segments of plain memory take the place of chunks.
//!
//! A chunk has at most one **front**, the mapping that blocks are served from. It may be mapped at other addresses as well: mappings that were
//! its front before. What was submitted to them may still be running, so they are undone later ([`Space::unmap_aliases`]). A chunk without a front is in the **reserve**. Blocks may be served from a chunk at further
//! addresses, which [`Space::share`] adds.
//!
//! Conservation: [`Space::physical_bytes`] == bytes of chunks with a front + of those in the reserve + of plain segments, and each mapping is
//! the front of its chunk, a shared one, an older one that was counted in the chunk, or stuck ([`Space::validate`]).

mod mappings;
mod mesh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mappings::Mappings;

use crate::driver::{ChunkHandle, Driver, DriverResult, Location};
use crate::units::{DevicePtr, PAGE, align_up};

/// A chunk's number, used again when it has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(u32);

/// A piece of physical memory, mapped whole.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    handle: ChunkHandle,
    size: u64,
    /// Where blocks are served from it. `None` in the reserve.
    front: Option<u64>,
    /// All its mappings, the front among them.
    mappings: u32,
    /// Its place in the reserve, if it is there.
    place: u32,
}

/// A range of addresses that was reserved in one piece.
#[derive(Debug, Clone, Copy)]
struct Reservation {
    ptr: DevicePtr,
    size: u64,
}

/// The memory of one device that this allocator holds.
#[derive(Debug)]
pub struct Space {
    driver: Arc<dyn Driver>,
    /// The smallest chunk, a power of two. All others are multiples.
    unit: u64,
    reservations: Vec<Reservation>,
    chunks: Vec<Option<Chunk>>,
    vacant: Vec<u32>,
    /// Every mapping by its address.
    mappings: Mappings,
    /// Mappings where a hole is meant to be: the driver refused to undo what had failed half-way.
    stuck: BTreeSet<u64>,
    /// Mappings besides a chunk's front that blocks are served from.
    shared: BTreeSet<u64>,
    shared_bytes: u64,
    /// Mappings that blocks are served from, and that the driver failed to restore.
    broken: BTreeSet<u64>,
    /// Chunks without a front.
    reserve: Vec<ChunkId>,
    reserve_bytes: u64,
    front_bytes: u64,
    /// Plain segments by address, with their sizes.
    plain: BTreeMap<u64, u64>,
    plain_bytes: u64,
    cleanup_failures: u64,
}

impl Space {
    /// Nothing is reserved yet. `unit` is a power of two of at least [`PAGE`].
    pub fn new(driver: Arc<dyn Driver>, unit: u64) -> Space {
        debug_assert!(unit.is_power_of_two() && unit >= PAGE);
        Space {
            driver,
            unit,
            reservations: Vec::new(),
            chunks: Vec::new(),
            vacant: Vec::new(),
            mappings: Mappings::new(unit),
            stuck: BTreeSet::new(),
            shared: BTreeSet::new(),
            shared_bytes: 0,
            broken: BTreeSet::new(),
            reserve: Vec::new(),
            reserve_bytes: 0,
            front_bytes: 0,
            plain: BTreeMap::new(),
            plain_bytes: 0,
            cleanup_failures: 0,
        }
    }

    /// Bytes of the smallest chunk, of which all sizes are multiples.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// Physical memory held, mapped or not.
    pub fn physical_bytes(&self) -> u64 {
        self.front_bytes + self.reserve_bytes + self.plain_bytes
    }

    /// Chunks and plain segments held.
    pub fn chunk_count(&self) -> u64 {
        (self.chunks.len() - self.vacant.len() + self.plain.len()) as u64
    }

    /// Physical memory in the reserve.
    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// Bytes that blocks may be served from: fronts, shared mappings, and plain segments.
    pub fn mapped_bytes(&self) -> u64 {
        self.front_bytes + self.shared_bytes + self.plain_bytes
    }

    /// Driver calls that failed while giving memory back, and lost it.
    pub fn cleanup_failures(&self) -> u64 {
        self.cleanup_failures
    }

    fn mapped_at(&self, addr: u64) -> ChunkId {
        self.mappings.get(addr).expect("mappings that are named exist")
    }

    fn chunk(&self, id: ChunkId) -> &Chunk {
        self.chunks[id.0 as usize].as_ref().expect("chunks that are named exist")
    }

    fn chunk_mut(&mut self, id: ChunkId) -> &mut Chunk {
        self.chunks[id.0 as usize].as_mut().expect("chunks that are named exist")
    }

    /// Reserves `wanted` bytes of address space, or less, down to `least`, where the driver has no more in one piece.
    pub fn reserve_segment(&mut self, wanted: u64, least: u64) -> DriverResult<(u64, u64)> {
        let round = |size: u64| align_up(size, self.unit).unwrap_or(size);
        let (mut size, least) = (round(wanted.max(least)), round(least));
        loop {
            match self.driver.reserve(size, self.unit) {
                Ok(ptr) => {
                    self.reservations.push(Reservation { ptr, size });
                    self.mappings.add(ptr.0, size);
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
        self.mappings.take(addr);
        true
    }

    /// Creates a chunk into the reserve.
    pub fn create(&mut self, size: u64) -> DriverResult<ChunkId> {
        debug_assert!(size.is_multiple_of(self.unit));
        let handle = self.driver.create(size, Location::Device)?;
        let chunk = Some(Chunk { handle, size, front: None, mappings: 0, place: 0 });
        let id = match self.vacant.pop() {
            Some(id) => {
                self.chunks[id as usize] = chunk;
                ChunkId(id)
            }
            None => {
                self.chunks.push(chunk);
                ChunkId(self.chunks.len() as u32 - 1)
            }
        };
        self.enter_reserve(id);
        Ok(id)
    }

    /// The chunks in the reserve, with their sizes.
    pub fn reserve(&self) -> impl DoubleEndedIterator<Item = (ChunkId, u64)> + '_ {
        self.reserve.iter().map(|&id| (id, self.chunk(id).size))
    }

    /// The chunks whose fronts lie in a range of addresses, whole: addresses, numbers, sizes, in ascending order.
    pub fn fronts(&self, from: u64, to: u64) -> impl DoubleEndedIterator<Item = (u64, ChunkId, u64)> + '_ {
        self.mappings.range(from, to).filter_map(move |(addr, id)| {
            let Chunk { size, front, .. } = *self.chunk(id);
            (addr + size <= to && front == Some(addr)).then_some((addr, id, size))
        })
    }

    /// The bytes of the chunks that lie whole in a range of addresses, all of which is mapped, beside a smaller range at its lower end, and
    /// beside one at its upper end.
    #[inline]
    pub fn whole_beside(&self, from: u64, to: u64, size: u64) -> [u64; 2] {
        self.mappings.whole_beside(from, to, size)
    }

    /// Maps chunks one after the other from `at` on, where nothing is mapped: their fronts from now on. Those that they had are older
    /// mappings then. All or nothing.
    pub fn map(&mut self, at: u64, chunks: &[ChunkId]) -> DriverResult<()> {
        let bytes = chunks.iter().map(|&id| self.chunk(id).size).sum::<u64>();
        debug_assert!(bytes > 0, "nothing is mapped by mapping nothing");
        self.free_stuck(at, at + bytes)?;
        let mut addr = at;
        for &id in chunks {
            let Chunk { handle, size, .. } = *self.chunk(id);
            if let Err(error) = self.driver.map(DevicePtr(addr), size, handle, 0) {
                self.undo_map(at, addr);
                return Err(error);
            }
            self.mappings.insert(addr, id, size);
            self.chunk_mut(id).mappings += 1;
            addr += size;
        }
        if let Err(error) = self.driver.set_access(DevicePtr(at), bytes) {
            self.undo_map(at, addr);
            return Err(error);
        }
        let mut addr = at;
        for &id in chunks {
            let size = self.chunk(id).size;
            if self.chunk_mut(id).front.replace(addr).is_none() {
                self.leave_reserve(id);
                self.front_bytes += size;
            }
            addr += size;
        }
        Ok(())
    }

    #[cold]
    fn undo_map(&mut self, at: u64, end: u64) {
        if at < end && self.unmap(at, end).is_err() {
            // They stay mapped at addresses that are a hole for the arena, until those are wanted.
            self.cleanup_failures += 1;
            self.stuck.extend(self.mappings.range(at, end).map(|(addr, _)| addr));
        }
    }

    fn first_mapping(&self, from: u64, to: u64) -> Option<(u64, ChunkId)> {
        self.mappings.range(from, to).next()
    }

    /// Unmaps all mappings between two addresses, and forgets them.
    fn unmap(&mut self, at: u64, end: u64) -> DriverResult<()> {
        self.driver.unmap(DevicePtr(at), end - at)?;
        let mut from = at;
        while let Some((addr, id)) = self.first_mapping(from, end) {
            self.mappings.remove(addr);
            self.stuck.remove(&addr);
            self.chunk_mut(id).mappings -= 1;
            from = addr + self.unit;
        }
        Ok(())
    }

    /// Unmaps the fronts between two addresses; their chunks go to the reserve. No unfinished work touches the range.
    pub fn withdraw(&mut self, at: u64, end: u64) -> DriverResult<()> {
        let chunks: Vec<ChunkId> = self.fronts(at, end).map(|(_, id, _)| id).collect();
        self.unmap(at, end)?;
        for id in chunks {
            let chunk = self.chunk_mut(id);
            chunk.front = None;
            let size = chunk.size;
            self.front_bytes -= size;
            self.enter_reserve(id);
        }
        Ok(())
    }

    /// Unmaps older mappings between two addresses. No unfinished work touches the range.
    pub fn unmap_aliases(&mut self, at: u64, end: u64) -> DriverResult<()> {
        self.unmap(at, end)
    }

    /// A chunk has no front.
    fn enter_reserve(&mut self, id: ChunkId) {
        self.chunk_mut(id).place = self.reserve.len() as u32;
        self.reserve.push(id);
        self.reserve_bytes += self.chunk(id).size;
    }

    fn leave_reserve(&mut self, id: ChunkId) {
        let place = self.chunk(id).place;
        assert!(self.reserve.swap_remove(place as usize) == id, "without a front, it is in the reserve");
        if let Some(&other) = self.reserve.get(place as usize) {
            self.chunk_mut(other).place = place;
        }
        self.reserve_bytes -= self.chunk(id).size;
    }

    /// Unmaps what is stuck in the range.
    fn free_stuck(&mut self, from: u64, to: u64) -> DriverResult<()> {
        let end = |space: &Space, addr: u64| addr + space.chunk(space.mapped_at(addr)).size;
        // One may begin below the range and reach into it.
        let below = self.stuck.range(..from).next_back().copied().filter(|&addr| end(self, addr) > from);
        let from = below.unwrap_or(from);
        while let Some(&addr) = self.stuck.range(from..to).next() {
            self.unmap(addr, end(self, addr))?;
        }
        Ok(())
    }

    /// Gives chunks of the reserve back to the driver until at most `keep` bytes are left there; not those that are mapped somewhere
    /// still. Returns the bytes released.
    pub fn release_reserve(&mut self, keep: u64) -> u64 {
        self.release_where(keep, |_| true)
    }

    /// Gives chunks of the reserve back to the driver, until that are `bytes`: not these, and not those that are mapped somewhere still. Returns
    /// the bytes released.
    pub fn release_others(&mut self, bytes: u64, keep: &[ChunkId]) -> u64 {
        self.release_where(self.reserve_bytes.saturating_sub(bytes), |id| !keep.contains(&id))
    }

    fn release_where(&mut self, keep: u64, may_go: impl Fn(ChunkId) -> bool) -> u64 {
        // What is stuck still is so afterwards, and stays.
        let _ = self.free_stuck(0, u64::MAX);
        let mut released = 0;
        for id in std::mem::take(&mut self.reserve).into_iter().rev() {
            let Chunk { handle, size, mappings, .. } = *self.chunk(id);
            if self.reserve_bytes <= keep || mappings > 0 || !may_go(id) {
                self.reserve.push(id);
                continue;
            }
            match self.driver.release(handle) {
                Ok(()) => released += size,
                Err(_) => self.cleanup_failures += 1,
            }
            self.reserve_bytes -= size;
            self.chunks[id.0 as usize] = None;
            self.vacant.push(id.0);
        }
        self.reserve.reverse();
        for place in 0..self.reserve.len() {
            self.chunk_mut(self.reserve[place]).place = place as u32;
        }
        released
    }

    /// Allocates a segment of plain memory.
    pub fn alloc_plain(&mut self, size: u64) -> DriverResult<u64> {
        let ptr = self.driver.alloc_plain(size)?;
        self.plain.insert(ptr.0, size);
        self.plain_bytes += size;
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
            self.plain_bytes -= size;
        }
        Ok(())
    }

    /// Checks the conservation equations.
    pub fn validate(&self) -> Result<(), String> {
        let (mut fronts, mut reserve, mut mappings) = (0, 0, 0);
        for (id, chunk) in (0..).map(ChunkId).zip(&self.chunks) {
            let Some(chunk) = chunk else { continue };
            match chunk.front {
                Some(addr) if self.mappings.get(addr) != Some(id) => {
                    return Err(format!("chunk {id:?} is not mapped at its front: {chunk:?}"));
                }
                Some(_) => fronts += chunk.size,
                None => reserve += chunk.size,
            }
            mappings += chunk.mappings as usize;
        }
        let plain = self.plain.values().sum::<u64>();
        let found = (fronts, reserve, plain, mappings);
        let counted = (self.front_bytes, self.reserve_bytes, self.plain_bytes, self.mappings.len());
        if found != counted {
            return Err(format!(
                "bytes of fronts, reserve, plain segments, and mappings: {found:?}, {counted:?} counted"
            ));
        }
        self.validate_shared()?;
        let listed: u64 = self.reserve().map(|(_, size)| size).sum();
        let misplaced = (0..).zip(&self.reserve).any(|(place, &id)| self.chunk(id).place != place);
        if misplaced || listed != reserve || self.stuck.iter().any(|&addr| self.mappings.get(addr).is_none()) {
            return Err(format!(
                "{reserve} bytes of chunks without a front, {listed} in the reserve; stuck {:?}",
                self.stuck
            ));
        }
        for (addr, id) in self.mappings.iter() {
            let size = self.chunk(id).size;
            let whole = self.mappings.whole_beside(addr, addr + size, 0);
            if whole != [size; 2] {
                return Err(format!("a chunk of {size} bytes at {addr:#x}, {whole:?} mapped there"));
            }
        }
        let ends = self.mappings.iter().map(|(addr, id)| addr + self.chunk(id).size);
        let starts = self.mappings.iter().skip(1).map(|(addr, _)| addr);
        match starts.zip(ends).find(|&(next, end)| next < end) {
            Some((next, end)) => Err(format!("a mapping ends at {end:#x}, the next begins at {next:#x}")),
            None => Ok(()),
        }
    }
}

impl Drop for Space {
    /// Unmaps and releases everything, once the device is done: what was freed in stream order may still be in use. Failures have nowhere to
    /// go: the device's owner is going down with the space.
    fn drop(&mut self) {
        let holds_any = self.mappings.len() > 0 || !self.plain.is_empty();
        if holds_any && self.driver.synchronize_device().is_err() {
            // Memory under running work must stay where it is. It goes with the context.
            return;
        }
        let mut open: Option<(u64, u64)> = None;
        let ranges = self.mappings.iter().map(|(addr, id)| (addr, addr + self.chunk(id).size));
        let starts: BTreeSet<u64> = self.reservations.iter().map(|r| r.ptr.0).collect();
        for (addr, end) in ranges {
            // One call for mappings side by side in one reservation.
            open = match open {
                Some((from, to)) if to == addr && !starts.contains(&addr) => Some((from, end)),
                Some((from, to)) => {
                    let _ = self.driver.unmap(DevicePtr(from), to - from);
                    Some((addr, end))
                }
                None => Some((addr, end)),
            };
        }
        if let Some((from, to)) = open {
            let _ = self.driver.unmap(DevicePtr(from), to - from);
        }
        for chunk in self.chunks.iter().flatten() {
            let _ = self.driver.release(chunk.handle);
        }
        for &addr in self.plain.keys() {
            let _ = self.driver.free_plain(DevicePtr(addr));
        }
        for reservation in &self.reservations {
            let _ = self.driver.unreserve(reservation.ptr, reservation.size);
        }
    }
}
