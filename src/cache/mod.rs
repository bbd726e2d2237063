//! One device as threads see it: magazines in front of the pool.
//!
//! The hot path is [`DeviceCache::try_alloc`], as far as the magazine has a block, and [`DeviceCache::try_free`]: no lock, no atomic
//! read-modify-write, no driver call. Everything else takes the pool's lock.
//!
//! | file | what |
//! |---|---|
//! | `threads` | which cache is the calling thread's |
//! | `gate` | how others shut a thread out of its cache |
//! | `magazine` | the cache: stacks of free blocks |
//! | `counts`, `stats` | what threads count, and its sums |
//! | `tags` | what a tag's blocks may be together |
//! | `miss` | plain requests that the magazine has no block for |
//! | `oom` | why a request found no room, as it is kept and told |
//! | `private`, `extents`, `defrag` | the pool's files of these names, behind its lock |

mod counts;
mod defrag;
mod extents;
mod gate;
mod magazine;
mod miss;
mod oom;
mod private;
mod stats;
mod tags;
mod threads;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::block::{CLASS_SIZE_MAX, ClassId, block_granules};
use crate::config::Config;
use crate::debug::MemoryReport;
use crate::driver::Driver;
use crate::error::{Error, OomExplanation, PlanError, Result};
use crate::plan::{Export, PlanStats};
use crate::pool::{BlockId, Drain, Header, Key, Kind, LaneBits, Magazines, Pool, PoolState, Pressure, Want};
use crate::sync::Mutex;
use crate::telemetry::{BlockInfo, BlockState, Event, EventKind, Rung, SegmentInfo};
use crate::units::{DevicePtr, GRANULE, PAGE, StreamId};

pub(crate) use counts::TAGS;
pub(crate) use extents::{NEVER, Stamp};
use gate::Gate;
use magazine::ThreadCache;
use stats::Retired;

/// The most that can be asked for, in bytes: what a block's number of granules can say.
pub(crate) const SIZE_MAX: u64 = (u32::MAX as u64) * GRANULE;
/// The largest alignment served, in bytes.
pub(crate) const ALIGNMENT_MAX: u64 = PAGE;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) size: u64,
    pub(crate) alignment: u64,
    pub(crate) stream: StreamId,
    pub(crate) tag: u8,
    /// Expected to live long: to be put apart.
    pub(crate) persistent: bool,
    /// Whether memory may be taken from the device, and streams waited for.
    pub(crate) may_grow: bool,
    /// Whether the block gets a physical allocation of its own.
    pub(crate) dedicated: bool,
    /// Whether the tiers are asked for room where there is none: the first attempt then says no more than that.
    pub(crate) first_try: bool,
}

impl Request {
    /// What no device could serve.
    #[inline]
    fn check(&self) -> Result<()> {
        let Request { size, alignment, tag, .. } = *self;
        if size == 0 || size > SIZE_MAX {
            return Err(Error::InvalidSize { size, max: SIZE_MAX });
        }
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            return Err(Error::InvalidAlignment { alignment, max: ALIGNMENT_MAX });
        }
        if tag as usize >= TAGS {
            return Err(Error::InvalidTag { tag, max: TAGS as u8 - 1 });
        }
        Ok(())
    }
}

/// One device: its pool, and its threads' magazines.
#[derive(Debug)]
pub(crate) struct DeviceCache {
    /// Unique in the process, never used again.
    pub(crate) number: u64,
    pub(crate) pool: Pool,
    this: Weak<DeviceCache>,
    /// Whether debug aids are on.
    watched: bool,
    /// Bytes that one thread may hold.
    magazine_bytes: u64,
    /// How far a thread's counts may drift from the sums.
    drift: i64,
    /// Bit t: tag t has a limit, and its requests take the lock.
    limited_tags: AtomicU64,
    tag_limits: Mutex<[u64; TAGS]>,
    /// Locked after the pool, if both are.
    threads: Mutex<Vec<&'static ThreadCache>>,
    retired: Mutex<Retired>,
    /// Why the last request failed that found no room.
    last_oom: Mutex<Option<Box<OomExplanation>>>,
}

