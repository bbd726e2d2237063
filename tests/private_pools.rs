//! Private pools beyond captures: users, lending, giving back, and checkpoints.

mod common;

use common::rig::{KIB, MIB, Rng, check, soft};
use std::collections::BTreeMap;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, BlockState, DevicePtr, Error, EventKind, PoolId, Rung, StreamId,
};

const POOL: PoolId = PoolId(7, 1);

fn scene(mib: u64) -> (std::sync::Arc<SoftDevice>, Allocator, StreamId) {
    use stratalloc::driver::Driver;
    let (device, allocator) = soft(SoftDevice::builder(mib * MIB).backing(Backing::AddressesOnly).checker(true), "");
    let stream = device.create_stream().unwrap();
    (device, allocator, stream)
}

fn inside(allocator: &Allocator, stream: StreamId, size: u64) -> DevicePtr {
    allocator.route_private_pool(0, POOL, move |other| other == stream).unwrap();
    let ptr = allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
    allocator.end_private_pool(0, POOL).unwrap();
    ptr
}

#[test]
fn a_pool_exists_as_long_as_it_has_users() {
    let (_device, allocator, stream) = scene(64);
    assert_eq!(allocator.private_pool_users(0, POOL), Ok(0));
    allocator.retain_private_pool(0, POOL).unwrap();
    let ptr = inside(&allocator, stream, 4 * MIB);
    assert_eq!(allocator.private_pool_users(0, POOL), Ok(2));
    let (device, info) = allocator.block_at(ptr.add(MIB)).unwrap();
    assert_eq!((device, info.ptr, info.pool, info.state), (0, ptr, Some(POOL), BlockState::Live));
    allocator.raw_free(ptr).unwrap();
    assert_eq!(allocator.empty_private_pool(0, POOL), Ok(0), "it has users");
    allocator.release_private_pool(0, POOL).unwrap();
    allocator.release_private_pool(0, POOL).unwrap();
    assert!(matches!(allocator.release_private_pool(0, POOL), Err(Error::UnknownPool { pool: POOL, .. })));
    let reserved = allocator.stats(0).unwrap().reserved.current;
    assert_eq!(allocator.empty_private_pool(0, POOL), Ok(reserved), "all that is held was the pool's");
    check(&allocator, 0);
}

#[test]
fn a_pool_lends_rather_than_let_others_fail() {
    let (_device, allocator, stream) = scene(64);
    allocator.retain_private_pool(0, POOL).unwrap();
    let ptr = inside(&allocator, stream, 48 * MIB);
    allocator.raw_free(ptr).unwrap();
    let request = AllocRequest::new(32 * MIB).stream(stream);
    assert!(matches!(allocator.raw_alloc(request), Err(Error::OutOfMemory(_))));
    allocator.lend_private_pool(0, POOL, true).unwrap();
    let lent = allocator.raw_alloc(request).unwrap();
    assert_eq!(allocator.stats(0).unwrap().rung(Rung::Lent), 1);
    assert_eq!(allocator.block_at(lent).unwrap().1.pool, Some(POOL), "it goes back where it came from");
    allocator.raw_free(lent).unwrap();
    allocator.lend_private_pool(0, POOL, false).unwrap();
    assert!(matches!(allocator.raw_alloc(request), Err(Error::OutOfMemory(_))));
    assert!(allocator.lend_private_pool(0, PoolId(9, 9), true).is_err());
}

#[test]
fn routing_is_no_capture() {
    let (_device, allocator, stream) = scene(64);
    allocator.route_private_pool(0, POOL, move |other| other == stream).unwrap();
    assert!(allocator.empty_cache(0).is_ok());
    allocator.begin_capture(0).unwrap();
    assert!(matches!(allocator.empty_cache(0), Err(Error::Capturing { .. })));
    allocator.end_capture(0).unwrap();
    assert_eq!(allocator.end_capture(0), Err(Error::NotCapturing));
    assert!(allocator.empty_cache(0).is_ok());
    allocator.end_private_pool(0, POOL).unwrap();
}

