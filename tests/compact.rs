//! Movable blocks: passes that move them free chunks, change no byte, wait for nothing, and leave alone what somebody holds on to.

mod common;

use std::time::Duration;

use common::filled::Scene;
use common::rig::{KIB, MIB, check, check_empties, request, stats};
use stratalloc::driver::fault::{Fault, When};
use stratalloc::driver::soft::Access;
use stratalloc::driver::{Driver, DriverErrorKind};
use stratalloc::{
    AllocFlags, AllocRequest, ByteSize, CompactReport, Compaction, DevicePtr, Error, EventKind, Lifetime, Movable,
    Move, PassLimits, PoolId,
};

const PAGE: u64 = 2 * MIB;

/// A scene some of whose blocks are movable.
struct Moving {
    scene: Scene,
    movables: Vec<Movable>,
}

impl Moving {
    fn new(capacity: u64, seed: u64, text: &str) -> Moving {
        Moving { scene: Scene::new(capacity, seed, text), movables: Vec::new() }
    }

    fn alloc_with(&mut self, request: AllocRequest, stream: usize) {
        let movable = self.scene.allocator.alloc_movable(request.stream(self.scene.streams[stream])).unwrap();
        self.scene.adopt(movable.pin().ptr(), request.size, stream);
        self.movables.push(movable);
    }

    fn alloc(&mut self, size: u64, stream: usize) {
        self.alloc_with(AllocRequest::new(size), stream);
    }

    fn free(&mut self, index: usize) {
        let movable = self.movables.swap_remove(index);
        let ptr = movable.pin().ptr();
        let (size, ..) = self.scene.blocks.remove(&ptr.0).unwrap();
        self.scene.device.note_free(ptr, size);
        drop(movable);
    }

    /// Frees movable blocks until so many of 100 are left, at random.
    fn thin(&mut self, percent: u64) {
        for index in (0..self.movables.len()).rev() {
            if !self.scene.rng.percent(percent) {
                self.free(index);
            }
        }
    }

    /// Follows what a pass has moved.
    fn follow(&mut self, moves: &[Move]) {
        let now: Vec<u64> = self.movables.iter().map(|movable| movable.pin().ptr().0).collect();
        let (went, stayed): (Vec<Move>, Vec<Move>) = moves.iter().partition(|to| now.contains(&to.to.0));
        for Move { from, to, .. } in went {
            let block = self.scene.blocks.remove(&from.0).unwrap();
            self.scene.blocks.insert(to.0, block);
        }
        if !stayed.is_empty() {
            // The checker takes them for moved, if they were copied.
            self.scene.device.forget_owners();
        }
    }

    fn compact(&mut self, limits: PassLimits) -> stratalloc::Result<CompactReport> {
        let device = self.scene.device.clone();
        let allocator = self.scene.allocator.clone();
        let mut pass = allocator.begin_compaction(0, limits)?;
        let moves: Vec<Move> = pass.moves().collect();
        device.allocator_copies(true);
        let copied = pass.copy();
        device.allocator_copies(false);
        let report = copied.map(|()| pass.commit());
        self.follow(&moves);
        report
    }

    #[track_caller]
    fn ends_clean(mut self) {
        while !self.movables.is_empty() {
            self.free(0);
        }
        self.scene.ends_clean();
    }
}

/// Sizes of slots, of small ranges, and of large ones.
const SIZES: [&[u64]; 3] = [&[48 * KIB, 64 * KIB], &[100 * KIB, 300 * KIB, 500 * KIB], &[600 * KIB, 1300 * KIB]];

/// Movable blocks, a quarter of which is left.
fn sparse(seed: u64, sizes: &[u64], text: &str) -> Moving {
    let mut moving = Moving::new(512 * MIB, seed, text);
    let mut bytes = 0;
    while bytes < 80 * MIB {
        let size = moving.scene.rng.pick(sizes);
        moving.alloc(size, 0);
        bytes += size;
    }
    moving.thin(25);
    moving.scene.allocator.empty_cache(0).unwrap();
    moving
}

