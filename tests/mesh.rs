//! Pages of small blocks that come to share memory: nothing changes for whoever holds a pointer, under the checker, with bytes compared, and
//! with each driver call failing in turn.

mod common;

use std::time::Duration;

use common::filled::Scene;
use common::rig::{KIB, MIB, allocator_on, check, check_empties};
use stratalloc::driver::DriverErrorKind;
use stratalloc::driver::fault::{CallKind, Fault, When};
use stratalloc::driver::soft::{Access, SoftDevice};
use stratalloc::{AllocRequest, ByteSize, DefragReport, DevicePtr, Error, OomRemedy, PassLimits, PoolId, Quiescent};

const PAGE: u64 = 2 * MIB;

#[test]
fn a_quarter_live_at_random_gives_40_percent_of_the_pages_back() {
    for (size, pages) in [(64 * KIB, 70), (56 * KIB, 90)] {
        let mut scene = Scene::new(pages * 2 * PAGE, size, "");
        (0..pages * (PAGE / size)).for_each(|_| scene.alloc(size, 0));
        scene.thin(25);
        scene.verify();
        let before = check(&scene.allocator, 0);
        let report = scene.defragment(PassLimits::default()).unwrap();
        let after = check(&scene.allocator, 0);
        // The first slabs are parts of a page.
        assert!((pages - 1..=pages).contains(&report.pages), "{report:?}");
        assert!(report.meshed * 100 >= pages * 40, "{size}: {report:?}");
        assert_eq!((report.released, after.meshed), (report.meshed * PAGE, report.meshed * PAGE));
        assert_eq!(before.reserved.current - after.reserved.current, report.released);
        assert_eq!(before.live, after.live);
        assert!(report.copied <= after.live.current / 2, "the emptier page is copied: {report:?}");
        scene.verify();
        // Writing through every pointer disturbs no other block.
        let all: Vec<u64> = scene.blocks.keys().copied().collect();
        all.into_iter().for_each(|ptr| scene.fill(DevicePtr(ptr)));
        scene.verify();
        // Nothing is found a second time.
        let again = scene.defragment(PassLimits::default()).unwrap();
        assert!(again.meshed * 10 < report.meshed, "{again:?} after {report:?}");
        scene.verify();
        scene.ends_clean();
    }
}

#[test]
fn shared_memory_hands_out_each_slot_once() {
    let mut scene = Scene::new(512 * MIB, 5, "");
    (0..20 * 32).for_each(|_| scene.alloc(64 * KIB, 0));
    scene.thin(20);
    let report = scene.defragment(PassLimits::default()).unwrap();
    assert!(report.meshed > 5, "{report:?}");
    // All free slots are handed out; the checker watches physical bytes. Only then does the pool grow.
    let reserved = check(&scene.allocator, 0).reserved.current;
    let free = reserved / (64 * KIB) - scene.blocks.len() as u64;
    (0..free).for_each(|_| scene.alloc(64 * KIB, 0));
    assert_eq!(check(&scene.allocator, 0).reserved.current, reserved, "each free slot serves");
    scene.alloc(64 * KIB, 0);
    assert_eq!(check(&scene.allocator, 0).reserved.current, reserved + PAGE, "none serves twice");
    scene.verify();
    scene.ends_clean();
}

