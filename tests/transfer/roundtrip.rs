//! What went out comes back, whatever the way, the size, and the order in which the device works.

use std::sync::Arc;

use stratalloc::StreamId;
use stratalloc::driver::Driver;
use stratalloc::driver::metered::{CallKind, Metered};
use stratalloc::tier::codec::Codec;
use stratalloc::tier::transfer::{Engine, Save};
use stratalloc::tier::{HostConfig, HostTier, PeerTier, Tier};

use super::kit::{RamTier, Runs, Trouble, builder, device_memory, pattern, read, small};

const SIZES: [u64; 9] = [1, 511, 4096, 4097, 16 << 10, (16 << 10) + 1, 100_000, 160 << 10, 1 << 20];

fn host(driver: &Arc<dyn Driver>) -> Arc<dyn Tier> {
    let config = HostConfig { capacity_bytes: 8 << 20, step_bytes: 2 << 20, background: false };
    Arc::new(HostTier::new(driver.clone(), &config).unwrap())
}

/// Saves and loads objects of all sizes, three at a time.
fn round_trip(seed: u64, workers: usize, tier_of: impl Fn(&Arc<dyn Driver>) -> Arc<dyn Tier>, codec: bool) {
    let soft = builder().seed(seed).build().unwrap();
    let metered = Arc::new(Metered::new(soft.clone()));
    let driver: Arc<dyn Driver> = metered.clone();
    let tier = tier_of(&driver);
    let user = driver.create_stream().unwrap();
    let codec: Option<Arc<dyn Codec>> = codec.then(|| Arc::new(Runs) as Arc<dyn Codec>);
    {
        let engine = Engine::new(driver.clone(), small(workers)).unwrap();
        let before = metered.calls();
        for sizes in SIZES.chunks(3) {
            let objects: Vec<_> = sizes.iter().map(|&size| (device_memory(&*driver, size), size)).collect();
            let mut saves = Vec::new();
            for (number, &(at, size)) in (seed..).zip(&objects) {
                let mut bytes = pattern(number, size);
                // Half of it is worth encoding.
                bytes[..size as usize / 2].fill(7);
                driver.write(at, &bytes, user).unwrap();
                saves.push((engine.save(at, size, &tier, codec.as_ref(), &[user]).unwrap(), bytes));
            }
            let mut loads = Vec::new();
            for ((save, bytes), &(at, size)) in saves.iter().zip(&objects) {
                let place = save.wait().unwrap().expect("a save has a place");
                assert_eq!((place.size(), save.progress()), (size, (size, size)));
                if codec.is_some() && size > 100_000 {
                    assert!(place.stored() < size * 3 / 4, "{} of {size}", place.stored());
                }
                // As it would be where the memory went away.
                driver.fill(at, size, 0xee, user).unwrap();
                loads.push((engine.load(&place, at, &[user]).unwrap(), bytes, at, size));
            }
            for (load, bytes, at, size) in loads {
                engine.order(&load, user).unwrap();
                assert!(read(&*driver, at, size, user) == *bytes, "{size} bytes, seed {seed}");
                assert!(load.wait().unwrap().is_none());
            }
            drop(saves);
            assert_eq!(tier.used(), 0);
        }
        let calls = metered.calls() - before;
        assert_eq!(calls.of(CallKind::SynchronizeDevice).count, 0);
        assert_eq!(calls.of(CallKind::SynchronizeStream).count, 0);
        let stats = engine.stats();
        assert_eq!((stats.saved_bytes, stats.loaded_bytes), (SIZES.iter().sum(), SIZES.iter().sum()));
        assert_eq!((stats.ended, stats.failed, stats.under_way), (2 * SIZES.len() as u64, 0, 0));
    }
    drop(tier);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
    driver.destroy_stream(user).unwrap();
    let leaks = soft.leaks();
    assert_eq!((leaks.host, leaks.events, leaks.streams), (0, 0, 0), "{leaks}");
}

#[test]
fn through_pinned_memory() {
    for seed in 0..8 {
        round_trip(seed, 0, host, false);
        round_trip(seed, 2, host, false);
    }
}

#[test]
fn through_pinned_memory_encoded() {
    for seed in 0..4 {
        round_trip(seed, (seed % 2) as usize * 2, host, true);
    }
}

#[test]
fn through_a_tier_that_the_device_does_not_reach() {
    for seed in 0..6 {
        for codec in [false, true] {
            let late = |_: &Arc<dyn Driver>| -> Arc<dyn Tier> {
                let tier = RamTier::new(4 << 20, 3);
                tier.trouble(Trouble { late: seed % 3, ..Trouble::default() });
                tier
            };
            round_trip(seed, (seed % 2) as usize * 2, late, codec);
        }
    }
}