#[test]
fn sparse_blocks_come_together_and_chunks_become_free() {
    for (index, sizes) in SIZES.into_iter().enumerate() {
        let mut moving = sparse(index as u64, sizes, "");
        let before = check(&moving.scene.allocator, 0);
        let (stalled, waits) = (moving.scene.device.stall_ns(), before.synchronizations);
        let report = moving.compact(PassLimits::default()).unwrap();
        let between = check(&moving.scene.allocator, 0);
        assert_eq!(
            (between.synchronizations, moving.scene.device.stall_ns()),
            (waits, stalled),
            "nothing is waited for"
        );
        assert_eq!((before.live, before.allocs, before.frees), (between.live, between.allocs, between.frees));
        assert_eq!(before.active.current, between.active.current);
        moving.scene.verify();
        moving.scene.allocator.empty_cache(0).unwrap();
        let after = check(&moving.scene.allocator, 0);
        assert!(
            after.reserved.current * 10 <= before.reserved.current * 7,
            "{sizes:?}: {report:?}: {before:#?} {after:#?}"
        );
        assert!(report.moved > 0 && report.left == 0 && report.bytes < before.active.current, "{report:?}");
        moving.scene.verify();
        // What is written by the new pointers is there.
        let all: Vec<u64> = moving.scene.blocks.keys().copied().collect();
        all.into_iter().for_each(|ptr| moving.scene.fill(DevicePtr(ptr)));
        moving.scene.verify();
        let again = moving.compact(PassLimits::default()).unwrap();
        assert!(again.bytes * 4 <= report.bytes, "{again:?} after {report:?}");
        moving.scene.verify();
        moving.ends_clean();
    }
}

#[test]
fn what_is_pinned_or_used_elsewhere_stays() {
    let mut moving = sparse(3, SIZES[1], "");
    let streams = moving.scene.streams.clone();
    let pins: Vec<_> = moving.movables.iter().step_by(3).map(Movable::pin).collect();
    moving.movables.iter().skip(1).step_by(3).for_each(|movable| {
        let pin = movable.pin();
        // The home stream is no other stream.
        pin.record_stream(streams[0]).unwrap();
        pin.record_stream(streams[1]).unwrap();
    });
    let held: Vec<u64> = moving.movables.iter().map(|movable| movable.pin().ptr().0).collect();
    let allocator = moving.scene.allocator.clone();
    let pass = allocator.begin_compaction(0, PassLimits::default()).unwrap();
    for Move { from, .. } in pass.moves() {
        let index = held.iter().position(|&ptr| ptr == from.0).unwrap();
        assert_eq!(index % 3, 2, "block {index} is held");
    }
    drop((pass, pins));
    drop(allocator);
    moving.compact(PassLimits::default()).unwrap();
    let now: Vec<u64> = moving.movables.iter().map(|movable| movable.pin().ptr().0).collect();
    assert!(now.iter().skip(1).step_by(3).eq(held.iter().skip(1).step_by(3)), "used elsewhere");
    moving.scene.verify();
    moving.ends_clean();
}

/// A pass over a sparse scene that has chosen some moves.
fn begun(moving: &Moving) -> (Compaction<'_>, Vec<Move>) {
    let pass = moving.scene.allocator.begin_compaction(0, PassLimits::default()).unwrap();
    let moves: Vec<Move> = pass.moves().collect();
    assert!(moves.len() >= 8, "{} moves are hardly a pass", moves.len());
    (pass, moves)
}

#[test]
fn a_pass_that_is_dropped_moves_nothing() {
    for copies in [false, true] {
        let mut moving = sparse(4, SIZES[1], "");
        let before = check(&moving.scene.allocator, 0);
        let places: Vec<DevicePtr> = moving.movables.iter().map(|movable| movable.pin().ptr()).collect();
        let allocator = moving.scene.allocator.clone();
        let moves: Vec<Move> = {
            let mut pass = allocator.begin_compaction(0, PassLimits::default()).unwrap();
            if copies {
                moving.scene.device.allocator_copies(true);
                pass.copy().unwrap();
                moving.scene.device.allocator_copies(false);
            }
            pass.moves().collect()
        };
        assert!(!moves.is_empty());
        moving.follow(&moves);
        assert!(moving.movables.iter().map(|movable| movable.pin().ptr()).eq(places));
        let after = check(&moving.scene.allocator, 0);
        assert_eq!((before.active.current, before.live), (after.active.current, after.live));
        moving.scene.verify();
        // Another pass finds the same.
        assert_eq!(moving.compact(PassLimits::default()).unwrap().moved, moves.len() as u64);
        moving.scene.verify();
        drop(allocator);
        moving.ends_clean();
    }
}

