//! Size classes of slabs: 512 B steps up to 4 KiB, then 8 classes to a doubling, up to 64 KiB.

use crate::units::{GRANULE, PAGE};

/// The largest size that slabs serve, in bytes.
pub const CLASS_SIZE_MAX: u64 = 64 << 10;

const COUNT: usize = 8 + 4 * 8;

/// Slot sizes in granules, smallest first. 64 entries, so that six bits are always an index.
const GRANULES: [u16; 64] = {
    let mut table = [0; 64];
    let mut class = 0;
    while class < COUNT {
        // Eight steps a doubling: 1..=8, then 9..=16 in units of 1, 2, 4, 8 granules.
        let doubling = if class < 8 { 0 } else { (class - 8) / 8 };
        let step = if class < 8 { class + 1 } else { 9 + (class - 8) % 8 };
        table[class] = (step << doubling) as u16;
        class += 1;
    }
    table
};

/// `granule * RECIPROCAL >> 31` is `granule / GRANULES` for every granule of a page (proven by a test over all of them).
const RECIPROCAL: [u32; COUNT] = {
    let mut table = [0; COUNT];
    let mut class = 0;
    while class < COUNT {
        table[class] = (1u32 << 31).div_ceil(GRANULES[class] as u32);
        class += 1;
    }
    table
};

const _: () = assert!(GRANULES[COUNT - 1] as u64 * GRANULE == CLASS_SIZE_MAX);

/// The slot size in granules for a request of so many granules. 256 entries, so that eight bits are always an index; 0 for those that no
/// class serves.
const SERVED_BY: [u8; 256] = {
    let mut table = [0; 256];
    let mut granules = 1;
    while granules as u64 * GRANULE <= CLASS_SIZE_MAX {
        table[granules] = GRANULES[ClassId::for_size(granules as u64 * GRANULE).0 as usize] as u8;
        granules += 1;
    }
    table
};

/// The granules that a block for `size` bytes takes: a slot's up to [`CLASS_SIZE_MAX`], exact above. 0 for a size of 0.
#[inline]
pub const fn block_granules(size: u64) -> u64 {
    let granules = size.wrapping_add(GRANULE - 1) / GRANULE;
    if size <= CLASS_SIZE_MAX { SERVED_BY[granules as u8 as usize] as u64 } else { granules }
}

/// One size class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u8);

impl ClassId {
    /// How many classes there are.
    pub const COUNT: usize = COUNT;

    /// The smallest class that holds `size` bytes, `1..=CLASS_SIZE_MAX`.
    #[inline]
    pub const fn for_size(size: u64) -> ClassId {
        debug_assert!(size > 0 && size <= CLASS_SIZE_MAX);
        let granules = size.div_ceil(GRANULE) as u32;
        if granules <= 8 {
            return ClassId(granules as u8 - 1);
        }
        // The top four bits of `granules - 1` are 8 + step; each doubling has eight steps.
        let doubling = 28 - (granules - 1).leading_zeros();
        let step = ((granules - 1) >> doubling) - 8;
        ClassId((8 + doubling * 8 + step) as u8)
    }

    /// The class with this number, if there is one.
    pub const fn from_index(index: usize) -> Option<ClassId> {
        if index < COUNT { Some(ClassId(index as u8)) } else { None }
    }

    /// The class's number.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes a slot.
    #[inline]
    pub const fn size(self) -> u64 {
        GRANULES[self.0 as usize & 63] as u64 * GRANULE
    }

    /// Slots a page.
    #[inline]
    pub const fn slots(self) -> u32 {
        (PAGE / self.size()) as u32
    }

    /// Slots that begin before byte `offset` of a page.
    #[inline]
    pub const fn slots_below(self, offset: u64) -> u32 {
        offset.div_ceil(self.size()) as u32
    }

    /// What [`ClassId::slot_by_reciprocal`] takes for this class.
    pub const fn reciprocal(self) -> u64 {
        RECIPROCAL[self.0 as usize] as u64
    }

    /// The slot that the byte `offset` of a page lies in, by the class's reciprocal; for 0 always slot 0. May be one past the last slot, in
    /// the page's unused tail.
    #[inline]
    pub const fn slot_by_reciprocal(reciprocal: u64, offset: u64) -> u32 {
        debug_assert!(offset < PAGE);
        ((offset / GRANULE * reciprocal) >> 31) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 1..=CLASS_SIZE_MAX {
            let class = ClassId::for_size(size);
            assert!(class.size() >= size, "{size}");
            assert_eq!(block_granules(size) * GRANULE, class.size());
            if class.index() > 0 {
                assert!(ClassId::from_index(class.index() - 1).unwrap().size() < size, "{size}");
            }
        }
    }

    #[test]
    fn classes_waste_at_most_an_eighth_and_ascend() {
        for index in 1..ClassId::COUNT {
            let (below, class) = (ClassId::from_index(index - 1).unwrap(), ClassId::from_index(index).unwrap());
            assert!(below.size() < class.size());
            let step = class.size() - below.size();
            assert!(step <= GRANULE || step * 8 <= below.size(), "{index}");
        }
        assert_eq!(ClassId::from_index(ClassId::COUNT), None);
    }

    #[test]
    fn reciprocals_divide_exactly_for_every_offset() {
        for class in (0..ClassId::COUNT).filter_map(ClassId::from_index) {
            for granule in 0..PAGE / GRANULE {
                let offset = granule * GRANULE;
                assert_eq!(u64::from(ClassId::slot_by_reciprocal(class.reciprocal(), offset)), offset / class.size());
                assert_eq!(
                    u64::from(ClassId::slot_by_reciprocal(class.reciprocal(), offset + GRANULE - 1)),
                    offset / class.size()
                );
            }
        }
    }

    #[test]
    fn powers_of_two_have_a_class_of_their_own() {
        for shift in 9..=16 {
            assert_eq!(ClassId::for_size(1 << shift).size(), 1 << shift);
        }
    }
}