#[test]
fn an_address_whose_blocks_are_gone_goes_and_the_group_with_the_last_but_one() {
    for first_goes in [true, false] {
        let mut scene = Scene::new(64 * MIB, 1, "magazine:0");
        (0..96).for_each(|_| scene.alloc(64 * KIB, 0));
        let all: Vec<u64> = scene.blocks.keys().copied().collect();
        let (parts, all) = all.split_at(32);
        parts.iter().for_each(|&ptr| scene.free(ptr));
        assert_eq!(scene.allocator.empty_cache(0).unwrap(), PAGE, "of slabs that were parts of a page");
        let (low, high) = all.split_at(32);
        // The first page keeps its even slots, the second its odd ones, and the first is the fuller one.
        low.iter().step_by(2).for_each(|&ptr| scene.free(ptr));
        high.iter().skip(1).step_by(2).chain([&high[0]]).for_each(|&ptr| scene.free(ptr));
        let report = scene.defragment(PassLimits::default()).unwrap();
        assert_eq!((report.pages, report.meshed, report.released), (2, 1, PAGE), "{report:?}");
        scene.verify();
        let (going, staying) = if first_goes { (low, high) } else { (high, low) };
        let gone: Vec<u64> = going.iter().copied().filter(|ptr| scene.blocks.contains_key(ptr)).collect();
        gone.iter().for_each(|&ptr| scene.free(ptr));
        assert_eq!(scene.allocator.empty_cache(0).unwrap(), 0, "the memory is the other page's");
        assert_eq!(check(&scene.allocator, 0).meshed, 0);
        let segments = scene.allocator.snapshot(0).unwrap().segments;
        assert!(segments.iter().all(|segment| !(segment.ptr.0..segment.ptr.0 + segment.size).contains(&going[0])));
        scene.verify();
        // All slots are the other slab's now.
        let left = 32 - scene.blocks.len();
        (0..left).for_each(|_| scene.alloc(64 * KIB, 0));
        assert_eq!(check(&scene.allocator, 0).reserved.current, PAGE);
        assert!(scene.blocks.keys().all(|ptr| (staying[0]..staying[0] + PAGE).contains(ptr)));
        scene.verify();
        scene.ends_clean();
    }
}

/// With the live slots of one address of a shared page, only the address would go.
#[test]
fn a_slot_of_a_shared_page_is_not_said_to_make_room() {
    let mut scene = Scene::new(32 * MIB, 1, "magazine:0");
    (0..96).for_each(|_| scene.alloc(64 * KIB, 0));
    let all: Vec<u64> = scene.blocks.keys().copied().collect();
    all.iter().enumerate().filter(|(index, _)| ![40, 70].contains(index)).for_each(|(_, &ptr)| scene.free(ptr));
    scene.allocator.empty_cache(0).unwrap();
    assert_eq!(scene.defragment(PassLimits::default()).unwrap().meshed, 1);
    scene.alloc(30 * MIB, 0);
    let request = AllocRequest::new(PAGE).stream(scene.streams[0]);
    assert!(matches!(scene.allocator.raw_alloc(request), Err(Error::OutOfMemory(_))));
    let told = scene.allocator.last_oom(0).unwrap().unwrap();
    let mut enough = 0;
    for advice in told.advice.iter().filter(|advice| advice.suffices) {
        if let OomRemedy::Free(blocks) | OomRemedy::FreePins(blocks) = &advice.remedy {
            enough += 1;
            assert!(blocks.iter().any(|block| block.size > 64 * KIB) || blocks.len() == 2, "{told}");
        }
    }
    assert!(enough > 0, "{told}");
    scene.verify();
    scene.ends_clean();
}

#[test]
fn streams_share_pages_and_keep_their_order() {
    for seed in 0..6 {
        let mut scene = Scene::new(512 * MIB, seed, "");
        for stream in 0..3 {
            (0..12 * 64).for_each(|_| scene.alloc(32 * KIB, stream));
        }
        scene.thin(12);
        let report = scene.defragment(PassLimits::default()).unwrap();
        assert!(report.meshed > 12, "{report:?}");
        // Kernels of all streams use their blocks, which are freed and handed out again while these run.
        for _ in 0..600 {
            let stream = scene.rng.index(3);
            if scene.rng.percent(50) {
                let index = scene.rng.index(scene.blocks.len());
                let (&ptr, &(size, home, _)) = scene.blocks.iter().nth(index).unwrap();
                scene.device.launch(scene.streams[home], &[Access::write(DevicePtr(ptr), size)], 5_000).unwrap();
                scene.fill(DevicePtr(ptr));
                scene.free(ptr);
            } else {
                scene.alloc(32 * KIB, stream);
            }
        }
        scene.verify();
        scene.allocator.empty_cache(0).unwrap();
        scene.verify();
        let report = scene.defragment(PassLimits::default()).unwrap();
        assert!(report.pages > 0);
        scene.verify();
        scene.ends_clean();
    }
}

