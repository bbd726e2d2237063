//! Calls that cannot be served: each gives its own error, with the right numbers, and changes nothing.

mod common;

use std::fmt::Debug;

use common::rig::{KIB, MIB, check, check_empties, config, soft};
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, SoftDevice};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, ByteSize, Config, ConfigError, DevicePtr, DeviceSpec, Error, Limit, PoolId,
    Result, Stats, StreamId,
};

const SIZE_MAX: u64 = (u32::MAX as u64) * 512;
const ALIGNMENT_MAX: u64 = 2 * MIB;

/// Two devices of 64 MiB, on the first of which something is in use, cached and waited for.
struct Scene {
    allocator: Allocator,
    held: DevicePtr,
    small: DevicePtr,
}

impl Scene {
    fn new() -> Scene {
        Scene::with("")
    }

    fn with(text: &str) -> Scene {
        let spec = DeviceSpec::Software(ByteSize::mib(64));
        let allocator = Allocator::builder().device(spec.clone()).device(spec).config(config(text)).build().unwrap();
        let held = allocator.raw_alloc(AllocRequest::new(5 * MIB)).unwrap();
        let small = allocator.raw_alloc(AllocRequest::new(3000)).unwrap();
        for size in [600, 9 * KIB, 2 * MIB] {
            drop(allocator.alloc(AllocRequest::new(size)).unwrap());
            drop(allocator.alloc(AllocRequest::new(size).device(1)).unwrap());
        }
        Scene { allocator, held, small }
    }

    fn stats(&self) -> [Stats; 2] {
        [0, 1].map(|device| check(&self.allocator, device))
    }

    /// The error of a call that changes nothing.
    #[track_caller]
    fn refused<T: Debug>(&self, act: impl FnOnce(&Allocator) -> Result<T>) -> Error {
        let before = self.stats();
        let error = act(&self.allocator).unwrap_err();
        assert_eq!(before, self.stats(), "{error}");
        assert!(!error.to_string().is_empty());
        error
    }

    fn alloc(&self, size: u64) -> DevicePtr {
        self.allocator.raw_alloc(AllocRequest::new(size)).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for ptr in [self.held, self.small] {
                self.allocator.raw_free(ptr).unwrap();
            }
            [0, 1].into_iter().for_each(|device| check_empties(&self.allocator, device));
            assert_eq!(self.allocator.failed_drops(), 0);
        }
    }
}

// ---- sizes and alignments ----

#[test]
fn sizes_that_no_address_space_holds() {
    let scene = Scene::new();
    for size in [0, SIZE_MAX + 1, i64::MAX as u64, isize::MAX as u64, u64::MAX - 511, u64::MAX - 1, u64::MAX] {
        for alignment in [512, 4096, ALIGNMENT_MAX] {
            let request = AllocRequest::new(size).alignment(alignment);
            assert_eq!(scene.refused(|a| a.raw_alloc(request)), Error::InvalidSize { size, max: SIZE_MAX });
            let request = request.flags(AllocFlags::NO_GROW | AllocFlags::ZEROED);
            assert_eq!(scene.refused(|a| a.raw_alloc(request)), Error::InvalidSize { size, max: SIZE_MAX });
        }
    }
    let buffer = scene.refused(|a| a.alloc_buffer::<u64>(0, AllocRequest::new(1)).map(drop));
    assert_eq!(buffer, Error::InvalidSize { size: 0, max: SIZE_MAX });
    let buffer = scene.refused(|a| a.alloc_buffer::<u64>(usize::MAX, AllocRequest::new(1)).map(drop));
    assert_eq!(buffer, Error::InvalidSize { size: u64::MAX, max: SIZE_MAX });
}

#[test]
fn sizes_that_the_device_or_its_limit_never_holds() {
    let scene = Scene::new();
    let capacity = 64 * MIB;
    for size in [capacity + 1, 80 << 30, SIZE_MAX] {
        let error = scene.refused(|a| a.raw_alloc(AllocRequest::new(size)));
        assert_eq!(error, Error::NeverFits { size, capacity, limit: None });
    }
    let scene = Scene::with("limit:32MiB");
    let size = 32 * MIB + 1;
    let error = scene.refused(|a| a.raw_alloc(AllocRequest::new(size)));
    assert_eq!(error, Error::NeverFits { size, capacity, limit: Some(32 * MIB) });
}

