//! Why a request found no room: read from the structures when it has failed, so that nothing is kept for it before.
//!
//! | file | what |
//! |---|---|
//! | `notes` | what each rung tried and gained |
//! | `map` | all memory as ranges, and what of it would be usable if something were done |
//! | `scene` | whether the request would then be served |
//! | `release` | which live blocks to free |
//! | `advice` | what could be done, cheapest first, and the verdict |
//!
//! It asks the driver one thing, how much is free, allocates no device memory, changes nothing, and looks at a bounded number of ranges.

mod advice;
mod map;
mod notes;
mod release;
mod scene;

use std::collections::BTreeMap;

pub(super) use notes::Notes;

use map::{Map, Use, What};
use scene::Scene;

use super::directory::{BlockId, Header, life};
use super::{Pool, PoolState, Want};
use crate::block::{Arena, Owner};
use crate::driver::{Driver, DriverError};
use crate::error::{
    Error, OomBlock, OomCause, OomExplanation, OomFree, OomGap, OomNeighbour, OomPool, OomRequest, OomTag, OutOfMemory,
};
use crate::units::{DevicePtr, PoolId, StreamId};

/// Gaps, tags and pools told of.
const GAPS_MAX: usize = 4;
const TAGS_TOLD: usize = 8;
const POOLS_TOLD: usize = 8;

/// What the explanation of a failed request is made of, beyond what the pool knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) request: OomRequest,
    /// Requested bytes, of all threads.
    pub(crate) live: u64,
    /// Bytes in all magazines.
    pub(crate) magazines: u64,
}

impl Pool {
    /// Says that there is no room. `driver` is what the driver failed with, where that ended the climb.
    #[cold]
    pub(crate) fn shortage(
        &self,
        state: &mut PoolState,
        asked: Asked,
        want: Want,
        driver: Option<DriverError>,
    ) -> Error {
        state.out_of_memory += 1;
        let driver = driver.or_else(|| state.refusal.take());
        let explanation = self.explain(state, asked, want, driver.clone());
        let owners = || state.zones.iter().flat_map(|zone| zone.owners().map(move |owner| zone.largest_free(owner)));
        Error::OutOfMemory(Box::new(OutOfMemory {
            size: asked.request.size,
            device: self.device,
            capacity: self.capacity,
            limit: (state.limit < self.capacity).then_some(state.limit),
            reserved: state.space.physical_bytes(),
            live: asked.live,
            pending: state.pending.bytes(),
            cached: state.zones.iter().map(Arena::free_bytes_total).sum::<u64>() + state.space.reserve_bytes(),
            largest_free: owners().max().unwrap_or(0),
            driver,
            explanation,
        }))
    }

    /// What is told of any failure: the numbers, without a look at the blocks.
    fn outline(&self, state: &PoolState, asked: Asked) -> OomExplanation {
        let reserved = state.space.physical_bytes();
        let device_free = self.driver.memory_info().ok().map(|info| info.free);
        OomExplanation {
            request: asked.request,
            device: self.device,
            capacity: self.capacity,
            limit: (state.limit < self.capacity).then_some(state.limit),
            reserved,
            live: asked.live,
            device_free,
            elsewhere: device_free.map(|free| self.capacity.saturating_sub(free).saturating_sub(reserved)),
            chunk: state.space.unit(),
            ..OomExplanation::default()
        }
    }

    /// Why a request was refused before any memory was looked for.
    #[cold]
    pub(crate) fn explain_refusal(
        &self,
        state: &PoolState,
        asked: Asked,
        cause: OomCause,
        block: u64,
    ) -> OomExplanation {
        let mut told = self.outline(state, asked);
        told.cause = cause;
        told.missing = block.saturating_sub(state.limit);
        told.advice = advice::of_never(&told, state.limit, block);
        told
    }

    /// Why a request was refused that would take its tag over `limit`.
    #[cold]
    pub(crate) fn explain_tag_limit(&self, state: &PoolState, asked: Asked, in_use: u64, limit: u64) -> OomExplanation {
        let mut told = self.outline(state, asked);
        told.cause = OomCause::TagLimit;
        told.missing = in_use.saturating_add(asked.request.size).saturating_sub(limit);
        let tags = [(asked.request.tag, in_use)];
        told.tags = tags.map(|(tag, bytes)| OomTag { tag, name: String::new(), bytes, blocks: 0 }).into();
        let idle = state.zones.iter().map(|zone| zone.free_bytes(Owner::SHARED)).sum::<u64>();
        told.advice = advice::of_tag_limit(&told, state.limit, idle, in_use, limit);
        told
    }

