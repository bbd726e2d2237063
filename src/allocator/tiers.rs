//! Evictable memory: blocks whose bytes may leave the device and come back, at the same address.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{AllocFlags, AllocRequest, Allocator, Lifetime, Tag};
use crate::cache::{DeviceCache, Request};
use crate::config::{Config, TierAdmission, TierSpec};
use crate::driver::Driver;
use crate::error::{Error, OomTiers, ResidencyError, Result};
use crate::tier::policy::Policy;
use crate::tier::residency::{Store, Tiers};
use crate::tier::transfer::{Engine, EngineConfig};
use crate::tier::{
    Evictable, HostConfig, HostTier, MemoryChange, PeerTier, PinGuard, Residency, Select, SleepPlan, Stash, Tier,
    TierKind, TierStats, nvme,
};
use crate::units::{DevicePtr, StreamId};

/// So often a request makes room, each time for twice as much.
const ROOMS_MAX: u32 = 40;

impl From<Tag> for u8 {
    fn from(tag: Tag) -> u8 {
        tag.number()
    }
}

/// A tier of the user's own: for which device, and of what kind.
#[derive(Debug, Clone)]
pub(super) struct OwnTier {
    pub(super) device: usize,
    pub(super) tier: Arc<dyn Tier>,
    pub(super) kind: TierKind,
}

/// The tiers of all devices, where there are any.
pub(super) fn open(devices: &[Arc<DeviceCache>], config: &Config, own: &[OwnTier]) -> Result<Vec<Option<Arc<Tiers>>>> {
    if let Some(own) = own.iter().find(|own| own.device >= devices.len()) {
        return Err(Error::UnknownDevice { device: own.device, count: devices.len() });
    }
    let of_device = |(index, device): (usize, &Arc<DeviceCache>)| {
        let mut stores = configured(index, devices, config)?;
        let own = own.iter().filter(|own| own.device == index);
        stores.extend(own.map(|own| Store { tier: own.tier.clone(), kind: own.kind }));
        if stores.is_empty() {
            return Ok(None);
        }
        let engine = EngineConfig { workers: config.tier_workers, ..EngineConfig::default() };
        let engine = Engine::new(device.pool.driver.clone(), engine)?;
        let policy = config.tier_policy.to_string().parse::<Policy>().unwrap_or_default();
        let policy = policy.build(device.pool.capacity);
        let selective = config.tier_admission == TierAdmission::Again;
        Ok(Some(Arc::new(Tiers::new(device.clone(), engine, stores, policy, selective))))
    };
    devices.iter().enumerate().map(of_device).collect()
}

fn configured(index: usize, devices: &[Arc<DeviceCache>], config: &Config) -> Result<Vec<Store>> {
    let mut stores: Vec<Store> = Vec::new();
    let mut paths = Vec::new();
    for spec in &config.tiers.specs {
        match spec {
            TierSpec::Host(bytes) => {
                let driver: Arc<dyn Driver> = devices[index].pool.driver.clone();
                let tier = host(driver, bytes.0, config)?;
                stores.push(Store { tier, kind: TierKind::Host });
            }
            TierSpec::Nvme { folder, bytes } => paths.push((folder.clone(), bytes.0)),
            TierSpec::Peer { device, .. } if *device == index => {}
            TierSpec::Peer { device, bytes } => {
                let count = devices.len();
                let peer = devices.get(*device).ok_or(Error::UnknownDevice { device: *device, count })?;
                let tier = peer_tier(&devices[index], peer, bytes.0)?;
                stores.push(Store { tier, kind: TierKind::Peer });
            }
        }
    }
    if !paths.is_empty() {
        let spec = nvme::NvmeSpec { encrypt: config.tier_encrypt, ..nvme::NvmeSpec::new(paths) };
        let tier = nvme::open(&spec)?;
        stores.push(Store { tier, kind: TierKind::Disk });
    }
    Ok(stores)
}

