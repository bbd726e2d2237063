//! The driver contract, for every driver that needs no GPU. `tests/gpu/` has the real one.

mod common;

use std::sync::Arc;

use common::contract::check_all;
use stratalloc::driver::Driver;
use stratalloc::driver::fault::FaultDriver;
use stratalloc::driver::metered::{CallKind, Metered};
use stratalloc::driver::soft::{Backing, LatencyModel, SoftDevice, SoftDeviceBuilder};

const CAPACITY: u64 = 1 << 30;

/// Checks the contract on a software device, and that it ends with nothing held and nothing reported.
fn check_soft(builder: SoftDeviceBuilder, data: bool) {
    let device = builder.checker(true).build().unwrap();
    check_all(&*device, data);
    let leaks = device.leaks();
    assert!(leaks.is_empty(), "{leaks}");
    if let Some(report) = device.reports().first() {
        panic!("{report}");
    }
    assert_eq!(device.memory_info().unwrap().free, CAPACITY);
}

/// One test a set-up.
macro_rules! contract {
    ($($name:ident: $builder:expr, data: $data:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let with: fn(SoftDeviceBuilder) -> SoftDeviceBuilder = $builder;
                check_soft(with(SoftDevice::builder(CAPACITY)), $data);
            }
        )*
    };
}

contract! {
    soft_memfd: |b| b, data: true;
    soft_addresses_only: |b| b.backing(Backing::AddressesOnly), data: false;
    soft_without_vmm: |b| b.vmm(false), data: true;
    soft_addresses_only_without_vmm: |b| b.vmm(false).backing(Backing::AddressesOnly), data: false;
    soft_with_latency: |b| b.latency(LatencyModel::A100).tails(true).event_lag_ns(100_000), data: true;
    soft_in_real_time: |b| b.real_time(true), data: true;
    soft_with_partial_mapping: |b| b.partial_mapping(true), data: true;
    soft_with_small_pages: |b| b.granularity(4096), data: true;
}

#[test]
fn soft_with_any_seed() {
    for seed in 1..20 {
        check_soft(SoftDevice::builder(CAPACITY).seed(seed), true);
        check_soft(SoftDevice::builder(CAPACITY).seed(seed).latency(LatencyModel::StudyA), true);
    }
}

#[test]
fn fault_driver_without_faults() {
    let driver = FaultDriver::new(SoftDevice::builder(CAPACITY).build().unwrap());
    check_all(&driver, true);
    assert!(driver.calls() > 100);
    assert_eq!(driver.failures(), 0);
}

#[test]
fn metered_driver() {
    let driver = Metered::new(SoftDevice::builder(CAPACITY).build().unwrap());
    check_all(&driver, true);
    let calls = driver.calls();
    assert_eq!(calls.of(CallKind::AllocHost).count, calls.of(CallKind::FreeHost).count);
    assert!(calls.of(CallKind::Map).count > 10);
}

#[test]
fn adaptors_nest() {
    let soft: Arc<dyn Driver> = SoftDevice::builder(CAPACITY).build().unwrap();
    let faulty: Arc<dyn Driver> = Arc::new(FaultDriver::new(soft));
    check_all(&Metered::new(faulty), true);
}
