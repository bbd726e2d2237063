//! Whatever fails, the bytes are in one known place: every driver call, and every read and write of a tier.

use std::sync::Arc;

use stratalloc::driver::fault::{CallKind, Fault, FaultDriver, When};
use stratalloc::driver::soft::SoftDevice;
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::tier::codec::Codec;
use stratalloc::tier::transfer::{Engine, Place};
use stratalloc::tier::{HostConfig, HostTier, Tier, TierError};
use stratalloc::{DevicePtr, StreamId};

use super::kit::{RamTier, Runs, Trouble, builder, device_memory, pattern, read, small};

const SIZE: u64 = 80 << 10;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Pinned,
    Staged,
    Encoded,
    Checked,
}

struct Run {
    soft: Arc<SoftDevice>,
    driver: Arc<FaultDriver<SoftDevice>>,
    at: DevicePtr,
    bytes: Vec<u8>,
    tier: Arc<dyn Tier>,
    engine: Engine,
    codec: Option<Arc<dyn Codec>>,
}

impl Run {
    fn new(route: Route) -> Run {
        let soft = builder().build().unwrap();
        let driver = Arc::new(FaultDriver::new(soft.clone()));
        let dynamic: Arc<dyn Driver> = driver.clone();
        let config = HostConfig { capacity_bytes: 2 << 20, step_bytes: 2 << 20, background: false };
        let tier: Arc<dyn Tier> = match route {
            Route::Pinned | Route::Checked => Arc::new(HostTier::new(dynamic.clone(), &config).unwrap()),
            Route::Staged | Route::Encoded => RamTier::new(1 << 20, 2),
        };
        let mut config = small(0);
        config.check_device = route == Route::Checked;
        let engine = Engine::new(dynamic, config).unwrap();
        let at = device_memory(&*soft, SIZE);
        let mut bytes = pattern(3, SIZE);
        bytes[..SIZE as usize / 2].fill(9);
        soft.write(at, &bytes, StreamId::DEFAULT).unwrap();
        let codec = (route == Route::Encoded).then(|| Arc::new(Runs) as Arc<dyn Codec>);
        Run { soft, driver, at, bytes, tier, engine, codec }
    }

    fn save(&self) -> Result<Arc<Place>, TierError> {
        let codec = self.codec.as_ref();
        let save = self.engine.save(self.at, SIZE, &self.tier, codec, &[StreamId::DEFAULT])?;
        save.wait().map(|place| place.expect("a save has a place"))
    }

    fn load(&self, place: &Arc<Place>) -> Result<(), TierError> {
        let load = self.engine.load(place, self.at, &[StreamId::DEFAULT])?;
        self.engine.order(&load, StreamId::DEFAULT)?;
        load.wait().map(|_| ())
    }

    fn on_device(&self) -> bool {
        read(&*self.soft, self.at, SIZE, StreamId::DEFAULT) == self.bytes
    }
}

/// Saves and loads with a fault, and then without. Returns how many calls there were, and whether one failed.
fn with_fault(route: Route, fault: Option<Fault>) -> (u64, bool) {
    let what = format!("{route:?} {fault:?}");
    let run = Run::new(route);
    fault.into_iter().for_each(|fault| run.driver.inject(fault));
    let first = run.driver.calls();
    let place = run.save();
    let saved = place.is_ok();
    assert!(run.on_device(), "{what}: saving only reads");
    if !saved {
        assert!(lost_anything(&run) || run.tier.used() == 0, "{what}: {} bytes of the tier", run.tier.used());
    }
    let place = place.or_else(|_| {
        run.driver.clear();
        run.save()
    });
    let place = match place {
        Ok(place) => place,
        // A host without memory for the tier.
        Err(TierError::Full { capacity: 0, .. }) if fault.is_some_and(|f| f.kind == DriverErrorKind::OutOfMemory) => {
            return (run.driver.calls() - first, true);
        }
        // All staging memory was lost to copies that nobody could wait for.
        Err(error) => {
            assert!(lost_anything(&run), "{what}: {error}");
            return (run.driver.calls() - first, true);
        }
    };
    run.soft.fill(run.at, SIZE, 0xcc, StreamId::DEFAULT).unwrap();
    let loaded = run.load(&place);
    let mut failed = !saved;
    if loaded.is_err() {
        failed = true;
        run.driver.clear();
        // The place is as it was.
        let again = run.load(&place);
        assert!(again.is_ok() || lost_anything(&run), "{what}: {again:?}");
        if again.is_err() {
            return (run.driver.calls() - first, true);
        }
    }
    assert!(run.on_device(), "{what}: what is loaded is what was saved");
    let calls = run.driver.calls() - first;
    run.driver.clear();
    let lost = lost_anything(&run);
    let Run { soft, engine, tier, .. } = run;
    drop(place);
    assert!(lost || tier.used() == 0, "{what}");
    drop(engine);
    drop(tier);
    assert_eq!(soft.report_count(), 0, "{what}: {}", soft.reports()[0]);
    let leaks = soft.leaks();
    assert_eq!((leaks.events, leaks.streams), (0, 0), "{what}: {leaks}");
    assert!(lost || leaks.host == 0, "{what}: {leaks}");
    (calls, failed)
}

/// Whether something could not be given back since nobody could say whether the device was done with it.
fn lost_anything(run: &Run) -> bool {
    run.engine.stats().abandoned > 0
}

