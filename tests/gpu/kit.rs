//! What the tests share: blocks whose every piece has bytes of its own, written and checked by kernels in stream order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use stratalloc::driver::cuda::CudaDriver;
use stratalloc::driver::kernels::Finding;
use stratalloc::driver::{ChunkHandle, Driver, DriverErrorKind, HostPtr, Location};
use stratalloc::units::{ByteSize, DevicePtr, StreamId};
use stratalloc::{Allocator, Config, DeviceSpec, Stats};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// The tests' own driver of device 0, in the same context as the allocators'.
pub fn open() -> Result<Arc<CudaDriver>, String> {
    match CudaDriver::count() {
        Ok(0) => Err("the driver finds none".to_string()),
        Ok(_) => CudaDriver::open(0).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// What the tests have to know of the device.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    pub driver: &'a CudaDriver,
    /// Whether kernels do what they say. A stand-in for the driver may launch nothing.
    pub kernels: bool,
    /// Sizes and steps are divided by this: 1, or more where the device is a stand-in on the CPU or has little memory.
    pub divisor: u64,
}

impl<'a> Bench<'a> {
    /// Finds out.
    pub fn new(driver: &'a CudaDriver) -> Bench<'a> {
        let size = 64 * MIB;
        let mut bench = Bench { driver, kernels: false, divisor: 16 };
        let Ok(ptr) = driver.alloc_plain(size) else { return bench };
        let fill = |word| driver.fill_words(ptr, size, word, StreamId::DEFAULT);
        if fill(1).is_ok() && driver.fill(ptr, 4, 0, StreamId::DEFAULT).is_ok() && fill(0x0403_0201).is_ok() {
            bench.kernels = read(driver, ptr, 4) == [1, 2, 3, 4];
            let start = Instant::now();
            (0..8).for_each(|word| fill(word).unwrap());
            driver.synchronize_stream(StreamId::DEFAULT).unwrap();
            // 50 GB/s: any GPU does that, and no CPU.
            let is_fast = start.elapsed().as_secs_f64() < 8.0 * size as f64 / 50e9;
            if is_fast && driver.memory_info().unwrap().free > 16 * GIB {
                bench.divisor = 1;
            }
        }
        driver.free_plain(ptr).unwrap();
        bench
    }

    /// So many bytes, or fewer on a slow device; whole pages where they were.
    pub fn bytes(&self, full: u64) -> u64 {
        (full / self.divisor).max(1)
    }

    /// So many steps, or fewer on a slow device.
    pub fn steps(&self, full: u64) -> u64 {
        (if self.divisor > 1 { full / self.divisor / 2 } else { full }).max(1)
    }

    /// An allocator on the device.
    pub fn allocator(&self, text: &str) -> Allocator {
        self.try_allocator(text).unwrap()
    }

    pub fn try_allocator(&self, text: &str) -> stratalloc::Result<Allocator> {
        Allocator::builder().device(DeviceSpec::Cuda(0)).config(Config::parse(text).unwrap()).build()
    }

    /// An allocator that holds so many bytes at most.
    pub fn limited(&self, full: u64, text: &str) -> Allocator {
        self.allocator(&format!("limit:{}B,{text}", self.bytes(full)))
    }

    /// The device's free memory, when it has done all.
    pub fn free(&self) -> u64 {
        self.driver.synchronize_device().unwrap();
        self.driver.memory_info().unwrap().free
    }
}

/// Streams of a test's own, waited for and destroyed when dropped. They must outlive the allocators that know them.
pub struct Streams<'a> {
    driver: &'a CudaDriver,
    pub all: Vec<StreamId>,
}

impl<'a> Streams<'a> {
    pub fn new(driver: &'a CudaDriver, count: usize) -> Streams<'a> {
        Streams { driver, all: (0..count).map(|_| driver.create_stream().unwrap()).collect() }
    }
}

impl Drop for Streams<'_> {
    fn drop(&mut self) {
        for &stream in &self.all {
            self.driver.synchronize_stream(stream).unwrap();
            self.driver.destroy_stream(stream).unwrap();
        }
    }
}

/// Pieces of this size have patterns of their own: a chunk that turned up at the wrong place of its own block is found, too.
const PIECE: u64 = 2 * MIB;

fn pieces(ptr: DevicePtr, size: u64, seed: u32) -> impl Iterator<Item = (DevicePtr, u64, u32)> {
    (0..size.div_ceil(PIECE)).map(move |index| {
        let at = index * PIECE;
        (
            ptr.add(at),
            PIECE.min(size - at),
            seed.wrapping_mul(0x9e37_79b9).wrapping_add((index as u32).wrapping_mul(0x85eb_ca6b)),
        )
    })
}

/// Fills a block with what `seed` stands for, in stream order.
#[track_caller]
pub fn fill(driver: &CudaDriver, ptr: DevicePtr, size: u64, seed: u32, stream: StreamId) {
    for (at, size, word) in pieces(ptr, size, seed) {
        driver.fill_words(at, size, word, stream).unwrap();
    }
}

/// Keeps a stream busy with writing junk to a block, again and again, so that the device lags the host.
pub fn drag(driver: &CudaDriver, ptr: DevicePtr, size: u64, times: u32, stream: StreamId) {
    (0..times).for_each(|time| driver.fill_words(ptr, size, 0xdead_0000 + time, stream).unwrap());
}

/// Lets `after` come after what `before` has been given so far.
pub fn follow(driver: &CudaDriver, before: StreamId, after: StreamId) {
    let event = driver.create_event().unwrap();
    driver.record_event(event, before).unwrap();
    driver.wait_event(after, event).unwrap();
    driver.destroy_event(event).unwrap();
}

/// Checks by kernels, whose findings are looked at later, so that the host goes on.
pub struct Checks<'a> {
    driver: &'a CudaDriver,
    host: HostPtr,
    noted: Vec<(DevicePtr, u64, &'static str)>,
    /// The streams that are to be waited for.
    streams: BTreeMap<u64, StreamId>,
    pub count: u64,
}

const SLOTS: usize = 4096;

impl<'a> Checks<'a> {
    pub fn new(driver: &'a CudaDriver) -> Checks<'a> {
        let host = driver.alloc_host((SLOTS * size_of::<Finding>()) as u64).unwrap();
        Checks { driver, host, noted: Vec::new(), streams: BTreeMap::new(), count: 0 }
    }

    fn slot(&self, index: usize) -> HostPtr {
        HostPtr(self.host.0 + index * size_of::<Finding>())
    }

    /// Lets the device check, in the order of `stream`, that a block holds what `seed` stands for.
    #[track_caller]
    pub fn check(&mut self, ptr: DevicePtr, size: u64, seed: u32, stream: StreamId, what: &'static str) {
        if self.noted.len() == SLOTS {
            self.settle();
        }
        let slot = self.slot(self.noted.len());
        // SAFETY: the slot lies in the pinned memory that `new` took, and no kernel has been given it since it was last looked at.
        unsafe { (slot.0 as *mut Finding).write(Finding::NONE) };
        for (at, size, word) in pieces(ptr, size, seed) {
            self.driver.check_words(at, size, word, slot, stream).unwrap();
        }
        self.noted.push((ptr, size, what));
        self.streams.insert(stream.0, stream);
        self.count += 1;
    }

    /// Waits, and looks at what was found.
    #[track_caller]
    pub fn settle(&mut self) {
        for stream in std::mem::take(&mut self.streams).into_values() {
            self.driver.synchronize_stream(stream).unwrap();
        }
        for (index, (ptr, size, what)) in std::mem::take(&mut self.noted).into_iter().enumerate() {
            // SAFETY: the streams that write to the slot have been waited for.
            let found = unsafe { (self.slot(index).0 as *const Finding).read() };
            let size = ByteSize(size);
            assert_eq!(found.count, 0, "{what}: {ptr} of {size} differs; in a piece of it: {:x?}", found.first());
        }
    }
}

impl Drop for Checks<'_> {
    fn drop(&mut self) {
        // Also while a panic unwinds: kernels may still write there.
        let _ = self.driver.synchronize_device();
        let _ = self.driver.free_host(self.host);
    }
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// From `low` to `high`, each doubling as often as another.
    pub fn size(&mut self, low: u64, high: u64) -> u64 {
        let doublings = (high / low).max(1).ilog2() as u64 + 1;
        let base = low << self.below(doublings);
        (base + self.below(base)).min(high)
    }
}

/// The numbers of an allocator whose structures are found to be sound.
#[track_caller]
pub fn sound(allocator: &Allocator) -> Stats {
    allocator.validate(0).unwrap().unwrap();
    allocator.validate_tiers().unwrap();
    allocator.stats(0).unwrap()
}

/// All has been freed; what is held goes back.
#[track_caller]
pub fn ends_empty(allocator: &Allocator) {
    allocator.empty_cache(0).unwrap();
    let stats = sound(allocator);
    let held = (stats.live.current, stats.active.current, stats.reserved.current, stats.cleanup_failures);
    assert_eq!(held, (0, 0, 0, 0), "{stats:#?}");
    assert_eq!(allocator.failed_drops(), 0);
}

/// `size` bytes of one chunk, mapped and accessible, given back when dropped.
pub struct Mapping<'a> {
    driver: &'a CudaDriver,
    pub ptr: DevicePtr,
    size: u64,
    pub chunk: ChunkHandle,
}

impl<'a> Mapping<'a> {
    pub fn new(driver: &'a CudaDriver, size: u64, location: Location) -> Mapping<'a> {
        let chunk = driver.create(size, location).unwrap();
        let ptr = driver.reserve(size, driver.properties().granularity).unwrap();
        driver.map(ptr, size, chunk, 0).unwrap();
        driver.set_access(ptr, size).unwrap();
        Mapping { driver, ptr, size, chunk }
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        self.driver.synchronize_device().unwrap();
        self.driver.unmap(self.ptr, self.size).unwrap();
        self.driver.unreserve(self.ptr, self.size).unwrap();
        self.driver.release(self.chunk).unwrap();
    }
}

/// Bytes in which no two neighbouring ranges are alike.
pub fn pattern(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

pub fn read(driver: &CudaDriver, ptr: DevicePtr, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    driver.read(&mut bytes, ptr, StreamId::DEFAULT).unwrap();
    bytes
}

pub fn kind<T>(result: Result<T, stratalloc::driver::DriverError>) -> Option<DriverErrorKind> {
    result.err().map(|error| error.kind)
}
