//! Shortages of known causes: the explanation names the cause, and what it says to do, done, makes the request succeed.
#![allow(clippy::print_stdout, reason = "what is told is worth a look: --nocapture shows it")]

#[path = "../common/mod.rs"]
mod common;
mod host;
mod random;
mod scene;

use common::rig::{KIB, MIB};
use scene::{Scene, device};
use stratalloc::driver::Driver;
use stratalloc::driver::DriverErrorKind::{OutOfMemory, Sticky};
use stratalloc::driver::fault::{CallKind, Fault, When};
use stratalloc::{AllocFlags, AllocRequest, Error, Lifetime, OomCause, OomRemedy, StreamId};

/// A cause, planted by `plant`, which takes more settings.
struct Planted {
    cause: OomCause,
    /// What is to be proposed before anything else.
    is_remedy: fn(&OomRemedy) -> bool,
    plant: fn(&str) -> Scene,
}

impl Planted {
    /// The request fails for the cause that was planted; then everything that is said to suffice does, each on its own.
    #[track_caller]
    fn check(&self) {
        let mut scene = (self.plant)("");
        let (error, explanation) = scene.fail();
        let text = explanation.to_string();
        println!("{text}\n{error}\n");
        assert_eq!(explanation.cause, self.cause, "{text}");
        let remedy = explanation.remedy().unwrap_or_else(|| panic!("nothing is proposed: {text}"));
        assert!((self.is_remedy)(remedy), "{remedy:?}: {text}");
        assert!(text.lines().count() < 40, "{text}");
        assert!(text.lines().next().unwrap().ends_with(&explanation.verdict()), "{text}");
        assert!(explanation.advice.is_sorted_by_key(|advice| !advice.suffices), "{text}");
        drop(scene);
        for (index, advice) in explanation.advice.iter().enumerate().filter(|(_, advice)| advice.suffices) {
            let mut scene = (self.plant)("");
            let (_, again) = scene.fail();
            let remedy = &again.advice[index].remedy;
            assert_eq!(std::mem::discriminant(remedy), std::mem::discriminant(&advice.remedy), "{again}");
            if let OomRemedy::Configure { key, value } = remedy {
                drop(scene);
                scene = (self.plant)(&format!("{key}:{value}"));
            } else {
                scene.carry_out(remedy);
            }
            if let Err(error) = scene.ask() {
                panic!(
                    "'{remedy}' does not help: {error}\nbefore: {text}\nafter: {}",
                    scene.allocator.last_oom(0).unwrap().unwrap()
                );
            }
            scene.allocator.validate(0).unwrap().unwrap();
        }
    }
}

fn mib(size: u64) -> AllocRequest {
    AllocRequest::new(size * MIB)
}

macro_rules! planted {
    ($($(#[$doc:meta])* $name:ident: $cause:ident, $remedy:pat, $plant:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() {
            Planted { cause: OomCause::$cause, is_remedy: |remedy| matches!(remedy, $remedy), plant: $plant }.check();
        })*
    };
}

