//! The facade: an [`Allocator`] over one or several devices, and what it hands out.

mod allocation;
mod builder;
mod defrag;
mod movable;
mod plans;
mod private;
mod request;
mod tiers;
mod watch;

pub use allocation::{Allocation, Buffer, OwnedAllocation, Plain};
pub use builder::{Builder, DeviceSpec};
pub use defrag::{DefragReport, PassLimits, Quiescent};
pub use movable::{CompactReport, Compaction, Movable, Move, Pinned};
pub use private::Restored;
pub use request::{AllocFlags, AllocRequest, Lifetime, Tag};

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cache::{DeviceCache, TAGS};
use crate::config::{Config, Limit};
use crate::defrag::Movables;
use crate::driver::Driver;
use crate::driver::metered::Metered;
use crate::error::{Error, OomExplanation, OutOfMemory, Result};
use crate::pool::BlockId;
use crate::snapshot::Snapshot;
use crate::sync::Mutex;
use crate::telemetry::{BlockInfo, Event, EventObserver, Stats};
use crate::tier::residency::Tiers;
use crate::units::{DevicePtr, StreamId};

/// What an observer of a failed request wants to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomAction {
    /// Memory was freed: try again.
    Retry,
    /// Nothing could be done.
    Fail,
}

/// Called when a request finds no room, with no lock held: it may free memory, and ask for [`OomAction::Retry`]. Requests of its own that
/// find no room fail at once.
pub type OomObserver = Arc<dyn Fn(&OutOfMemory) -> OomAction + Send + Sync>;

/// How often observers may have a request tried again.
const RETRIES_MAX: usize = 16;

thread_local! {
    /// Whether this thread is inside an observer, whose own requests fail without asking observers.
    static OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// An allocator over one or several devices. Cheap to clone; all clones are one allocator. All methods may be called from any thread, but not
/// from a signal handler, and not in a child after `fork`, which CUDA does not survive either.
///
/// A stream that blocks were allocated for or recorded with is to be synchronised before it is destroyed: the driver may give its handle to a
/// new stream at once, which would be taken for the old one.
///
/// ```
/// use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec};
/// # fn main() -> stratalloc::Result<()> {
/// let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(1))).build()?;
/// let block = allocator.alloc(AllocRequest::new(1 << 20))?;
/// assert_eq!(allocator.stats(0)?.live.current, 1 << 20);
/// drop(block);
/// assert_eq!(allocator.stats(0)?.live.current, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Allocator {
    shared: Arc<Shared>,
}

struct Shared {
    /// Device 0, at hand: there always is one, and mostly no other.
    first: Arc<DeviceCache>,
    /// All devices, in order.
    devices: Vec<Arc<DeviceCache>>,
    observers: Mutex<Vec<(u64, OomObserver)>>,
    next_observer: AtomicU64,
    tags: Mutex<Vec<String>>,
    failed_drops: AtomicU64,
    /// By device.
    movables: Vec<Movables>,
    /// By device, where there are any.
    tiers: Vec<Option<Arc<Tiers>>>,
    watch: watch::Watch,
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator").field("devices", &self.shared.devices.len()).finish()
    }
}

impl Allocator {
    /// Chooses devices and configuration.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// At least one device.
    fn new(devices: Vec<Arc<DeviceCache>>, config: &Config, tiers: Vec<Option<Arc<Tiers>>>) -> Allocator {
        let watch = watch::Watch::new(config, &devices);
        let shared = Shared {
            first: devices[0].clone(),
            movables: devices.iter().map(|_| Movables::default()).collect(),
            devices,
            observers: Mutex::default(),
            next_observer: AtomicU64::new(1),
            tags: Mutex::new(vec!["none".to_string()]),
            failed_drops: AtomicU64::new(0),
            tiers,
            watch,
        };
        let allocator = Allocator { shared: Arc::new(shared) };
        allocator.look_at_exit();
        allocator
    }

    /// How many devices there are.
    pub fn device_count(&self) -> usize {
        self.shared.devices.len()
    }

    #[inline]
    fn device(&self, device: usize) -> Result<&DeviceCache> {
        if device == 0 {
            return Ok(&self.shared.first);
        }
        match self.shared.devices.get(device) {
            Some(cache) => Ok(cache),
            None => Err(Error::UnknownDevice { device, count: self.device_count() }),
        }
    }