#[test]
fn alignments_that_are_not_served() {
    let scene = Scene::new();
    for alignment in [0, 3, 513, 4095, 3 * MIB, 4 * MIB, 1 << 63, u64::MAX] {
        for size in [1, 512, 70_000, 3 * MIB] {
            let error = scene.refused(|a| a.raw_alloc(AllocRequest::new(size).alignment(alignment)));
            assert_eq!(error, Error::InvalidAlignment { alignment, max: ALIGNMENT_MAX });
        }
    }
}

// ---- pointers ----

#[track_caller]
fn assert_invalid(scene: &Scene, ptr: DevicePtr) {
    let expected = Error::InvalidPointer { ptr };
    assert_eq!(scene.refused(|a| a.raw_free(ptr)), expected);
    assert_eq!(scene.refused(|a| a.raw_free_on(ptr, 0)), expected);
    assert_eq!(scene.refused(|a| a.raw_free_on(ptr, 1)), expected);
    assert_eq!(scene.refused(|a| a.usable_size(ptr)), expected);
    assert_eq!(scene.refused(|a| a.record_stream(ptr, StreamId(1))), expected);
}

#[track_caller]
fn assert_freed(scene: &Scene, ptr: DevicePtr) {
    let expected = Error::DoubleFree { ptr };
    assert_eq!(scene.refused(|a| a.raw_free(ptr)), expected);
    assert_eq!(scene.refused(|a| a.raw_free_on(ptr, 0)), expected);
    assert_eq!(scene.refused(|a| a.usable_size(ptr)), expected);
    assert_eq!(scene.refused(|a| a.record_stream(ptr, StreamId(1))), expected);
}

#[test]
fn pointers_that_were_never_handed_out() {
    let scene = Scene::new();
    let local = 7u8;
    let foreign = Scene::new();
    for ptr in
        [DevicePtr::NULL, DevicePtr(1), DevicePtr(u64::MAX), DevicePtr(1 << 48), DevicePtr(&raw const local as u64)]
    {
        assert_invalid(&scene, ptr);
    }
    assert_invalid(&scene, foreign.held);
    assert_invalid(&scene, foreign.small);
}

#[test]
fn pointers_into_a_block_or_beside_it() {
    let scene = Scene::new();
    for offset in [1, 511, 512, 64 * KIB, MIB, 2 * MIB, 5 * MIB - 512] {
        assert_invalid(&scene, scene.held.add(offset));
    }
    for offset in [1, 256, 512, 2999] {
        assert_invalid(&scene, scene.small.add(offset));
    }
}

#[test]
fn blocks_freed_twice_wherever_they_went() {
    for (text, size) in [("", 3000), ("", 3 * MIB), ("", 200 * KIB), ("magazine:0", 3000), ("magazine:0", 3 * MIB)] {
        let scene = Scene::with(text);
        let ptr = scene.alloc(size);
        scene.allocator.raw_free(ptr).unwrap();
        assert_freed(&scene, ptr);
        // Its bytes have gone from the magazine to the pool, and back to the device.
        scene.allocator.empty_cache(0).unwrap();
        assert_freed(&scene, ptr);
        assert_freed(&scene, ptr);
    }
}

#[test]
fn a_block_that_waits_for_a_stream_is_freed_already() {
    let (device, allocator) = soft(SoftDevice::builder(64 * MIB), "");
    let stream = device.create_stream().unwrap();
    let ptr = allocator.raw_alloc(AllocRequest::new(MIB)).unwrap();
    device.launch(stream, &[Access::read(ptr, MIB)], 1_000_000).unwrap();
    allocator.record_stream(ptr, stream).unwrap();
    allocator.record_stream(ptr, stream).unwrap();
    allocator.raw_free(ptr).unwrap();
    let before = check(&allocator, 0);
    assert_eq!(before.pending, MIB);
    assert_eq!(allocator.raw_free(ptr), Err(Error::DoubleFree { ptr }));
    assert_eq!(allocator.record_stream(ptr, stream), Err(Error::DoubleFree { ptr }));
    assert_eq!(before, check(&allocator, 0));
    check_empties(&allocator, 0);
}

