//! One device's pool: the only place where blocks, address space and streams meet.
//!
//! | file | what |
//! |---|---|
//! | `directory` | address to block, without a lock |
//! | `key` | what blocks have in common that serve each other's requests: a lane and a size |
//! | `lanes` | streams and private pools, as owners of free memory |
//! | `slabs` | small blocks |
//! | `pending` | blocks that wait for recorded streams |
//! | `private` | private pools for captures |
//! | `ladder` | how a request is served, rung by rung |
//! | `planned` | large requests placed by a plan of the whole step |
//! | `grow` | more memory where a request is |
//! | `extents` | ranges outside of the arenas, whose memory comes and goes |
//! | `donors` | free chunks that may be mapped elsewhere, in which order |
//! | `stitch` | free chunks mapped once more, side by side, and the mappings left behind |
//! | `wait` | other streams' memory, by making a stream wait for them |
//! | `gather` | free memory put together again when next to nothing is in use |
//! | `trim` | giving free chunks back |
//! | `explain` | why a request found no room, and what to do |
//! | `walk` | reading all of it: segments and their blocks |
//! | `watch` | what the debug aids are told |
//! | `checkpoint` | private pools as they were before |
//! | `mesh` | pages of slabs that share memory |
//! | `pairs` | larger chunks that share memory |
//! | `compact` | blocks that are moved for owners who follow them |
//!
//! Everything but the directory, the two peaks, the ring and the driver is under one lock, which callers take with [`Pool::lock`]. Driver calls are made under it:
//! they are never on the hot path, and no driver calls back.

mod checkpoint;
mod compact;
mod directory;
mod donors;
mod explain;
mod extents;
mod gather;
mod grow;
mod key;
mod ladder;
mod lanes;
mod mesh;
mod pairs;
mod pending;
mod planned;
mod private;
mod slabs;
mod stitch;
mod trim;
mod wait;
mod walk;
mod watch;

use std::sync::Arc;

pub use checkpoint::Checkpoint;
pub(crate) use checkpoint::Moved;
pub(crate) use compact::{CompactView, MovableBlock, MoveTo, Moving};
#[cfg(test)]
pub(crate) use compact::{Gap, SlabGaps};
pub(crate) use directory::{BlockId, Directory, Header, NO_BLOCK, life};
pub(crate) use explain::Asked;
pub(crate) use key::{Key, LaneBits};
pub(crate) use ladder::{Drain, Kind, Magazines, Want};
pub(crate) use lanes::LaneId;
pub(crate) use mesh::{Bounds, MeshPage, MeshSet, Meshed};
pub(crate) use private::StreamFilter;

use directory::{Place, ZONES, place};
use explain::Notes;
use extents::Extents;
pub(crate) use extents::{NEVER, Stamp};
use lanes::Lanes;
use pairs::Pairs;
use pending::Pending;
use private::PrivatePools;
use slabs::{FreedSlab, Slabs};
use stitch::Ghosts;

use crate::block::{Arena, ClassId, Owner};
use crate::config::Config;
use crate::debug::Aids;
use crate::driver::Driver;
use crate::driver::call::CallKind;
use crate::driver::metered::Metered;
use crate::error::{DriverError, DriverErrorKind, Error, Result};
use crate::plan::Plans;
use crate::stream::EventPool;
use crate::sync::{Mutex, MutexGuard};
use crate::telemetry::{Event, EventKind, Peak, Rung, Stats, TraceRing};
use crate::units::{DevicePtr, PAGE, PoolId, StreamId};
use crate::vm::Space;

/// The arena of slabs and of blocks up to [`SMALL_MAX`].
const SMALL: usize = 0;
/// The arena of larger blocks. Lifetimes of small and large blocks differ, and so they lie apart.
const LARGE: usize = 1;
/// The arena of blocks that were said to live long.
const PERSISTENT: usize = 2;
/// The arena of blocks with a physical allocation each: segments of plain memory, whatever the driver can do.
const DEDICATED: usize = 3;
/// The pool is tight when less than this part of what is held is free: 1/4.
const TIGHT_SHIFT: u32 = 2;
/// Next to nothing is in use when it is less than this part of what is held: 1/16.
const IN_USE_SHIFT: u32 = 4;
/// The largest block of the small zone, in bytes: 512 KiB. DESIGN.md says what other sizes cost.
const SMALL_MAX: u64 = 1 << 19;

