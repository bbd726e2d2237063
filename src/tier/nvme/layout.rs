//! Which byte of the tier lies where in which file.
//!
//! Files of one length are striped as one zone. Where some are longer than others, what they have more is a zone of its own over those alone,
//! and so on; what is left over of a zone that is no multiple of the stripe is one more row, of shorter stripes.

/// A run of bytes that lie together in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
struct Zone {
    /// In the tier.
    start: u64,
    end: u64,
    /// In each of the files.
    base: u64,
    stripe: u64,
    files: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Layout {
    zones: Vec<Zone>,
}

impl Layout {
    /// Files of these lengths. All of them, and `stripe`, are multiples of what is read and written.
    pub(super) fn new(stripe: u64, lengths: &[u64]) -> Layout {
        let mut heights: Vec<u64> = lengths.to_vec();
        heights.sort_unstable();
        heights.dedup();
        let mut layout = Layout { zones: Vec::new() };
        let mut base = 0;
        for height in heights {
            let files: Vec<usize> = (0..lengths.len()).filter(|&file| lengths[file] >= height).collect();
            let rows = (height - base) / stripe;
            layout.add(base, rows * stripe, stripe, &files);
            let rest = (height - base) % stripe;
            layout.add(base + rows * stripe, rest, rest, &files);
            base = height;
        }
        layout
    }

    fn add(&mut self, base: u64, height: u64, stripe: u64, files: &[usize]) {
        if height > 0 {
            let start = self.capacity();
            let end = start + height * files.len() as u64;
            self.zones.push(Zone { start, end, base, stripe, files: files.to_vec() });
        }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.zones.last().map_or(0, |zone| zone.end)
    }

    /// The bytes from `at` on that lie together, at most `most` of them.
    pub(super) fn part(&self, at: u64, most: u64) -> Part {
        let zone = &self.zones[self.zones.partition_point(|zone| zone.end <= at)];
        let (cell, within) = ((at - zone.start) / zone.stripe, (at - zone.start) % zone.stripe);
        let count = zone.files.len() as u64;
        let together = if count == 1 { zone.end - at } else { zone.stripe - within };
        Part {
            file: zone.files[(cell % count) as usize],
            offset: zone.base + cell / count * zone.stripe + within,
            size: together.min(most),
        }
    }

    /// How long each file must be so that the tier's first `end` bytes have a place.
    pub(super) fn lengths(&self, end: u64, files: usize) -> Vec<u64> {
        let mut lengths = vec![0; files];
        for zone in self.zones.iter().take_while(|zone| zone.start < end) {
            let rows = (end.min(zone.end) - zone.start).div_ceil(zone.stripe * zone.files.len() as u64);
            for &file in &zone.files {
                lengths[file] = zone.base + rows * zone.stripe;
            }
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_byte_has_a_place_of_its_own_in_a_file_that_is_long_enough() {
        const UNIT: u64 = 4;
        for lengths in [vec![40], vec![40, 40], vec![40, 40, 40], vec![16, 40, 28], vec![4, 8], vec![60, 4, 60, 20]] {
            for stripe in [4, 8, 16, 64] {
                let layout = Layout::new(stripe, &lengths);
                assert_eq!(layout.capacity(), lengths.iter().sum::<u64>());
                let mut seen = HashSet::new();
                for at in (0..layout.capacity()).step_by(UNIT as usize) {
                    let part = layout.part(at, u64::MAX);
                    assert!(seen.insert((part.file, part.offset)), "{lengths:?} {stripe} {at}");
                    assert!(part.offset + part.size <= lengths[part.file]);
                    let needed = layout.lengths(at + UNIT, lengths.len());
                    assert!(part.offset + UNIT <= needed[part.file], "{lengths:?} {stripe} {at}: {needed:?}");
                    assert!(needed.iter().zip(&lengths).all(|(needed, length)| needed <= length));
                    // What is said to lie together does.
                    let last = layout.part(at + part.size - UNIT, UNIT);
                    assert_eq!((last.file, last.offset), (part.file, part.offset + part.size - UNIT));
                }
            }
        }
    }

    #[test]
    fn neighbours_alternate_between_files() {
        let layout = Layout::new(8, &[32, 32]);
        let files: Vec<usize> = (0..8).map(|stripe| layout.part(stripe * 8, 8).file).collect();
        assert_eq!(files, [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(layout.part(12, 100), Part { file: 1, offset: 4, size: 4 });
    }
}
