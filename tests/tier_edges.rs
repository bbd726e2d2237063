//! Evictable blocks where calls meet: freed while their bytes are on their way, computed again for several streams, callbacks that call back.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use common::rig::{KIB, MIB, request};
use common::tiers::{TierRig, host_tier, within_seconds};
use parking_lot::Mutex;
use stratalloc::driver::Driver;
use stratalloc::driver::fault::{CallKind, Fault, FaultDriver, When};
use stratalloc::driver::soft::{Access, SoftDevice};
use stratalloc::tier::codec::by_name;
use stratalloc::tier::fault::{FaultTier, TierFault, TierFaultKind};
use stratalloc::tier::{Evictable, MemoryChange, Residency, Select, TierKind};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, DevicePtr, DriverErrorKind, Error, Limit, ResidencyError, StreamId,
};

const HOME: StreamId = StreamId::DEFAULT;

fn rig(capacity: u64, text: &str) -> TierRig {
    TierRig::new(SoftDevice::builder(capacity).seed(3), text)
}

/// A rig whose one tier is read and written by the host, as slowly as told.
fn staged(capacity: u64, bytes: u64) -> (TierRig, Arc<FaultTier>) {
    let device = SoftDevice::builder(capacity).seed(5).checker(true).build().unwrap();
    let tier = Arc::new(FaultTier::new(host_tier(device.clone(), bytes)));
    let with_tier = tier.clone();
    let rig = TierRig::on(device.clone(), device, "", move |builder| builder.tier(0, TierKind::Disk, with_tier));
    (rig, tier)
}

fn slow(tier: &FaultTier, looks: u32) {
    tier.inject(TierFault { when: When::From(1), kind: TierFaultKind::Slow(looks), only: None });
}

#[test]
fn what_is_freed_on_its_way_back_writes_to_nobody() {
    for vacated in [false, true] {
        let (mut rig, tier) = staged(64 * MIB, 64 * MIB);
        let ptr = rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
        rig.allocator.offload(Select::Ptr(ptr)).unwrap();
        slow(&tier, 20);
        rig.allocator.prefetch(ptr, HOME).unwrap();
        assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Restoring);
        // Its reads are under way, and none of it has been copied.
        rig.free(ptr);
        if vacated {
            rig.device.synchronize_device().unwrap();
            rig.allocator.empty_cache(0).unwrap();
        }
        tier.clear();
        let next = rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
        (0..100).for_each(|_| _ = rig.allocator.tier_stats(0));
        rig.device.synchronize_device().unwrap();
        rig.verify(next).unwrap();
        rig.finish();
    }
}

#[test]
fn memory_that_an_earlier_attempt_may_still_write_stays() {
    let device = SoftDevice::builder(64 * MIB).seed(9).event_lag_ns(10_000_000).checker(true).build().unwrap();
    let driver = Arc::new(FaultDriver::new(device.clone()));
    let tier = Arc::new(FaultTier::new(host_tier(driver.clone(), 64 * MIB)));
    let with_tier = tier.clone();
    let mut rig = TierRig::on(driver.clone(), device, "", |builder| builder.tier(0, TierKind::Disk, with_tier));
    let ptr = rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap();
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    let fail = |call: CallKind| {
        driver.inject(Fault { when: When::From(1), kind: DriverErrorKind::Other, only: Some(call) });
    };
    // Nothing says when the first copies end, and the next attempt fails before it copies anything.
    fail(CallKind::RecordEvent);
    fail(CallKind::SynchronizeStream);
    rig.verify(ptr).unwrap_err();
    assert_eq!(rig.allocator.tier_stats(0).unwrap().abandoned, 1);
    driver.clear();
    tier.inject(TierFault { when: When::From(1), kind: TierFaultKind::Failed(5), only: None });
    rig.verify(ptr).unwrap_err();
    rig.check();
    tier.clear();
    rig.verify(ptr).unwrap();
    rig.finish();
}

