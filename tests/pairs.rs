//! Chunks of large blocks that are used in part, and come to share memory in pairs: the same promises as for pages of small blocks.

mod common;

use common::filled::Scene;
use common::rig::{KIB, MIB, check, check_empties, stats};
use stratalloc::driver::fault::{Fault, When};
use stratalloc::driver::soft::Access;
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::{ByteSize, DevicePtr, PassLimits};

const CHUNK: u64 = 2 * MIB;

/// Blocks of these sizes, half of which are left. Nothing is free in whole chunks.
fn sparse(seed: u64, sizes: &[u64], bytes_max: u64, text: &str) -> Scene {
    let mut scene = Scene::new(512 * MIB, seed, text);
    let mut bytes = 0;
    while bytes < bytes_max {
        let (size, stream) = (scene.rng.pick(sizes), scene.rng.index(2));
        scene.alloc(size, stream);
        bytes += size;
    }
    scene.thin(50);
    scene.allocator.empty_cache(0).unwrap();
    scene
}

const SIZES: [&[u64]; 3] = [&[100 * KIB, 300 * KIB, 500 * KIB], &[700 * KIB, 1300 * KIB], &[3 * MIB, 5 * MIB + 512]];

#[test]
fn chunks_used_in_part_share_memory_and_no_pointer_changes() {
    for (index, sizes) in SIZES.into_iter().enumerate() {
        let mut scene = sparse(index as u64, sizes, 120 * MIB, "thrifty:true");
        let before = check(&scene.allocator, 0);
        let report = scene.defragment(PassLimits::default()).unwrap();
        let after = check(&scene.allocator, 0);
        assert!(report.paired >= 4 && report.paired * 2 <= report.chunks, "{sizes:?}: {report:?}");
        assert_eq!(before.reserved.current - after.reserved.current, report.released);
        assert!(report.released >= report.paired * CHUNK, "{report:?}");
        assert_eq!(after.meshed, report.released);
        assert_eq!((before.live, before.active.current), (after.live, after.active.current));
        scene.verify();
        let all: Vec<u64> = scene.blocks.keys().copied().collect();
        all.into_iter().for_each(|ptr| scene.fill(DevicePtr(ptr)));
        scene.verify();
        assert_eq!(scene.defragment(PassLimits::default()).unwrap().paired, 0, "all that can be paired is");
        scene.verify();
        scene.ends_clean();
    }
}

#[test]
fn what_is_free_in_shared_memory_serves_once_and_streams_keep_their_order() {
    for seed in 0..8 {
        let mut scene =
            sparse(seed, SIZES[1], 80 * MIB, ["thrifty:true", "thrifty:true,magazine:0"][seed as usize % 2]);
        let report = scene.defragment(PassLimits::default()).unwrap();
        assert!(report.paired > 2, "{report:?}");
        for _ in 0..250 {
            if scene.rng.percent(50) && !scene.blocks.is_empty() {
                let index = scene.rng.index(scene.blocks.len());
                let (&ptr, &(size, home, _)) = scene.blocks.iter().nth(index).unwrap();
                scene.device.launch(scene.streams[home], &[Access::write(DevicePtr(ptr), size)], 9_000).unwrap();
                scene.fill(DevicePtr(ptr));
                scene.free(ptr);
            } else {
                let (size, stream) =
                    (scene.rng.pick(&[100 * KIB, 400 * KIB, 700 * KIB, 1200 * KIB]), scene.rng.index(3));
                scene.alloc(size, stream);
            }
        }
        scene.verify();
        scene.allocator.empty_cache(0).unwrap();
        scene.verify();
        scene.defragment(PassLimits::default()).unwrap();
        scene.verify();
        scene.ends_clean();
    }
}

