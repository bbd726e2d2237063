//! What requests may ask for beyond bytes, and several devices side by side.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use common::rig::{MIB, Rng, check, check_empties, soft, stats};
use stratalloc::block::ClassId;
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, Backing, SoftDevice};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, DevicePtr, DeviceSpec, Error, Lifetime, OomAction, PoolId, Rung, StreamId,
};

fn is_zero(allocator: &Allocator, ptr: DevicePtr, size: u64) -> bool {
    let mut bytes = vec![1; size as usize];
    allocator.driver(0).unwrap().read(&mut bytes, ptr, StreamId::DEFAULT).unwrap();
    bytes.iter().all(|&byte| byte == 0)
}

fn dirty(allocator: &Allocator, size: u64) -> DevicePtr {
    let ptr = allocator.raw_alloc(AllocRequest::new(size)).unwrap();
    allocator.driver(0).unwrap().fill(ptr, size, 0xab, StreamId::DEFAULT).unwrap();
    ptr
}

#[test]
fn zeroed_memory_is_zero() {
    let (_, allocator) = soft(SoftDevice::builder(64 * MIB), "");
    for size in [1, 700, 9000, MIB, 3 * MIB + 7] {
        allocator.raw_free(dirty(&allocator, size)).unwrap();
        let request = AllocRequest::new(size).flags(AllocFlags::ZEROED);
        let block = allocator.alloc(request).unwrap();
        assert!(is_zero(&allocator, block.ptr(), size), "{size}");
    }
    check_empties(&allocator, 0);
}

#[test]
fn zeroed_memory_is_zero_after_an_observer_made_room() {
    let (_, allocator) = soft(SoftDevice::builder(16 * MIB), "");
    let hoard = Arc::new(Mutex::new(Some(dirty(&allocator, 14 * MIB))));
    let (again, given) = (allocator.clone(), hoard.clone());
    allocator.add_oom_observer(move |shortage| match given.lock().take() {
        Some(ptr) => {
            assert_eq!((shortage.size, shortage.live), (10 * MIB, 14 * MIB));
            again.raw_free(ptr).unwrap();
            OomAction::Retry
        }
        None => OomAction::Fail,
    });
    let block = allocator.alloc(AllocRequest::new(10 * MIB).flags(AllocFlags::ZEROED)).unwrap();
    assert!(is_zero(&allocator, block.ptr(), 10 * MIB));
    assert_eq!(check(&allocator, 0).rung(Rung::Observer), 1);
    drop(block);
    check_empties(&allocator, 0);
}

#[test]
fn observers_are_asked_with_numbers_and_may_be_removed() {
    let (_, allocator) = soft(SoftDevice::builder(16 * MIB), "");
    let asked = Arc::new(AtomicBool::new(false));
    let seen = asked.clone();
    let number = allocator.add_oom_observer(move |shortage| {
        assert_eq!((shortage.size, shortage.capacity), (10 * MIB, 16 * MIB));
        seen.store(true, Relaxed);
        OomAction::Fail
    });
    let held = allocator.alloc(AllocRequest::new(8 * MIB)).unwrap();
    assert!(matches!(allocator.raw_alloc(AllocRequest::new(10 * MIB)), Err(Error::OutOfMemory(_))));
    assert!(asked.swap(false, Relaxed));
    assert!(allocator.remove_oom_observer(number) && !allocator.remove_oom_observer(number));
    assert!(allocator.raw_alloc(AllocRequest::new(10 * MIB)).is_err());
    assert!(!asked.load(Relaxed));
    // One that always wants another try is not asked for ever.
    allocator.add_oom_observer(|_| OomAction::Retry);
    assert!(matches!(allocator.raw_alloc(AllocRequest::new(10 * MIB)), Err(Error::OutOfMemory(_))));
    drop(held);
    check_empties(&allocator, 0);
}

#[test]
fn lifetimes_lie_apart_and_come_back() {
    let (_, allocator) = soft(SoftDevice::builder(64 * MIB), "");
    let alloc = |lifetime| allocator.raw_alloc(AllocRequest::new(600 << 10).lifetime(lifetime)).unwrap();
    let held: Vec<_> = (0..30)
        .flat_map(|_| [Lifetime::Persistent, Lifetime::Transient, Lifetime::Unknown])
        .map(|lifetime| (lifetime, alloc(lifetime)))
        .collect();
    let pages = |persistent: bool| {
        let of = held.iter().filter(move |(lifetime, _)| (*lifetime == Lifetime::Persistent) == persistent);
        of.map(|(_, ptr)| ptr.0 / (2 * MIB)).collect::<Vec<_>>()
    };
    assert!(pages(true).iter().all(|page| !pages(false).contains(page)));
    held.iter().for_each(|&(_, ptr)| allocator.raw_free(ptr).unwrap());
    check_empties(&allocator, 0);
}

