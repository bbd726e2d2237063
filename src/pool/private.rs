//! Private pools: memory that graphs keep to themselves, since their replays use the addresses again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::units::{PoolId, StreamId};

/// Says whether requests of a stream go to the private pool. Called with the pool's lock held: it must not call the allocator.
pub(crate) type StreamFilter = Arc<dyn Fn(StreamId) -> bool + Send + Sync>;

/// The private pools of a device, and which are being filled.
#[derive(Default)]
pub(super) struct PrivatePools {
    /// Users of each pool: graphs and explicit references.
    users: HashMap<PoolId, usize>,
    /// Pools that requests go to now, newest last.
    open: Vec<Open>,
    /// Captures under way that were told of apart from any pool.
    captures: usize,
    /// Pools whose free memory others may have rather than fail, in the order in which that was said.
    lending: Vec<PoolId>,
}

struct Open {
    pool: PoolId,
    filter: StreamFilter,
    /// Whether the pool is filled by a capture, as far as we know.
    capture: bool,
}

impl fmt::Debug for PrivatePools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivatePools").field("users", &self.users).field("open", &self.open.len()).finish()
    }
}

impl PrivatePools {
    /// Whether a capture may be under way, so that no event may be recorded or asked for.
    #[inline]
    pub(super) fn capturing(&self) -> bool {
        self.captures > 0 || self.open.iter().any(|open| open.capture)
    }

    /// Whether requests may go to a private pool, so that every one has to ask.
    #[inline]
    pub(super) fn routing(&self) -> bool {
        !self.open.is_empty()
    }

    /// Where requests of `stream` go now.
    pub(super) fn route(&self, stream: StreamId) -> Option<PoolId> {
        self.open.iter().rev().find(|open| (open.filter)(stream)).map(|open| open.pool)
    }

    pub(super) fn begin(&mut self, pool: PoolId, filter: StreamFilter, capture: bool) -> Result<()> {
        if self.open.iter().any(|open| open.pool == pool) {
            return Err(Error::UnknownPool { pool, what: "is being filled already" });
        }
        self.retain(pool);
        self.open.push(Open { pool, filter, capture });
        Ok(())
    }

    /// One user more, of a pool that need not exist yet.
    pub(super) fn retain(&mut self, pool: PoolId) {
        *self.users.entry(pool).or_default() += 1;
    }

    pub(super) fn users(&self, pool: PoolId) -> usize {
        self.users.get(&pool).copied().unwrap_or(0)
    }

    pub(super) fn check_exists(&self, pool: PoolId) -> Result<()> {
        if self.users(pool) > 0 { Ok(()) } else { Err(Error::UnknownPool { pool, what: "does not exist" }) }
    }

    /// A capture begins or ends on the device.
    pub(super) fn mark_capture(&mut self, begins: bool) -> Result<()> {
        let captures = if begins { self.captures.checked_add(1) } else { self.captures.checked_sub(1) };
        self.captures = captures.ok_or(Error::NotCapturing)?;
        Ok(())
    }

    pub(super) fn set_lending(&mut self, pool: PoolId, lends: bool) -> Result<()> {
        self.check_exists(pool)?;
        self.lending.retain(|&other| other != pool);
        if lends {
            self.lending.push(pool);
        }
        Ok(())
    }

    /// The pools whose free memory others may have rather than fail.
    pub(super) fn lending(&self) -> &[PoolId] {
        &self.lending
    }

    /// Returns the filter, which the caller drops without the lock: its drop is user code.
    pub(super) fn end(&mut self, pool: PoolId) -> Result<StreamFilter> {
        let at = self.open.iter().position(|open| open.pool == pool);
        let at = at.ok_or(Error::UnknownPool { pool, what: "is not being filled" })?;
        Ok(self.open.remove(at).filter)
    }

    /// Drops one user. Returns whether it was the last.
    pub(super) fn release(&mut self, pool: PoolId) -> Result<bool> {
        if self.open.iter().any(|open| open.pool == pool) {
            return Err(Error::Capturing { what: "releasing a private pool" });
        }
        let users = self.users.get_mut(&pool).ok_or(Error::UnknownPool { pool, what: "does not exist" })?;
        *users -= 1;
        let last = *users == 0;
        if last {
            self.users.remove(&pool);
            self.lending.retain(|&other| other != pool);
        }
        Ok(last)
    }
}
