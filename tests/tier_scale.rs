//! Evictable blocks, many and of all sizes, and from many threads.

#![allow(clippy::print_stdout, reason = "what a block costs is there to be read")]

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::rig::{KIB, MIB, Rng, request, soft};
use common::tiers::TierRig;
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::tier::{Evictable, Residency, Select};
use stratalloc::{DevicePtr, Error, ResidencyError, StreamId};

const HOME: StreamId = StreamId::DEFAULT;
const GIB: u64 = 1 << 30;

#[test]
fn a_hundred_thousand_blocks_cost_little_each() {
    const BLOCKS: usize = 100_000;
    let (_, allocator) =
        soft(SoftDevice::builder(256 * GIB).backing(Backing::AddressesOnly), "tiers:host=4GiB,tier_workers:0");
    let cold = allocator.tag("cold").unwrap();
    let mut rng = Rng(11);
    let mut ptrs = Vec::with_capacity(BLOCKS);
    let start = Instant::now();
    for index in 0..BLOCKS {
        let size = if index % 1000 == 0 { rng.pick(&[64 * MIB, 100 * MIB]) } else { 4 * KIB + rng.size(512 * KIB) };
        let wanted = request(size, HOME);
        let wanted = if index % 100 == 1 { wanted.tag(cold) } else { wanted };
        ptrs.push(allocator.alloc_evictable(wanted, Evictable::default()).unwrap());
    }
    let made = start.elapsed();
    let stats = allocator.tier_stats(0).unwrap();
    assert_eq!(stats.blocks, BLOCKS as u64);
    let each = stats.metadata / stats.blocks;
    println!("{BLOCKS} blocks in {} extents, {each} bytes of host memory each; {made:?} to make", stats.extents);
    assert!(each <= 160, "{each} bytes a block");
    assert!(stats.resident <= stats.requested + stats.requested / 8, "rounding wastes too much: {stats:#?}");
    let gone = allocator.offload(Select::Tag(cold.number())).unwrap();
    assert!(gone > 0 && allocator.tier_stats(0).unwrap().away == gone);
    allocator.validate_tiers().unwrap();
    allocator.restore_evicted(Select::All).unwrap();
    rng.shuffle(&mut ptrs);
    ptrs.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
    let stats = allocator.tier_stats(0).unwrap();
    assert_eq!((stats.blocks, stats.extents, stats.tiers[0].used), (0, 0, 0));
    allocator.validate_tiers().unwrap();
}

#[test]
fn every_size_from_a_page_to_a_gibibyte_goes_and_comes_back() {
    let (_, allocator) = soft(
        SoftDevice::builder(3 * GIB).backing(Backing::AddressesOnly).checker(true),
        "tiers:host=4GiB,tier_workers:0",
    );
    for shift in 12..=30 {
        for size in [1u64 << shift, (1 << shift) + 1].into_iter().filter(|&size| size <= GIB) {
            let ptr = allocator.alloc_evictable(request(size, HOME), Evictable::default()).unwrap();
            assert!(allocator.usable_size(ptr).unwrap() >= size);
            let gone = allocator.offload(Select::Ptr(ptr)).unwrap();
            assert!(gone >= size, "{size}: {gone} bytes went");
            assert_eq!(allocator.residency(ptr).unwrap(), Residency::Host);
            let pin = allocator.pin(ptr, HOME).unwrap();
            assert_eq!(pin.ptr(), ptr);
            drop(pin);
            allocator.raw_free(ptr).unwrap();
        }
    }
    allocator.empty_cache(0).unwrap();
    assert_eq!(allocator.stats(0).unwrap().reserved.current, 0);
}

/// Four threads on their own streams share a device that holds a half of what they have.
#[test]
fn threads_take_turns_with_the_device() {
    const BLOCKS: usize = 10;
    let device = SoftDevice::builder(48 * MIB).seed(21).checker(true).build().unwrap();
    for workers in [0, 1] {
        let text = format!("tiers:host=128MiB,tier_workers:{workers}");
        let allocator = common::rig::allocator_on(device.clone(), &text);
        device.allocator_copies(true);
        let work = |thread: u64| {
            let (allocator, device) = (allocator.clone(), device.clone());
            move || {
                let mut rng = Rng(thread * 1000 + workers);
                let stream = device.create_stream().unwrap();
                let mut blocks: Vec<(DevicePtr, u64, u64)> = Vec::new();
                let mut shortages = 0;
                for step in 0..120 {
                    if blocks.len() < BLOCKS && rng.percent(50) {
                        let size = rng.pick(&[5 * KIB, 700 * KIB, 2 * MIB, 3 * MIB]);
                        match allocator.alloc_evictable(request(size, stream), Evictable::default()) {
                            Ok(ptr) => {
                                let seed = rng.bits();
                                let pin = pin(&allocator, ptr, stream);
                                device.write(ptr, &TierRig::contents(size, seed), stream).unwrap();
                                drop(pin);
                                blocks.push((ptr, size, seed));
                            }
                            // The others have pinned what is in the way.
                            Err(Error::OutOfMemory(_)) => shortages += 1,
                            Err(error) => panic!("{error}"),
                        }
                    } else if !blocks.is_empty() {
                        let at = rng.index(blocks.len());
                        let (ptr, size, seed) = blocks[at];
                        let pin = pin(&allocator, ptr, stream);
                        let mut found = vec![0; size as usize];
                        device.read(&mut found, ptr, stream).unwrap();
                        assert!(found == TierRig::contents(size, seed), "thread {thread}, step {step}");
                        drop(pin);
                        if rng.percent(25) {
                            allocator.raw_free(ptr).unwrap();
                            blocks.swap_remove(at);
                        }
                    }
                }
                blocks.into_iter().for_each(|(ptr, ..)| allocator.raw_free(ptr).unwrap());
                shortages
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| std::thread::spawn(work(thread))).collect();
        let shortages: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(shortages < 100, "{shortages} requests found no room");
        allocator.validate_tiers().unwrap();
        let stats = allocator.tier_stats(0).unwrap();
        assert!(stats.evictions > 10, "{stats:#?}");
        assert_eq!((stats.blocks, stats.pinned), (0, 0));
        assert_eq!(device.report_count(), 0, "{}", device.reports()[0]);
    }
}

/// Others may have pinned all there is, for a moment.
fn pin(allocator: &stratalloc::Allocator, ptr: DevicePtr, stream: StreamId) -> stratalloc::tier::PinGuard {
    for _ in 0..10_000 {
        match allocator.pin(ptr, stream) {
            Ok(pin) => return pin,
            Err(Error::Residency(ResidencyError::NoRoom { .. })) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("{ptr} never found room");
}

#[test]
fn workers_keep_transfers_going_behind_the_program() {
    let device = SoftDevice::builder(64 * MIB).build().unwrap();
    let allocator = common::rig::allocator_on(device.clone(), "tiers:host=64MiB,tier_workers:2");
    let ptr = allocator.alloc_evictable(request(16 * MIB, HOME), Evictable::default()).unwrap();
    for _ in 0..5 {
        allocator.offload(Select::Ptr(ptr)).unwrap();
        allocator.prefetch(ptr, HOME).unwrap();
        let deadline = Instant::now();
        while allocator.residency(ptr).unwrap() != Residency::Resident {
            assert!(deadline.elapsed().as_secs() < 60, "a prefetch never ends");
            std::thread::yield_now();
        }
    }
    allocator.raw_free(ptr).unwrap();
    let _: Arc<SoftDevice> = device;
}