planted! {
    larger_than_the_device: LargerThanDevice, OomRemedy::AskForLess(_), |more| {
        Scene::new(device(64), "", more).asking(mib(65))
    };
    larger_than_the_limit: LargerThanLimit, OomRemedy::RaiseLimit(_), |more| {
        Scene::new(device(64), "limit:16MiB", more).asking(mib(20))
    };
    a_limit_is_reached: Limit, OomRemedy::RaiseLimit(_), |more| {
        let mut scene = Scene::new(device(64), "limit:32MiB", more);
        scene.hold(mib(30));
        scene.asking(mib(4))
    };
    another_process_took_memory: OtherProcesses, OomRemedy::FreeElsewhere(_), |more| {
        let mut scene = Scene::new(device(64), "", more);
        scene.others_take(40);
        scene.hold(mib(10));
        scene.asking(mib(20))
    };
    live_blocks_fill_the_device: InUse, OomRemedy::Free(_), |more| {
        let mut scene = Scene::new(device(64), "trace:1000", more);
        let [weights, cache] = ["weights", "cache"].map(|name| scene.allocator.tag(name).unwrap());
        scene.hold(mib(40).tag(weights));
        scene.hold(mib(20).tag(cache));
        scene.asking(mib(30).tag(cache))
    };
    many_blocks_of_a_tag_were_leaked: InUse, OomRemedy::FreeTag(1), |more| {
        let mut scene = Scene::new(device(64), "", more);
        let leak = scene.allocator.tag("leak").unwrap();
        (0..56 * 8).for_each(|_| _ = scene.hold(AllocRequest::new(128 * KIB).tag(leak)));
        scene.hold(mib(4));
        scene.asking(mib(16))
    };
    /// The block's own stream is idle, but one that was recorded for it is not.
    a_recorded_stream_is_busy: Streams, OomRemedy::Synchronize(_), |more| {
        let mut scene = Scene::new(device(64), "", more);
        let [home, other] = [0; 2].map(|_| scene.device.create_stream().unwrap());
        let ptr = scene.hold(mib(20).stream(home));
        scene.busy(other, ptr);
        scene.free(ptr);
        scene.asking(mib(20).stream(home).flags(AllocFlags::NO_GROW))
    };
    /// Also: the request could be let wait on the device.
    another_stream_has_not_passed_it: Streams, OomRemedy::Synchronize(_), |more| {
        let mut scene = Scene::new(device(64), "", more);
        let [busy, asking] = [0; 2].map(|_| scene.device.create_stream().unwrap());
        let ptr = scene.hold(mib(20).stream(busy));
        scene.busy(busy, ptr);
        scene.free(ptr);
        scene.asking(mib(20).stream(asking).flags(AllocFlags::NO_GROW))
    };
    a_capture_is_under_way: Capture, OomRemedy::EndCapture, |more| {
        let mut scene = Scene::new(device(64), "", more);
        let [busy, asking] = [0; 2].map(|_| scene.device.create_stream().unwrap());
        let ptr = scene.hold(mib(60).stream(busy));
        scene.busy(busy, ptr);
        scene.free(ptr);
        scene.allocator.begin_capture(0).unwrap();
        scene.asking(mib(20).stream(asking))
    };
    a_graph_keeps_its_memory: PrivatePool, OomRemedy::ReleasePool(scene::POOL), |more| {
        let mut scene = Scene::new(device(64), "", more);
        scene.fill_pool(50 * MIB, true);
        scene.asking(mib(40))
    };
    a_private_pool_could_lend: PrivatePool, OomRemedy::LendPool(scene::POOL), |more| {
        let mut scene = Scene::new(device(64), "", more);
        scene.fill_pool(50 * MIB, false);
        scene.asking(mib(40))
    };
    nothing_may_be_taken_from_the_device: NoGrow, OomRemedy::AllowGrowth, |more| {
        Scene::new(device(64), "", more).asking(mib(20).flags(AllocFlags::NO_GROW))
    };
    an_alignment_is_too_much: Alignment, OomRemedy::LowerAlignment(512), |more| {
        Scene::new(device(16).vmm(false), "", more).asking(mib(15).alignment(2 * MIB))
    };
    /// Between two stretches that would do together.
    a_block_pins_a_segment: FragmentedSegments, OomRemedy::FreePins(_), |more| {
        let mut scene = Scene::new(device(64).vmm(false), "", more);
        let all = scene.hold(mib(60));
        scene.free(all);
        let below = scene.hold(mib(30));
        scene.hold(mib(1));
        scene.free(below);
        scene.asking(mib(40))
    };
    free_memory_lies_in_two_pieces: FragmentedSegments, OomRemedy::Split(_), |more| {
        let mut scene = Scene::new(device(64).vmm(false), "", more);
        let all = scene.hold(mib(60));
        scene.free(all);
        let below = scene.hold(mib(30));
        scene.hold(mib(10));
        scene.free(below);
        scene.asking(mib(40))
    };
    blocks_pin_chunks: FragmentedChunks, OomRemedy::FreePins(_), |more| {
        let mut scene = Scene::new(device(64), "chunk:32MiB", more);
        let large = [0; 2].map(|_| {
            let large = scene.hold(mib(31));
            scene.hold(mib(1));
            large
        });
        large.into_iter().for_each(|ptr| scene.free(ptr));
        scene.asking(mib(40))
    };
    slots_pin_slabs: FragmentedSlabs, OomRemedy::FreePins(_), |more| {
        let mut scene = Scene::new(device(16), "thrifty:true", more);
        let slots: Vec<_> = (0..8 * 512).map(|_| scene.hold(AllocRequest::new(4096))).collect();
        slots.into_iter().enumerate().filter(|(index, _)| index % 512 != 7).for_each(|(_, ptr)| scene.free(ptr));
        scene.asking(mib(1))
    };
    /// One slot in each slab, each at another place.
    slabs_could_share_pages: FragmentedSlabs, OomRemedy::Defragment, |more| {
        let mut scene = Scene::new(device(16), "thrifty:true", more);
        let slots: Vec<_> = (0..8 * 512).map(|_| scene.hold(AllocRequest::new(4096))).collect();
        let stays = |index: usize| index % 512 == index / 512;
        slots.into_iter().enumerate().filter(|&(index, _)| !stays(index)).for_each(|(_, ptr)| scene.free(ptr));
        scene.asking(mib(1))
    };
    a_tag_has_a_limit: TagLimit, OomRemedy::RaiseTagLimit { tag: 1, .. }, |more| {
        let mut scene = Scene::new(device(64), "", more);
        let cache = scene.allocator.tag("cache").unwrap();
        scene.allocator.set_tag_limit(0, cache, Some((10 * MIB).into())).unwrap();
        scene.hold(mib(8).tag(cache));
        scene.asking(mib(4).tag(cache))
    };
    the_driver_makes_no_more_mappings: Mappings, OomRemedy::Configure { key: "chunk", .. }, |more| {
        let mut scene = Scene::new(device(128).max_mappings(Some(8)), "chunk_max:2MiB", more);
        scene.hold(mib(12));
        scene.asking(mib(10))
    };
    addresses_are_used_up: Addresses, OomRemedy::Configure { key: "address_space", .. }, |more| {
        // Such a device has addresses for sixteen times its memory.
        let mut scene = Scene::new(device(64 << 10), "address_space:64,thrifty:true", more);
        scene.hold(mib(2));
        scene.asking(AllocRequest::new(1000))
    };
    a_block_wants_an_allocation_of_its_own: Dedicated, OomRemedy::DropDedicated, |more| {
        let mut scene = Scene::new(device(16), "", more);
        scene.hold(mib(15));
        scene.asking(AllocRequest::new(600 * KIB).flags(AllocFlags::DEDICATED))
    };
    a_block_wants_to_lie_apart: Persistent, OomRemedy::DropPersistent, |more| {
        let mut scene = Scene::new(device(16), "", more);
        scene.hold(mib(15));
        scene.asking(AllocRequest::new(600 * KIB).lifetime(Lifetime::Persistent))
    };
    chunks_are_larger_than_what_is_left: ChunkSize, OomRemedy::Configure { key: "chunk", .. }, |more| {
        let mut scene = Scene::new(device(48), "chunk:32MiB", more);
        scene.hold(mib(30));
        scene.asking(mib(8))
    };
    the_driver_refuses_for_a_while: DriverRefused, OomRemedy::Retry, |more| {
        let scene = Scene::new(device(64), "", more);
        scene.fault.inject(Fault { when: When::From(1), kind: OutOfMemory, only: Some(CallKind::Create) });
        scene.asking(mib(20))
    };
}