/// How short memory is: how much of what is held is in use, and how much more may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// There is room.
    Low,
    /// Most is in use, or nearly all of the limit is held: how a request is packed decides whether the pool has to grow.
    Tight,
    /// Nearly all of the limit is held, and next to nothing is in use.
    Idle,
}

/// One device's pool.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The device's ordinal in its allocator.
    pub(crate) device: usize,
    pub(crate) driver: Arc<Metered>,
    pub(crate) directory: Directory,
    /// Memory of the device, in bytes.
    pub(crate) capacity: u64,
    /// Requested bytes.
    pub(crate) live: Peak,
    /// Bytes of blocks that are not free.
    pub(crate) active: Peak,
    pub(crate) ring: TraceRing,
    config: Config,
    state: Mutex<PoolState>,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct PoolState {
    zones: [Arena; ZONES],
    space: Space,
    ghosts: Ghosts,
    extents: Extents,
    /// The most bytes that were in use when memory was taken from the device.
    needed: u64,
    /// How often memory was given back on request.
    emptied: u32,
    /// For which lane free memory was last put together, and the last ghost that there was then.
    gathered: (LaneId, u64),
    /// What was held when the device had no more; everything where it had when it was last asked.
    refused_at: u64,
    slabs: Slabs,
    pairs: Pairs,
    lanes: Lanes,
    events: EventPool,
    pending: Pending,
    pub(crate) private: PrivatePools,
    /// None where plans are off.
    plans: Option<Box<Plans>>,
    /// Private pools were released whose memory waits for the device.
    dissolved: Vec<LaneId>,
    limit: u64,
    reserved_peak: u64,
    rungs: [u64; Rung::ALL.len()],
    out_of_memory: u64,
    /// What the driver said when it had no memory for the request that is being served.
    refusal: Option<DriverError>,
    /// What the rungs of the last climb did.
    notes: Notes,
    /// Driver calls that failed where the caller had nothing to do with it.
    failures: u64,
    /// Where any is on.
    aids: Option<Box<Aids<BlockId>>>,
}

impl Pool {
    /// A pool on `driver` that holds nothing yet.
    pub(crate) fn new(device: usize, driver: Arc<dyn Driver>, config: Config) -> Result<Pool> {
        let driver = Arc::new(Metered::new(driver));
        let properties = driver.properties();
        let capacity = properties.total_memory;
        if properties.vmm && !config.chunk.0.is_multiple_of(properties.granularity) {
            let detail =
                format!("granularity {} does not divide the chunk size {}", properties.granularity, config.chunk.0);
            return Err(DriverError::new(DriverErrorKind::NotSupported, "cuMemGetAllocationGranularity", detail).into());
        }
        let directory = Directory::new(capacity)?;
        let space = Space::new(driver.clone(), config.chunk.0);
        let limit = config.limit.map_or(capacity, |limit| limit.bytes(capacity));
        let state = PoolState {
            zones: Default::default(),
            space,
            ghosts: Ghosts::default(),
            extents: Extents::default(),
            needed: 0,
            emptied: 0,
            gathered: (0, 0),
            refused_at: u64::MAX,
            slabs: Slabs::new(directory.parts_max()),
            pairs: Pairs::default(),
            lanes: Lanes::new(),
            events: EventPool::default(),
            pending: Pending::default(),
            private: PrivatePools::default(),
            plans: Pool::new_plans(config.plan),
            dissolved: Vec::new(),
            limit,
            reserved_peak: 0,
            rungs: [0; Rung::ALL.len()],
            out_of_memory: 0,
            refusal: None,
            notes: Notes::default(),
            failures: 0,
            aids: Aids::new(device, &config),
        };
        let (live, active) = (Peak::default(), Peak::default());
        let ring = TraceRing::new(config.trace);
        Ok(Pool { device, driver, directory, capacity, live, active, ring, config, state: Mutex::new(state) })
    }

