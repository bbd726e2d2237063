//! Evictable blocks: they leave the device and come back, at the same address and with the same contents.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::rig::{KIB, MIB, request};
use common::tiers::{TierRig, host_tier};
use parking_lot::Mutex;
use stratalloc::driver::Driver;
use stratalloc::driver::fault::When;
use stratalloc::driver::soft::SoftDevice;
use stratalloc::tier::fault::{FaultTier, TierFault, TierFaultKind};
use stratalloc::tier::{Evictable, MemoryChange, Residency, Select, SleepAction, SleepPlan, TierKind};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, DevicePtr, DeviceSpec, Error, Limit, ResidencyError, Rung, StreamId, TierError,
};

const HOME: StreamId = StreamId::DEFAULT;

fn rig(capacity: u64, text: &str) -> TierRig {
    TierRig::new(SoftDevice::builder(capacity).seed(3), text)
}

/// A rig whose one tier can be made to fail.
fn faulty(capacity: u64, bytes: u64) -> (TierRig, Arc<FaultTier>) {
    let device = SoftDevice::builder(capacity).seed(5).checker(true).build().unwrap();
    let tier = Arc::new(FaultTier::new(host_tier(device.clone(), bytes)));
    let with_tier = tier.clone();
    let rig = TierRig::on(device.clone(), device, "", move |builder| builder.tier(0, TierKind::Disk, with_tier));
    (rig, tier)
}

fn inject(tier: &FaultTier, kind: TierFaultKind) {
    tier.inject(TierFault { when: When::From(1), kind, only: None });
}

#[test]
fn a_block_goes_and_comes_back_at_the_same_address() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let ptr = rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
    assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Resident);
    assert_eq!(rig.allocator.usable_size(ptr).unwrap(), 8 * MIB);
    assert_eq!(rig.allocator.offload(Select::Ptr(ptr)).unwrap(), 8 * MIB);
    assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Host);
    let stats = rig.allocator.stats(0).unwrap();
    assert_eq!((stats.live.current, stats.active.current, stats.reserve), (0, 0, 8 * MIB));
    // Its memory serves others meanwhile.
    let other = rig.allocator.raw_alloc(AllocRequest::new(8 * MIB)).unwrap();
    assert_eq!(rig.allocator.stats(0).unwrap().reserved.current, 8 * MIB);
    rig.verify(ptr).unwrap();
    assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Resident);
    let stats = rig.allocator.tier_stats(0).unwrap();
    assert_eq!((stats.evictions, stats.restores, stats.away, stats.failures), (1, 1, 0, 0));
    assert_eq!((stats.tiers[0].bytes_in, stats.tiers[0].bytes_out, stats.tiers[0].used), (8 * MIB, 8 * MIB, 0));
    rig.allocator.raw_free(other).unwrap();
    rig.finish();
}

#[test]
fn blocks_of_twice_the_device_are_used_in_turn() {
    let mut rig = rig(64 * MIB, "tiers:host=256MiB");
    let stream = rig.device.create_stream().unwrap();
    let sizes = [8 * MIB, 3 * MIB, 100 * KIB, 12 * MIB, 5 * MIB + 1000, 2 * MIB];
    let mut ptrs = Vec::new();
    while ptrs.iter().map(|ptr: &DevicePtr| rig.blocks[&ptr.0].0).sum::<u64>() < 128 * MIB {
        let size = sizes[ptrs.len() % sizes.len()];
        let home = if ptrs.len() % 3 == 0 { stream } else { HOME };
        ptrs.push(rig.alloc(request(size, home), Evictable::default()).unwrap());
    }
    for round in 0..3 {
        for (index, &ptr) in ptrs.iter().enumerate() {
            rig.verify(ptr).unwrap();
            if index % 4 == round {
                rig.rewrite(ptr).unwrap();
            }
        }
        rig.check();
    }
    let stats = rig.allocator.tier_stats(0).unwrap();
    assert!(stats.evictions > 20 && stats.restores > 20, "{stats:#?}");
    assert!(stats.resident <= 64 * MIB, "{stats:#?}");
    let waits = rig.allocator.driver(0).unwrap().calls();
    assert_eq!(
        waits.of(stratalloc::driver::metered::CallKind::SynchronizeDevice).count,
        0,
        "nothing waits for the device"
    );
    rig.finish();
}