/// Blocks of a pool come and go at random; restoring a checkpoint brings exactly its blocks back, whatever has happened since.
#[test]
fn checkpoints_bring_the_same_blocks_back() {
    for seed in 1..=40 {
        let (_device, allocator, stream) = scene(256);
        let mut rng = Rng(seed);
        let mut live: BTreeMap<DevicePtr, u64> = BTreeMap::new();
        let mut checkpoints = Vec::new();
        allocator.retain_private_pool(0, POOL).unwrap();
        for _ in 0..400 {
            match rng.below(100) {
                0..50 => {
                    let size = rng.pick(&[512, 3 * KIB, 64 * KIB, 100 * KIB, MIB, 3 * MIB]);
                    let ptr = inside(&allocator, stream, size);
                    allocator.release_private_pool(0, POOL).unwrap();
                    live.insert(ptr, allocator.usable_size(ptr).unwrap());
                }
                50..90 => {
                    let index = rng.index(live.len());
                    let Some((&ptr, _)) = live.iter().nth(index) else { continue };
                    live.remove(&ptr);
                    allocator.raw_free(ptr).unwrap();
                }
                90..93 => {
                    // Ordinary blocks live beside the pool.
                    let ptr = allocator.raw_alloc(AllocRequest::new(rng.size(4 * MIB)).stream(stream)).unwrap();
                    allocator.raw_free(ptr).unwrap();
                }
                93..96 => checkpoints.push((allocator.checkpoint(0, POOL).unwrap(), live.clone())),
                _ => {
                    let Some((checkpoint, then)) = checkpoints.get(rng.index(checkpoints.len())) else { continue };
                    let restored = allocator.restore(0, checkpoint).unwrap();
                    let mut freed = restored.freed.clone();
                    freed.sort();
                    assert_eq!(freed, live.keys().copied().collect::<Vec<_>>());
                    assert_eq!(restored.allocated, then.iter().map(|(&ptr, &size)| (ptr, size)).collect::<Vec<_>>());
                    live = then.clone();
                    let stats = check(&allocator, 0);
                    assert_eq!(stats.active.current, live.values().sum::<u64>());
                    assert_eq!(stats.allocs - stats.frees, live.len() as u64);
                }
            }
        }
        for &ptr in live.keys() {
            allocator.raw_free(ptr).unwrap();
        }
        allocator.release_private_pool(0, POOL).unwrap();
        allocator.empty_private_pool(0, POOL).unwrap();
        allocator.empty_cache(0).unwrap();
        assert_eq!(allocator.stats(0).unwrap().reserved.current, 0);
    }
}

#[test]
fn a_checkpoint_is_for_its_own_pool_and_device() {
    let (_device, allocator, stream) = scene(64);
    assert!(matches!(allocator.checkpoint(0, POOL), Err(Error::UnknownPool { .. })));
    let ptr = inside(&allocator, stream, MIB);
    let checkpoint = allocator.checkpoint(0, POOL).unwrap();
    assert_eq!(checkpoint.blocks().collect::<Vec<_>>(), [(ptr, MIB)]);
    let (_other_device, other, _) = scene(64);
    assert!(matches!(other.restore(0, &checkpoint), Err(Error::UnknownPool { .. })));
    allocator.raw_free(ptr).unwrap();
    allocator.release_private_pool(0, POOL).unwrap();
    assert!(matches!(allocator.restore(0, &checkpoint), Err(Error::UnknownPool { .. })));
}

/// A slab whose page went has to come back while another of its class has room.
#[test]
fn a_checkpoint_brings_back_slabs_beside_others() {
    let (_device, allocator, stream) = scene(256);
    allocator.begin_private_pool(0, POOL, |_| true).unwrap();
    let request = AllocRequest::new(64 * KIB).stream(stream);
    let slots: Vec<DevicePtr> = (0..40).map(|_| allocator.raw_alloc(request).unwrap()).collect();
    allocator.raw_free(slots[0]).unwrap();
    let checkpoint = allocator.checkpoint(0, POOL).unwrap();
    slots[32..].iter().for_each(|&slot| allocator.raw_free(slot).unwrap());
    let restored = allocator.restore(0, &checkpoint).unwrap();
    assert_eq!((restored.freed.len(), restored.allocated.len()), (31, 39));
    check(&allocator, 0);
}

