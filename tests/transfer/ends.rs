//! Back-pressure, progress, cancellation; engines and places that end in any order; what is refused.

use std::sync::Arc;

use stratalloc::driver::soft::{LatencyModel, SoftDevice};
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::tier::transfer::{Engine, EngineConfig};
use stratalloc::tier::{HostConfig, HostTier, Tier, TierError};
use stratalloc::{DevicePtr, StreamId};

use super::kit::{RamTier, Trouble, builder, device_memory, pattern, read, small};

const SIZE: u64 = 128 << 10;

fn timed() -> (Arc<SoftDevice>, Arc<dyn Driver>, Arc<dyn Tier>) {
    let soft = builder().latency(LatencyModel::A100).build().unwrap();
    let driver: Arc<dyn Driver> = soft.clone();
    let config = HostConfig { capacity_bytes: 32 << 20, step_bytes: 32 << 20, background: false };
    let tier: Arc<dyn Tier> = Arc::new(HostTier::new(driver.clone(), &config).unwrap());
    tier.release(tier.reserve(1).unwrap());
    (soft, driver, tier)
}

#[test]
fn more_transfers_than_may_be_are_busy_or_wait() {
    let (soft, driver, tier) = timed();
    let engine = Engine::new(driver.clone(), small(0)).unwrap();
    let busy = driver.create_stream().unwrap();
    soft.keep_busy(busy, &[], 5_000_000).unwrap();
    let at = device_memory(&*driver, SIZE);
    let transfers: Vec<_> = (0..8).map(|_| engine.try_save(at, SIZE, &tier, None, &[busy]).unwrap()).collect();
    let error = engine.try_save(at, SIZE, &tier, None, &[busy]).unwrap_err();
    assert_eq!(error, TierError::Busy { tier: "transfer".into(), depth: 8 });
    assert_eq!(engine.stats().under_way, 8);
    // Waits for one of them, which is known to have ended then.
    let ninth = engine.save(at, SIZE, &tier, None, &[busy]).unwrap();
    assert!(transfers[0].poll().is_some_and(|outcome| outcome.is_ok()));
    ninth.wait().unwrap();
    assert!(engine.stats().stall_ns >= 3_000_000);
}

#[test]
fn progress_grows_and_cancelling_stops() {
    let (soft, driver, _) = timed();
    let ram = RamTier::new(4 << 20, 1);
    ram.trouble(Trouble { late: 1, ..Trouble::default() });
    let tier: Arc<dyn Tier> = ram;
    let engine = Engine::new(driver.clone(), small(0)).unwrap();
    let at = device_memory(&*driver, 1 << 20);
    let save = engine.save(at, 1 << 20, &tier, None, &[]).unwrap();
    let mut seen = vec![save.progress().0];
    while save.poll().is_none() && seen.len() < 100_000 {
        seen.push(save.progress().0);
        soft.advance_clock(10_000);
    }
    assert!(seen.is_sorted() && seen.iter().any(|&moved| 0 < moved && moved < 1 << 20), "{seen:?}");
    assert_eq!(save.progress(), (1 << 20, 1 << 20));
    assert!(save.poll().is_some());

    let save = engine.save(at, 1 << 20, &tier, None, &[]).unwrap();
    let queued = engine.save(at, 1 << 20, &tier, None, &[]).unwrap();
    save.cancel();
    queued.cancel();
    assert_eq!(save.wait().unwrap_err(), TierError::Cancelled);
    assert_eq!(queued.wait().unwrap_err(), TierError::Cancelled);
    assert!(save.progress().0 < 1 << 20);
    assert_eq!((tier.used(), engine.stats().failed), (0, 2));
    // What has ended is not cancelled any more.
    let save = engine.save(at, 4096, &tier, None, &[]).unwrap();
    let place = save.wait().unwrap().unwrap();
    save.cancel();
    assert!(save.wait().is_ok());
    drop(place);
    // Its place was handed over, and is no more.
    assert!(matches!(save.wait(), Err(TierError::Unusable { .. })));
    assert_eq!(tier.used(), 0);
}

#[test]
fn engines_transfers_and_places_end_in_any_order() {
    for workers in [0, 2] {
        let soft = builder().build().unwrap();
        let driver: Arc<dyn Driver> = soft.clone();
        let ram = RamTier::new(8 << 20, 2);
        ram.trouble(Trouble { late: 2, ..Trouble::default() });
        let tier: Arc<dyn Tier> = ram;
        let at = device_memory(&*driver, 1 << 20);
        let bytes = pattern(9, 1 << 20);
        driver.write(at, &bytes, StreamId::DEFAULT).unwrap();

        // The transfer goes on with whoever waits for it.
        let engine = Engine::new(driver.clone(), small(workers)).unwrap();
        let save = engine.save(at, 1 << 20, &tier, None, &[StreamId::DEFAULT]).unwrap();
        drop(engine);
        let place = save.wait().unwrap().unwrap();
        drop(save);
        assert_eq!(soft.leaks().streams, 0);

        // Another engine has its place, and may end before what it has begun.
        let engine = Engine::new(driver.clone(), small(workers)).unwrap();
        driver.fill(at, 1 << 20, 0, StreamId::DEFAULT).unwrap();
        engine.load(&place, at, &[StreamId::DEFAULT]).unwrap().wait().unwrap();
        assert!(read(&*driver, at, 1 << 20, StreamId::DEFAULT) == bytes);
        let _ = engine.save(at, 1 << 20, &tier, None, &[]).unwrap();
        let _ = engine.save(at, 1 << 20, &tier, None, &[]).unwrap();
        drop(engine);
        drop(place);
        assert_eq!(tier.used(), 0);
        let leaks = soft.leaks();
        assert_eq!((leaks.host, leaks.events, leaks.streams), (0, 0, 0), "{leaks}");
        assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
    }
}

