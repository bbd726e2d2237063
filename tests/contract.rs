//! What holds for an allocator on every kind of device and under every configuration: one suite, instantiated for each.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, check, check_empties, config, pattern, soft};
use stratalloc::driver::Driver;
use stratalloc::driver::fault::FaultDriver;
use stratalloc::driver::soft::{Backing, SoftDevice, SoftDeviceBuilder};
use stratalloc::{AllocRequest, Allocator, DevicePtr, DeviceSpec, Error, StreamId};

/// An allocator under test.
struct World {
    allocator: Allocator,
    /// Streams of each device.
    streams: Vec<Vec<StreamId>>,
    /// Whether the devices keep bytes.
    data: bool,
    chunk: u64,
}

impl World {
    fn new(allocator: Allocator, data: bool, text: &str) -> World {
        let streams = (0..allocator.device_count())
            .map(|device| {
                let driver = allocator.driver(device).unwrap();
                vec![StreamId::DEFAULT, driver.create_stream().unwrap(), driver.create_stream().unwrap()]
            })
            .collect();
        World { allocator, streams, data, chunk: config(text).chunk.0 }
    }

    fn devices(&self) -> std::ops::Range<usize> {
        0..self.allocator.device_count()
    }

    /// The most that can be reserved.
    fn room(&self, device: usize) -> u64 {
        self.allocator.stats(device).unwrap().limit / self.chunk * self.chunk
    }

    fn is_plain(&self, device: usize) -> bool {
        !self.allocator.driver(device).unwrap().properties().vmm
    }

    fn alloc(&self, device: usize, size: u64, stream: StreamId) -> Result<DevicePtr, Error> {
        self.allocator.raw_alloc(AllocRequest::new(size).device(device).stream(stream))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.devices().for_each(|device| check_empties(&self.allocator, device));
        }
    }
}

/// Blocks in use, by address, with their sizes: what is handed out twice is noticed.
#[derive(Default)]
struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    fn add(&mut self, ptr: DevicePtr, size: u64) {
        assert!(!ptr.is_null() && ptr.0.is_multiple_of(512), "{ptr}");
        if let Some((start, other)) = self.0.range(..ptr.0 + size).next_back() {
            assert!(start + other <= ptr.0, "{size} bytes at {ptr} overlap {other} at {start:#x}");
        }
        self.0.insert(ptr.0, size);
    }

    fn take(&mut self, rng: &mut Rng) -> Option<DevicePtr> {
        let at = *self.0.keys().nth(rng.index(self.0.len()))?;
        self.0.remove(&at);
        Some(DevicePtr(at))
    }
}

const SIZES: [u64; 14] = [
    1,
    511,
    512,
    513,
    4 * KIB,
    5000,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    100 * KIB,
    MIB - 1,
    MIB,
    MIB + 1,
    3 * MIB + 5,
];