#[test]
fn other_requests_take_the_memory_of_evictable_blocks() {
    let mut rig = rig(32 * MIB, "tiers:host=64MiB");
    for _ in 0..4 {
        rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
    }
    let large = rig.allocator.raw_alloc(AllocRequest::new(20 * MIB)).unwrap();
    let small = rig.allocator.raw_alloc(AllocRequest::new(20 * KIB)).unwrap();
    let stats = rig.allocator.stats(0).unwrap();
    assert_eq!((stats.rung(Rung::Evict), stats.out_of_memory), (1, 0), "{stats:#?}");
    rig.check();
    // What is left is pinned: now there really is no room, and the explanation says what the tiers did.
    let pins: Vec<_> = rig.blocks.keys().filter_map(|&ptr| rig.allocator.pin(DevicePtr(ptr), HOME).ok()).collect();
    assert_eq!(pins.len(), 1);
    let error = rig.allocator.raw_alloc(AllocRequest::new(20 * MIB)).unwrap_err();
    let Error::OutOfMemory(shortage) = &error else { panic!("{error}") };
    let tiers = shortage.explanation.tiers.as_ref().unwrap();
    assert_eq!((tiers.evicted, tiers.evictable, tiers.pinned), (0, 0, 8 * MIB));
    assert!(shortage.explanation.to_string().contains("8 MiB pinned"), "{}", shortage.explanation);
    assert_eq!(rig.allocator.last_oom(0).unwrap().unwrap().tiers, shortage.explanation.tiers);
    // And a block that is away cannot come back.
    let away =
        rig.blocks.keys().copied().map(DevicePtr).find(|&ptr| rig.allocator.residency(ptr).unwrap() == Residency::Host);
    let error = rig.allocator.pin(away.unwrap(), HOME).unwrap_err();
    assert!(
        matches!(error, Error::Residency(ResidencyError::NoRoom { size, pinned, .. }) if (size, pinned) == (8 * MIB, 8 * MIB)),
        "{error}"
    );
    drop(pins);
    rig.allocator.raw_free(large).unwrap();
    rig.allocator.raw_free(small).unwrap();
    rig.verify_all();
    rig.finish();
}

#[test]
fn small_blocks_share_extents_by_stream_and_tag() {
    let mut rig = rig(256 * MIB, "tiers:host=256MiB");
    let tag = rig.allocator.tag("weights").unwrap();
    let mut tagged = Vec::new();
    for index in 0..600 {
        let size = 4 * KIB + index * 100;
        let plain = request(size, HOME);
        let wanted = if index % 2 == 0 { plain.tag(tag) } else { plain };
        let ptr = rig.alloc(wanted, Evictable::default()).unwrap();
        if index % 2 == 0 {
            tagged.push(ptr);
        }
    }
    let stats = rig.allocator.tier_stats(0).unwrap();
    assert_eq!(stats.blocks, 600);
    assert!(stats.extents < 24, "{} extents", stats.extents);
    assert!(stats.resident < stats.requested + stats.requested / 4, "{stats:#?}");
    let gone = rig.allocator.offload(Select::Tag(tag.number())).unwrap();
    assert!(gone >= tagged.len() as u64 * 4 * KIB);
    for &ptr in rig.blocks.keys() {
        let wanted = if tagged.contains(&DevicePtr(ptr)) { Residency::Host } else { Residency::Resident };
        assert_eq!(rig.allocator.residency(DevicePtr(ptr)).unwrap(), wanted);
    }
    // Some are freed while they are away, some after.
    for (index, &ptr) in tagged.iter().enumerate().filter(|(index, _)| index % 3 > 0) {
        if index % 3 == 1 {
            rig.free(ptr);
        }
    }
    rig.verify_all();
    rig.finish();
}

