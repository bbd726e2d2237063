//! Private pools: memory that graphs keep to themselves, since their replays use the addresses again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::lanes::PoolId;
use crate::error::{Error, Result};
use crate::units::StreamId;

/// Says whether requests of a stream go to the private pool. Called with the pool's lock held: it must not call the allocator.
pub(crate) type StreamFilter = Arc<dyn Fn(StreamId) -> bool + Send + Sync>;

/// The private pools of a device, and which are being filled.
#[derive(Default)]
pub(super) struct PrivatePools {
    /// Users of each pool: graphs and explicit references.
    users: HashMap<PoolId, usize>,
    /// Pools that requests go to now, newest last.
    open: Vec<(PoolId, StreamFilter)>,
}

impl fmt::Debug for PrivatePools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivatePools").field("users", &self.users).field("open", &self.open.len()).finish()
    }
}

impl PrivatePools {
    /// Whether any pool is being filled, which means that a capture may be under way.
    #[inline]
    pub(super) fn capturing(&self) -> bool {
        !self.open.is_empty()
    }

    /// Where requests of `stream` go now.
    pub(super) fn route(&self, stream: StreamId) -> Option<PoolId> {
        self.open.iter().rev().find(|(_, filter)| filter(stream)).map(|&(pool, _)| pool)
    }

    pub(super) fn begin(&mut self, pool: PoolId, filter: StreamFilter) -> Result<()> {
        if self.open.iter().any(|&(open, _)| open == pool) {
            return Err(Error::UnknownPool { pool: pool.0, what: "is being filled already" });
        }
        *self.users.entry(pool).or_default() += 1;
        self.open.push((pool, filter));
        Ok(())
    }

    /// Returns the filter, which the caller drops without the lock: its drop is user code.
    pub(super) fn end(&mut self, pool: PoolId) -> Result<StreamFilter> {
        let at = self.open.iter().position(|&(open, _)| open == pool);
        let at = at.ok_or(Error::UnknownPool { pool: pool.0, what: "is not being filled" })?;
        Ok(self.open.remove(at).1)
    }

    /// Drops one user. Returns whether it was the last.
    pub(super) fn release(&mut self, pool: PoolId) -> Result<bool> {
        if self.open.iter().any(|&(open, _)| open == pool) {
            return Err(Error::Capturing { what: "releasing a private pool" });
        }
        let users = self.users.get_mut(&pool).ok_or(Error::UnknownPool { pool: pool.0, what: "does not exist" })?;
        *users -= 1;
        let last = *users == 0;
        if last {
            self.users.remove(&pool);
        }
        Ok(last)
    }
}
