//! One thread's free blocks on one device: a small table of stacks, one for each lane and block size.
//!
//! The stacks are chains through the blocks' headers. Everything is in relaxed atomics, so that statistics can be read from anywhere;
//! who may change them is the [gate](super::gate)'s business.
//!
//! How many bytes the stacks hold costs the hot path nothing to know: a block that goes from a stack to a caller takes as many bytes from
//! the one as it adds to what is active, and back. So `held == held_base - active`, and only what happens off the hot path
//! changes `held_base`.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::counts::{Counts, Drift, TAGS, Tally, bump, tally};
use super::gate::Gate;
use crate::block::{CLASS_SIZE_MAX, set_bits};
use crate::pool::{BlockId, Directory, Header, Key, LaneBits, LaneId, NO_BLOCK, Pool};
use crate::telemetry::{SIZE_COUNTS, size_count_index};
use crate::units::{DevicePtr, StreamId};

const BUCKETS: usize = 512;
/// Large blocks keep to the last so many, a bit each in a word.
const LARGE_BUCKETS: usize = BUCKETS >> Key::LARGE_BITS;
const FIRST_LARGE: usize = BUCKETS - LARGE_BUCKETS;
/// Stacks in so many groups are told apart when they are emptied; a power of two.
const GROUPS: usize = 64;
const GROUP_BUCKETS: usize = BUCKETS / GROUPS;
/// Large blocks that are freed to the stacks between looks at what is in use.
const LARGE_FREES: i32 = 128;
/// The same while memory is tight, between times that they are taken back: the request that does it bears it for all of them.
const TIGHT_FREES: i32 = 32;
/// Slots that the first refill brings at most, which doubles with each one.
const REFILL_LEAST: u64 = 4;
/// A change of what is in use by this part of the device is a change of phase: 1/64.
const PHASE_SHIFT: u32 = 6;
/// Buckets that a key may be in.
const PROBES: usize = 4;
/// Streams whose lanes a thread remembers, besides the last one.
const STREAMS: usize = 16;

#[inline]
fn first_bucket(key: Key) -> usize {
    const { assert!(BUCKETS.is_power_of_two() && LARGE_BUCKETS == u64::BITS as usize) };
    (key.number() >> (u64::BITS - BUCKETS.trailing_zeros())) as usize
}

/// A stack of free blocks of one key, and how often it was used under that key.
#[derive(Debug)]
#[repr(C, align(64))]
struct Bucket {
    /// 0: none.
    key: AtomicU64,
    /// Block size in bytes.
    bytes: AtomicU64,
    /// The address of the block on top, or 0: what a request waits for, and so at hand without a look at its header.
    top: AtomicU64,
    /// Blocks handed out from here.
    allocs: AtomicU64,
    /// Blocks freed to here.
    frees: AtomicU64,
    /// `frees` at the last two looks at the phase, the older first.
    frees_at: [AtomicU64; 2],
    /// The block on top, or [`NO_BLOCK`].
    head: AtomicU32,
    /// Of a stack of large blocks its bit in [`ThreadCache::large`], of another its place in [`ThreadCache::filled`].
    mark: AtomicU32,
}

impl Bucket {
    #[allow(clippy::declare_interior_mutable_const, reason = "a value to begin with, not one to share")]
    const EMPTY: Bucket = Bucket {
        key: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        top: AtomicU64::new(0),
        allocs: AtomicU64::new(0),
        frees: AtomicU64::new(0),
        frees_at: [const { AtomicU64::new(0) }; 2],
        head: AtomicU32::new(NO_BLOCK),
        mark: AtomicU32::new(0),
    };

    #[inline]
    fn put(&self, block: BlockId, header: &Header) {
        header.set_cached(self.head.load(Relaxed));
        self.head.store(block, Relaxed);
        self.top.store(header.ptr().0, Relaxed);
    }

    fn take_all(&self) -> BlockId {
        let head = self.head.load(Relaxed);
        self.head.store(NO_BLOCK, Relaxed);
        self.top.store(0, Relaxed);
        head
    }
}