#[test]
fn sleep_saves_drops_or_keeps_by_tag_and_wake_undoes_it() {
    let mut rig = rig(128 * MIB, "tiers:host=128MiB");
    let [weights, kv, keep] = ["weights", "kv", "keep"].map(|name| rig.allocator.tag(name).unwrap());
    let mut of = Vec::new();
    for tag in [weights, kv, keep] {
        of.push(rig.alloc(request(16 * MIB, HOME).tag(tag), Evictable::default().on_request_only()).unwrap());
        of.push(rig.alloc(request(300 * KIB, HOME).tag(tag), Evictable::default().on_request_only()).unwrap());
    }
    let before = rig.allocator.stats(0).unwrap();
    let plan = SleepPlan::new(SleepAction::Keep).tag(weights, SleepAction::Save).tag(kv, SleepAction::Drop);
    assert!(matches!(rig.allocator.wake(None), Err(Error::Residency(ResidencyError::Awake))));
    for _ in 0..20 {
        let gone = rig.allocator.sleep(&plan).unwrap();
        let asleep = rig.allocator.stats(0).unwrap();
        assert_eq!(asleep.reserved.current, before.reserved.current - gone);
        assert!(rig.allocator.tier_stats(0).unwrap().asleep);
        assert!(matches!(rig.allocator.sleep(&plan), Err(Error::Residency(ResidencyError::Asleep))));
        assert!(matches!(rig.allocator.pin(of[0], HOME), Err(Error::Residency(ResidencyError::Asleep))));
        assert_eq!(rig.allocator.residency(of[2]).unwrap(), Residency::Dropped);
        rig.verify(of[4]).unwrap();
        // One tag, then the rest.
        rig.allocator.wake(Some(&[weights])).unwrap();
        rig.verify(of[0]).unwrap();
        rig.verify(of[1]).unwrap();
        assert!(matches!(rig.allocator.pin(of[2], HOME), Err(Error::Residency(ResidencyError::Asleep))));
        rig.allocator.wake(None).unwrap();
        assert!(!rig.allocator.tier_stats(0).unwrap().asleep);
        rig.allocator.restore_evicted(Select::All).unwrap();
        // What was dropped is there and holds anything.
        rig.rewrite(of[2]).unwrap();
        rig.rewrite(of[3]).unwrap();
        rig.verify_all();
    }
    let after = rig.allocator.stats(0).unwrap();
    assert_eq!((after.reserved.current, after.live.current), (before.reserved.current, before.live.current));
    // A pin is in the way of sleep, and nothing changes.
    let pin = rig.allocator.pin(of[0], HOME).unwrap();
    assert!(matches!(rig.allocator.sleep(&plan), Err(Error::Residency(ResidencyError::Pinned { .. }))));
    assert_eq!(rig.allocator.residency(of[2]).unwrap(), Residency::Resident);
    drop(pin);
    rig.verify_all();
    rig.finish();
}

#[test]
fn sleep_that_finds_no_room_changes_nothing() {
    let mut rig = rig(64 * MIB, "tiers:host=16MiB");
    for _ in 0..4 {
        rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
    }
    let error = rig.allocator.sleep(&SleepPlan::default()).unwrap_err();
    assert!(matches!(error, Error::Tier(TierError::Full { .. })), "{error}");
    let stats = rig.allocator.tier_stats(0).unwrap();
    assert_eq!((stats.resident, stats.away, stats.asleep), (32 * MIB, 0, false));
    rig.verify_all();
    rig.finish();
}

