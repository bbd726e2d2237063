//! The free ranges of an extent that several blocks share.

use std::collections::{BTreeMap, BTreeSet};

use crate::units::GRANULE;

/// Free ranges, in granules: best fit, the lowest of those that fit equally well; neighbours are one range.
///
/// Conservation: both maps hold the same ranges, and no two of them touch ([`Gaps::validate`]).
#[derive(Debug, Default)]
pub(super) struct Gaps {
    by_start: BTreeMap<u32, u32>,
    by_size: BTreeSet<(u32, u32)>,
}

/// In granules, rounded up.
pub(super) fn granules(size: u64) -> u32 {
    size.div_ceil(GRANULE) as u32
}

impl Gaps {
    /// All of so many granules is free.
    pub(super) fn new(size: u32) -> Gaps {
        let mut gaps = Gaps::default();
        gaps.insert(0, size);
        gaps
    }

    /// The largest range.
    pub(super) fn largest(&self) -> u32 {
        self.by_size.last().map_or(0, |&(size, _)| size)
    }

    fn insert(&mut self, start: u32, size: u32) {
        self.by_start.insert(start, size);
        self.by_size.insert((size, start));
    }

    fn remove(&mut self, start: u32) -> u32 {
        let size = self.by_start.remove(&start).expect("the range is free");
        self.by_size.remove(&(size, start));
        size
    }

    /// Takes `size` granules at a multiple of `alignment`, a power of two. Returns where they are.
    pub(super) fn take(&mut self, size: u32, alignment: u32) -> Option<u32> {
        let place = |start: u32| start.next_multiple_of(alignment.max(1));
        let fits = |&&(room, start): &&(u32, u32)| place(start) - start + size <= room;
        let &(_, start) = self.by_size.range((size, 0)..).find(fits)?;
        let room = self.remove(start);
        let at = place(start);
        if at > start {
            self.insert(start, at - start);
        }
        if at + size < start + room {
            self.insert(at + size, start + room - at - size);
        }
        Some(at)
    }

    /// Gives granules back.
    pub(super) fn give(&mut self, start: u32, size: u32) {
        let (mut start, mut size) = (start, size);
        let below = self.by_start.range(..start).next_back().map(|(&at, &len)| (at, len));
        debug_assert!(below.is_none_or(|(at, len)| at + len <= start), "given back twice");
        if let Some((at, len)) = below.filter(|&(at, len)| at + len == start) {
            self.remove(at);
            (start, size) = (at, len + size);
        }
        if self.by_start.contains_key(&(start + size)) {
            size += self.remove(start + size);
        }
        self.insert(start, size);
    }

    /// How many granules are free.
    #[cfg(test)]
    fn free(&self) -> u32 {
        self.by_start.values().sum()
    }

    /// Checks both maps.
    pub(super) fn validate(&self) -> Result<(), String> {
        let same = self.by_start.len() == self.by_size.len()
            && self.by_start.iter().all(|(&start, &size)| size > 0 && self.by_size.contains(&(size, start)));
        let ends = self.by_start.iter().map(|(&start, &size)| start + size);
        let touch = self.by_start.keys().skip(1).zip(ends).any(|(&next, end)| next <= end);
        if same && !touch { Ok(()) } else { Err(format!("gaps do not agree, or touch: {self:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_one_range_again() {
        let mut gaps = Gaps::new(100);
        let taken: Vec<u32> = [10, 20, 30, 40].map(|size| gaps.take(size, 1).unwrap()).into();
        assert_eq!(taken, [0, 10, 30, 60]);
        assert_eq!((gaps.largest(), gaps.take(1, 1)), (0, None));
        gaps.give(10, 20);
        gaps.give(60, 40);
        assert_eq!((gaps.largest(), gaps.free()), (40, 60));
        assert_eq!(gaps.take(15, 1), Some(10), "the best fit, not the lowest or the largest");
        gaps.give(0, 10);
        gaps.give(30, 30);
        gaps.give(10, 15);
        assert_eq!((gaps.largest(), gaps.free()), (100, 100));
        gaps.validate().unwrap();
    }

    #[test]
    fn alignment_leaves_what_is_below_free() {
        let mut gaps = Gaps::new(64);
        assert_eq!(gaps.take(3, 1), Some(0));
        assert_eq!(gaps.take(8, 16), Some(16));
        assert_eq!(gaps.take(13, 1), Some(3));
        assert_eq!(gaps.take(40, 32), None, "there are 40, but not at a multiple of 32");
        assert_eq!(gaps.take(40, 8), Some(24));
        assert_eq!(gaps.free(), 0);
        gaps.validate().unwrap();
    }
}