fn live_blocks_never_overlap(world: &World) {
    for device in world.devices() {
        let (mut rng, mut blocks) = (Rng(1), Blocks::default());
        let most = world.room(device) / 8;
        for step in 0..600 {
            if rng.percent(60) {
                let (size, stream) = (rng.size(most), rng.pick(&world.streams[device]));
                match world.alloc(device, size, stream) {
                    Ok(ptr) => {
                        let usable = world.allocator.usable_size(ptr).unwrap();
                        assert!(usable >= size);
                        blocks.add(ptr, usable);
                    }
                    Err(Error::OutOfMemory(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            } else if let Some(ptr) = blocks.take(&mut rng) {
                world.allocator.raw_free(ptr).unwrap();
            }
            if step % 50 == 0 {
                let stats = check(&world.allocator, device);
                assert_eq!(stats.allocs - stats.frees, blocks.0.len() as u64);
                assert_eq!(stats.active.current, blocks.0.values().sum::<u64>());
            }
        }
        while let Some(ptr) = blocks.take(&mut rng) {
            world.allocator.raw_free(ptr).unwrap();
        }
    }
}

fn every_size_has_every_alignment(world: &World) {
    for device in world.devices() {
        for alignment in (9..=21).map(|shift| 1u64 << shift) {
            let mut blocks = Blocks::default();
            for size in SIZES {
                let request = AllocRequest::new(size).device(device).alignment(alignment);
                let ptr = world.allocator.raw_alloc(request).unwrap_or_else(|_| {
                    // A small device has no room for all of them at once.
                    let held = std::mem::take(&mut blocks.0);
                    held.into_keys().for_each(|at| world.allocator.raw_free(DevicePtr(at)).unwrap());
                    world.allocator.raw_alloc(request).unwrap()
                });
                assert!(ptr.0.is_multiple_of(alignment), "{size} bytes at {ptr}, asked for alignment {alignment}");
                let usable = world.allocator.usable_size(ptr).unwrap();
                assert!(usable >= size, "{usable} of {size}");
                blocks.add(ptr, usable);
            }
            check(&world.allocator, device);
            for at in blocks.0.into_keys() {
                world.allocator.raw_free(DevicePtr(at)).unwrap();
            }
        }
    }
}

fn alignments_below_the_granule_are_the_granule(world: &World) {
    for alignment in [1, 2, 256] {
        let block = world.allocator.alloc(AllocRequest::new(100).alignment(alignment)).unwrap();
        assert!(block.ptr().0.is_multiple_of(512));
    }
}

fn contents_survive(world: &World) {
    for device in world.devices().filter(|_| world.data) {
        let driver = world.allocator.driver(device).unwrap();
        let (mut rng, mut held) = (Rng(2), Vec::new());
        for seed in 0..250 {
            if rng.percent(60) {
                let (size, stream) = (rng.size(300 * KIB), rng.pick(&world.streams[device]));
                if let Ok(ptr) = world.alloc(device, size, stream) {
                    driver.write(ptr, &pattern(seed, size as usize), stream).unwrap();
                    held.push((ptr, size, stream, seed));
                }
            } else if !held.is_empty() {
                let (ptr, size, stream, seed) = held.swap_remove(rng.index(held.len()));
                let mut found = vec![0; size as usize];
                driver.read(&mut found, ptr, stream).unwrap();
                assert!(found == pattern(seed, size as usize), "{size} bytes at {ptr} have changed");
                world.allocator.raw_free(ptr).unwrap();
            }
            if seed % 100 == 99 {
                world.allocator.empty_cache(device).unwrap();
            }
        }
        held.into_iter().for_each(|(ptr, ..)| world.allocator.raw_free(ptr).unwrap());
        // The same through a buffer.
        let values: Vec<u32> = (0..5000).collect();
        let request = AllocRequest::new(1).device(device).stream(world.streams[device][1]);
        let mut buffer = world.allocator.alloc_buffer::<u32>(values.len(), request).unwrap();
        buffer.write(&values).unwrap();
        let mut back = vec![0; values.len()];
        buffer.read(&mut back).unwrap();
        assert_eq!(values, back);
    }
}

fn blocks_may_be_freed_in_any_order(world: &World) {
    for device in world.devices() {
        for order in 0..3 {
            let size = |index: u64| SIZES[index as usize % SIZES.len()].min(world.room(device) / 64);
            let alloc = |index| world.alloc(device, size(index), world.streams[device][0]).unwrap();
            let mut held: Vec<_> = (0..60).map(alloc).collect();
            match order {
                0 => {}
                1 => held.reverse(),
                _ => Rng(3).shuffle(&mut held),
            }
            held.into_iter().for_each(|ptr| world.allocator.raw_free(ptr).unwrap());
            check_empties(&world.allocator, device);
        }
    }
}

/// Allocates until there is no room, and gives what there was.
fn fill(world: &World, device: usize, size: u64) -> Vec<DevicePtr> {
    let mut held = Vec::new();
    loop {
        match world.alloc(device, size, world.streams[device][held.len() % 3]) {
            Ok(ptr) => held.push(ptr),
            Err(Error::OutOfMemory(shortage)) => {
                assert_eq!((shortage.size, shortage.device), (size, device));
                return held;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn a_full_device_is_refilled(world: &World) {
    for device in world.devices() {
        let free = |held: Vec<DevicePtr>| held.into_iter().for_each(|ptr| world.allocator.raw_free(ptr).unwrap());
        let mut whole = None;
        for size in [2 * MIB, 700 * KIB, 2 * MIB, 64 * KIB, 5 * MIB] {
            let first = fill(world, device, size);
            let stats = check(&world.allocator, device);
            assert_eq!(stats.live.current, first.len() as u64 * size);
            if !world.is_plain(device) {
                let bound = world.room(device) * 3 / 4 - size;
                assert!(stats.live.current > bound, "full with {} of {size}: {stats:#?}", first.len());
            }
            let count = first.len();
            free(first);
            assert_eq!(check(&world.allocator, device).live.current, 0);
            let second = fill(world, device, size);
            assert!(second.len() >= count, "of {size} first {count} blocks, then {}", second.len());
            free(second);
            world.allocator.empty_cache(device).unwrap();
            let fresh = fill(world, device, 2 * MIB);
            assert_eq!(fresh.len(), *whole.get_or_insert(fresh.len()), "after blocks of {size}");
            free(fresh);
        }
    }
}

fn a_block_as_large_as_the_device_fits(world: &World) {
    for device in world.devices().filter(|&device| !world.is_plain(device)) {
        let (room, stream) = (world.room(device), world.streams[device][1]);
        for size in [room, room - 512, room - 1, room] {
            let ptr = world.alloc(device, size, stream).unwrap();
            assert_eq!(check(&world.allocator, device).reserved.current, room);
            world.allocator.raw_free(ptr).unwrap();
            // Once more after it was in small pieces.
            let small = fill(world, device, MIB + 512);
            small.into_iter().for_each(|ptr| world.allocator.raw_free(ptr).unwrap());
        }
    }
}

fn out_of_memory_changes_nothing(world: &World) {
    for device in world.devices() {
        let (room, stream) = (world.room(device), world.streams[device][1]);
        let held = world.alloc(device, room / 2, stream).unwrap();
        let before = check(&world.allocator, device);
        let asked = room / 2 + MIB;
        let Err(Error::OutOfMemory(shortage)) = world.alloc(device, asked, stream) else { panic!("there is no room") };
        assert_eq!((shortage.size, shortage.device, shortage.live), (asked, device, room / 2));
        assert_eq!(shortage.capacity, world.allocator.driver(device).unwrap().properties().total_memory);
        assert_eq!(shortage.limit, (before.limit < shortage.capacity).then_some(before.limit));
        let after = check(&world.allocator, device);
        assert_eq!(shortage.reserved, after.reserved.current);
        assert_eq!((before.live, before.active), (after.live, after.active));
        assert_eq!((before.allocs, before.frees, before.rungs), (after.allocs, after.frees, after.rungs));
        assert_eq!((before.out_of_memory + 1, &before.sizes), (after.out_of_memory, &after.sizes));
        let small = world.alloc(device, room / 8, stream).unwrap();
        check(&world.allocator, device);
        [small, held].into_iter().for_each(|ptr| world.allocator.raw_free(ptr).unwrap());
    }
}

fn counts_and_peaks_are_exact(world: &World) {
    for device in world.devices() {
        let tags = ["weights", "step"].map(|name| world.allocator.tag(name).unwrap());
        let mut rng = Rng(4);
        let mut held: Vec<(DevicePtr, u64, u64, usize)> = Vec::new();
        let (mut live, mut active, mut live_peak, mut active_peak) = (0, 0, 0, 0);
        let (mut allocs, mut frees, mut bytes) = (0, 0, 0);
        let earlier = world.allocator.stats(device).unwrap();
        world.allocator.reset_peaks(device).unwrap();
        for step in 0..800 {
            if rng.percent(55) || held.is_empty() {
                let (size, tag) = (rng.size(world.room(device) / 32), rng.index(3));
                let mut request = AllocRequest::new(size).device(device).stream(rng.pick(&world.streams[device]));
                if tag > 0 {
                    request = request.tag(tags[tag - 1]);
                }
                let Ok(ptr) = world.allocator.raw_alloc(request) else { continue };
                let usable = world.allocator.usable_size(ptr).unwrap();
                held.push((ptr, size, usable, tag));
                (live, active) = (live + size, active + usable);
                (live_peak, active_peak) = (live_peak.max(live), active_peak.max(active));
                (allocs, bytes) = (allocs + 1, bytes + usable);
            } else {
                let (ptr, size, usable, _) = held.swap_remove(rng.index(held.len()));
                world.allocator.raw_free(ptr).unwrap();
                (live, active, frees) = (live - size, active - usable, frees + 1);
            }
            if step == 400 {
                world.allocator.reset_peaks(device).unwrap();
                (live_peak, active_peak) = (live, active);
            }
            if step % 20 == 0 {
                let stats = check(&world.allocator, device);
                assert_eq!((stats.live.current, stats.live.peak), (live, live_peak), "step {step}");
                assert_eq!((stats.active.current, stats.active.peak), (active, active_peak), "step {step}");
                assert_eq!((stats.allocs - earlier.allocs, stats.frees - earlier.frees), (allocs, frees));
                assert_eq!(stats.allocated - earlier.allocated, bytes);
                let of = |tag| held.iter().filter(|block| block.3 == tag).map(|block| block.1).sum::<u64>();
                let tagged = [1, 2].map(|tag| (tags[tag - 1].number(), of(tag)));
                let tagged: Vec<_> = tagged.into_iter().filter(|&(_, bytes)| bytes > 0).collect();
                assert_eq!(stats.tags, tagged);
            }
        }
        held.into_iter().for_each(|(ptr, ..)| world.allocator.raw_free(ptr).unwrap());
    }
}

fn devices_are_apart(world: &World) {
    for device in world.devices() {
        let others: Vec<_> = world.devices().filter(|&other| other != device).collect();
        let before: Vec<_> = others.iter().map(|&other| world.allocator.stats(other).unwrap()).collect();
        let block = world.allocator.alloc(AllocRequest::new(3 * MIB).device(device)).unwrap();
        assert_eq!((block.device(), block.size()), (device, 3 * MIB));
        let owned = block.into_owned();
        assert_eq!(owned.device(), device);
        drop(owned);
        let after: Vec<_> = others.iter().map(|&other| world.allocator.stats(other).unwrap()).collect();
        assert_eq!(before, after);
    }
    assert_eq!(world.allocator.failed_drops(), 0);
}

fn world(builder: SoftDeviceBuilder, text: &str, data: bool) -> World {
    World::new(soft(builder, text).1, data, text)
}

fn memfd() -> World {
    world(SoftDevice::builder(128 * MIB), "", true)
}

fn addresses_only() -> World {
    world(SoftDevice::builder(128 * MIB).backing(Backing::AddressesOnly), "", false)
}

fn asynchronous() -> World {
    world(SoftDevice::builder(128 * MIB).seed(7), "", true)
}

fn lagging_events() -> World {
    let builder = SoftDevice::builder(128 * MIB).backing(Backing::AddressesOnly).seed(9).event_lag_ns(50_000);
    world(builder, "cross_stream_wait:true", false)
}

fn plain() -> World {
    world(SoftDevice::builder(128 * MIB).vmm(false), "", true)
}

fn faultless_fault_driver() -> World {
    let driver = Arc::new(FaultDriver::new(SoftDevice::builder(128 * MIB).build().unwrap()));
    World::new(common::rig::allocator_on(driver, ""), true, "")
}

fn sixteen_mib() -> World {
    world(SoftDevice::builder(16 * MIB), "", true)
}

fn odd_capacity() -> World {
    world(SoftDevice::builder(64 * MIB + 12345), "", true)
}

fn large_chunks() -> World {
    world(SoftDevice::builder(256 * MIB).backing(Backing::AddressesOnly), "chunk:8MiB", false)
}

fn no_magazines() -> World {
    world(SoftDevice::builder(64 * MIB), "magazine:0", true)
}

fn magazines_without_bound() -> World {
    world(SoftDevice::builder(64 * MIB), "magazine:1", true)
}

fn half_the_device() -> World {
    world(SoftDevice::builder(128 * MIB), "limit:0.5", true)
}

fn little_address_space() -> World {
    world(SoftDevice::builder(64 * MIB), "address_space:1", true)
}

fn early_collection() -> World {
    world(SoftDevice::builder(64 * MIB), "gc_threshold:0.5", true)
}

fn traced() -> World {
    world(SoftDevice::builder(64 * MIB), "trace:1000", true)
}

fn two_devices() -> World {
    let spec = |mib| DeviceSpec::Software(stratalloc::ByteSize::mib(mib));
    World::new(Allocator::builder().device(spec(64)).device(spec(32)).build().unwrap(), true, "")
}

macro_rules! suite {
    ($world:ident: $($check:ident)*) => {
        mod $world {
            $(
                #[test]
                fn $check() {
                    super::$check(&super::$world());
                }
            )*
        }
    };
}

/// The whole contract, for each world.
macro_rules! contract {
    ($($world:ident)*) => {
        $(
            suite! {
                $world:
                live_blocks_never_overlap
                every_size_has_every_alignment
                alignments_below_the_granule_are_the_granule
                contents_survive
                blocks_may_be_freed_in_any_order
                a_full_device_is_refilled
                a_block_as_large_as_the_device_fits
                out_of_memory_changes_nothing
                counts_and_peaks_are_exact
                devices_are_apart
            }
        )*
    };
}

contract! {
    memfd
    addresses_only
    asynchronous
    lagging_events
    plain
    faultless_fault_driver
    sixteen_mib
    odd_capacity
    large_chunks
    no_magazines
    magazines_without_bound
    half_the_device
    little_address_space
    early_collection
    traced
    two_devices
}