#[test]
fn a_checkpoint_dies_with_its_pool() {
    let (_device, allocator, stream) = scene(256);
    let before = inside(&allocator, stream, 4 * MIB);
    let checkpoint = allocator.checkpoint(0, POOL).unwrap();
    allocator.release_private_pool(0, POOL).unwrap();
    let after = inside(&allocator, stream, 8 * MIB);
    assert!(matches!(allocator.restore(0, &checkpoint), Err(Error::UnknownPool { .. })));
    assert_eq!(allocator.usable_size(after), Ok(8 * MIB), "nothing has changed");
    let fresh = allocator.checkpoint(0, POOL).unwrap();
    assert_eq!(fresh.blocks().collect::<Vec<_>>(), [(after, 8 * MIB)], "blocks of the pool before are not this one's");
    assert_eq!(allocator.usable_size(before), Ok(4 * MIB));
    check(&allocator, 0);
}

#[test]
fn what_a_pool_has_lent_is_not_its_to_restore() {
    let (_device, allocator, stream) = scene(64);
    allocator.retain_private_pool(0, POOL).unwrap();
    let empty = allocator.checkpoint(0, POOL).unwrap();
    let block = inside(&allocator, stream, 60 * MIB);
    let full = allocator.checkpoint(0, POOL).unwrap();
    allocator.raw_free(block).unwrap();
    allocator.lend_private_pool(0, POOL, true).unwrap();
    let lent = allocator.raw_alloc(AllocRequest::new(60 * MIB).stream(stream)).unwrap();
    assert_eq!(allocator.checkpoint(0, POOL).unwrap().blocks().count(), 0);
    allocator.restore(0, &empty).unwrap();
    assert_eq!(allocator.usable_size(lent), Ok(60 * MIB));
    assert!(matches!(allocator.restore(0, &full), Err(Error::UnknownPool { .. })));
    allocator.raw_free(lent).unwrap();
    allocator.restore(0, &full).unwrap();
    assert_eq!(allocator.usable_size(block), Ok(60 * MIB));
    check(&allocator, 0);
}

#[test]
fn blocks_that_streams_were_recorded_for_are_not_freed_by_a_restore() {
    let (device, allocator, stream) = scene(64);
    let other = stratalloc::driver::Driver::create_stream(&*device).unwrap();
    allocator.retain_private_pool(0, POOL).unwrap();
    let empty = allocator.checkpoint(0, POOL).unwrap();
    let block = inside(&allocator, stream, 8 * MIB);
    allocator.record_stream(block, other).unwrap();
    assert!(matches!(allocator.restore(0, &empty), Err(Error::UnknownPool { .. })));
    assert_eq!(allocator.usable_size(block), Ok(8 * MIB), "nothing has changed");
    check(&allocator, 0);
}

/// A thread frees a checkpoint's block, into its magazine, while another one restores it.
#[test]
fn restoring_while_others_free() {
    let (_device, allocator, stream) = scene(64);
    let block = inside(&allocator, stream, 64 * KIB);
    let checkpoint = allocator.checkpoint(0, POOL).unwrap();
    for round in 0..300u32 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..round * 37 % 2000).for_each(|_| std::hint::spin_loop());
                allocator.raw_free(block).unwrap();
            });
            allocator.restore(0, &checkpoint).unwrap();
        });
        allocator.restore(0, &checkpoint).unwrap();
    }
    check(&allocator, 0);
}

