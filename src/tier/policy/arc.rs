//! Recency against frequency, the balance of which is learned (ARC, FAST 2003).

use std::collections::HashMap;

use super::queue::{Ghosts, Moment, Queue};
use super::{Item, Key, VictimPolicy};

/// Objects used once and objects used again are in a queue each, by recency, and so are the ghosts of both. An object that comes back from
/// among the ghosts says which queue should have been longer. All lengths are in bytes. What room is made for is not known when victims are
/// asked for, so that the balance shifts when the object comes: one eviction later than in the paper.
#[derive(Debug)]
pub struct AdaptiveReplacement {
    entries: HashMap<Key, Entry>,
    once: Queue,
    again: Queue,
    once_ghosts: Ghosts,
    again_ghosts: Ghosts,
    /// Bytes that objects used once should have.
    once_target: u64,
    capacity: u64,
    now: Moment,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    item: Item,
    moment: Moment,
    again: bool,
}

impl AdaptiveReplacement {
    /// For so many bytes of resident objects.
    pub fn new(capacity: u64) -> AdaptiveReplacement {
        AdaptiveReplacement {
            entries: HashMap::new(),
            once: Queue::default(),
            again: Queue::default(),
            once_ghosts: Ghosts::default(),
            again_ghosts: Ghosts::default(),
            once_target: 0,
            capacity,
            now: 0,
        }
    }

    fn queue(&mut self, again: bool) -> &mut Queue {
        if again { &mut self.again } else { &mut self.once }
    }

    fn take(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.queue(entry.again).remove(entry.moment);
        Some(entry)
    }

    fn enqueue(&mut self, key: Key, item: Item, again: bool) {
        self.now += 1;
        let moment = self.now;
        self.queue(again).push(moment, key, item.size);
        self.entries.insert(key, Entry { item, moment, again });
    }

    fn trim(&mut self) {
        self.once_ghosts.trim(self.capacity.saturating_sub(self.once.bytes()));
        let rest = [self.once.bytes(), self.again.bytes(), self.once_ghosts.bytes()];
        let rest = rest.iter().fold(self.capacity.saturating_mul(2), |rest, bytes| rest.saturating_sub(*bytes));
        self.again_ghosts.trim(rest);
    }
}

/// `size` bytes, the more the longer the other ghosts are.
fn shift(size: u64, own: u64, other: u64) -> u64 {
    let scaled = u128::from(size) * u128::from(other) / u128::from(own.max(1));
    size.max(u64::try_from(scaled).unwrap_or(u64::MAX))
}

impl VictimPolicy for AdaptiveReplacement {
    fn name(&self) -> &'static str {
        "arc"
    }

    fn insert(&mut self, key: Key, item: Item) {
        if self.entries.contains_key(&key) {
            self.update(key, item);
            return self.touch(key);
        }
        let (once, again) = (self.once_ghosts.bytes(), self.again_ghosts.bytes());
        let from_once = self.once_ghosts.take(key);
        let from_again = self.again_ghosts.take(key);
        if from_once {
            self.once_target = self.once_target.saturating_add(shift(item.size, once, again)).min(self.capacity);
        } else if from_again {
            self.once_target = self.once_target.saturating_sub(shift(item.size, again, once));
        }
        self.enqueue(key, item, from_once || from_again);
        self.trim();
    }

    fn touch(&mut self, key: Key) {
        if let Some(entry) = self.take(key) {
            self.enqueue(key, entry.item, true);
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.item = item;
            let Entry { moment, again, .. } = *entry;
            self.queue(again).set_size(moment, item.size);
        }
    }

    fn evicted(&mut self, key: Key) {
        let Some(entry) = self.take(key) else { return };
        self.now += 1;
        let ghosts = if entry.again { &mut self.again_ghosts } else { &mut self.once_ghosts };
        ghosts.push(self.now, key, entry.item.size);
        self.trim();
    }

    fn remove(&mut self, key: Key) {
        self.take(key);
        self.once_ghosts.take(key);
        self.again_ghosts.take(key);
    }

    fn victims(&mut self, bytes: u64, may_go: &mut dyn FnMut(Key) -> bool) -> Vec<Key> {
        let (mut victims, mut freed) = (Vec::new(), 0u64);
        let (mut once_at, mut again_at) = (None, None);
        let mut once_left = self.once.bytes();
        while freed < bytes {
            let over = once_left > self.once_target;
            let (moment, key) = match (self.once.after(once_at), self.again.after(again_at)) {
                (Some(found), None) => found,
                (Some(found), Some(_)) if over => found,
                (_, Some(found)) => found,
                (None, None) => break,
            };
            let entry = self.entries[&key];
            *(if entry.again { &mut again_at } else { &mut once_at }) = Some(moment);
            if may_go(key) {
                once_left -= if entry.again { 0 } else { entry.item.size };
                freed = freed.saturating_add(entry.item.frees);
                victims.push(key);
            }
        }
        victims
    }

    fn resize(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.once_target = self.once_target.min(capacity);
        self.trim();
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}
