//! Tiers and codecs of the user's that panic: the transfer fails, the bytes stay where they are, and nobody waits for ever.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use common::rig::{MIB, config, pattern, request};
use common::tiers::{host_tier, within_seconds};
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::tier::codec::Codec;
use stratalloc::tier::{Direction, Evictable, Io, Residency, Select, Slot, Ticket, Tier, TierKind};
use stratalloc::{Allocator, DevicePtr, DeviceSpec, Error, StreamId, TierError};

const HOME: StreamId = StreamId::DEFAULT;
const SIZE: u64 = 6 * MIB;

/// Which call panics, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Nowhere,
    Reserve,
    Start(Direction),
    Finish,
    Release,
    Shrink,
    Bound,
    Encode,
    Decode,
}

const CALLS: [Where; 10] = [
    Where::Nowhere,
    Where::Reserve,
    Where::Start(Direction::Write),
    Where::Start(Direction::Read),
    Where::Finish,
    Where::Release,
    Where::Shrink,
    Where::Bound,
    Where::Encode,
    Where::Decode,
];

/// A trap for one of these calls.
#[derive(Debug, Default)]
struct Trap(AtomicU32);

impl Trap {
    fn set(&self, at: Where) {
        self.0.store(CALLS.iter().position(|call| *call == at).unwrap() as u32, Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    fn pass(&self, at: Where) {
        let number = CALLS.iter().position(|call| *call == at).unwrap() as u32;
        if self.0.compare_exchange(number, 0, Relaxed, Relaxed).is_ok() {
            panic!("planted in {at:?}");
        }
    }
}

/// A tier that the device does not reach, with a trap.
#[derive(Debug)]
struct Trapped(Arc<dyn Tier>, Arc<Trap>);

impl Tier for Trapped {
    fn name(&self) -> &str {
        "trapped"
    }
    fn capacity(&self) -> u64 {
        self.0.capacity()
    }
    fn used(&self) -> u64 {
        self.0.used()
    }
    fn alignment(&self) -> u64 {
        self.0.alignment()
    }
    fn reserve(&self, size: u64) -> Result<Slot, TierError> {
        self.1.pass(Where::Reserve);
        self.0.reserve(size)
    }
    fn release(&self, slot: Slot) {
        self.0.release(slot);
        self.1.pass(Where::Release);
    }
    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        self.1.pass(Where::Shrink);
        self.0.shrink(slot, size)
    }
    /// # Safety
    /// As [`Tier::start`] says.
    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError> {
        self.1.pass(Where::Start(io.direction));
        // SAFETY: the caller's promise.
        unsafe { self.0.start(io) }
    }
    fn finish(&self, ticket: Ticket, wait: bool) -> Option<Result<(), TierError>> {
        self.1.pass(Where::Finish);
        self.0.finish(ticket, wait)
    }
}

/// Turns every byte round, with a trap.
#[derive(Debug)]
struct Turned(Arc<Trap>);

impl Codec for Turned {
    fn name(&self) -> &str {
        "turned"
    }
    fn bound(&self, size: usize) -> usize {
        self.0.pass(Where::Bound);
        size
    }
    fn encode(&self, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError> {
        self.0.pass(Where::Encode);
        // One byte less: what is as long as it was is stored as it is.
        let length = src.len() - 1;
        dst[..length].iter_mut().zip(src).for_each(|(to, from)| *to = !from);
        Ok(length)
    }
    fn decode(&self, src: &[u8], dst: &mut [u8]) -> Result<(), TierError> {
        self.0.pass(Where::Decode);
        dst.iter_mut().zip(src).for_each(|(to, from)| *to = !from);
        if let Some(last) = dst.last_mut() {
            *last = 0;
        }
        Ok(())
    }
    fn lossless(&self) -> bool {
        true
    }
}

/// Bytes whose every piece ends with a zero, as [`Turned`] wants it.
fn contents() -> Vec<u8> {
    let mut bytes = pattern(7, SIZE as usize);
    bytes.chunks_mut(2 << 20).for_each(|piece| *piece.last_mut().unwrap() = 0);
    bytes
}

struct Scene {
    device: Arc<SoftDevice>,
    allocator: Allocator,
    trap: Arc<Trap>,
    ptr: DevicePtr,
}

impl Scene {
    /// One block, on a device with a trapped tier, and with a small one before it where bytes are to spill.
    fn new(workers: usize, codec: bool, before: Option<u64>) -> Scene {
        let device = SoftDevice::builder(64 * MIB).backing(Backing::Memfd).build().unwrap();
        let trap = Arc::new(Trap::default());
        let mut builder = Allocator::builder()
            .device(DeviceSpec::Driver(device.clone()))
            .config(config(&format!("tier_workers:{workers}")));
        if let Some(bytes) = before {
            builder = builder.tier(0, TierKind::Host, host_tier(device.clone(), bytes));
        }
        let tier = Arc::new(Trapped(host_tier(device.clone(), 64 * MIB), trap.clone()));
        let allocator = builder.tier(0, TierKind::Custom, tier).build().unwrap();
        let how = if codec { Evictable::default().codec(Arc::new(Turned(trap.clone()))) } else { Evictable::default() };
        let scene = Scene { device, allocator, trap, ptr: DevicePtr(0) };
        let ptr = scene.block(how);
        Scene { ptr, ..scene }
    }