#[test]
fn what_is_written_to_memory_that_was_lent_stays_when_nothing_says_that_the_copies_have_ended() {
    let device = SoftDevice::builder(64 * MIB).seed(9).event_lag_ns(10_000_000).checker(true).build().unwrap();
    let driver = Arc::new(FaultDriver::new(device.clone()));
    let mut rig = TierRig::on(driver.clone(), device, "tiers:host=64MiB,tier_workers:0", |builder| builder);
    let ptr = rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap();
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    // The bytes are on their way, work is submitted behind them, and then every question about them fails.
    rig.rewrite(ptr).unwrap();
    for call in [CallKind::QueryEvent, CallKind::SynchronizeEvent, CallKind::SynchronizeStream] {
        driver.inject(Fault { when: When::From(1), kind: DriverErrorKind::Other, only: Some(call) });
    }
    (0..8).for_each(|_| _ = rig.allocator.tier_stats(0));
    assert_eq!(rig.allocator.tier_stats(0).unwrap().abandoned, 1);
    driver.clear();
    assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Resident);
    assert!(rig.allocator.tier_stats(0).unwrap().tiers[0].used > 0, "the copies may read it still");
    rig.verify(ptr).unwrap();
    rig.settle();
    assert_eq!(rig.allocator.tier_stats(0).unwrap().tiers[0].used, 0);
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    rig.verify(ptr).unwrap();
    rig.finish();
}

#[test]
fn an_extent_that_hands_chunks_on_may_go_when_mappings_run_out() {
    let device = SoftDevice::builder(8 * MIB).seed(9).checker(true).build().unwrap();
    let driver = Arc::new(FaultDriver::new(device.clone()));
    let mut rig = TierRig::on(driver.clone(), device, "tiers:host=64MiB,chunk_max:2MiB", |builder| builder);
    let alloc = |rig: &mut TierRig, size: u64| rig.alloc(request(size, HOME), Evictable::default()).unwrap();
    let first = alloc(&mut rig, 4 * MIB);
    alloc(&mut rig, 4 * MIB);
    rig.free(first);
    rig.device.synchronize_device().unwrap();
    // It has handed on a half of its chunks, and is to hand on the other.
    alloc(&mut rig, 2 * MIB);
    rig.device.synchronize_device().unwrap();
    driver.inject(Fault { when: When::Nth(1), kind: DriverErrorKind::OutOfMemory, only: Some(CallKind::Map) });
    alloc(&mut rig, 2 * MIB);
    assert_eq!(driver.failures(), 1);
    driver.clear();
    rig.verify_all();
    rig.finish();
}

#[test]
fn gaps_that_are_not_aligned_do_not_hide_one_that_is() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let mut gaps = Vec::new();
    for _ in 0..9 {
        for size in [512, 4096, MIB, MIB - 4608] {
            let ptr = rig.alloc(request(size, HOME), Evictable::default()).unwrap();
            gaps.extend((size == 4096).then_some(ptr));
        }
    }
    assert_eq!(rig.allocator.tier_stats(0).unwrap().extents, 9);
    gaps.into_iter().for_each(|ptr| rig.free(ptr));
    let aligned = AllocRequest::new(4096).alignment(4096);
    let ptr = rig.alloc(aligned, Evictable::default()).unwrap();
    assert_eq!(ptr.0 % 4096, 0);
    rig.verify_all();
    rig.finish();
}

/// Frees a block when it goes.
struct Owner(Allocator, DevicePtr);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.raw_free(self.1).unwrap();
    }
}

#[test]
fn what_a_callback_holds_may_be_freed_with_it() {
    within_seconds(|| {
        let rig = rig(64 * MIB, "tiers:host=64MiB");
        let allocator = rig.allocator.clone();
        let input = allocator.alloc_evictable(request(4 * KIB, HOME), Evictable::default()).unwrap();
        let owner = Owner(allocator.clone(), input);
        let recompute = Arc::new(move |_: DevicePtr, _: u64, _: StreamId| {
            let _ = &owner;
            Ok(())
        });
        let how = Evictable::default().recompute(recompute, None);
        let ptr = allocator.alloc_evictable(request(4 * KIB, HOME), how).unwrap();
        allocator.raw_free(ptr).unwrap();
        assert_eq!(allocator.tier_stats(0).unwrap().blocks, 0);
        drop(allocator);
        rig.finish();
    });
}

