//! Which bytes of the tier are taken, and how far the files reach.

use super::super::room::Room;
use super::super::{Slot, TierError};
use super::NAME;
use super::spec::{PAGE, STEP};

/// All slots, in a tier that grows as they are taken.
#[derive(Debug)]
pub(super) struct Places {
    room: Room,
    capacity: u64,
}

impl Places {
    /// `capacity` bytes, none of which exists yet.
    pub(super) fn new(capacity: u64) -> Places {
        Places { room: Room::in_units(capacity, PAGE), capacity }
    }

    pub(super) fn used(&self) -> u64 {
        self.room.used()
    }

    /// Takes room; where there is none, `back` is asked to make the tier's first so many bytes exist.
    pub(super) fn reserve(
        &mut self,
        size: u64,
        mut back: impl FnMut(u64) -> Result<(), TierError>,
    ) -> Result<Slot, TierError> {
        if let Some(slot) = self.room.take(size) {
            return Ok(slot);
        }
        // A step more than is needed; where the disk has not got that, what is needed.
        for step in [STEP, PAGE] {
            let Some(lack) = self.room.lacks(size, step) else { break };
            match back(self.room.made() + lack) {
                Err(error) if error.is_full() && step > PAGE => continue,
                result => result?,
            }
            self.room.grow(lack);
            break;
        }
        let (used, capacity) = (self.used(), self.capacity);
        self.room.take(size).ok_or_else(|| TierError::Full { tier: NAME.to_string(), size, used, capacity })
    }

    /// Gives a slot back. Whether there was such a slot.
    pub(super) fn release(&mut self, slot: Slot) -> bool {
        let taken = self.contains(slot);
        if taken {
            self.room.give(slot);
        }
        taken
    }

    /// Gives back what a slot has beyond `size` bytes.
    pub(super) fn shrink(&mut self, slot: Slot, size: u64) -> Slot {
        if self.contains(slot) { self.room.shrink(slot, size) } else { slot }
    }

    /// Whether this slot is taken.
    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.room.contains(slot)
    }

    #[cfg(test)]
    pub(super) fn validate(&self) -> Result<(), String> {
        self.room.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_all_room_comes_back() {
        let mut places = Places::new(1 << 20);
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
            let smaller = places.shrink(slot, slot.size / 2);
            assert_eq!(smaller.size, slot.size / 2);
            assert!(places.release(smaller));
            assert!(!places.release(smaller), "given back twice");
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
        let mut places = Places::new(1 << 40);
        let disk = 64 << 10;
        let mut back = |end| if end <= disk { Ok(()) } else { Err(full()) };
        let first = places.reserve(60 << 10, &mut back).unwrap();
        assert!(places.reserve(8 << 10, &mut back).unwrap_err().is_full());
        let last = places.reserve(4 << 10, &mut back).unwrap();
        assert_eq!((first.offset, last.offset, places.used()), (0, 60 << 10, disk));
        places.validate().unwrap();
    }
}