    /// Locks the pool.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock()
    }

    /// Locks the pool, unless another thread keeps it locked for so long.
    pub(crate) fn try_lock(&self, patience: std::time::Duration) -> Option<MutexGuard<'_, PoolState>> {
        self.state.try_lock_for(patience)
    }

    /// Says that memory of a lane was mapped or unmapped.
    fn note_mapping(&self, state: &mut PoolState, kind: EventKind, home: Owner, addr: u64, bytes: u64) {
        self.forget_contents(state, addr, bytes);
        let event = Event::new(kind, DevicePtr(addr), bytes);
        self.ring.push(state.on_lane(event, home.0));
    }

    /// Notes that `stream` uses a live block.
    pub(crate) fn record_stream(&self, state: &mut PoolState, block: BlockId, stream: StreamId) -> Result<()> {
        let header = self.directory.header(block);
        if state.lanes.stream(header.lane()) == stream {
            return Ok(());
        }
        let clock = state.lanes.clock_index(stream).ok_or_else(too_many_streams)?;
        state.pending.record(header, clock);
        Ok(())
    }

    /// Takes back a block that is no longer in a caller's hands. Returns whether it became free, rather than waiting for streams.
    pub(crate) fn free(&self, state: &mut PoolState, block: BlockId) -> bool {
        let header = self.directory.header(block);
        if !header.is_recorded() {
            return self.retire(state, block);
        }
        // Asking once for every 1/256 of the device that waits costs little, and brings blocks back before others are split in their place.
        let ask_at = self.capacity >> 8;
        let home_stamp = state.lanes.stamp(header.lane());
        let PoolState { pending, lanes, private, .. } = &mut *state;
        let ask = pending.free(block, header, home_stamp, &mut lanes.clocks, ask_at) && !private.capturing();
        header.set_life(life::PENDING);
        if ask && self.advance_pending(state).is_err() {
            state.failures += 1;
        }
        false
    }

    /// Puts a block into its slab, or into the bins of its lane.
    #[inline]
    pub(crate) fn put_back(&self, state: &mut PoolState, block: BlockId) {
        self.put_back_as_of(state, block, None);
    }

    /// [`Pool::put_back`] of a block that was freed when the home stream's stamp was this, where that is not now.
    #[inline]
    fn put_back_as_of(&self, state: &mut PoolState, block: BlockId, stamp: Option<u64>) {
        let header = self.directory.header(block);
        header.set_life(life::FREE);
        match place(block) {
            Place::Node(zone, node) => {
                if zone == LARGE
                    && let Some(plans) = &mut state.plans
                {
                    plans.freed(header.ptr().0);
                }
                let stamp = stamp.unwrap_or_else(|| state.lanes.stamp(header.lane()));
                let _ = state.zones[zone].release(node, Owner(header.lane()), stamp);
            }
            Place::Slot(slab, slot) => {
                if let Some(retired) = state.slabs.release(slab, slot) {
                    state.put_slab(retired);
                }
            }
        }
    }

    /// Changes the limit on reserved memory; gives free memory back where there is more than that.
    pub(crate) fn set_limit(&self, state: &mut PoolState, limit: u64, magazines: &dyn Magazines) -> Result<()> {
        // What callers hold, and what waits, cannot be given back: no need to give up anything else for nothing.
        let used = state.used_bytes();
        let held = used - state.slabs.shared_pages() * PAGE + state.extents.in_use_bytes();
        let worth_it = state.private.capturing() || held.saturating_sub(magazines.held()) <= limit;
        if state.space.physical_bytes() > limit && worth_it {
            self.empty(state, magazines, limit)?;
        }
        let in_use = state.space.physical_bytes();
        if in_use > limit {
            return Err(Error::LimitBelowUse { limit, in_use });
        }
        state.limit = limit;
        Ok(())
    }

    /// How short memory is. `unfolded` is what the calling thread adds to the sum of what is in use.
    #[inline]
    pub(crate) fn pressure(&self, state: &PoolState, unfolded: i64) -> Pressure {
        let held = state.space.physical_bytes();
        let in_use = (self.active.sum() + unfolded).max(0) as u64;
        match state.is_full() {
            true if in_use < held >> IN_USE_SHIFT => Pressure::Idle,
            false if held.saturating_sub(in_use) >= held >> TIGHT_SHIFT => Pressure::Low,
            _ => Pressure::Tight,
        }
    }

    /// Fills in what the pool knows.
    pub(crate) fn add_stats(&self, state: &PoolState, stats: &mut Stats) {
        stats.reserved.current = state.space.physical_bytes();
        stats.reserved.peak = state.reserved_peak;
        stats.pending = state.pending.bytes() + state.aids.as_ref().map_or(0, |aids| aids.held_bytes());
        stats.reserve = state.space.reserve_bytes();
        stats.out_of_memory = state.out_of_memory;
        stats.cleanup_failures = state.space.cleanup_failures() + state.failures;
        stats.cleanup_failures += state.aids.as_ref().map_or(0, |aids| aids.failures());
        stats.limit = state.limit;
        stats.chunks = state.space.chunk_count();
        stats.chunk_size = state.space.unit();
        stats.meshed = state.space.shared_bytes();
        let largest = |zone: &Arena| zone.owners().map(|owner| zone.largest_free(owner)).max();
        stats.largest_free = state.zones.iter().filter_map(largest).max().unwrap_or(0);
        let calls = self.driver.calls();
        let count = |kinds: &[CallKind]| kinds.iter().map(|&kind| calls.of(kind).count).sum();
        stats.device_allocs = count(&[CallKind::Create, CallKind::AllocPlain]);
        stats.device_frees = count(&[CallKind::Release, CallKind::FreePlain]);
        stats.synchronizations =
            count(&[CallKind::SynchronizeDevice, CallKind::SynchronizeStream, CallKind::SynchronizeEvent]);
        for (total, count) in stats.rungs.iter_mut().zip(state.rungs) {
            *total += count;
        }
        let nodes: usize = state.zones.iter().map(Arena::node_count).sum();
        stats.metadata += self.directory.touched_bytes(nodes as u64, state.slabs.bytes());
        stats.metadata += nodes as u64 * size_of::<crate::block::Node>() as u64;
    }

    /// Checks every structure of the pool and what must hold between them.
    pub(crate) fn validate(&self, state: &PoolState) -> std::result::Result<(), String> {
        state.zones.iter().try_for_each(Arena::validate)?;
        self.validate_directory(state)?;
        state.space.validate()?;
        state.slabs.validate()?;
        self.validate_slabs(state)?;
        state.pending.validate()?;
        let in_arenas: u64 = state.zones.iter().map(|zone| zone.used_bytes() + zone.free_bytes_total()).sum();
        let mapped = state.space.mapped_bytes();
        let ghosts = state.pairs.ghost_bytes();
        let extents = state.extents.mapped_bytes();
        if in_arenas + ghosts + extents != mapped {
            return Err(format!(
                "{in_arenas} bytes used or free in arenas, {ghosts} of pairs are ghosts, {extents} in extents, {mapped} mapped"
            ));
        }
        self.validate_extents(state)?;
        let (pages, pairs) = (state.slabs.shared_pages(), state.pairs.shared_bytes());
        if pages * PAGE + pairs != state.space.shared_bytes() {
            let bytes = state.space.shared_bytes();
            return Err(format!("{pages} pages of slabs and {pairs} bytes of pairs share memory, {bytes} mapped so"));
        }
        if state.slabs.bytes() > state.zones[SMALL].used_bytes() {
            return Err(format!("{} bytes of slabs in {} used", state.slabs.bytes(), state.zones[SMALL].used_bytes()));
        }
        if state.space.physical_bytes() > state.limit {
            return Err(format!("{} bytes reserved, limit {}", state.space.physical_bytes(), state.limit));
        }
        Ok(())
    }
}