#[test]
fn limits_bound_a_pass() {
    let mut scene = Scene::new(512 * MIB, 3, "");
    (0..60 * 32).for_each(|_| scene.alloc(64 * KIB, 0));
    scene.thin(20);
    let none = scene.defragment(PassLimits { bytes: ByteSize(0), ..PassLimits::default() }).unwrap();
    assert_eq!((none.meshed, none.copied, none.released), (0, 0, 0));
    assert!(none.pages > 30);
    let some = scene.defragment(PassLimits { bytes: ByteSize::mib(2), ..PassLimits::default() }).unwrap();
    assert!(0 < some.copied && some.copied <= 2 * MIB, "{some:?}");
    scene.verify();
    let rest = scene.defragment(PassLimits { time: Duration::ZERO, ..PassLimits::default() }).unwrap();
    assert_eq!(rest.meshed, 0, "no time");
    let rest = scene.defragment(PassLimits::default()).unwrap();
    assert!(rest.meshed > some.meshed, "{rest:?}");
    scene.verify();
    scene.ends_clean();
}

#[test]
fn magazines_and_blocks_that_wait_for_streams_are_in_nobodys_way() {
    let mut scene = Scene::new(512 * MIB, 4, "magazine:0.5");
    (0..20 * 32).for_each(|_| scene.alloc(64 * KIB, 0));
    let (other, blocks): (_, Vec<u64>) = (scene.streams[1], scene.blocks.keys().copied().collect());
    for &ptr in blocks.iter().step_by(7) {
        scene.allocator.record_stream(DevicePtr(ptr), other).unwrap();
    }
    scene.thin(25);
    let report = scene.defragment(PassLimits::default()).unwrap();
    let stats = check(&scene.allocator, 0);
    assert!(report.meshed > 5 && stats.magazines == 0 && stats.pending == 0, "{report:?} {stats:#?}");
    scene.verify();
    scene.ends_clean();
}

#[test]
fn private_pools_captures_and_large_chunks_are_left_alone() {
    let mut scene = Scene::new(512 * MIB, 6, "");
    let (pool, stream) = (PoolId(0, 1), scene.streams[0]);
    scene.allocator.begin_private_pool(0, pool, move |other| other == stream).unwrap();
    (0..20 * 32).for_each(|_| scene.alloc(64 * KIB, 0));
    assert!(matches!(scene.allocator.quiesce(0), Err(Error::Capturing { .. })));
    // SAFETY: nothing was submitted but copies, which the streams have done by the time of the next call.
    let assumed = unsafe { Quiescent::assume(&scene.allocator, 0) }.unwrap();
    assert!(matches!(assumed.defragment(PassLimits::default()), Err(Error::Capturing { .. })));
    scene.allocator.end_private_pool(0, pool).unwrap();
    scene.thin(25);
    assert_eq!(scene.defragment(PassLimits::default()).unwrap(), DefragReport::default());
    scene.allocator.release_private_pool(0, pool).unwrap();
    let report = scene.defragment(PassLimits::default()).unwrap();
    assert!(report.meshed > 5, "nobody's graphs use it any more: {report:?}");
    scene.verify();
    scene.ends_clean();

    let mut scene = Scene::new(512 * MIB, 6, "chunk:4MiB");
    (0..20 * 32).for_each(|_| scene.alloc(64 * KIB, 0));
    scene.thin(25);
    assert_eq!(scene.defragment(PassLimits::default()).unwrap().meshed, 0);
    scene.verify();
    // SAFETY: there is no such device.
    assert!(unsafe { Quiescent::assume(&scene.allocator, 3) }.is_err());
    scene.ends_clean();
}

#[test]
fn without_virtual_memory_management_nothing_is_meshed() {
    let device = SoftDevice::builder(256 * MIB).vmm(false).build().unwrap();
    let allocator = allocator_on(device, "");
    let blocks: Vec<_> = (0..320).map(|_| allocator.raw_alloc(AllocRequest::new(64 * KIB)).unwrap()).collect();
    blocks.iter().step_by(3).for_each(|&ptr| allocator.raw_free(ptr).unwrap());
    let report = allocator.quiesce(0).unwrap().defragment(PassLimits::default()).unwrap();
    assert_eq!(report, DefragReport::default());
    check(&allocator, 0);
}

