//! The drivers that wrap another: injected faults and counted calls.

mod common;

use std::sync::Arc;

use common::contract::{Mapped, assert_fails};
use stratalloc::driver::DriverErrorKind::{Other, OutOfMemory, Sticky};
use stratalloc::driver::fault::{Fault, FaultDriver, When};
use stratalloc::driver::metered::{CallKind, Metered};
use stratalloc::driver::soft::{Backing, LatencyModel, SoftDevice};
use stratalloc::driver::{Driver, Location};
use stratalloc::units::PAGE;

fn soft() -> Arc<SoftDevice> {
    SoftDevice::builder(64 * PAGE).backing(Backing::AddressesOnly).latency(LatencyModel::A100).build().unwrap()
}

#[test]
fn the_nth_call_fails_once_or_from_then_on() {
    let driver = FaultDriver::new(soft());
    driver.inject(Fault { when: When::Nth(2), kind: OutOfMemory, only: None });
    driver.create_event().unwrap();
    assert_fails(driver.create_event(), OutOfMemory);
    driver.create_event().unwrap();
    assert_eq!(driver.inner().leaks().events, 2, "the failed call did not get there");
    driver.inject(Fault { when: When::From(2), kind: Sticky, only: None });
    driver.create_event().unwrap();
    assert_fails(driver.create_event(), Sticky);
    assert_fails(driver.memory_info(), Sticky);
    driver.clear();
    driver.memory_info().unwrap();
    assert_eq!((driver.calls(), driver.failures()), (7, 3));
}

#[test]
fn faults_keep_to_their_call() {
    let driver = FaultDriver::new(soft());
    driver.inject(Fault { when: When::Nth(3), kind: Other, only: Some(CallKind::Create) });
    for _ in 0..2 {
        driver.create(PAGE, Location::Device).unwrap();
        driver.memory_info().unwrap();
    }
    let error = driver.create(PAGE, Location::Device).unwrap_err();
    assert_eq!(error.to_string(), "cuMemCreate failed: injected fault: Other in call 5");
    driver.create(PAGE, Location::Device).unwrap();
}

#[test]
fn random_faults_repeat_by_seed() {
    let pattern = |seed| {
        let driver = FaultDriver::new(soft());
        driver.inject(Fault { when: When::Random { probability: 0.3, seed }, kind: Other, only: None });
        let outcomes: Vec<bool> = (0..200).map(|_| driver.memory_info().is_ok()).collect();
        assert!((30..90).contains(&driver.failures()), "{}", driver.failures());
        outcomes
    };
    assert_eq!(pattern(1), pattern(1));
    assert_ne!(pattern(1), pattern(2));
}

#[test]
fn stalls_take_virtual_time() {
    let device = soft();
    let driver = FaultDriver::new(device.clone()).with_stalls(device.clone(), 2_000_000, 1.0, 7);
    driver.memory_info().unwrap();
    assert_eq!(device.clock_ns(), 2_006_000);
}

#[test]
fn calls_are_counted_and_timed() {
    let driver = Metered::new(soft());
    let before = driver.calls();
    let mapped = Mapped::new(&driver, 3);
    let used = driver.calls() - before;
    let rows: Vec<_> = used.iter().collect();
    let expected = [
        ("cuMemAddressReserve", 1, 19_000),
        ("cuMemCreate", 3, 579_000),
        ("cuMemMap", 3, 4_350),
        ("cuMemSetAccess", 1, 36_000),
    ];
    assert_eq!(rows, expected);
    assert_eq!((used.total().count, used.total().time_ns), (8, driver.clock_ns()));
    assert_eq!(used.of(CallKind::Unmap).count, 0);
    mapped.free(&driver);
    let freed = driver.calls() - used;
    assert_eq!((freed.of(CallKind::Release).count, freed.of(CallKind::Create).count), (3, 0));
}

#[test]
fn every_call_has_a_name_of_its_own() {
    let mut names: Vec<_> = CallKind::ALL.iter().map(|kind| kind.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CallKind::COUNT);
    assert!(CallKind::ALL.iter().enumerate().all(|(at, kind)| kind.index() == at));
}