/// Programs capture graphs over and over, each time into a new pool.
#[test]
fn pools_that_are_no_more_leave_nothing_behind() {
    let (device, allocator, stream) = scene(80 << 10);
    let mut metadata = 0;
    for round in 1..=1500 {
        let pool = PoolId(round, 0);
        allocator.begin_private_pool(0, pool, |_| true).unwrap();
        let blocks = [4 * MIB, 512].map(|size| allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap());
        allocator.end_private_pool(0, pool).unwrap();
        blocks.iter().for_each(|&ptr| allocator.raw_free(ptr).unwrap());
        allocator.release_private_pool(0, pool).unwrap();
        allocator.empty_private_pool(0, pool).unwrap();
        if round == 100 {
            metadata = allocator.stats(0).unwrap().metadata;
        }
    }
    assert_eq!(device.leaks().reservations, 0);
    let now = allocator.stats(0).unwrap().metadata;
    assert!(now <= metadata + metadata / 4, "metadata went from {metadata} to {now} bytes");
    check(&allocator, 0);
}

#[test]
fn a_released_pool_is_emptied_though_others_had_it_settled() {
    let (_device, allocator, stream) = scene(64);
    let block = inside(&allocator, stream, 32 * MIB);
    allocator.raw_free(block).unwrap();
    allocator.release_private_pool(0, POOL).unwrap();
    // Has to wait for the device, and takes some of the pool's memory.
    let other = allocator.raw_alloc(AllocRequest::new(40 * MIB).stream(stream)).unwrap();
    allocator.raw_free(other).unwrap();
    let before = allocator.stats(0).unwrap().reserved.current;
    let given = allocator.empty_private_pool(0, POOL).unwrap();
    assert_eq!(allocator.stats(0).unwrap().reserved.current, before - given);
    check(&allocator, 0);
}

#[test]
fn chunks_in_reserve_make_way_for_dedicated_blocks() {
    let (_device, allocator, stream) = scene(256);
    let block = allocator.raw_alloc(AllocRequest::new(200 * MIB).stream(stream)).unwrap();
    allocator.raw_free(block).unwrap();
    let request = AllocRequest::new(100 * MIB).stream(stream).flags(AllocFlags::DEDICATED);
    assert!(allocator.block_at(allocator.raw_alloc(request).unwrap()).unwrap().1.dedicated);
    check(&allocator, 0);
}

#[test]
fn an_observer_that_panics_breaks_nothing() {
    let (_device, allocator, stream) = scene(64);
    let block = allocator.raw_alloc(AllocRequest::new(40 * MIB).stream(stream)).unwrap();
    allocator.raw_free(block).unwrap();
    let observer = |event: &stratalloc::Event| assert!(event.kind != EventKind::Unmap, "planted");
    allocator.observe_events(0, Some(std::sync::Arc::new(observer))).unwrap();
    assert!(allocator.empty_cache(0).is_ok());
    assert!(allocator.observe_events(0, None).unwrap().is_none(), "it is not called again");
    check(&allocator, 0);
    allocator.raw_alloc(AllocRequest::new(40 * MIB).stream(stream)).unwrap();
    check(&allocator, 0);
}

/// Less than a chunk is free, and only among large blocks.
#[test]
fn small_requests_find_what_large_blocks_leave() {
    let (_device, allocator, stream) = scene(64);
    let large = AllocRequest::new(3 * MIB).stream(stream);
    let held: Vec<DevicePtr> = std::iter::from_fn(|| allocator.raw_alloc(large).ok()).collect();
    assert_eq!(held.len(), 21, "one MiB is left");
    let mut small = Vec::new();
    for size in [512, 64 * KIB, 300 * KIB] {
        let ptr = allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
        assert!(ptr.0.is_multiple_of(512) && allocator.usable_size(ptr).unwrap() >= size);
        small.push(ptr);
    }
    assert!(matches!(allocator.raw_alloc(AllocRequest::new(MIB).stream(stream)), Err(Error::OutOfMemory(_))));
    check(&allocator, 0);
    held.iter().chain(&small).for_each(|&ptr| allocator.raw_free(ptr).unwrap());
    check(&allocator, 0);
}
