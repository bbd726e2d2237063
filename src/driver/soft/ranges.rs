//! Address ranges that nothing lies behind, for the addresses-only mode.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::units::align_up;

/// Where windows begin: above the heap of a small program and below where Linux places code and mappings.
const LOW: u64 = 7 << 40;
const LOW_END: u64 = 0x50 << 40;
/// Where further windows begin: no user-space address of the host is that high.
const HIGH: u64 = 1 << 47;
const HIGH_END: u64 = 1 << 56;
/// The smallest window.
const WINDOW: u64 = 1 << 40;

/// The address space that all addresses-only devices of this process share, so that their addresses are disjoint.
static WINDOWS: Mutex<Option<Ranges>> = Mutex::new(None);

/// Free ranges of addresses, by start. The lowest that fits is taken; neighbours are merged when given back.
#[derive(Debug)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn new(start: u64, end: u64) -> Ranges {
        Ranges(BTreeMap::from([(start, end)]))
    }

    /// Takes `size` addresses out, aligned.
    pub(super) fn take(&mut self, size: u64, alignment: u64) -> Option<u64> {
        let (free, start, end) = self.0.iter().find_map(|(&free, &end)| {
            let start = align_up(free, alignment)?;
            (start.checked_add(size)? <= end).then_some((free, start, end))
        })?;
        self.0.remove(&free);
        if free < start {
            self.0.insert(free, start);
        }
        if start + size < end {
            self.0.insert(start + size, end);
        }
        Some(start)
    }

    /// Puts back what [`Ranges::take`] gave.
    pub(super) fn give(&mut self, start: u64, size: u64) {
        let (mut start, mut end) = (start, start + size);
        if let Some((&before, &before_end)) = self.0.range(..start).next_back()
            && before_end == start
        {
            self.0.remove(&before);
            start = before;
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        self.0.insert(start, end);
    }
}

/// One device's part of the shared address space. Given back when dropped.
#[derive(Debug)]
pub(super) struct Window {
    start: u64,
    size: u64,
    pub(super) free: Ranges,
}

impl Window {
    /// A window with addresses for 64 times `capacity` bytes, and at least a tebibyte.
    pub(super) fn new(capacity: u64) -> Option<Window> {
        let size = capacity.checked_mul(64)?.checked_next_power_of_two()?.max(WINDOW);
        let mut windows = WINDOWS.lock();
        let windows = windows.get_or_insert_with(|| {
            let mut ranges = Ranges::new(LOW, LOW_END);
            ranges.give(HIGH, HIGH_END - HIGH);
            ranges
        });
        let start = windows.take(size, WINDOW)?;
        Some(Window { start, size, free: Ranges::new(start, start + size) })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(windows) = WINDOWS.lock().as_mut() {
            windows.give(self.start, self.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_taken_lowest_first_and_merge() {
        let mut ranges = Ranges::new(0x1000, 0x9000);
        let a = ranges.take(0x1000, 0x1000).unwrap();
        let b = ranges.take(0x1000, 0x4000).unwrap();
        let c = ranges.take(0x1000, 0x1000).unwrap();
        assert_eq!((a, b, c), (0x1000, 0x4000, 0x2000));
        assert_eq!(ranges.take(0x8000, 1), None);
        for start in [b, a, c] {
            ranges.give(start, 0x1000);
        }
        assert_eq!(ranges.0, BTreeMap::from([(0x1000, 0x9000)]));
    }

    #[test]
    fn windows_are_disjoint() {
        let windows: Vec<Window> = (0..100).map(|_| Window::new(80 << 30).unwrap()).collect();
        let mut starts: Vec<(u64, u64)> = windows.iter().map(|w| (w.start, w.size)).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }
}