impl DeviceCache {
    pub(crate) fn new(device: usize, driver: Arc<dyn Driver>, config: &Config) -> Result<Arc<DeviceCache>> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let pool = Pool::new(device, driver, config.clone())?;
        let magazine_bytes = (pool.capacity as f64 * config.magazine) as u64;
        let drift = (pool.capacity >> 7) as i64;
        let watched = pool.lock().is_watched();
        Ok(Arc::new_cyclic(|this| DeviceCache {
            watched,
            number: NUMBER.fetch_add(1, Relaxed),
            pool,
            this: this.clone(),
            magazine_bytes,
            drift,
            limited_tags: AtomicU64::new(0),
            tag_limits: Mutex::new([u64::MAX; TAGS]),
            threads: Mutex::new(Vec::new()),
            retired: Mutex::new(Retired::default()),
            last_oom: Mutex::new(None),
        }))
    }

    /// A block from the thread's magazine, or else from what its lane has free, for a request where nothing but size, stream and tag matters.
    /// Null where that does not do, for whatever reason: [`DeviceCache::alloc`] knows.
    #[inline(always)]
    pub(crate) fn try_alloc(&self, size: u64, stream: StreamId, tag: u8) -> DevicePtr {
        let granules = block_granules(size);
        if granules > SIZE_MAX / GRANULE {
            return DevicePtr::NULL;
        }
        let Some(cache) = threads::current(self.number) else { return DevicePtr::NULL };
        if !cache.gate.try_enter() {
            return DevicePtr::NULL;
        }
        // Inside the gate, so that a limit holds from the moment on at which it is set.
        if tag != 0 && self.tag_is_limited(tag) {
            cache.gate.leave();
            return DevicePtr::NULL;
        }
        let ptr = cache.pop(Key::new(cache.lane(stream), granules as u32), size, tag, &self.pool);
        cache.gate.leave();
        if ptr.is_null() { self.miss(cache, stream, size, tag) } else { ptr }
    }

    /// Takes a block back into the thread's magazine, if it is a plain one of this device and there is room. Where not, for whatever
    /// reason, nothing has changed: [`DeviceCache::free`] knows.
    #[inline(always)]
    pub(crate) fn try_free(&self, ptr: DevicePtr) -> bool {
        let Some((block, header)) = self.pool.directory.find(ptr) else { return false };
        if !header.is_plainly_live() {
            return false;
        }
        let Some(cache) = threads::current(self.number) else { return false };
        if !cache.gate.try_enter() {
            return false;
        }
        let taken = cache.push(block, header, 0);
        cache.gate.leave();
        taken
    }

    /// Takes a block back, in the order of its home stream.
    pub(crate) fn free(&self, ptr: DevicePtr) -> Result<()> {
        if self.try_free(ptr) {
            return Ok(());
        }
        let (block, _) = self.find(ptr).ok_or(Error::InvalidPointer { ptr })?;
        self.free_block(block)
    }

    /// The block at `ptr`, if it is this device's.
    #[inline]
    pub(crate) fn find(&self, ptr: DevicePtr) -> Option<(BlockId, &Header)> {
        self.pool.directory.find(ptr)
    }

    /// Hands out a block.
    #[inline]
    pub(crate) fn alloc(&self, request: Request) -> Result<DevicePtr> {
        request.check()?;
        let Request { size, alignment, .. } = request;
        // What follows is about the block, which may be longer than what is asked for.
        let size = size.saturating_add(self.pool.redzone());
        if request.dedicated {
            if alignment > GRANULE {
                return Err(Error::InvalidAlignment { alignment, max: GRANULE });
            }
            let bytes = size.next_multiple_of(PAGE).min(SIZE_MAX);
            return self.alloc_slow(request, (bytes / GRANULE) as u32);
        }
        let padded = size.max(alignment);
        if alignment > GRANULE && padded <= CLASS_SIZE_MAX {
            // A class that is a power of two has all its slots at multiples of it.
            return self.alloc_slow(request, (padded.next_power_of_two() / GRANULE) as u32);
        }
        // No slot is sure to be aligned to more than the largest class: the smallest block of an arena is.
        let least = if alignment > CLASS_SIZE_MAX { CLASS_SIZE_MAX + 1 } else { 1 };
        self.alloc_slow(request, block_granules(size.max(least).min(SIZE_MAX)) as u32)
    }

    /// Hands out a block under the pool's lock.
    #[inline(never)]
    fn alloc_slow(&self, request: Request, granules: u32) -> Result<DevicePtr> {
        let Request { size, alignment, stream, tag, persistent, may_grow, dedicated, first_try } = request;
        let cache = threads::current_or_new(self);
        let pool = &self.pool;
        let mut state = pool.lock();
        let block_size = u64::from(granules) * GRANULE;
        if block_size > state.limit() {
            return Err(self.never_fits(&state, request, block_size));
        }
        if self.tag_is_limited(tag) {
            self.check_tag_limit(&state, request)?;
        }
        // Slots are aligned to the largest power of two that divides their class, and none is larger than the largest class.
        let is_slot = block_size <= CLASS_SIZE_MAX && alignment <= CLASS_SIZE_MAX && !dedicated;
        let cached = cache.filter(|_| !state.private.routing());
        let lane = match cached.map(|cache| cache.lane(stream)) {
            Some(lane) if lane != LaneBits::NONE => lane.lane(),
            _ => {
                let lane = state.lane(stream)?;
                if let Some(cache) = cached {
                    cache.remember_lane(stream, lane);
                }
                lane
            }
        };
        let any_will_do = is_slot || (alignment <= GRANULE && !persistent && !dedicated);
        let key = Key::new(LaneBits::new(lane), granules);
        let from_magazine = cached.filter(|_| any_will_do).map(|cache| cache.pop(key, size, tag, pool));
        let ptr = match from_magazine {
            Some(ptr) if !ptr.is_null() => ptr,
            _ => {
                let kind = if is_slot {
                    state.slot(lane, ClassId::for_size(block_size))
                } else if dedicated {
                    Kind::Dedicated { size: block_size }
                } else {
                    Kind::Range { size: block_size, alignment: alignment.max(GRANULE), persistent }
                };
                let want = Want { lane, kind, may_grow };
                // By plan, nothing is packed: what is large is not in magazines either.
                if let Some(cache) = cache.filter(|_| !is_slot && !pool.plans_for(block_size))
                    && self.pack(&mut state, cache, key) == Pressure::Idle
                {
                    pool.gather_idle(&mut state, want, self);
                }
                let mut served = pool.alloc(&mut state, want, self);
                // Once more with what quarantine holds, if it holds any.
                if !matches!(served, Ok(Some(_))) && pool.release_held(&mut state, Some(0)) > 0 {
                    served = pool.alloc(&mut state, want, self);
                }
                let (block, rung) = match served {
                    Ok(Some(found)) => found,
                    Ok(None) if first_try => return Err(Error::OutOfMemory(Box::default())),
                    Err(error) if first_try && error.is_out_of_memory() => {
                        return Err(Error::OutOfMemory(Box::default()));
                    }
                    Ok(None) => return Err(self.no_room(&mut state, request, want, None)),
                    Err(error) => return Err(self.no_room(&mut state, request, want, Some(error))),
                };
                state.count(rung);
                pool.directory.header(block).hand_out(size, tag);
                if dedicated {
                    pool.directory.header(block).mark_dedicated();
                }
                if rung == Rung::Lent {
                    pool.directory.header(block).mark_lent();
                }
                // Not always that of the request: what is short is served from where there is room.
                let key = pool.directory.header(block).key();
                self.count_alloc(cache, size, key, tag);
                if let (Some(cache), Kind::Slot(class, _)) = (cached, kind) {
                    self.refill(&mut state, cache, lane, class);
                }
                pool.directory.header(block).ptr()
            }
        };
        if state.is_watched()
            && let Some((block, _)) = pool.directory.find(ptr)
        {
            pool.watch_alloc(&mut state, block);
        }
        if let Some(cache) = cache {
            cache.fold_drifted(pool);
        }
        self.check_invariants(&state);
        // Before anyone else can have the block, so that events are in order.
        if pool.ring.is_on() {
            pool.ring.push(Event::new(EventKind::Alloc, ptr, size).on(stream, state.private_of(lane)).tag(tag));
        }
        Ok(ptr)
    }

    /// Takes a block back under the pool's lock.
    #[inline(never)]
    pub(crate) fn free_block(&self, block: BlockId) -> Result<()> {
        let cache = threads::current_or_new(self);
        let pool = &self.pool;
        let mut state = pool.lock();
        let header = pool.directory.header(block);
        header.check_live()?;
        let (requested, key, tag) = (header.requested(), header.key(), header.tag());
        if pool.ring.is_on() {
            // Before it may be complete, so that events are in order.
            let (lane, deferred) = (header.lane(), header.is_recorded() || pool.would_hold(&state, block));
            let kind = if deferred { EventKind::FreeDeferred } else { EventKind::Free };
            let event = Event::new(kind, header.ptr(), requested).tag(tag);
            pool.ring.push(state.on_lane(event, lane));
        }
        if let Some(cache) = cache {
            cache.fold_drifted(pool);
        }
        let planned = pool.plans_for(key.bytes());
        let alone = header.is_recorded() || header.is_dedicated() || header.is_lent() || planned;
        let alone = alone || state.is_watched();
        let keeps = cache.filter(|cache| !alone && !state.private.routing() && cache.has_room(key.bytes()));
        if let Some(cache) = keeps {
            let tight = pool.pressure(&state, cache.active_bytes()) != Pressure::Low;
            cache.set_tight(tight);
            if cache.end_round(pool) && tight {
                // The next request that misses would take them back, and bear it for all of them.
                cache.drain(true, &pool.directory, |cached| pool.put_back(&mut state, cached));
            }
            cache.claim(key, &pool.directory, |evicted| pool.put_back(&mut state, evicted));
        }
        if !keeps.is_some_and(|cache| cache.push(block, header, tag)) {
            let active = if pool.free(&mut state, block) { key.bytes() } else { 0 };
            self.count_free(cache, requested, key, active, tag);
        }
        self.check_invariants(&state);
        Ok(())
    }

    /// A request succeeded after observers had freed something.
    pub(crate) fn count_observed(&self) {
        self.pool.lock().count(Rung::Observer);
    }

    /// Notes that work on `stream` uses the live block.
    pub(crate) fn record_stream(&self, block: BlockId, stream: StreamId) -> Result<()> {
        let header = self.pool.directory.header(block);
        let mut state = self.pool.lock();
        header.check_live()?;
        self.pool.record_stream(&mut state, block, stream)?;
        drop(state);
        let event = Event::new(EventKind::RecordStream, header.ptr(), header.requested()).tag(header.tag());
        self.pool.ring.push(event.on(stream, None));
        Ok(())
    }

    /// Gives free memory back to the device. Waits for the streams. Returns the bytes given back.
    pub(crate) fn empty(&self) -> Result<u64> {
        let mut state = self.pool.lock();
        self.pool.release_held(&mut state, Some(0));
        let mut bytes = self.pool.empty(&mut state, self, 0)?;
        // What had waited for other streams has gone into quarantine only now.
        if self.pool.release_held(&mut state, Some(0)) > 0 {
            bytes += self.pool.empty(&mut state, self, 0)?;
        }
        self.check_invariants(&state);
        drop(state);
        self.pool.ring.push(Event::new(EventKind::EmptyCache, DevicePtr::NULL, bytes));
        Ok(bytes)
    }

    /// The program says that a step begins.
    pub(crate) fn mark_step(&self) {
        self.pool.mark_step(&mut self.pool.lock());
    }

    /// The steps that plans are made for.
    pub(crate) fn export_plan(&self) -> Result<Export> {
        let state = self.pool.lock();
        Ok(self.pool.export_plan(&state).ok_or(PlanError::Off)?)
    }

    /// Steps to look out for.
    pub(crate) fn import_plan(&self, export: Export) -> Result<()> {
        if self.pool.import_plan(&mut self.pool.lock(), export) { Ok(()) } else { Err(PlanError::Off.into()) }
    }

    /// What plans have done.
    pub(crate) fn plan_stats(&self) -> PlanStats {
        self.pool.plan_stats(&self.pool.lock())
    }

    /// What the memory held may be: no more than the device has.
    pub(crate) fn limit(&self) -> u64 {
        self.pool.lock().limit().min(self.pool.capacity)
    }

    /// Bounds the memory held.
    pub(crate) fn set_limit(&self, limit: u64) -> Result<()> {
        let mut state = self.pool.lock();
        match self.pool.set_limit(&mut state, limit, self) {
            Err(Error::LimitBelowUse { .. }) if self.pool.release_held(&mut state, Some(0)) > 0 => {
                self.pool.set_limit(&mut state, limit, self)
            }
            result => result,
        }
    }

    /// Whether every call has to take the lock.
    fn goes_slow(&self, state: &PoolState) -> bool {
        self.pool.ring.is_on() || state.private.routing() || state.is_watched()
    }

    /// Shuts out the threads of these caches while `work` runs. Under the pool's lock.
    fn with_closed<T>(&self, caches: &[&'static ThreadCache], work: impl FnOnce(&[&'static ThreadCache]) -> T) -> T {
        // The calling thread holds the pool's lock, and so is not inside its gate.
        Gate::close(caches.iter().map(|cache| &cache.gate));
        let result = work(caches);
        caches.iter().for_each(|cache| cache.gate.open());
        result
    }

    /// Runs `work` with no block in any magazine, and no thread on the hot path.
    fn with_all_drained<T>(&self, state: &mut PoolState, work: impl FnOnce(&mut PoolState) -> T) -> T {
        let threads = self.threads.lock();
        self.with_closed(&threads, |threads| {
            for cache in threads {
                cache.drain(false, &self.pool.directory, |block| self.pool.put_back(state, block));
            }
            work(state)
        })
    }

    /// A thread has a new cache. Called without the pool's lock.
    fn adopt(&self, cache: &'static ThreadCache) {
        let state = self.pool.lock();
        cache.gate.set_slow(self.goes_slow(&state));
        cache.set_bounds(self.magazine_bytes, self.drift);
        self.threads.lock().push(cache);
    }

    /// A thread ends: its blocks go back, its counts are kept. Called by that thread.
    fn retire(&self, cache: &'static ThreadCache) {
        let mut state = self.pool.lock();
        cache.drain(false, &self.pool.directory, |block| self.pool.put_back(&mut state, block));
        self.retire_counts(cache);
        threads::give_back(cache, self.number);
    }

    fn retire_counts(&self, cache: &'static ThreadCache) {
        cache.fold(&self.pool);
        self.retired.lock().add(&cache.counts());
        self.threads.lock().retain(|other| !std::ptr::eq(*other, cache));
    }

    #[inline]
    fn check_invariants(&self, state: &PoolState) {
        if cfg!(feature = "validate")
            && let Err(what) = self.pool.validate(state)
        {
            broken_invariant(self, state, &what);
        }
    }

    /// All memory behind addresses, with the blocks as they are when no call is under way.
    pub(crate) fn segments(&self) -> Vec<SegmentInfo> {
        let state = self.pool.lock();
        let threads = self.threads.lock();
        self.with_closed(&threads, |_| self.pool.segments(&state))
    }

    /// Whether calls may find something to tell the user's observer.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Waits for the device and compares all that the debug aids watch, if `wanted`; then takes what they have found so far. Gives up after
    /// `patience`, where another thread keeps the pool's lock.
    pub(crate) fn memory_reports(&self, wanted: bool, patience: Option<Duration>) -> Result<Vec<MemoryReport>> {
        let state = match patience {
            None => Some(self.pool.lock()),
            Some(patience) => self.pool.try_lock(patience),
        };
        let Some(mut state) = state else { return Ok(Vec::new()) };
        let checked = if wanted { self.pool.check_memory(&mut state) } else { Ok(()) };
        let reports = self.pool.take_memory_reports(&mut state);
        // What was found before a failure is told none the less, with the next call.
        match checked {
            Ok(()) => Ok(reports),
            Err(error) => {
                self.pool.give_back_reports(&mut state, reports);
                Err(error)
            }
        }
    }

    /// Every block in the hands of a caller, where the lock can be had.
    pub(crate) fn live_blocks(&self, patience: Duration) -> Option<Vec<BlockInfo>> {
        let state = self.pool.try_lock(patience)?;
        let threads = self.threads.lock();
        let segments = self.with_closed(&threads, |_| self.pool.segments(&state));
        let blocks = segments.into_iter().flat_map(|segment| segment.blocks);
        Some(blocks.filter(|block| block.state == BlockState::Live).collect())
    }

    /// The block that contains an address, if it is not free.
    pub(crate) fn block_at(&self, ptr: DevicePtr) -> Option<BlockInfo> {
        let state = self.pool.lock();
        let block = self.pool.containing(&state, ptr.0)?;
        let info = self.pool.describe(&state, self.pool.directory.header(block));
        (info.state != BlockState::Free).then_some(info)
    }

    /// Checks every structure of the device. Exact when no call is under way.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        let state = self.pool.lock();
        self.pool.validate(&state)?;
        drop(state);
        self.validate_counts()
    }
}