#[test]
fn a_stale_pointer_never_frees_a_block_that_starts_elsewhere() {
    let scene = Scene::with("magazine:0");
    // A slab of one class goes, and one of another class comes to the same page.
    let old: Vec<_> = (0..40).map(|_| scene.alloc(48 * KIB)).collect();
    old.iter().for_each(|&ptr| scene.allocator.raw_free(ptr).unwrap());
    scene.allocator.empty_cache(0).unwrap();
    let new: Vec<_> = (0..100).map(|_| scene.alloc(20 * KIB)).collect();
    for &ptr in old.iter().filter(|ptr| !new.contains(ptr)) {
        let error = scene.refused(|a| a.raw_free(ptr));
        assert!(matches!(error, Error::InvalidPointer { .. } | Error::DoubleFree { .. }), "{error}");
    }
    new.iter().for_each(|&ptr| scene.allocator.raw_free(ptr).unwrap());
    // The same with ranges of an arena.
    let old: Vec<_> = (0..20).map(|_| scene.alloc(300 * KIB)).collect();
    old.iter().for_each(|&ptr| scene.allocator.raw_free(ptr).unwrap());
    let new: Vec<_> = (0..12).map(|_| scene.alloc(470 * KIB)).collect();
    for &ptr in old.iter().filter(|ptr| !new.contains(ptr)) {
        let error = scene.refused(|a| a.raw_free(ptr));
        assert!(matches!(error, Error::InvalidPointer { .. } | Error::DoubleFree { .. }), "{error}");
    }
    new.iter().for_each(|&ptr| scene.allocator.raw_free(ptr).unwrap());
}

// ---- devices ----

#[test]
fn wrong_and_unknown_devices() {
    let scene = Scene::new();
    let ptr = scene.held;
    assert_eq!(scene.refused(|a| a.raw_free_on(ptr, 1)), Error::WrongDevice { ptr, given: 1, owner: 0 });
    let other = scene.allocator.raw_alloc(AllocRequest::new(MIB).device(1)).unwrap();
    let error = scene.refused(|a| a.raw_free_on(other, 0));
    assert_eq!(error, Error::WrongDevice { ptr: other, given: 0, owner: 1 });
    scene.allocator.raw_free_on(other, 1).unwrap();
    for device in [2, usize::MAX] {
        let unknown = Error::UnknownDevice { device, count: 2 };
        assert_eq!(scene.refused(|a| a.raw_alloc(AllocRequest::new(1).device(device))), unknown);
        assert_eq!(scene.refused(|a| a.raw_free_on(ptr, device)), unknown);
        assert_eq!(scene.refused(|a| a.stats(device)), unknown);
        assert_eq!(scene.refused(|a| a.empty_cache(device)), unknown);
        assert_eq!(scene.refused(|a| a.reset_peaks(device)), unknown);
        assert_eq!(scene.refused(|a| a.validate(device)), unknown);
        assert_eq!(scene.refused(|a| a.events(device)), unknown);
        assert_eq!(scene.refused(|a| a.driver(device).map(drop)), unknown);
        assert_eq!(scene.refused(|a| a.set_limit(device, Limit::Fraction(0.5))), unknown);
        assert_eq!(scene.refused(|a| a.begin_private_pool(device, PoolId(0, 1), |_| true)), unknown);
        assert_eq!(scene.refused(|a| a.end_private_pool(device, PoolId(0, 1))), unknown);
        assert_eq!(scene.refused(|a| a.release_private_pool(device, PoolId(0, 1))), unknown);
    }
}

// ---- limits and tags ----

#[test]
fn a_limit_below_use_is_refused() {
    let scene = Scene::new();
    scene.allocator.empty_cache(0).unwrap();
    let in_use = scene.stats()[0].reserved.current;
    for limit in [0, MIB, in_use - 1] {
        let error = scene.refused(|a| a.set_limit(0, Limit::Bytes(ByteSize(limit))));
        assert_eq!(error, Error::LimitBelowUse { limit, in_use });
    }
    scene.allocator.set_limit(0, Limit::Bytes(ByteSize(in_use))).unwrap();
    assert_eq!(scene.stats()[0].limit, in_use);
    let Error::OutOfMemory(shortage) = scene.allocator.raw_alloc(AllocRequest::new(in_use)).unwrap_err() else {
        panic!("there is no room")
    };
    assert_eq!((shortage.limit, shortage.reserved), (Some(in_use), in_use));
    scene.allocator.set_limit(0, Limit::Bytes(ByteSize::gib(4))).unwrap();
    assert_eq!(scene.stats()[0].limit, 64 * MIB, "never more than the device");
}

