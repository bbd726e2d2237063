//! What blocks are told apart by where one is as good as another.

use crate::block::CLASS_SIZE_MAX;
use crate::units::GRANULE;

/// A lane and a block size in granules: blocks of one key serve each other's requests. Kept multiplied by an odd number, which can be
/// undone, and makes the high bits a hash (Knuth's multiplicative hashing; the number is 2^64 / golden ratio). The lowest bit, which
/// that leaves alone, says whether the block is above [`CLASS_SIZE_MAX`]; if it is, the three highest are set, of which nothing but
/// their product would depend: so the keys of large blocks keep to the last eighth of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

const LANE_SHIFT: u32 = 33;
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The inverse of [`SCATTER`] modulo 2^64, by Newton's iteration: each step doubles the bits that are right, from three.
const GATHER: u64 = {
    let mut inverse = SCATTER;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(SCATTER.wrapping_mul(inverse)));
        step += 1;
    }
    assert!(SCATTER.wrapping_mul(inverse) == 1);
    inverse
};

impl Key {
    /// So many of a number's highest bits are set where the block is large.
    pub(crate) const LARGE_BITS: u32 = 3;

    #[inline]
    pub(crate) fn new(lane: LaneBits, granules: u32) -> Key {
        let large = u64::from(u64::from(granules) > CLASS_SIZE_MAX / GRANULE);
        let number = (lane.0 | u64::from(granules) << 1 | large).wrapping_mul(SCATTER);
        Key(number | large.wrapping_neg() << (u64::BITS - Key::LARGE_BITS))
    }

    /// Whether the block is too large for a slab.
    #[inline]
    pub(crate) fn is_large(self) -> bool {
        self.0 & 1 != 0
    }

    /// The key as a number, never 0: no lane is 0.
    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// The key with this number.
    #[inline]
    pub(crate) fn from_number(number: u64) -> Key {
        Key(number)
    }

    #[inline]
    pub(crate) fn lane(self) -> u16 {
        (self.0.wrapping_mul(GATHER) >> LANE_SHIFT) as u16
    }

    #[inline]
    pub(crate) fn granules(self) -> u32 {
        (self.0.wrapping_mul(GATHER) >> 1) as u32
    }

    /// The block size in bytes.
    #[inline]
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.granules()) * GRANULE
    }
}

/// A lane's number where a [`Key`] wants it. 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LaneBits(u64);

impl LaneBits {
    /// No lane.
    pub(crate) const NONE: LaneBits = LaneBits(0);

    pub(crate) fn lane(self) -> u16 {
        (self.0 >> LANE_SHIFT) as u16
    }

    pub(crate) fn new(lane: u16) -> LaneBits {
        LaneBits(u64::from(lane) << LANE_SHIFT)
    }

    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) fn from_number(number: u64) -> LaneBits {
        LaneBits(number)
    }
}
