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
pub(crate) struct PrivatePools {
    /// The pools that have users.
    users: HashMap<PoolId, Users>,
    /// Pools that have been, ever.
    born: u64,
    /// Pools that requests go to now, newest last.
    open: Vec<Open>,
    /// Captures under way that were told of apart from any pool.
    captures: usize,
    /// Pools whose free memory others may have rather than fail, in the order in which that was said.
    lending: Vec<PoolId>,
}

/// Who uses a pool: graphs and explicit references.
#[derive(Debug)]
struct Users {
    count: usize,
    /// Tells pools apart that have had the same number.
    birth: u64,
    /// Whether a capture may have filled it: its graphs use its memory whenever they like.
    captured: bool,
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
    pub(crate) fn capturing(&self) -> bool {
        self.captures > 0 || self.open.iter().any(|open| open.capture)
    }

    /// Whether requests may go to a private pool, so that every one has to ask.
    #[inline]
    pub(crate) fn routing(&self) -> bool {
        !self.open.is_empty()
    }

    /// Where requests of `stream` go now.
    pub(crate) fn route(&self, stream: StreamId) -> Option<PoolId> {
        self.open.iter().rev().find(|open| (open.filter)(stream)).map(|open| open.pool)
    }

    pub(crate) fn begin(&mut self, pool: PoolId, filter: StreamFilter, capture: bool) -> Result<()> {
        if self.open.iter().any(|open| open.pool == pool) {
            return Err(Error::UnknownPool { pool, what: "is being filled already" });
        }
        self.retain(pool);
        let captured = capture || self.captures > 0;
        if let Some(users) = self.users.get_mut(&pool) {
            users.captured |= captured;
        }
        self.open.push(Open { pool, filter, capture });
        Ok(())
    }

    /// One user more, of a pool that need not exist yet.
    pub(crate) fn retain(&mut self, pool: PoolId) {
        let users = self.users.entry(pool).or_insert_with(|| {
            self.born += 1;
            Users { count: 0, birth: self.born, captured: false }
        });
        users.count += 1;
    }

    pub(crate) fn users(&self, pool: PoolId) -> usize {
        self.users.get(&pool).map_or(0, |users| users.count)
    }

    /// When a pool came into being, as a number, if it has users.
    pub(crate) fn birth(&self, pool: PoolId) -> Result<u64> {
        let users = self.users.get(&pool).ok_or(Error::UnknownPool { pool, what: "does not exist" })?;
        Ok(users.birth)
    }

    /// A capture begins or ends on the device.
    pub(crate) fn mark_capture(&mut self, begins: bool) -> Result<()> {
        let captures = if begins { self.captures.checked_add(1) } else { self.captures.checked_sub(1) };
        self.captures = captures.ok_or(Error::NotCapturing)?;
        for open in self.open.iter().filter(|_| begins) {
            self.users.entry(open.pool).and_modify(|users| users.captured = true);
        }
        Ok(())
    }

    pub(crate) fn set_lending(&mut self, pool: PoolId, lends: bool) -> Result<()> {
        self.birth(pool)?;
        self.lending.retain(|&other| other != pool);
        if lends {
            self.lending.push(pool);
        }
        Ok(())
    }

    /// Whether a pool could lend, which it does not yet: no graph uses its memory behind our back.
    pub(crate) fn may_lend(&self, pool: PoolId) -> bool {
        !self.lending.contains(&pool) && self.users.get(&pool).is_some_and(|users| !users.captured)
    }

    /// Whether requests go to the pool now.
    pub(crate) fn is_open(&self, pool: PoolId) -> bool {
        self.open.iter().any(|open| open.pool == pool)
    }

    /// The pools whose free memory others may have rather than fail.
    pub(crate) fn lending(&self) -> &[PoolId] {
        &self.lending
    }

    /// Returns the filter, which the caller drops without the lock: its drop is user code.
    pub(crate) fn end(&mut self, pool: PoolId) -> Result<StreamFilter> {
        let at = self.open.iter().position(|open| open.pool == pool);
        let at = at.ok_or(Error::UnknownPool { pool, what: "is not being filled" })?;
        Ok(self.open.remove(at).filter)
    }

    /// Drops one user. Returns whether it was the last.
    pub(crate) fn release(&mut self, pool: PoolId) -> Result<bool> {
        if self.open.iter().any(|open| open.pool == pool) {
            return Err(Error::Capturing { what: "releasing a private pool" });
        }
        let users = self.users.get_mut(&pool).ok_or(Error::UnknownPool { pool, what: "does not exist" })?;
        users.count -= 1;
        let last = users.count == 0;
        if last {
            self.users.remove(&pool);
            self.lending.retain(|&other| other != pool);
        }
        Ok(last)
    }
}