#[test]
fn a_block_pinned_or_freed_during_a_pass_stays_or_goes() {
    // Between the first two steps, or the last two.
    for late in [false, true] {
        let mut moving = sparse(5, SIZES[1], "");
        let places: Vec<DevicePtr> = moving.movables.iter().map(|movable| movable.pin().ptr()).collect();
        let (allocator, device) = (moving.scene.allocator.clone(), moving.scene.device.clone());
        let mut pass = allocator.begin_compaction(0, PassLimits::default()).unwrap();
        let moves: Vec<Move> = pass.moves().collect();
        assert!(moves.len() >= 8);
        let index = |ptr: DevicePtr| places.iter().position(|&place| place == ptr).unwrap();
        let copy = |pass: &mut Compaction<'_>| {
            device.allocator_copies(true);
            pass.copy().unwrap();
            device.allocator_copies(false);
        };
        if late {
            copy(&mut pass);
        }
        let pinned = index(moves[1].from);
        // What is written now must not be lost to an older copy.
        let ptr = moving.movables[pinned].pin().ptr();
        assert_eq!(ptr, places[pinned]);
        moving.scene.fill(ptr);
        let last = moving.movables.len() - 1;
        moving.free(index(moves[0].from));
        let pinned = if pinned == last { index(moves[0].from) } else { pinned };
        if !late {
            copy(&mut pass);
        }
        let report = pass.commit();
        assert_eq!((report.moved, report.left), (moves.len() as u64 - 2, 2), "{report:?}");
        assert_eq!(moving.movables[pinned].pin().ptr(), moves[1].from);
        moving.follow(&moves);
        moving.scene.verify();
        drop(allocator);
        moving.ends_clean();
    }
}

#[test]
fn one_pin_calls_one_move_off() {
    let mut moving = sparse(6, SIZES[0], "");
    let (mut pass, moves) = begun(&moving);
    drop(moving.movables[0].pin());
    let pinned = moving.movables[0].pin().ptr();
    moving.scene.device.allocator_copies(true);
    pass.copy().unwrap();
    moving.scene.device.allocator_copies(false);
    let report = pass.commit();
    let concerned = moves.iter().any(|to| to.from == pinned);
    assert_eq!((report.moved, report.left), (moves.len() as u64 - u64::from(concerned), u64::from(concerned)));
    assert_eq!(moving.movables[0].pin().ptr(), pinned);
    moving.follow(&moves);
    moving.scene.verify();
    moving.ends_clean();
}

#[test]
fn limits_bound_a_pass() {
    let mut moving = sparse(7, SIZES[1], "");
    let none = moving.compact(PassLimits { bytes: ByteSize(0), ..PassLimits::default() }).unwrap();
    assert_eq!(none, CompactReport::default());
    let some = moving.compact(PassLimits { bytes: ByteSize::mib(1), ..PassLimits::default() }).unwrap();
    assert!(0 < some.bytes && some.bytes <= MIB, "{some:?}");
    let late = moving.compact(PassLimits { time: Duration::ZERO, ..PassLimits::default() }).unwrap();
    assert!(late.moved == 0 && late.left > 0, "no time: {late:?}");
    moving.scene.verify();
    let rest = moving.compact(PassLimits::default()).unwrap();
    assert_eq!(rest.moved, late.left);
    moving.scene.verify();
    moving.ends_clean();
}

