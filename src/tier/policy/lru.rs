//! What was used longest ago goes first.

use std::collections::HashMap;

use super::queue::{Moment, Queue};
use super::{Item, Key, VictimPolicy};

/// What was used longest ago goes first, whatever it costs. The yardstick, and right for stacks: activations are needed again in the
/// reverse order of their use.
#[derive(Debug, Default)]
pub struct Lru {
    entries: HashMap<Key, (Item, Moment)>,
    queue: Queue,
    now: Moment,
}

impl Lru {
    /// Knows nothing yet.
    pub fn new() -> Lru {
        Lru::default()
    }
}

impl VictimPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, key: Key, item: Item) {
        self.remove(key);
        self.now += 1;
        self.queue.push(self.now, key, item.size);
        self.entries.insert(key, (item, self.now));
    }

    fn touch(&mut self, key: Key) {
        if let Some(&(item, _)) = self.entries.get(&key) {
            self.insert(key, item);
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        if let Some((known, moment)) = self.entries.get_mut(&key) {
            *known = item;
            self.queue.set_size(*moment, item.size);
        }
    }

    fn evicted(&mut self, key: Key) {
        self.remove(key);
    }

    fn remove(&mut self, key: Key) {
        if let Some((_, moment)) = self.entries.remove(&key) {
            self.queue.remove(moment);
        }
    }

    fn victims(&mut self, bytes: u64, may_go: &mut dyn FnMut(Key) -> bool) -> Vec<Key> {
        let (mut victims, mut freed) = (Vec::new(), 0u64);
        for key in self.queue.iter() {
            if freed >= bytes {
                break;
            }
            if may_go(key) {
                freed = freed.saturating_add(self.entries[&key].0.frees);
                victims.push(key);
            }
        }
        victims
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}
