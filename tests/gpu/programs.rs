//! Programs of several streams and threads: what is in a block stays in it, whoever has had its memory before, at whichever address, and
//! however far the device lags.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use stratalloc::units::{ByteSize, DevicePtr, StreamId};
use stratalloc::{AllocRequest, Allocator, Error, Rung};

use crate::kit::{Bench, Checks, GIB, KIB, MIB, Rng, Streams, drag, ends_empty, fill, follow, sound};

/// A block in somebody's hands, filled.
#[derive(Clone, Copy)]
struct Block {
    ptr: DevicePtr,
    size: u64,
    seed: u32,
    stream: StreamId,
}

/// What the threads of a program share.
struct Program<'a> {
    bench: &'a Bench<'a>,
    allocator: Allocator,
    streams: &'a [StreamId],
    /// Blocks that one thread has made and another is to free.
    passed_on: Mutex<Vec<Block>>,
    seeds: AtomicU64,
    checks: AtomicU64,
    out_of_memory: AtomicU64,
}

/// One thread of it.
struct Actor<'a> {
    program: &'a Program<'a>,
    checks: Checks<'a>,
    rng: Rng,
    blocks: Vec<Block>,
    held: u64,
}

impl Actor<'_> {
    fn alloc(&mut self, size: u64) {
        let driver = self.program.bench.driver;
        let stream = self.program.streams[self.rng.below(self.program.streams.len() as u64) as usize];
        let ptr = match self.program.allocator.raw_alloc(AllocRequest::new(size).stream(stream)) {
            Ok(ptr) => ptr,
            Err(Error::OutOfMemory(_)) => {
                self.program.out_of_memory.fetch_add(1, Relaxed);
                return (0..self.blocks.len() / 2).for_each(|_| self.free());
            }
            Err(error) => panic!("{error}"),
        };
        if size >= self.program.bench.bytes(32 * MIB) && self.rng.percent(25) {
            drag(driver, ptr, size, 40, stream);
        }
        let seed = self.program.seeds.fetch_add(1, Relaxed) as u32;
        fill(driver, ptr, size, seed, stream);
        self.blocks.push(Block { ptr, size, seed, stream });
        self.held += size;
    }

    /// Checks and frees a block, without waiting, while junk is still being written to it.
    fn free(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let index = self.rng.below(self.blocks.len() as u64) as usize;
        let block = self.blocks.swap_remove(index);
        self.held -= block.size;
        if self.rng.percent(10) {
            return self.program.passed_on.lock().push(block);
        }
        self.end(block);
    }

    fn end(&mut self, block: Block) {
        let Block { ptr, size, seed, stream } = block;
        let driver = self.program.bench.driver;
        self.checks.check(ptr, size, seed, stream, "on its stream");
        let other = self.program.streams[self.rng.below(self.program.streams.len() as u64) as usize];
        if self.rng.percent(20) && other != stream {
            follow(driver, stream, other);
            self.checks.check(ptr, size, seed, other, "on a recorded stream");
            drag(driver, ptr, size, 4, other);
            self.program.allocator.record_stream(ptr, other).unwrap();
        } else {
            drag(driver, ptr, size, if self.rng.percent(15) { 24 } else { 1 }, stream);
        }
        self.program.allocator.raw_free(ptr).unwrap();
    }

    fn run(&mut self, steps: u64, budget: u64) {
        let bench = self.program.bench;
        for step in 0..steps {
            let size = match self.rng.below(100) {
                0..40 => self.rng.size(1, 64 * KIB),
                40..70 => self.rng.size(64 * KIB, bench.bytes(8 * MIB).max(128 * KIB)),
                70..97 => self.rng.size(bench.bytes(8 * MIB), bench.bytes(64 * MIB)),
                _ => self.rng.size(bench.bytes(64 * MIB), bench.bytes(256 * MIB)),
            };
            while self.held + size > budget && !self.blocks.is_empty() {
                self.free();
            }
            self.alloc(size);
            if self.rng.percent(30) {
                self.free();
            }
            let passed_on = self.program.passed_on.lock().pop();
            if let Some(block) = passed_on {
                self.end(block);
            }
            if step % 400 == 399 {
                self.checks.settle();
            }
        }
        while !self.blocks.is_empty() {
            self.free();
        }
        self.checks.settle();
        self.program.checks.fetch_add(self.checks.count, Relaxed);
    }
}

