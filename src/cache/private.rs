//! Private pools and captures, as threads see them: while requests may go to a private pool, every call takes the lock.

use super::{DeviceCache, threads};
use crate::error::{Error, Result};
use crate::pool::{Checkpoint, Moved, StreamFilter};
use crate::telemetry::{Event, EventKind, Rung};
use crate::units::{PoolId, StreamId};

impl DeviceCache {
    /// Sends requests of the streams that `filter` names to a private pool, until [`DeviceCache::end_private`].
    pub(crate) fn begin_private(&self, id: PoolId, filter: StreamFilter, capture: bool) -> Result<()> {
        // Dropped after the lock, if it is refused: its drop is user code.
        let _refused = filter.clone();
        let mut state = self.pool.lock();
        state.private.begin(id, filter, capture)?;
        let threads = self.threads.lock();
        threads.iter().for_each(|cache| cache.gate.set_slow(true));
        // Whoever is inside a gate now still routes as before.
        self.with_closed(&threads, |_| ());
        Ok(())
    }

    pub(crate) fn end_private(&self, id: PoolId) -> Result<()> {
        let _ended;
        let mut state = self.pool.lock();
        _ended = state.private.end(id)?;
        let slow = self.goes_slow(&state);
        self.threads.lock().iter().for_each(|cache| cache.gate.set_slow(slow));
        Ok(())
    }

    pub(crate) fn retain_private(&self, id: PoolId) {
        self.pool.lock().private.retain(id);
    }

    pub(crate) fn release_private(&self, id: PoolId) -> Result<()> {
        self.pool.lock().release_private(id)
    }

    pub(crate) fn private_users(&self, id: PoolId) -> usize {
        self.pool.lock().private.users(id)
    }

    /// Where requests of a stream go now.
    pub(crate) fn private_of(&self, stream: StreamId) -> Option<PoolId> {
        self.pool.lock().private.route(stream)
    }

    pub(crate) fn set_lending(&self, id: PoolId, lends: bool) -> Result<()> {
        self.pool.lock().private.set_lending(id, lends)
    }

    pub(crate) fn mark_capture(&self, begins: bool) -> Result<()> {
        self.pool.lock().private.mark_capture(begins)
    }

    pub(crate) fn empty_private(&self, id: PoolId) -> Result<u64> {
        let mut state = self.pool.lock();
        let bytes = self.pool.empty_private(&mut state, self, id)?;
        self.check_invariants(&state);
        Ok(bytes)
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
            self.count_free(cache, requested, key, key.bytes(), tag);
            let event = Event::new(EventKind::Free, ptr, requested).tag(tag);
            pool.ring.push(state.on_lane(event, key.lane()));
        }
        for &Moved { ptr, key, .. } in &after {
            pool.forget_contents(&mut state, ptr.0, key.bytes());
        }
        for &Moved { ptr, key, requested, tag, .. } in after.iter().filter(|moved| !moved.stays) {
            state.count(Rung::Own);
            self.count_alloc(cache, requested, key, tag);
            let event = Event::new(EventKind::Alloc, ptr, requested).tag(tag);
            pool.ring.push(state.on_lane(event, key.lane()));
        }
        if let Some(cache) = cache {
            cache.fold_drifted(pool);
        }
        self.check_invariants(&state);
        Ok((before, after))
    }
}
