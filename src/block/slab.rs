//! One page cut into equal slots.

use super::class::ClassId;
use crate::units::{GRANULE, PAGE};

const WORDS: usize = (PAGE / GRANULE / 64) as usize;

/// Which slots of a slab are free. Slots in magazines count as taken.
///
/// Conservation: free slots == set bits.
#[derive(Debug, Clone)]
pub struct Slab {
    /// Where the slab's page starts.
    pub addr: u64,
    /// What its slots serve.
    pub class: ClassId,
    free: u32,
    /// No word below this one has a set bit.
    first: u32,
    bits: Box<[u64]>,
}

impl Slab {
    /// A slab with all slots free.
    pub fn new(addr: u64, class: ClassId) -> Slab {
        let slots = class.slots() as usize;
        let mut bits = vec![!0u64; slots.div_ceil(64)].into_boxed_slice();
        debug_assert!(bits.len() <= WORDS);
        if !slots.is_multiple_of(64) {
            bits[slots / 64] = (1 << (slots % 64)) - 1;
        }
        Slab { addr, class, free: class.slots(), first: 0, bits }
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

    /// Whether every slot is free.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.free == self.class.slots()
    }

    /// Checks the count against the bits.
    pub fn validate(&self) -> Result<(), String> {
        let bits: u32 = self.bits.iter().map(|word| word.count_ones()).sum();
        let below = self.bits[..self.first as usize].iter().any(|&word| word != 0);
        if bits == self.free && !below {
            Ok(())
        } else {
            Err(format!("slab at {:#x}: {bits} bits set, {} counted, first word {}", self.addr, self.free, self.first))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_every_slot_once_and_the_lowest_first() {
        for class in (0..ClassId::COUNT).filter_map(ClassId::from_index) {
            let mut slab = Slab::new(0, class);
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
}
