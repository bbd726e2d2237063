//! What is cheap to have back, frees much, and was used long ago goes first.

use std::collections::{BTreeMap, HashMap};

use super::queue::{Moment, Queue};
use super::{Item, Key, VictimPolicy};

/// The least cost over bytes freed times staleness goes first: cost is the cheaper of transfer and recompute, bytes are physical ones, staleness is how many touches
/// of anything ago it was used. Where all cost the same a byte, that is [`Lru`](super::Lru).
///
/// Objects whose costs a byte are within an eighth of each other share a queue by recency, whose oldest is the best of them; so a
/// victim is found by looking at one object a queue, and not at all.
#[derive(Debug, Default)]
pub struct CostAware {
    entries: HashMap<Key, Entry>,
    /// By cost a byte.
    queues: BTreeMap<u64, Queue>,
    now: Moment,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    item: Item,
    moment: Moment,
    price: u64,
}

/// No cost counts for more: some 18 minutes.
const COST_MAX: u64 = 1 << 40;
/// Fractions of a nanosecond a byte.
const PRICE_SHIFT: u32 = 23;

/// The cost of a byte that becomes free, rounded down to three bits behind the first; more than any for what frees nothing.
fn price(item: &Item) -> u64 {
    if item.frees == 0 {
        return u64::MAX;
    }
    let exact = (item.cost_ns().min(COST_MAX) << PRICE_SHIFT) / item.frees;
    let dropped = (u64::BITS - exact.leading_zeros()).saturating_sub(4);
    exact >> dropped << dropped
}

impl CostAware {
    /// Knows nothing yet.
    pub fn new() -> CostAware {
        CostAware::default()
    }

    fn take(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        if let Some(queue) = self.queues.get_mut(&entry.price) {
            queue.remove(entry.moment);
            if queue.is_empty() {
                self.queues.remove(&entry.price);
            }
        }
        Some(entry)
    }

    fn put(&mut self, key: Key, item: Item, moment: Moment) {
        let price = price(&item);
        self.queues.entry(price).or_default().push(moment, key, item.size);
        self.entries.insert(key, Entry { item, moment, price });
    }
}

impl VictimPolicy for CostAware {
    fn name(&self) -> &'static str {
        "cost"
    }

    fn insert(&mut self, key: Key, item: Item) {
        self.take(key);
        self.now += 1;
        self.put(key, item, self.now);
    }

    fn touch(&mut self, key: Key) {
        if let Some(&Entry { item, .. }) = self.entries.get(&key) {
            self.insert(key, item);
        }
    }

    fn update(&mut self, key: Key, item: Item) {
        if let Some(entry) = self.take(key) {
            self.put(key, item, entry.moment);
        }
    }

    fn evicted(&mut self, key: Key) {
        self.take(key);
    }

    fn remove(&mut self, key: Key) {
        self.take(key);
    }

    fn victims(&mut self, bytes: u64, may_go: &mut dyn FnMut(Key) -> bool) -> Vec<Key> {
        let (mut victims, mut freed) = (Vec::new(), 0u64);
        // The oldest of each queue that may go.
        let mut next = |queue: &Queue, mut cursor: Option<Moment>| {
            loop {
                let (moment, key) = queue.after(cursor)?;
                if may_go(key) {
                    return Some((moment, key));
                }
                cursor = Some(moment);
            }
        };
        let mut heads: Vec<(u64, Moment, Key)> = self
            .queues
            .iter()
            .filter_map(|(&price, queue)| next(queue, None).map(|(moment, key)| (price, moment, key)))
            .collect();
        while freed < bytes {
            let best = (0..heads.len()).min_by(|&a, &b| {
                let ((a_price, a_moment, _), (b_price, b_moment, _)) = (heads[a], heads[b]);
                let stale = |moment: Moment| u128::from(self.now - moment + 1);
                let (a_score, b_score) = (u128::from(a_price) * stale(b_moment), u128::from(b_price) * stale(a_moment));
                a_score.cmp(&b_score).then(a_moment.cmp(&b_moment))
            });
            let Some(best) = best else { break };
            let (price, moment, key) = heads[best];
            freed = freed.saturating_add(self.entries[&key].item.frees);
            victims.push(key);
            match next(&self.queues[&price], Some(moment)) {
                Some((moment, key)) => heads[best] = (price, moment, key),
                None => {
                    heads.swap_remove(best);
                }
            }
        }
        victims
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}