    /// A device's driver, which counts and times its calls.
    pub fn driver(&self, device: usize) -> Result<&Metered> {
        Ok(&self.device(device)?.pool.driver)
    }

    /// Allocates memory that frees itself when dropped.
    #[inline(always)]
    pub fn alloc(&self, request: AllocRequest) -> Result<Allocation<'_>> {
        let ptr = self.raw_alloc(request)?;
        Ok(Allocation::new(self, ptr, request.size, request.device))
    }

    /// Allocates `len` values of `T` on a device, for a stream.
    pub fn alloc_buffer<T: Plain>(&self, len: usize, request: AllocRequest) -> Result<Buffer<'_, T>> {
        let size = (len as u64).saturating_mul(size_of::<T>() as u64);
        let allocation = self.alloc(AllocRequest { size, ..request })?;
        Ok(Buffer::new(allocation, request.stream, len))
    }

    /// Allocates memory that the caller frees with [`Allocator::raw_free`].
    // Inlined always, so that a request is taken apart where it is made and never lies in memory.
    #[inline(always)]
    pub fn raw_alloc(&self, request: AllocRequest) -> Result<DevicePtr> {
        if request.is_plain()
            && let Ok(device) = self.device(request.device)
        {
            let ptr = device.try_alloc(request.size, request.stream, request.tag.0);
            if !ptr.is_null() {
                return Ok(ptr);
            }
        }
        self.alloc_slow(request)
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&self, request: AllocRequest) -> Result<DevicePtr> {
        let device = self.device(request.device)?;
        let served = self.alloc_with_tiers(device, request.inner(false));
        self.tell_found(device);
        let ptr = served?;
        if request.flags.contains(AllocFlags::ZEROED) { self.zero(device, ptr, request) } else { Ok(ptr) }
    }

    #[cold]
    fn zero(&self, device: &DeviceCache, ptr: DevicePtr, request: AllocRequest) -> Result<DevicePtr> {
        match device.pool.driver.fill(ptr, request.size, 0, request.stream) {
            Ok(()) => Ok(ptr),
            Err(error) => {
                self.free_or_count(ptr);
                Err(error.into())
            }
        }
    }

    /// Lets observers free memory, and tries again as long as they ask for it.
    #[cold]
    fn observe(
        &self,
        device: &DeviceCache,
        may_grow: bool,
        error: Error,
        again: &dyn Fn() -> Result<DevicePtr>,
    ) -> Result<DevicePtr> {
        let mut error = error;
        for _ in 0..RETRIES_MAX {
            let Error::OutOfMemory(shortage) = &error else { break };
            if !may_grow || OBSERVING.get() {
                break;
            }
            let observers: Vec<OomObserver> = self.shared.observers.lock().iter().map(|(_, o)| o.clone()).collect();
            OBSERVING.set(true);
            let ask = |any, observer: &OomObserver| (observer(shortage) == OomAction::Retry) | any;
            let retry = catch_unwind(AssertUnwindSafe(|| observers.iter().fold(false, ask)));
            OBSERVING.set(false);
            let retry = retry.unwrap_or_else(|panic| resume_unwind(panic));
            if !retry {
                break;
            }
            match again() {
                Ok(ptr) => {
                    device.count_observed();
                    return Ok(ptr);
                }
                Err(next) => error = self.name_tags(next),
            }
        }
        Err(error)
    }

    #[cold]
    fn name_tags(&self, mut error: Error) -> Error {
        if let Error::OutOfMemory(shortage) = &mut error {
            shortage.explanation.name_tags(|tag| self.tag_name(Tag(tag)));
        }
        error
    }

    /// Frees memory from [`Allocator::raw_alloc`] or [`Allocation::into_raw`], in the order of its home stream: work submitted to that stream
    /// before may still use it. Costs no driver call, but for blocks with recorded streams now and then an event.
    #[inline(always)]
    pub fn raw_free(&self, ptr: DevicePtr) -> Result<()> {
        if self.shared.first.try_free(ptr) { Ok(()) } else { self.free_slow(ptr) }
    }

    #[cold]
    #[inline(never)]
    fn free_slow(&self, ptr: DevicePtr) -> Result<()> {
        if let Some(freed) = self.free_evictable(ptr) {
            return freed;
        }
        let Some((device, block)) = self.locate(ptr) else { return Err(Error::InvalidPointer { ptr }) };
        // The first device's magazine has had its turn.
        let is_first = std::ptr::eq(device, &*self.shared.first);
        let freed = if !is_first && device.try_free(ptr) { Ok(()) } else { device.free_block(block) };
        self.tell_found(device);
        freed
    }

    /// [`Allocator::raw_free`] where the caller says which device the memory is on, and is told if it is not.
    pub fn raw_free_on(&self, ptr: DevicePtr, device: usize) -> Result<()> {
        let given = self.device(device)?;
        if let Some(owner) = self.evictable_on(ptr) {
            let owner = owner.device().pool.device;
            let wrong = Error::WrongDevice { ptr, given: device, owner };
            return if owner == device { self.free_slow(ptr) } else { Err(wrong) };
        }
        match self.owner(ptr) {
            Some(owner) if owner.pool.device != given.pool.device => {
                Err(Error::WrongDevice { ptr, given: device, owner: owner.pool.device })
            }
            _ => {
                let freed = given.free(ptr);
                self.tell_found(given);
                freed
            }
        }
    }

    pub(crate) fn free_or_count(&self, ptr: DevicePtr) {
        if self.raw_free(ptr).is_err() {
            self.shared.failed_drops.fetch_add(1, Relaxed);
        }
    }

    /// Allocations whose memory could not be freed when they were dropped.
    pub fn failed_drops(&self) -> u64 {
        self.shared.failed_drops.load(Relaxed)
    }

    /// The device and block that a pointer belongs to: where its block is live, or else where it was. Plain memory that one device gave back
    /// may have turned up on another.
    fn locate(&self, ptr: DevicePtr) -> Option<(&DeviceCache, BlockId)> {
        let mut found = self.shared.devices.iter().filter_map(|device| Some((&**device, device.find(ptr)?)));
        let (first, (block, header)) = found.next()?;
        if header.check_live().is_ok() {
            return Some((first, block));
        }
        let live = found.find(|(_, (_, header))| header.check_live().is_ok());
        Some(live.map_or((first, block), |(device, (block, _))| (device, block)))
    }

    fn owner(&self, ptr: DevicePtr) -> Option<&DeviceCache> {
        self.locate(ptr).map(|(device, _)| device)
    }

    /// Says that work on `stream` uses the live block at `ptr`. Its free then takes effect when `stream`, too, has done what was submitted to it
    /// before the free. Call it before freeing, once for every stream other than the home stream.
    pub fn record_stream(&self, ptr: DevicePtr, stream: StreamId) -> Result<()> {
        match self.shared.first.find(ptr) {
            Some((block, header)) if header.check_live().is_ok() => self.shared.first.record_stream(block, stream),
            _ => {
                if self.shared.tiers.iter().flatten().any(|tiers| tiers.record_stream(ptr, stream)) {
                    return Ok(());
                }
                let (device, block) = self.locate(ptr).ok_or(Error::InvalidPointer { ptr })?;
                device.record_stream(block, stream)
            }
        }
    }

    /// The bytes that may be used at a live block's pointer: what was requested, rounded up.
    pub fn usable_size(&self, ptr: DevicePtr) -> Result<u64> {
        if let Some(usable) = self.shared.tiers.iter().flatten().find_map(|tiers| tiers.usable_size(ptr)) {
            return Ok(usable);
        }
        let device = self.owner(ptr).ok_or(Error::InvalidPointer { ptr })?;
        let (_, header) = device.find(ptr).ok_or(Error::InvalidPointer { ptr })?;
        header.check_live()?;
        // What is behind belongs to the red zone, if there is one.
        Ok(if device.pool.redzone() > 0 { header.requested() } else { header.size() })
    }

    /// A device in numbers.
    pub fn stats(&self, device: usize) -> Result<Stats> {
        Ok(self.device(device)?.stats())
    }

    /// Starts new peaks from what is in use now.
    pub fn reset_peaks(&self, device: usize) -> Result<()> {
        self.device(device)?.reset_peaks();
        Ok(())
    }

    /// Gives free memory back to the device, after waiting for the streams it was last used on. Returns the bytes given back.
    pub fn empty_cache(&self, device: usize) -> Result<u64> {
        self.device(device)?.empty()
    }

    /// Bounds the physical memory held on a device. Gives free memory back if need be, and has evictable blocks go to a tier; fails, and leaves
    /// the bound as it was, where more is in use.
    pub fn set_limit(&self, device: usize, limit: Limit) -> Result<()> {
        let device = self.device(device)?;
        let limit = limit.bytes(device.pool.capacity);
        match device.set_limit(limit) {
            Err(Error::LimitBelowUse { in_use, .. }) => self.lower_limit(device, limit, in_use),
            done => done,
        }
    }

    /// The tag with this name, made if there is none yet. There may be 63.
    pub fn tag(&self, name: &str) -> Result<Tag> {
        let mut tags = self.shared.tags.lock();
        if let Some(number) = tags.iter().position(|known| known == name) {
            return Ok(Tag(number as u8));
        }
        if tags.len() == TAGS {
            return Err(Error::InvalidTag { tag: TAGS as u8, max: TAGS as u8 - 1 });
        }
        tags.push(name.to_string());
        Ok(Tag(tags.len() as u8 - 1))
    }

    /// A tag's name.
    pub fn tag_name(&self, tag: Tag) -> Option<String> {
        self.shared.tags.lock().get(tag.0 as usize).cloned()
    }

    /// Bounds the live bytes of a tag on a device; `None` lifts the bound. Fails, and changes nothing, where more is live.
    pub fn set_tag_limit(&self, device: usize, tag: Tag, limit: Option<Limit>) -> Result<()> {
        let device = self.device(device)?;
        device.set_tag_limit(tag.0, limit.map(|limit| limit.bytes(device.pool.capacity)))
    }

    /// Adds an observer of requests that find no room. Returns its number.
    pub fn add_oom_observer(&self, observer: impl Fn(&OutOfMemory) -> OomAction + Send + Sync + 'static) -> u64 {
        let number = self.shared.next_observer.fetch_add(1, Relaxed);
        self.shared.observers.lock().push((number, Arc::new(observer)));
        number
    }

    /// Removes an observer. Returns whether there was one of that number.
    pub fn remove_oom_observer(&self, number: u64) -> bool {
        let mut observers = self.shared.observers.lock();
        let before = observers.len();
        observers.retain(|&(other, _)| other != number);
        observers.len() < before
    }

    /// Why the last request on a device failed that found no room, whether it was refused at once ([`Error::NeverFits`], [`Error::OverLimit`]),
    /// failed in the driver, or ran out of memory.
    pub fn last_oom(&self, device: usize) -> Result<Option<OomExplanation>> {
        let mut last = self.device(device)?.last_oom();
        if let Some(explanation) = &mut last {
            explanation.name_tags(|tag| self.tag_name(Tag(tag)));
        }
        Ok(last)
    }

    /// The newest events of a device, oldest first. Empty unless `trace` is configured.
    pub fn events(&self, device: usize) -> Result<Vec<Event>> {
        Ok(self.device(device)?.pool.ring.events())
    }

    /// Sets who is told of a device's rare events, or nobody. Returns who was. Costs calls that a magazine serves nothing.
    pub fn observe_events(&self, device: usize, observer: Option<EventObserver>) -> Result<Option<EventObserver>> {
        Ok(self.device(device)?.pool.ring.observe(observer))
    }

    /// A device's memory, segment by segment, and the newest events. Takes time in proportion to the blocks, and holds up all calls meanwhile.
    pub fn snapshot(&self, device: usize) -> Result<Snapshot> {
        let cache = self.device(device)?;
        Ok(Snapshot { device, segments: cache.segments(), events: cache.pool.ring.events() })
    }

    /// The block that contains an address and is not free, and the device that it is on. Takes time in proportion to the blocks, unless the
    /// address is that of a live block's first byte.
    pub fn block_at(&self, ptr: DevicePtr) -> Option<(usize, BlockInfo)> {
        let devices = self.shared.devices.iter();
        let mut found = devices.filter_map(|device| Some((device.pool.device, device.block_at(ptr)?)));
        found.next().or_else(|| {
            let mut tiers = self.shared.tiers.iter().flatten();
            tiers.find_map(|tiers| Some((tiers.device().pool.device, tiers.block_at(ptr)?)))
        })
    }

    /// Checks every structure of a device, in time proportional to its blocks. For tests; exact when no call is under way.
    pub fn validate(&self, device: usize) -> Result<std::result::Result<(), String>> {
        Ok(self.device(device)?.validate())
    }
}