/// One thread's magazines and counters on one device.
// In order, so that the hot path stays on the first cache lines.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct ThreadCache {
    /// The device cache this belongs to now; 0 for none. Numbers are never used twice.
    pub(crate) owner: AtomicU64,
    pub(crate) gate: Gate,
    last_stream: AtomicU64,
    /// Of the last stream, as [`LaneBits`].
    last_lane: AtomicU64,
    live: Drift,
    active: Drift,
    /// The hot path may raise `active.room` up to this: above, the stacks would hold too much, or the counts drift too far.
    room_max: AtomicI64,
    /// What the stacks hold, plus `active`'s sum.
    held_base: AtomicI64,
    /// Bytes that the stacks may hold.
    held_max: AtomicI64,
    /// How far counts may drift from the sums, in bytes.
    drift_max: AtomicI64,
    /// Large blocks that may still be freed to the stacks in this round.
    large_frees: AtomicI32,
    /// How many the round began with.
    round: AtomicI32,
    /// Freed in rounds before this one since the last look at what is in use.
    freed: AtomicI32,
    /// Whether memory was tight when that was last known.
    tight: AtomicBool,
    /// Whether the phase has changed since the stacks were last emptied of large blocks.
    stale: AtomicBool,
    /// Stacks that large blocks have been freed to since then, a bit each; the few beyond the word share the last bit.
    large: AtomicU64,
    /// How often slots were brought from slabs since the stacks were last emptied.
    refills: AtomicU32,
    /// What was in use when the phase last changed, in bytes.
    phase: AtomicI64,
    /// Streams and their lanes, as [`LaneBits`].
    streams: [(AtomicU64, AtomicU64); STREAMS],
    tags: [AtomicI64; TAGS],
    /// Blocks that no bucket counts.
    sizes: [Tally; SIZE_COUNTS],
    /// Blocks handed out from buckets that have other keys now.
    hits: AtomicU64,
    /// Groups of stacks that slots have come to since they were last emptied: 1 each.
    filled: [AtomicU8; GROUPS],
    buckets: [Bucket; BUCKETS + PROBES - 1],
}

impl ThreadCache {
    pub(crate) const fn new() -> ThreadCache {
        ThreadCache {
            owner: AtomicU64::new(0),
            gate: Gate::new(),
            last_stream: AtomicU64::new(0),
            last_lane: AtomicU64::new(0),
            live: Drift::ZERO,
            active: Drift::ZERO,
            room_max: AtomicI64::new(0),
            held_base: AtomicI64::new(0),
            held_max: AtomicI64::new(0),
            drift_max: AtomicI64::new(0),
            large_frees: AtomicI32::new(LARGE_FREES),
            round: AtomicI32::new(LARGE_FREES),
            freed: AtomicI32::new(0),
            tight: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            large: AtomicU64::new(0),
            refills: AtomicU32::new(0),
            phase: AtomicI64::new(0),
            streams: [const { (AtomicU64::new(0), AtomicU64::new(0)) }; STREAMS],
            tags: [const { AtomicI64::new(0) }; TAGS],
            sizes: [Tally::ZERO; SIZE_COUNTS],
            hits: AtomicU64::new(0),
            filled: [const { AtomicU8::new(0) }; GROUPS],
            buckets: [Bucket::EMPTY; BUCKETS + PROBES - 1],
        }
    }

    // ---- the hot path: by the owner, inside the gate --------------------------------------------------------------

    /// The lane of a stream outside private pools, if this thread has used it lately; else none.
    #[inline]
    pub(crate) fn lane(&self, stream: StreamId) -> LaneBits {
        if self.last_stream.load(Relaxed) == stream.0 {
            return LaneBits::from_number(self.last_lane.load(Relaxed));
        }
        self.other_lane(stream)
    }

    #[inline(never)]
    fn other_lane(&self, stream: StreamId) -> LaneBits {
        let (known, lane) = &self.streams[stream_slot(stream)];
        let lane = if known.load(Relaxed) == stream.0 { lane.load(Relaxed) } else { 0 };
        if lane != 0 {
            self.last_stream.store(stream.0, Relaxed);
            self.last_lane.store(lane, Relaxed);
        }
        LaneBits::from_number(lane)
    }