#[test]
fn captures_private_pools_and_dedicated_blocks_are_left_alone() {
    let mut moving = Moving::new(512 * MIB, 8, "");
    let (pool, stream) = (PoolId(0, 1), moving.scene.streams[0]);
    let allocator = moving.scene.allocator.clone();
    allocator.begin_private_pool(0, pool, move |other| other == stream).unwrap();
    (0..200).for_each(|_| moving.alloc(300 * KIB, 0));
    assert!(matches!(moving.compact(PassLimits::default()), Err(Error::Capturing { .. })));
    allocator.end_private_pool(0, pool).unwrap();
    moving.thin(20);
    assert_eq!(moving.compact(PassLimits::default()).unwrap(), CompactReport::default());
    allocator.release_private_pool(0, pool).unwrap();
    (0..20).for_each(|_| moving.alloc_with(AllocRequest::new(MIB).flags(AllocFlags::DEDICATED), 1));
    moving.thin(50);
    moving.compact(PassLimits::default()).unwrap();
    moving.scene.verify();
    assert!(matches!(allocator.compact(1, PassLimits::default()), Err(Error::UnknownDevice { .. })));
    drop(allocator);
    moving.ends_clean();
}

#[test]
fn alignment_zone_and_tag_survive() {
    let mut moving = Moving::new(512 * MIB, 9, "");
    let tag = moving.scene.allocator.tag("moved").unwrap();
    for round in 0..400u64 {
        let base = AllocRequest::new((70 + round % 200) * KIB).tag(tag).alignment(512 << (round % 8));
        moving.alloc_with(if round % 2 == 0 { base.lifetime(Lifetime::Persistent) } else { base }, 0);
    }
    moving.thin(25);
    let before = stats(&moving.scene.allocator).tags;
    let aligned: Vec<u64> = moving.movables.iter().map(|m| 1 << m.pin().ptr().0.trailing_zeros().min(16)).collect();
    let report = moving.compact(PassLimits::default()).unwrap();
    assert!(report.moved > 10, "{report:?}");
    assert_eq!(stats(&moving.scene.allocator).tags, before);
    assert!(aligned.iter().all(|&alignment| alignment >= 512));
    for info in moving.scene.allocator.snapshot(0).unwrap().segments.iter().flat_map(|segment| &segment.blocks) {
        let is_ours = moving.scene.blocks.contains_key(&info.ptr.0);
        assert_eq!(info.tag, if is_ours { tag.number() } else { 0 }, "{info:?}");
    }
    moving.scene.verify();
    moving.ends_clean();
}

#[test]
fn alignment_is_kept() {
    let mut moving = Moving::new(512 * MIB, 10, "");
    (0..300).for_each(|_| moving.alloc_with(AllocRequest::new(130 * KIB).alignment(64 * KIB), 0));
    (0..300).for_each(|_| moving.alloc(90 * KIB, 0));
    moving.thin(30);
    let report = moving.compact(PassLimits::default()).unwrap();
    assert!(report.moved > 10, "{report:?}");
    let unaligned = |&(&ptr, &(size, ..)): &(&u64, &(u64, usize, u64))| size == 130 * KIB && ptr % (64 * KIB) != 0;
    assert_eq!(moving.scene.blocks.iter().find(unaligned), None);
    moving.scene.verify();
    moving.ends_clean();
}

/// A small sparse scene.
fn small() -> Moving {
    let mut moving = Moving::new(128 * MIB, 11, "");
    (0..90).for_each(|_| moving.alloc(250 * KIB, 0));
    (0..90).for_each(|_| moving.alloc(64 * KIB, 1));
    moving.thin(25);
    moving.scene.allocator.empty_cache(0).unwrap();
    moving
}

#[test]
fn any_one_call_may_fail() {
    let mut moving = small();
    let before = moving.scene.driver.calls();
    let report = moving.compact(PassLimits::default()).unwrap();
    let calls = moving.scene.driver.calls() - before;
    assert!(report.moved > 3 && calls >= 2, "{report:?} in {calls} calls");
    moving.ends_clean();
    for when in [When::Nth as fn(u64) -> When, When::From] {
        for n in 1..=calls {
            let mut moving = small();
            let before = check(&moving.scene.allocator, 0);
            moving.scene.driver.inject(Fault { when: when(n), kind: DriverErrorKind::Other, only: None });
            let result = moving.compact(PassLimits::default());
            moving.scene.driver.clear();
            assert!(result.is_err(), "call {n}: {result:?}");
            let after = check(&moving.scene.allocator, 0);
            assert_eq!((before.active.current, before.live), (after.active.current, after.live));
            moving.scene.verify();
            assert_eq!(moving.compact(PassLimits::default()).unwrap().moved, report.moved);
            moving.scene.verify();
            moving.ends_clean();
        }
    }
}