#[test]
fn a_limit_gives_cached_memory_back() {
    let scene = Scene::new();
    let ptr = scene.alloc(30 * MIB);
    scene.allocator.raw_free(ptr).unwrap();
    assert!(scene.stats()[0].reserved.current > 32 * MIB);
    scene.allocator.set_limit(0, Limit::Fraction(0.25)).unwrap();
    let stats = scene.stats()[0].clone();
    assert_eq!(stats.limit, 16 * MIB);
    assert!(stats.reserved.current <= 16 * MIB);
}

#[test]
fn limits_of_tags() {
    let scene = Scene::new();
    let tag = scene.allocator.tag("cache").unwrap();
    assert_eq!(scene.allocator.tag("cache").unwrap(), tag);
    scene.allocator.set_tag_limit(0, tag, Some(10_000.into())).unwrap();
    let request = |size| AllocRequest::new(size).tag(tag);
    let one = scene.allocator.raw_alloc(request(6_000)).unwrap();
    for size in [4_001, 10_000, MIB] {
        let error = scene.refused(|a| a.raw_alloc(request(size)));
        assert_eq!(error, Error::OverLimit { size, tag: tag.number(), in_use: 6_000, limit: 10_000 });
    }
    let error = scene.refused(|a| a.set_tag_limit(0, tag, Some(5_999.into())));
    assert_eq!(error, Error::LimitBelowUse { limit: 5_999, in_use: 6_000 });
    let two = scene.allocator.raw_alloc(request(4_000)).unwrap();
    assert!(matches!(scene.refused(|a| a.raw_alloc(request(1))), Error::OverLimit { in_use: 10_000, .. }));
    // Another device counts for itself.
    let elsewhere = scene.allocator.raw_alloc(request(50_000).device(1)).unwrap();
    scene.allocator.raw_free(one).unwrap();
    let three = scene.allocator.raw_alloc(request(6_000)).unwrap();
    scene.allocator.set_tag_limit(0, tag, None).unwrap();
    let four = scene.allocator.raw_alloc(request(MIB)).unwrap();
    for ptr in [two, three, four, elsewhere] {
        scene.allocator.raw_free(ptr).unwrap();
    }
    let none = scene.refused(|a| a.set_tag_limit(0, stratalloc::Tag::NONE, Some(1.into())));
    assert_eq!(none, Error::InvalidTag { tag: 0, max: 63 });
}

#[test]
fn there_are_63_tags() {
    let scene = Scene::new();
    for index in 1..64 {
        assert_eq!(scene.allocator.tag(&format!("tag {index}")).unwrap().number(), index);
    }
    assert_eq!(scene.refused(|a| a.tag("one more")), Error::InvalidTag { tag: 64, max: 63 });
    let last = scene.allocator.tag("tag 63").unwrap();
    assert_eq!(scene.allocator.tag_name(last).as_deref(), Some("tag 63"));
    let block = scene.allocator.alloc(AllocRequest::new(100).tag(last)).unwrap();
    assert_eq!(scene.stats()[0].tags, [(63, 100)]);
    drop(block);
}

// ---- private pools ----

#[test]
fn private_pools_used_out_of_turn() {
    let scene = Scene::new();
    let pool = PoolId(0, 9);
    let wrong = |what| Error::UnknownPool { pool: PoolId(0, 9), what };
    assert_eq!(scene.refused(|a| a.end_private_pool(0, pool)), wrong("is not being filled"));
    assert_eq!(scene.refused(|a| a.release_private_pool(0, pool)), wrong("does not exist"));
    scene.allocator.begin_private_pool(0, pool, |_| true).unwrap();
    let again = scene.refused(|a| a.begin_private_pool(0, pool, |_| false));
    assert_eq!(again, wrong("is being filled already"));
    let filling = scene.refused(|a| a.release_private_pool(0, pool));
    assert_eq!(filling, Error::Capturing { what: "releasing a private pool" });
    let empty = scene.refused(|a| a.empty_cache(0));
    assert_eq!(empty, Error::Capturing { what: "giving memory back to the device" });
    let limit = scene.refused(|a| a.set_limit(0, Limit::Bytes(ByteSize::mib(2))));
    assert_eq!(limit, Error::Capturing { what: "giving memory back to the device" });
    let inside = scene.alloc(MIB);
    scene.allocator.raw_free(inside).unwrap();
    scene.allocator.end_private_pool(0, pool).unwrap();
    assert_eq!(scene.refused(|a| a.end_private_pool(0, pool)), wrong("is not being filled"));
    scene.allocator.release_private_pool(0, pool).unwrap();
    assert_eq!(scene.refused(|a| a.release_private_pool(0, pool)), wrong("does not exist"));
}

