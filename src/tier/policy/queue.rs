//! Queues of keys by the moment at which they came, and the keys of what has gone.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::Key;

/// A moment: a policy's count of what it was told. Each is given to one key only.
pub(super) type Moment = u64;

/// Keys in the order of their moments, and how many bytes they stand for.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BTreeMap<Moment, (Key, u64)>,
    bytes: u64,
}

impl Queue {
    pub fn push(&mut self, moment: Moment, key: Key, size: u64) {
        let before = self.order.insert(moment, (key, size));
        debug_assert!(before.is_none(), "a moment is given once");
        self.bytes += size;
    }

    pub fn remove(&mut self, moment: Moment) {
        if let Some((_, size)) = self.order.remove(&moment) {
            self.bytes -= size;
        }
    }

    pub fn set_size(&mut self, moment: Moment, size: u64) {
        if let Some((_, known)) = self.order.get_mut(&moment) {
            self.bytes = self.bytes - *known + size;
            *known = size;
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The oldest key that came after `cursor`.
    pub fn after(&self, cursor: Option<Moment>) -> Option<(Moment, Key)> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        self.order.range((from, Bound::Unbounded)).next().map(|(&moment, &(key, _))| (moment, key))
    }

    /// All keys, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Key> + '_ {
        self.order.values().map(|&(key, _)| key)
    }

    fn pop(&mut self) -> Option<Key> {
        let (_, (key, size)) = self.order.pop_first()?;
        self.bytes -= size;
        Some(key)
    }
}

/// Keys of objects that are not resident any more, the oldest of which are forgotten.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    queue: Queue,
    moments: HashMap<Key, Moment>,
}

impl Ghosts {
    pub fn push(&mut self, moment: Moment, key: Key, size: u64) {
        self.take(key);
        self.queue.push(moment, key, size);
        self.moments.insert(key, moment);
    }

    /// Whether the key was there; it is not any more.
    pub fn take(&mut self, key: Key) -> bool {
        let moment = self.moments.remove(&key);
        moment.inspect(|&moment| self.queue.remove(moment)).is_some()
    }

    pub fn bytes(&self) -> u64 {
        self.queue.bytes()
    }

    /// Forgets the oldest until they stand for no more than `bytes`.
    pub fn trim(&mut self, bytes: u64) {
        while self.queue.bytes() > bytes {
            let Some(key) = self.queue.pop() else { return };
            self.moments.remove(&key);
        }
    }
}