/// So much is pinned at a time, and so much taken of another device.
const STEP: u64 = 256 << 20;

/// With workers, it is pinned in the background from now on.
fn host(driver: Arc<dyn Driver>, bytes: u64, config: &Config) -> Result<Arc<dyn Tier>> {
    let background = config.tier_workers > 0;
    let host = HostConfig { capacity_bytes: bytes, step_bytes: STEP.min(bytes), background };
    Ok(Arc::new(HostTier::new(driver, &host)?))
}

fn peer_tier(device: &Arc<DeviceCache>, peer: &Arc<DeviceCache>, bytes: u64) -> Result<Arc<dyn Tier>> {
    let ordinal = peer.pool.driver.properties().ordinal;
    Ok(Arc::new(PeerTier::new(device.pool.driver.clone(), ordinal, bytes, STEP.min(bytes))?))
}

impl Allocator {
    fn tiers(&self, device: usize) -> Result<&Arc<Tiers>> {
        self.device(device)?;
        Ok(self.shared.tiers.get(device).and_then(Option::as_ref).ok_or(ResidencyError::NoTiers)?)
    }

    fn all_tiers(&self) -> impl Iterator<Item = &Arc<Tiers>> {
        self.shared.tiers.iter().flatten()
    }

    /// Frees an evictable block; `None` where it is none.
    pub(super) fn free_evictable(&self, ptr: DevicePtr) -> Option<Result<()>> {
        self.all_tiers().find_map(|tiers| tiers.free(ptr))
    }

    /// The tiers of the device that an evictable block is on, if it is one.
    pub(super) fn evictable_on(&self, ptr: DevicePtr) -> Option<&Arc<Tiers>> {
        self.all_tiers().find(|tiers| tiers.owns(ptr))
    }

    /// The tiers of the device that an evictable block is on.
    fn tiers_of(&self, ptr: DevicePtr) -> Result<&Arc<Tiers>> {
        Ok(self.evictable_on(ptr).ok_or(ResidencyError::NotEvictable { ptr })?)
    }

    /// Allocates a block that may leave the device and come back, at the same address. It is freed by [`Allocator::raw_free`]. Whoever uses it
    /// holds a pin ([`Allocator::pin`]) while submitting the work, unless it goes only when it is asked to.
    ///
    /// ```
    /// use stratalloc::tier::{Evictable, Select};
    /// use stratalloc::{AllocRequest, Allocator, ByteSize, Config, DeviceSpec, StreamId};
    /// # fn main() -> stratalloc::Result<()> {
    /// let config = Config::parse("tiers:host=64MiB")?;
    /// let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(1))).config(config).build()?;
    /// let ptr = allocator.alloc_evictable(AllocRequest::new(8 << 20), Evictable::default())?;
    /// allocator.offload(Select::Ptr(ptr))?;
    /// assert_eq!(allocator.stats(0)?.live.current, 0);
    /// let pinned = allocator.pin(ptr, StreamId::DEFAULT)?; // It is back. Submit work that uses it, then let go.
    /// drop(pinned);
    /// allocator.raw_free(ptr)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ResidencyError::NoTiers`] where none are configured, [`ResidencyError::NoVirtualMemory`] where the device has none, and what
    /// [`Allocator::raw_alloc`] says.
    pub fn alloc_evictable(&self, request: AllocRequest, how: Evictable) -> Result<DevicePtr> {
        let tiers = self.tiers(request.device)?;
        let device = self.device(request.device)?;
        if !device.pool.driver.properties().vmm {
            return Err(ResidencyError::NoVirtualMemory.into());
        }
        if request.flags.contains(AllocFlags::DEDICATED) {
            return Err(ResidencyError::Dedicated.into());
        }
        let inner = request.inner(true);
        let again = || match tiers.alloc(inner, &how)? {
            Some(ptr) => Ok(ptr),
            None => Err(Error::OutOfMemory(Box::default())),
        };
        let ptr = self.with_room(tiers, inner, &again, &|| Err(device.no_extent(inner)))?;
        if !request.flags.contains(AllocFlags::ZEROED) {
            return Ok(ptr);
        }
        // It stays until that is submitted.
        let pin = PinGuard::new(tiers, ptr, request.stream);
        let zeroed = pin.and_then(|_pin| Ok(device.pool.driver.fill(ptr, request.size, 0, request.stream)?));
        zeroed.map(|()| ptr).inspect_err(|_| self.free_or_count(ptr))
    }