#[test]
fn a_page_that_went_from_one_device_to_another_is_freed_there() {
    // Without virtual memory management addresses go back to the system, and may turn up on another device.
    let device = || DeviceSpec::Driver(SoftDevice::builder(32 * MIB).vmm(false).build().unwrap());
    let allocator = Allocator::builder().device(device()).device(device()).build().unwrap();
    for (size, device) in
        [(8 * MIB, 0), (8 * MIB, 1), (3000, 0), (3000, 1), (MIB, 0), (MIB, 1), (4 * MIB, 0), (8 * MIB, 1)]
    {
        let ptr = allocator.raw_alloc(AllocRequest::new(size).device(device)).unwrap();
        assert!(allocator.usable_size(ptr).unwrap() >= size);
        allocator.record_stream(ptr, StreamId(0)).unwrap();
        allocator.raw_free_on(ptr, device).unwrap();
        let ptr = allocator.raw_alloc(AllocRequest::new(size).device(device)).unwrap();
        allocator.raw_free(ptr).unwrap();
        [0, 1].into_iter().for_each(|device| check_empties(&allocator, device));
    }
}

// ---- private pools ----

/// A graph whose memory came from a private pool, on a stream that the allocator never hears of.
struct Replay {
    device: Arc<SoftDevice>,
    allocator: Allocator,
    home: StreamId,
    unknown: StreamId,
    other: StreamId,
}

impl Replay {
    fn new(text: &str, event_lag_ns: u64) -> Replay {
        let (device, allocator) = soft(SoftDevice::builder(16 * MIB).checker(true).event_lag_ns(event_lag_ns), text);
        let [home, unknown, other] = [0; 3].map(|_| device.create_stream().unwrap());
        Replay { device, allocator, home, unknown, other }
    }

    /// Memory that the pool hands out during a capture.
    fn capture(&self, size: u64, count: usize) -> Vec<DevicePtr> {
        self.allocator.begin_private_pool(0, PoolId(0, 1), |_| true).unwrap();
        let held = (0..count).map(|_| self.alloc(size, self.home)).collect();
        self.allocator.end_private_pool(0, PoolId(0, 1)).unwrap();
        held
    }

    fn alloc(&self, size: u64, stream: StreamId) -> DevicePtr {
        let ptr = self.allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
        self.device.note_alloc(ptr, size, stream);
        ptr
    }

    fn free(&self, held: &[DevicePtr], size: u64) {
        for &ptr in held {
            self.device.note_free(ptr, size);
            self.allocator.raw_free(ptr).unwrap();
        }
    }

    /// A replay under way that uses the memory.
    fn launch(&self, held: &[DevicePtr], size: u64) {
        let event = self.device.create_event().unwrap();
        self.device.record_event(event, self.home).unwrap();
        self.device.wait_event(self.unknown, event).unwrap();
        self.device.destroy_event(event).unwrap();
        let accesses: Vec<_> = held.iter().map(|&ptr| Access::write(ptr, size)).collect();
        self.device.launch(self.unknown, &accesses, 1_000_000).unwrap();
    }

    #[track_caller]
    fn is_clean(&self) {
        if let Some(report) = self.device.reports().first() {
            panic!("{report}");
        }
    }
}

/// The memory of a released pool is nobody's before the device was waited for: a replay may still use it.
fn released_pools_wait_for_the_device(text: &str, size: u64, count: usize, freed_before_release: bool) {
    for event_lag_ns in [0, 1000] {
        released_pool_waits(&Replay::new(text, event_lag_ns), size, count, freed_before_release);
    }
}

fn released_pool_waits(scene: &Replay, size: u64, count: usize, freed_before_release: bool) {
    let held = scene.capture(size, count);
    scene.launch(&held, size);
    if freed_before_release {
        scene.free(&held, size);
        scene.allocator.release_private_pool(0, PoolId(0, 1)).unwrap();
    } else {
        scene.allocator.release_private_pool(0, PoolId(0, 1)).unwrap();
        scene.free(&held, size);
    }
    for (size, stream) in [(size, scene.home), (size, scene.other), (14 * MIB, scene.other)] {
        let ptr = scene.alloc(size, stream);
        scene.is_clean();
        check(&scene.allocator, 0);
        scene.free(&[ptr], size);
    }
    check_empties(&scene.allocator, 0);
    scene.is_clean();
}

#[test]
fn a_released_pool_of_large_blocks_waits_for_the_device() {
    released_pools_wait_for_the_device("", 5 * MIB, 2, true);
    released_pools_wait_for_the_device("", 3 * MIB, 4, true);
}

#[test]
fn a_released_pool_of_slots_waits_for_the_device() {
    released_pools_wait_for_the_device("", 48 << 10, 170, true);
    released_pools_wait_for_the_device("magazine:0", 48 << 10, 170, true);
}

