//! Lifetime plans: steps that repeat are learned and placed by plan, whatever deviates goes to the heap, and nothing about a plan is ever needed
//! for a request to be served well.

mod common;

use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, allocator_on, check, check_empties, request, soft};
use stratalloc::driver::fault::{Fault, FaultDriver, When};
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::error::PlanError;
use stratalloc::plan::{Export, decode, encode};
use stratalloc::{Allocator, DevicePtr, Error, PlanStats, StreamId};

const CAPACITY: u64 = 4096 * MIB;
const INLINE: &str = "plan:inline";

/// A training program: what forward keeps, backward frees; gradients stay until the next step begins.
struct Program {
    allocator: Allocator,
    stream: StreamId,
    layers: u64,
    /// Sizes grow with it, as with a batch.
    scale: u64,
    gradients: Vec<DevicePtr>,
}

impl Program {
    fn new(allocator: &Allocator) -> Program {
        Program {
            allocator: allocator.clone(),
            stream: StreamId::DEFAULT,
            layers: 12,
            scale: 64 * KIB,
            gradients: Vec::new(),
        }
    }

    fn alloc(&self, size: u64) -> DevicePtr {
        self.allocator.raw_alloc(request(size, self.stream)).unwrap()
    }

    fn free(&self, ptr: DevicePtr) {
        self.allocator.raw_free(ptr).unwrap();
    }

    /// One step; `between` is called in its middle. Returns the addresses that it was given, in order.
    fn step(&mut self, between: impl FnOnce(&Program)) -> Vec<DevicePtr> {
        let mut given = Vec::new();
        self.gradients.drain(..).for_each(|ptr| self.allocator.raw_free(ptr).unwrap());
        let mut kept = Vec::new();
        for layer in 0..self.layers {
            for part in [40, 25] {
                given.push(self.alloc((part + layer % 3) * self.scale));
                self.free(given[given.len() - 1]);
            }
            given.push(self.alloc(17 * self.scale));
            kept.push(given[given.len() - 1]);
        }
        between(self);
        for (layer, ptr) in kept.into_iter().enumerate().rev() {
            given.push(self.alloc(33 * self.scale));
            let temporary = given[given.len() - 1];
            given.push(self.alloc(700 * KIB + layer as u64 * 4 * KIB));
            self.gradients.push(given[given.len() - 1]);
            self.free(temporary);
            self.free(ptr);
        }
        given
    }

    fn plain_step(&mut self) -> Vec<DevicePtr> {
        self.step(|_| {})
    }

    fn stats(&self) -> PlanStats {
        self.allocator.plan_stats(0).unwrap()
    }

    fn driver_calls(&self) -> u64 {
        self.allocator.driver(0).unwrap().calls().total().count
    }

    fn end(mut self) {
        let gradients = std::mem::take(&mut self.gradients);
        gradients.into_iter().for_each(|ptr| self.free(ptr));
        check_empties(&self.allocator, 0);
    }
}

fn addresses_only() -> stratalloc::driver::soft::SoftDeviceBuilder {
    SoftDevice::builder(CAPACITY).backing(Backing::AddressesOnly)
}

#[test]
fn a_step_that_repeats_is_placed_by_plan_and_calls_the_driver_no_more() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    (0..6).for_each(|_| drop(program.plain_step()));
    let (before, calls) = (program.stats(), program.driver_calls());
    assert_eq!((before.following, before.step, before.planned, before.dropped), (1, 60, 60, 0), "{before:?}");
    let steps: Vec<_> = (0..4).map(|_| program.plain_step()).collect();
    let after = program.stats();
    assert!(after.hits >= before.hits + 180, "{before:?}\n{after:?}");
    assert_eq!((after.misses, after.deviations), (before.misses, before.deviations));
    assert_eq!(program.driver_calls(), calls, "a steady step asks nothing of the driver");
    assert!(steps.iter().all(|step| *step == steps[0]), "equal steps get equal addresses");
    check(&allocator, 0);
    program.end();
}

#[test]
fn a_marked_step_is_planned_sooner() {
    let planned_after = |marks: bool| {
        let (_, allocator) = soft(addresses_only(), INLINE);
        let mut program = Program::new(&allocator);
        for step in 1.. {
            if marks {
                allocator.step();
            }
            // Nothing stays into the next step.
            program.plain_step();
            program.gradients.drain(..).for_each(|ptr| allocator.raw_free(ptr).unwrap());
            if program.stats().learned > 0 {
                program.end();
                return step;
            }
        }
        unreachable!()
    };
    assert_eq!((planned_after(true), planned_after(false)), (2, 3));
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    for _ in 0..2 {
        allocator.step();
        program.plain_step();
        program.gradients.drain(..).for_each(|ptr| allocator.raw_free(ptr).unwrap());
    }
    assert!(program.stats().layouts > 0, "the second step already has a layout");
    program.end();
}

