//! Policies as anyone would write them down: lists, searched from one end to the other.

use std::collections::BTreeSet;

use crate::tier::policy::{Item, Key};

/// A policy whose victims have gone when they are named.
pub(super) trait Naive {
    fn insert(&mut self, key: Key, item: Item);
    fn touch(&mut self, key: Key);
    fn update(&mut self, key: Key, item: Item);
    fn evicted(&mut self, key: Key);
    fn remove(&mut self, key: Key);
    fn make_room(&mut self, bytes: u64, held: &BTreeSet<Key>) -> Vec<Key>;
    fn resize(&mut self, _capacity: u64) {}
    fn len(&self) -> usize;
}

/// The oldest first.
type List = Vec<(Key, Item)>;

fn place(list: &List, key: Key) -> Option<usize> {
    list.iter().position(|(other, _)| *other == key)
}

fn take(list: &mut List, key: Key) -> Option<Item> {
    place(list, key).map(|at| list.remove(at).1)
}

fn set(list: &mut List, key: Key, item: Item) {
    if let Some(at) = place(list, key) {
        list[at].1 = item;
    }
}

fn bytes(list: &List) -> u64 {
    list.iter().map(|(_, item)| item.size).sum()
}

fn trim(list: &mut List, most: u64) {
    while bytes(list) > most {
        list.remove(0);
    }
}

fn first_free(list: &List, held: &BTreeSet<Key>) -> Option<Key> {
    list.iter().map(|(key, _)| *key).find(|key| !held.contains(key))
}

/// Names victims one by one until they free enough.
fn until(wanted: u64, mut next: impl FnMut() -> Option<(Key, Item)>) -> Vec<Key> {
    let (mut victims, mut freed) = (Vec::new(), 0);
    while freed < wanted {
        let Some((key, item)) = next() else { break };
        freed += item.frees;
        victims.push(key);
    }
    victims
}

#[derive(Default)]
pub(super) struct NaiveLru(List);

impl Naive for NaiveLru {
    fn insert(&mut self, key: Key, item: Item) {
        take(&mut self.0, key);
        self.0.push((key, item));
    }