/// A few pages that can be meshed.
fn meshable(seed: u64) -> Scene {
    let mut scene = Scene::new(64 * MIB, seed, "");
    (0..6 * 32).for_each(|_| scene.alloc(64 * KIB, 0));
    scene.thin(12);
    // Freed and waited for, so that what fails below is what meshing does.
    scene.allocator.empty_cache(0).unwrap();
    scene
}

#[test]
fn any_one_call_may_fail() {
    let scene = meshable(9);
    let before = scene.driver.calls();
    let report = scene.defragment(PassLimits::default()).unwrap();
    let calls = scene.driver.calls() - before;
    assert!(report.meshed >= 3 && calls > 10, "{report:?} in {calls} calls");
    scene.ends_clean();
    for n in 1..=calls {
        for kind in [DriverErrorKind::OutOfMemory, DriverErrorKind::Other] {
            let mut scene = meshable(9);
            let before = check(&scene.allocator, 0);
            scene.driver.inject(Fault { when: When::Nth(n), kind, only: None });
            let result = scene.defragment(PassLimits::default());
            assert!(scene.driver.failures() > 0, "call {n}");
            scene.driver.clear();
            scene.device.forget_owners();
            scene.verify();
            let after = check(&scene.allocator, 0);
            let lost = after.cleanup_failures - before.cleanup_failures;
            assert!(result.is_err() || lost > 0, "call {n}: {result:?}");
            // What is handed out now is nobody else's, and no copy runs there.
            (0..8).for_each(|_| scene.alloc(64 * KIB, 0));
            scene.verify();
            scene.device.forget_owners();
            scene.defragment(PassLimits::default()).unwrap();
            scene.verify();
            assert!(check(&scene.allocator, 0).meshed > 0, "call {n}");
            scene.ends_clean_but(lost as usize);
        }
    }
}

#[test]
fn a_device_that_fails_for_good_loses_no_bytes_once_it_recovers() {
    let calls = {
        let scene = meshable(9);
        let before = scene.driver.calls();
        scene.defragment(PassLimits::default()).unwrap();
        scene.driver.calls() - before
    };
    for n in 1..=calls {
        let mut scene = meshable(9);
        scene.driver.inject(Fault { when: When::From(n), kind: DriverErrorKind::Other, only: None });
        // From the release of the last chunks on, failures are counted, not reported.
        let _ = scene.defragment(PassLimits::default());
        check(&scene.allocator, 0);
        scene.driver.clear();
        scene.device.forget_owners();
        // A copy may still run, and its pages serve nobody until it has been waited for.
        (0..8).for_each(|_| scene.alloc(64 * KIB, 0));
        // A page that was left without a mapping gets it back before anything else.
        scene.device.forget_owners();
        scene.defragment(PassLimits::default()).unwrap();
        scene.verify();
        let all: Vec<u64> = scene.blocks.keys().copied().collect();
        all.into_iter().for_each(|ptr| scene.free(ptr));
        check_empties(&scene.allocator, 0);
        scene.no_reports();
    }
}

#[test]
fn failures_while_a_shared_page_is_given_up_are_survived() {
    for only in [CallKind::Unmap, CallKind::Release] {
        for n in 1..6 {
            let mut scene = meshable(9);
            scene.defragment(PassLimits::default()).unwrap();
            let all: Vec<u64> = scene.blocks.keys().copied().collect();
            all.into_iter().for_each(|ptr| scene.free(ptr));
            let before = check(&scene.allocator, 0).cleanup_failures;
            scene.driver.inject(Fault { when: When::Nth(n), kind: DriverErrorKind::Other, only: Some(only) });
            let _ = scene.allocator.empty_cache(0);
            scene.driver.clear();
            let lost = check(&scene.allocator, 0).cleanup_failures - before;
            assert!(only == CallKind::Release || lost == 0, "{lost}");
            scene.ends_clean_but(lost as usize);
        }
    }
}
