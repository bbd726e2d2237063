//! Blocks with known bytes on a device with memory behind it, under the checker: what moving memory must not change.

use std::collections::BTreeMap;
use std::sync::Arc;

use stratalloc::driver::Driver;
use stratalloc::driver::fault::FaultDriver;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::{Allocator, BlockState, DefragReport, DevicePtr, PassLimits, Result, StreamId};

use super::rig::{Rng, allocator_on, check, check_empties, pattern, request};

/// Blocks with known bytes, on a device under the checker.
pub struct Scene {
    pub device: Arc<SoftDevice>,
    pub driver: Arc<FaultDriver<SoftDevice>>,
    pub allocator: Allocator,
    pub streams: Vec<StreamId>,
    /// Size, stream and seed of the bytes.
    pub blocks: BTreeMap<u64, (u64, usize, u64)>,
    pub rng: Rng,
}

impl Scene {
    pub fn new(capacity: u64, seed: u64, text: &str) -> Scene {
        let device = SoftDevice::builder(capacity).backing(Backing::Memfd).seed(seed).checker(true).build().unwrap();
        let driver = Arc::new(FaultDriver::new(device.clone()));
        let allocator = allocator_on(driver.clone(), text);
        let streams = (0..3).map(|_| device.create_stream().unwrap()).collect();
        Scene { device, driver, allocator, streams, blocks: BTreeMap::new(), rng: Rng(seed) }
    }

    pub fn alloc(&mut self, size: u64, stream: usize) {
        let ptr = self.allocator.raw_alloc(request(size, self.streams[stream])).unwrap();
        self.adopt(ptr, size, stream);
    }

    pub fn adopt(&mut self, ptr: DevicePtr, size: u64, stream: usize) {
        self.device.note_alloc(ptr, size, self.streams[stream]);
        self.blocks.insert(ptr.0, (size, stream, 0));
        self.fill(ptr);
    }

    /// Writes new bytes to a block.
    pub fn fill(&mut self, ptr: DevicePtr) {
        let seed = self.rng.bits();
        let block = self.blocks.get_mut(&ptr.0).unwrap();
        block.2 = seed;
        self.device.write(ptr, &pattern(seed, block.0 as usize), self.streams[block.1]).unwrap();
    }

    pub fn free(&mut self, ptr: u64) {
        let (size, ..) = self.blocks.remove(&ptr).unwrap();
        self.device.note_free(DevicePtr(ptr), size);
        self.allocator.raw_free(DevicePtr(ptr)).unwrap();
    }

    /// Frees blocks until so many of 100 are left, at random.
    pub fn thin(&mut self, percent: u64) {
        let all: Vec<u64> = self.blocks.keys().copied().collect();
        all.into_iter().for_each(|ptr| {
            if !self.rng.percent(percent) {
                self.free(ptr)
            }
        });
    }

    pub fn defragment(&self, limits: PassLimits) -> Result<DefragReport> {
        self.device.allocator_copies(true);
        let report = self.allocator.quiesce(0).and_then(|quiescent| quiescent.defragment(limits));
        self.device.allocator_copies(false);
        report
    }

    /// Every block has its bytes, the structures are sound, and no access was out of order.
    #[track_caller]
    pub fn verify(&self) {
        for (&ptr, &(size, stream, seed)) in &self.blocks {
            let mut found = vec![0; size as usize];
            self.device.read(&mut found, DevicePtr(ptr), self.streams[stream]).unwrap();
            assert!(found == pattern(seed, size as usize), "the {size} bytes at {ptr:#x} have changed");
        }
        let stats = check(&self.allocator, 0);
        let live: u64 = self.blocks.values().map(|block| block.0).sum();
        assert_eq!(stats.live.current, live);
        self.no_reports();
        let snapshot = self.allocator.snapshot(0).unwrap();
        let found: BTreeMap<u64, u64> = (snapshot.segments.iter().flat_map(|segment| &segment.blocks))
            .filter(|block| block.state == BlockState::Live)
            .map(|block| (block.ptr.0, block.requested))
            .collect();
        assert!(found.iter().map(|(&ptr, &size)| (ptr, size)).eq(self.blocks.iter().map(|(&ptr, b)| (ptr, b.0))));
        let mapped: u64 = snapshot.segments.iter().map(|segment| segment.size).sum();
        let aliased: u64 = snapshot.segments.iter().map(|segment| segment.aliased).sum();
        assert_eq!(mapped - aliased + stats.reserve, stats.reserved.current, "{stats:#?}");
        // Of pairs of chunks, each byte is shown where it is served.
        assert!(aliased <= stats.meshed, "{stats:#?}");
    }

    #[track_caller]
    pub fn no_reports(&self) {
        if let Some(report) = self.device.reports().first() {
            panic!("{report}");
        }
    }

    #[track_caller]
    pub fn ends_clean(self) {
        self.ends_clean_but(0);
    }

    /// So many chunks were lost, and counted, since the driver refused to take them back.
    #[track_caller]
    pub fn ends_clean_but(mut self, lost: usize) {
        let all: Vec<u64> = self.blocks.keys().copied().collect();
        all.into_iter().for_each(|ptr| self.free(ptr));
        check_empties(&self.allocator, 0);
        assert_eq!(self.allocator.stats(0).unwrap().meshed, 0);
        self.no_reports();
        let Scene { device, allocator, .. } = self;
        drop(allocator);
        let leaks = device.leaks();
        assert_eq!((leaks.chunks, leaks.mappings, leaks.reservations), (lost, 0, 0));
    }
}