#[test]
fn a_released_pool_waits_for_the_device_though_streams_may_wait() {
    released_pools_wait_for_the_device("cross_stream_wait:true", 5 * MIB, 2, true);
    released_pools_wait_for_the_device("cross_stream_wait:true", 48 << 10, 170, true);
}

#[test]
fn blocks_freed_after_their_pool_wait_for_the_device() {
    released_pools_wait_for_the_device("", 5 * MIB, 2, false);
    released_pools_wait_for_the_device("", 48 << 10, 170, false);
    released_pools_wait_for_the_device("cross_stream_wait:true", 5 * MIB, 2, false);
}

#[test]
fn a_private_pool_keeps_its_memory_and_others_theirs() {
    let scene = Replay::new("", 1000);
    let outside = scene.alloc(MIB, scene.home);
    scene.free(&[outside], MIB);
    let held = scene.capture(MIB, 3);
    assert!(!held.contains(&outside));
    scene.free(&held, MIB);
    let events = stats(&scene.allocator);
    for _ in 0..4 {
        let ptr = scene.alloc(MIB, scene.home);
        assert!(!held.contains(&ptr));
    }
    assert!(stats(&scene.allocator).allocs > events.allocs);
    // A second capture into the same pool finds what the first left.
    let second = scene.capture(MIB, 3);
    assert!(second.iter().all(|ptr| held.contains(ptr)));
    scene.is_clean();
}

#[test]
fn blocks_of_a_pool_that_waited_for_streams_come_back_too() {
    let scene = Replay::new("", 1000);
    for size in [9000, 3 * MIB] {
        let held = scene.capture(size, 2);
        scene.allocator.record_stream(held[0], scene.other).unwrap();
        scene.free(&held, size);
        scene.allocator.release_private_pool(0, PoolId(0, 1)).unwrap();
        check_empties(&scene.allocator, 0);
    }
}

#[test]
fn a_dedicated_block_shares_its_memory_with_nothing() {
    use stratalloc::driver::call::CallKind;
    for vmm in [true, false] {
        let (_device, allocator) = soft(SoftDevice::builder(256 * MIB).backing(Backing::AddressesOnly).vmm(vmm), "");
        let plain = || allocator.driver(0).unwrap().calls().of(CallKind::AllocPlain).count;
        let dedicated = |size| allocator.raw_alloc(AllocRequest::new(size).flags(AllocFlags::DEDICATED));
        let first = dedicated(3 * MIB).unwrap();
        assert_eq!((plain(), allocator.usable_size(first)), (1, Ok(4 * MIB)));
        assert!(allocator.block_at(first.add(MIB)).unwrap().1.dedicated);
        allocator.raw_free(first).unwrap();
        assert_eq!(allocator.raw_free(first), Err(Error::DoubleFree { ptr: first }));
        let others: Vec<DevicePtr> =
            [4 * MIB, 3 * MIB, MIB, 512].map(|size| allocator.raw_alloc(AllocRequest::new(size)).unwrap()).into();
        let inside = |ptr: &&DevicePtr| (first.0..first.0 + 4 * MIB).contains(&ptr.0);
        assert_eq!(others.iter().find(inside), None, "an ordinary request got dedicated memory");
        let before = plain();
        assert_ne!(dedicated(MIB).unwrap(), first, "a dedicated block was split");
        assert_eq!(plain(), before + 1);
        assert_eq!(dedicated(4 * MIB).unwrap(), first, "the same size gets it again");
        allocator.raw_free(first).unwrap();
        let reserved = stats(&allocator).reserved.current;
        allocator.empty_cache(0).unwrap();
        assert!(stats(&allocator).reserved.current <= reserved - 4 * MIB, "it goes back to the device");
        let alignment = AllocRequest::new(MIB).alignment(4096).flags(AllocFlags::DEDICATED);
        assert!(matches!(allocator.raw_alloc(alignment), Err(Error::InvalidAlignment { max: 512, .. })));
        check(&allocator, 0);
    }
}

#[test]
fn a_dedicated_block_is_not_made_of_chunks_that_other_streams_have_free() {
    use stratalloc::driver::call::CallKind;
    for waits in ["true", "scarce", "false"] {
        let (device, allocator) =
            soft(SoftDevice::builder(64 * MIB).backing(Backing::AddressesOnly), &format!("cross_stream_wait:{waits}"));
        let other = device.create_stream().unwrap();
        let chunks: Vec<DevicePtr> =
            (0..8).map(|_| allocator.raw_alloc(AllocRequest::new(8 * MIB).stream(other)).unwrap()).collect();
        for ptr in chunks {
            device.launch(other, &[Access::write(ptr, 8 * MIB)], 1_000_000).unwrap();
            allocator.raw_free(ptr).unwrap();
        }
        let plain = || allocator.driver(0).unwrap().calls().of(CallKind::AllocPlain).count;
        let before = plain();
        let block = allocator.raw_alloc(AllocRequest::new(12 * MIB).flags(AllocFlags::DEDICATED)).unwrap();
        assert_eq!(plain(), before + 1, "cross_stream_wait:{waits}: it is memory of its own");
        allocator.raw_free(block).unwrap();
        check(&allocator, 0);
    }
}