#[test]
fn dropped_blocks_are_computed_again() {
    let mut rig = rig(32 * MIB, "tiers:host=32MiB");
    let device = rig.device.clone();
    let stream = rig.device.create_stream().unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let (counted, works) = (calls.clone(), Arc::new(AtomicU64::new(1)));
    let working = works.clone();
    let recompute = Evictable::default().recompute(
        Arc::new(move |ptr, size, stream| {
            counted.fetch_add(1, Relaxed);
            match working.load(Relaxed) {
                0 => Err("no power".to_string()),
                1 => device.fill(ptr, size, 7, stream).map_err(|error| error.to_string()),
                _ => panic!("planted"),
            }
        }),
        None,
    );
    let ptr = rig.allocator.alloc_evictable(request(8 * MIB, HOME), recompute.clone()).unwrap();
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Dropped);
    assert_eq!(rig.allocator.tier_stats(0).unwrap().tiers[0].used, 0, "nothing was stored");
    for (mode, words) in [(0, "no power"), (2, "planted")] {
        works.store(mode, Relaxed);
        let error = rig.allocator.pin(ptr, stream).unwrap_err();
        assert!(matches!(error, Error::Residency(ResidencyError::Recompute { .. })), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Dropped);
        assert_eq!(rig.allocator.tier_stats(0).unwrap().resident, 0, "its memory went back");
        rig.check();
    }
    works.store(1, Relaxed);
    // On another stream, which waits for the home stream.
    let pin = rig.allocator.pin(ptr, stream).unwrap();
    let mut found = vec![0; 8 * MIB as usize];
    rig.device.read(&mut found, ptr, stream).unwrap();
    assert!(found.iter().all(|&byte| byte == 7));
    drop(pin);
    assert_eq!(calls.load(Relaxed), 3);
    // Where computing costs more than a transfer, the bytes are stored.
    let dear = recompute.recompute(Arc::new(|_, _, _| Err("never".to_string())), Some(u64::MAX));
    let stored = rig.alloc(request(8 * MIB, HOME), dear).unwrap();
    rig.allocator.offload(Select::Ptr(stored)).unwrap();
    assert_eq!(rig.allocator.residency(stored).unwrap(), Residency::Host);
    rig.verify(stored).unwrap();
    rig.allocator.raw_free(ptr).unwrap();
    rig.finish();
}

#[test]
fn failing_tiers_lose_nothing() {
    for kind in [
        TierFaultKind::Full,
        TierFaultKind::Refused(5),
        TierFaultKind::Failed(5),
        TierFaultKind::Short,
        TierFaultKind::Failed(28),
    ] {
        let (mut rig, tier) = faulty(64 * MIB, 64 * MIB);
        let ptrs: Vec<DevicePtr> =
            (0..3).map(|_| rig.alloc(request(6 * MIB, HOME), Evictable::default()).unwrap()).collect();
        inject(&tier, kind);
        let error = rig.allocator.offload(Select::All).unwrap_err();
        assert!(matches!(error, Error::Tier(TierError::Full { .. } | TierError::Io { .. })), "{kind:?}: {error}");
        assert!(tier.failures() > 0);
        assert_eq!(rig.allocator.tier_stats(0).unwrap().resident, 18 * MIB);
        assert_eq!(tier.inner().used(), 0, "{kind:?}: nothing is left in the tier");
        // A request for which they would have to go fails, and says why.
        let error = rig.allocator.raw_alloc(AllocRequest::new(60 * MIB)).unwrap_err();
        let Error::OutOfMemory(shortage) = error else { panic!("{error}") };
        let tiers = shortage.explanation.tiers.unwrap();
        assert_eq!((tiers.evicted, tiers.evictable), (0, 18 * MIB));
        assert!(tiers.failure.is_some());
        tier.clear();
        rig.allocator.offload(Select::All).unwrap();
        assert_eq!(rig.allocator.tier_stats(0).unwrap().away, 18 * MIB);
        if kind != TierFaultKind::Full {
            // On the way back.
            inject(&tier, kind);
            let error = rig.verify(ptrs[0]).unwrap_err();
            assert!(matches!(error, Error::Tier(TierError::Io { .. })), "{kind:?}: {error}");
            assert_eq!(rig.allocator.residency(ptrs[0]).unwrap(), Residency::Disk);
            assert_eq!(rig.allocator.stats(0).unwrap().live.current, 0);
            tier.clear();
        }
        rig.verify_all();
        rig.finish();
    }
}