fn program(bench: &Bench<'_>, threads: u64, streams: usize, steps: u64, limit: u64, text: &str) {
    let streams = Streams::new(bench.driver, streams);
    let allocator = bench.limited(limit, text);
    let program = Program {
        bench,
        allocator,
        streams: &streams.all,
        passed_on: Mutex::default(),
        seeds: AtomicU64::new(1),
        checks: AtomicU64::new(0),
        out_of_memory: AtomicU64::new(0),
    };
    let actor = |seed| Actor {
        program: &program,
        checks: Checks::new(bench.driver),
        rng: Rng(seed),
        blocks: Vec::new(),
        held: 0,
    };
    // Together nine tenths of the limit: what is free is in pieces.
    let budget = bench.bytes(limit) * 9 / 10 / threads;
    std::thread::scope(|scope| {
        for seed in 0..threads {
            scope.spawn(move || actor(seed + 1).run(bench.steps(steps), budget));
        }
    });
    let mut last = actor(99);
    let passed_on = std::mem::take(&mut *program.passed_on.lock());
    passed_on.into_iter().for_each(|block| last.end(block));
    last.checks.settle();
    let stats = sound(&program.allocator);
    let rungs: Vec<String> = Rung::ALL.iter().map(|&rung| format!("{} {}", rung.name(), stats.rung(rung))).collect();
    println!(
        "  {} blocks, {} checks, at most {} held of {}, {} out of memory, {} waits; {}",
        stats.allocs,
        program.checks.load(Relaxed),
        ByteSize(stats.reserved.peak),
        ByteSize(stats.limit),
        program.out_of_memory.load(Relaxed),
        stats.synchronizations,
        rungs.join(", ")
    );
    assert!(stats.rung(Rung::Stitch) > 0, "nothing was stitched: the program is too tame");
    assert!(stats.reserved.peak <= stats.limit);
    drop(last);
    ends_empty(&program.allocator);
}

pub fn one_thread_at_random(bench: &Bench<'_>) {
    program(bench, 1, 2, 12_000, 2 * GIB, "");
}

/// Many small chunks: whatever is large is made of many mappings.
pub fn small_chunks_at_random(bench: &Bench<'_>) {
    program(bench, 1, 3, 8000, 2 * GIB, "chunk_max:2MiB,magazine:0.01");
}

pub fn threads_at_random(bench: &Bench<'_>) {
    program(bench, 4, 4, 8000, 6 * GIB, "");
}

/// Every other block is freed while kernels write to it, and its memory is mapped side by side with that of others, at once: the new
/// block's bytes are what was written through the new address, whatever came through the old ones before, and its neighbours keep theirs.
pub fn stitched_while_kernels_run(bench: &Bench<'_>) {
    let driver = bench.driver;
    let streams = Streams::new(driver, 1);
    let stream = streams.all[0];
    let unit = bench.bytes(32 * MIB).max(2 * MIB);
    let count = 32;
    let allocator = bench.allocator(&format!("limit:{}B,chunk_max:2MiB,magazine:0", count * unit));
    let request = |size| AllocRequest::new(size).stream(stream);
    let mut checks = Checks::new(driver);
    let mut seed = 1000;
    let mut stitched = 0;
    for round in 0..20 {
        let ptrs: Vec<DevicePtr> = (0..count).map(|_| allocator.raw_alloc(request(unit)).unwrap()).collect();
        for (index, &ptr) in ptrs.iter().enumerate() {
            fill(driver, ptr, unit, seed + index as u32, stream);
        }
        let before = allocator.stats(0).unwrap();
        // Those of this parity go, under kernels that have hardly begun.
        for (index, &ptr) in ptrs.iter().enumerate().filter(|(index, _)| index % 2 == round % 2) {
            checks.check(ptr, unit, seed + index as u32, stream, "before it is freed");
            drag(driver, ptr, unit, 10, stream);
            allocator.raw_free(ptr).unwrap();
        }
        let large = count / 2 * unit;
        let ptr = allocator.raw_alloc(request(large)).unwrap();
        fill(driver, ptr, large, seed + 500, stream);
        checks.check(ptr, large, seed + 500, stream, "stitched");
        let after = allocator.stats(0).unwrap();
        stitched += after.rung(Rung::Stitch) - before.rung(Rung::Stitch);
        assert_eq!(after.synchronizations, before.synchronizations, "nothing is waited for");
        for (index, &ptr) in ptrs.iter().enumerate().filter(|(index, _)| index % 2 != round % 2) {
            checks.check(ptr, unit, seed + index as u32, stream, "beside it");
            allocator.raw_free(ptr).unwrap();
        }
        checks.check(ptr, large, seed + 500, stream, "stitched, at the end");
        allocator.raw_free(ptr).unwrap();
        seed += 1000;
    }
    checks.settle();
    println!("  {stitched} of 20 rounds stitched {} from {} pieces", ByteSize(count / 2 * unit), count / 2);
    assert!(stitched > 0);
    sound(&allocator);
    ends_empty(&allocator);
}
