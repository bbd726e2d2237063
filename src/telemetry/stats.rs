//! Counters and what is read of them.
//!
//! Conservation, when no call is under way: `reserved == active + cached`, `active >= live`, `allocs - frees` == live blocks.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// A quantity now and at its highest, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gauge {
    /// Now.
    pub current: u64,
    /// The most since the start, or since the peaks were reset.
    pub peak: u64,
}

/// How a request was served: the rungs of the reuse ladder, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
#[non_exhaustive]
pub enum Rung {
    /// From the thread's own magazine.
    Magazine,
    /// From what the stream has free: slots of a slab, or its bins.
    Own,
    /// From what no unfinished work touches.
    Shared,
    /// From blocks whose clocks have passed.
    Passed,
    /// From another stream's blocks, after making this stream wait on the device.
    StreamWait,
    /// From magazines and empty slabs, whose memory was coalesced with what is free.
    Merge,
    /// From free chunks that lay apart, mapped side by side.
    Stitch,
    /// From new chunks.
    NewChunk,
    /// After waiting for streams.
    Wait,
    /// After an observer freed something.
    Observer,
    /// From a private pool that lends rather than have others fail.
    Lent,
    /// After evictable blocks had gone to a tier.
    Evict,
}

impl Rung {
    /// Every rung, in order.
    pub const ALL: [Rung; 12] = [
        Rung::Magazine,
        Rung::Own,
        Rung::Shared,
        Rung::Passed,
        Rung::StreamWait,
        Rung::Merge,
        Rung::Stitch,
        Rung::NewChunk,
        Rung::Wait,
        Rung::Observer,
        Rung::Lent,
        Rung::Evict,
    ];

    /// The rung's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Rung::Magazine => "magazine",
            Rung::Own => "own",
            Rung::Shared => "shared",
            Rung::Passed => "passed",
            Rung::StreamWait => "stream_wait",
            Rung::Merge => "merge",
            Rung::NewChunk => "new_chunk",
            Rung::Stitch => "stitch",
            Rung::Wait => "wait",
            Rung::Observer => "observer",
            Rung::Lent => "lent",
            Rung::Evict => "evict",
        }
    }
}

/// Size ranges that are counted apart: each doubling from 512 B on.
pub(crate) const SIZE_COUNTS: usize = 40;

/// The range that a block of so many granules is counted in.
#[inline]
pub(crate) fn size_count_index(granules: u32) -> usize {
    (32 - (granules.max(1) - 1).leading_zeros()) as usize
}

/// Requests of one range of block sizes, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SizeCount {
    /// The largest block size of the range, in bytes.
    pub up_to: u64,
    /// Blocks handed out.
    pub allocs: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Bytes of the blocks handed out.
    pub allocated: u64,
    /// Bytes of the blocks freed.
    pub freed: u64,
}

impl std::ops::AddAssign for SizeCount {
    fn add_assign(&mut self, other: SizeCount) {
        self.allocs += other.allocs;
        self.frees += other.frees;
        self.allocated += other.allocated;
        self.freed += other.freed;
    }
}

/// The state of one device's pool, in numbers. Exact when no call is under way.
///
/// Peaks of `live` and `active` are exact while one thread allocates; with T threads they are off by at most (T - 1) / 128
/// of the device's memory, since threads count apart and add up only when they have drifted that far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Requested and not freed.
    pub live: Gauge,
    /// In blocks that are not free: live, plus rounding, plus what waits for recorded streams.
    pub active: Gauge,
    /// Physical memory held.
    pub reserved: Gauge,
    /// Held and free: in magazines, bins, slabs and the reserve of chunks.
    pub cached: u64,
    /// Part of `cached` that threads' magazines hold.
    pub magazines: u64,
    /// Part of `active` that waits for recorded streams.
    pub pending: u64,
    /// Part of `cached` in chunks that are mapped nowhere.
    pub reserve: u64,
    /// Bytes of all blocks ever handed out.
    pub allocated: u64,
    /// Blocks handed out, ever.
    pub allocs: u64,
    /// Blocks freed, ever.
    pub frees: u64,
    /// Requests that found no room.
    pub out_of_memory: u64,
    /// Driver calls that failed while giving memory back.
    pub cleanup_failures: u64,
    /// Bytes at addresses whose memory is counted in `reserved` at another address: what
    /// [`Quiescent::defragment`](crate::Quiescent::defragment) has saved, and goes on saving.
    pub meshed: u64,
    /// Physical chunks and plain segments held.
    pub chunks: u64,
    /// Bytes a chunk.
    pub chunk_size: u64,
    /// The largest free block that some stream could have at once, in bytes; what lies in magazines is not looked through.
    pub largest_free: u64,
    /// Driver calls that took physical memory from the device.
    pub device_allocs: u64,
    /// Driver calls that gave physical memory back.
    pub device_frees: u64,
    /// Driver calls that waited for a stream, an event or the device.
    pub synchronizations: u64,
    /// Host memory for metadata, in bytes that the allocator knows to be touched.
    pub metadata: u64,
    /// The limit on `reserved`, in bytes.
    pub limit: u64,
    /// Requests by the rung that served them, in the order of [`Rung::ALL`].
    pub rungs: [u64; Rung::ALL.len()],
    /// Requests by block size, without the empty ranges.
    pub sizes: Vec<SizeCount>,
    /// Live bytes by tag number, without the empty ones.
    pub tags: Vec<(u8, u64)>,
}

impl Stats {
    /// Requests that `rung` served.
    pub fn rung(&self, rung: Rung) -> u64 {
        self.rungs[rung as usize]
    }
}

/// A sum with its highest value, to which threads add their own in steps.
#[derive(Debug, Default)]
pub(crate) struct Peak {
    sum: AtomicI64,
    peak: AtomicI64,
}

impl Peak {
    /// A thread has changed the sum by `delta` since it last called, and was at `peak` above that meanwhile.
    pub(crate) fn fold(&self, delta: i64, peak: i64) {
        let before = self.sum.fetch_add(delta, Relaxed);
        self.peak.fetch_max(before + peak.max(delta), Relaxed);
    }

    pub(crate) fn sum(&self) -> i64 {
        self.sum.load(Relaxed)
    }

    pub(crate) fn peak(&self) -> i64 {
        self.peak.load(Relaxed)
    }

    /// Starts a new peak at `now`.
    pub(crate) fn reset(&self, now: i64) {
        self.peak.store(now, Relaxed);
    }
}
