//! One page cut into equal slots, or a part of a page. Slabs that share a page own different slots of it.

use super::class::{CLASS_SIZE_MAX, ClassId};
use crate::units::{GRANULE, PAGE};

const WORDS: usize = (PAGE / GRANULE / 64) as usize;

/// Which slots of a slab are free. Slots in magazines count as taken.
///
/// Slots lie where they would in the whole page, and are counted from the first that lies whole in the slab's part. A slab owns all of
/// these until the page's memory is shared with other slabs: then each slot is one slab's alone.
///
/// Conservation: free slots == set bits, all of them of slots that the slab owns.
#[derive(Debug, Clone)]
pub struct Slab {
    /// The first byte of its part of a page.
    pub addr: u64,
    /// The bytes of the part: [`PAGE`], or a smaller power of two from [`CLASS_SIZE_MAX`] on, at a multiple of itself.
    pub size: u64,
    /// What its slots serve.
    pub class: ClassId,
    /// Where slot 0 starts.
    begin: u64,
    free: u32,
    /// No word below this one has a set bit.
    first: u32,
    bits: Box<[u64]>,
    /// How many slots the slab owns.
    slots: u32,
    /// Which these are, where they are not all.
    owned: Option<Box<[u64]>>,
}

/// So many bits that are set, from the lowest.
fn ones(count: u32) -> Box<[u64]> {
    let word = |first: u32| if count - first < 64 { (1 << (count - first)) - 1 } else { !0 };
    (0..count).step_by(64).map(word).collect()
}

/// The places of the bits that are set, from the lowest.
#[inline]
pub fn set_bits(words: impl IntoIterator<Item = u64>) -> impl Iterator<Item = u32> {
    (0..).step_by(64).zip(words).flat_map(|(first, word)| {
        let rest = std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)));
        rest.take_while(|&word| word != 0).map(move |word| first + word.trailing_zeros())
    })
}

fn count(bits: &[u64]) -> u32 {
    bits.iter().map(|word| word.count_ones()).sum()
}

impl Slab {
    /// A slab with all slots free, in a part of a page: [`PAGE`] bytes, or a smaller power of two that is no less than
    /// [`Slab::least`], at a multiple of itself.
    pub fn new(addr: u64, size: u64, class: ClassId) -> Slab {
        debug_assert!(
            size.is_power_of_two() && addr.is_multiple_of(size) && (Slab::least(class)..=PAGE).contains(&size)
        );
        let begin = addr - addr % PAGE + u64::from(class.slots_below(addr % PAGE)) * class.size();
        let slots = ((addr + size - begin) / class.size()) as u32;
        let bits = ones(slots);
        debug_assert!(bits.len() <= WORDS);
        Slab { addr, size, class, begin, free: slots, first: 0, bits, slots, owned: None }
    }

    /// The least bytes of a slab of a class: sixteen slots, or fifteen where one would lie across its border.
    pub const fn least(class: ClassId) -> u64 {
        let sixteen = (16 * class.size()).next_power_of_two();
        if sixteen > CLASS_SIZE_MAX { sixteen } else { CLASS_SIZE_MAX }
    }