    fn block(&self, how: Evictable) -> DevicePtr {
        let ptr = self.allocator.alloc_evictable(request(SIZE, HOME), how).unwrap();
        let _pin = self.allocator.pin(ptr, HOME).unwrap();
        self.device.write(ptr, &contents(), HOME).unwrap();
        ptr
    }

    fn is_as_it_was(&self, ptr: DevicePtr) -> Result<(), Error> {
        let _pin = self.allocator.pin(ptr, HOME)?;
        let mut found = vec![0; SIZE as usize];
        self.device.read(&mut found, ptr, HOME)?;
        assert!(found == contents(), "{ptr} has changed");
        Ok(())
    }

    /// All is well again, and goes on being so.
    fn goes_on(self) {
        assert!(!self.trap.is_set(), "nothing ran into the trap");
        self.is_as_it_was(self.ptr).unwrap();
        assert_eq!(self.allocator.offload(Select::Ptr(self.ptr)).unwrap(), SIZE);
        self.is_as_it_was(self.ptr).unwrap();
        self.allocator.validate_tiers().unwrap();
        self.allocator.validate(0).unwrap().unwrap();
        self.allocator.raw_free(self.ptr).unwrap();
        assert_eq!(self.allocator.tier_stats(0).unwrap().extents, 0);
    }
}

fn planted<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Tier(_)) && error.to_string().contains("it panicked: planted in"), "{error}");
}

#[test]
fn a_save_that_panics_leaves_the_bytes_on_the_device() {
    for workers in [0, 2] {
        for at in [Where::Reserve, Where::Start(Direction::Write), Where::Finish, Where::Bound, Where::Encode] {
            within_seconds(move || {
                let scene = Scene::new(workers, true, None);
                scene.trap.set(at);
                planted(scene.allocator.offload(Select::Ptr(scene.ptr)));
                assert_eq!(scene.allocator.residency(scene.ptr).unwrap(), Residency::Resident, "{at:?}");
                scene.goes_on();
            });
        }
    }
}

#[test]
fn what_panics_at_the_end_of_a_save_does_not_undo_it() {
    for workers in [0, 2] {
        within_seconds(move || {
            let scene = Scene::new(workers, true, None);
            scene.trap.set(Where::Shrink);
            assert_eq!(scene.allocator.offload(Select::Ptr(scene.ptr)).unwrap(), SIZE);
            scene.trap.set(Where::Release);
            scene.goes_on_after_release();
        });
    }
}

impl Scene {
    /// The place is given back when the bytes have been loaded, by whoever drops it last.
    fn goes_on_after_release(self) {
        self.is_as_it_was(self.ptr).unwrap();
        while self.allocator.residency(self.ptr).unwrap() != Residency::Resident {
            std::thread::yield_now();
        }
        self.goes_on();
    }
}

#[test]
fn a_load_that_panics_leaves_the_bytes_in_the_tier() {
    for workers in [0, 2] {
        for at in [Where::Start(Direction::Read), Where::Finish, Where::Decode] {
            within_seconds(move || {
                let scene = Scene::new(workers, true, None);
                scene.allocator.offload(Select::Ptr(scene.ptr)).unwrap();
                scene.trap.set(at);
                planted(scene.is_as_it_was(scene.ptr));
                assert_ne!(scene.allocator.residency(scene.ptr).unwrap(), Residency::Resident, "{at:?}");
                scene.goes_on();
            });
        }
    }
}

#[test]
fn a_spill_that_panics_leaves_the_bytes_in_the_faster_tier() {
    for workers in [0, 2] {
        for at in [Where::Reserve, Where::Start(Direction::Write), Where::Finish] {
            within_seconds(move || {
                let scene = Scene::new(workers, false, Some(SIZE));
                scene.allocator.offload(Select::Ptr(scene.ptr)).unwrap();
                assert_eq!(scene.allocator.residency(scene.ptr).unwrap(), Residency::Host);
                // The next one finds the first tier full: what is there is to go on, which fails, so it goes to the second tier itself, or
                // stays.
                let other = scene.block(Evictable::default());
                scene.trap.set(at);
                let _ = scene.allocator.offload(Select::Ptr(other));
                assert!(!scene.trap.is_set(), "{at:?}");
                scene.is_as_it_was(other).unwrap();
                scene.allocator.raw_free(other).unwrap();
                scene.is_as_it_was(scene.ptr).unwrap();
                scene.goes_on();
            });
        }
    }
}

#[test]
fn a_stash_that_panics_is_an_error() {
    within_seconds(|| {
        let device = SoftDevice::builder(64 * MIB).backing(Backing::Memfd).build().unwrap();
        let trap = Arc::new(Trap::default());
        let tier = Arc::new(Trapped(host_tier(device.clone(), 64 * MIB), trap.clone()));
        let builder = Allocator::builder().device(DeviceSpec::Driver(device.clone())).config(config("tier_workers:2"));
        let allocator = builder.tier(0, TierKind::Custom, tier).build().unwrap();
        let ptr = allocator.raw_alloc(request(SIZE, HOME)).unwrap();
        trap.set(Where::Finish);
        let stash = allocator.stash(ptr, SIZE, HOME, None).unwrap();
        planted(stash.may_free(true));
        drop(stash);
        allocator.raw_free(ptr).unwrap();
    });
}
