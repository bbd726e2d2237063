//! What threads count: cells that only their thread writes, and sums of them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::telemetry::{Peak, SIZE_COUNTS, SizeCount};

/// Tags that can be told apart; number 0 is "none".
pub(crate) const TAGS: usize = 64;

/// Adds to a counter of which this thread is the only writer.
#[inline]
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

/// A sum that its thread changes without atomic read-modify-write, and its highest value since it was folded. Kept as the peak and the
/// *room* below it, so that one subtraction both counts and tells a new peak.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Drift {
    pub(super) room: AtomicI64,
    pub(super) peak: AtomicI64,
}

impl Drift {
    #[allow(clippy::declare_interior_mutable_const, reason = "a value to begin with, not one to share")]
    pub(super) const ZERO: Drift = Drift { room: AtomicI64::new(0), peak: AtomicI64::new(0) };

    /// Adds to the sum. Returns whether that makes a new peak, which [`Drift::note_peak`] is to be told.
    #[inline]
    #[must_use]
    pub(super) fn raise(&self, by: u64) -> bool {
        let room = self.room.load(Relaxed) - by as i64;
        self.room.store(room, Relaxed);
        room < 0
    }

    #[inline]
    pub(super) fn lower(&self, by: u64) {
        self.room.store(self.room.load(Relaxed) + by as i64, Relaxed);
    }

    pub(super) fn note_peak(&self) {
        let room = self.room.load(Relaxed);
        if room < 0 {
            self.peak.store(self.peak.load(Relaxed) - room, Relaxed);
            self.room.store(0, Relaxed);
        }
    }

    /// The sum and its peak since the last fold.
    pub(super) fn get(&self) -> (i64, i64) {
        let peak = self.peak.load(Relaxed);
        (peak - self.room.load(Relaxed), peak)
    }

    pub(super) fn fold(&self, into: &Peak) {
        let (sum, peak) = self.get();
        into.fold(sum, peak);
        self.room.store(0, Relaxed);
        self.peak.store(0, Relaxed);
    }

    pub(super) fn is_far(&self, bound: i64) -> bool {
        let (sum, peak) = self.get();
        sum < -bound || peak > bound
    }
}

/// Blocks of one range of sizes, as [`SizeCount`] has them.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) allocs: AtomicU64,
    pub(super) frees: AtomicU64,
    pub(super) allocated: AtomicU64,
    pub(super) freed: AtomicU64,
}

impl Tally {
    #[allow(clippy::declare_interior_mutable_const, reason = "a value to begin with, not one to share")]
    pub(super) const ZERO: Tally = Tally {
        allocs: AtomicU64::new(0),
        frees: AtomicU64::new(0),
        allocated: AtomicU64::new(0),
        freed: AtomicU64::new(0),
    };

    pub(super) fn add_allocs(&self, bytes: u64, count: u64) {
        bump(&self.allocs, count);
        bump(&self.allocated, bytes * count);
    }

    pub(super) fn add_frees(&self, bytes: u64, count: u64) {
        bump(&self.frees, count);
        bump(&self.freed, bytes * count);
    }

    pub(super) fn get(&self) -> SizeCount {
        let (allocs, frees) = (self.allocs.load(Relaxed), self.frees.load(Relaxed));
        SizeCount { up_to: 0, allocs, frees, allocated: self.allocated.load(Relaxed), freed: self.freed.load(Relaxed) }
    }
}

/// So many blocks of one size.
pub(super) fn tally(bytes: u64, allocs: u64, frees: u64) -> SizeCount {
    SizeCount { up_to: 0, allocs, frees, allocated: allocs * bytes, freed: frees * bytes }
}

/// What one thread counts.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Requested bytes since the last fold, and their peak.
    pub(crate) live: (i64, i64),
    /// Bytes of blocks in use since the last fold, and their peak.
    pub(crate) active: (i64, i64),
    pub(crate) hits: u64,
    pub(crate) sizes: [SizeCount; SIZE_COUNTS],
    pub(crate) tags: [i64; TAGS],
}