// ---- what a request may not do ----

#[test]
fn a_request_that_may_not_grow_takes_only_what_is_there() {
    let scene = Scene::new();
    let calls = |name: &str| {
        let all = scene.allocator.driver(0).unwrap().calls();
        all.iter().find(|call| call.0 == name).map_or(0, |call| call.1)
    };
    scene.allocator.add_oom_observer(|_| panic!("observers are not asked"));
    let reserved = scene.stats()[0].reserved.current;
    let created = calls("cuMemCreate");
    for size in [9 * MIB, 40 * MIB] {
        let request = AllocRequest::new(size).flags(AllocFlags::NO_GROW);
        let Error::OutOfMemory(shortage) = scene.allocator.raw_alloc(request).unwrap_err() else { panic!("no room") };
        assert_eq!((shortage.size, shortage.reserved), (size, reserved));
    }
    let stats = scene.stats()[0].clone();
    assert_eq!((stats.reserved.current, calls("cuMemCreate"), calls("cuEventSynchronize")), (reserved, created, 0));
    // What is cached does serve it.
    let request = AllocRequest::new(2 * MIB).flags(AllocFlags::NO_GROW);
    drop(scene.allocator.alloc(request).unwrap());
}

#[test]
fn configurations_made_by_hand_are_checked_too() {
    type Set = fn(&mut Config);
    let set: [(&str, Set); 4] = [
        ("chunk", |config| config.chunk = ByteSize(0)),
        ("chunk", |config| config.chunk = ByteSize(6 << 20)),
        ("magazine", |config| config.magazine = f64::NAN),
        ("limit", |config| config.limit = Some(Limit::Fraction(-1.0))),
    ];
    for (key, set) in set {
        let mut config = Config::default();
        set(&mut config);
        let built = Allocator::builder().device(DeviceSpec::Software(ByteSize::mib(64))).config(config).build();
        assert!(matches!(built, Err(Error::Config(ConfigError::InvalidValue { key: refused, .. })) if refused == key));
    }
}

#[test]
fn filters_may_own_memory() {
    let (_, allocator) = soft(SoftDevice::builder(64 * MIB), "");
    let owning = || {
        let block = allocator.alloc(AllocRequest::new(3 * MIB)).unwrap().into_owned();
        move |_: StreamId| block.size() == 0
    };
    let filter = owning();
    allocator.begin_private_pool(0, PoolId(0, 1), filter).unwrap();
    allocator.begin_private_pool(0, PoolId(0, 1), owning()).unwrap_err();
    allocator.end_private_pool(0, PoolId(0, 1)).unwrap();
    allocator.release_private_pool(0, PoolId(0, 1)).unwrap();
    check_empties(&allocator, 0);
}

#[test]
fn a_tag_may_be_limited_to_a_part_of_the_device() {
    let (_, allocator) = soft(SoftDevice::builder(64 * MIB), "");
    let tag = allocator.tag("half").unwrap();
    allocator.set_tag_limit(0, tag, Some(stratalloc::Limit::Fraction(0.5))).unwrap();
    let held = allocator.raw_alloc(AllocRequest::new(32 * MIB).tag(tag)).unwrap();
    let error = allocator.raw_alloc(AllocRequest::new(1).tag(tag)).unwrap_err();
    assert_eq!(error, Error::OverLimit { size: 1, tag: tag.number(), in_use: 32 * MIB, limit: 32 * MIB });
    allocator.raw_free(held).unwrap();
    check_empties(&allocator, 0);
}