#[test]
fn altered_bytes_are_never_handed_out() {
    let (mut rig, tier) = faulty(64 * MIB, 64 * MIB);
    let ptr = rig.alloc(request(6 * MIB, HOME), Evictable::default()).unwrap();
    rig.allocator.offload(Select::All).unwrap();
    inject(&tier, TierFaultKind::Altered);
    for _ in 0..3 {
        let error = rig.allocator.pin(ptr, HOME).unwrap_err();
        assert!(matches!(error, Error::Tier(TierError::Corrupt { .. })), "{error}");
        assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Disk);
    }
    // It was the reading: what is stored is good.
    tier.clear();
    rig.verify_all();
    rig.finish();
}

#[test]
fn what_does_not_fit_into_the_first_tier_goes_on_to_the_next() {
    let device = SoftDevice::builder(128 * MIB).seed(9).checker(true).build().unwrap();
    let slow: Arc<FaultTier> = Arc::new(FaultTier::new(host_tier(device.clone(), 128 * MIB)));
    let with_tier = slow.clone();
    let mut rig = TierRig::on(device.clone(), device, "tiers:host=16MiB", move |builder| {
        builder.tier(0, TierKind::Disk, with_tier)
    });
    let ptrs: Vec<DevicePtr> =
        (0..8).map(|_| rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap()).collect();
    for &ptr in &ptrs {
        rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    }
    let at: Vec<Residency> = ptrs.iter().map(|&ptr| rig.allocator.residency(ptr).unwrap()).collect();
    let on_disk = at.iter().filter(|&&at| at == Residency::Disk).count();
    assert_eq!(
        (on_disk, &at[6..]),
        (6, &[Residency::Host; 2][..]),
        "what went last is the quickest to have back: {at:?}"
    );
    assert_eq!(rig.allocator.tier_stats(0).unwrap().spills, 6);
    rig.verify_all();
    // Where the slow tier fails, what is in the fast one stays there, and what is to go stays on the device.
    rig.allocator.restore_evicted(Select::All).unwrap();
    rig.allocator.offload(Select::Ptr(ptrs[0])).unwrap();
    rig.allocator.offload(Select::Ptr(ptrs[1])).unwrap();
    inject(&slow, TierFaultKind::Failed(5));
    let error = rig.allocator.offload(Select::Ptr(ptrs[2])).unwrap_err();
    assert!(matches!(error, Error::Tier(_)), "{error}");
    let at = [ptrs[0], ptrs[1], ptrs[2]].map(|ptr| rig.allocator.residency(ptr).unwrap());
    assert_eq!(at, [Residency::Host, Residency::Host, Residency::Resident]);
    slow.clear();
    rig.verify_all();
    rig.finish();
}