#[test]
fn every_stream_comes_after_what_was_computed_again() {
    let rig = rig(64 * MIB, "tiers:host=64MiB");
    let other = rig.device.create_stream().unwrap();
    let contents = TierRig::contents(4 * MIB, 77);
    let (device, wanted) = (rig.device.clone(), contents.clone());
    let recompute = Arc::new(move |ptr: DevicePtr, size: u64, stream: StreamId| {
        // A long kernel.
        device.launch(stream, &[Access::write(ptr, size)], 50_000_000).unwrap();
        device.allocator_copies(false);
        device.write(ptr, &wanted, stream).unwrap();
        device.allocator_copies(true);
        Ok(())
    });
    let how = Evictable::default().recompute(recompute, None);
    let ptr = rig.allocator.alloc_evictable(request(4 * MIB, HOME), how).unwrap();
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    assert_eq!(rig.allocator.residency(ptr).unwrap(), Residency::Dropped);
    drop(rig.allocator.pin(ptr, HOME).unwrap());
    let pin = rig.allocator.pin(ptr, other).unwrap();
    let before = rig.device.clock_ns();
    let event = rig.device.create_event().unwrap();
    rig.device.record_event(event, other).unwrap();
    rig.device.synchronize_event(event).unwrap();
    assert!(rig.device.clock_ns() - before >= 40_000_000, "the other stream did not wait for the kernel");
    rig.device.destroy_event(event).unwrap();
    let mut found = vec![0; contents.len()];
    rig.device.read(&mut found, ptr, other).unwrap();
    assert!(found == contents);
    drop(pin);
    rig.allocator.raw_free(ptr).unwrap();
    rig.finish();
}

#[test]
fn a_callback_that_asks_for_what_it_computes_is_told_so() {
    within_seconds(|| {
        let rig = rig(64 * MIB, "tiers:host=64MiB");
        let allocator = rig.allocator.clone();
        let inner = allocator.clone();
        // The block before it shares its memory: it is being computed as well.
        let recompute = Arc::new(move |ptr: DevicePtr, _: u64, stream: StreamId| {
            let input = if ptr.0.is_multiple_of(2 * MIB) { ptr } else { DevicePtr(ptr.0 - 4 * KIB) };
            inner.pin(input, stream).map(drop).map_err(|error| error.to_string())
        });
        let how = Evictable::default().recompute(recompute, None);
        let blocks: Vec<DevicePtr> =
            (0..2).map(|_| allocator.alloc_evictable(request(4 * KIB, HOME), how.clone()).unwrap()).collect();
        drop(how);
        allocator.offload(Select::All).unwrap();
        let error = allocator.pin(blocks[1], HOME).unwrap_err();
        assert!(matches!(error, Error::Residency(ResidencyError::Recompute { .. })), "{error}");
        assert!(error.to_string().contains("shares memory"), "{error}");
        assert_eq!(allocator.residency(blocks[1]).unwrap(), Residency::Dropped);
        for ptr in blocks {
            allocator.raw_free(ptr).unwrap();
        }
        rig.check();
    });
}

#[test]
fn a_block_that_is_away_can_be_stashed() {
    for is_staged in [false, true] {
        let mut rig = if is_staged { staged(64 * MIB, 64 * MIB).0 } else { rig(64 * MIB, "tiers:host=64MiB") };
        let ptr = rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap();
        rig.allocator.offload(Select::Ptr(ptr)).unwrap();
        let stash = rig.allocator.stash(ptr, 4 * MIB, HOME, None).unwrap();
        // It may go again, at the latest when its bytes have arrived.
        assert!(stash.may_free(true).unwrap());
        assert_eq!(rig.allocator.offload(Select::Ptr(ptr)).unwrap(), 4 * MIB);
        let to = rig.allocator.raw_alloc(request(4 * MIB, HOME)).unwrap();
        stash.fetch(to, HOME).unwrap();
        stash.order(HOME).unwrap();
        let mut found = vec![0; 4 * MIB as usize];
        rig.device.read(&mut found, to, HOME).unwrap();
        assert!(found == TierRig::contents(4 * MIB, rig.blocks[&ptr.0].1));
        drop(stash);
        rig.allocator.raw_free(to).unwrap();
        rig.verify_all();
        rig.finish();
    }
}

#[test]
fn many_transfers_of_others_keep_no_block_away() {
    let (mut rig, tier) = staged(64 * MIB, 64 * MIB);
    let ptr = rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap();
    rig.allocator.offload(Select::Ptr(ptr)).unwrap();
    let from = rig.allocator.raw_alloc(request(4 * KIB, HOME)).unwrap();
    slow(&tier, 20_000);
    let stashes: Vec<_> = (0..256).map(|_| rig.allocator.stash(from, 4 * KIB, HOME, None).unwrap()).collect();
    rig.verify(ptr).unwrap();
    tier.clear();
    for stash in stashes {
        assert!(stash.may_free(true).unwrap());
    }
    rig.allocator.raw_free(from).unwrap();
    rig.finish();
}