    fn bucket(&self, key: Key) -> Option<&Bucket> {
        let first = first_bucket(key);
        self.buckets[first..first + PROBES].iter().find(|bucket| bucket.key.load(Relaxed) == key.number())
    }

    /// Takes a block for a request; null if there is none.
    #[inline]
    pub(crate) fn pop(&self, key: Key, requested: u64, tag: u8, pool: &Pool) -> DevicePtr {
        let bucket = &self.buckets[first_bucket(key)];
        if bucket.key.load(Relaxed) != key.number() {
            return self.pop_probing(key, requested, tag, pool);
        }
        self.pop_from(bucket, requested, tag, pool)
    }

    #[inline(never)]
    fn pop_probing(&self, key: Key, requested: u64, tag: u8, pool: &Pool) -> DevicePtr {
        self.bucket(key).map_or(DevicePtr::NULL, |bucket| self.pop_from(bucket, requested, tag, pool))
    }

    #[inline]
    fn pop_from(&self, bucket: &Bucket, requested: u64, tag: u8, pool: &Pool) -> DevicePtr {
        let ptr = bucket.top.load(Relaxed);
        if ptr == 0 {
            return DevicePtr::NULL;
        }
        let header = pool.directory.header(bucket.head.load(Relaxed));
        let next = header.next();
        bucket.head.store(next, Relaxed);
        bucket.top.store(pool.directory.header(next).ptr().0, Relaxed);
        header.hand_out(requested, tag);
        bump(&bucket.allocs, 1);
        if self.live.raise(requested) | self.active.raise(bucket.bytes.load(Relaxed)) {
            self.note_peaks(pool);
        }
        if tag != 0 {
            self.count_tag(tag, requested as i64);
        }
        DevicePtr(ptr)
    }

    #[cold]
    #[inline(never)]
    fn note_peaks(&self, pool: &Pool) {
        self.live.note_peak();
        self.active.note_peak();
        self.change_base(0);
        self.fold_drifted(pool);
    }

    /// Takes a live block back, if its key has a bucket and the stacks may hold it.
    #[inline]
    pub(crate) fn push(&self, block: BlockId, header: &Header, tag: u8) -> bool {
        let key = header.key();
        let bucket = &self.buckets[first_bucket(key)];
        if bucket.key.load(Relaxed) != key.number() {
            return self.push_probing(block, header, tag);
        }
        self.push_to(bucket, block, header, tag)
    }

    #[inline(never)]
    fn push_probing(&self, block: BlockId, header: &Header, tag: u8) -> bool {
        self.bucket(header.key()).is_some_and(|bucket| self.push_to(bucket, block, header, tag))
    }

    #[inline]
    fn push_to(&self, bucket: &Bucket, block: BlockId, header: &Header, tag: u8) -> bool {
        let bytes = bucket.bytes.load(Relaxed);
        let room = self.active.room.load(Relaxed) + bytes as i64;
        if room > self.room_max.load(Relaxed) {
            return false;
        }
        if bytes > CLASS_SIZE_MAX {
            let left = self.large_frees.load(Relaxed) - 1;
            if left < 0 {
                return false;
            }
            self.large_frees.store(left, Relaxed);
            self.large.store(self.large.load(Relaxed) | 1u64.wrapping_shl(bucket.mark.load(Relaxed)), Relaxed);
        } else {
            self.filled[bucket.mark.load(Relaxed) as usize % GROUPS].store(1, Relaxed);
        }
        self.active.room.store(room, Relaxed);
        let requested = header.requested();
        self.live.lower(requested);
        bump(&bucket.frees, 1);
        bucket.put(block, header);
        if tag != 0 {
            self.count_tag(tag, -(requested as i64));
        }
        true
    }

    // ---- off the hot path: by the owner or a thief, under the pool's lock -----------------------------------------

