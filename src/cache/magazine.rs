//! One thread's free blocks on one device: a small table of stacks, one for each lane and block size.
//!
//! The stacks are chains through the blocks' headers. Everything is in relaxed atomics, so that statistics can be read from anywhere;
//! who may change them is the [gate](super::gate)'s business.
//!
//! Conservation: `bytes` == block sizes of all chains; `large` == those above [`CLASS_SIZE_MAX`].

use std::sync::atomic::{AtomicI64, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::gate::Gate;
use crate::block::CLASS_SIZE_MAX;
use crate::pool::{BlockId, Directory, LaneId, NO_BLOCK, life};
use crate::telemetry::{Peak, SIZE_COUNTS, size_count_index};
use crate::units::{GRANULE, StreamId};

const BUCKETS: usize = 512;
/// Buckets that a key may be in.
const PROBES: usize = 4;
/// Streams whose lanes a thread remembers.
const STREAMS: usize = 16;
/// Tags that can be told apart; number 0 is "none".
pub(crate) const TAGS: usize = 64;

/// A lane and a block size in granules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    #[inline]
    pub(crate) fn new(lane: LaneId, granules: u32) -> Key {
        Key(u64::from(lane) << 32 | u64::from(granules))
    }

    #[inline]
    fn bytes(self) -> u64 {
        (self.0 & u64::from(u32::MAX)) * GRANULE
    }

    #[inline]
    fn first_bucket(self) -> usize {
        // Fibonacci hashing: the multiplier is 2^64 / golden ratio.
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKETS.trailing_zeros())) as usize
    }
}

#[derive(Debug)]
#[repr(align(32))]
struct Bucket {
    /// 0: none.
    key: AtomicU64,
    /// Blocks handed out from here under this key.
    allocs: AtomicU64,
    head: AtomicU32,
}

/// A sum that its thread changes without atomic read-modify-write, and its highest value since it was folded.
#[derive(Debug, Default)]
struct Drift {
    delta: AtomicI64,
    peak: AtomicI64,
}

impl Drift {
    #[inline]
    fn add(&self, change: i64, bound: i64, into: &Peak) {
        let delta = self.delta.load(Relaxed) + change;
        self.delta.store(delta, Relaxed);
        if delta > self.peak.load(Relaxed) {
            self.peak.store(delta, Relaxed);
        }
        if delta.abs() > bound {
            self.fold(into);
        }
    }

    #[cold]
    fn fold(&self, into: &Peak) {
        into.fold(self.delta.load(Relaxed), self.peak.load(Relaxed));
        self.delta.store(0, Relaxed);
        self.peak.store(0, Relaxed);
    }
}

/// One thread's magazines and counters on one device.
#[derive(Debug)]
pub(crate) struct ThreadCache {
    /// The device cache this belongs to now; 0 for none. Numbers are never used twice.
    pub(crate) owner: AtomicU64,
    pub(crate) gate: Gate,
    bytes: AtomicU64,
    large: AtomicU64,
    live: Drift,
    active: Drift,
    requested: AtomicU64,
    frees: AtomicU64,
    streams: [(AtomicU64, AtomicU16); STREAMS],
    tags: [AtomicI64; TAGS],
    /// Blocks handed out that no bucket counts.
    sizes: [AtomicU64; SIZE_COUNTS],
    /// Blocks handed out from buckets that have other keys now.
    hits: AtomicU64,
    buckets: [Bucket; BUCKETS + PROBES - 1],
}

/// Adds to a counter of which this thread is the only writer.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

