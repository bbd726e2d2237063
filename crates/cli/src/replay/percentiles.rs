//! What single allocations take: samples, and the percentiles of them.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Nanoseconds that half, 99 %, and 99.9 % of the allocations took at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
}

impl Percentiles {
    /// Of several, the median of each.
    pub(super) fn median_of(all: &[Percentiles]) -> Option<Percentiles> {
        let median = |part: fn(&Percentiles) -> f64| {
            let mut parts: Vec<f64> = all.iter().map(part).collect();
            parts.sort_by(f64::total_cmp);
            crate::table::median(&parts)
        };
        (!all.is_empty()).then(|| Percentiles {
            p50: median(|all| all.p50),
            p99: median(|all| all.p99),
            p99_9: median(|all| all.p99_9),
        })
    }
}

/// Times of one pass, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<u32>);

impl Samples {
    #[inline]
    pub(super) fn add(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
    }

    /// The percentiles of what was added, less what it takes to look at the time. Begins anew.
    pub(super) fn take(&mut self) -> Option<Percentiles> {
        if self.0.is_empty() {
            return None;
        }
        self.0.sort_unstable();
        let percentiles = percentiles_of(&self.0, timer_ns());
        self.0.clear();
        percentiles
    }
}

/// By nearest rank: the smallest sample that so many are no greater than.
fn percentiles_of(sorted: &[u32], timer_ns: u32) -> Option<Percentiles> {
    let at = |permille: usize| {
        let rank = (sorted.len() * permille).div_ceil(1000).max(1);
        sorted.get(rank - 1).map(|ns| f64::from(ns.saturating_sub(timer_ns)))
    };
    Some(Percentiles { p50: at(500)?, p99: at(990)?, p99_9: at(999)? })
}

/// What a sample of nothing shows: the median of many.
pub(super) fn timer_ns() -> u32 {
    let mut samples = Samples(Vec::with_capacity(1001));
    for _ in 0..1001 {
        let start = Instant::now();
        samples.add(start.elapsed());
    }
    samples.0.sort_unstable();
    samples.0[500]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let thousand: Vec<u32> = (1..=1000).collect();
        assert_eq!(percentiles_of(&thousand, 0), Some(Percentiles { p50: 500.0, p99: 990.0, p99_9: 999.0 }));
        assert_eq!(percentiles_of(&thousand, 600), Some(Percentiles { p50: 0.0, p99: 390.0, p99_9: 399.0 }));
        assert_eq!(percentiles_of(&[7], 0), Some(Percentiles { p50: 7.0, p99: 7.0, p99_9: 7.0 }));
        assert_eq!(percentiles_of(&[], 0), None);
    }

    #[test]
    fn samples_begin_anew() {
        let mut samples = Samples::default();
        assert_eq!(samples.take(), None);
        for _ in 0..100 {
            samples.add(Duration::from_secs(1));
        }
        assert!(samples.take().unwrap().p50 > 9e8);
        assert_eq!(samples.take(), None);
    }

    #[test]
    fn of_several_the_median_counts() {
        let of = |n: f64| Percentiles { p50: n, p99: 2.0 * n, p99_9: 3.0 * n };
        assert_eq!(Percentiles::median_of(&[of(9.0), of(1.0), of(2.0)]), Some(of(2.0)));
        assert_eq!(Percentiles::median_of(&[]), None);
    }
}
