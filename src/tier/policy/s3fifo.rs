//! Three queues, none of which is ever put in order (S3-FIFO, SOSP 2023).

use std::collections::HashMap;

use super::queue::{Ghosts, Moment, Queue};
use super::{Item, Key, VictimPolicy};

/// Uses that are counted: a fourth says nothing more.
const USES_MAX: u8 = 3;
/// The part of the capacity that is for objects on probation: one in so many bytes.
const PROBATION: u64 = 10;

/// New objects are on probation, in a queue for a tenth of the capacity. Who leaves it without two uses goes, and is remembered; others, and
/// those that come back while they are remembered, join the main queue, where each use gives one more round. So what is used once
/// does not push out what is used often.
#[derive(Debug)]
pub struct S3Fifo {
    entries: HashMap<Key, Entry>,
    probation: Queue,
    main: Queue,
    ghosts: Ghosts,
    capacity: u64,
    now: Moment,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    item: Item,
    moment: Moment,
    in_main: bool,
    uses: u8,
}

impl S3Fifo {
    /// For so many bytes of resident objects.
    pub fn new(capacity: u64) -> S3Fifo {
        S3Fifo {
            entries: HashMap::new(),
            probation: Queue::default(),
            main: Queue::default(),
            ghosts: Ghosts::default(),
            capacity,
            now: 0,
        }
    }

    fn queue(&mut self, in_main: bool) -> &mut Queue {
        if in_main { &mut self.main } else { &mut self.probation }
    }

    fn take(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.queue(entry.in_main).remove(entry.moment);
        Some(entry)
    }

    /// Puts an object at the young end of a queue.
    fn enqueue(&mut self, key: Key, item: Item, in_main: bool, uses: u8) {
        self.take(key);
        self.now += 1;
        let moment = self.now;
        self.queue(in_main).push(moment, key, item.size);
        self.entries.insert(key, Entry { item, moment, in_main, uses });
    }
}

impl VictimPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3fifo"
    }

    fn insert(&mut self, key: Key, item: Item) {
        if self.entries.contains_key(&key) {
            self.update(key, item);
            return self.touch(key);
        }
        let came_back = self.ghosts.take(key);
        self.enqueue(key, item, came_back, 0);
    }

    fn touch(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.uses = (entry.uses + 1).min(USES_MAX);
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.item = item;
            let Entry { moment, in_main, .. } = *entry;
            self.queue(in_main).set_size(moment, item.size);
        }
    }

    fn evicted(&mut self, key: Key) {
        let Some(entry) = self.take(key) else { return };
        if !entry.in_main {
            self.now += 1;
            self.ghosts.push(self.now, key, entry.item.size);
            self.ghosts.trim(self.capacity);
        }
    }

    fn remove(&mut self, key: Key) {
        self.take(key);
        self.ghosts.take(key);
    }

    fn victims(&mut self, bytes: u64, may_go: &mut dyn FnMut(Key) -> bool) -> Vec<Key> {
        let (mut victims, mut freed) = (Vec::new(), 0u64);
        // How far each queue has been looked at. What is promoted or gets another round is put behind, and comes by again.
        let (mut probation_at, mut main_at) = (None, None);
        // What of the probation queue has been chosen.
        let mut leaving = 0;
        while freed < bytes {
            let on_probation = self.probation.after(probation_at);
            let in_main = self.main.after(main_at);
            let over = self.probation.bytes() - leaving > self.capacity / PROBATION;
            let (moment, key) = match (on_probation, in_main) {
                (Some(found), None) => found,
                (Some(found), Some(_)) if over => found,
                (_, Some(found)) => found,
                (None, None) => break,
            };
            let entry = self.entries[&key];
            *(if entry.in_main { &mut main_at } else { &mut probation_at }) = Some(moment);
            if !may_go(key) {
                continue;
            }
            match (entry.in_main, entry.uses) {
                (true, 1..) => self.enqueue(key, entry.item, true, entry.uses - 1),
                (false, 2..) => self.enqueue(key, entry.item, true, 0),
                (in_main, _) => {
                    leaving += if in_main { 0 } else { entry.item.size };
                    freed = freed.saturating_add(entry.item.frees);
                    victims.push(key);
                }
            }
        }
        victims
    }

    fn resize(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.ghosts.trim(capacity);
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}