    /// A request for which evictable blocks go to a tier where there is no room.
    #[inline]
    pub(super) fn alloc_with_tiers(&self, device: &DeviceCache, inner: Request) -> Result<DevicePtr> {
        let tiers = self.shared.tiers.get(device.pool.device).and_then(Option::as_ref);
        match tiers.filter(|tiers| inner.may_grow && tiers.has_blocks()) {
            Some(tiers) => {
                let first = Request { first_try: true, ..inner };
                self.with_room(tiers, inner, &|| device.alloc(first), &|| device.alloc(inner))
            }
            None => device
                .alloc(inner)
                .or_else(|error| self.observe(device, inner.may_grow, self.name_tags(error), &|| device.alloc(inner))),
        }
    }

    /// Tries until there is room: evicts for it, at last explains why there is none, and asks observers.
    #[cold]
    fn with_room(
        &self,
        tiers: &Arc<Tiers>,
        inner: Request,
        again: &dyn Fn() -> Result<DevicePtr>,
        explain: &dyn Fn() -> Result<DevicePtr>,
    ) -> Result<DevicePtr> {
        let mut told = OomTiers::default();
        let mut wanted = inner.size;
        let attempt = |told: &mut OomTiers, wanted: &mut u64| {
            for _ in 0..ROOMS_MAX {
                match again() {
                    Err(Error::OutOfMemory(_)) if inner.may_grow => {}
                    Err(Error::OutOfMemory(_)) => break,
                    served => {
                        if told.evicted > 0 && served.is_ok() {
                            tiers.device().count_evicted();
                        }
                        return served;
                    }
                }
                let room = tiers.make_room(*wanted);
                told.evicted += room.evicted;
                if let Some(failure) = room.failure {
                    told.failure.get_or_insert_with(|| failure.to_string());
                }
                if room.evicted == 0 {
                    break;
                }
                // What has become free may not be where the request can use it.
                *wanted = wanted.saturating_mul(2);
            }
            let mut outcome = explain();
            if let Err(error) = &mut outcome {
                (told.evictable, told.pinned) = tiers.evictable();
                tiers.device().tell_tiers(error, told);
            }
            outcome
        };
        attempt(&mut told, &mut wanted).or_else(|error| {
            let again = || attempt(&mut OomTiers::default(), &mut inner.size.clone());
            self.observe(tiers.device(), inner.may_grow, self.name_tags(error), &again)
        })
    }

    /// Bounds a device's memory by less than is in use: evictable blocks go to a tier for it.
    #[cold]
    pub(super) fn lower_limit(&self, device: &DeviceCache, limit: u64, mut in_use: u64) -> Result<()> {
        let tiers = self.shared.tiers.get(device.pool.device).and_then(Option::as_ref);
        loop {
            let evicted = tiers.map_or(0, |tiers| tiers.make_room(in_use.saturating_sub(limit)).evicted);
            match device.set_limit(limit) {
                Err(Error::LimitBelowUse { in_use: now, .. }) if evicted > 0 => in_use = now,
                done => return done,
            }
        }
    }

    /// Has an evictable block on its device, and keeps it there while the guard lives. Work submitted to `stream` from now on finds its bytes.
    /// Waits on the host for no more than transfers of its own.
    ///
    /// # Errors
    /// [`ResidencyError::NoRoom`] where other blocks are in the way that cannot go, [`ResidencyError::Asleep`], [`ResidencyError::Recompute`], and
    /// [`Error::Tier`] where its bytes cannot be had back. They are where they were.
    pub fn pin(&self, ptr: DevicePtr, stream: StreamId) -> Result<PinGuard> {
        PinGuard::new(self.tiers_of(ptr)?, ptr, stream)
    }

