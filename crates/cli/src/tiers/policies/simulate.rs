//! A workload in a room, with somebody who chooses what has to leave.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use stratalloc::tier::policy::{Item, Key, Policy, VictimPolicy};

use super::access::{Access, Workload};

/// Who chooses.
#[derive(Debug, Clone, Copy)]
pub enum Chooser {
    /// A policy.
    Policy(Policy),
    /// A policy, with `tier_admission:again`: what has not been wanted back before pushes nothing out.
    Again(Policy),
    /// Somebody who knows what comes.
    Oracle,
}

impl Chooser {
    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Chooser::Policy(policy) => policy.name(),
            Chooser::Again(Policy::Lru) => "lru again",
            Chooser::Again(Policy::S3Fifo) => "s3fifo again",
            Chooser::Again(Policy::Arc) => "arc again",
            Chooser::Again(_) => "cost again",
            Chooser::Oracle => "oracle",
        }
    }
}

/// What came of it, in bytes or blocks, and in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// What was used.
    pub used: u128,
    /// What of it was there.
    pub found: u128,
    /// What bringing back everything that was used would cost.
    pub cost: u128,
    /// What bringing back what was missing costs.
    pub paid: u128,
    /// What was stored.
    pub stored: u128,
}

struct Room<'a> {
    items: &'a HashMap<Key, Item>,
    policy: Box<dyn VictimPolicy>,
    there: HashSet<Key>,
    bytes: u64,
    capacity: u64,
    /// With `tier_admission:again`: what has been wanted back.
    wanted: Option<HashSet<Key>>,
    tally: Tally,
}

/// Runs a workload in a room of `capacity` bytes or blocks.
pub fn run(workload: &Workload, capacity: u64, chooser: Chooser) -> Tally {
    let policy = match chooser {
        Chooser::Policy(policy) | Chooser::Again(policy) => policy.build(capacity),
        Chooser::Oracle => Box::new(Oracle::new(workload)),
    };
    let (there, tally) = (HashSet::new(), Tally::default());
    let wanted = matches!(chooser, Chooser::Again(_)).then(HashSet::new);
    let mut room = Room { items: &workload.items, policy, there, bytes: 0, capacity, wanted, tally };
    for access in &workload.accesses {
        match access {
            Access::Make(key) => room.bring(*key),
            Access::Use(key) => {
                room.count(*key, room.there.contains(key));
                room.bring(*key);
            }
            Access::Free(key) => room.free(*key),
            Access::Prompt(keys) => {
                let found = keys.iter().take_while(|key| room.there.contains(key)).count();
                keys.iter().enumerate().for_each(|(at, key)| room.count(*key, at < found));
                let order: Box<dyn Iterator<Item = &Key>> =
                    if workload.leaf_first { Box::new(keys.iter().rev()) } else { Box::new(keys.iter()) };
                order.for_each(|key| room.bring(*key));
            }
        }
    }
    room.tally
}

impl Room<'_> {
    fn count(&mut self, key: Key, is_found: bool) {
        let item = &self.items[&key];
        let (size, cost) = (u128::from(item.size), u128::from(item.cost_ns()));
        self.tally.used += size;
        self.tally.cost += cost;
        *(if is_found { &mut self.tally.found } else { &mut self.tally.paid }) += if is_found { size } else { cost };
    }

    /// Uses what is there, and brings what is not. What is larger than the room stays outside.
    fn bring(&mut self, key: Key) {
        let item = self.items[&key];
        if self.there.contains(&key) {
            return self.policy.touch(key);
        }
        if item.size > self.capacity {
            return;
        }
        let excess = (self.bytes + item.size).saturating_sub(self.capacity);
        // Asked for the first time, it is remembered; it was not there, so the next time it is wanted back.
        if let Some(wanted) = &mut self.wanted
            && wanted.insert(key)
            && excess > 0
        {
            return;
        }
        self.tally.stored += u128::from(item.size);
        for victim in self.policy.victims(excess, &mut |_| true) {
            self.policy.evicted(victim);
            self.leave(victim);
        }
        self.policy.insert(key, item);
        self.there.insert(key);
        self.bytes += item.size;
    }

    fn leave(&mut self, key: Key) {
        if self.there.remove(&key) {
            self.bytes -= self.items[&key].size;
        }
    }

    fn free(&mut self, key: Key) {
        self.policy.remove(key);
        self.leave(key);
        if let Some(wanted) = &mut self.wanted {
            wanted.remove(&key);
        }
    }
}

/// What is used last goes first. With objects of one size and each use counted, nobody finds more.
#[derive(Debug)]
struct Oracle {
    /// When each key is used from now on.
    uses: HashMap<Key, VecDeque<usize>>,
    order: BTreeSet<(usize, Key)>,
    next: HashMap<Key, (usize, u64)>,
}

impl Oracle {
    fn new(workload: &Workload) -> Oracle {
        let mut uses: HashMap<Key, VecDeque<usize>> = HashMap::new();
        for (at, access) in workload.accesses.iter().enumerate() {
            let keys = match access {
                Access::Make(key) | Access::Use(key) => std::slice::from_ref(key),
                Access::Prompt(keys) => keys,
                Access::Free(_) => &[],
            };
            keys.iter().for_each(|key| uses.entry(*key).or_default().push_back(at));
        }
        Oracle { uses, order: BTreeSet::new(), next: HashMap::new() }
    }
}

impl VictimPolicy for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn insert(&mut self, key: Key, item: Item) {
        self.evicted(key);
        let next = self.uses.get_mut(&key).and_then(|uses| {
            uses.pop_front();
            uses.front().copied()
        });
        let next = next.unwrap_or(usize::MAX);
        self.order.insert((next, key));
        self.next.insert(key, (next, item.frees));
    }

    fn touch(&mut self, key: Key) {
        if let Some(&(_, frees)) = self.next.get(&key) {
            self.insert(key, Item { size: frees, frees, transfer_ns: 0, recompute_ns: None });
        }
    }

    fn update(&mut self, _key: Key, _item: Item) {}

    fn evicted(&mut self, key: Key) {
        if let Some((next, _)) = self.next.remove(&key) {
            self.order.remove(&(next, key));
        }
    }

    fn remove(&mut self, key: Key) {
        self.evicted(key);
    }

    fn victims(&mut self, bytes: u64, may_go: &mut dyn FnMut(Key) -> bool) -> Vec<Key> {
        let (mut victims, mut freed) = (Vec::new(), 0);
        for &(_, key) in self.order.iter().rev() {
            if freed >= bytes {
                break;
            }
            if may_go(key) {
                freed += self.next[&key].1;
                victims.push(key);
            }
        }
        victims
    }

    fn len(&self) -> usize {
        self.next.len()
    }
}
