//! Private pools and captures, as threads see them: while requests may go to a private pool, every call takes the lock.

use super::{DeviceCache, threads};
use crate::error::{Error, Result};
use crate::pool::{Checkpoint, Moved, PoolState, StreamFilter};
use crate::telemetry::{Event, EventKind, Rung};
use crate::units::{PoolId, StreamId};

impl DeviceCache {
    /// Sends requests of the streams that `filter` names to a private pool, until [`DeviceCache::end_private`].
    pub(crate) fn begin_private(&self, id: PoolId, filter: StreamFilter, capture: bool) -> Result<()> {
        // Dropped after the lock, if it is refused: its drop is user code.
        let _refused = filter.clone();
        let mut state = self.pool.lock();
        self.pool.begin_private(&mut state, id, filter, capture)?;
        let threads = self.threads.lock();
        threads.iter().for_each(|cache| cache.gate.set_slow(true));
        // Whoever is inside a gate now still routes as before.
        self.with_closed(&threads, |_| ());
        Ok(())
    }

    pub(crate) fn end_private(&self, id: PoolId) -> Result<()> {
        let _ended;
        let mut state = self.pool.lock();
        _ended = self.pool.end_private(&mut state, id)?;
        let slow = self.goes_slow(&state);
        self.threads.lock().iter().for_each(|cache| cache.gate.set_slow(slow));
        Ok(())
    }

    pub(crate) fn retain_private(&self, id: PoolId) {
        self.pool.retain_private(&mut self.pool.lock(), id);
    }

    pub(crate) fn release_private(&self, id: PoolId) -> Result<()> {
        let mut state = self.pool.lock();
        self.pool.release_private(&mut state, id)
    }

    pub(crate) fn private_users(&self, id: PoolId) -> usize {
        self.pool.private_users(&self.pool.lock(), id)
    }

    /// Where requests of a stream go now.
    pub(crate) fn private_of(&self, stream: StreamId) -> Option<PoolId> {
        self.pool.private_route(&self.pool.lock(), stream)
    }

    pub(crate) fn set_lending(&self, id: PoolId, lends: bool) -> Result<()> {
        self.pool.set_lending(&mut self.pool.lock(), id, lends)
    }

    pub(crate) fn mark_capture(&self, begins: bool) -> Result<()> {
        self.pool.mark_capture(&mut self.pool.lock(), begins)
    }

    pub(crate) fn empty_private(&self, id: PoolId) -> Result<u64> {
        let mut state = self.pool.lock();
        let bytes = self.pool.empty_private(&mut state, self, id)?;
        self.check_invariants(&state);
        Ok(bytes)
    }

    /// Runs `work` with no block in any magazine, and no thread on the hot path.
    pub(super) fn with_all_drained<T>(&self, state: &mut PoolState, work: impl FnOnce(&mut PoolState) -> T) -> T {
        let threads = self.threads.lock();
        self.with_closed(&threads, |threads| {
            for cache in threads {
                cache.drain(false, &self.pool.directory, |block| self.pool.put_back(state, block));
            }
            work(state)
        })
    }

    pub(crate) fn checkpoint(&self, id: PoolId) -> Result<Checkpoint> {
        let mut state = self.pool.lock();
        self.with_all_drained(&mut state, |state| self.pool.checkpoint(state, id, self.number))
    }

    /// Makes exactly the checkpoint's blocks live in its pool. Returns what was live before, and what is after.
    pub(crate) fn restore(&self, to: &Checkpoint) -> Result<(Vec<Moved>, Vec<Moved>)> {
        if to.device_number != self.number {
            return Err(Error::UnknownPool { pool: to.pool, what: "belongs to another device or allocator" });
        }
        let cache = threads::current_or_new(self);
        let pool = &self.pool;
        let mut state = pool.lock();
        let (before, after) = self.with_all_drained(&mut state, |state| pool.restore(state, to))?;
        for &Moved { ptr, key, requested, tag, .. } in before.iter().filter(|moved| !moved.stays) {
            match cache {
                Some(cache) => cache.count_free(requested, key, key.bytes(), tag),
                None => self.retired.lock().count_free(requested, key, key.bytes(), tag, pool),
            }
            let event = Event::new(EventKind::Free, ptr, requested).tag(tag);
            pool.ring.push(event.on(pool.lane_stream(&state, key.lane()), Some(to.pool)));
        }
        for &Moved { ptr, key, .. } in &after {
            pool.forget_contents(&mut state, ptr.0, key.bytes());
        }
        for &Moved { ptr, key, requested, tag, .. } in after.iter().filter(|moved| !moved.stays) {
            pool.count(&mut state, Rung::Own);
            match cache {
                Some(cache) => cache.count_alloc(requested, key, tag),
                None => self.retired.lock().count_alloc(requested, key, tag, pool),
            }
            let event = Event::new(EventKind::Alloc, ptr, requested).tag(tag);
            pool.ring.push(event.on(pool.lane_stream(&state, key.lane()), Some(to.pool)));
        }
        if let Some(cache) = cache {
            cache.fold_drifted(pool);
        }
        self.check_invariants(&state);
        Ok((before, after))
    }
}
