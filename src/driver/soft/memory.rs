//! The device's tables of memory: what lies at which address, and which physical bytes that is.
//!
//! Physical bytes have an offset of their own, which is never used twice: it is the offset in the memory file, and what the
//! checker tracks. Chunks, plain memory and pinned host memory all have one.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::store::{Foreign, HOST_PAGE, Store};
use crate::driver::{DriverError, DriverErrorKind, DriverResult, Location};
use crate::units::{DevicePtr, GRANULE, align_up};

/// What the device allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) capacity: u64,
    pub(super) granularity: u64,
    pub(super) vmm: bool,
    pub(super) partial_mapping: bool,
    pub(super) max_mappings: u64,
    pub(super) peer_access: bool,
}

/// A reservation. Its serial number stands for its address in the state hash.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) size: u64,
    pub(super) serial: u64,
}

/// A physical allocation.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) size: u64,
    pub(super) phys: u64,
    pub(super) location: Location,
    /// How many handles are held: one, and one more for each time that it was retained.
    pub(super) handles: u32,
    /// Whose memory it is, if not this device's.
    pub(super) foreign: Option<Foreign>,
    /// Whether another process may have it: its bytes are then kept.
    pub(super) exported: bool,
    /// How many regions map it.
    pub(super) mappings: u32,
}

/// Memory at consecutive addresses.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) size: u64,
    pub(super) phys: u64,
    pub(super) kind: RegionKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegionKind {
    /// A mapping of a chunk.
    Mapped { chunk: u64, access: bool },
    /// Plain device memory.
    Plain,
    /// Pinned host memory.
    Host,
    /// Host memory of the program's own, pinned.
    Registered,
    /// Plain memory of another device.
    Foreign,
}

/// Physical bytes at consecutive addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) ptr: u64,
    pub(super) phys: u64,
    pub(super) size: u64,
}

/// Hashes the serial numbers of chunks, which are distinct and small: one multiplication spreads them.
#[derive(Debug, Default)]
pub(super) struct SerialHasher(u64);

impl Hasher for SerialHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(self.0 ^ u64::from(byte)));
    }

    fn write_u64(&mut self, serial: u64) {
        self.0 = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// All memory of one device.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) rules: Rules,
    pub(super) store: Store,
    pub(super) reservations: BTreeMap<u64, Reservation>,
    /// By address.
    pub(super) regions: BTreeMap<u64, Region>,
    pub(super) chunks: HashMap<u64, Chunk, BuildHasherDefault<SerialHasher>>,
    pub(super) next_serial: u64,
    next_phys: u64,
    /// Device memory in use, in bytes.
    pub(super) used: u64,
    /// Regions that are mappings, and those of them with access.
    pub(super) mapped: u64,
    pub(super) accessible: u64,
}

pub(super) fn invalid(call: &'static str, detail: impl Into<String>) -> DriverError {
    DriverError::new(DriverErrorKind::InvalidValue, call, detail)
}

impl Memory {
    pub(super) fn new(rules: Rules, store: Store) -> Memory {
        Memory {
            rules,
            store,
            reservations: BTreeMap::new(),
            regions: BTreeMap::new(),
            chunks: HashMap::default(),
            next_serial: 1,
            next_phys: 0,
            used: 0,
            mapped: 0,
            accessible: 0,
        }
    }

    pub(super) fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    /// Physical offsets that were never used before.
    pub(super) fn fresh_phys(&mut self, size: u64, call: &'static str) -> DriverResult<u64> {
        let phys = self.next_phys;
        let next = phys.checked_add(size).and_then(|end| align_up(end, HOST_PAGE));
        match next.filter(|&next| next < 1 << 62) {
            Some(next) => {
                self.next_phys = next;
                Ok(phys)
            }
            None => Err(invalid(call, format!("{size} bytes are more than any device has"))),
        }
    }

    /// Fails unless the device has room for so many more bytes.
    pub(super) fn check_room(&self, size: u64, call: &'static str) -> DriverResult<()> {
        let free = self.rules.capacity - self.used;
        if size <= free {
            return Ok(());
        }
        let detail = format!("{size} bytes asked for, {free} of {} free", self.rules.capacity);
        Err(DriverError::new(DriverErrorKind::OutOfMemory, call, detail))
    }

    // ---- plain and host memory ------------------------------------------------------------------------------------

    pub(super) fn alloc_plain(&mut self, size: u64, call: &'static str) -> DriverResult<u64> {
        let size = align_up(size, GRANULE).filter(|&size| size > 0).ok_or_else(|| invalid(call, "size is 0"))?;
        self.check_room(size, call)?;
        let phys = self.fresh_phys(size, call)?;
        let ptr = self.store.map_plain(size, phys, call)?;
        self.used += size;
        self.regions.insert(ptr, Region { size, phys, kind: RegionKind::Plain });
        Ok(ptr)
    }

    pub(super) fn alloc_host(&mut self, size: u64, call: &'static str) -> DriverResult<u64> {
        if size == 0 || size > 1 << 46 {
            return Err(invalid(call, format!("{size} bytes cannot be pinned")));
        }
        let phys = self.fresh_phys(size, call)?;
        let ptr = Store::map_host(size, call)?;
        self.regions.insert(ptr, Region { size, phys, kind: RegionKind::Host });
        Ok(ptr)
    }

    /// The size of the allocation of this kind at `ptr`.
    pub(super) fn region_size(&self, ptr: u64, kind: RegionKind, call: &'static str) -> DriverResult<u64> {
        match self.regions.get(&ptr) {
            Some(region) if region.kind == kind => Ok(region.size),
            _ => Err(invalid(call, format!("{} is not the start of such memory", DevicePtr(ptr)))),
        }
    }

