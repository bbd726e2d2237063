//! Evictable blocks: their bytes leave the device and come back, as kernels find them.

#[cfg(feature = "nvme")]
use std::path::PathBuf;

use stratalloc::tier::{Evictable, Residency, Select, SleepAction, SleepPlan};
use stratalloc::units::{ByteSize, DevicePtr, StreamId};
use stratalloc::{AllocRequest, Allocator, Rung, Tag};

use crate::kit::{Bench, Checks, GIB, KIB, MIB, Rng, Streams, drag, ends_empty, fill, follow, sound};

/// Evictable blocks with known contents.
struct Blocks<'a> {
    bench: &'a Bench<'a>,
    allocator: Allocator,
    checks: Checks<'a>,
    all: Vec<Block>,
    seed: u32,
}

#[derive(Clone, Copy)]
struct Block {
    ptr: DevicePtr,
    size: u64,
    seed: u32,
    stream: StreamId,
}

impl<'a> Blocks<'a> {
    fn new(bench: &'a Bench<'a>, allocator: Allocator) -> Blocks<'a> {
        Blocks { bench, allocator, checks: Checks::new(bench.driver), all: Vec::new(), seed: 1 }
    }

    fn alloc(&mut self, size: u64, stream: StreamId, tag: Tag, how: Evictable) {
        let ptr = self.allocator.alloc_evictable(AllocRequest::new(size).stream(stream).tag(tag), how).unwrap();
        self.all.push(Block { ptr, size, seed: 0, stream });
        self.write(self.all.len() - 1);
    }

    /// New contents, by kernels that may go on after the pin.
    fn write(&mut self, index: usize) {
        self.seed += 1;
        let block = &mut self.all[index];
        block.seed = self.seed;
        let pin = self.allocator.pin(block.ptr, block.stream).unwrap();
        drag(self.bench.driver, block.ptr, block.size, 3, block.stream);
        fill(self.bench.driver, block.ptr, block.size, block.seed, block.stream);
        drop(pin);
    }

    /// As the home stream finds it, or another one.
    fn check(&mut self, index: usize, stream: Option<StreamId>, what: &'static str) {
        let block = self.all[index];
        let on = stream.unwrap_or(block.stream);
        if on != block.stream {
            follow(self.bench.driver, block.stream, on);
        }
        let pin = self.allocator.pin(block.ptr, on).unwrap();
        self.checks.check(block.ptr, block.size, block.seed, on, what);
        if on != block.stream {
            // What the home stream does next comes after.
            follow(self.bench.driver, on, block.stream);
        }
        drop(pin);
    }

    fn check_all(&mut self, what: &'static str) {
        (0..self.all.len()).for_each(|index| self.check(index, None, what));
        self.checks.settle();
        self.allocator.validate_tiers().unwrap();
    }

    fn residency(&self, index: usize) -> Residency {
        self.allocator.residency(self.all[index].ptr).unwrap()
    }

    fn finish(mut self) {
        let stats = self.allocator.tier_stats(0).unwrap();
        let tiers: Vec<String> = (stats.tiers.iter())
            .map(|tier| format!("{} in, {} out", ByteSize(tier.bytes_in), ByteSize(tier.bytes_out)))
            .collect();
        println!(
            "  {} went, {} came back, {} spilled, {} ms waited; {}",
            stats.evictions,
            stats.restores,
            stats.spills,
            stats.stall_ns / 1_000_000,
            tiers.join("; ")
        );
        assert_eq!((stats.failures, stats.abandoned), (0, 0), "{stats:#?}");
        for block in std::mem::take(&mut self.all) {
            self.allocator.raw_free(block.ptr).unwrap();
        }
        self.bench.free();
        // What nobody waits for ends when somebody looks.
        (0..16).for_each(|_| _ = self.allocator.tier_stats(0));
        sound(&self.allocator);
        let stats = self.allocator.tier_stats(0).unwrap();
        assert_eq!((stats.blocks, stats.resident, stats.away, stats.pinned), (0, 0, 0, 0), "{stats:#?}");
        ends_empty(&self.allocator);
    }
}

/// Sizes that share extents, and sizes that have their own.
fn size(bench: &Bench<'_>, rng: &mut Rng) -> u64 {
    if rng.percent(50) { rng.size(KIB, MIB) } else { rng.size(MIB, bench.bytes(128 * MIB)) }
}

