//! Random programs over evictable blocks, with tiers and drivers that fail at random: whatever happens, every byte is in one known place.
//!
//! `STRATALLOC_TEST_SCHEDULES` is how many schedules are run; `cargo xtask validate` runs all 10,000. `STRATALLOC_TEST_SCHEDULE` is one to be
//! run alone.

#![allow(clippy::print_stdout, reason = "the schedule that failed is to be known")]

mod common;

use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, request};
use common::tiers::{TierRig, host_tier};
use stratalloc::driver::Driver;
use stratalloc::driver::fault::{CallKind, Fault, FaultDriver, When};
use stratalloc::driver::soft::SoftDevice;
use stratalloc::tier::fault::{FaultTier, TierFault, TierFaultKind};
use stratalloc::tier::{Evictable, PinGuard, Select, SleepAction, SleepPlan, Stash, TierKind};
use stratalloc::{AllocRequest, DevicePtr, DriverErrorKind, Error, ResidencyError, StreamId, Tag};

const STEPS: usize = 40;
const SIZES: [u64; 7] = [700, 9 * KIB, 300 * KIB, MIB, 2 * MIB, 2 * MIB + 1, 4 * MIB];

/// Faults that a test injects, but for those after which nothing works any more.
const TIER_FAULTS: [TierFaultKind; 6] = [
    TierFaultKind::Full,
    TierFaultKind::Refused(5),
    TierFaultKind::Failed(5),
    TierFaultKind::Short,
    TierFaultKind::Altered,
    TierFaultKind::Slow(3),
];

/// A program under way.
struct Schedule {
    rng: Rng,
    rig: TierRig,
    driver: Arc<FaultDriver<SoftDevice>>,
    tiers: Vec<Arc<FaultTier>>,
    streams: Vec<StreamId>,
    tag: Tag,
    pins: Vec<(DevicePtr, PinGuard)>,
    plain: Vec<DevicePtr>,
    stashes: Vec<(Stash, u64, u64)>,
    errors: u64,
}

impl Schedule {
    fn new(seed: u64) -> Schedule {
        let mut rng = Rng(seed);
        let device =
            SoftDevice::builder(12 * MIB).seed(rng.pick(&[0, seed])).checker(true).event_lag_ns(rng.pick(&[0, 5000]));
        let device = device.build().unwrap();
        let driver = Arc::new(FaultDriver::new(device.clone()));
        let sizes = rng.pick(&[[24, 0], [6, 24], [4, 6]]);
        let tiers: Vec<Arc<FaultTier>> = (sizes.into_iter().filter(|&size| size > 0))
            .map(|size| Arc::new(FaultTier::new(host_tier(driver.clone(), size * MIB))))
            .collect();
        let given = tiers.clone();
        let text = ["", "tier_policy:lru", "tier_policy:s3fifo", "tier_policy:arc,chunk_max:4MiB"];
        let mut rig = TierRig::on(driver.clone(), device.clone(), rng.pick(&text), |mut builder| {
            for tier in given {
                builder = builder.tier(0, TierKind::Disk, tier);
            }
            builder
        });
        let streams = vec![StreamId::DEFAULT, device.create_stream().unwrap(), device.create_stream().unwrap()];
        let tag = rig.allocator.tag("tagged").unwrap();
        // Something is there before anything fails.
        for _ in 0..3 {
            rig.alloc(request(MIB, streams[0]), Evictable::default()).unwrap();
        }
        let (pins, plain, stashes) = (Vec::new(), Vec::new(), Vec::new());
        Schedule { rng, rig, driver, tiers, streams, tag, pins, plain, stashes, errors: 0 }
    }

    /// Lets things go wrong from now on.
    fn plant(&mut self) {
        for tier in &self.tiers {
            for _ in 0..self.rng.below(3) {
                let probability = self.rng.pick(&[0.05, 0.2, 0.6]);
                let when = When::Random { probability, seed: self.rng.bits() };
                tier.inject(TierFault { when, kind: self.rng.pick(&TIER_FAULTS), only: None });
            }
        }
        for _ in 0..self.rng.below(3) {
            let probability = self.rng.pick(&[0.01, 0.05, 0.3]);
            let kinds = [
                CallKind::Create,
                CallKind::Map,
                CallKind::Unmap,
                CallKind::SetAccess,
                CallKind::Reserve,
                CallKind::Copy,
                CallKind::RecordEvent,
                CallKind::QueryEvent,
                CallKind::WaitEvent,
                CallKind::SynchronizeEvent,
                CallKind::CreateEvent,
                CallKind::AllocHost,
            ];
            let only = if self.rng.percent(20) { None } else { Some(self.rng.pick(&kinds)) };
            let kind = self.rng.pick(&[DriverErrorKind::OutOfMemory, DriverErrorKind::Other]);
            self.driver.inject(Fault { when: When::Random { probability, seed: self.rng.bits() }, kind, only });
        }
    }

    fn block(&mut self) -> Option<DevicePtr> {
        let index = self.rng.index(self.rig.blocks.len());
        self.rig.blocks.keys().nth(index).copied().map(DevicePtr)
    }

