//! Evictable blocks with known contents, on a device that is watched.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, SoftDevice, SoftDeviceBuilder};
use stratalloc::tier::{Evictable, HostConfig, HostTier, Tier};
use stratalloc::{AllocRequest, Allocator, Builder, DevicePtr, DeviceSpec, Error, StreamId};

use super::rig::{config, pattern};

/// An allocator with tiers over a software device, and its evictable blocks with the seeds of their contents.
pub struct TierRig {
    pub device: Arc<SoftDevice>,
    pub allocator: Allocator,
    pub blocks: BTreeMap<u64, (u64, u64, StreamId)>,
    next: u64,
    /// Whether the checker is told who owns what. Not where bytes pass through staging memory: it takes the buffers for blocks.
    owners: bool,
}

impl TierRig {
    /// On the device that a builder makes, with the checker on.
    pub fn new(builder: SoftDeviceBuilder, text: &str) -> TierRig {
        let device = builder.checker(true).build().unwrap();
        let rig = TierRig::on(device.clone(), device, text, |builder| builder);
        TierRig { owners: true, ..rig }
    }

    /// On a driver over a device, with more that is said to the builder.
    pub fn on(
        driver: Arc<dyn Driver>,
        device: Arc<SoftDevice>,
        text: &str,
        more: impl FnOnce(Builder) -> Builder,
    ) -> TierRig {
        let text = format!("tier_workers:0,{text}");
        let builder = Allocator::builder().device(DeviceSpec::Driver(driver)).config(config(&text));
        let allocator = more(builder).build().unwrap();
        device.allocator_copies(true);
        TierRig { device, allocator, blocks: BTreeMap::new(), next: 1, owners: false }
    }

    /// A block with contents of its own.
    pub fn alloc(&mut self, request: AllocRequest, how: Evictable) -> Result<DevicePtr, Error> {
        let ptr = self.allocator.alloc_evictable(request, how)?;
        let (size, stream) = (request.size, request.stream);
        if self.owners {
            self.device.note_alloc(ptr, size, stream);
        }
        self.next += 1;
        let pin = match self.allocator.pin(ptr, stream) {
            Ok(pin) => pin,
            Err(error) => {
                self.allocator.raw_free(ptr)?;
                return Err(error);
            }
        };
        self.device.launch(stream, &[Access::write(ptr, size)], 1000).unwrap();
        self.write(ptr, size, self.next, stream);
        drop(pin);
        self.blocks.insert(ptr.0, (size, self.next, stream));
        Ok(ptr)
    }

    /// Contents that a seed stands for.
    pub fn contents(size: u64, seed: u64) -> Vec<u8> {
        // Long ones repeat: generating them would take most of the time.
        let unit = pattern(seed, size.min(1 << 16) as usize);
        let mut bytes: Vec<u8> = unit.iter().copied().cycle().take(size as usize).collect();
        // No two pieces are the same.
        for (index, piece) in bytes.chunks_mut(1 << 16).enumerate() {
            piece[0] ^= index as u8;
        }
        bytes
    }

    fn write(&self, ptr: DevicePtr, size: u64, seed: u64, stream: StreamId) {
        self.device.allocator_copies(false);
        self.device.write(ptr, &TierRig::contents(size, seed), stream).unwrap();
        self.device.allocator_copies(true);
    }

    /// New contents, under a pin.
    pub fn rewrite(&mut self, ptr: DevicePtr) -> Result<(), Error> {
        let (size, _, stream) = self.blocks[&ptr.0];
        let pin = self.allocator.pin(ptr, stream)?;
        self.next += 1;
        self.write(ptr, size, self.next, stream);
        drop(pin);
        self.blocks.insert(ptr.0, (size, self.next, stream));
        Ok(())
    }

    /// What is in a block is what was written, as its home stream finds it.
    #[track_caller]
    pub fn verify(&self, ptr: DevicePtr) -> Result<(), Error> {
        let (size, seed, stream) = self.blocks[&ptr.0];
        let pin = self.allocator.pin(ptr, stream)?;
        self.look(ptr, size, seed, stream);
        drop(pin);
        Ok(())
    }

    #[track_caller]
    fn look(&self, ptr: DevicePtr, size: u64, seed: u64, stream: StreamId) {
        self.device.launch(stream, &[Access::read(ptr, size)], 1000).unwrap();
        let mut found = vec![0; size as usize];
        self.device.allocator_copies(false);
        self.device.read(&mut found, ptr, stream).unwrap();
        self.device.allocator_copies(true);
        let wanted = TierRig::contents(size, seed);
        if found != wanted {
            let at = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
            panic!("{ptr} of {size} bytes differs from byte {at:?} on");
        }
    }

    /// All of them are what they were, and nothing is wrong.
    #[track_caller]
    pub fn verify_all(&self) {
        for &ptr in self.blocks.keys() {
            self.verify(DevicePtr(ptr)).unwrap_or_else(|error| panic!("{ptr:#x}: {error}"));
        }
        self.check();
    }

    /// Structures agree, and the checker is silent.
    #[track_caller]
    pub fn check(&self) {
        self.allocator.validate_tiers().unwrap();
        self.allocator.validate(0).unwrap().unwrap();
        assert_eq!(self.device.report_count(), 0, "{}", self.device.reports()[0]);
    }

    pub fn free(&mut self, ptr: DevicePtr) {
        let (size, ..) = self.blocks.remove(&ptr.0).unwrap();
        if self.owners {
            self.device.note_free(ptr, size);
        }
        self.allocator.raw_free(ptr).unwrap();
    }

    /// Has all end that is under way: what nobody waits for ends when its copies are seen to be done, and a slow tier is looked at more than
    /// once.
    pub fn settle(&self) {
        self.device.synchronize_device().unwrap();
        self.device.advance_clock(1_000_000);
        (0..16).for_each(|_| _ = self.allocator.tier_stats(0));
    }

    /// Frees all, and finds that nothing is left anywhere.
    #[track_caller]
    pub fn finish(mut self) {
        for ptr in self.blocks.keys().copied().collect::<Vec<_>>() {
            self.free(DevicePtr(ptr));
        }
        self.check();
        self.settle();
        let stats = self.allocator.tier_stats(0).unwrap();
        assert_eq!(
            (stats.blocks, stats.extents, stats.resident, stats.away, stats.pinned),
            (0, 0, 0, 0, 0),
            "{stats:#?}"
        );
        let abandoned = stats.abandoned > 0;
        assert!(abandoned || stats.tiers.iter().all(|tier| tier.used == 0), "{stats:#?}");
        self.allocator.empty_cache(0).unwrap();
        let stats = self.allocator.stats(0).unwrap();
        assert_eq!((stats.live.current, stats.active.current, stats.reserved.current), (0, 0, 0), "{stats:#?}");
        self.check();
        let device = self.device.clone();
        drop(self);
        let mut leaks = device.leaks();
        // Streams that tests have made, and events of copies that nobody can say are done.
        leaks.streams = 0;
        if abandoned {
            leaks.events = 0;
        }
        assert!(leaks.is_empty(), "{leaks}");
    }
}

/// Pinned host memory of a device as a tier.
pub fn host_tier(driver: Arc<dyn Driver>, bytes: u64) -> Arc<dyn Tier> {
    let config = HostConfig { capacity_bytes: bytes, step_bytes: bytes.min(64 << 20), background: false };
    Arc::new(HostTier::new(driver, &config).unwrap())
}

/// Work that must end, on a thread of its own.
pub fn within_seconds(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it waits for ever"),
        _ => thread.join().unwrap(),
    }
}