#[test]
fn what_never_came_back_pushes_nothing_out_of_a_tier() {
    let device = SoftDevice::builder(128 * MIB).seed(9).checker(true).build().unwrap();
    let slow: Arc<FaultTier> = Arc::new(FaultTier::new(host_tier(device.clone(), 128 * MIB)));
    let mut rig = TierRig::on(device.clone(), device, "tiers:host=16MiB,tier_admission:again", move |builder| {
        builder.tier(0, TierKind::Disk, slow)
    });
    let ptrs: Vec<DevicePtr> =
        (0..5).map(|_| rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap()).collect();
    let places =
        |rig: &TierRig| -> Vec<Residency> { ptrs.iter().map(|&ptr| rig.allocator.residency(ptr).unwrap()).collect() };
    let go = |rig: &TierRig, ptr: DevicePtr| assert_eq!(rig.allocator.offload(Select::Ptr(ptr)).unwrap(), 8 * MIB);
    ptrs.iter().for_each(|&ptr| go(&rig, ptr));
    // The first two found room in the fast tier, and stay there.
    use Residency::{Disk, Host};
    assert_eq!(places(&rig), [Host, Host, Disk, Disk, Disk]);
    assert_eq!(rig.allocator.tier_stats(0).unwrap().spills, 0);
    // One that was wanted back may push the oldest out.
    rig.verify(ptrs[4]).unwrap();
    go(&rig, ptrs[4]);
    assert_eq!(places(&rig), [Disk, Host, Disk, Disk, Host]);
    assert_eq!(rig.allocator.tier_stats(0).unwrap().spills, 1);
    rig.verify_all();
    rig.finish();
}

#[test]
fn observers_hear_of_memory_that_goes_and_comes_back() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let a = rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
    let heard: Arc<Mutex<Vec<MemoryChange>>> = Arc::default();
    let (hears, asks) = (heard.clone(), rig.allocator.clone());
    let number = rig.allocator.on_residency(move |change| {
        // Memory is there in both cases.
        let (MemoryChange::Unmapping { ptr, .. } | MemoryChange::Remapped { ptr, .. }) = *change else { return };
        assert_ne!(asks.residency(ptr).unwrap(), Residency::Host);
        hears.lock().push(*change);
    });
    let number = number.unwrap();
    rig.allocator.offload(Select::All).unwrap();
    let size = 8 * MIB;
    assert_eq!(*heard.lock(), [MemoryChange::Unmapping { ptr: a, size }]);
    rig.verify(a).unwrap();
    assert_eq!(*heard.lock(), [MemoryChange::Unmapping { ptr: a, size }, MemoryChange::Remapped { ptr: a, size }]);
    assert!(rig.allocator.remove_residency_observer(number));
    assert!(!rig.allocator.remove_residency_observer(number));
    // One that panics keeps the memory where it is.
    let panics = rig.allocator.on_residency(|change| {
        assert!(!matches!(change, MemoryChange::Unmapping { .. }), "planted");
    });
    assert!(rig.allocator.offload(Select::All).unwrap_err().to_string().contains("panicked"));
    assert_eq!(rig.allocator.residency(a).unwrap(), Residency::Resident);
    rig.allocator.remove_residency_observer(panics.unwrap());
    rig.verify_all();
    rig.finish();
}

#[test]
fn a_thread_that_dies_leaves_no_pin() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let ptr = rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
    let allocator = rig.allocator.clone();
    let died = std::thread::spawn(move || {
        let _pin = allocator.pin(ptr, HOME).unwrap();
        assert!(matches!(
            allocator.offload(Select::Ptr(ptr)),
            Err(Error::Residency(ResidencyError::Pinned { pins: 1, .. }))
        ));
        panic!("planted");
    });
    assert!(died.join().is_err());
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    rig.verify_all();
    rig.finish();
}

