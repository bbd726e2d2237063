//! Who goes first when room is needed: the order in which resident objects are given to a tier.
//!
//! A [`VictimPolicy`] is told what becomes resident, what is used and what goes, and proposes victims. It decides nothing else: whether
//! a victim really goes, and where to, is its owner's business, who says so by [`VictimPolicy::evicted`]. Policies are pure: time is
//! counted in touches, and no answer depends on the order of a hash table.

mod arc;
mod cost;
mod lru;
mod queue;
mod s3fifo;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use arc::AdaptiveReplacement;
pub use cost::CostAware;
pub use lru::Lru;
pub use s3fifo::S3Fifo;

/// What a policy calls an object. The same object keeps its key while it is away.
pub type Key = u64;

/// What a policy knows of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its size in bytes.
    pub size: u64,
    /// Physical bytes that become free when it goes: less than its size where it shares its pages with others that stay.
    pub frees: u64,
    /// How long it takes to bring its bytes back, in nanoseconds.
    pub transfer_ns: u64,
    /// How long it takes to compute it again, in nanoseconds, where that is possible.
    pub recompute_ns: Option<u64>,
}

impl Item {
    /// The cheaper way of having it back, in nanoseconds.
    pub fn cost_ns(&self) -> u64 {
        self.recompute_ns.map_or(self.transfer_ns, |recompute| recompute.min(self.transfer_ns))
    }
}

/// Chooses among resident objects. Calls that name a key which is not resident change nothing, unless they say otherwise.
pub trait VictimPolicy: Send + fmt::Debug {
    /// The name by which [`Policy`] finds it.
    fn name(&self) -> &'static str;

    /// An object has become resident: it is new, or has come back. What is resident already is touched and updated.
    fn insert(&mut self, key: Key, item: Item);

    /// It is used.
    fn touch(&mut self, key: Key);

    /// What is known of it has changed. That is no use of it.
    fn update(&mut self, key: Key, item: Item);

    /// It has gone to a tier, or was dropped to be computed again. Some policies remember for a while that it was there.
    fn evicted(&mut self, key: Key);

    /// It was freed. Nothing is remembered of it, resident or not.
    fn remove(&mut self, key: Key);

    /// Objects that should go so that `bytes` become free, the first first; fewer where all that may go do not free so many.
    /// Those for which `may_go` is false are passed over. They all stay resident until [`VictimPolicy::evicted`] is called for them.
    fn victims(&mut self, bytes: u64, may_go: &mut dyn FnMut(Key) -> bool) -> Vec<Key>;

    /// How many bytes may be resident has changed.
    fn resize(&mut self, capacity: u64) {
        let _ = capacity;
    }

    /// Objects that are resident.
    fn len(&self) -> usize;

    /// Whether none is.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The policies, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// What was used longest ago.
    Lru,
    /// [`S3Fifo`].
    S3Fifo,
    /// [`AdaptiveReplacement`].
    Arc,
    /// [`CostAware`].
    #[default]
    Cost,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 4] = [Policy::Lru, Policy::S3Fifo, Policy::Arc, Policy::Cost];

    /// What [`Policy::from_str`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Lru => "lru",
            Policy::S3Fifo => "s3fifo",
            Policy::Arc => "arc",
            Policy::Cost => "cost",
        }
    }

    /// A policy for a device on which `capacity` bytes may be resident.
    pub fn build(self, capacity: u64) -> Box<dyn VictimPolicy> {
        match self {
            Policy::Lru => Box::new(Lru::new()),
            Policy::S3Fifo => Box::new(S3Fifo::new(capacity)),
            Policy::Arc => Box::new(AdaptiveReplacement::new(capacity)),
            Policy::Cost => Box::new(CostAware::new()),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = ();

    fn from_str(text: &str) -> Result<Policy, ()> {
        Policy::ALL.into_iter().find(|policy| policy.name() == text).ok_or(())
    }
}