    fn touch(&mut self, key: Key) {
        if let Some(item) = take(&mut self.0, key) {
            self.0.push((key, item));
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        set(&mut self.0, key, item);
    }

    fn evicted(&mut self, key: Key) {
        take(&mut self.0, key);
    }

    fn remove(&mut self, key: Key) {
        take(&mut self.0, key);
    }

    fn make_room(&mut self, wanted: u64, held: &BTreeSet<Key>) -> Vec<Key> {
        until(wanted, || {
            let key = first_free(&self.0, held)?;
            Some((key, take(&mut self.0, key)?))
        })
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

pub(super) struct NaiveS3Fifo {
    capacity: u64,
    small: List,
    main: List,
    ghosts: List,
    uses: std::collections::BTreeMap<Key, u8>,
}

impl NaiveS3Fifo {
    pub fn new(capacity: u64) -> NaiveS3Fifo {
        NaiveS3Fifo { capacity, small: vec![], main: vec![], ghosts: vec![], uses: Default::default() }
    }

    fn next(&mut self, held: &BTreeSet<Key>) -> Option<(Key, Item)> {
        loop {
            let (small, main) = (first_free(&self.small, held), first_free(&self.main, held));
            let from_small = small.is_some() && (main.is_none() || bytes(&self.small) > self.capacity / 10);
            if from_small {
                let key = small?;
                let item = take(&mut self.small, key)?;
                if self.uses.remove(&key)? > 1 {
                    self.main.push((key, item));
                    self.uses.insert(key, 0);
                } else {
                    self.ghosts.push((key, item));
                    return Some((key, item));
                }
            } else {
                let key = main?;
                let item = take(&mut self.main, key)?;
                match self.uses.remove(&key)? {
                    0 => return Some((key, item)),
                    uses => {
                        self.main.push((key, item));
                        self.uses.insert(key, uses - 1);
                    }
                }
            }
        }
    }
}

impl Naive for NaiveS3Fifo {
    fn insert(&mut self, key: Key, item: Item) {
        if self.uses.contains_key(&key) {
            self.update(key, item);
            return self.touch(key);
        }
        let list = if take(&mut self.ghosts, key).is_some() { &mut self.main } else { &mut self.small };
        list.push((key, item));
        self.uses.insert(key, 0);
    }

    fn touch(&mut self, key: Key) {
        if let Some(uses) = self.uses.get_mut(&key) {
            *uses = 3.min(*uses + 1);
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        set(&mut self.small, key, item);
        set(&mut self.main, key, item);
    }

    fn evicted(&mut self, key: Key) {
        self.uses.remove(&key);
        take(&mut self.main, key);
        if let Some(item) = take(&mut self.small, key) {
            self.ghosts.push((key, item));
            trim(&mut self.ghosts, self.capacity);
        }
    }

    fn remove(&mut self, key: Key) {
        self.uses.remove(&key);
        for list in [&mut self.small, &mut self.main, &mut self.ghosts] {
            take(list, key);
        }
    }

    fn make_room(&mut self, wanted: u64, held: &BTreeSet<Key>) -> Vec<Key> {
        let victims = until(wanted, || self.next(held));
        trim(&mut self.ghosts, self.capacity);
        victims
    }

    fn resize(&mut self, capacity: u64) {
        self.capacity = capacity;
        trim(&mut self.ghosts, capacity);
    }

    fn len(&self) -> usize {
        self.uses.len()
    }
}

/// With the names of the paper.
pub(super) struct NaiveArc {
    c: u64,
    p: u64,
    t1: List,
    t2: List,
    b1: List,
    b2: List,
}

impl NaiveArc {
    pub fn new(c: u64) -> NaiveArc {
        NaiveArc { c, p: 0, t1: vec![], t2: vec![], b1: vec![], b2: vec![] }
    }

    fn trim(&mut self) {
        trim(&mut self.b1, self.c.saturating_sub(bytes(&self.t1)));
        let others = bytes(&self.t1) + bytes(&self.t2) + bytes(&self.b1);
        trim(&mut self.b2, (2 * self.c).saturating_sub(others));
    }
}

impl Naive for NaiveArc {
    fn insert(&mut self, key: Key, item: Item) {
        if place(&self.t1, key).is_some() || place(&self.t2, key).is_some() {
            self.update(key, item);
            return self.touch(key);
        }
        let (b1, b2) = (bytes(&self.b1), bytes(&self.b2));
        if take(&mut self.b1, key).is_some() {
            self.p = self.c.min(self.p + item.size.max(item.size * b2 / b1.max(1)));
            self.t2.push((key, item));
        } else if take(&mut self.b2, key).is_some() {
            self.p = self.p.saturating_sub(item.size.max(item.size * b1 / b2.max(1)));
            self.t2.push((key, item));
        } else {
            self.t1.push((key, item));
        }
        self.trim();
    }

    fn touch(&mut self, key: Key) {
        if let Some(item) = take(&mut self.t1, key).or_else(|| take(&mut self.t2, key)) {
            self.t2.push((key, item));
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        set(&mut self.t1, key, item);
        set(&mut self.t2, key, item);
    }

    fn evicted(&mut self, key: Key) {
        if let Some(item) = take(&mut self.t1, key) {
            self.b1.push((key, item));
        } else if let Some(item) = take(&mut self.t2, key) {
            self.b2.push((key, item));
        } else {
            return;
        }
        self.trim();
    }

    fn remove(&mut self, key: Key) {
        for list in [&mut self.t1, &mut self.t2, &mut self.b1, &mut self.b2] {
            take(list, key);
        }
    }

    fn make_room(&mut self, wanted: u64, held: &BTreeSet<Key>) -> Vec<Key> {
        // The ghosts are trimmed as each one goes, which no later choice of this call depends on.
        let mut gone = Vec::new();
        let victims = until(wanted, || {
            let (t1, t2) = (first_free(&self.t1, held), first_free(&self.t2, held));
            let from_t1 = t1.is_some() && (t2.is_none() || bytes(&self.t1) > self.p);
            let key = if from_t1 { t1? } else { t2? };
            let list = if from_t1 { &mut self.t1 } else { &mut self.t2 };
            let item = take(list, key)?;
            gone.push((from_t1, key, item));
            Some((key, item))
        });
        // As the real one is told: all are there until one after the other is said to have gone.
        for (from_t1, key, item) in gone.iter().rev() {
            let list = if *from_t1 { &mut self.t1 } else { &mut self.t2 };
            list.insert(0, (*key, *item));
        }
        for (_, key, _) in gone {
            self.evicted(key);
        }
        victims
    }

    fn resize(&mut self, capacity: u64) {
        self.c = capacity;
        self.p = self.p.min(capacity);
        self.trim();
    }

    fn len(&self) -> usize {
        self.t1.len() + self.t2.len()
    }
}

/// Every object's score, from the definition.
#[derive(Default)]
pub(super) struct NaiveCost {
    /// With the moment of the last use.
    objects: Vec<(Key, Item, u64)>,
    now: u64,
}

impl NaiveCost {
    /// Nanoseconds a byte, to four significant binary digits.
    fn price(item: &Item) -> f64 {
        if item.frees == 0 {
            return u64::MAX as f64;
        }
        let mut price = ((item.cost_ns() << 23) / item.frees) as f64;
        let mut unit = 1.0;
        while price >= 16.0 {
            price = (price / 2.0).floor();
            unit *= 2.0;
        }
        price * unit
    }
}

impl Naive for NaiveCost {
    fn insert(&mut self, key: Key, item: Item) {
        self.remove(key);
        self.now += 1;
        self.objects.push((key, item, self.now));
    }

    fn touch(&mut self, key: Key) {
        if let Some(&(_, item, _)) = self.objects.iter().find(|object| object.0 == key) {
            self.insert(key, item);
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        if let Some(object) = self.objects.iter_mut().find(|object| object.0 == key) {
            object.1 = item;
        }
    }

    fn evicted(&mut self, key: Key) {
        self.remove(key);
    }

    fn remove(&mut self, key: Key) {
        self.objects.retain(|object| object.0 != key);
    }

    fn make_room(&mut self, wanted: u64, held: &BTreeSet<Key>) -> Vec<Key> {
        until(wanted, || {
            let score =
                |&(_, item, moment): &(Key, Item, u64)| NaiveCost::price(&item) / (self.now - moment + 1) as f64;
            let free = self.objects.iter().filter(|object| !held.contains(&object.0));
            let (key, item, _) = *free.min_by(|a, b| score(a).total_cmp(&score(b)).then(a.2.cmp(&b.2)))?;
            self.remove(key);
            Some((key, item))
        })
    }

    fn len(&self) -> usize {
        self.objects.len()
    }
}