#[test]
fn a_block_may_be_freed_at_any_time_but_pinned() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let other = rig.device.create_stream().unwrap();
    // Pinned, away, coming back, recorded, and shared with one that stays.
    let ptrs: Vec<DevicePtr> =
        (0..4).map(|_| rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap()).collect();
    let pin = rig.allocator.pin(ptrs[0], HOME).unwrap();
    let error = rig.allocator.raw_free(ptrs[0]).unwrap_err();
    assert!(matches!(error, Error::Residency(ResidencyError::Pinned { pins: 1, .. })), "{error}");
    drop(pin);
    rig.free(ptrs[0]);
    let error = rig.allocator.raw_free(ptrs[0]).unwrap_err();
    assert!(matches!(error, Error::InvalidPointer { .. } | Error::DoubleFree { .. }), "{error}");
    rig.allocator.offload(Select::Ptr(ptrs[1])).unwrap();
    rig.free(ptrs[1]);
    assert_eq!(rig.allocator.tier_stats(0).unwrap().tiers[0].used, 0, "its place went with it");
    rig.allocator.offload(Select::Ptr(ptrs[2])).unwrap();
    rig.allocator.prefetch(ptrs[2], other).unwrap();
    rig.free(ptrs[2]);
    rig.allocator.record_stream(ptrs[3], other).unwrap();
    rig.device.launch(other, &[stratalloc::driver::soft::Access::read(ptrs[3], 4 * MIB)], 1_000_000).unwrap();
    rig.free(ptrs[3]);
    rig.check();
    // All of it is used again, by other streams.
    for _ in 0..4 {
        rig.alloc(request(14 * MIB, other), Evictable::default()).unwrap();
    }
    rig.verify_all();
    rig.finish();
}

#[test]
fn bytes_are_stashed_and_fetched() {
    let rig = rig(64 * MIB, "tiers:host=64MiB");
    let other = rig.device.create_stream().unwrap();
    let allocator = &rig.allocator;
    let bytes = TierRig::contents(5 * MIB, 77);
    let from = allocator.raw_alloc(request(5 * MIB, HOME)).unwrap();
    rig.device.write(from, &bytes, HOME).unwrap();
    let stash = allocator.stash(from, 5 * MIB, HOME, None).unwrap();
    allocator.raw_free(from).unwrap();
    // Somebody else has the memory at once, in stream order.
    let next = allocator.raw_alloc(request(5 * MIB, HOME)).unwrap();
    rig.device.fill(next, 5 * MIB, 0, HOME).unwrap();
    let to = allocator.raw_alloc(request(5 * MIB, other)).unwrap();
    stash.fetch(to, other).unwrap();
    stash.order(other).unwrap();
    let mut found = vec![0; bytes.len()];
    rig.device.read(&mut found, to, other).unwrap();
    assert!(found == bytes);
    assert!(stash.may_free(true).unwrap());
    drop(stash);
    assert_eq!(allocator.tier_stats(0).unwrap().tiers[0].used, 0);
    let error = allocator.stash(to, MIB, other, Some("tape")).unwrap_err();
    assert!(error.to_string().contains("there are host"), "{error}");
    let error = allocator.stash(to, 65 * MIB, other, None).unwrap_err();
    assert!(matches!(error, Error::InvalidSize { max, .. } if max == 5 * MIB), "{error}");
    allocator.raw_free(next).unwrap();
    allocator.raw_free(to).unwrap();
    rig.finish();
}