impl PoolState {
    /// The lane that requests of `stream` go to now.
    pub(crate) fn lane(&mut self, stream: StreamId) -> Result<LaneId> {
        let private = self.private.route(stream);
        self.lanes.intern(stream, private).ok_or_else(too_many_streams)
    }

    /// An event of a lane's block.
    pub(crate) fn on_lane(&self, event: Event, lane: LaneId) -> Event {
        event.on(self.lanes.stream(lane), self.private_of(lane))
    }

    /// Whether blocks are watched, so that every call has to take the lock.
    pub(crate) fn is_watched(&self) -> bool {
        self.aids.is_some()
    }

    /// The private pool that a lane belongs to, if one.
    pub(crate) fn private_of(&self, lane: LaneId) -> Option<PoolId> {
        self.lanes.get(lane).private
    }

    /// Whether a capture is under way: no event may be recorded or asked for, and nothing waited for.
    pub(crate) fn capturing(&self) -> bool {
        self.private.capturing()
    }

    /// The most physical memory to hold, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// A slot for a lane: of a page in private pools, whose slabs are to be made again where they were.
    #[inline]
    pub(crate) fn slot(&self, lane: LaneId, class: ClassId) -> Kind {
        let whole = self.lanes.is_private(lane);
        Kind::Slot(class, if whole { PAGE } else { self.slabs.next_size(lane, class) })
    }