impl ThreadCache {
    pub(crate) fn new() -> Box<ThreadCache> {
        let bucket = || Bucket { key: AtomicU64::new(0), allocs: AtomicU64::new(0), head: AtomicU32::new(NO_BLOCK) };
        Box::new(ThreadCache {
            owner: AtomicU64::new(0),
            gate: Gate::new(),
            bytes: AtomicU64::new(0),
            large: AtomicU64::new(0),
            live: Drift::default(),
            active: Drift::default(),
            requested: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            streams: std::array::from_fn(|_| (AtomicU64::new(0), AtomicU16::new(0))),
            tags: std::array::from_fn(|_| AtomicI64::new(0)),
            sizes: std::array::from_fn(|_| AtomicU64::new(0)),
            hits: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| bucket()),
        })
    }

    /// The lane of a stream outside private pools, if this thread has used it lately.
    #[inline]
    pub(crate) fn lane(&self, stream: StreamId) -> Option<LaneId> {
        let (known, lane) = &self.streams[stream_slot(stream)];
        let lane = lane.load(Relaxed);
        (lane != 0 && known.load(Relaxed) == stream.0).then_some(lane)
    }

    pub(crate) fn remember_lane(&self, stream: StreamId, lane: LaneId) {
        let (known, slot) = &self.streams[stream_slot(stream)];
        known.store(stream.0, Relaxed);
        slot.store(lane, Relaxed);
    }

    /// Takes a block, if there is one.
    #[inline]
    pub(crate) fn pop(&self, key: Key, directory: &Directory) -> Option<BlockId> {
        let first = key.first_bucket();
        let bucket = self.buckets[first..first + PROBES].iter().find(|bucket| bucket.key.load(Relaxed) == key.0)?;
        let head = bucket.head.load(Relaxed);
        if head == NO_BLOCK {
            return None;
        }
        bucket.head.store(directory.header(head).next(), Relaxed);
        bump(&bucket.allocs, 1);
        self.change_bytes(key, false);
        Some(head)
    }

    /// Adds a free block. When every bucket it may go to is taken by other keys, one of them is emptied into `evict`.
    #[inline]
    pub(crate) fn try_push(&self, key: Key, block: BlockId, directory: &Directory) -> bool {
        let first = key.first_bucket();
        let probes = &self.buckets[first..first + PROBES];
        let Some(bucket) = probes.iter().find(|bucket| bucket.key.load(Relaxed) == key.0) else { return false };
        let header = directory.header(block);
        header.set_next(bucket.head.load(Relaxed));
        header.set_life(life::CACHED);
        bucket.head.store(block, Relaxed);
        self.change_bytes(key, true);
        true
    }

    /// Gives `key` a bucket; the blocks of the one that had it go to `evict`.
    #[cold]
    pub(crate) fn claim(&self, key: Key, directory: &Directory, evict: impl FnMut(BlockId)) {
        let first = key.first_bucket();
        let probes = &self.buckets[first..first + PROBES];
        if probes.iter().any(|bucket| bucket.key.load(Relaxed) == key.0) {
            return;
        }
        let is_new = |bucket: &&Bucket| bucket.key.load(Relaxed) == 0;
        let is_empty = |bucket: &&Bucket| bucket.head.load(Relaxed) == NO_BLOCK;
        let bucket = probes.iter().find(is_new).or_else(|| probes.iter().find(is_empty)).unwrap_or(&probes[0]);
        self.drain_bucket(bucket, directory, evict);
        self.retire_counts(bucket);
        bucket.key.store(key.0, Relaxed);
    }

    fn retire_counts(&self, bucket: &Bucket) {
        let (key, allocs) = (Key(bucket.key.load(Relaxed)), bucket.allocs.load(Relaxed));
        bump(&self.sizes[size_count_index((key.bytes() / GRANULE) as u32)], allocs);
        bump(&self.hits, allocs);
        bucket.allocs.store(0, Relaxed);
    }

    fn drain_bucket(&self, bucket: &Bucket, directory: &Directory, mut sink: impl FnMut(BlockId)) -> u64 {
        let key = Key(bucket.key.load(Relaxed));
        let mut block = bucket.head.load(Relaxed);
        bucket.head.store(NO_BLOCK, Relaxed);
        let mut bytes = 0;
        while block != NO_BLOCK {
            let next = directory.header(block).next();
            self.change_bytes(key, false);
            bytes += key.bytes();
            sink(block);
            block = next;
        }
        bytes
    }

    /// Empties the stacks, or those of large blocks only. Returns the bytes.
    pub(crate) fn drain(&self, large_only: bool, directory: &Directory, mut sink: impl FnMut(BlockId)) -> u64 {
        if self.held(large_only) == 0 {
            return 0;
        }
        let wanted = |bucket: &&Bucket| {
            bucket.head.load(Relaxed) != NO_BLOCK
                && (!large_only || Key(bucket.key.load(Relaxed)).bytes() > CLASS_SIZE_MAX)
        };
        self.buckets.iter().filter(wanted).map(|bucket| self.drain_bucket(bucket, directory, &mut sink)).sum()
    }

    #[inline]
    fn change_bytes(&self, key: Key, more: bool) {
        let bytes = key.bytes();
        let by = if more { bytes } else { bytes.wrapping_neg() };
        bump(&self.bytes, by);
        if bytes > CLASS_SIZE_MAX {
            bump(&self.large, by);
        }
    }

    /// Bytes held, in all blocks or in large ones.
    #[inline]
    pub(crate) fn held(&self, large_only: bool) -> u64 {
        if large_only { self.large.load(Relaxed) } else { self.bytes.load(Relaxed) }
    }

    /// A block of `size` bytes was handed out for `requested`.
    #[inline]
    pub(crate) fn count_alloc(&self, requested: u64, size: u64, tag: u8, sums: &Sums<'_>) {
        self.live.add(requested as i64, sums.bound, sums.live);
        self.active.add(size as i64, sums.bound, sums.active);
        bump(&self.requested, requested);
        if tag != 0 {
            self.count_tag(tag, requested as i64);
        }
    }

    /// A block handed out from elsewhere than the buckets.
    pub(crate) fn count_size(&self, granules: u32) {
        bump(&self.sizes[size_count_index(granules)], 1);
    }

    /// A block was freed; `active` bytes of it are no longer in use.
    #[inline]
    pub(crate) fn count_free(&self, requested: u64, active: u64, tag: u8, sums: &Sums<'_>) {
        self.live.add(-(requested as i64), sums.bound, sums.live);
        self.active.add(-(active as i64), sums.bound, sums.active);
        bump(&self.frees, 1);
        if tag != 0 {
            self.count_tag(tag, -(requested as i64));
        }
    }

    fn count_tag(&self, tag: u8, by: i64) {
        if let Some(counter) = self.tags.get(tag as usize) {
            counter.store(counter.load(Relaxed) + by, Relaxed);
        }
    }

    /// Live bytes of a tag that this thread has handed out, less those it has freed.
    pub(crate) fn tag(&self, tag: u8) -> i64 {
        self.tags.get(tag as usize).map_or(0, |counter| counter.load(Relaxed))
    }

    /// What is counted here.
    pub(crate) fn counts(&self) -> Counts {
        let mut sizes = [0; SIZE_COUNTS];
        let mut hits = self.hits.load(Relaxed);
        for (sum, count) in sizes.iter_mut().zip(&self.sizes) {
            *sum = count.load(Relaxed);
        }
        for bucket in &self.buckets {
            let (key, allocs) = (Key(bucket.key.load(Relaxed)), bucket.allocs.load(Relaxed));
            sizes[size_count_index((key.bytes() / GRANULE) as u32)] += allocs;
            hits += allocs;
        }
        Counts {
            live: (self.live.delta.load(Relaxed), self.live.peak.load(Relaxed)),
            active: (self.active.delta.load(Relaxed), self.active.peak.load(Relaxed)),
            requested: self.requested.load(Relaxed),
            frees: self.frees.load(Relaxed),
            hits,
            sizes,
            tags: std::array::from_fn(|tag| self.tags[tag].load(Relaxed)),
        }
    }

    /// Starts new peaks. Under the pool's lock, with the gate closed.
    pub(crate) fn fold(&self, sums: &Sums<'_>) {
        self.live.fold(sums.live);
        self.active.fold(sums.active);
    }

    /// Forgets everything, for the next owner. The stacks are empty.
    pub(crate) fn reset(&self) {
        for bucket in &self.buckets {
            bucket.key.store(0, Relaxed);
            bucket.allocs.store(0, Relaxed);
            bucket.head.store(NO_BLOCK, Relaxed);
        }
        for counter in self.sizes.iter().chain([&self.bytes, &self.large, &self.requested, &self.frees, &self.hits]) {
            counter.store(0, Relaxed);
        }
        for (_, lane) in &self.streams {
            lane.store(0, Relaxed);
        }
        for counter in self.tags.iter().chain([&self.live.delta, &self.live.peak, &self.active.delta, &self.active.peak]) {
            counter.store(0, Relaxed);
        }
    }
}

#[inline]
fn stream_slot(stream: StreamId) -> usize {
    // Handles are addresses, or small numbers.
    (stream.0 ^ stream.0 >> 4 ^ stream.0 >> 12) as usize % STREAMS
}

/// Where counts add up.
#[derive(Debug)]
pub(crate) struct Sums<'a> {
    pub(crate) live: &'a Peak,
    pub(crate) active: &'a Peak,
    /// How far a thread may drift before it adds its count to the sum, in bytes.
    pub(crate) bound: i64,
}

/// What one thread counts.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// Requested bytes since the last fold, and their peak.
    pub(crate) live: (i64, i64),
    pub(crate) active: (i64, i64),
    pub(crate) requested: u64,
    pub(crate) frees: u64,
    pub(crate) hits: u64,
    pub(crate) sizes: [u64; SIZE_COUNTS],
    pub(crate) tags: [i64; TAGS],
}