#[test]
fn observers_hear_of_comings_and_goings_in_turn() {
    within_seconds(|| {
        let rig = rig(64 * MIB, "tiers:host=64MiB");
        let allocator = rig.allocator.clone();
        let there = Arc::new(Mutex::new(BTreeMap::new()));
        let heard = there.clone();
        let twice = Arc::new(AtomicU32::new(0));
        let inverted = twice.clone();
        let observer = allocator.on_residency(move |change| {
            let (ptr, now) = match *change {
                MemoryChange::Unmapping { ptr, .. } => (ptr, false),
                MemoryChange::Remapped { ptr, .. } => (ptr, true),
                _ => return,
            };
            // Time for others to come in between.
            std::thread::yield_now();
            let before = heard.lock().insert(ptr.0, now);
            inverted.fetch_add(u32::from(before.unwrap_or(true) == now), Relaxed);
        });
        let observer = observer.unwrap();
        let ptrs: Vec<DevicePtr> =
            (0..3).map(|_| allocator.alloc_evictable(request(2 * MIB, HOME), Evictable::default()).unwrap()).collect();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (allocator, ptrs) = (&allocator, &ptrs);
                scope.spawn(move || {
                    for round in 0..200 {
                        let ptr = ptrs[(round + thread) % 3];
                        if round % 2 == 0 {
                            let _ = allocator.offload(Select::Ptr(ptr));
                        } else {
                            drop(allocator.pin(ptr, HOME).unwrap());
                        }
                    }
                });
            }
        });
        ptrs.iter().for_each(|&ptr| drop(allocator.pin(ptr, HOME).unwrap()));
        assert!(there.lock().values().all(|&now| now));
        assert_eq!(twice.load(Relaxed), 0, "told twice in a row that a block comes, or goes");
        assert!(allocator.remove_residency_observer(observer));
        ptrs.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
        drop(allocator);
        rig.finish();
    });
}

#[test]
fn a_block_asked_for_zeroed_is_zero() {
    let rig = rig(64 * MIB, "tiers:host=64MiB");
    let old = rig.allocator.raw_alloc(request(2 * MIB, HOME)).unwrap();
    rig.device.fill(old, 2 * MIB, 7, HOME).unwrap();
    rig.allocator.raw_free(old).unwrap();
    let zeroed = request(2 * MIB, HOME).flags(AllocFlags::ZEROED);
    let ptr = rig.allocator.alloc_evictable(zeroed, Evictable::default()).unwrap();
    assert_eq!(rig.allocator.tier_stats(0).unwrap().pinned, 0);
    let mut found = vec![1; 2 * MIB as usize];
    rig.device.read(&mut found, ptr, HOME).unwrap();
    assert!(found.iter().all(|&byte| byte == 0));
    rig.allocator.raw_free(ptr).unwrap();
    rig.finish();
}

#[test]
fn what_lies_beside_a_block_costs_its_numbers_no_digits() {
    let rig = rig(64 * MIB, "tiers:host=64MiB");
    let allocator = &rig.allocator;
    let fill = |ptr: DevicePtr, count: usize, value: f32| {
        let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), count).flatten().collect();
        rig.device.write(ptr, &bytes, HOME).unwrap();
    };
    // What was there before is as large as numbers are.
    let old = allocator.raw_alloc(request(4 * MIB, HOME)).unwrap();
    fill(old, MIB as usize, 3e38);
    allocator.raw_free(old).unwrap();
    allocator.empty_cache(0).unwrap();
    for name in ["int8-f32", "int8-f32-g256"] {
        let how = Evictable::default().codec(by_name(name).unwrap().unwrap());
        // One of its own, and two that share; none ends where a group does.
        let counts = [500_010, 130, 130];
        let ptrs = counts.map(|count| {
            let ptr = allocator.alloc_evictable(request(count * 4, HOME), how.clone()).unwrap();
            drop(allocator.pin(ptr, HOME).unwrap());
            ptr
        });
        for (at, ptr) in ptrs.into_iter().enumerate() {
            fill(ptr, counts[at] as usize, if at == 1 { 1e30 } else { 1.5 });
        }
        allocator.offload(Select::All).unwrap();
        for (at, ptr) in ptrs.into_iter().enumerate() {
            drop(allocator.pin(ptr, HOME).unwrap());
            let mut found = vec![0; counts[at] as usize * 4];
            rig.device.read(&mut found, ptr, HOME).unwrap();
            let wanted = if at == 1 { 1e30 } else { 1.5 };
            let near = |number: f32| (number - wanted).abs() <= wanted / 200.0;
            assert!(found.as_chunks().0.iter().all(|&bytes| near(f32::from_le_bytes(bytes))), "{name} {at}");
            allocator.raw_free(ptr).unwrap();
        }
    }
    rig.finish();
}