    /// Begins to have an evictable block back for work on `stream`, which is recorded for it. A pin then waits for what is left.
    ///
    /// # Errors
    /// As [`Allocator::pin`].
    pub fn prefetch(&self, ptr: DevicePtr, stream: StreamId) -> Result<()> {
        self.tiers_of(ptr)?.prefetch(ptr, stream)
    }

    /// Has evictable blocks go to a tier, behind what their streams have been given to do. Returns the bytes of device memory that this
    /// freed. Blocks that share memory go together; pinned ones stay.
    ///
    /// # Errors
    /// [`ResidencyError::Pinned`] where a pinned block was named, and [`Error::Tier`] where some could not go.
    pub fn offload(&self, select: Select) -> Result<u64> {
        if let Select::Ptr(ptr) = select {
            return self.tiers_of(ptr)?.offload(select);
        }
        self.all_tiers().try_fold(0, |sum, tiers| Ok(sum + tiers.offload(select)?))
    }

    /// Has evictable blocks back. For those of a tag or for all, none of them goes to make room for another.
    ///
    /// # Errors
    /// As [`Allocator::pin`].
    pub fn restore_evicted(&self, select: Select) -> Result<()> {
        if let Select::Ptr(ptr) = select {
            return self.tiers_of(ptr)?.restore(select);
        }
        self.all_tiers().try_for_each(|tiers| tiers.restore(select))
    }

    /// Puts the evictable memory of all devices away as planned, and gives all free memory back to them. All of it or none. Returns the bytes of evictable
    /// memory that have gone.
    ///
    /// # Errors
    /// [`ResidencyError::Asleep`] where it sleeps already, [`ResidencyError::Pinned`], and [`Error::Tier`] where some could not go.
    pub fn sleep(&self, plan: &SleepPlan) -> Result<u64> {
        let mut slept: Vec<&Arc<Tiers>> = Vec::new();
        let mut bytes = 0;
        for tiers in self.all_tiers() {
            match tiers.sleep(plan) {
                Ok(gone) => bytes += gone,
                Err(error) => {
                    slept.iter().try_for_each(|tiers| tiers.wake(None))?;
                    return Err(error);
                }
            }
            slept.push(tiers);
        }
        if slept.is_empty() {
            return Err(ResidencyError::NoTiers.into());
        }
        // The bytes are safe whether or not that works, which a later call may do as well.
        slept.iter().for_each(|tiers| _ = tiers.device().empty());
        Ok(bytes)
    }

    /// Has back what [`Allocator::sleep`] has put away: the blocks of these tags, or all. What had been in a tier before stays there. Of blocks whose bytes
    /// were not wanted, only the memory is back.
    ///
    /// # Errors
    /// [`ResidencyError::Awake`] where nothing sleeps, and as [`Allocator::pin`]. What is awake then stays so; the rest may be tried again.
    pub fn wake(&self, tags: Option<&[Tag]>) -> Result<()> {
        let numbers: Option<Vec<u8>> = tags.map(|tags| tags.iter().map(|tag| tag.number()).collect());
        let sleeping: Vec<&Arc<Tiers>> = self.all_tiers().filter(|tiers| tiers.is_asleep()).collect();
        if sleeping.is_empty() {
            return Err(ResidencyError::Awake.into());
        }
        sleeping.into_iter().try_for_each(|tiers| tiers.wake(numbers.as_deref()))
    }

    /// Where the bytes of an evictable block are.
    ///
    /// # Errors
    /// [`ResidencyError::NotEvictable`].
    pub fn residency(&self, ptr: DevicePtr) -> Result<Residency> {
        self.tiers_of(ptr)?.residency(ptr)
    }

