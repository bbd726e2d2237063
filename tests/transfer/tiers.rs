//! Pinned host memory that grows in steps, and the memory of another device.

use std::sync::Arc;

use stratalloc::StreamId;
use stratalloc::driver::fault::{CallKind, Fault, FaultDriver, When};
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::tier::transfer::Engine;
use stratalloc::tier::{HostConfig, HostTier, PeerTier, Slot, Tier, TierError};

use super::kit::{builder, device_memory, pattern, read, small};

const STEP: u64 = 2 << 20;

#[test]
fn a_slot_may_cross_steps() {
    for background in [false, true] {
        let soft = builder().build().unwrap();
        let driver: Arc<dyn Driver> = soft.clone();
        let config = HostConfig { capacity_bytes: 5 * STEP, step_bytes: STEP, background };
        let host = Arc::new(HostTier::new(driver.clone(), &config).unwrap());
        let tier: Arc<dyn Tier> = host.clone();
        let engine = Engine::new(driver.clone(), small(0)).unwrap();
        let size = 3 * STEP + 12345;
        let at = device_memory(&*driver, size);
        let bytes = pattern(1, size);
        driver.write(at, &bytes, StreamId::DEFAULT).unwrap();
        // So that no piece begins where a step does.
        let first = tier.reserve(100_000).unwrap();
        let place = engine.save(at, size, &tier, None, &[StreamId::DEFAULT]).unwrap().wait().unwrap().unwrap();
        driver.fill(at, size, 0, StreamId::DEFAULT).unwrap();
        engine.load(&place, at, &[StreamId::DEFAULT]).unwrap().wait().unwrap();
        assert!(read(&*driver, at, size, StreamId::DEFAULT) == bytes);
        assert!(background || host.pinned_bytes() == 4 * STEP, "{}", host.pinned_bytes());
        let error = tier.reserve(2 * STEP).unwrap_err();
        assert!(matches!(error, TierError::Full { capacity, .. } if capacity == 5 * STEP), "{error}");
        assert_eq!(host.shortfall(), None);
        tier.release(first);
        drop((place, engine, tier, host));
        assert_eq!(soft.report_count(), 0, "{}", soft.reports()[0]);
        assert_eq!(soft.leaks().host, 0);
    }
}

#[test]
fn a_host_without_memory_is_a_smaller_tier() {
    for background in [false, true] {
        let driver = Arc::new(FaultDriver::new(builder().build().unwrap()));
        let fault = Fault { when: When::From(3), kind: DriverErrorKind::OutOfMemory, only: Some(CallKind::PinHost) };
        driver.inject(fault);
        let config = HostConfig { capacity_bytes: 8 * STEP, step_bytes: STEP, background };
        let tier = HostTier::new(driver.clone(), &config).unwrap();
        // Two steps are there, as one range.
        let slot = tier.reserve(2 * STEP).unwrap();
        let error = tier.reserve(1).unwrap_err();
        let full = TierError::Full { tier: "host".into(), size: 1, used: 2 * STEP, capacity: 2 * STEP };
        assert_eq!(error, full, "{error}");
        assert_eq!((tier.capacity(), tier.pinned_bytes()), (2 * STEP, 2 * STEP));
        assert!(tier.shortfall().is_some_and(|error| error.is_out_of_memory()));
        tier.release(slot);
        assert_eq!(tier.reserve(STEP).unwrap(), Slot { offset: 0, size: STEP });
    }
    let driver = builder().build().unwrap();
    for (capacity_bytes, step_bytes) in [(0, STEP), (STEP, 0), (u64::MAX, STEP), (STEP, 2 << 30)] {
        let config = HostConfig { capacity_bytes, step_bytes, background: false };
        assert!(matches!(HostTier::new(driver.clone(), &config), Err(TierError::Unusable { .. })));
    }
}

#[test]
fn memory_that_is_not_whole_pages_is_not_pinned() {
    use stratalloc::driver::HostPtr;
    let driver = builder().build().unwrap();
    for (at, size) in [(0x1001, 4096), (0x1000, 100), (0x1000, 0), (0, 4096)] {
        assert!(driver.pin_host(HostPtr(at), size).is_err(), "{at:#x} {size}");
    }
    assert!(driver.unpin_host(HostPtr(0x1000)).is_err());
}

#[test]
fn a_device_that_is_not_reached_is_no_tier() {
    let driver = builder().peer_access(false).build().unwrap();
    let error = PeerTier::new(driver.clone(), 1, 1 << 20, 1 << 20).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("peer 1") && text.contains("cuMemSetAccess"), "{text}");
    assert!(driver.leaks().is_empty(), "{}", driver.leaks());
    // Itself, and a device that cannot map.
    let driver = builder().build().unwrap();
    assert!(matches!(PeerTier::new(driver, 0, 1 << 20, 1 << 20), Err(TierError::Unusable { .. })));
    let driver = builder().vmm(false).build().unwrap();
    assert!(matches!(PeerTier::new(driver, 1, 1 << 20, 1 << 20), Err(TierError::Unusable { .. })));
}

#[test]
fn a_peer_without_memory_is_a_smaller_tier() {
    let soft = builder().build().unwrap();
    let driver = Arc::new(FaultDriver::new(soft.clone()));
    driver.inject(Fault { when: When::From(3), kind: DriverErrorKind::OutOfMemory, only: Some(CallKind::Create) });
    let tier = PeerTier::new(driver, 1, 8 << 20, 1 << 20).unwrap();
    let slot = tier.reserve(2 << 20).unwrap();
    let error = tier.reserve(1).unwrap_err();
    assert!(matches!(error, TierError::Full { capacity, .. } if capacity == 2 << 20), "{error}");
    assert!(tier.shortfall().is_some());
    tier.release(slot);
    drop(tier);
    assert!(soft.leaks().is_empty(), "{}", soft.leaks());
}

#[test]
fn bytes_that_change_on_their_way_to_a_peer_are_seen() {
    let soft = builder().build().unwrap();
    let driver: Arc<dyn Driver> = soft.clone();
    let tier: Arc<dyn Tier> = Arc::new(PeerTier::new(driver.clone(), 1, 1 << 20, 1 << 20).unwrap());
    let engine = Engine::new(driver.clone(), small(0)).unwrap();
    let at = device_memory(&*driver, 50_000);
    driver.write(at, &pattern(2, 50_000), StreamId::DEFAULT).unwrap();
    let place = engine.save(at, 50_000, &tier, None, &[StreamId::DEFAULT]).unwrap().wait().unwrap().unwrap();
    // The other device's own work.
    driver.fill(tier.address(place.slot()).unwrap().add(49_999), 1, 0, StreamId::DEFAULT).unwrap();
    let error = engine.load(&place, at, &[StreamId::DEFAULT]).unwrap().wait().unwrap_err();
    assert!(matches!(error, TierError::Corrupt { .. }), "{error}");
    // The host cannot bring it to another tier.
    let config = HostConfig { capacity_bytes: STEP, step_bytes: STEP, background: false };
    let host: Arc<dyn Tier> = Arc::new(HostTier::new(driver.clone(), &config).unwrap());
    assert!(matches!(engine.spill(&place, &host), Err(TierError::Unusable { .. })));
}
