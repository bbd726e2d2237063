//! Private pools: memory that graphs, or whoever asks for it, keep to themselves.

use std::sync::Arc;

use super::Allocator;
use crate::error::Result;
use crate::pool::{Checkpoint, StreamFilter};
use crate::units::{DevicePtr, PoolId, StreamId};

/// What [`Allocator::restore`] did. A block that was live and stays so is in both lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Restored {
    /// The blocks that were live before.
    pub freed: Vec<DevicePtr>,
    /// The blocks that are live now, with their sizes in bytes.
    pub allocated: Vec<(DevicePtr, u64)>,
}

impl Allocator {
    /// From now on, requests of the streams that `filter` names are served from private pool `pool`, whose memory nobody else gets: what a
    /// graph capture needs. The filter is called with a lock held and must not call the allocator. Until [`Allocator::end_private_pool`] no
    /// events are recorded or asked for, and every call takes a lock. Counts one user of the pool, which [`Allocator::release_private_pool`]
    /// takes back.
    pub fn begin_private_pool(
        &self,
        device: usize,
        pool: PoolId,
        filter: impl Fn(StreamId) -> bool + Send + Sync + 'static,
    ) -> Result<()> {
        let filter: StreamFilter = Arc::new(filter);
        self.device(device)?.begin_private(pool, filter, true)
    }

    /// [`Allocator::begin_private_pool`] where the caller says apart when a capture begins and ends, by [`Allocator::begin_capture`] and
    /// [`Allocator::end_capture`]: outside of captures, events are recorded and asked for as ever.
    pub fn route_private_pool(
        &self,
        device: usize,
        pool: PoolId,
        filter: impl Fn(StreamId) -> bool + Send + Sync + 'static,
    ) -> Result<()> {
        let filter: StreamFilter = Arc::new(filter);
        self.device(device)?.begin_private(pool, filter, false)
    }

    /// Ends [`Allocator::begin_private_pool`]. The pool keeps its memory, for replays.
    pub fn end_private_pool(&self, device: usize, pool: PoolId) -> Result<()> {
        self.device(device)?.end_private(pool)
    }

    /// A stream of the device is being captured from now on: no event may be recorded or asked for. Captures may nest.
    pub fn begin_capture(&self, device: usize) -> Result<()> {
        self.device(device)?.mark_capture(true)
    }

    /// Ends [`Allocator::begin_capture`].
    pub fn end_capture(&self, device: usize) -> Result<()> {
        self.device(device)?.mark_capture(false)
    }

    /// Counts one user more of a private pool, which comes into being if need be.
    pub fn retain_private_pool(&self, device: usize, pool: PoolId) -> Result<()> {
        self.device(device)?.retain_private(pool);
        Ok(())
    }

    /// Takes one user of a private pool back: one call for each begin and each retain. After the last, its free memory becomes everyone's, once
    /// the device has been waited for. Fails while the pool is being filled.
    pub fn release_private_pool(&self, device: usize, pool: PoolId) -> Result<()> {
        self.device(device)?.release_private(pool)
    }

    /// The private pool that requests of a stream go to now, if they do.
    pub fn private_pool_of(&self, device: usize, stream: StreamId) -> Result<Option<PoolId>> {
        Ok(self.device(device)?.private_of(stream))
    }

    /// How many users a private pool has; 0 where there is none.
    pub fn private_pool_users(&self, device: usize, pool: PoolId) -> Result<usize> {
        Ok(self.device(device)?.private_users(pool))
    }

    /// Gives the free memory of a private pool whose last user has gone back to the device, after waiting for it. A pool that has users keeps
    /// all of it. Returns the bytes given back.
    pub fn empty_private_pool(&self, device: usize, pool: PoolId) -> Result<u64> {
        self.device(device)?.empty_private(pool)
    }

    /// Whether free memory of a private pool may serve other requests of the same stream rather than have them fail.
    pub fn lend_private_pool(&self, device: usize, pool: PoolId, lends: bool) -> Result<()> {
        self.device(device)?.set_lending(pool, lends)
    }

    /// Notes which blocks of a private pool are live, for [`Allocator::restore`].
    pub fn checkpoint(&self, device: usize, pool: PoolId) -> Result<Checkpoint> {
        self.device(device)?.checkpoint(pool)
    }

    /// Makes exactly those blocks of a private pool live again that were when the checkpoint was taken, at the same addresses: others are freed,
    /// missing ones handed out, whatever limit their tags have got since. Whoever held a freed block must not free it again.
    pub fn restore(&self, device: usize, to: &Checkpoint) -> Result<Restored> {
        let (before, after) = self.device(device)?.restore(to)?;
        let freed = before.iter().map(|moved| moved.ptr).collect();
        let allocated = after.iter().map(|moved| (moved.ptr, moved.key.bytes())).collect();
        Ok(Restored { freed, allocated })
    }
}