#[test]
fn a_lower_limit_sends_evictable_blocks_away() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let ptrs: Vec<DevicePtr> =
        (0..6).map(|_| rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap()).collect();
    let free = rig.allocator.raw_alloc(AllocRequest::new(4 * MIB)).unwrap();
    rig.allocator.raw_free(free).unwrap();
    let limit = |mib: u64| Limit::from(mib * MIB);
    // What is free goes first: nothing has to leave for that.
    rig.allocator.set_limit(0, limit(48)).unwrap();
    assert_eq!(rig.allocator.tier_stats(0).unwrap().evictions, 0);
    rig.allocator.set_limit(0, limit(32)).unwrap();
    let stats = rig.allocator.stats(0).unwrap();
    assert!(stats.reserved.current <= 32 * MIB, "{stats:#?}");
    assert_eq!(rig.allocator.tier_stats(0).unwrap().away, 16 * MIB);
    rig.verify_all();
    // What is pinned stays, and the limit as well.
    let pin = rig.allocator.pin(ptrs[0], HOME).unwrap();
    let error = rig.allocator.set_limit(0, limit(6)).unwrap_err();
    assert!(
        matches!(error, Error::LimitBelowUse { limit, in_use } if limit == 6 * MIB && in_use >= 8 * MIB),
        "{error}"
    );
    assert_eq!(rig.allocator.stats(0).unwrap().limit, 32 * MIB);
    drop(pin);
    rig.allocator.set_limit(0, limit(64)).unwrap();
    rig.verify_all();
    rig.finish();
}

#[test]
fn streams_beyond_the_last_clock_are_waited_for_on_the_device() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let late = rig.device.create_stream().unwrap();
    // There are 65,536 clocks. Streams that no call of the device names need not exist.
    let mut others = (1..).map(|number| StreamId(1 << 32 | number));
    'all: loop {
        let block = rig.allocator.raw_alloc(AllocRequest::new(512)).unwrap();
        for stream in others.by_ref().take(64) {
            if rig.allocator.record_stream(block, stream).is_err() {
                break 'all;
            }
        }
    }
    assert!(others.next().unwrap().0 & 0xffff_ffff > 65_000);
    for offloaded in [false, true] {
        let ptr = rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap();
        rig.device.order_after(late, HOME).unwrap();
        let pin = rig.allocator.pin(ptr, late).unwrap();
        rig.device.launch(late, &[Access::read(ptr, 4 * MIB)], 1_000_000).unwrap();
        drop(pin);
        if offloaded {
            assert_eq!(rig.allocator.offload(Select::Ptr(ptr)).unwrap(), 4 * MIB);
        }
        rig.free(ptr);
        // Written on the home stream, in the memory that the other one has read.
        let next = rig.alloc(request(4 * MIB, HOME), Evictable::default()).unwrap();
        rig.verify(next).unwrap();
        rig.check();
        rig.free(next);
    }
}

#[test]
fn a_request_that_may_take_nothing_is_told_why_it_failed() {
    let mut rig = rig(64 * MIB, "tiers:host=64MiB");
    let asked = request(8 * MIB, HOME).flags(AllocFlags::NO_GROW);
    let Err(Error::OutOfMemory(shortage)) = rig.alloc(asked, Evictable::default()) else {
        panic!("nothing is held that it could have")
    };
    let explanation = &shortage.explanation;
    assert_eq!((explanation.request.size, explanation.request.may_grow), (8 * MIB, false));
    assert!(shortage.to_string().contains("NO_GROW"), "{shortage}");
    assert_eq!(rig.allocator.last_oom(0).unwrap().unwrap().request, explanation.request);
    assert_eq!(rig.allocator.stats(0).unwrap().out_of_memory, 1);
    // Of what a block has left, it gets some.
    let other = rig.alloc(request(8 * MIB, HOME), Evictable::default()).unwrap();
    rig.free(other);
    let ptr = rig.alloc(asked, Evictable::default()).unwrap();
    rig.verify(ptr).unwrap();
    rig.finish();
}