    /// What callers may meet when things fail, or are as they are.
    #[track_caller]
    fn accept<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::OutOfMemory(_) | Error::Tier(_) | Error::Driver(_)) => {
                self.errors += 1;
                None
            }
            Err(Error::Residency(
                ResidencyError::NoRoom { .. }
                | ResidencyError::Pinned { .. }
                | ResidencyError::Asleep
                | ResidencyError::Awake,
            )) => None,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn step(&mut self) {
        let stream = self.rng.pick(&self.streams.clone());
        match self.rng.below(20) {
            0..=3 => {
                let mut wanted = request(self.rng.pick(&SIZES), stream);
                if self.rng.percent(40) {
                    wanted = wanted.tag(self.tag);
                }
                let made = self.rig.alloc(wanted, Evictable::default());
                self.accept(made);
            }
            4 => {
                if let Some(ptr) = self.block()
                    && !self.pins.iter().any(|(pinned, _)| *pinned == ptr)
                {
                    self.rig.free(ptr);
                }
            }
            5..=7 => {
                if let Some(ptr) = self.block() {
                    let verified = self.rig.verify(ptr);
                    self.accept(verified);
                }
            }
            8 => {
                if let Some(ptr) = self.block() {
                    let written = self.rig.rewrite(ptr);
                    self.accept(written);
                }
            }
            9 => {
                if let Some(ptr) = self.block() {
                    let pinned = self.rig.allocator.pin(ptr, stream);
                    let pin = self.accept(pinned);
                    self.pins.extend(pin.map(|pin| (ptr, pin)));
                }
            }
            10 => _ = self.pins.pop(),
            11 => {
                let block = self.block().unwrap_or(DevicePtr(1 << 40));
                let select = self.rng.pick(&[
                    Select::All,
                    Select::Tag(self.tag.number()),
                    Select::Ptr(block),
                    Select::Ptr(block),
                ]);
                if !(self.rig.blocks.is_empty() && select == Select::Ptr(block)) {
                    let gone = self.rig.allocator.offload(select);
                    self.accept(gone);
                }
            }
            12 => {
                let select = self.rng.pick(&[Select::All, Select::Tag(self.tag.number())]);
                let back = self.rig.allocator.restore_evicted(select);
                self.accept(back);
            }
            13 => {
                if let Some(ptr) = self.block() {
                    let begun = self.rig.allocator.prefetch(ptr, stream);
                    self.accept(begun);
                }
            }
            14 => {
                let plan = SleepPlan::new(SleepAction::Save)
                    .tag(self.tag, self.rng.pick(&[SleepAction::Keep, SleepAction::Save]));
                let slept = self.rig.allocator.sleep(&plan);
                self.accept(slept);
            }
            15 => {
                let tags = [self.tag];
                let some = self.rng.percent(30).then_some(&tags[..]);
                let woken = self.rig.allocator.wake(some);
                self.accept(woken);
            }
            16 => {
                let got = self.rig.allocator.raw_alloc(AllocRequest::new(self.rng.pick(&SIZES)).stream(stream));
                let got = self.accept(got);
                self.plain.extend(got);
            }
            17 => {
                if let Some(ptr) = self.plain.pop() {
                    self.rig.allocator.raw_free(ptr).unwrap();
                }
            }
            18 => self.stash(stream),
            _ => {
                if let Some((stash, size, seed)) = self.stashes.pop() {
                    self.fetch(&stash, size, seed, stream);
                }
            }
        }
    }

    fn stash(&mut self, stream: StreamId) {
        let (size, seed) = (self.rng.pick(&[5000, 2 * MIB]), self.rng.bits());
        let got = self.rig.allocator.raw_alloc(AllocRequest::new(size).stream(stream));
        let Some(from) = self.accept(got) else { return };
        self.rig.device.write(from, &TierRig::contents(size, seed), stream).unwrap();
        let stashed = self.rig.allocator.stash(from, size, stream, None);
        if let Some(stash) = self.accept(stashed) {
            self.stashes.push((stash, size, seed));
        }
        self.rig.allocator.raw_free(from).unwrap();
    }

    fn fetch(&mut self, stash: &Stash, size: u64, seed: u64, stream: StreamId) {
        let got = self.rig.allocator.raw_alloc(AllocRequest::new(size).stream(stream));
        let Some(to) = self.accept(got) else { return };
        let fetched = stash.fetch(to, stream).and_then(|()| stash.order(stream));
        if self.accept(fetched).is_some() {
            let mut found = vec![0; size as usize];
            self.rig.device.read(&mut found, to, stream).unwrap();
            assert!(found == TierRig::contents(size, seed), "what was stashed came back altered");
        } else {
            // What has been submitted of it may be under way.
            let inward = self.rig.device.synchronize_device();
            inward.unwrap();
        }
        self.rig.allocator.raw_free(to).unwrap();
    }

    fn run(mut self, seed: u64) -> (u64, u64) {
        self.plant();
        for step in 0..STEPS {
            self.step();
            if step % 8 == 0 {
                self.rig.check();
            }
        }
        self.end(seed)
    }

    /// All is well again: everything is there. Returns how many faults there were, and how many errors.
    fn end(mut self, seed: u64) -> (u64, u64) {
        self.driver.clear();
        self.tiers.iter().for_each(|tier| tier.clear());
        // What began before may fail still.
        self.rig.settle();
        self.pins.clear();
        for ptr in self.plain.drain(..) {
            self.rig.allocator.raw_free(ptr).unwrap();
        }
        self.stashes.clear();
        // Tiers and device may be full to the last byte: what has been found good makes room for the rest.
        while !self.rig.blocks.is_empty() {
            let before = self.rig.blocks.len();
            if self.rig.allocator.tier_stats(0).unwrap().asleep
                && let Err(error) = self.rig.allocator.wake(None)
            {
                assert!(matches!(error, Error::Residency(ResidencyError::NoRoom { .. })), "seed {seed}: {error}");
            }
            for ptr in self.rig.blocks.keys().copied().map(DevicePtr).collect::<Vec<_>>() {
                match self.rig.verify(ptr) {
                    Ok(()) => self.rig.free(ptr),
                    Err(Error::Residency(ResidencyError::NoRoom { .. } | ResidencyError::Asleep)) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            assert!(self.rig.blocks.len() < before, "seed {seed}: nothing comes back");
            self.rig.check();
        }
        let injected = self.driver.failures() + self.tiers.iter().map(|tier| tier.failures()).sum::<u64>();
        let errors = self.errors;
        let lost = self.rig.allocator.stats(0).unwrap().cleanup_failures;
        let Schedule { rig, tiers, .. } = self;
        drop(tiers);
        if lost == 0 {
            rig.finish();
        } else {
            rig.check();
        }
        (injected, errors)
    }
}

#[test]
fn every_byte_is_in_one_place_whatever_fails() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("STRATALLOC_TEST_SCHEDULE") {
        Schedule::new(seed).run(seed);
        return;
    }
    let wanted = number("STRATALLOC_TEST_SCHEDULES").unwrap_or(40);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64).min(8);
    let some = |first: u64| {
        move || {
            let (mut injected, mut errors) = (0, 0);
            for seed in (first..=wanted).step_by(threads as usize) {
                let outcome = std::panic::catch_unwind(|| Schedule::new(seed).run(seed));
                let (faults, met) = outcome.unwrap_or_else(|panic| {
                    println!("schedule {seed} failed");
                    std::panic::resume_unwind(panic)
                });
                injected += faults;
                errors += met;
            }
            (injected, errors)
        }
    };
    let running: Vec<_> = (1..=threads).map(|first| std::thread::spawn(some(first))).collect();
    let sums: Vec<(u64, u64)> = running.into_iter().map(|thread| thread.join().unwrap()).collect();
    let injected: u64 = sums.iter().map(|&(injected, _)| injected).sum();
    let errors: u64 = sums.iter().map(|&(_, errors)| errors).sum();
    assert!(injected > wanted * 2 && errors > wanted / 4, "{injected} faults and {errors} errors are hardly a test");
}