#[test]
fn what_cannot_be_is_refused() {
    let plain = Allocator::builder()
        .device(DeviceSpec::Driver(SoftDevice::builder(64 * MIB).build().unwrap()))
        .build()
        .unwrap();
    let error = |result: Result<DevicePtr, Error>| result.unwrap_err();
    let ask = request(MIB, HOME);
    let none = |error: &Error| matches!(error, Error::Residency(ResidencyError::NoTiers));
    assert!(none(&error(plain.alloc_evictable(ask, Evictable::default()))));
    assert!(none(&plain.on_residency(|_| ()).unwrap_err()));
    assert!(none(&plain.sleep(&SleepPlan::default()).unwrap_err()));
    let block = plain.raw_alloc(ask).unwrap();
    assert!(none(&plain.stash(block, 1, HOME, None).unwrap_err()));
    assert!(matches!(plain.stash(DevicePtr(1 << 20), 1, HOME, None), Err(Error::InvalidPointer { .. })));
    assert_eq!(plain.tier_stats(0).unwrap(), Default::default());
    assert!(matches!(plain.tier_stats(1), Err(Error::UnknownDevice { .. })));

    let text = "tiers:host=64MiB,tier_workers:0";
    let device = SoftDevice::builder(64 * MIB).vmm(false).build().unwrap();
    let no_vmm = common::rig::allocator_on(device, text);
    let refused = error(no_vmm.alloc_evictable(ask, Evictable::default()));
    assert!(matches!(refused, Error::Residency(ResidencyError::NoVirtualMemory)), "{refused}");

    let mut rig = rig(64 * MIB, "tiers:host=64MiB,limit:32MiB");
    let (allocator, how) = (rig.allocator.clone(), Evictable::default);
    let refused = error(allocator.alloc_evictable(ask.flags(AllocFlags::DEDICATED), how()));
    assert!(matches!(refused, Error::Residency(ResidencyError::Dedicated)), "{refused}");
    let refused = error(allocator.alloc_evictable(request(0, HOME), how()));
    assert!(matches!(refused, Error::InvalidSize { .. }), "{refused}");
    let refused = error(allocator.alloc_evictable(ask.alignment(3), how()));
    assert!(matches!(refused, Error::InvalidAlignment { .. }), "{refused}");
    let refused = error(allocator.alloc_evictable(request(40 * MIB, HOME), how()));
    assert!(matches!(refused, Error::NeverFits { .. }), "{refused}");
    let block = allocator.raw_alloc(ask).unwrap();
    for refused in [
        allocator.pin(block, HOME).map(drop).unwrap_err(),
        allocator.prefetch(DevicePtr(3), HOME).unwrap_err(),
        allocator.offload(Select::Ptr(block)).map(drop).unwrap_err(),
        allocator.restore_evicted(Select::Ptr(block)).unwrap_err(),
        allocator.residency(block).map(drop).unwrap_err(),
    ] {
        assert!(matches!(refused, Error::Residency(ResidencyError::NotEvictable { .. })), "{refused}");
    }
    allocator.raw_free(block).unwrap();
    // A tag's limit counts evictable blocks, wherever they are.
    let tag = allocator.tag("kv").unwrap();
    allocator.set_tag_limit(0, tag, Some(Limit::from(12 * MIB))).unwrap();
    rig.alloc(request(8 * MIB, HOME).tag(tag), how()).unwrap();
    allocator.offload(Select::All).unwrap();
    let refused = error(allocator.alloc_evictable(request(8 * MIB, HOME).tag(tag), how()));
    assert!(matches!(refused, Error::OverLimit { .. }), "{refused}");
    // Nothing takes more than the limit, and where not all fit, having all back says so.
    rig.alloc(request(28 * MIB, HOME), how()).unwrap();
    let refused = allocator.restore_evicted(Select::All).unwrap_err();
    assert!(matches!(refused, Error::Residency(ResidencyError::NoRoom { .. })), "{refused}");
    drop(allocator);
    rig.verify_all();
    rig.finish();
}

#[test]
fn alignment_and_zeros_hold() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    rig.alloc(request(700, HOME), Evictable::default()).unwrap();
    for alignment in [512, 4096, 1 << 16, 1 << 21] {
        let ptr = rig.alloc(request(3000, HOME).alignment(alignment), Evictable::default()).unwrap();
        assert!(ptr.0.is_multiple_of(alignment));
        assert_eq!(rig.allocator.usable_size(ptr).unwrap(), 3072);
    }
    let zeroed = request(3 * MIB, HOME).flags(AllocFlags::ZEROED);
    let ptr = rig.allocator.alloc_evictable(zeroed, Evictable::default()).unwrap();
    let mut found = vec![1; 3 * MIB as usize];
    rig.device.read(&mut found, ptr, HOME).unwrap();
    assert!(found.iter().all(|&byte| byte == 0));
    rig.allocator.raw_free(ptr).unwrap();
    rig.verify_all();
    rig.finish();
}