    pub(crate) fn remember_lane(&self, stream: StreamId, lane: LaneId) {
        let lane = LaneBits::new(lane).number();
        let (known, slot) = &self.streams[stream_slot(stream)];
        known.store(stream.0, Relaxed);
        slot.store(lane, Relaxed);
        self.last_stream.store(stream.0, Relaxed);
        self.last_lane.store(lane, Relaxed);
    }

    /// How many slots of so many to bring from a slab now: few after the stacks were emptied, since they may be again soon.
    pub(crate) fn refill_count(&self, most: u64) -> u64 {
        let refills = self.refills.load(Relaxed);
        self.refills.store((refills + 1).min(16), Relaxed);
        most.min(REFILL_LEAST << refills)
    }

    /// Adds blocks that no caller had.
    pub(crate) fn stock(&self, key: Key, blocks: impl Iterator<Item = BlockId>, directory: &Directory) {
        let Some(bucket) = self.bucket(key) else { return };
        debug_assert!(!key.is_large());
        self.filled[bucket.mark.load(Relaxed) as usize % GROUPS].store(1, Relaxed);
        for block in blocks {
            bucket.put(block, directory.header(block));
            self.change_base(key.bytes() as i64);
        }
    }

    /// Gives `key` a bucket; the blocks of the one that had it go to `evict`.
    pub(crate) fn claim(&self, key: Key, directory: &Directory, evict: impl FnMut(BlockId)) {
        if self.bucket(key).is_some() {
            return;
        }
        let first = first_bucket(key);
        let probes = &self.buckets[first..first + PROBES];
        let is_new = |bucket: &&Bucket| bucket.key.load(Relaxed) == 0;
        let is_empty = |bucket: &&Bucket| bucket.head.load(Relaxed) == NO_BLOCK;
        let place = probes.iter().position(|bucket| is_new(&bucket));
        let place = place.or_else(|| probes.iter().position(|bucket| is_empty(&bucket))).unwrap_or(0);
        let bucket = &probes[place];
        self.drain_bucket(bucket, directory, evict);
        let (old, allocs) = (Key::from_number(bucket.key.load(Relaxed)), bucket.allocs.load(Relaxed));
        let size = &self.sizes[size_count_index(old.granules())];
        size.add_allocs(old.bytes(), allocs);
        size.add_frees(old.bytes(), bucket.frees.load(Relaxed));
        bump(&self.hits, allocs);
        bucket.allocs.store(0, Relaxed);
        bucket.frees.store(0, Relaxed);
        bucket.frees_at.iter().for_each(|frees| frees.store(0, Relaxed));
        bucket.key.store(key.number(), Relaxed);
        bucket.bytes.store(key.bytes(), Relaxed);
        let at = first + place;
        let bit = at.saturating_sub(FIRST_LARGE).min(LARGE_BUCKETS - 1);
        let mark = if key.is_large() { bit } else { (at / GROUP_BUCKETS).min(GROUPS - 1) };
        bucket.mark.store(mark as u32, Relaxed);
    }

    fn drain_bucket(&self, bucket: &Bucket, directory: &Directory, sink: impl FnMut(BlockId)) -> u64 {
        self.drain_chain(bucket.take_all(), directory, sink)
    }

    fn drain_chain(&self, chain: BlockId, directory: &Directory, mut sink: impl FnMut(BlockId)) -> u64 {
        let (mut block, mut bytes) = (chain, 0);
        while block != NO_BLOCK {
            let header = directory.header(block);
            let next = header.next();
            bytes += header.size();
            sink(block);
            block = next;
        }
        self.change_base(-(bytes as i64));
        bytes
    }