impl Magazines for DeviceCache {
    fn held(&self) -> u64 {
        self.threads.lock().iter().map(|cache| cache.held()).sum()
    }

    fn drain(&self, state: &mut PoolState, what: Drain) -> u64 {
        let pool = &self.pool;
        let large_only = what != Drain::All;
        let own = threads::current(self.number);
        let mut bytes = 0;
        if let Some(cache) = own {
            bytes += cache.drain(large_only, &pool.directory, |block| pool.put_back(state, block));
        }
        if what == Drain::OwnLarge {
            return bytes;
        }
        let others: Vec<_> = (self.threads.lock().iter().copied())
            .filter(|cache| own.is_none_or(|own| !std::ptr::eq(own, *cache)) && cache.holds_any())
            .collect();
        if others.is_empty() {
            return bytes;
        }
        bytes
            + self.with_closed(&others, |others| {
                let drain = |cache: &&ThreadCache| {
                    cache.drain(large_only, &pool.directory, |block| pool.put_back(state, block))
                };
                others.iter().map(drain).sum::<u64>()
            })
    }
}

impl Drop for DeviceCache {
    /// No call is under way: whoever makes one holds a reference. Threads find their caches gone by the owner's number.
    fn drop(&mut self) {
        for cache in std::mem::take(self.threads.get_mut()) {
            threads::give_back(cache, self.number);
        }
    }
}

/// The structures contradict each other: going on could hand memory out twice. Says what is known, and ends the process.
#[cold]
#[allow(clippy::print_stderr)]
fn broken_invariant(device: &DeviceCache, state: &PoolState, what: &str) -> ! {
    eprintln!("stratalloc: broken invariant on device {}: {what}\n{state:#?}", device.pool.device);
    std::process::abort()
}
