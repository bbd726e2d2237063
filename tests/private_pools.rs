//! Private pools beyond captures: users, lending, giving back, and checkpoints.

mod common;

use common::rig::{KIB, MIB, Rng, check, soft};
use std::collections::BTreeMap;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::{AllocRequest, Allocator, BlockState, DevicePtr, Error, PoolId, Rung, StreamId};

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
