//! Driver calls that fail: each of a workload in turn, all from one on, and some at random. No failure may break the allocator.

mod common;

use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, allocator_on, check, request};
use stratalloc::driver::fault::{Fault, FaultDriver, When};
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::{AllocRequest, Allocator, DevicePtr, Error, Lifetime, Limit, PoolId, StreamId};

const CAPACITY: u64 = 32 * MIB;
const KINDS: [DriverErrorKind; 3] = [DriverErrorKind::OutOfMemory, DriverErrorKind::Other, DriverErrorKind::Sticky];
const CONFIGS: [&str; 5] = [
    "",
    "magazine:0,cross_stream_wait:true",
    "chunk:4MiB,gc_threshold:0.5",
    "poison:check,redzone:512,quarantine:2MiB",
    "plain",
];

/// A device that can be made to fail, under an allocator with blocks in use.
struct Scene {
    driver: Arc<FaultDriver<SoftDevice>>,
    device: Arc<SoftDevice>,
    allocator: Allocator,
    streams: Vec<StreamId>,
    held: Vec<DevicePtr>,
}

impl Scene {
    fn new(text: &str) -> Scene {
        let (text, vmm) = if text == "plain" { ("", false) } else { (text, true) };
        let builder = SoftDevice::builder(CAPACITY).backing(Backing::AddressesOnly).vmm(vmm).event_lag_ns(500);
        let device = builder.build().unwrap();
        let driver = Arc::new(FaultDriver::new(device.clone()));
        let allocator = allocator_on(driver.clone(), text);
        let streams = (0..3).map(|_| device.create_stream().unwrap()).collect();
        Scene { driver, device, allocator, streams, held: Vec::new() }
    }

    fn alloc(&mut self, request: AllocRequest) {
        match self.allocator.raw_alloc(request) {
            Ok(ptr) => self.held.push(ptr),
            Err(error) => accept(&error),
        }
    }

    fn free(&mut self, index: usize) {
        if !self.held.is_empty() {
            let ptr = self.held.swap_remove(index % self.held.len());
            self.allocator.raw_free(ptr).expect("what was handed out can be freed, whatever the driver does");
        }
    }

    /// The mixed workload.
    fn work(&mut self) {
        let [a, b, c] = [self.streams[0], self.streams[1], self.streams[2]];
        for (size, stream) in [(3000, a), (100 * KIB, b), (3 * MIB, a), (5 * MIB, b), (MIB, c), (40 * KIB, c)] {
            self.alloc(request(size, stream));
        }
        self.alloc(request(600 * KIB, b).alignment(2 * MIB).lifetime(Lifetime::Persistent));
        let first = self.held.first().copied();
        first.into_iter().for_each(|ptr| self.allocator.record_stream(ptr, c).unwrap());
        let middle = self.held.get(3).copied();
        middle.into_iter().for_each(|ptr| self.allocator.record_stream(ptr, a).unwrap());
        (0..4).for_each(|index| self.free(index));
        self.device.advance_clock(200);
        self.alloc(request(9 * MIB, c));
        self.alloc(request(12 * MIB, a));
        self.free(0);
        self.alloc(request(14 * MIB, b));
        self.allocator.empty_cache(0).map(drop).unwrap_or_else(|error| accept(&error));
        self.device.advance_clock(1000);
        self.allocator.begin_private_pool(0, PoolId(0, 1), move |stream| stream == a).unwrap();
        self.alloc(request(MIB, a));
        self.alloc(request(9000, a));
        self.alloc(request(2 * MIB, b));
        self.allocator.end_private_pool(0, PoolId(0, 1)).unwrap();
        (0..3).for_each(|index| self.free(index * 5));
        self.allocator.release_private_pool(0, PoolId(0, 1)).unwrap();
        let limit = self.allocator.set_limit(0, Limit::Fraction(0.75));
        limit.unwrap_or_else(|error| {
            assert!(matches!(error, Error::LimitBelowUse { .. } | Error::Driver(_)), "{error}")
        });
        self.alloc(request(13 * MIB, c));
        self.alloc(request(200, c));
        self.alloc(request(CAPACITY, b));
    }