    /// Frees plain or host memory, which [`Memory::region_size`] has found.
    pub(super) fn free_region(&mut self, ptr: u64) -> Option<Extent> {
        let region = self.regions.remove(&ptr)?;
        match region.kind {
            RegionKind::Host => Store::unmap_host(ptr, region.size),
            RegionKind::Foreign => self.store.unmap_plain(ptr, region.size),
            RegionKind::Registered | RegionKind::Mapped { .. } => {}
            RegionKind::Plain => {
                self.store.unmap_plain(ptr, region.size);
                self.store.discard(region.phys, region.size);
                self.used -= region.size;
            }
        }
        Some(Extent { ptr, phys: region.phys, size: region.size })
    }

    // ---- addresses --------------------------------------------------------------------------------------------------

    /// The regions that overlap a range, with their addresses.
    pub(super) fn overlapping(&self, ptr: u64, end: u64) -> impl Iterator<Item = (u64, &Region)> {
        let before = self.regions.range(..ptr).next_back().filter(|(start, region)| *start + region.size > ptr);
        before.into_iter().chain(self.regions.range(ptr..end.max(ptr))).map(|(&start, region)| (start, region))
    }

    /// The start of the last region that overlaps a range, if any does.
    pub(super) fn in_the_way(&self, ptr: u64, end: u64) -> Option<u64> {
        // Regions are disjoint, so only the last one that begins before the end need be looked at.
        let (&start, region) = self.regions.range(..end).next_back()?;
        (start + region.size > ptr).then_some(start)
    }

    /// The physical bytes of those parts of a range at which there is memory, whether or not they may be touched.
    pub(super) fn present(&self, ptr: u64, size: u64) -> Vec<Extent> {
        let end = ptr.saturating_add(size);
        let mut extents: Vec<Extent> = Vec::new();
        for (start, region) in self.overlapping(ptr, end) {
            let from = start.max(ptr);
            let to = (start + region.size).min(end);
            let phys = region.phys + (from - start);
            match extents.last_mut() {
                Some(last) if last.ptr + last.size == from && last.phys + last.size == phys => last.size += to - from,
                _ => extents.push(Extent { ptr: from, phys, size: to - from }),
            }
        }
        extents
    }

    /// The physical bytes of a range that the device may touch: mapped without a gap and with access, or within one
    /// allocation of plain or host memory. No bytes for a size of 0.
    pub(super) fn resolve(&self, ptr: DevicePtr, size: u64, call: &'static str) -> DriverResult<Vec<Extent>> {
        let end = ptr.0.checked_add(size).ok_or_else(|| invalid(call, format!("{ptr} + {size} overflows")))?;
        let mut at = ptr.0;
        for (start, region) in self.overlapping(ptr.0, end) {
            let whole = start <= ptr.0 && end <= start + region.size;
            let problem = match region.kind {
                _ if start > at => break,
                RegionKind::Mapped { access: false, .. } => "access is not set",
                RegionKind::Plain | RegionKind::Host | RegionKind::Registered | RegionKind::Foreign if !whole => {
                    "the range leaves the allocation"
                }
                _ => {
                    at = start + region.size;
                    continue;
                }
            };
            return Err(invalid(call, format!("{size} bytes at {ptr}: {problem} at {:#x}", at.max(start))));
        }
        if at < end {
            return Err(invalid(call, format!("{size} bytes at {ptr}: nothing is mapped at {at:#x}")));
        }
        Ok(self.present(ptr.0, size))
    }

    /// Whether there is host memory at `ptr`: pinned, or a chunk in host memory.
    pub(super) fn is_host(&self, ptr: DevicePtr) -> bool {
        self.overlapping(ptr.0, ptr.0.saturating_add(1)).next().is_some_and(|(_, region)| match region.kind {
            RegionKind::Host | RegionKind::Registered => true,
            RegionKind::Plain | RegionKind::Foreign => false,
            RegionKind::Mapped { chunk, .. } => self.chunks.get(&chunk).is_some_and(|c| c.location == Location::Host),
        })
    }

    /// Whether copies to and from `ptr` take the link between devices and host: what lies there is in host memory, or another device's.
    pub(super) fn is_far(&self, ptr: DevicePtr) -> bool {
        let peer = |chunk| self.chunks.get(&chunk).is_some_and(|c| matches!(c.location, Location::Peer(_)));
        let at = self.overlapping(ptr.0, ptr.0.saturating_add(1)).next();
        self.is_host(ptr) || at.is_some_and(|(_, r)| matches!(r.kind, RegionKind::Mapped { chunk, .. } if peer(chunk)))
    }

    /// A number for an address that is the same in every run: addresses themselves differ from process to process.
    pub(super) fn label(&self, ptr: DevicePtr) -> u64 {
        if ptr.is_null() {
            return 0;
        }
        if let Some((&start, reservation)) = self.reservations.range(..=ptr.0).next_back()
            && ptr.0 - start < reservation.size
        {
            return (reservation.serial << 48) + (ptr.0 - start);
        }
        match self.overlapping(ptr.0, ptr.0.saturating_add(1)).next() {
            Some((start, region)) => region.phys + (ptr.0 - start),
            None => 1,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for (&ptr, region) in &self.regions {
            match region.kind {
                RegionKind::Mapped { .. } | RegionKind::Registered => {}
                RegionKind::Plain | RegionKind::Foreign => self.store.unmap_plain(ptr, region.size),
                RegionKind::Host => Store::unmap_host(ptr, region.size),
            }
        }
        for (&ptr, reservation) in &self.reservations {
            self.store.unreserve(ptr, reservation.size);
        }
    }
}