#[test]
fn movable_blocks_outlive_their_owners_thread_and_free_themselves() {
    let allocator = Scene::new(64 * MIB, 12, "").allocator;
    let movable = allocator.alloc_movable(AllocRequest::new(MIB)).unwrap();
    assert_eq!((movable.size(), movable.device()), (MIB, 0));
    std::thread::spawn(move || drop(movable)).join().unwrap();
    assert_eq!(allocator.failed_drops(), 0);
    check_empties(&allocator, 0);
    assert!(matches!(allocator.alloc_movable(AllocRequest::new(0)), Err(Error::InvalidSize { .. })));
    assert!(matches!(allocator.alloc_movable(AllocRequest::new(1).device(7)), Err(Error::UnknownDevice { .. })));
}

/// Everything at once, at random: blocks that stay and blocks that move, kernels under way, both passes, and memory given back in between.
fn program(seed: u64, steps: usize, text: &str) {
    let mut moving = Moving::new(256 * MIB, seed, text);
    let sizes = [20 * KIB, 32 * KIB, 48 * KIB, 64 * KIB, 100 * KIB, 400 * KIB, 700 * KIB, 1500 * KIB, 3 * MIB];
    let (mut moved, mut meshed) = (0, 0);
    for step in 0..steps {
        let stream = moving.scene.rng.index(3);
        let size = moving.scene.rng.pick(&sizes);
        match moving.scene.rng.below(100) {
            0..20 if moving.movables.len() < 300 => moving.alloc(size, stream),
            20..40 if moving.scene.blocks.len() < 600 => moving.scene.alloc(size, stream),
            0..62 if !moving.movables.is_empty() => {
                let index = moving.scene.rng.index(moving.movables.len());
                moving.free(index);
            }
            62..80 => {
                let held: Vec<u64> = moving.movables.iter().map(|movable| movable.pin().ptr().0).collect();
                let fixed: Vec<u64> = moving.scene.blocks.keys().copied().filter(|ptr| !held.contains(ptr)).collect();
                if !fixed.is_empty() {
                    let index = moving.scene.rng.index(fixed.len());
                    moving.scene.free(fixed[index]);
                }
            }
            80..92 if !moving.scene.blocks.is_empty() => {
                let index = moving.scene.rng.index(moving.scene.blocks.len());
                let (&ptr, &(size, home, _)) = moving.scene.blocks.iter().nth(index).unwrap();
                let stream = moving.scene.streams[home];
                moving.scene.device.launch(stream, &[Access::write(DevicePtr(ptr), size)], 20_000).unwrap();
                moving.scene.fill(DevicePtr(ptr));
            }
            92..95 => moved += moving.compact(PassLimits::default()).unwrap().moved,
            95..97 => {
                let report = moving.scene.defragment(PassLimits::default()).unwrap();
                meshed += report.meshed + report.paired;
            }
            97 => _ = moving.scene.allocator.empty_cache(0).unwrap(),
            _ => moving.scene.device.advance_clock(15_000),
        }
        if step % 64 == 63 {
            moving.scene.verify();
        }
    }
    moving.scene.verify();
    assert!(steps < 300 || moved + meshed > 0, "seed {seed}");
    moving.ends_clean();
}

#[test]
fn random_programs_keep_every_byte() {
    for seed in 0..16 {
        let text = ["", "magazine:0", "chunk_max:16MiB", "chunk:4MiB"][seed as usize % 4];
        program(seed, 400, text);
    }
}

#[test]
fn a_request_of_a_stream_takes_what_a_move_leaves_at_once() {
    let mut moving = sparse(13, SIZES[0], "magazine:0");
    let stream = moving.scene.streams[0];
    let report = moving.compact(PassLimits::default()).unwrap();
    assert!(report.moved > 0);
    let reserved = check(&moving.scene.allocator, 0).reserved.current;
    // The pages that the moves have emptied serve the same stream in stream order, before the copies are done.
    for _ in 0..4 {
        let ptr = moving.scene.allocator.raw_alloc(request(PAGE, stream)).unwrap();
        moving.scene.adopt(ptr, PAGE, 0);
    }
    assert_eq!(check(&moving.scene.allocator, 0).reserved.current, reserved);
    moving.scene.verify();
    moving.ends_clean();
}