/// Windows of the directory are wide as long as all blocks are large, and become narrow with the first that is not.
#[test]
fn large_blocks_are_found_when_small_ones_come() {
    let mut rng = Rng(5);
    for round in 0..120 {
        let (_, allocator) = soft(SoftDevice::builder(1024 * MIB).backing(Backing::AddressesOnly), "magazine:0");
        let persistent = [Lifetime::Unknown, Lifetime::Persistent][round % 2];
        let request = |bytes| AllocRequest::new(bytes).lifetime(persistent);
        let mut live = Vec::new();
        for _ in 0..60 {
            if live.is_empty() || rng.percent(50) {
                live.push(allocator.raw_alloc(request((1 + rng.below(6)) * MIB / 2)).unwrap());
            } else {
                allocator.raw_free(live.swap_remove(rng.index(live.len()))).unwrap();
            }
        }
        live.push(allocator.raw_alloc(request([4096, MIB / 8][round / 2 % 2])).unwrap());
        for ptr in live {
            allocator.raw_free(ptr).unwrap();
        }
        check(&allocator, 0);
    }
}

#[test]
fn chunks_are_large_as_long_as_32_gib_are_free() {
    const GIB: u64 = 1 << 30;
    let (_, allocator) = soft(SoftDevice::builder(80 * GIB).backing(Backing::AddressesOnly), "");
    // Bytes of a chunk, in the mean of those that more memory is taken in.
    let mean_of = |to: u64| {
        let before = stats(&allocator);
        while stats(&allocator).reserved.current < to {
            allocator.raw_alloc(AllocRequest::new(512 * MIB)).unwrap();
        }
        let after = stats(&allocator);
        (after.reserved.current - before.reserved.current) / (after.chunks - before.chunks)
    };
    // 20 MiB on a device of 80 GiB; what is left of a block is a smaller one.
    let of_the_first = [24, 47].map(|gib| mean_of(gib * GIB));
    assert!(of_the_first.iter().all(|&mean| mean > 16 * MIB), "{of_the_first:?}");
    mean_of(48 * GIB);
    assert_eq!(mean_of(79 * GIB), 2 * MIB, "what is left has to do");
    check(&allocator, 0);
}

/// What a size does not use of the memory that it has to itself is in proportion to what it does use.
#[test]
fn a_few_small_blocks_of_each_size_take_little() {
    let (_, allocator) = soft(SoftDevice::builder(1024 * MIB), "thrifty:true");
    let sizes: Vec<u64> = (0..ClassId::COUNT).filter_map(ClassId::from_index).map(ClassId::size).collect();
    for stream in (1..=4).map(StreamId) {
        for &size in &sizes {
            allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
        }
    }
    // A page of 2 MiB for each would be 80 MiB a stream.
    let one_each = check(&allocator, 0).reserved.current;
    assert!(one_each <= 4 * 16 * MIB, "{one_each} bytes for {} blocks", 4 * sizes.len());
    let (mut blocks, size) = (0, 4096);
    for count in [10, 100, 1000, 10_000] {
        while blocks < count {
            allocator.raw_alloc(AllocRequest::new(size)).unwrap();
            blocks += 1;
        }
        let more = check(&allocator, 0).reserved.current - one_each;
        assert!(more <= 2 * blocks * size + 2 * MIB, "{more} bytes for {blocks} blocks of {size}");
    }
}

/// Sizes and streams share the numbers that slabs have; memory is used up before those are.
#[test]
fn many_sizes_fill_a_device() {
    for (memory, streams, classes) in [(64, 1, 16), (256, 10, 8)] {
        let (_, allocator) = soft(SoftDevice::builder(memory * MIB), "");
        let mut live = 0;
        'filling: for size in (0..classes).filter_map(ClassId::from_index).map(ClassId::size).cycle() {
            for stream in (1..=streams).map(StreamId) {
                for _ in 0..2 * MIB / size {
                    match allocator.raw_alloc(AllocRequest::new(size).stream(stream)) {
                        Ok(_) => live += size,
                        Err(error) => {
                            assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
                            break 'filling;
                        }
                    }
                }
            }
        }
        let reserved = check(&allocator, 0).reserved.current;
        assert_eq!(reserved, memory * MIB, "all of the device is taken");
        assert!(live * 5 >= reserved * 4, "{live} of {reserved}");
    }
}