    /// Bytes of the smallest chunk.
    pub(crate) fn unit(&self) -> u64 {
        self.space.unit()
    }

    /// Counts a request served.
    #[inline]
    pub(crate) fn count(&mut self, rung: Rung) {
        self.rungs[rung as usize] += 1;
    }

    /// The peak of what is held begins anew.
    pub(crate) fn reset_peak(&mut self) {
        self.reserved_peak = self.space.physical_bytes();
    }

    /// One user of a private pool has gone. With the last one, its memory becomes everyone's, once the device has been waited for.
    pub(crate) fn release_private(&mut self, pool: PoolId) -> Result<()> {
        if self.private.release(pool)? {
            let lanes = self.lanes.dissolve(pool);
            self.dissolved.extend(lanes);
        }
        Ok(())
    }

    /// Bytes handed out from arenas, to magazines and slabs as well.
    fn used_bytes(&self) -> u64 {
        self.zones.iter().map(Arena::used_bytes).sum()
    }

    /// Bytes that a lane may use where they lie, or have mapped anew.
    fn at_hand(&self, lane: LaneId) -> u64 {
        let free = |zone: &Arena| zone.free_bytes(Owner(lane)) + zone.free_bytes(Owner::SHARED);
        self.zones.iter().map(free).sum::<u64>() + self.space.reserve_bytes()
    }

    /// A request begins to climb: nothing has been tried for it, and nothing refused.
    fn begin_notes(&mut self, lane: LaneId) {
        self.refusal = None;
        let at_hand = self.at_hand(lane);
        self.notes.begin(at_hand);
    }

    /// Notes that a rung has been tried, and what it gained.
    fn tried(&mut self, lane: LaneId, rung: Rung) {
        let at_hand = self.at_hand(lane);
        self.notes.tried(rung, at_hand, self.refusal.is_some());
    }

    /// Gives a retired slab's memory back to its lane.
    fn put_slab(&mut self, FreedSlab { node, lane }: FreedSlab) {
        let stamp = self.lanes.stamp(lane);
        self.zones[SMALL].release(node, Owner(lane), stamp);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for clock in &mut state.lanes.clocks {
            clock.retire(&mut state.events);
        }
        state.events.clear(&*self.driver);
        if let Some(aids) = &mut state.aids {
            aids.close(&*self.driver);
        }
    }
}

#[cold]
fn too_many_streams() -> Error {
    DriverError::new(DriverErrorKind::NotSupported, "stream", "more than 65,535 streams were used with one device")
        .into()
}