/// One pass, step by step. `before` is told what is to move, between beginning and copying.
fn stepwise(moving: &mut Moving, commits: bool, before: impl FnOnce(&Moving, &[Move])) -> usize {
    let allocator = moving.scene.allocator.clone();
    let mut pass = allocator.begin_compaction(0, PassLimits::default()).unwrap();
    let moves: Vec<Move> = pass.moves().collect();
    before(moving, &moves);
    moving.scene.device.allocator_copies(true);
    pass.copy().unwrap();
    moving.scene.device.allocator_copies(false);
    assert_eq!(allocator.check_memory(0), Ok(vec![]), "between copy and commit");
    if commits {
        assert_eq!(pass.commit().moved, moves.len() as u64);
        moving.follow(&moves);
    } else {
        drop(pass);
        moving.scene.device.forget_owners();
    }
    allocator.empty_cache(0).unwrap();
    assert_eq!(allocator.check_memory(0), Ok(vec![]), "afterwards");
    moves.len()
}

const AIDS: [&str; 4] =
    ["redzone:512", "poison:check", "redzone:512,poison:check", "redzone:512,poison:fill,quarantine:8MiB,trace:100000"];

#[test]
fn debug_aids_follow_what_moves() {
    for aids in AIDS {
        for sizes in SIZES {
            for commits in [true, false] {
                let mut moving = sparse(11, sizes, aids);
                let stream = moving.scene.streams[0];
                let zones = aids.contains("redzone");
                let moved = stepwise(&mut moving, commits, |moving, moves| {
                    // What is found before the block moves is not told again after it.
                    let from = moves[0].from;
                    let size = moving.scene.blocks[&from.0].0;
                    if zones {
                        moving.scene.device.write(from.add(size), &[1], stream).unwrap();
                    }
                    let found = moving.scene.allocator.check_memory(0).unwrap();
                    assert_eq!(found.len(), usize::from(zones), "{aids}: {found:?}");
                    assert!(found.iter().all(|fault| fault.at == from.add(size)), "{found:?}");
                });
                assert!(moved > 4, "{moved}");
                moving.scene.verify();
                if zones && commits {
                    // At its new place a block has a red zone, too.
                    let ptr = moving.movables[0].pin().ptr();
                    let at = ptr.add(moving.scene.blocks[&ptr.0].0);
                    moving.scene.device.write(at, &[1], stream).unwrap();
                    let found = moving.scene.allocator.check_memory(0).unwrap();
                    assert_eq!(found.iter().map(|fault| fault.at).collect::<Vec<_>>(), [at], "{aids}");
                }
                moving.ends_clean();
            }
        }
    }
}

#[test]
fn blocks_without_a_red_zone_move_without_one() {
    for sizes in SIZES {
        let mut moving = Moving::new(512 * MIB, 12, "redzone:512");
        // Nothing is submitted during a capture, and so no red zone drawn.
        moving.scene.allocator.begin_capture(0).unwrap();
        (0..80).for_each(|_| moving.alloc(sizes[0], 0));
        moving.scene.allocator.end_capture(0).unwrap();
        moving.thin(25);
        moving.scene.allocator.empty_cache(0).unwrap();
        assert!(stepwise(&mut moving, true, |_, _| ()) > 0);
        moving.ends_clean();
    }
}

#[test]
fn a_block_that_moves_is_freed_once_in_the_trace() {
    let mut moving = sparse(13, SIZES[2], "quarantine:256MiB,trace:100000");
    let moves = stepwise(&mut moving, true, |_, _| ()) as u64;
    assert!(moves > 4);
    // All that is in quarantine goes back.
    moving.scene.allocator.empty_cache(0).unwrap();
    let events = moving.scene.allocator.events(0).unwrap();
    let count = |kind| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!(count(EventKind::Free), 0, "all are held back");
    assert_eq!(count(EventKind::FreeDeferred), count(EventKind::FreeCompleted));
    moving.ends_clean();
}