    /// Empties the stacks, or those of large blocks only. Returns the bytes.
    pub(crate) fn drain(&self, large_only: bool, directory: &Directory, mut sink: impl FnMut(BlockId)) -> u64 {
        if !self.holds_any() {
            return 0;
        }
        self.stale.store(false, Relaxed);
        if large_only && !self.may_hold_large() {
            return 0;
        }
        let large = self.large.load(Relaxed);
        self.large.store(0, Relaxed);
        self.freed.store(0, Relaxed);
        self.begin_round();
        let mut bytes = 0;
        let mut empty = |bucket: &Bucket| {
            if bucket.head.load(Relaxed) != NO_BLOCK {
                bytes += self.drain_bucket(bucket, directory, &mut sink);
            }
        };
        for bit in set_bits([large]) {
            let from = FIRST_LARGE + bit as usize;
            let to = if (bit as usize) < LARGE_BUCKETS - 1 { from + 1 } else { self.buckets.len() };
            // A small size may have taken one over.
            let large = |bucket: &&Bucket| Key::from_number(bucket.key.load(Relaxed)).is_large();
            self.buckets[from..to].iter().filter(large).for_each(&mut empty);
        }
        if large_only {
            return bytes;
        }
        self.refills.store(0, Relaxed);
        for (group, filled) in self.filled.iter().enumerate().filter(|(_, filled)| filled.load(Relaxed) != 0) {
            filled.store(0, Relaxed);
            let from = group * GROUP_BUCKETS;
            let to = if group < GROUPS - 1 { from + GROUP_BUCKETS } else { self.buckets.len() };
            self.buckets[from..to].iter().for_each(&mut empty);
        }
        bytes
    }

    fn begin_round(&self) {
        let round = if self.tight.load(Relaxed) { TIGHT_FREES } else { LARGE_FREES };
        self.round.store(round, Relaxed);
        self.large_frees.store(round, Relaxed);
    }

    /// Says whether memory is tight.
    pub(crate) fn set_tight(&self, tight: bool) {
        self.tight.store(tight, Relaxed);
    }

    /// Whether a large block has come to the stacks since they were last emptied of such.
    fn may_hold_large(&self) -> bool {
        self.large.load(Relaxed) != 0
    }

    /// Whether blocks of this key have been freed here lately: since the last look at the phase but one.
    pub(crate) fn knows(&self, key: Key) -> bool {
        self.bucket(key).is_some_and(|bucket| bucket.frees.load(Relaxed) > bucket.frees_at[0].load(Relaxed))
    }