    /// Why the climb of `want` found nothing.
    #[cold]
    pub(crate) fn explain(
        &self,
        state: &PoolState,
        asked: Asked,
        want: Want,
        driver: Option<DriverError>,
    ) -> OomExplanation {
        let mut told = self.outline(state, asked);
        let lane = state.lanes.get(want.lane);
        told.request.pool = lane.private;
        let vmm = self.driver.properties().vmm;
        let scene = Scene {
            pool: self,
            state,
            map: Map::new(self, state, !want.may_grow),
            want,
            vmm,
            capturing: state.private.capturing(),
            device_free: told.device_free.unwrap_or(self.capacity.saturating_sub(told.reserved)),
        };
        told.is_partial = scene.map.is_partial;
        told.free = scene.free(asked.magazines);
        told.gaps = scene.gaps();
        told.waiting = scene.waiting();
        told.pools = scene.pools();
        told.tags = scene.tags();
        told.rungs = state.notes.rungs(driver.as_ref());
        scene.advise(&mut told, driver.as_ref());
        told.driver = driver;
        self.date(&mut told);
        told
    }

    /// Fills in what the trace ring knows of the blocks that are told of.
    fn date(&self, told: &mut OomExplanation) {
        if self.ring.is_on() {
            told.blocks_mut(&mut |block| block.age = self.ring.age_of(block.ptr));
        }
    }
}