/// A short program in which every kind of move happens once.
fn fixed(schedule: &mut Schedule) {
    let other = schedule.streams[1];
    for (size, stream) in [(4 * MIB, StreamId::DEFAULT), (9 * KIB, other), (2 * MIB, other)] {
        let made = schedule.rig.alloc(request(size, stream), Evictable::default());
        schedule.accept(made);
    }
    let gone = schedule.rig.allocator.offload(Select::All);
    schedule.accept(gone);
    let got = schedule.rig.allocator.raw_alloc(AllocRequest::new(6 * MIB));
    let got = schedule.accept(got);
    for ptr in schedule.rig.blocks.keys().copied().map(DevicePtr).collect::<Vec<_>>() {
        let verified = schedule.rig.verify(ptr);
        schedule.accept(verified);
    }
    if let Some(ptr) = got {
        schedule.rig.allocator.raw_free(ptr).unwrap();
    }
    let slept = schedule.rig.allocator.sleep(&SleepPlan::default());
    schedule.accept(slept);
    let woken = schedule.rig.allocator.wake(None);
    schedule.accept(woken);
    if let Some(ptr) = schedule.block() {
        schedule.rig.free(ptr);
    }
    let emptied = schedule.rig.allocator.empty_cache(0);
    schedule.accept(emptied);
}

#[test]
fn any_one_driver_call_may_fail() {
    let mut schedule = Schedule::new(4);
    let before = schedule.driver.calls();
    fixed(&mut schedule);
    let calls = schedule.driver.calls() - before;
    schedule.end(4);
    assert!(calls > 60, "{calls} calls are hardly a program");
    for kind in [DriverErrorKind::OutOfMemory, DriverErrorKind::Other] {
        // All of them take long: in steps that meet each over the runs of two kinds.
        for n in (1..=calls).step_by(if kind == DriverErrorKind::Other { 1 } else { 3 }) {
            let mut schedule = Schedule::new(4);
            schedule.driver.inject(Fault { when: When::Nth(n), kind, only: None });
            fixed(&mut schedule);
            schedule.end(n);
        }
    }
}