    /// Faults are over: everything works, and everything comes back.
    #[track_caller]
    fn recovers(mut self, what: &str) {
        check(&self.allocator, 0);
        while !self.held.is_empty() {
            self.free(0);
        }
        check(&self.allocator, 0);
        self.driver.clear();
        self.allocator.set_limit(0, Limit::Fraction(1.0)).unwrap_or_else(|error| panic!("{what}: {error}"));
        self.allocator.empty_cache(0).unwrap_or_else(|error| panic!("{what}: {error}"));
        let stats = check(&self.allocator, 0);
        assert_eq!((stats.live.current, stats.active.current, stats.pending), (0, 0, 0), "{what}");
        assert_eq!(stats.reserved.current, 0, "{what}: {stats:#?}");
        let lost = self.device.memory_info().unwrap();
        if stats.cleanup_failures == 0 {
            assert_eq!(lost.free, lost.total, "{what}: memory was lost and not counted");
        }
        if lost.free < 8 * MIB {
            // So many releases have failed that next to nothing is left to allocate from.
            return assert!(stats.cleanup_failures > 0, "{what}: {stats:#?}");
        }
        let size = lost.free / 2 / MIB * MIB;
        for stream in self.streams.clone() {
            for size in [100, 70 * KIB, MIB, size.max(MIB)] {
                let ptr = self.allocator.raw_alloc(request(size, stream));
                self.allocator.raw_free(ptr.unwrap_or_else(|error| panic!("{what}: {size}: {error}"))).unwrap();
            }
        }
        check(&self.allocator, 0);
    }
}

/// Errors that a caller may meet when the driver fails.
#[track_caller]
fn accept(error: &Error) {
    let known = matches!(error, Error::OutOfMemory(_) | Error::NeverFits { .. } | Error::Driver(_));
    assert!(known, "{error:?}");
}

/// How many driver calls the workload makes.
fn calls_of(text: &str) -> u64 {
    let mut scene = Scene::new(text);
    let before = scene.driver.calls();
    scene.work();
    let calls = scene.driver.calls() - before;
    scene.recovers("no faults");
    calls
}

fn each_call(when: fn(u64) -> When) {
    for text in CONFIGS {
        let calls = calls_of(text);
        assert!(calls > 20, "{text}: {calls} calls are hardly a workload");
        for kind in KINDS {
            for n in 1..=calls {
                let mut scene = Scene::new(text);
                scene.driver.inject(Fault { when: when(n), kind, only: None });
                scene.work();
                assert!(scene.driver.failures() > 0, "{text}: call {n}");
                scene.recovers(&format!("'{text}', {kind:?} in {:?}", when(n)));
            }
        }
    }
}

#[test]
fn any_one_call_may_fail() {
    each_call(When::Nth);
}

#[test]
fn all_calls_may_fail_from_any_one_on() {
    each_call(When::From);
}

#[test]
fn any_two_neighbouring_calls_may_fail() {
    for text in CONFIGS {
        for n in 1..=calls_of(text) {
            let mut scene = Scene::new(text);
            for n in [n, n + 1] {
                scene.driver.inject(Fault { when: When::Nth(n), kind: DriverErrorKind::Other, only: None });
            }
            scene.work();
            scene.recovers(&format!("'{text}', calls {n} and {}", n + 1));
        }
    }
}

#[test]
fn calls_may_fail_at_random() {
    for seed in 0..2000 {
        let mut rng = Rng(seed);
        let text = rng.pick(&CONFIGS);
        let mut scene = Scene::new(text);
        let probability = rng.pick(&[0.01, 0.05, 0.2, 0.6]);
        let kind = rng.pick(&KINDS);
        scene.driver.inject(Fault { when: When::Random { probability, seed }, kind, only: None });
        for _ in 0..2 {
            scene.work();
            check(&scene.allocator, 0);
        }
        scene.recovers(&format!("'{text}', {kind:?} with {probability}, seed {seed}"));
    }
}

#[test]
fn a_device_that_fails_from_the_start_is_reported() {
    for kind in KINDS {
        let scene = Scene::new("");
        scene.driver.inject(Fault { when: When::From(1), kind, only: None });
        match scene.allocator.raw_alloc(AllocRequest::new(MIB)).unwrap_err() {
            Error::OutOfMemory(_) => assert_eq!(kind, DriverErrorKind::OutOfMemory),
            Error::Driver(error) => assert_eq!(error.kind, kind),
            error => panic!("{error}"),
        }
        assert_eq!(check(&scene.allocator, 0).allocs, 0);
        scene.recovers("all fail");
    }
}

#[test]
fn dropping_the_allocator_survives_a_broken_device() {
    for n in [1, 2, 5] {
        let mut scene = Scene::new("");
        scene.work();
        scene.driver.inject(Fault { when: When::From(n), kind: DriverErrorKind::Sticky, only: None });
        let Scene { allocator, .. } = scene;
        drop(allocator);
    }
}
