//! A map from ranges of numbers to values: the checker's memory of who touched which bytes.

use std::collections::BTreeMap;

/// Disjoint ranges, each with a value. Equal neighbours are one range.
#[derive(Debug)]
pub(super) struct IntervalMap<V> {
    /// By start: the end, and the value.
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        IntervalMap { ranges: BTreeMap::new() }
    }
}

impl<V: Clone + Eq> IntervalMap<V> {
    /// The parts of `[start, end)` that have a value, in order.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, &V)> {
        let first = self.ranges.range(..=start).next_back().map_or(start, |(&first, _)| first);
        self.ranges
            .range(first..end)
            .filter(move |(_, (range_end, _))| *range_end > start)
            .map(move |(&at, (range_end, value))| (at.max(start), (*range_end).min(end), value))
    }

    /// Makes a range begin at `at`, where one spans it.
    fn split(&mut self, at: u64) {
        if let Some((&start, (end, value))) = self.ranges.range_mut(..at).next_back()
            && *end > at
        {
            debug_assert!(start < at);
            let upper = (*end, value.clone());
            *end = at;
            self.ranges.insert(at, upper);
        }
    }

    /// Forgets `[start, end)`.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.split(start);
        self.split(end);
        while let Some((&at, _)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&at);
        }
    }

    /// Gives all of `[start, end)` one value.
    pub(super) fn assign(&mut self, start: u64, end: u64, value: V) {
        if start >= end {
            return;
        }
        self.remove(start, end);
        let (mut start, mut end) = (start, end);
        if let Some((&before, (before_end, before_value))) = self.ranges.range(..start).next_back()
            && *before_end == start
            && *before_value == value
        {
            start = before;
        }
        if let Some((after_end, after_value)) = self.ranges.get(&end)
            && *after_value == value
        {
            let after = end;
            end = *after_end;
            self.ranges.remove(&after);
        }
        self.ranges.insert(start, (end, value));
    }

    /// Changes the values in `[start, end)`. Parts without one begin with `default`.
    pub(super) fn update(&mut self, start: u64, end: u64, default: V, mut change: impl FnMut(&mut V)) {
        if start >= end {
            return;
        }
        self.split(start);
        self.split(end);
        let mut parts = Vec::new();
        let mut at = start;
        for (&from, (to, value)) in self.ranges.range(start..end) {
            if at < from {
                parts.push((at, from, default.clone()));
            }
            parts.push((from, *to, value.clone()));
            at = *to;
        }
        if at < end {
            parts.push((at, end, default));
        }
        for (from, to, mut value) in parts {
            change(&mut value);
            self.assign(from, to, value);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::rng::Rng;
    use super::*;

    /// Random changes, against an array with one value a number.
    #[test]
    fn agrees_with_an_array() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut map = IntervalMap::default();
            let mut array = [None::<u64>; 64];
            for _ in 0..300 {
                let start = rng.below(64);
                let end = start + rng.below(65 - start);
                let (low, high) = (start as u64, end as u64);
                let value = rng.below(3) as u64;
                match rng.below(3) {
                    0 => {
                        map.assign(low, high, value);
                        array[start..end].fill(Some(value));
                    }
                    1 => {
                        map.remove(low, high);
                        array[start..end].fill(None);
                    }
                    _ => {
                        map.update(low, high, 0, |v| *v = (*v + value) % 5);
                        for slot in &mut array[start..end] {
                            *slot = Some((slot.unwrap_or(0) + value) % 5);
                        }
                    }
                }
                let mut seen = [None; 64];
                let mut last: Option<(u64, u64)> = None;
                for (from, to, &value) in map.overlapping(0, 64) {
                    assert!(from < to);
                    assert!(last != Some((from, value)), "equal neighbours are merged");
                    last = Some((to, value));
                    seen[from as usize..to as usize].fill(Some(value));
                }
                assert_eq!(seen, array, "seed {seed}");
            }
        }
    }

    #[test]
    fn neighbours_merge() {
        let mut map = IntervalMap::default();
        for start in (0..1000).step_by(10) {
            map.assign(start, start + 10, 'a');
        }
        assert_eq!(map.len(), 1);
    }
}
