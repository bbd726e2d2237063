//! Bytes in use by kind, for tests: what `softcudaAccount` gives.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::space::Kind;

/// Bytes and how many allocations they are.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    bytes: AtomicU64,
    count: AtomicU64,
}

impl Counter {
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    pub(crate) fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.count.fetch_sub(1, Relaxed);
    }

    pub(crate) fn get(&self) -> (u64, u64) {
        (self.bytes.load(Relaxed), self.count.load(Relaxed))
    }
}

/// One device's account, without what the software device counts itself.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) plain: Counter,
    pub(crate) managed: Counter,
    pub(crate) arrays: Counter,
    pub(crate) pool_used: Counter,
    pub(crate) pool_reserved: Counter,
    pub(crate) graph: Counter,
    pub(crate) host: Counter,
    pub(crate) registered: Counter,
    pub(crate) shared: Counter,
}

impl Account {
    /// The counter of a kind. Reservations are counted by the software device.
    pub(crate) fn of(&self, kind: Kind) -> Option<&Counter> {
        Some(match kind {
            Kind::Plain => &self.plain,
            Kind::Managed => &self.managed,
            Kind::Array => &self.arrays,
            Kind::Pool { .. } => &self.pool_used,
            Kind::Graph => &self.graph,
            Kind::Host { .. } => &self.host,
            Kind::Registered { .. } => &self.registered,
            Kind::Shared => &self.shared,
            Kind::Reservation => return None,
        })
    }
}
