//! Statistics: the pool's numbers, the threads' counts, and those of threads that have ended.

use super::counts::{Counts, TAGS};
use super::{DeviceCache, ThreadCache};
use crate::pool::{Key, Pool};
use crate::telemetry::{Rung, SIZE_COUNTS, SizeCount, Stats, size_count_index};
use crate::units::GRANULE;

/// What threads counted that have ended, or that have no cache because they are ending.
#[derive(Debug)]
pub(super) struct Retired(Counts);

impl Default for Retired {
    fn default() -> Retired {
        let (sizes, tags) = ([SizeCount::default(); SIZE_COUNTS], [0; TAGS]);
        Retired(Counts { live: (0, 0), active: (0, 0), hits: 0, sizes, tags })
    }
}

impl Retired {
    pub(super) fn add(&mut self, counts: &Counts) {
        self.0.hits += counts.hits;
        self.0.sizes.iter_mut().zip(counts.sizes).for_each(|(sum, count)| *sum += count);
        self.0.tags.iter_mut().zip(counts.tags).for_each(|(sum, count)| *sum += count);
    }

    pub(super) fn count_alloc(&mut self, requested: u64, key: Key, tag: u8, pool: &Pool) {
        pool.live.fold(requested as i64, requested as i64);
        pool.active.fold(key.bytes() as i64, key.bytes() as i64);
        let size = &mut self.0.sizes[size_count_index(key.granules())];
        *size += SizeCount { allocs: 1, allocated: key.bytes(), ..SizeCount::default() };
        self.0.tags[tag as usize % TAGS] += requested as i64;
    }

    pub(super) fn count_tag(&mut self, requested: i64, tag: u8) {
        self.0.tags[tag as usize % TAGS] += requested;
    }

    pub(super) fn count_free(&mut self, requested: u64, key: Key, active: u64, tag: u8, pool: &Pool) {
        pool.live.fold(-(requested as i64), 0);
        pool.active.fold(-(active as i64), 0);
        let size = &mut self.0.sizes[size_count_index(key.granules())];
        *size += SizeCount { frees: 1, freed: key.bytes(), ..SizeCount::default() };
        self.0.tags[tag as usize % TAGS] -= requested as i64;
    }
}

/// A sum of folded and unfolded counts, and its highest value.
fn gauge(sum: i64, peak: i64, threads: impl Iterator<Item = (i64, i64)> + Clone) -> crate::telemetry::Gauge {
    let now = sum + threads.clone().map(|(delta, _)| delta).sum::<i64>();
    // At its peak each thread found the others about where they are now.
    let highest = threads.map(|(delta, peak)| now - delta + peak).max().unwrap_or(now);
    let current = now.max(0) as u64;
    crate::telemetry::Gauge { current, peak: (peak.max(highest).max(0) as u64).max(current) }
}

impl DeviceCache {
    /// A block from the pool was handed out, by a thread that has a cache or, where it is ending, has none.
    pub(super) fn count_alloc(&self, cache: Option<&ThreadCache>, requested: u64, key: Key, tag: u8) {
        match cache {
            Some(cache) => cache.count_alloc(requested, key, tag),
            None => self.retired.lock().count_alloc(requested, key, tag, &self.pool),
        }
    }

    /// A block was freed past the magazines, as above; `active` bytes of it are no longer in use.
    pub(super) fn count_free(&self, cache: Option<&ThreadCache>, requested: u64, key: Key, active: u64, tag: u8) {
        match cache {
            Some(cache) => cache.count_free(requested, key, active, tag),
            None => self.retired.lock().count_free(requested, key, active, tag, &self.pool),
        }
    }

    fn counts(&self) -> Vec<Counts> {
        self.threads.lock().iter().map(|cache| cache.counts()).collect()
    }

    /// The device in numbers.
    pub(crate) fn stats(&self) -> Stats {
        let state = self.pool.lock();
        let threads = self.counts();
        let mut stats = Stats::default();
        let mut total = Retired(self.retired.lock().0.clone());
        threads.iter().for_each(|counts| total.add(counts));
        let Retired(total) = total;
        stats.rungs[Rung::Magazine as usize] = total.hits;
        self.pool.add_stats(&state, &mut stats);
        drop(state);
        stats.live = gauge(self.pool.live.sum(), self.pool.live.peak(), threads.iter().map(|c| c.live));
        stats.active = gauge(self.pool.active.sum(), self.pool.active.peak(), threads.iter().map(|c| c.active));
        stats.cached = stats.reserved.current.saturating_sub(stats.active.current);
        stats.magazines = self.threads.lock().iter().map(|cache| cache.held()).sum();
        stats.metadata += size_of_val(self) as u64;
        stats.metadata += threads.len() as u64 * size_of::<ThreadCache>() as u64;
        stats.allocated = total.sizes.iter().map(|size| size.allocated).sum();
        stats.frees = total.sizes.iter().map(|size| size.frees).sum();
        stats.allocs = total.sizes.iter().map(|size| size.allocs).sum();
        let range = |(index, size): (usize, &SizeCount)| SizeCount { up_to: GRANULE << index, ..*size };
        stats.sizes = total.sizes.iter().enumerate().map(range).filter(|range| range.allocs > 0).collect();
        let tags = (0u8..).zip(total.tags).skip(1).filter(|&(_, bytes)| bytes != 0);
        stats.tags = tags.map(|(tag, bytes)| (tag, bytes.max(0) as u64)).collect();
        stats
    }

    /// Requested bytes now.
    pub(super) fn live_bytes(&self) -> u64 {
        gauge(self.pool.live.sum(), 0, self.counts().iter().map(|counts| counts.live)).current
    }

    /// Live bytes of a tag.
    pub(super) fn tag_bytes(&self, tag: u8) -> u64 {
        let threads: i64 = self.threads.lock().iter().map(|cache| cache.tag(tag)).sum();
        (threads + self.retired.lock().0.tags[tag as usize % TAGS]).max(0) as u64
    }

    /// Starts new peaks from what is in use now.
    pub(crate) fn reset_peaks(&self) {
        let mut state = self.pool.lock();
        let threads = self.threads.lock();
        self.with_closed(&threads, |threads| {
            threads.iter().for_each(|cache| cache.fold(&self.pool));
            self.pool.live.reset(self.pool.live.sum());
            self.pool.active.reset(self.pool.active.sum());
        });
        state.reset_peak();
    }

    /// Checks the conservation equations between counts.
    pub(super) fn validate_counts(&self) -> Result<(), String> {
        let stats = self.stats();
        if stats.active.current < stats.live.current {
            return Err(format!("{} bytes active, {} live", stats.active.current, stats.live.current));
        }
        if stats.reserved.current < stats.active.current {
            return Err(format!("{} bytes reserved, {} active", stats.reserved.current, stats.active.current));
        }
        if stats.allocs < stats.frees {
            return Err(format!("{} allocs, {} frees", stats.allocs, stats.frees));
        }
        Ok(())
    }
}