#[test]
fn through_another_device() {
    for seed in 0..4 {
        let peer = |driver: &Arc<dyn Driver>| -> Arc<dyn Tier> {
            Arc::new(PeerTier::new(driver.clone(), 1, 4 << 20, 1 << 20).unwrap())
        };
        // A codec is not used there.
        round_trip(seed, (seed % 2) as usize * 2, peer, false);
    }
}

#[test]
fn the_device_checks_from_end_to_end() {
    let soft = builder().build().unwrap();
    let driver: Arc<dyn Driver> = soft.clone();
    let tier = host(&driver);
    let mut config = small(0);
    config.check_device = true;
    let engine = Engine::new(driver.clone(), config).unwrap();
    let at = device_memory(&*driver, 100_000);
    let bytes = pattern(1, 100_000);
    driver.write(at, &bytes, StreamId::DEFAULT).unwrap();
    let place = engine.save(at, 100_000, &tier, None, &[StreamId::DEFAULT]).unwrap().wait().unwrap().unwrap();
    let to = device_memory(&*driver, 100_000);
    engine.load(&place, to, &[]).unwrap().wait().unwrap();
    assert_eq!(read(&*driver, to, 100_000, StreamId::DEFAULT), bytes);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
}

#[test]
fn what_is_spilled_is_as_it_was() {
    let soft = builder().build().unwrap();
    let driver: Arc<dyn Driver> = soft.clone();
    for encoded in [false, true] {
        for size in [4096, 5000, 300_000, 320 << 10] {
            let (near, far) = (host(&driver), RamTier::new(1 << 20, 4));
            let (far, ram): (Arc<dyn Tier>, _) = (far.clone(), far);
            ram.trouble(Trouble { late: 1, ..Trouble::default() });
            let engine = Engine::new(driver.clone(), small(0)).unwrap();
            let at = device_memory(&*driver, size);
            let mut bytes = pattern(size, size);
            bytes[..size as usize / 2].fill(3);
            driver.write(at, &bytes, StreamId::DEFAULT).unwrap();
            let codec: Option<Arc<dyn Codec>> = encoded.then(|| Arc::new(Runs) as Arc<dyn Codec>);
            let saved =
                engine.save(at, size, &near, codec.as_ref(), &[StreamId::DEFAULT]).unwrap().wait().unwrap().unwrap();
            let spilled = engine.spill(&saved, &far).unwrap().wait().unwrap().unwrap();
            assert_eq!((spilled.stored(), spilled.tier().name()), (saved.stored(), "ram"));
            drop(saved);
            assert_eq!(near.used(), 0);
            let back = engine.spill(&spilled, &near).unwrap().wait().unwrap().unwrap();
            drop(spilled);
            assert_eq!(far.used(), 0);
            driver.fill(at, size, 0, StreamId::DEFAULT).unwrap();
            engine.load(&back, at, &[StreamId::DEFAULT]).unwrap().wait().unwrap();
            assert!(read(&*driver, at, size, StreamId::DEFAULT) == bytes, "{size} {encoded}");
            assert_eq!(engine.stats().spilled_bytes, 2 * size);
        }
    }
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
}

#[test]
fn many_small_objects_go_in_few_calls() {
    let soft = builder().build().unwrap();
    let metered = Arc::new(Metered::new(soft.clone()));
    let driver: Arc<dyn Driver> = metered.clone();
    let tier = host(&driver);
    let engine = Engine::new(driver.clone(), small(0)).unwrap();
    let (count, size) = (1000u64, 512);
    let at = device_memory(&*driver, count * size);
    let bytes = pattern(5, count * size);
    driver.write(at, &bytes, StreamId::DEFAULT).unwrap();
    let saves: Vec<_> = (0..count).map(|n| Save { from: at.add(n * size), size, codec: None }).collect();
    let before = metered.calls();
    let transfers = engine.save_many(&saves, &tier, &[StreamId::DEFAULT]).unwrap();
    let places: Vec<_> = transfers.iter().map(|transfer| transfer.wait().unwrap().unwrap()).collect();
    let calls = metered.calls() - before;
    // 16 KiB a call: 32 objects.
    assert!(calls.of(CallKind::Copy).count <= count / 32 + 1, "{:?}", calls.of(CallKind::Copy));
    driver.fill(at, count * size, 0, StreamId::DEFAULT).unwrap();
    let loads: Vec<_> = (0..).zip(&places).map(|(n, place)| (place.clone(), at.add(n * size))).collect();
    let loads = engine.load_many(&loads, &[StreamId::DEFAULT]).unwrap();
    loads.iter().for_each(|load| engine.order(load, StreamId::DEFAULT).unwrap());
    assert!(read(&*driver, at, count * size, StreamId::DEFAULT) == bytes);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
}
