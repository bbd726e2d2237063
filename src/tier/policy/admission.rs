//! Whether what goes is worth keeping at all.

use std::collections::HashMap;

use super::Key;
use super::queue::{Moment, Queue};

/// What an object's way through a tier costs, and what it saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Writing it, in nanoseconds.
    pub store_ns: u64,
    /// Reading it back, in nanoseconds.
    pub load_ns: u64,
    /// Computing it again instead, in nanoseconds; `None` where nobody can.
    pub recompute_ns: Option<u64>,
}

/// Uses that are told apart: as many or more.
const USES_MAX: usize = 15;
/// Outcomes of one number of uses after which old ones count half.
const OUTCOMES_MAX: u32 = 1024;

/// Admits what is likely to pay for its way. An object that can be computed again is written only where what that saves, times how likely
/// it is to be wanted, is more than the writing costs. How likely is learned by how often an object had been used when it
/// went: of those that went after so many uses, how many were wanted before they were forgotten. An object that nobody
/// can compute again is always admitted.
#[derive(Debug)]
pub struct Admission {
    /// What is known of the last keys.
    known: HashMap<Key, Known>,
    order: Queue,
    keys_max: usize,
    now: Moment,
    /// By uses: how many that went have been wanted, and how many are forgotten.
    outcomes: [(u32, u32); USES_MAX + 1],
}

#[derive(Debug, Clone, Copy)]
struct Known {
    moment: Moment,
    uses: u8,
    /// It has gone, after so many uses.
    gone: Option<u8>,
}

impl Admission {
    /// Remembers so many keys, at least one. Four times as many as are resident is plenty.
    pub fn new(keys: usize) -> Admission {
        Admission {
            known: HashMap::new(),
            order: Queue::default(),
            keys_max: keys.max(1),
            now: 0,
            outcomes: [(0, 0); USES_MAX + 1],
        }
    }

    /// The object is used, or wanted while it is away.
    pub fn touch(&mut self, key: Key) {
        self.now += 1;
        let mut known = match self.known.remove(&key) {
            Some(known) => {
                self.order.remove(known.moment);
                known
            }
            None => Known { moment: 0, uses: 0, gone: None },
        };
        if let Some(uses) = known.gone.take() {
            self.learn(uses, true);
        }
        known.moment = self.now;
        known.uses = (known.uses + 1).min(USES_MAX as u8);
        self.order.push(self.now, key, 1);
        self.known.insert(key, known);
        if self.known.len() > self.keys_max
            && let Some((moment, oldest)) = self.order.after(None)
        {
            self.order.remove(moment);
            if let Some(Known { gone: Some(uses), .. }) = self.known.remove(&oldest) {
                self.learn(uses, false);
            }
        }
    }

    /// The object goes: whether it should be written. `false`: it should be dropped.
    pub fn admit(&mut self, key: Key, way: &Way) -> bool {
        let uses = self.known.get(&key).map_or(0, |known| known.uses);
        if let Some(known) = self.known.get_mut(&key) {
            known.gone = Some(uses);
        }
        let Some(recompute_ns) = way.recompute_ns else { return true };
        let saved_ns = recompute_ns.saturating_sub(way.load_ns);
        let (wanted, forgotten) = self.outcomes[usize::from(uses)];
        // One of each to begin with: where nothing is known, one in two comes back.
        let (wanted, all) = (u128::from(wanted) + 1, u128::from(wanted) + u128::from(forgotten) + 2);
        u128::from(saved_ns) * wanted > u128::from(way.store_ns) * all
    }

    /// The object was freed.
    pub fn remove(&mut self, key: Key) {
        if let Some(known) = self.known.remove(&key) {
            self.order.remove(known.moment);
            // Freed while it was away: writing it would have been for nothing.
            if let Some(uses) = known.gone {
                self.learn(uses, false);
            }
        }
    }

    /// How many keys are remembered.
    pub fn keys(&self) -> usize {
        self.known.len()
    }

    fn learn(&mut self, uses: u8, was_wanted: bool) {
        let (wanted, forgotten) = &mut self.outcomes[usize::from(uses)];
        *(if was_wanted { &mut *wanted } else { &mut *forgotten }) += 1;
        if *wanted + *forgotten > OUTCOMES_MAX {
            *wanted /= 2;
            *forgotten /= 2;
        }
    }
}