    /// Whether the stacks should be emptied of large blocks. A request that they cannot serve is the moment for it: it then sees all that is
    /// free, coalesced.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Relaxed)
    }

    /// Ends a round of large frees, if it is over, and says whether it was. Every so many: looks whether what is in use has changed so much that
    /// the program is in another phase, for which the stacks hold the wrong sizes.
    pub(crate) fn end_round(&self, pool: &Pool) -> bool {
        if self.large_frees.load(Relaxed) > 0 {
            return false;
        }
        let freed = self.freed.load(Relaxed) + self.round.load(Relaxed);
        self.begin_round();
        self.freed.store(freed % LARGE_FREES, Relaxed);
        if freed < LARGE_FREES {
            return true;
        }
        for bucket in &self.buckets[FIRST_LARGE..] {
            let [older, newer] = &bucket.frees_at;
            older.store(newer.load(Relaxed), Relaxed);
            newer.store(bucket.frees.load(Relaxed), Relaxed);
        }
        let active = pool.active.sum() + self.active.get().0;
        if active.abs_diff(self.phase.load(Relaxed)) > pool.capacity >> PHASE_SHIFT {
            self.phase.store(active, Relaxed);
            self.stale.store(true, Relaxed);
        }
        true
    }

    /// What this thread adds to the pool's sum of active bytes.
    pub(crate) fn active_bytes(&self) -> i64 {
        self.active.get().0
    }

    /// Bytes in the stacks.
    pub(crate) fn held(&self) -> u64 {
        (self.held_base.load(Relaxed) - self.active.get().0).max(0) as u64
    }

    /// Whether the stacks hold anything.
    pub(crate) fn holds_any(&self) -> bool {
        self.held() > 0
    }

    fn change_base(&self, by: i64) {
        let base = self.held_base.load(Relaxed) + by;
        self.held_base.store(base, Relaxed);
        // The sum stays above both: what fills the stacks, and what drifts too far.
        let least = (base - self.held_max.load(Relaxed)).max(-self.drift_max.load(Relaxed));
        self.room_max.store(self.active.peak.load(Relaxed) - least, Relaxed);
    }

    /// Sets how many bytes the stacks may hold, and how far counts may drift.
    pub(crate) fn set_bounds(&self, held: u64, drift: i64) {
        self.held_max.store(held as i64, Relaxed);
        self.drift_max.store(drift, Relaxed);
        self.change_base(0);
    }

    /// Whether the stacks may hold so many bytes more.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        (self.held() + bytes) as i64 <= self.held_max.load(Relaxed)
    }

    /// A block from the pool was handed out.
    pub(crate) fn count_alloc(&self, requested: u64, key: Key, tag: u8) {
        if self.live.raise(requested) | self.active.raise(key.bytes()) {
            self.live.note_peak();
            self.active.note_peak();
        }
        self.change_base(key.bytes() as i64);
        self.sizes[size_count_index(key.granules())].add_allocs(key.bytes(), 1);
        if tag != 0 {
            self.count_tag(tag, requested as i64);
        }
    }

    /// A block was freed past the stacks; `active` bytes of it are no longer in use.
    pub(crate) fn count_free(&self, requested: u64, key: Key, active: u64, tag: u8) {
        self.live.lower(requested);
        self.active.lower(active);
        self.change_base(-(active as i64));
        self.sizes[size_count_index(key.granules())].add_frees(key.bytes(), 1);
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
        let mut counts = Counts {
            live: self.live.get(),
            active: self.active.get(),
            hits: self.hits.load(Relaxed),
            sizes: std::array::from_fn(|index| self.sizes[index].get()),
            tags: std::array::from_fn(|tag| self.tags[tag].load(Relaxed)),
        };
        for bucket in &self.buckets {
            let (key, allocs) = (Key::from_number(bucket.key.load(Relaxed)), bucket.allocs.load(Relaxed));
            let frees = bucket.frees.load(Relaxed);
            counts.sizes[size_count_index(key.granules())] += tally(key.bytes(), allocs, frees);
            counts.hits += allocs;
        }
        counts
    }

    /// Adds the counts to the sums when they have drifted far.
    pub(crate) fn fold_drifted(&self, pool: &Pool) {
        let bound = self.drift_max.load(Relaxed);
        if self.live.is_far(bound) || self.active.is_far(bound) {
            self.fold(pool);
        }
    }

    /// Adds the counts to the sums, and starts from 0.
    pub(crate) fn fold(&self, pool: &Pool) {
        let active = self.active.get().0;
        self.live.fold(&pool.live);
        self.active.fold(&pool.active);
        self.change_base(-active);
    }

    /// Forgets everything, for the next owner. The stacks are empty.
    pub(crate) fn reset(&self) {
        for bucket in &self.buckets {
            bucket.key.store(0, Relaxed);
            bucket.allocs.store(0, Relaxed);
            bucket.frees.store(0, Relaxed);
            bucket.frees_at.iter().for_each(|frees| frees.store(0, Relaxed));
            bucket.take_all();
        }
        let lanes = self.streams.iter().map(|(_, lane)| lane);
        let counters = [&self.hits, &self.last_stream, &self.last_lane];
        let sizes = self.sizes.iter().flat_map(|size| [&size.allocs, &size.frees, &size.allocated, &size.freed]);
        sizes.chain(counters).chain(lanes).for_each(|counter| counter.store(0, Relaxed));
        self.filled.iter().for_each(|filled| filled.store(0, Relaxed));
        self.tight.store(false, Relaxed);
        self.large.store(0, Relaxed);
        self.freed.store(0, Relaxed);
        self.begin_round();
        self.stale.store(false, Relaxed);
        self.refills.store(0, Relaxed);
        let drifts = [&self.live, &self.active].into_iter().flat_map(|drift| [&drift.room, &drift.peak]);
        let bounds = [&self.phase, &self.room_max, &self.held_base, &self.held_max, &self.drift_max];
        self.tags.iter().chain(drifts).chain(bounds).for_each(|counter| counter.store(0, Relaxed));
    }
}

#[inline]
fn stream_slot(stream: StreamId) -> usize {
    // Handles are addresses, or small numbers.
    (stream.0 ^ stream.0 >> 4 ^ stream.0 >> 12) as usize % STREAMS
}