#[test]
fn every_driver_call_may_fail() {
    for route in [Route::Pinned, Route::Staged, Route::Encoded, Route::Checked] {
        let (calls, failed) = with_fault(route, None);
        assert!(calls > 20 && !failed, "{calls} calls");
        let mut failures = 0;
        for n in 1..=calls {
            for kind in [DriverErrorKind::Other, DriverErrorKind::OutOfMemory] {
                let fault = Fault { when: When::Nth(n), kind, only: None };
                failures += u64::from(with_fault(route, Some(fault)).1);
            }
        }
        // Events that fail to tell, and pinned memory that is less than was asked for, are made up for.
        assert!(failures >= calls / 3, "{failures} of {calls} calls");
    }
}

#[test]
fn a_device_that_is_gone_is_an_error_and_no_hang() {
    for route in [Route::Pinned, Route::Staged, Route::Encoded, Route::Checked] {
        let (calls, _) = with_fault(route, None);
        for n in 1..=calls {
            let run = Run::new(route);
            run.driver.inject(Fault { when: When::From(n), kind: DriverErrorKind::Sticky, only: None });
            let saved = run.save();
            let outcome = saved.and_then(|place| run.load(&place));
            assert!(
                matches!(outcome, Err(TierError::Driver(_) | TierError::Full { .. } | TierError::Unusable { .. })),
                "{n} {route:?}: {outcome:?}"
            );
            drop(run);
        }
    }
}

#[test]
fn calls_that_fail_at_random() {
    for seed in 0..300 {
        let route = [Route::Pinned, Route::Staged, Route::Encoded, Route::Checked][seed as usize % 4];
        let when = When::Random { probability: 0.02, seed };
        with_fault(route, Some(Fault { when, kind: DriverErrorKind::Other, only: None }));
        let only = Some([CallKind::QueryEvent, CallKind::RecordEvent, CallKind::Copy][seed as usize / 4 % 3]);
        let when = When::Random { probability: 0.3, seed };
        with_fault(route, Some(Fault { when, kind: DriverErrorKind::Other, only }));
    }
}

#[test]
fn one_bad_object_spoils_no_other_of_its_call() {
    use stratalloc::tier::transfer::Save;
    let run = Run::new(Route::Pinned);
    let object = |from| Save { from, size: 512, codec: None };
    let saves = [object(run.at), object(DevicePtr(0x1000)), object(run.at.add(512))];
    let transfers = run.engine.save_many(&saves, &run.tier, &[StreamId::DEFAULT]).unwrap();
    let outcomes: Vec<_> = transfers.iter().map(|transfer| transfer.wait()).collect();
    assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok(), "{outcomes:?}");
    drop(outcomes);
    assert_eq!(run.tier.used(), 0);
}

#[test]
fn every_read_and_write_of_a_tier_may_fail() {
    for encoded in [false, true] {
        let soft = builder().build().unwrap();
        let driver: Arc<dyn Driver> = soft.clone();
        let ram = RamTier::new(1 << 20, 2);
        let tier: Arc<dyn Tier> = ram.clone();
        let engine = Engine::new(driver.clone(), small(0)).unwrap();
        let at = device_memory(&*driver, SIZE);
        let bytes = pattern(4, SIZE);
        driver.write(at, &bytes, StreamId::DEFAULT).unwrap();
        let codec: Option<Arc<dyn Codec>> = encoded.then(|| Arc::new(Runs) as Arc<dyn Codec>);
        let save = || engine.save(at, SIZE, &tier, codec.as_ref(), &[StreamId::DEFAULT]).unwrap().wait();
        // 80 KiB are five pieces.
        for n in 1..=5 {
            ram.trouble(Trouble { fail: n, late: n % 2, ..Trouble::default() });
            assert!(matches!(save(), Err(TierError::Io { errno: 5, .. })), "write {n}");
            assert_eq!(tier.used(), 0);
        }
        ram.trouble(Trouble::default());
        let place = save().unwrap().unwrap();
        for n in 1..=5 {
            for trouble in [Trouble { fail: n, ..Trouble::default() }, Trouble { alter: n, ..Trouble::default() }] {
                ram.trouble(trouble);
                driver.fill(at, SIZE, 0, StreamId::DEFAULT).unwrap();
                let load = engine.load(&place, at, &[StreamId::DEFAULT]).unwrap();
                // A stream is never let go on with bytes that are not what was stored.
                let ordered = engine.order(&load, StreamId::DEFAULT).unwrap_err();
                assert_eq!(load.wait().unwrap_err(), ordered);
                match ordered {
                    TierError::Io { .. } if trouble.fail > 0 => {}
                    TierError::Corrupt { expected, found, .. } if trouble.alter > 0 => assert_ne!(expected, found),
                    error => panic!("{trouble:?}: {error}"),
                }
            }
        }
        ram.trouble(Trouble::default());
        engine.load(&place, at, &[StreamId::DEFAULT]).unwrap().wait().unwrap();
        assert!(read(&*driver, at, SIZE, StreamId::DEFAULT) == bytes);
        assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
    }
}

#[test]
fn pinned_memory_that_was_changed_is_seen() {
    let run = Run::new(Route::Pinned);
    let place = run.save().unwrap();
    let at = run.tier.address(place.slot()).unwrap().0 as *mut u8;
    for offset in [0, 4096, SIZE as usize - 1] {
        // SAFETY: inside the place's slot, in host memory, and nothing is under way.
        unsafe { *at.add(offset) ^= 1 };
        assert!(matches!(run.load(&place), Err(TierError::Corrupt { .. })), "{offset}");
        // SAFETY: as above.
        unsafe { *at.add(offset) ^= 1 };
    }
    run.load(&place).unwrap();
    assert!(run.on_device());
}
