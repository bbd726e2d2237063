//! Virtual memory management, as strict as the real driver: reserve, create, map, set access, unmap, release, unreserve.

use super::memory::{Chunk, Extent, Memory, Region, RegionKind, Reservation, invalid};
use crate::driver::{ChunkHandle, DriverError, DriverErrorKind, DriverResult, Location};
use crate::units::DevicePtr;

impl Memory {
    pub(super) fn check_vmm(&self, call: &'static str) -> DriverResult<()> {
        if self.rules.vmm {
            return Ok(());
        }
        let detail = "this device has no virtual memory management";
        Err(DriverError::new(DriverErrorKind::NotSupported, call, detail))
    }

    /// Fails unless `value` is a positive multiple of the granularity.
    fn check_unit(&self, what: &str, value: u64, call: &'static str) -> DriverResult<()> {
        let unit = self.rules.granularity;
        if value > 0 && value.is_multiple_of(unit) {
            return Ok(());
        }
        Err(invalid(call, format!("{what} {value:#x} is not a positive multiple of the granularity {unit:#x}")))
    }

    /// Checks a range of addresses, and gives its end.
    fn check_range(&self, ptr: DevicePtr, size: u64, call: &'static str) -> DriverResult<u64> {
        self.check_vmm(call)?;
        self.check_unit("address", ptr.0, call)?;
        self.check_unit("size", size, call)?;
        ptr.0.checked_add(size).ok_or_else(|| invalid(call, format!("{ptr} + {size} overflows")))
    }

    pub(super) fn chunk(&self, chunk: ChunkHandle, call: &'static str) -> DriverResult<&Chunk> {
        self.chunks.get(&chunk.0).filter(|c| c.handles > 0).ok_or_else(|| {
            DriverError::new(DriverErrorKind::InvalidHandle, call, format!("there is no chunk {}", chunk.0))
        })
    }

    pub(super) fn reserve(&mut self, size: u64, alignment: u64, call: &'static str) -> DriverResult<DevicePtr> {
        self.check_vmm(call)?;
        self.check_unit("size", size, call)?;
        let unit = self.rules.granularity;
        if alignment != 0 && (!alignment.is_power_of_two() || alignment < unit) {
            let detail = format!("alignment {alignment:#x} is not a power of two of at least {unit:#x}");
            return Err(invalid(call, detail));
        }
        let ptr = self.store.reserve(size, alignment.max(unit), call)?;
        let serial = self.serial();
        self.reservations.insert(ptr, Reservation { size, serial });
        Ok(DevicePtr(ptr))
    }

    pub(super) fn unreserve(&mut self, ptr: DevicePtr, size: u64, call: &'static str) -> DriverResult<()> {
        let end = self.check_range(ptr, size, call)?;
        if self.reservations.get(&ptr.0).is_none_or(|reservation| reservation.size != size) {
            return Err(invalid(call, format!("{size} bytes at {ptr} are not a whole reservation")));
        }
        if let Some(at) = self.in_the_way(ptr.0, end) {
            return Err(invalid(call, format!("{at:#x} is still mapped")));
        }
        self.reservations.remove(&ptr.0);
        self.store.unreserve(ptr.0, size);
        Ok(())
    }

    pub(super) fn create(&mut self, size: u64, location: Location, call: &'static str) -> DriverResult<ChunkHandle> {
        self.check_vmm(call)?;
        self.check_unit("size", size, call)?;
        let counted = if location == Location::Device { size } else { 0 };
        self.check_room(counted, call)?;
        let phys = self.fresh_phys(size, call)?;
        let serial = self.serial();
        self.used += counted;
        self.chunks
            .insert(serial, Chunk { size, phys, location, handles: 1, mappings: 0, foreign: None, exported: false });
        Ok(ChunkHandle(serial))
    }

    /// Gives the handle up. Returns the physical bytes that ended with it.
    pub(super) fn release(&mut self, chunk: ChunkHandle, call: &'static str) -> DriverResult<Option<Extent>> {
        self.check_vmm(call)?;
        self.chunk(chunk, call)?;
        if let Some(entry) = self.chunks.get_mut(&chunk.0) {
            entry.handles -= 1;
        }
        Ok(self.collect(chunk.0))
    }

    /// Frees a chunk's memory where neither handle nor mapping is left.
    fn collect(&mut self, chunk: u64) -> Option<Extent> {
        let entry = self.chunks.get(&chunk).filter(|entry| entry.handles == 0 && entry.mappings == 0)?;
        let extent = Extent { ptr: 0, phys: entry.phys, size: entry.size };
        let own = entry.foreign.is_none();
        if own && entry.location == Location::Device {
            self.used -= entry.size;
        }
        if own && !entry.exported {
            self.store.discard(extent.phys, extent.size);
        }
        self.chunks.remove(&chunk);
        Some(extent)
    }

    /// What [`LatencyModel`](super::LatencyModel) must know of a chunk: its size, and whether it lies in host memory.
    pub(super) fn chunk_cost(&self, chunk: ChunkHandle) -> (u64, bool) {
        self.chunks.get(&chunk.0).map_or((0, false), |c| (c.size, c.location == Location::Host))
    }

    /// How many mappings lie in a range: one, where it is none of ours.
    pub(super) fn mappings_in(&self, ptr: DevicePtr, size: u64) -> u64 {
        (self.overlapping(ptr.0, ptr.0.saturating_add(size)).count() as u64).max(1)
    }

