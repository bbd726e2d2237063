//! What most misses are: a plain request that its magazine has no block for, and its lane has.
//!
//! It stands between the hot path, which takes no lock, and [`DeviceCache::alloc`], which knows all that can be asked for. A third of the
//! requests and more come this way where memory is packed, so that each question counts that need not be asked.

use super::DeviceCache;
use super::magazine::ThreadCache;
use crate::block::{ClassId, Owner, block_granules};
use crate::pool::{Key, Kind, LaneBits, LaneId, NO_BLOCK, PoolState, Pressure, Want};
use crate::telemetry::Rung;
use crate::units::{DevicePtr, GRANULE, StreamId};

/// Bytes that a refill brings from a slab, and the most slots.
const REFILL_BYTES: u64 = 64 << 10;
const REFILL_SLOTS: u64 = 32;

impl DeviceCache {
    /// Serves a plain request from what its lane has free, and the calling thread's magazine of large blocks. Null where that does not do, for
    /// whatever reason: nothing has changed then that a caller could see.
    #[inline(never)]
    pub(super) fn miss(&self, cache: &ThreadCache, stream: StreamId, size: u64, tag: u8) -> DevicePtr {
        let pool = &self.pool;
        let mut state = pool.lock();
        // Private pools, debug aids, the ring, plans and limits have more to ask.
        if cache.gate.is_slow() || pool.has_plans() || self.tag_is_limited(tag) {
            return DevicePtr::NULL;
        }
        // No size, or one of so many bytes that they have wrapped around, is no granule.
        let (lane, granules) = (cache.lane(stream), block_granules(size) as u32);
        if lane == LaneBits::NONE || granules == 0 {
            return DevicePtr::NULL;
        }
        let key = Key::new(lane, granules);
        let (lane, bytes) = (lane.lane(), key.bytes());
        // Two calls, each inlined for its kind.
        let want = |kind| Want { lane, kind, may_grow: false };
        let taken = if key.is_large() {
            if self.pack(&mut state, cache, key) == Pressure::Idle {
                return DevicePtr::NULL;
            }
            let kind = Kind::Range { size: bytes, alignment: GRANULE, persistent: false };
            pool.take_known(&mut state, want(kind), Owner(lane))
        } else {
            let class = ClassId::for_size(bytes);
            let kind = state.slot(lane, class);
            pool.take_known(&mut state, want(kind), Owner(lane))
        };
        let Ok(Some(block)) = taken else { return DevicePtr::NULL };
        state.count(Rung::Own);
        let header = pool.directory.header(block);
        header.hand_out(size, tag);
        cache.count_alloc(size, key, tag);
        if !key.is_large() {
            self.refill(&mut state, cache, lane, ClassId::for_size(bytes));
        }
        cache.fold_drifted(pool);
        self.check_invariants(&state);
        header.ptr()
    }

    /// Before a large request is served by the pool: takes back what the calling thread's magazine has of large blocks, if that is to be put
    /// together with what is free. Says how short memory is.
    #[inline]
    pub(super) fn pack(&self, state: &mut PoolState, cache: &ThreadCache, key: Key) -> Pressure {
        let pressure = self.pool.pressure(state, cache.active_bytes());
        cache.set_tight(pressure != Pressure::Low);
        if pressure != Pressure::Low || cache.is_stale() || !cache.knows(key) {
            cache.drain(true, &self.pool.directory, |block| self.pool.put_back(state, block));
        }
        pressure
    }

    /// Puts a few more slots of the class into the thread's magazine, so that the next requests need no lock.
    pub(super) fn refill(&self, state: &mut PoolState, cache: &ThreadCache, lane: LaneId, class: ClassId) {
        let count = cache.refill_count((REFILL_BYTES / class.size()).min(REFILL_SLOTS).saturating_sub(1));
        if !cache.has_room(count * class.size()) {
            return;
        }
        let directory = &self.pool.directory;
        let key = Key::new(LaneBits::new(lane), (class.size() / GRANULE) as u32);
        let mut blocks = [NO_BLOCK; REFILL_SLOTS as usize];
        let found = self.pool.refill(state, lane, class, &mut blocks[..count as usize]);
        if found > 0 {
            cache.claim(key, directory, |evicted| self.pool.put_back(state, evicted));
            // The lowest goes on top.
            cache.stock(key, blocks[..found].iter().rev().copied(), directory);
        }
    }
}