fn off_and_back(bench: &Bench<'_>, allocator: Allocator, at: Residency) {
    let streams = Streams::new(bench.driver, 2);
    let other = Streams::new(bench.driver, 1);
    let mut rng = Rng(3);
    let mut blocks = Blocks::new(bench, allocator);
    while blocks.all.iter().map(|block| block.size).sum::<u64>() < bench.bytes(GIB) {
        let stream = streams.all[rng.below(2) as usize];
        blocks.alloc(size(bench, &mut rng), stream, Tag::NONE, Evictable::default());
    }
    for round in 0..3 {
        // Behind the kernels that are still writing.
        let gone = blocks.allocator.offload(Select::All).unwrap();
        assert!(gone >= bench.bytes(GIB));
        assert!((0..blocks.all.len()).all(|index| blocks.residency(index) == at));
        let stats = sound(&blocks.allocator);
        assert_eq!(stats.active.current, 0, "nothing of them is on the device");
        // Their memory serves others meanwhile.
        let junk = bench.bytes(512 * MIB);
        let between = blocks.allocator.raw_alloc(AllocRequest::new(junk).stream(streams.all[0])).unwrap();
        drag(bench.driver, between, junk, 3, streams.all[0]);
        blocks.allocator.raw_free(between).unwrap();
        match round {
            0 => blocks.allocator.restore_evicted(Select::All).unwrap(),
            1 => {
                for index in 0..blocks.all.len() {
                    let Block { ptr, stream, .. } = blocks.all[index];
                    blocks.allocator.prefetch(ptr, stream).unwrap();
                }
            }
            _ => (0..blocks.all.len()).for_each(|index| blocks.check(index, Some(other.all[0]), "on another stream")),
        }
        blocks.check_all("after coming back");
        (0..blocks.all.len()).step_by(3).for_each(|index| blocks.write(index));
    }
    blocks.check_all("at the end");
    blocks.finish();
}

pub fn blocks_go_to_pinned_memory_and_come_back(bench: &Bench<'_>) {
    let tier = bench.bytes(2 * GIB);
    off_and_back(bench, bench.limited(2 * GIB, &format!("tiers:host={tier}B")), Residency::Host);
}

/// A folder for files without names.
#[cfg(feature = "nvme")]
fn folder() -> PathBuf {
    std::env::temp_dir().canonicalize().unwrap()
}

/// Disks are slow.
#[cfg(feature = "nvme")]
fn smaller<'a>(bench: &Bench<'a>) -> Bench<'a> {
    Bench { divisor: bench.divisor.max(4), ..*bench }
}

/// An allocator with a tier of files, where there can be one.
#[cfg(feature = "nvme")]
fn with_files(bench: &Bench<'_>, limit: u64, text: &str) -> Option<Allocator> {
    match bench.try_allocator(&format!("limit:{}B,{text}", bench.bytes(limit))) {
        Ok(allocator) => Some(allocator),
        Err(error) => {
            println!("  no tier of files here: {error}");
            None
        }
    }
}

#[cfg(feature = "nvme")]
pub fn blocks_go_to_files_and_come_back(bench: &Bench<'_>) {
    let bench = &smaller(bench);
    let tier = bench.bytes(2 * GIB);
    let text = format!("tiers:nvme={}={tier}B", folder().display());
    if let Some(allocator) = with_files(bench, 2 * GIB, &text) {
        off_and_back(bench, allocator, Residency::Disk);
    }
    if let Some(allocator) = with_files(bench, 2 * GIB, &format!("{text},tier_encrypt:true")) {
        off_and_back(bench, allocator, Residency::Disk);
    }
}

