//! What the rows do, and how it is timed.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use stratalloc::error::Result;
use stratalloc::units::{DevicePtr, StreamId};

use crate::engine::Engine;

/// How many blocks a [`Churn`] keeps live.
const LIVE: usize = 256;

/// A workload of one thread.
pub(super) trait Work: Send {
    /// Gets ready: not timed.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// Allocates and frees so many times.
    fn pairs(&mut self, pairs: u64) -> Result<()>;

    /// Leaves things as they were before [`Work::begin`]: not timed.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How long it takes until every worker has done so many pairs, all starting at one time.
pub(super) fn wall(workers: &mut [Box<dyn Work>], pairs: u64) -> Result<Duration> {
    let start_line = &Barrier::new(workers.len());
    let one = move |worker: &mut Box<dyn Work>| -> Result<(Instant, Instant)> {
        // Nobody may miss the start, or the others would wait for ever: errors are looked at after it.
        let ready = worker.begin().and_then(|()| worker.pairs(pairs / 8));
        start_line.wait();
        let start = Instant::now();
        ready?;
        worker.pairs(pairs)?;
        let end = Instant::now();
        worker.end()?;
        Ok((start, end))
    };
    let spans: Vec<(Instant, Instant)> = match workers {
        [worker] => vec![one(worker)?],
        _ => thread::scope(|scope| {
            let threads: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(move || one(worker))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(span) => span,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect::<Result<_>>()
        })?,
    };
    let start = spans.iter().map(|span| span.0).min();
    let end = spans.iter().map(|span| span.1).max();
    Ok(start.zip(end).map_or(Duration::ZERO, |(start, end)| end - start))
}

/// Allocate and free one size.
pub(super) struct Pair {
    engine: Arc<Engine>,
    stream: StreamId,
    size: u64,
}

impl Pair {
    pub(super) fn new(engine: Arc<Engine>, size: u64) -> Result<Pair> {
        Ok(Pair { stream: engine.create_stream()?, engine, size })
    }

    pub(super) fn stream(&self) -> StreamId {
        self.stream
    }
}

impl Work for Pair {
    fn pairs(&mut self, pairs: u64) -> Result<()> {
        for _ in 0..pairs {
            let ptr = self.engine.alloc(black_box(self.size), self.stream)?;
            self.engine.free(black_box(ptr))?;
        }
        Ok(())
    }
}

/// Which sizes a [`Churn`] draws from.
pub(super) enum Sizes {
    /// A fixed set, as programs have.
    Some(Box<[u64; 32]>),
    /// Drawn afresh each time, which few programs do.
    Any {
        /// The smallest.
        least: u64,
        /// Twice the largest power of two that is drawn.
        most: u64,
    },
}

impl Sizes {
    /// 32 sizes between two others, evenly spread over the logarithm, by a fixed seed.
    pub(super) fn some(least: u64, most: u64) -> Sizes {
        let mut random = Random(0x5eed);
        let span = (most as f64 / least as f64).ln();
        Sizes::Some(Box::new(std::array::from_fn(|_| {
            let part = random.next() as f64 / u64::MAX as f64;
            ((least as f64 * (part * span).exp()) as u64).clamp(least, most)
        })))
    }

    #[inline]
    fn draw(&self, random: &mut Random) -> u64 {
        let bits = random.next();
        match self {
            Sizes::Some(sizes) => sizes[(bits >> 59) as usize],
            Sizes::Any { least, most } => {
                // A power of two, each as likely, and a place between it and the next.
                let octaves = u64::from(most.ilog2() - least.ilog2());
                let power = least << (((bits >> 32) * octaves) >> 32);
                power + (bits & (power - 1))
            }
        }
    }
}

/// Free a random one of 256 blocks, allocate another in its place.
pub(super) struct Churn {
    engine: Arc<Engine>,
    stream: StreamId,
    sizes: Sizes,
    random: Random,
    live: Vec<DevicePtr>,
}

impl Churn {
    pub(super) fn new(engine: Arc<Engine>, sizes: Sizes, seed: u64) -> Result<Churn> {
        let stream = engine.create_stream()?;
        Ok(Churn { engine, stream, sizes, random: Random(seed + 1), live: Vec::with_capacity(LIVE) })
    }
}

impl Work for Churn {
    fn begin(&mut self) -> Result<()> {
        while self.live.len() < LIVE {
            self.live.push(self.engine.alloc(self.sizes.draw(&mut self.random), self.stream)?);
        }
        Ok(())
    }

    fn pairs(&mut self, pairs: u64) -> Result<()> {
        for _ in 0..pairs {
            let slot = &mut self.live[(self.random.next() >> 56) as usize];
            self.engine.free(black_box(*slot))?;
            *slot = self.engine.alloc(self.sizes.draw(&mut self.random), self.stream)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        // The thread that allocated them frees them: another one has the next turn.
        self.live.drain(..).try_for_each(|ptr| self.engine.free(ptr))
    }
}

/// `malloc` and `free` of host memory, by the allocator to beat.
pub(super) struct Mimalloc {
    pub(super) size: usize,
}

impl Work for Mimalloc {
    fn pairs(&mut self, pairs: u64) -> Result<()> {
        for _ in 0..pairs {
            // SAFETY: mi_malloc takes any size, and mi_free takes what it returned, once (or null).
            unsafe {
                let ptr = libmimalloc_sys::mi_malloc(black_box(self.size));
                libmimalloc_sys::mi_free(black_box(ptr));
            }
        }
        Ok(())
    }
}

/// The offset allocator that many GPU programs suballocate with. It has no streams, no threads and no driver.
pub(super) struct Offsets(offset_allocator::Allocator);

impl Offsets {
    pub(super) fn new() -> Offsets {
        Offsets(offset_allocator::Allocator::new(1 << 30))
    }
}

impl Work for Offsets {
    fn pairs(&mut self, pairs: u64) -> Result<()> {
        for _ in 0..pairs {
            if let Some(allocation) = self.0.allocate(black_box(512)) {
                self.0.free(black_box(allocation));
            }
        }
        Ok(())
    }
}

/// SplitMix64: two or three nanoseconds a number.
struct Random(u64);

impl Random {
    #[inline]
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_in_their_range() {
        let (least, most) = (512, 64 << 20);
        let mut random = Random(1);
        let Sizes::Some(some) = Sizes::some(least, most) else { unreachable!() };
        assert!(some.iter().all(|size| (least..=most).contains(size)));
        let any = Sizes::Any { least, most };
        let drawn: Vec<u64> = (0..10_000).map(|_| any.draw(&mut random)).collect();
        assert!(drawn.iter().all(|size| (least..=most).contains(size)));
        assert!(drawn.iter().any(|size| *size < 1024) && drawn.iter().any(|size| *size > 60 << 20));
    }
}
