//! Size classes of slabs: 512 B steps up to 4 KiB, then 8 classes to a doubling, up to 64 KiB.

use crate::units::{GRANULE, PAGE};

/// The largest size that slabs serve, in bytes.
pub const CLASS_SIZE_MAX: u64 = 64 << 10;

const COUNT: usize = 8 + 4 * 8;

/// Slot sizes in granules, smallest first.
const GRANULES: [u16; COUNT] = {
    let mut table = [0; COUNT];
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

/// `offset * RECIPROCAL >> 32` is `offset / GRANULES` for every offset in a slab (proven by a test over all of them).
const RECIPROCAL: [u32; COUNT] = {
    let mut table = [0; COUNT];
    let mut class = 0;
    while class < COUNT {
        let divisor = GRANULES[class] as u64;

        // One granule needs no reciprocal (2^32 would not fit); `slot_at` treats it apart.
        table[class] = if divisor == 1 { 0 } else { ((1u64 << 32) / divisor + 1) as u32 };
        class += 1;
    }
    table
};

const _: () = assert!(GRANULES[COUNT - 1] as u64 * GRANULE == CLASS_SIZE_MAX);

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
        let granules = ((size + GRANULE - 1) / GRANULE) as u32;
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
        GRANULES[self.0 as usize] as u64 * GRANULE
    }

    /// Slots a slab.
    #[inline]
    pub const fn slots(self) -> u32 {
        (PAGE / self.size()) as u32
    }

    /// The slot that the byte `offset` of a slab lies in. May be one past the last slot, in the slab's unused tail.
    #[inline]
    pub const fn slot_at(self, offset: u64) -> u32 {
        debug_assert!(offset < PAGE);
        if self.0 == 0 {
            return (offset / GRANULE) as u32;
        }
        ((offset / GRANULE * RECIPROCAL[self.0 as usize] as u64) >> 32) as u32
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
    fn slot_at_divides_exactly_for_every_offset() {
        for class in (0..ClassId::COUNT).filter_map(ClassId::from_index) {
            for granule in 0..PAGE / GRANULE {
                let offset = granule * GRANULE;
                assert_eq!(u64::from(class.slot_at(offset)), offset / class.size());
                assert_eq!(u64::from(class.slot_at(offset + GRANULE - 1)), offset / class.size());
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
