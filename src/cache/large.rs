//! The few large blocks that a thread keeps.
//!
//! A program that frees a large block often wants one of the same size next, and finds it here. More are not kept: what is free is worth most
//! where it can be put together, so that all of them go back before the pool is asked for a large block, which is then packed into all
//! that there is, and whenever one more is freed than there are places for. So few cost that call little.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::pool::{BlockId, Key, NO_BLOCK};

/// Blocks kept at most.
const PLACES: usize = 4;

/// Free blocks above the largest size class, and their keys. Whose business it is to change them, the [gate](super::gate) says.
#[derive(Debug)]
pub(super) struct LargeBlocks {
    count: AtomicU32,
    /// Up to which count blocks are taken; 0 where they are none of the magazines' business.
    places: AtomicU32,
    keys: [AtomicU64; PLACES],
    blocks: [AtomicU32; PLACES],
}

impl LargeBlocks {
    pub(super) const fn new() -> LargeBlocks {
        LargeBlocks {
            count: AtomicU32::new(0),
            places: AtomicU32::new(0),
            keys: [const { AtomicU64::new(0) }; PLACES],
            blocks: [const { AtomicU32::new(NO_BLOCK) }; PLACES],
        }
    }

    /// Begins anew, with no block, and says whether any are to be kept.
    pub(super) fn reset(&self, open: bool) {
        self.count.store(0, Relaxed);
        self.places.store(if open { PLACES as u32 } else { 0 }, Relaxed);
    }

    /// Takes a block of this key out, if there is one.
    #[inline]
    pub(super) fn take(&self, key: Key) -> Option<BlockId> {
        let count = (self.count.load(Relaxed) as usize).min(PLACES);
        let at = self.keys[..count].iter().rposition(|known| known.load(Relaxed) == key.number())?;
        let block = self.blocks[at].load(Relaxed);
        let last = count - 1;
        self.keys[at].store(self.keys[last].load(Relaxed), Relaxed);
        self.blocks[at].store(self.blocks[last].load(Relaxed), Relaxed);
        self.count.store(last as u32, Relaxed);
        Some(block)
    }

    /// Keeps a block, if there is a place.
    #[inline]
    pub(super) fn put(&self, key: Key, block: BlockId) -> bool {
        let count = self.count.load(Relaxed);
        if count >= self.places.load(Relaxed) {
            return false;
        }
        self.keys[count as usize % PLACES].store(key.number(), Relaxed);
        self.blocks[count as usize % PLACES].store(block, Relaxed);
        self.count.store(count + 1, Relaxed);
        true
    }

    /// Whether one more would need the others to go first.
    pub(super) fn is_full(&self) -> bool {
        self.count.load(Relaxed) >= self.places.load(Relaxed)
    }

    /// Takes all of them out.
    pub(super) fn take_all(&self) -> impl Iterator<Item = BlockId> {
        let count = (self.count.load(Relaxed) as usize).min(PLACES);
        self.count.store(0, Relaxed);
        self.blocks[..count].iter().map(|block| block.load(Relaxed))
    }
}