    pub(super) fn map(
        &mut self,
        ptr: DevicePtr,
        size: u64,
        chunk: ChunkHandle,
        offset: u64,
        call: &'static str,
    ) -> DriverResult<()> {
        let end = self.check_range(ptr, size, call)?;
        let entry = self.chunk(chunk, call)?;
        let (chunk_size, chunk_phys) = (entry.size, entry.phys);
        if !self.rules.partial_mapping && (offset != 0 || size != chunk_size) {
            let detail =
                format!("{size} bytes from offset {offset}: a chunk is mapped whole, {chunk_size} bytes from 0");
            return Err(invalid(call, detail));
        }
        if !offset.is_multiple_of(self.rules.granularity) || offset.checked_add(size).is_none_or(|n| n > chunk_size) {
            let detail = format!("{size} bytes from offset {offset} are not units of a chunk of {chunk_size} bytes");
            return Err(invalid(call, detail));
        }
        let home = self.reservations.range(..=ptr.0).next_back();
        if home.is_none_or(|(start, reservation)| end > start + reservation.size) {
            return Err(invalid(call, format!("{size} bytes at {ptr} do not lie in a reservation")));
        }
        if let Some(at) = self.in_the_way(ptr.0, end) {
            return Err(invalid(call, format!("{size} bytes at {ptr}: {at:#x} is mapped already")));
        }
        let phys = chunk_phys + offset;
        match &entry.foreign {
            Some(foreign) => self.store.map(ptr.0, size, offset, Some(foreign), call)?,
            None => self.store.map(ptr.0, size, phys, None, call)?,
        }
        self.regions.insert(ptr.0, Region { size, phys, kind: RegionKind::Mapped { chunk: chunk.0, access: false } });
        self.mapped += 1;
        if let Some(entry) = self.chunks.get_mut(&chunk.0) {
            entry.mappings += 1;
        }
        Ok(())
    }

    /// Fails unless whole mappings fill a range without a gap. Gives the number of those that have no access yet.
    fn check_tiled(&self, ptr: DevicePtr, end: u64, call: &'static str) -> DriverResult<u64> {
        let (mut at, mut closed) = (ptr.0, 0);
        for (start, region) in self.overlapping(ptr.0, end) {
            if start < ptr.0 || start + region.size > end {
                return Err(invalid(call, format!("the mapping at {start:#x} is only partly in the range at {ptr}")));
            }
            if start > at {
                break;
            }
            let RegionKind::Mapped { access, .. } = region.kind else {
                return Err(invalid(call, format!("the memory at {start:#x} is no mapping of a chunk")));
            };
            at = start + region.size;
            closed += u64::from(!access);
        }
        if at == end { Ok(closed) } else { Err(invalid(call, format!("nothing is mapped at {at:#x}"))) }
    }

    /// Unmaps. Returns the physical bytes that ended with their last mapping.
    pub(super) fn unmap(&mut self, ptr: DevicePtr, size: u64, call: &'static str) -> DriverResult<Vec<Extent>> {
        let end = self.check_range(ptr, size, call)?;
        self.check_tiled(ptr, end, call)?;
        self.store.unmap(ptr.0, size, call)?;
        let mut ended = Vec::new();
        while let Some((&at, region)) = self.regions.range(ptr.0..end).next() {
            let kind = region.kind;
            self.regions.remove(&at);
            let RegionKind::Mapped { chunk, access } = kind else { continue };
            self.mapped -= 1;
            self.accessible -= u64::from(access);
            if let Some(entry) = self.chunks.get_mut(&chunk) {
                entry.mappings -= 1;
            }
            ended.extend(self.collect(chunk));
        }
        Ok(ended)
    }

    pub(super) fn set_access(&mut self, ptr: DevicePtr, size: u64, call: &'static str) -> DriverResult<()> {
        let end = self.check_range(ptr, size, call)?;
        let closed = self.check_tiled(ptr, end, call)?;
        if self.accessible + closed > self.rules.max_mappings {
            let detail = format!("{} mappings are more than {}", self.accessible + closed, self.rules.max_mappings);
            return Err(DriverError::new(DriverErrorKind::OutOfMemory, call, detail));
        }
        if !self.rules.peer_access && self.has_peer_memory(ptr.0, end) {
            let detail = format!("the memory at {ptr} is another device's, which this one does not reach");
            return Err(DriverError::new(DriverErrorKind::NotSupported, call, detail));
        }
        self.store.allow(ptr.0, size, call)?;
        for (_, region) in self.regions.range_mut(ptr.0..end) {
            if let RegionKind::Mapped { access, .. } = &mut region.kind {
                *access = true;
            }
        }
        self.accessible += closed;
        Ok(())
    }

    fn has_peer_memory(&self, ptr: u64, end: u64) -> bool {
        self.overlapping(ptr, end).any(|(_, region)| {
            let RegionKind::Mapped { chunk, .. } = region.kind else { return false };
            self.chunks.get(&chunk).is_some_and(|chunk| matches!(chunk.location, Location::Peer(_)))
        })
    }

    /// Takes one more handle to a chunk, which lives on by its mappings or by other handles.
    pub(super) fn retain(&mut self, chunk: ChunkHandle, call: &'static str) -> DriverResult<()> {
        self.check_vmm(call)?;
        let no_chunk =
            || DriverError::new(DriverErrorKind::InvalidHandle, call, format!("there is no chunk {}", chunk.0));
        self.chunks.get_mut(&chunk.0).ok_or_else(no_chunk)?.handles += 1;
        Ok(())
    }

    pub(super) fn export(&mut self, chunk: ChunkHandle, call: &'static str) -> DriverResult<std::os::fd::OwnedFd> {
        self.check_vmm(call)?;
        let entry = self.chunk(chunk, call)?;
        let descriptor = self.store.export(entry.phys, entry.size, entry.foreign.as_ref(), call)?;
        if let Some(entry) = self.chunks.get_mut(&chunk.0) {
            entry.exported = true;
        }
        Ok(descriptor)
    }
}