#[test]
fn a_pair_ends_when_one_address_has_nothing_in_use() {
    for keeps in [true, false] {
        let mut scene = Scene::new(64 * MIB, 1, "magazine:0,chunk_max:2MiB");
        // Two blocks to a chunk; of the first chunk the upper one goes, of the second the lower one.
        (0..4).for_each(|_| scene.alloc(MIB, 0));
        let all: Vec<u64> = scene.blocks.keys().copied().collect();
        assert_eq!(all[3] - all[0], 3 * MIB);
        scene.free(all[1]);
        scene.free(all[2]);
        scene.allocator.empty_cache(0).unwrap();
        let report = scene.defragment(PassLimits::default()).unwrap();
        assert_eq!((report.chunks, report.paired, report.released, report.copied), (2, 1, CHUNK, MIB), "{report:?}");
        scene.verify();
        scene.free(if keeps { all[0] } else { all[3] });
        assert_eq!(scene.allocator.empty_cache(0).unwrap(), 0, "the memory is the other address's");
        let now = check(&scene.allocator, 0);
        assert_eq!((now.meshed, now.reserved.current), (0, CHUNK));
        scene.verify();
        // The other half of the chunk serves again.
        scene.alloc(MIB, 0);
        assert_eq!(check(&scene.allocator, 0).reserved.current, CHUNK);
        scene.verify();
        scene.ends_clean();
    }
}

#[test]
fn a_request_that_ends_a_pair_gets_a_place_of_its_own() {
    for keeps in [true, false] {
        let mut scene = Scene::new(64 * MIB, 1, "magazine:0,chunk_max:2MiB");
        (0..4).for_each(|_| scene.alloc(MIB, 0));
        let all: Vec<u64> = scene.blocks.keys().copied().collect();
        scene.free(all[1]);
        scene.free(all[2]);
        scene.allocator.empty_cache(0).unwrap();
        assert_eq!(scene.defragment(PassLimits::default()).unwrap().paired, 1);
        // What this frees lies beside the hole that the next request would grow into, until the pair is found to have ended.
        scene.free(if keeps { all[0] } else { all[3] });
        scene.device.synchronize_device().unwrap();
        for size in [3 * MIB, MIB, 2 * MIB] {
            scene.alloc(size, 0);
            check(&scene.allocator, 0);
        }
        scene.verify();
        scene.ends_clean();
    }
}

#[test]
fn limits_bound_a_pass() {
    let scene = sparse(3, SIZES[1], 100 * MIB, "");
    let none = scene.defragment(PassLimits { bytes: ByteSize(0), ..PassLimits::default() }).unwrap();
    assert_eq!((none.paired, none.copied), (0, 0));
    let some = scene.defragment(PassLimits { bytes: ByteSize::mib(3), ..PassLimits::default() }).unwrap();
    assert!(0 < some.copied && some.copied <= 3 * MIB, "{some:?}");
    scene.verify();
    scene.ends_clean();
}

#[test]
fn any_one_call_may_fail_and_all_from_any_one_on() {
    let small = || sparse(4, SIZES[1], 30 * MIB, "chunk_max:2MiB");
    let scene = small();
    let before = scene.driver.calls();
    let report = scene.defragment(PassLimits::default()).unwrap();
    let calls = scene.driver.calls() - before;
    assert!(report.paired >= 2 && calls > 10, "{report:?} in {calls} calls");
    scene.ends_clean();
    for n in 1..=calls {
        for when in [When::Nth(n), When::From(n)] {
            let mut scene = small();
            let before = check(&scene.allocator, 0);
            scene.driver.inject(Fault { when, kind: DriverErrorKind::Other, only: None });
            let result = scene.defragment(PassLimits::default());
            check(&scene.allocator, 0);
            scene.driver.clear();
            scene.device.forget_owners();
            let lost = check(&scene.allocator, 0).cleanup_failures - before.cleanup_failures;
            assert!(result.is_err() || lost > 0, "{when:?}: {result:?}");
            if matches!(when, When::Nth(_)) {
                scene.verify();
            }
            // What is handed out now is nobody else's, and no copy runs there.
            [700 * KIB, 200 * KIB, 100 * KIB].into_iter().for_each(|size| scene.alloc(size, 1));
            scene.device.forget_owners();
            scene.defragment(PassLimits::default()).unwrap();
            scene.verify();
            assert!(stats(&scene.allocator).meshed > 0, "{when:?}");
            let all: Vec<u64> = scene.blocks.keys().copied().collect();
            all.into_iter().for_each(|ptr| scene.free(ptr));
            check_empties(&scene.allocator, 0);
            scene.no_reports();
        }
    }
}