impl Scene<'_> {
    fn block(&self, block: BlockId) -> OomBlock {
        let header: &Header = self.pool.directory.header(block);
        let info = self.pool.describe(self.state, header);
        OomBlock {
            ptr: info.ptr,
            size: info.size,
            requested: info.requested,
            stream: info.stream,
            tag: info.tag,
            pool: info.pool,
            dedicated: info.dedicated,
            pending: header.life() == life::PENDING,
            age: None,
        }
    }

    fn free(&self, magazines: u64) -> OomFree {
        let state = self.state;
        let mut free = OomFree {
            pending: state.pending.bytes(),
            magazines,
            reserve: state.space.reserve_bytes(),
            ..OomFree::default()
        };
        for arena in &state.zones {
            for owner in arena.owners() {
                let bytes = arena.free_bytes(owner);
                let slot = match state.lanes.get(owner.0).private {
                    _ if owner == Owner::SHARED => &mut free.shared,
                    _ if owner.0 == self.want.lane => &mut free.own,
                    Some(_) => &mut free.private,
                    None => &mut free.not_passed,
                };
                *slot += bytes;
            }
        }
        let slots = |slab: &map::SlabInfo| u64::from(slab.slots - slab.taken) * slab.class.size();
        free.slots = self.map.slabs.iter().map(slots).sum();
        free
    }

    fn gaps(&self) -> Vec<OomGap> {
        let mut runs = self.map.runs(self.pool, self.state, &self.as_is());
        runs.sort_unstable_by_key(|run| (std::cmp::Reverse(run.end - run.addr), run.addr));
        let gap = |run: &map::Run| {
            let below = self.map.ranges[run.first].joined.then(|| run.first - 1);
            let above = Some(run.last + 1).filter(|&next| self.map.ranges.get(next).is_some_and(|next| next.joined));
            let beside = [below, above].map(|index| index.map_or(OomNeighbour::Edge, |index| self.neighbour(index)));
            OomGap { ptr: DevicePtr(run.addr), size: run.end - run.addr, beside }
        };
        runs.iter().take(GAPS_MAX).map(gap).collect()
    }

    fn neighbour(&self, index: usize) -> OomNeighbour {
        let range = &self.map.ranges[index];
        match range.what {
            What::Block(block) => OomNeighbour::Block(self.block(block)),
            What::Slab(slab) => {
                let slab = &self.map.slabs[slab];
                OomNeighbour::Slab { slot_size: slab.class.size(), taken: slab.taken, slots: slab.slots }
            }
            What::Free { owner, .. } => OomNeighbour::Foreign {
                stream: self.state.lanes.stream(owner),
                pool: self.state.lanes.get(owner).private,
                size: range.size,
            },
        }
    }

    /// Clocks that free memory waits for, and how many bytes of it.
    fn clocks(&self) -> Vec<(u16, u64)> {
        let mut bytes: BTreeMap<u16, u64> = BTreeMap::new();
        for range in &self.map.ranges {
            if let What::Free { owner, passed: false } = range.what
                && owner != self.want.lane
                && !self.state.lanes.is_private(owner)
            {
                *bytes.entry(self.state.lanes.get(owner).clock).or_default() += range.size;
            }
        }
        for (&block, clocks) in &self.map.pending {
            let size = self.pool.directory.header(block).size();
            clocks.iter().for_each(|&clock| *bytes.entry(clock).or_default() += size);
        }
        let mut bytes: Vec<(u16, u64)> = bytes.into_iter().collect();
        bytes.sort_by_key(|&(clock, bytes)| (std::cmp::Reverse(bytes), clock));
        bytes
    }

    fn clock_stream(&self, clock: u16) -> StreamId {
        self.state.lanes.clocks[clock as usize].stream()
    }

    fn waiting(&self) -> Vec<(StreamId, u64)> {
        self.clocks().iter().take(TAGS_TOLD).map(|&(clock, bytes)| (self.clock_stream(clock), bytes)).collect()
    }

    fn pools(&self) -> Vec<OomPool> {
        let mut free: BTreeMap<PoolId, u64> = BTreeMap::new();
        for range in &self.map.ranges {
            let (lane, bytes) = match range.what {
                What::Free { owner, .. } => (owner, range.size),
                What::Block(block) => (self.pool.directory.header(block).lane(), 0),
                What::Slab(slab) => (self.map.slabs[slab].lane, 0),
            };
            if let Some(pool) = self.state.lanes.get(lane).private {
                *free.entry(pool).or_default() += bytes;
            }
        }
        let tell = |(pool, free)| OomPool { pool, users: self.state.private.users(pool), free };
        let mut pools: Vec<OomPool> = free.into_iter().map(tell).collect();
        pools.sort_by_key(|pool| (std::cmp::Reverse(pool.free), pool.pool));
        pools.truncate(POOLS_TOLD);
        pools
    }

    fn tags(&self) -> Vec<OomTag> {
        let mut tags: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        let mut add = |header: &Header, blocks: u64| {
            let (bytes, count) = tags.entry(header.tag()).or_default();
            (*bytes, *count) = (*bytes + blocks * header.size(), *count + blocks);
        };
        for range in &self.map.ranges {
            match range.what {
                What::Block(block) => {
                    let header = self.pool.directory.header(block);
                    if header.life() == life::LIVE {
                        add(header, 1);
                    }
                }
                What::Slab(index) if self.map.slabs[index].tag.is_some() => {
                    let live = u64::from(self.map.slabs[index].live);
                    let first = self.live_blocks(range.what);
                    first.iter().take(1).for_each(|&block| add(self.pool.directory.header(block), live));
                }
                What::Slab(_) => {
                    self.live_blocks(range.what).iter().for_each(|&block| add(self.pool.directory.header(block), 1));
                }
                What::Free { .. } => {}
            }
        }
        let tell = |(tag, (bytes, blocks))| OomTag { tag, name: String::new(), bytes, blocks };
        let mut tags: Vec<OomTag> = tags.into_iter().map(tell).collect();
        tags.sort_by_key(|tag| (std::cmp::Reverse(tag.bytes), tag.tag));
        tags.truncate(TAGS_TOLD);
        tags
    }

    /// Bytes that the request may use but cannot, for they lie in pieces.
    fn in_pieces(&self) -> u64 {
        let runs = self.map.runs(self.pool, self.state, &self.as_is());
        let free: u64 = runs.iter().map(|run| run.end - run.addr).sum();
        let usable = |slab: &&map::SlabInfo| {
            slab.lane == self.want.lane || Map::lane_serves(self.state, &self.as_is(), slab.lane) != Use::No
        };
        let slots = self.map.slabs.iter().filter(usable).filter(|slab| slab.taken > 0);
        free + slots.map(|slab| u64::from(slab.slots - slab.taken) * slab.class.size()).sum::<u64>()
    }
}