/// Nothing helps, and nothing is said to.
#[test]
fn a_dead_driver_is_called_dead() {
    let mut scene = Scene::new(device(64), "thrifty:true", "");
    scene.hold(mib(2));
    scene.request = mib(4);
    scene.fault.inject(Fault { when: When::From(1), kind: Sticky, only: None });
    let (error, explanation) = scene.fail();
    assert!(matches!(error, Error::Driver(ref error) if error.kind == Sticky), "{error}");
    assert_eq!(explanation.cause, OomCause::DriverDead);
    assert_eq!((explanation.remedy(), &explanation.advice[0].remedy), (None, &OomRemedy::Restart), "{explanation}");
    assert_eq!(explanation.device_free, None, "the driver says nothing any more");
}

/// What is told is what is.
#[test]
fn the_figures_are_right() {
    let mut scene = Scene::new(device(64), "limit:48MiB,trace:100,chunk_max:2MiB", "");
    let stream = scene.device.create_stream().unwrap();
    let (weights, cache) = (scene.allocator.tag("weights").unwrap(), scene.allocator.tag("cache").unwrap());
    scene.others_take(8);
    let low = scene.hold(mib(8).tag(weights));
    let gap = scene.hold(mib(3).tag(cache));
    let high = scene.hold(AllocRequest::new(5 * MIB + 5).tag(cache).stream(StreamId::DEFAULT));
    scene.hold(mib(28).stream(stream));
    scene.free(gap);
    scene.request = mib(10).tag(cache);
    let (_, told) = scene.fail();
    println!("{told}");
    assert_eq!((told.capacity, told.limit, told.elsewhere), (64 * MIB, Some(48 * MIB), Some(8 * MIB)));
    assert_eq!((told.live, told.reserved), (41 * MIB + 5, scene.allocator.stats(0).unwrap().reserved.current));
    assert_eq!(told.device_free, Some(56 * MIB - told.reserved));
    let names: Vec<(&str, u64)> = told.tags.iter().map(|tag| (tag.name.as_str(), tag.blocks)).collect();
    assert_eq!(names, [("none", 1), ("weights", 1), ("cache", 1)]);
    let largest = told.gaps.iter().find(|found| found.ptr == gap).unwrap();
    assert_eq!(largest.size, 3 * MIB);
    let beside = largest.beside.map(|beside| match beside {
        stratalloc::OomNeighbour::Block(block) => (block.ptr, block.tag, block.age.map(|(events, _)| events)),
        other => panic!("{other:?}"),
    });
    // Each block, its mapping, the stream's, the free and the shortage are events.
    assert_eq!(beside.map(|(ptr, tag, _)| (ptr, tag)), [(low, 1), (high, 2)]);
    assert!(beside[0].2.unwrap() > beside[1].2.unwrap(), "{beside:?}");
    assert!(told.rungs.iter().any(|rung| rung.name == "new_chunk"), "{told}");
}