#[test]
fn marks_that_mislead_are_not_followed_for_long() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    let ragged = |program: &mut Program, scale: u64| {
        program.scale = scale * 4 * KIB;
        allocator.step();
        program.plain_step();
        program.gradients.drain(..).for_each(|ptr| allocator.raw_free(ptr).unwrap());
    };
    (16..32).for_each(|scale| ragged(&mut program, scale));
    let stats = program.stats();
    assert_eq!((stats.learned, stats.dropped, stats.following), (1, 1, 0), "{stats:?}");
    // What repeats is found all the same.
    (0..4).for_each(|_| ragged(&mut program, 40));
    assert_eq!((program.stats().learned, program.stats().following), (2, 1));
    program.end();
}

#[test]
fn whatever_deviates_goes_to_the_heap_and_the_rest_is_found_again() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    (0..5).for_each(|_| drop(program.plain_step()));
    let steady = program.plain_step();
    let mut rng = Rng(3);
    let mut disturb = |program: &mut Program, held: bool| {
        let mut extra = Vec::new();
        program.step(|program| {
            for _ in 0..3 {
                extra.push(program.alloc(MIB + rng.below(9000) * 512));
            }
            if !held {
                extra.drain(..).for_each(|ptr| program.free(ptr));
            }
        });
        extra.into_iter().for_each(|ptr| program.free(ptr));
        check(&program.allocator, 0);
    };
    let before = program.stats();
    (0..20).for_each(|_| disturb(&mut program, false));
    let after = program.stats();
    assert_eq!((after.following, after.dropped, after.misses), (1, 0, before.misses), "{after:?}");
    // Without what is in between, and the few requests after it in which the place in the step is found again.
    assert!(after.hits >= before.hits + 18 * 45 && after.deviations > before.deviations, "{before:?}\n{after:?}");

    // What stays until the step's end takes planned places: all is served, with a plan or without.
    (0..20).for_each(|_| disturb(&mut program, true));
    // And when it is over there is one again, at the latest after the rest that a plan which did not pay has to take.
    (0..40).for_each(|_| drop(program.plain_step()));
    let before = program.stats();
    let again = program.plain_step();
    assert_eq!((program.stats().following, program.stats().misses), (1, before.misses), "{before:?}");
    assert_eq!(again.len(), steady.len());
    program.end();
}

#[test]
fn another_step_is_learned_in_place_of_the_old_one() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    (0..5).for_each(|_| drop(program.plain_step()));
    assert_eq!(program.stats().following, 1);
    program.scale = 80 * KIB;
    program.layers = 17;
    (0..8).for_each(|_| drop(program.plain_step()));
    let stats = program.stats();
    assert_eq!((stats.following, stats.step, stats.learned, stats.dropped), (1, 85, 2, 1), "{stats:?}");
    let calls = program.driver_calls();
    program.plain_step();
    assert_eq!(program.driver_calls(), calls);
    program.end();
}

#[test]
fn a_plan_lets_the_next_run_begin_with_it() {
    let (_, first) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&first);
    (0..6).for_each(|_| drop(program.plain_step()));
    let bytes = first.export_plan(0).unwrap();
    program.end();

    let (_, second) = soft(addresses_only(), INLINE);
    assert_eq!(second.import_plan(0, &bytes), Ok(1));
    let mut program = Program::new(&second);
    program.plain_step();
    let stats = program.stats();
    assert_eq!((stats.following, stats.layouts, stats.learned), (1, 1, 0), "{stats:?}");
    (0..3).for_each(|_| drop(program.plain_step()));
    let stats = program.stats();
    assert!(stats.hits > 100 && stats.dropped == 0, "{stats:?}");
    assert_eq!(second.export_plan(0).unwrap(), bytes, "nothing more was learned");
    program.end();
}

