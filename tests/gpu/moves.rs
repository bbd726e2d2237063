//! Memory that moves while pointers, or their owners, stay: meshing and compaction.

use std::collections::BTreeMap;

use stratalloc::units::{ByteSize, DevicePtr};
use stratalloc::{AllocRequest, Movable, PassLimits};

use crate::kit::{Bench, Checks, GIB, KIB, Rng, Streams, drag, ends_empty, fill, sound};

/// A quarter of small blocks and half of larger ones are left, at random; then pages and chunks come to share memory.
pub fn sparse_pages_share_memory(bench: &Bench<'_>) {
    let driver = bench.driver;
    let streams = Streams::new(driver, 2);
    for (seed, sizes, percent) in
        [(1, &[64 * KIB][..], 25), (2, &[16 * KIB, 48 * KIB], 15), (3, &[700 * KIB, 1300 * KIB], 50)]
    {
        let mut rng = Rng(seed);
        let mut checks = Checks::new(driver);
        let allocator = bench.limited(4 * GIB, "thrifty:true");
        let mut blocks = BTreeMap::new();
        let mut last = 0;
        let mut bytes = 0;
        while bytes < bench.bytes(2 * GIB) {
            let size = sizes[rng.below(sizes.len() as u64) as usize];
            let stream = streams.all[rng.below(2) as usize];
            let ptr = allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
            last += 1;
            fill(driver, ptr, size, last, stream);
            blocks.insert(ptr.0, (size, last, stream));
            bytes += size;
        }
        blocks.retain(|&ptr, &mut (size, block, stream)| {
            let stays = rng.percent(percent);
            if !stays {
                checks.check(DevicePtr(ptr), size, block, stream, "before it is freed");
                drag(driver, DevicePtr(ptr), size, 1, stream);
                allocator.raw_free(DevicePtr(ptr)).unwrap();
            }
            stays
        });
        allocator.empty_cache(0).unwrap();
        let before = sound(&allocator);
        let report = allocator.quiesce(0).unwrap().defragment(PassLimits::default()).unwrap();
        let after = sound(&allocator);
        println!(
            "  {sizes:?}: {report:?}, {} held of {} before",
            ByteSize(after.reserved.current),
            ByteSize(before.reserved.current)
        );
        assert!(report.meshed + report.paired > 0);
        assert_eq!(before.reserved.current - after.reserved.current, report.released);
        let mut verify = |blocks: &BTreeMap<u64, (u64, u32, _)>, what| {
            for (&ptr, &(size, block, stream)) in blocks {
                checks.check(DevicePtr(ptr), size, block, stream, what);
            }
            checks.settle();
        };
        verify(&blocks, "after meshing");
        // Writing through each pointer disturbs no other block.
        for (&ptr, (size, block, stream)) in &mut blocks {
            *block += 1 << 20;
            fill(driver, DevicePtr(ptr), *size, *block, *stream);
        }
        verify(&blocks, "written after meshing");
        // Each free place of shared memory serves once.
        let shared: Vec<u64> = blocks.keys().copied().collect();
        for _ in 0..shared.len() {
            let size = sizes[rng.below(sizes.len() as u64) as usize];
            let stream = streams.all[rng.below(2) as usize];
            let ptr = allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
            last += 1;
            fill(driver, ptr, size, last, stream);
            assert!(blocks.insert(ptr.0, (size, last, stream)).is_none(), "handed out twice");
        }
        verify(&blocks, "beside later ones");
        for ptr in blocks.into_keys() {
            allocator.raw_free(DevicePtr(ptr)).unwrap();
        }
        ends_empty(&allocator);
        assert_eq!(allocator.stats(0).unwrap().meshed, 0);
    }
}

/// Blocks that may move do, behind kernels that are still writing to them.
pub fn movable_blocks_move(bench: &Bench<'_>) {
    let driver = bench.driver;
    let streams = Streams::new(driver, 2);
    for (seed, sizes) in [
        (1, &[48 * KIB, 64 * KIB][..]),
        (2, &[100 * KIB, 300 * KIB, 500 * KIB]),
        (3, &[600 * KIB, 1300 * KIB, 3000 * KIB]),
    ] {
        let mut rng = Rng(seed);
        let mut checks = Checks::new(driver);
        let allocator = bench.limited(4 * GIB, "");
        let mut blocks: Vec<(Movable, u32)> = Vec::new();
        let mut bytes = 0;
        while bytes < bench.bytes(2 * GIB) {
            let size = sizes[rng.below(sizes.len() as u64) as usize];
            let stream = streams.all[rng.below(2) as usize];
            blocks.push((allocator.alloc_movable(AllocRequest::new(size).stream(stream)).unwrap(), 0));
            bytes += size;
        }
        let write = |(movable, block): &mut (Movable, u32), value| {
            *block = value;
            fill(driver, movable.pin().ptr(), movable.size(), value, movable.stream());
        };
        let mut check = |blocks: &[(Movable, u32)], what| {
            for (movable, block) in blocks {
                checks.check(movable.pin().ptr(), movable.size(), *block, movable.stream(), what);
            }
            checks.settle();
        };
        let mut last = 0;
        for block in &mut blocks {
            last += 1;
            write(block, last);
        }
        blocks.retain(|_| rng.percent(25));
        allocator.empty_cache(0).unwrap();
        let before = sound(&allocator);
        for block in &mut blocks {
            last += 1;
            drag(driver, block.0.pin().ptr(), block.0.size(), 3, block.0.stream());
            write(block, last);
        }
        // The pass comes behind all that, and waits for none of it.
        let waits = allocator.stats(0).unwrap().synchronizations;
        let report = allocator.compact(0, PassLimits::default()).unwrap();
        assert_eq!(allocator.stats(0).unwrap().synchronizations, waits, "nothing is waited for");
        check(&blocks, "after it has moved");
        allocator.empty_cache(0).unwrap();
        let after = sound(&allocator);
        println!(
            "  {sizes:?}: {report:?}, {} held of {} before",
            ByteSize(after.reserved.current),
            ByteSize(before.reserved.current)
        );
        assert!(report.moved > 0 && after.reserved.current < before.reserved.current);
        assert_eq!(before.live, after.live);
        check(&blocks, "after memory went back");
        for block in &mut blocks {
            last += 1;
            write(block, last);
        }
        check(&blocks, "written at its new place");
        blocks.clear();
        ends_empty(&allocator);
    }
}
