//! Which bytes of the tier are taken: an arena over offsets, whose free part grows as the files do.

use std::collections::HashMap;

use super::super::{Slot, TierError};
use super::{NAME, spec::STEP};
use crate::block::{Arena, NodeId, Owner};
use crate::units::GRANULE;

/// Nobody's: there is one owner of all.
const ALL: Owner = Owner::SHARED;

/// All slots, and the room between them.
#[derive(Debug)]
pub(super) struct Places {
    arena: Arena,
    /// By offset.
    slots: HashMap<u64, NodeId>,
    capacity: u64,
    unit: u64,
}

impl Places {
    /// `capacity` bytes, none of which exists yet, in multiples of `unit`.
    pub(super) fn new(capacity: u64, unit: u64) -> Places {
        let mut arena = Arena::default();
        arena.add_segment(0, capacity, ALL);
        Places { arena, slots: HashMap::new(), capacity, unit }
    }

    pub(super) fn used(&self) -> u64 {
        self.arena.used_bytes()
    }

    /// Takes room; where there is none, `back` is asked to make the tier's first so many bytes exist.
    pub(super) fn reserve(
        &mut self,
        size: u64,
        mut back: impl FnMut(u64) -> Result<(), TierError>,
    ) -> Result<Slot, TierError> {
        let full = TierError::Full { tier: NAME.to_string(), size, used: self.used(), capacity: self.capacity };
        let Some(bytes) = size.max(1).checked_next_multiple_of(self.unit) else { return Err(full) };
        let mut node = self.arena.take(ALL, bytes, GRANULE);
        if node.is_none() {
            // A step more than is needed; where the disk has not got that, what is needed.
            let grown = self.grow(bytes, STEP, &mut back).or_else(|error| match error {
                Some(error) if error.is_full() => self.grow(bytes, self.unit, &mut back),
                other => Err(other),
            });
            grown.map_err(|error| error.unwrap_or(full.clone()))?;
            node = self.arena.take(ALL, bytes, GRANULE);
        }
        let node = node.ok_or(full)?;
        let offset = self.arena.node(node).addr;
        self.slots.insert(offset, node);
        Ok(Slot { offset, size })
    }

    /// Makes more of the tier exist so that `bytes` fit. An error of `None`: the tier is not that large.
    fn grow(
        &mut self,
        bytes: u64,
        step: u64,
        back: &mut impl FnMut(u64) -> Result<(), TierError>,
    ) -> Result<(), Option<TierError>> {
        let growth = self.arena.plan_growth(ALL, bytes, GRANULE, step, |_| true).ok_or(None)?;
        back(growth.at + growth.bytes).map_err(Some)?;
        self.arena.fill(ALL, growth.at, growth.bytes, ALL, 0, |_| true);
        Ok(())
    }

    /// Gives a slot back. Whether there was such a slot.
    pub(super) fn release(&mut self, slot: Slot) -> bool {
        if !self.contains(slot) {
            return false;
        }
        let Some(node) = self.slots.remove(&slot.offset) else { return false };
        self.arena.release(node, ALL, 0);
        true
    }

    /// Whether this slot is taken.
    pub(super) fn contains(&self, slot: Slot) -> bool {
        let node = self.slots.get(&slot.offset);
        node.is_some_and(|&node| {
            slot.size.max(1).checked_next_multiple_of(self.unit) == Some(self.arena.node(node).size)
        })
    }

    /// Checks the arena against the slots.
    #[cfg(test)]
    pub(super) fn validate(&self) -> Result<(), String> {
        self.arena.validate()?;
        let used: u64 = self.slots.values().map(|&node| self.arena.node(node).size).sum();
        if used == self.used() { Ok(()) } else { Err(format!("{used} bytes in slots, {} in use", self.used())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_all_room_comes_back() {
        let mut places = Places::new(1 << 20, 4096);
        let mut backed = 0;
        let mut slots = Vec::new();
        while let Ok(slot) = places.reserve(slots.len() as u64 % 5 * 4096 + 1, |end| {
            backed = end;
            Ok(())
        }) {
            slots.push(slot);
            places.validate().unwrap();
        }
        assert!(places.used() > (1 << 20) - 5 * 4096 && backed == 1 << 20, "{} {backed}", places.used());
        let mut ends: Vec<(u64, u64)> = slots.iter().map(|slot| (slot.offset, slot.offset + slot.size)).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        for slot in slots.drain(..).rev() {
            assert!(places.release(slot));
            assert!(!places.release(slot), "given back twice");
            places.validate().unwrap();
        }
        assert_eq!(places.used(), 0);
        assert_eq!(places.reserve(1 << 20, |_| unreachable!("all of it exists")).unwrap().offset, 0);
        let error = places.reserve(1, |_| Ok(())).unwrap_err();
        assert!(matches!(error, TierError::Full { used: 0x10_0000, capacity: 0x10_0000, .. }), "{error}");
        assert!(matches!(places.reserve(u64::MAX, |_| Ok(())), Err(TierError::Full { .. })));
    }

    #[test]
    fn a_disk_without_room_for_a_step_may_have_room_for_the_slot() {
        let full =
            || TierError::Io { tier: NAME.into(), what: String::new(), reason: String::new(), errno: libc::ENOSPC };
        let mut places = Places::new(1 << 40, 4096);
        let disk = 64 << 10;
        let mut back = |end| if end <= disk { Ok(()) } else { Err(full()) };
        let first = places.reserve(60 << 10, &mut back).unwrap();
        assert!(places.reserve(8 << 10, &mut back).unwrap_err().is_full());
        let last = places.reserve(4 << 10, &mut back).unwrap();
        assert_eq!((first.offset, last.offset, places.used()), (0, 60 << 10, disk));
        places.validate().unwrap();
    }
}