#[test]
fn a_plan_from_an_earlier_run_takes_what_the_program_needs_and_keeps_its_places() {
    // A page of the small blocks is mapped from what is free: not from the plan's places, or they would be gone.
    let run = |plan: Option<&[u8]>| {
        let (_, allocator) = soft(addresses_only(), INLINE);
        if let Some(plan) = plan {
            assert_eq!(allocator.import_plan(0, plan), Ok(1));
        }
        let mut program = Program::new(&allocator);
        program.scale = 512 * KIB;
        let mut small = Vec::new();
        for _ in 0..8 {
            program.step(|program| small.extend((0..3000).map(|_| program.alloc(512))));
            check(&allocator, 0);
        }
        let (stats, plans) = (allocator.stats(0).unwrap(), program.stats());
        let bytes = allocator.export_plan(0).unwrap();
        small.into_iter().for_each(|ptr| program.free(ptr));
        program.end();
        (stats, plans, bytes)
    };
    let (first, _, plan) = run(None);
    let (second, plans, _) = run(Some(&plan));
    assert!((plans.misses, plans.dropped, plans.layouts) == (0, 0, 1) && plans.hits > 400, "{plans:?}");
    let (held, needed) = (second.reserved.peak, first.active.peak);
    assert!(held <= needed + needed / 64, "{held} held, {needed} needed, {} without the plan", first.reserved.peak);
}

/// The plan of a program that does this step six times.
fn plan_of(scale: u64, layers: u64) -> Export {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    (program.scale, program.layers) = (scale, layers);
    (0..6).for_each(|_| drop(program.plain_step()));
    let export = decode(&allocator.export_plan(0).unwrap()).unwrap();
    program.end();
    export
}

#[test]
fn steps_from_an_earlier_run_are_followed_in_turn_whatever_idles_beside_them() {
    let steps = [(1024 * KIB, 12), (300 * KIB, 9)];
    let [mut plan, small] = steps.map(|(scale, layers)| plan_of(scale, layers));
    plan.steps.extend(small.steps);
    let (_, allocator) = soft(addresses_only(), INLINE);
    assert_eq!(allocator.import_plan(0, &encode(&plan)), Ok(2));
    let mut program = Program::new(&allocator);
    // As a model is loaded: more than the steps will need.
    let loaded: Vec<DevicePtr> = (0..40).map(|_| program.alloc(20 * MIB)).collect();
    loaded.into_iter().for_each(|ptr| program.free(ptr));
    let held = allocator.stats(0).unwrap().reserved.peak;
    for (scale, layers) in [steps, steps, steps].into_iter().flatten() {
        (program.scale, program.layers) = (scale, layers);
        (0..6).for_each(|_| drop(program.plain_step()));
        check(&allocator, 0);
    }
    let stats = program.stats();
    assert!(stats.hits > 1500 && stats.misses < 50, "{stats:?}");
    assert_eq!(allocator.stats(0).unwrap().reserved.peak, held, "there was enough");
    program.end();
}

#[test]
fn a_plan_says_what_was_needed_and_no_number_in_it_does_harm() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&allocator);
    (0..4).for_each(|_| drop(program.plain_step()));
    let refused = request(CAPACITY, StreamId::DEFAULT);
    assert!(matches!(allocator.raw_alloc(refused), Err(Error::OutOfMemory(_))));
    let plan = decode(&allocator.export_plan(0).unwrap()).unwrap();
    assert_eq!(plan.needs, allocator.stats(0).unwrap().active.peak, "what was refused was not needed");
    program.end();
    let mut plan = plan_of(512 * KIB, 12);
    for needs in [0, 1, u64::MAX] {
        plan.needs = needs;
        let (_, allocator) = soft(addresses_only(), INLINE);
        assert_eq!(allocator.import_plan(0, &encode(&plan)), Ok(1));
        let mut program = Program::new(&allocator);
        program.scale = 512 * KIB;
        (0..6).for_each(|_| drop(program.plain_step()));
        assert!(program.stats().layouts > 0 && program.stats().hits > 200, "{needs}: {:?}", program.stats());
        check(&allocator, 0);
        program.end();
    }
}

#[test]
fn what_is_no_plan_is_refused_and_changes_nothing() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let empty = allocator.export_plan(0).unwrap();
    let mut program = Program::new(&allocator);
    (0..4).for_each(|_| drop(program.plain_step()));
    let good = allocator.export_plan(0).unwrap();
    for cut in 0..good.len() {
        assert!(matches!(allocator.import_plan(0, &good[..cut]), Err(Error::Plan(_))), "cut at {cut}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(matches!(allocator.import_plan(0, &bad), Err(Error::Plan(_))), "byte {at}");
    }
    assert_eq!(allocator.export_plan(0).unwrap(), good);
    assert_eq!(allocator.import_plan(0, &empty), Ok(0));
    assert_eq!(allocator.import_plan(1, &good), Err(Error::UnknownDevice { device: 1, count: 1 }));
    assert!(matches!(allocator.export_plan(1), Err(Error::UnknownDevice { .. })));
    program.end();

    let (_, off) = soft(addresses_only(), "");
    assert_eq!(off.import_plan(0, &good), Err(Error::Plan(PlanError::Off)));
    assert_eq!(off.export_plan(0), Err(Error::Plan(PlanError::Off)));
    off.step();
    assert_eq!(off.plan_stats(0), Ok(PlanStats::default()));
}