    /// The evictable memory of a device in numbers; all 0 where there are no tiers.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`].
    pub fn tier_stats(&self, device: usize) -> Result<TierStats> {
        self.device(device)?;
        Ok(self
            .shared
            .tiers
            .get(device)
            .and_then(Option::as_ref)
            .map_or_else(TierStats::default, |tiers| tiers.stats()))
    }

    /// Lets work that is submitted to `stream` from now on come after all that has begun to come back to a device: for streams that no call
    /// has named.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::Capturing`], and what the driver says.
    pub fn follow_restores(&self, device: usize, stream: StreamId) -> Result<()> {
        self.device(device)?;
        match self.shared.tiers.get(device).and_then(Option::as_ref) {
            Some(tiers) if tiers.has_blocks() => tiers.follow(stream),
            _ => Ok(()),
        }
    }

    /// Whether a device has tiers.
    pub fn has_tiers(&self, device: usize) -> bool {
        self.shared.tiers.get(device).is_some_and(Option::is_some)
    }

    /// Adds an observer of memory that goes and comes back, for registrations of it with others (NICs, NCCL). Returns its number.
    ///
    /// # Errors
    /// [`ResidencyError::NoTiers`].
    pub fn on_residency(&self, observer: impl Fn(&MemoryChange) + Send + Sync + 'static) -> Result<u64> {
        if self.all_tiers().next().is_none() {
            return Err(ResidencyError::NoTiers.into());
        }
        let number = self.shared.next_observer.fetch_add(1, Relaxed);
        let observer = Arc::new(observer);
        self.all_tiers().for_each(|tiers| tiers.observe(number, observer.clone()));
        Ok(number)
    }

    /// Removes an observer. Returns whether there was one of that number.
    pub fn remove_residency_observer(&self, number: u64) -> bool {
        self.all_tiers().fold(false, |any, tiers| tiers.forget_observer(number) | any)
    }

    /// Copies `size` bytes at `ptr`, inside of a live block, to a tier, by its name or the first with room, once `stream` has done what it has been
    /// given so far. The block may be freed when [`Stash::may_free`] says so; the copy is recorded for it.
    ///
    /// # Errors
    /// [`ResidencyError::NoTiers`], [`Error::InvalidPointer`], [`Error::InvalidSize`] for more than the block has, and [`Error::Tier`].
    pub fn stash(&self, ptr: DevicePtr, size: u64, stream: StreamId, tier: Option<&str>) -> Result<Stash> {
        let (device, block) = self.block_at(ptr).ok_or(Error::InvalidPointer { ptr })?;
        let room = block.size - (ptr.0 - block.ptr.0);
        if size == 0 || size > room {
            return Err(Error::InvalidSize { size, max: room });
        }
        let tiers = self.tiers(device)?;
        // One that may leave is kept there while it is read.
        let pin = self.evictable_on(block.ptr).map(|owner| PinGuard::new(owner, block.ptr, stream)).transpose()?;
        let stash = tiers.stash(ptr, size, stream, tier, pin)?;
        self.record_stream(block.ptr, tiers.engine().stream(false)?)?;
        Ok(stash)
    }

    /// Checks all that is known of evictable blocks. For tests; exact when no call is under way.
    pub fn validate_tiers(&self) -> std::result::Result<(), String> {
        self.all_tiers().try_for_each(|tiers| tiers.validate())
    }
}

impl AllocRequest {
    /// As a device takes it.
    pub(super) fn inner(&self, first_try: bool) -> Request {
        Request {
            size: self.size,
            alignment: self.alignment,
            stream: self.stream,
            tag: self.tag.0,
            persistent: self.lifetime == Lifetime::Persistent,
            may_grow: !self.flags.contains(AllocFlags::NO_GROW),
            dedicated: self.flags.contains(AllocFlags::DEDICATED),
            first_try,
        }
    }
}
