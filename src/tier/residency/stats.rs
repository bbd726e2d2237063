//! Evictable memory in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::stage::Stage;
use super::{TierKind, Tiers};

/// A tier in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierUse {
    /// Its name.
    pub name: String,
    /// What it is made of, and by which means it goes about it.
    pub description: String,
    /// What kind of memory it is.
    pub kind: TierKind,
    /// Bytes that it can hold.
    pub capacity: u64,
    /// Bytes that are taken, with what rounding adds.
    pub used: u64,
    /// Bytes stored there, ever, as they are stored.
    pub bytes_in: u64,
    /// Bytes had back from there, ever, as they are stored.
    pub bytes_out: u64,
}

/// The evictable memory of a device in numbers. Bytes are of whole extents, as they move, unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TierStats {
    /// Evictable blocks.
    pub blocks: u64,
    /// Their bytes, as requested.
    pub requested: u64,
    /// Ranges of addresses that they lie in.
    pub extents: u64,
    /// Bytes on the device.
    pub resident: u64,
    /// Bytes that are pinned.
    pub pinned: u64,
    /// Bytes in tiers.
    pub away: u64,
    /// Bytes that are nowhere: to be computed again, or not wanted.
    pub dropped: u64,
    /// Bytes on their way, in whatever direction.
    pub moving: u64,
    /// The tiers, the fastest first.
    pub tiers: Vec<TierUse>,
    /// Extents that went to a tier, ever.
    pub evictions: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Extents whose bytes were given up.
    pub drops: u64,
    /// Extents that went on to a slower tier.
    pub spills: u64,
    /// Extents that came back from a tier.
    pub restores: u64,
    /// Their bytes.
    pub restored_bytes: u64,
    /// Blocks that were computed again.
    pub recomputes: u64,
    /// Transfers, callbacks and calls of the driver that failed.
    pub failures: u64,
    /// Transfers of which the driver could not say any more whether they are done: their room in a tier is not used again.
    pub abandoned: u64,
    /// How long calls have waited for all that, by the driver's clock, in nanoseconds.
    pub stall_ns: u64,
    /// Of that, how long for copies, reads and writes under way: the rest is what the calls of the driver cost, and waits for streams.
    pub transfer_wait_ns: u64,
    /// Whether the device sleeps.
    pub asleep: bool,
    /// Host memory for blocks and extents, in bytes.
    pub metadata: u64,
}

/// What is counted as it happens.
#[derive(Debug, Default)]
pub(super) struct Counts {
    evictions: AtomicU64,
    evicted_bytes: AtomicU64,
    drops: AtomicU64,
    spills: AtomicU64,
    restores: AtomicU64,
    restored_bytes: AtomicU64,
    recomputes: AtomicU64,
    failures: AtomicU64,
    stall_ns: AtomicU64,
    /// By tier: in and out.
    moved: Vec<[AtomicU64; 2]>,
}

impl Counts {
    pub(super) fn new(tiers: usize) -> Counts {
        Counts { moved: (0..tiers).map(|_| Default::default()).collect(), ..Counts::default() }
    }

    pub(super) fn evicted(&self, bytes: u64) {
        self.evictions.fetch_add(1, Relaxed);
        self.evicted_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn restored(&self, bytes: u64) {
        self.restores.fetch_add(1, Relaxed);
        self.restored_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn stored(&self, tier: usize, bytes: u64) {
        self.moved[tier][0].fetch_add(bytes, Relaxed);
    }

    pub(super) fn loaded(&self, tier: usize, bytes: u64) {
        self.moved[tier][1].fetch_add(bytes, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.drops.fetch_add(1, Relaxed);
    }

    pub(super) fn spilled(&self) {
        self.spills.fetch_add(1, Relaxed);
    }

    pub(super) fn recomputed(&self) {
        self.recomputes.fetch_add(1, Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    pub(super) fn stalled(&self, ns: u64) {
        self.stall_ns.fetch_add(ns, Relaxed);
    }
}

impl Tiers {
    /// All of it in numbers.
    pub(crate) fn stats(&self) -> TierStats {
        // What nobody waits for has its place until somebody looks.
        self.engine.pump();
        let table = self.lock();
        let (counts, engine) = (&self.counts, self.engine.stats());
        let read = |count: &AtomicU64| count.load(Relaxed);
        let mut stats = TierStats {
            blocks: table.objects.len() as u64,
            requested: table.objects.values().map(|object| object.requested).sum(),
            pinned: table.pinned_bytes,
            evictions: read(&counts.evictions),
            evicted_bytes: read(&counts.evicted_bytes),
            drops: read(&counts.drops),
            spills: read(&counts.spills),
            restores: read(&counts.restores),
            restored_bytes: read(&counts.restored_bytes),
            recomputes: read(&counts.recomputes),
            failures: read(&counts.failures),
            abandoned: engine.abandoned,
            stall_ns: read(&counts.stall_ns),
            transfer_wait_ns: engine.stall_ns,
            asleep: table.asleep,
            metadata: table.metadata_bytes(),
            ..TierStats::default()
        };
        for (_, extent) in table.extents() {
            stats.extents += 1;
            let bytes = match &extent.stage {
                Stage::Away { .. } | Stage::Spilling { .. } => &mut stats.away,
                Stage::Dropped | Stage::Blank => &mut stats.dropped,
                _ => &mut stats.resident,
            };
            *bytes += extent.size;
            stats.moving += if extent.stage.is_moving() { extent.size } else { 0 };
        }
        self.unlock(table);
        let uses = self.stores.iter().zip(&counts.moved).map(|(store, [bytes_in, bytes_out])| TierUse {
            name: store.tier.name().to_string(),
            description: store.tier.describe(),
            kind: store.kind,
            capacity: store.tier.capacity(),
            used: store.tier.used(),
            bytes_in: read(bytes_in),
            bytes_out: read(bytes_out),
        });
        stats.tiers = uses.collect();
        stats
    }
}
