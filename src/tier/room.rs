//! Which bytes of a tier are taken: the block core's arena, over a tier that grows from its beginning.

use std::collections::BTreeMap;

use super::Slot;
use crate::block::{Arena, NodeId, Owner};
use crate::units::{GRANULE, align_down, align_up};

/// Slots of so many bytes and more begin at multiples of it, so that unbuffered file I/O takes them as they lie there.
const UNIT: u64 = 4096;

/// See the module's documentation. Conservation: what slots take, what is free and what is not made yet is the capacity.
#[derive(Debug)]
pub(super) struct Room {
    arena: Arena,
    /// By offset.
    taken: BTreeMap<u64, NodeId>,
    capacity: u64,
    made: u64,
    unit: u64,
}

impl Room {
    /// Room for `capacity` bytes, of which none is there yet.
    pub(super) fn new(capacity: u64) -> Room {
        Room::in_units(capacity, GRANULE)
    }

    /// The same, where slots take whole multiples of `unit`.
    pub(super) fn in_units(capacity: u64, unit: u64) -> Room {
        let capacity = align_down(capacity, unit);
        let mut arena = Arena::default();
        if capacity > 0 {
            arena.add_segment(0, capacity, Owner::SHARED);
        }
        Room { arena, taken: BTreeMap::new(), capacity, made: 0, unit }
    }

    /// The next `bytes` are there.
    pub(super) fn grow(&mut self, bytes: u64) {
        let bytes = bytes.min(self.capacity - self.made);
        if bytes > 0 {
            self.arena.fill(Owner::SHARED, self.made, bytes, Owner::SHARED, 0, |owner| owner == Owner::SHARED);
            self.made += bytes;
        }
    }

    pub(super) fn made(&self) -> u64 {
        self.made
    }

    pub(super) fn used(&self) -> u64 {
        self.arena.used_bytes()
    }

    /// How much has to be made so that `size` bytes fit for which there is no room now, in multiples of `step` or up to the end. `None`: more
    /// than there can be.
    #[cfg(all(feature = "nvme", target_os = "linux"))]
    pub(super) fn lacks(&self, size: u64, step: u64) -> Option<u64> {
        let whole = align_up(size.max(1), self.unit)?;
        let growth = self.arena.plan_growth(Owner::SHARED, whole, UNIT, step, |owner| owner == Owner::SHARED)?;
        Some(growth.at + growth.bytes - self.made)
    }

    /// Whether this slot is taken.
    #[cfg(all(feature = "nvme", target_os = "linux"))]
    pub(super) fn contains(&self, slot: Slot) -> bool {
        let taken = self.taken.get(&slot.offset).map(|&id| self.arena.node(id).size);
        taken.is_some_and(|size| align_up(slot.size.max(1), self.unit) == Some(size))
    }

    pub(super) fn take(&mut self, size: u64) -> Option<Slot> {
        let whole = align_up(size.max(1), self.unit)?;
        let id = self.arena.take(Owner::SHARED, whole, if whole < UNIT { GRANULE } else { UNIT })?;
        let offset = self.arena.node(id).addr;
        self.taken.insert(offset, id);
        Some(Slot { offset, size })
    }

    /// Gives a slot back; one that was never given out is none.
    pub(super) fn give(&mut self, slot: Slot) {
        if let Some(id) = self.taken.remove(&slot.offset) {
            self.arena.release(id, Owner::SHARED, 0);
        }
    }

    /// Gives back what a slot has beyond `size` bytes.
    pub(super) fn shrink(&mut self, slot: Slot, size: u64) -> Slot {
        let whole = align_up(size.max(1), self.unit).unwrap_or(u64::MAX);
        let Some(&id) = self.taken.get(&slot.offset).filter(|&&id| whole < self.arena.node(id).size) else {
            return Slot { size: size.min(slot.size), ..slot };
        };
        let free = self.arena.release(id, Owner::SHARED, 0);
        let id = self.arena.take_at(free, slot.offset, whole);
        self.taken.insert(slot.offset, id);
        Slot { size, ..slot }
    }

    #[cfg(test)]
    pub(super) fn validate(&self) -> Result<(), String> {
        self.arena.validate()?;
        let listed: u64 = self.taken.values().map(|&id| self.arena.node(id).size).sum();
        if listed != self.used() || self.taken.iter().any(|(&at, &id)| self.arena.node(id).addr != at) {
            return Err(format!("{listed} bytes listed, {} used", self.used()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_and_come_back_whole() {
        let mut room = Room::new(1 << 20);
        assert_eq!(room.take(1), None);
        room.grow(512 << 10);
        room.grow(1 << 20);
        assert_eq!(room.made(), 1 << 20);
        let a = room.take(100).unwrap();
        let b = room.take(10_000).unwrap();
        assert_eq!((a.offset % GRANULE, b.offset % UNIT, b.size), (0, 0, 10_000));
        assert_eq!(room.used(), 512 + 10_240);
        let b = room.shrink(b, 5_000);
        assert_eq!((b.size, room.used()), (5_000, 512 + 5_120));
        room.validate().unwrap();
        // One byte more is rounded up to the same granules.
        assert_eq!(room.shrink(b, 4_999).size, 4_999);
        for slot in [b, a] {
            room.give(slot);
            room.validate().unwrap();
        }
        room.give(a);
        assert_eq!(room.take(1 << 20), Some(Slot { offset: 0, size: 1 << 20 }));
    }
}
