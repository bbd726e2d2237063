//! Allocators to test, a small seeded generator, and what must hold of an allocator at any time.

use std::sync::Arc;

use stratalloc::driver::Driver;
use stratalloc::driver::soft::{SoftDevice, SoftDeviceBuilder};
use stratalloc::{AllocRequest, Allocator, Config, DevicePtr, DeviceSpec, Rung, Stats, StreamId};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// SplitMix64: the same seed gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound.max(1)
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, part: u64) -> bool {
        self.below(100) < part
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// A size up to `max`, each doubling about as likely as another.
    pub fn size(&mut self, max: u64) -> u64 {
        let bits = 1 + self.below(u64::from(64 - max.leading_zeros()));
        (self.bits() >> (64 - bits)).clamp(1, max)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.index(index + 1));
        }
    }
}

/// A configuration from its text.
pub fn config(text: &str) -> Config {
    Config::parse(text).unwrap()
}

/// An allocator on one driver.
pub fn allocator_on(driver: Arc<dyn Driver>, text: &str) -> Allocator {
    Allocator::builder().device(DeviceSpec::Driver(driver)).config(config(text)).build().unwrap()
}

/// A software device and an allocator on it.
pub fn soft(builder: SoftDeviceBuilder, text: &str) -> (Arc<SoftDevice>, Allocator) {
    let device = builder.build().unwrap();
    let allocator = allocator_on(device.clone(), text);
    (device, allocator)
}

/// A request for a stream.
pub fn request(size: u64, stream: StreamId) -> AllocRequest {
    AllocRequest::new(size).stream(stream)
}

/// Statistics of device 0.
pub fn stats(allocator: &Allocator) -> Stats {
    allocator.stats(0).unwrap()
}

/// Checks all structures, and the equations between the counts. Gives the statistics.
#[track_caller]
pub fn check(allocator: &Allocator, device: usize) -> Stats {
    allocator.validate(device).unwrap().unwrap();
    let stats = allocator.stats(device).unwrap();
    assert_eq!(stats.reserved.current, stats.active.current + stats.cached, "reserved == active + cached: {stats:#?}");
    assert!(stats.live.current <= stats.active.current, "{stats:#?}");
    assert!(stats.pending <= stats.active.current, "{stats:#?}");
    assert!(stats.magazines + stats.reserve <= stats.cached, "{stats:#?}");
    assert!(stats.reserved.current <= stats.limit, "{stats:#?}");
    for gauge in [stats.live, stats.active, stats.reserved] {
        assert!(gauge.current <= gauge.peak, "{stats:#?}");
    }
    // These two count beside the rung that then served the request.
    let serves = |&&rung: &&Rung| rung != Rung::Observer && rung != Rung::Evict;
    let served: u64 = Rung::ALL.iter().filter(serves).map(|&rung| stats.rung(rung)).sum();
    assert_eq!(served, stats.allocs, "each request is served by one rung: {stats:#?}");
    assert_eq!(stats.sizes.iter().map(|range| range.allocs).sum::<u64>(), stats.allocs, "{stats:#?}");
    stats
}

/// Checks that nothing is in use, and that everything goes back to the device.
#[track_caller]
pub fn check_empties(allocator: &Allocator, device: usize) {
    let before = check(allocator, device);
    assert_eq!((before.live.current, before.allocs - before.frees), (0, 0), "{before:#?}");
    assert_eq!(before.tags, [], "{before:#?}");
    allocator.empty_cache(device).unwrap();
    let after = check(allocator, device);
    assert_eq!((after.reserved.current, after.active.current, after.pending), (0, 0, 0), "{after:#?}");
}

/// Bytes that depend on a seed and on their place, so that neither another block's nor shifted ones pass for them.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) | 1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(rng.bits().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The bytes of a block that tests look at: its first and last few.
pub fn probes(ptr: DevicePtr, size: u64) -> impl Iterator<Item = (DevicePtr, usize)> {
    let part = size.min(64);
    [(ptr, part as usize), (ptr.add(size - part), part as usize)].into_iter()
}