    /// Whether it is a whole page.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.size == PAGE
    }

    /// The address of a slot.
    #[inline]
    pub fn slot_addr(&self, slot: u32) -> u64 {
        self.begin + u64::from(slot) * self.class.size()
    }

    /// The slot that contains an address.
    pub fn slot_at(&self, addr: u64) -> Option<u32> {
        let slot = addr.checked_sub(self.begin)? / self.class.size();
        (slot < u64::from(self.places())).then_some(slot as u32)
    }

    /// How many slots lie in it.
    pub fn places(&self) -> u32 {
        ((self.end() - self.begin) / self.class.size()) as u32
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.addr + self.size
    }

    /// Takes the lowest free slot.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        let word = (self.first as usize..self.bits.len()).find(|&word| self.bits[word] != 0)?;
        self.first = word as u32;
        let bit = self.bits[word].trailing_zeros();
        self.bits[word] &= self.bits[word] - 1;
        self.free -= 1;
        Some(word as u32 * 64 + bit)
    }

    /// Takes one particular slot. Returns whether it was free.
    pub fn take_slot(&mut self, slot: u32) -> bool {
        let (word, bit) = ((slot / 64) as usize, slot % 64);
        let was_free = self.bits.get(word).is_some_and(|bits| bits >> bit & 1 != 0);
        if was_free {
            self.bits[word] &= !(1 << bit);
            self.free -= 1;
        }
        was_free
    }

    /// Frees a slot that was taken.
    #[inline]
    pub fn release(&mut self, slot: u32) {
        let (word, bit) = (slot / 64, slot % 64);
        debug_assert!(self.bits[word as usize] >> bit & 1 == 0);
        self.bits[word as usize] |= 1 << bit;
        self.first = self.first.min(word);
        self.free += 1;
    }

    /// Free slots.
    #[inline]
    pub fn free_slots(&self) -> u32 {
        self.free
    }

    /// Whether no slot is free.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.free == 0
    }

    /// The slots that the slab owns.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether every slot is free.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.free == self.slots
    }

    /// The slots that the slab owns, a bit each.
    pub fn owned(&self) -> Box<[u64]> {
        self.owned.clone().unwrap_or_else(|| self.all())
    }

    /// The slots that lie in it, a bit each.
    pub fn all(&self) -> Box<[u64]> {
        ones(self.places())
    }

    /// The slots that are taken, a bit each.
    pub fn taken(&self) -> Box<[u64]> {
        self.owned().iter().zip(&self.bits).map(|(owned, free)| owned & !free).collect()
    }

    /// Bytes of the slots that are taken.
    pub fn taken_bytes(&self) -> u64 {
        u64::from(self.slots - self.free) * self.class.size()
    }

    /// Gives up every free slot: the page is to be shared with a slab that has these.
    pub fn keep_taken(&mut self) {
        let taken = self.taken();
        self.own(taken);
        self.bits.fill(0);
        self.free = 0;
    }

    /// Gives up these slots, none of which is taken: a slab that shares the page has them.
    pub fn cede(&mut self, slots: &[u64]) {
        debug_assert!(self.taken().iter().zip(slots).all(|(taken, ceded)| taken & ceded == 0));
        let kept = self.owned().iter().zip(slots).map(|(owned, ceded)| owned & !ceded).collect();
        self.own(kept);
        self.bits.iter_mut().zip(slots).for_each(|(free, ceded)| *free &= !ceded);
        self.free = count(&self.bits);
    }

    /// Gets these slots, all of them free, from a slab that shared the page.
    pub fn gain(&mut self, slots: &[u64]) {
        let owned = self.owned().iter().zip(slots).map(|(owned, gained)| owned | gained).collect();
        self.own(owned);
        self.bits.iter_mut().zip(slots).for_each(|(free, gained)| *free |= gained);
        self.free = count(&self.bits);
        self.first = 0;
    }

    fn own(&mut self, owned: Box<[u64]>) {
        self.slots = count(&owned);
        self.owned = (owned != self.all()).then_some(owned);
    }

    /// Checks the counts against the bits.
    pub fn validate(&self) -> Result<(), String> {
        let (bits, owned) = (count(&self.bits), self.owned());
        let below = self.bits[..self.first as usize].iter().any(|&word| word != 0);
        let stray = self.bits.iter().zip(&owned).any(|(free, owned)| free & !owned != 0);
        if bits == self.free && !below && !stray && count(&owned) == self.slots {
            Ok(())
        } else {
            Err(format!("slab at {:#x}: {bits} bits set: {self:?}", self.addr))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_every_slot_once_and_the_lowest_first() {
        for class in (0..ClassId::COUNT).filter_map(ClassId::from_index) {
            let mut slab = Slab::new(0, PAGE, class);
            for slot in 0..class.slots() {
                assert_eq!(slab.take(), Some(slot));
            }
            assert!(slab.is_full() && slab.take().is_none());
            slab.release(class.slots() - 1);
            slab.release(3);
            assert_eq!((slab.take(), slab.take(), slab.take()), (Some(3), Some(class.slots() - 1), None));
            (0..class.slots()).for_each(|slot| slab.release(slot));
            assert!(slab.is_empty());
            slab.validate().unwrap();
        }
    }

    #[test]
    fn the_parts_of_a_page_have_different_slots_of_it() {
        for class in (0..ClassId::COUNT).filter_map(ClassId::from_index) {
            let mut size = Slab::least(class);
            while size <= PAGE {
                let mut seen = vec![false; class.slots() as usize];
                for part in 0..PAGE / size {
                    let (from, to) = (3 * PAGE + part * size, 3 * PAGE + (part + 1) * size);
                    let mut slab = Slab::new(from, size, class);
                    slab.validate().unwrap();
                    assert!(slab.slots() >= 15 && slab.is_empty(), "{class:?} {size}");
                    for slot in 0..slab.slots() {
                        assert_eq!(slab.take(), Some(slot));
                        let addr = slab.slot_addr(slot);
                        assert!(from <= addr && addr + class.size() <= to);
                        let in_page = ClassId::slot_by_reciprocal(class.reciprocal(), addr % PAGE);
                        assert_eq!(in_page, class.slots_below(from % PAGE) + slot);
                        assert!(
                            !std::mem::replace(&mut seen[in_page as usize], true),
                            "{class:?} {size}: two have {in_page}"
                        );
                        let last = addr + class.size() - 1;
                        assert_eq!((slab.slot_at(addr), slab.slot_at(last)), (Some(slot), Some(slot)));
                    }
                    assert!(slab.is_full() && slab.places() == slab.slots());
                    // What lies across its borders is no slot of it.
                    let (begin, end) = (slab.slot_addr(0), slab.slot_addr(slab.places()));
                    assert!(begin - from < class.size() && to - end < class.size());
                    assert_eq!((slab.slot_at(begin - 1), slab.slot_at(end)), (None, None));
                    assert!(!slab.take_slot(slab.places()));
                }
                // Only those that lie across a border are nobody's.
                let across = |slot: u64| slot * class.size() / size != ((slot + 1) * class.size() - 1) / size;
                assert!((0..).zip(&seen).all(|(slot, &seen)| seen != across(slot)), "{class:?} {size}");
                size *= 2;
            }
        }
    }

    #[test]
    fn slabs_that_share_a_page_hand_out_each_slot_once() {
        for class in (0..ClassId::COUNT).filter_map(ClassId::from_index) {
            let (mut keep, mut give) = (Slab::new(0, PAGE, class), Slab::new(PAGE, PAGE, class));
            let mut seen = vec![0; class.slots() as usize];
            (0..class.slots()).step_by(3).for_each(|slot| assert!(keep.take_slot(slot)));
            (1..class.slots()).step_by(3).for_each(|slot| assert!(give.take_slot(slot)));
            give.keep_taken();
            keep.cede(&give.owned());
            assert!(give.is_full() && !give.is_empty());
            give.release(1);
            assert!(give.take_slot(1) && !give.take_slot(0) && !keep.take_slot(1));
            for slab in [&mut keep, &mut give] {
                (0..class.slots()).for_each(|slot| seen[slot as usize] += u32::from(slab.take_slot(slot)));
                slab.validate().unwrap();
            }
            (0..class.slots()).for_each(|slot| assert_eq!(seen[slot as usize], u32::from(slot % 3 == 2)));
            // The second one is emptied, and the first has the page to itself again.
            (1..class.slots()).step_by(3).for_each(|slot| give.release(slot));
            assert!(give.is_empty());
            keep.gain(&give.owned());
            keep.validate().unwrap();
            (0..class.slots()).filter(|slot| slot % 3 != 1).for_each(|slot| keep.release(slot));
            assert!(keep.is_empty() && keep.free_slots() == class.slots());
            keep.validate().unwrap();
        }
    }
}