#[test]
fn threads_wait_side_by_side() {
    let soft = builder().build().unwrap();
    let driver: Arc<dyn Driver> = soft.clone();
    let tier: Arc<dyn Tier> = RamTier::new(8 << 20, 3);
    for workers in [0, 1, 3] {
        let engine = Engine::new(driver.clone(), small(workers)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (engine, driver, tier) = (&engine, &driver, &tier);
                scope.spawn(move || {
                    let stream = driver.create_stream().unwrap();
                    let at = device_memory(&**driver, SIZE);
                    for round in 0..10 {
                        let bytes = pattern(thread * 100 + round, SIZE);
                        driver.write(at, &bytes, stream).unwrap();
                        let place = engine.save(at, SIZE, tier, None, &[stream]).unwrap().wait().unwrap().unwrap();
                        driver.fill(at, SIZE, 1, stream).unwrap();
                        let load = engine.load(&place, at, &[stream]).unwrap();
                        engine.order(&load, stream).unwrap();
                        assert!(read(&**driver, at, SIZE, stream) == bytes);
                    }
                });
            }
        });
        assert_eq!(engine.stats().ended, 80);
    }
    assert_eq!(tier.used(), 0);
    assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
}

#[test]
fn what_cannot_be_is_refused() {
    let (soft, driver, tier) = timed();
    let default = EngineConfig::default;
    for (config, what) in [
        (EngineConfig { piece_bytes: 5000, ..default() }, "multiples of 4 KiB"),
        (EngineConfig { piece_bytes: 0, ..default() }, "multiples of 4 KiB"),
        (EngineConfig { staging_bytes: 4 << 20, ..default() }, "staging memory"),
        (EngineConfig { depth: 0, ..default() }, "depth is 0"),
    ] {
        let error = Engine::new(driver.clone(), config).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let engine = Engine::new(driver.clone(), small(0)).unwrap();
    let error = engine.save(DevicePtr(0), 0, &tier, None, &[]).unwrap_err().to_string();
    assert!(error.contains("0 bytes"), "{error}");
    // Too much for the tier: nothing was begun.
    let error = engine.save(DevicePtr(0), 1 << 40, &tier, None, &[]).unwrap_err();
    assert!(matches!(error, TierError::Full { size, .. } if size == 1 << 40), "{error}");
    // Memory that is not there: the driver's error, and the slot is back.
    let error = engine.save(DevicePtr(0x1000), SIZE, &tier, None, &[]).unwrap().wait().unwrap_err();
    assert!(matches!(&error, TierError::Driver(error) if error.kind == DriverErrorKind::InvalidValue), "{error}");
    assert_eq!(tier.used(), 0);
    // A stream that is not there.
    assert!(matches!(engine.save(DevicePtr(0), SIZE, &tier, None, &[StreamId(99)]), Err(TierError::Driver(_))));
    // A stream that is being captured would take the transfer into its graph.
    let stream = driver.create_stream().unwrap();
    let at = device_memory(&*driver, SIZE);
    soft.begin_capture(stream).unwrap();
    let error = engine.save(at, SIZE, &tier, None, &[stream]).unwrap_err();
    assert!(matches!(&error, TierError::Driver(error) if error.kind == DriverErrorKind::Capturing), "{error}");
    // Others may begin, and nobody may wait meanwhile.
    let save = engine.save(at, SIZE, &tier, None, &[]).unwrap();
    assert!(save.poll().is_none());
    assert!(matches!(save.wait(), Err(TierError::Driver(error)) if error.kind == DriverErrorKind::Capturing));
    soft.end_capture(stream).unwrap();
    assert!(save.wait().unwrap().is_some());
    assert_eq!(tier.used(), 0);
}

#[test]
fn a_child_of_fork_touches_nothing() {
    let (_, driver, tier) = timed();
    let at = device_memory(&*driver, SIZE);
    let engine = Engine::new(driver.clone(), small(1)).unwrap();
    let place = engine.save(at, SIZE, &tier, None, &[]).unwrap().wait().unwrap().unwrap();
    // SAFETY: the child calls nothing but the engine, which only looks at its process there, and ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = matches!(engine.load(&place, at, &[]), Err(TierError::Unusable { .. }));
        drop(engine);
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the child is ours; the number is valid for writing.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    engine.load(&place, at, &[]).unwrap().wait().unwrap();
}