/// Three times as much as the limit lets be on the device, used in turn; what does not fit into pinned memory spills into files.
fn in_turn(bench: &Bench<'_>, allocator: Allocator) {
    let streams = Streams::new(bench.driver, 3);
    let mut rng = Rng(4);
    let mut blocks = Blocks::new(bench, allocator);
    while blocks.all.iter().map(|block| block.size).sum::<u64>() < bench.bytes(3 * GIB) {
        let stream = streams.all[rng.below(3) as usize];
        blocks.alloc(size(bench, &mut rng), stream, Tag::NONE, Evictable::default());
    }
    let home = streams.all[0];
    for round in 0..2 {
        for index in 0..blocks.all.len() {
            blocks.check(index, None, "in turn");
            if rng.percent(25) {
                blocks.write(index);
            }
            if rng.percent(5) {
                // Others want room as well.
                let size = bench.bytes(200 * MIB);
                let ptr = blocks.allocator.raw_alloc(AllocRequest::new(size).stream(home)).unwrap();
                drag(bench.driver, ptr, size, 5, home);
                blocks.allocator.raw_free(ptr).unwrap();
            }
        }
        blocks.checks.settle();
        let stats = blocks.allocator.tier_stats(0).unwrap();
        assert!(stats.evictions > 8 && (round == 0 || stats.restores > 8), "{stats:#?}");
    }
    // One request that takes it all: they go for it.
    let large = bench.bytes(900 * MIB);
    let ptr = blocks.allocator.raw_alloc(AllocRequest::new(large).stream(home)).unwrap();
    drag(bench.driver, ptr, large, 2, home);
    assert!(sound(&blocks.allocator).rung(Rung::Evict) > 0);
    blocks.allocator.raw_free(ptr).unwrap();
    blocks.check_all("after the large one");
    assert!(blocks.allocator.stats(0).unwrap().reserved.peak <= bench.bytes(GIB));
    blocks.finish();
}

pub fn more_than_the_limit_is_used_in_turn(bench: &Bench<'_>) {
    // Extents are whole chunks, which weighs on a small device.
    let tier = bench.bytes(4 * GIB) + 256 * MIB;
    in_turn(bench, bench.limited(GIB, &format!("tiers:host={tier}B")));
}

#[cfg(feature = "nvme")]
pub fn what_pinned_memory_cannot_hold_spills_into_files(bench: &Bench<'_>) {
    let bench = &smaller(bench);
    let (host, files) = (bench.bytes(GIB), bench.bytes(6 * GIB) + 256 * MIB);
    let text = format!("tiers:host={host}B+nvme={}={files}B", folder().display());
    if let Some(allocator) = with_files(bench, GIB, &text) {
        in_turn(bench, allocator);
    }
}

pub fn the_device_sleeps_and_wakes(bench: &Bench<'_>) {
    let streams = Streams::new(bench.driver, 2);
    let tier = bench.bytes(2 * GIB);
    let mut blocks = Blocks::new(bench, bench.limited(2 * GIB, &format!("tiers:host={tier}B")));
    let [weights, kept, dropped] = ["weights", "kept", "dropped"].map(|name| blocks.allocator.tag(name).unwrap());
    for tag in [weights, kept, dropped] {
        for size in [bench.bytes(200 * MIB), bench.bytes(90 * MIB) + 5, 300 * KIB] {
            blocks.alloc(size, streams.all[0], tag, Evictable::default().on_request_only());
        }
    }
    let plan = SleepPlan::new(SleepAction::Keep).tag(weights, SleepAction::Save).tag(dropped, SleepAction::Drop);
    let before = sound(&blocks.allocator).reserved.current;
    for _ in 0..4 {
        let free = bench.free();
        let gone = blocks.allocator.sleep(&plan).unwrap();
        let asleep = sound(&blocks.allocator).reserved.current;
        assert!(gone > 0 && before - asleep >= gone, "{gone}: {before} before, {asleep} asleep");
        // The driver may want some for itself.
        assert!(bench.free() + 16 * MIB >= free + gone, "the device has it back");
        assert!((3..6).all(|index| blocks.residency(index) == Residency::Resident));
        assert!((6..9).all(|index| blocks.residency(index) == Residency::Dropped));
        (3..6).for_each(|index| blocks.check(index, Some(streams.all[1]), "kept while asleep"));
        blocks.allocator.wake(Some(&[weights])).unwrap();
        (0..3).for_each(|index| blocks.check(index, None, "woken"));
        blocks.allocator.wake(None).unwrap();
        blocks.allocator.restore_evicted(Select::All).unwrap();
        // What was dropped holds anything, and can be written.
        (6..9).for_each(|index| blocks.write(index));
        blocks.check_all("awake");
        assert_eq!(sound(&blocks.allocator).reserved.current, before);
    }
    blocks.finish();
}