#[test]
fn a_layout_made_on_a_thread_is_taken_over_when_it_is_there() {
    let (_, allocator) = soft(addresses_only(), "plan:on");
    let mut program = Program::new(&allocator);
    for _ in 0..2000 {
        program.plain_step();
        if program.stats().hits > 0 {
            break;
        }
        std::thread::yield_now();
    }
    let stats = program.stats();
    assert!(stats.hits > 0 && stats.layouts > 0, "{stats:?}");
    // One under way does not outlive the allocator.
    program.scale = 80 * KIB;
    (0..3).for_each(|_| drop(program.plain_step()));
    program.end();
}

#[test]
fn lives_that_change_at_random_are_given_up() {
    let (_, allocator) = soft(addresses_only(), INLINE);
    let mut rng = Rng(9);
    let mut held: Vec<DevicePtr> = Vec::new();
    for _ in 0..200 {
        for size in 0..24 {
            held.push(allocator.raw_alloc(request(MIB + size * 64 * KIB, StreamId::DEFAULT)).unwrap());
            while held.len() > 12 {
                let index = rng.index(held.len());
                allocator.raw_free(held.swap_remove(index)).unwrap();
            }
        }
    }
    let stats = allocator.plan_stats(0).unwrap();
    assert!(stats.following == 0 || stats.hits >= stats.misses, "{stats:?}");
    held.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
    check_empties(&allocator, 0);
}

#[test]
fn streams_and_threads_have_plans_of_their_own() {
    let (device, allocator) = soft(addresses_only(), INLINE);
    std::thread::scope(|scope| {
        for layers in [7, 12, 20] {
            let mut program = Program::new(&allocator);
            program.stream = device.create_stream().unwrap();
            program.layers = layers;
            scope.spawn(move || {
                (0..30).for_each(|_| drop(program.plain_step()));
                let gradients = std::mem::take(&mut program.gradients);
                gradients.into_iter().for_each(|ptr| program.free(ptr));
            });
        }
    });
    let stats = allocator.plan_stats(0).unwrap();
    assert!(stats.learned >= 3 && stats.hits > 500, "{stats:?}");
    check_empties(&allocator, 0);
}

#[test]
fn any_driver_call_may_fail_while_a_plan_is_followed() {
    let (_, first) = soft(addresses_only(), INLINE);
    let mut program = Program::new(&first);
    (0..4).for_each(|_| drop(program.plain_step()));
    let bytes = first.export_plan(0).unwrap();
    program.end();

    let run = |fault: Option<(u64, DriverErrorKind)>| {
        let device = SoftDevice::builder(160 * MIB).backing(Backing::AddressesOnly).build().unwrap();
        let driver = Arc::new(FaultDriver::new(device));
        let allocator = allocator_on(driver.clone(), INLINE);
        allocator.import_plan(0, &bytes).unwrap();
        let calls = driver.calls();
        if let Some((n, kind)) = fault {
            driver.inject(Fault { when: When::Nth(n), kind, only: None });
        }
        let mut held: Vec<DevicePtr> = Vec::new();
        for round in 0..4 {
            for layer in 0..12_u64 {
                for part in [40 + layer % 3, 25 + layer % 3, 17] {
                    match allocator.raw_alloc(request(part * 64 * KIB, StreamId::DEFAULT)) {
                        Ok(ptr) if part == 17 => held.push(ptr),
                        Ok(ptr) => allocator.raw_free(ptr).unwrap(),
                        Err(Error::OutOfMemory(_) | Error::Driver(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            check(&allocator, 0);
            held.drain(..).for_each(|ptr| allocator.raw_free(ptr).unwrap());
            if round == 1 {
                _ = allocator.empty_cache(0);
            }
        }
        driver.clear();
        check_empties_after_faults(&allocator);
        driver.calls() - calls
    };
    let calls = run(None);
    assert!(calls > 20, "{calls} calls are hardly a workload");
    for kind in [DriverErrorKind::OutOfMemory, DriverErrorKind::Other] {
        for n in 1..=calls {
            run(Some((n, kind)));
        }
    }
}

/// What the driver refused to take back is counted, and is all that may be left.
#[track_caller]
fn check_empties_after_faults(allocator: &Allocator) {
    let stats = check(allocator, 0);
    assert_eq!((stats.live.current, stats.active.current), (0, 0), "{stats:#?}");
    allocator.empty_cache(0).unwrap();
    assert_eq!(check(allocator, 0).reserved.current, 0);
}
