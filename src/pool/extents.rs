//! Extents: ranges of addresses outside of the arenas whose memory comes and goes while the addresses stay. The tiers keep what can be
//! evicted in them.
//!
//! An extent is **empty**, **mapped**, or **idle**: given up in stream order, and still mapped since unfinished work may touch it. The chunks of
//! one that is vacated go to the reserve, from where they serve anybody at once. Those of an idle one do so when its streams have passed it; until
//! then the lane that gave it up may have it again.
//!
//! Conservation: bytes mapped in extents == bytes of their fronts, and they are no arena's ([`Pool::validate`]).

use std::collections::{BTreeMap, BTreeSet};

use super::ladder::{Climb, Drain, Magazines};
use super::lanes::LaneId;
use super::{Pool, PoolState, too_many_streams};
use crate::block::Owner;
use crate::error::Result;
use crate::telemetry::{BlockInfo, BlockState, EventKind, Rung, SegmentInfo};
use crate::units::{DevicePtr, StreamId};
use crate::vm::ChunkId;

/// While there is little left of the limit, no chunk made for an extent is more than this part of it: 1/16.
const TIGHT_PART: u64 = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Backing {
    /// Addresses only.
    Empty,
    /// In use.
    Mapped,
    /// Given up when the lane's stamp was this, and the clocks of other streams that used it these.
    Idle { stamp: u64, others: Vec<(u16, u64)> },
}

#[derive(Debug)]
struct Extent {
    size: u64,
    lane: LaneId,
    tag: u8,
    /// Requested bytes of what lies in it.
    live: u64,
    backing: Backing,
}

/// The extents of a pool, by address.
#[derive(Debug, Default)]
pub(super) struct Extents {
    by_addr: BTreeMap<u64, Extent>,
    /// Those that are idle.
    idle: BTreeSet<u64>,
    mapped_bytes: u64,
    idle_bytes: u64,
}

impl Extents {
    /// Bytes that are mapped, idle ones among them.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Bytes that are mapped and not given up.
    pub(super) fn in_use_bytes(&self) -> u64 {
        self.mapped_bytes - self.idle_bytes
    }

    fn get(&mut self, addr: u64) -> &mut Extent {
        self.by_addr.get_mut(&addr).expect("its owner knows the extent")
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let bytes = |wanted: fn(&Backing) -> bool| -> u64 {
            self.by_addr.values().filter(|extent| wanted(&extent.backing)).map(|extent| extent.size).sum()
        };
        let mapped = bytes(|backing| *backing != Backing::Empty);
        let idle = bytes(|backing| matches!(backing, Backing::Idle { .. }));
        let is_idle = |extent: &Extent| matches!(extent.backing, Backing::Idle { .. });
        let listed = self.by_addr.iter().filter(|(_, extent)| is_idle(extent)).map(|(addr, _)| addr);
        if !listed.eq(&self.idle) {
            return Err(format!("extents: listed as idle are {:x?}", self.idle));
        }
        if (mapped, idle) != (self.mapped_bytes, self.idle_bytes) {
            let counted = (self.mapped_bytes, self.idle_bytes);
            return Err(format!("extents: {:?} bytes mapped and idle, {counted:?} counted", (mapped, idle)));
        }
        let too_full = self.by_addr.iter().find(|(_, extent)| extent.live > extent.size);
        too_full.map_or(Ok(()), |(addr, extent)| Err(format!("extent {addr:#x} holds more than it is: {extent:?}")))
    }
}

impl Pool {
    /// A mapped extent of `size` bytes, a multiple of the smallest chunk, for a stream. `None` where there is no room. Without magazines, from
    /// the reserve alone.
    pub(crate) fn new_extent(
        &self,
        state: &mut PoolState,
        stream: StreamId,
        size: u64,
        tag: u8,
        magazines: Option<&dyn Magazines>,
    ) -> Result<Option<u64>> {
        let lane = state.lanes.intern(stream, None).ok_or_else(too_many_streams)?;
        if let Some(addr) = self.reuse_idle(state, lane, size) {
            let extent = state.extents.get(addr);
            (extent.backing, extent.tag) = (Backing::Mapped, tag);
            state.extents.idle.remove(&addr);
            state.extents.idle_bytes -= size;
            self.active.fold(size as i64, size as i64);
            return Ok(Some(addr));
        }
        let (addr, reserved) = match state.space.reserve_segment(size, size) {
            Ok(range) => range,
            Err(error) if error.is_out_of_memory() => {
                state.refusal = Some(error);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        debug_assert_eq!(size, reserved);
        let extent = Extent { size, lane, tag, live: 0, backing: Backing::Empty };
        state.extents.by_addr.insert(addr, extent);
        let filled = match magazines {
            Some(magazines) => self.fill_extent(state, addr, magazines),
            None => self.fill_from_reserve(state, addr),
        };
        if !matches!(filled, Ok(true)) {
            self.forget_extent(state, addr);
        }
        Ok(filled?.then_some(addr))
    }

    /// An idle extent that this lane may use in stream order.
    fn reuse_idle(&self, state: &PoolState, lane: LaneId, size: u64) -> Option<u64> {
        let Extents { by_addr, idle, .. } = &state.extents;
        let fits = |extent: &Extent| match &extent.backing {
            Backing::Idle { others, .. } => {
                extent.lane == lane && extent.size == size && self.have_passed(state, others)
            }
            _ => false,
        };
        idle.iter().copied().find(|addr| fits(&by_addr[addr]))
    }

    fn have_passed(&self, state: &PoolState, others: &[(u16, u64)]) -> bool {
        others.iter().all(|&(clock, stamp)| state.lanes.clocks[clock as usize].has_passed(stamp))
    }

    /// Maps chunks in an empty extent. Returns whether there were enough. They hold nothing of what the extent held.
    pub(crate) fn fill_extent(&self, state: &mut PoolState, addr: u64, magazines: &dyn Magazines) -> Result<bool> {
        state.refusal = None;
        let at_hand = state.at_hand(Owner::SHARED.0);
        state.notes.begin(at_hand);
        let (size, lane) = (state.extents.get(addr).size, state.extents.get(addr).lane);
        let may_ask = !state.private.capturing();
        if !self.try_fill(state, addr, size)? {
            let drained = magazines.drain(self, state, Drain::All) > 0;
            if !((drained | self.retire_empty(state)) && self.try_fill(state, addr, size)?) {
                state.tried(lane, Rung::Merge);
                let settled = may_ask && self.settle(state)?;
                if !(settled && self.try_fill(state, addr, size)?) {
                    state.tried(lane, Rung::Wait);
                    return Ok(false);
                }
            }
        }
        self.filled(state, addr);
        Ok(true)
    }

    fn fill_from_reserve(&self, state: &mut PoolState, addr: u64) -> Result<bool> {
        let size = state.extents.get(addr).size;
        let chunks = self.pick_for_extent(state, size);
        let enough = bytes_of(&chunks) == size;
        if enough {
            let ids: Vec<ChunkId> = chunks.iter().map(|&(id, _)| id).collect();
            state.space.map(addr, &ids)?;
            self.filled(state, addr);
        }
        Ok(enough)
    }

    /// Chunks have been mapped in an empty extent.
    fn filled(&self, state: &mut PoolState, addr: u64) {
        let extent = state.extents.get(addr);
        extent.backing = Backing::Mapped;
        let (size, lane, live) = (extent.size, extent.lane, extent.live as i64);
        state.extents.mapped_bytes += size;
        self.active.fold(size as i64, size as i64);
        self.live.fold(live, live);
        self.note_mapping(state, EventKind::Map, Owner(lane), addr, size);
    }

    /// With chunks of the reserve, then what is free elsewhere and passed, then new ones as far as limit and device allow.
    fn try_fill(&self, state: &mut PoolState, addr: u64, size: u64) -> Climb<bool> {
        let mut chunks = self.pick_for_extent(state, size);
        if bytes_of(&chunks) < size {
            if !state.private.capturing() {
                self.poll(state)?;
                self.finish_pending(state);
            }
            chunks = self.pick_for_extent(state, size);
        }
        let missing = size - bytes_of(&chunks);
        if missing > 0 {
            self.harvest(state, missing)?;
            chunks = self.pick_for_extent(state, size);
        }
        if !self.create_for_extent(state, size, &mut chunks)? {
            return Ok(false);
        }
        let ids: Vec<ChunkId> = chunks.iter().map(|&(id, _)| id).collect();
        match state.space.map(addr, &ids) {
            Ok(()) => Ok(true),
            Err(error) if error.is_out_of_memory() => {
                // There is a limit to mappings too.
                let again = self.lay_ghosts(state)? && state.space.map(addr, &ids).is_ok();
                if !again {
                    state.refusal = Some(error);
                }
                Ok(again)
            }
            Err(error) => Err(error),
        }
    }

    /// Chunks of the reserve of `size` bytes together, or of as much as there is. Largest first: sizes are powers of two, so that this comes
    /// closest.
    fn pick_for_extent(&self, state: &PoolState, size: u64) -> Vec<(ChunkId, u64)> {
        let mut reserve: Vec<(ChunkId, u64)> = state.space.reserve().collect();
        reserve.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let mut left = size;
        reserve.retain(|&(_, bytes)| {
            let fits = bytes <= left;
            left -= if fits { bytes } else { 0 };
            fits
        });
        reserve
    }

    /// Creates what is missing of `size` bytes. Chunks of the reserve that are too large go back to the device where they are in the way.
    fn create_for_extent(&self, state: &mut PoolState, size: u64, chunks: &mut Vec<(ChunkId, u64)>) -> Climb<bool> {
        let unit = state.space.unit();
        let mut missing = size - bytes_of(chunks);
        let over = (state.space.physical_bytes() + missing).saturating_sub(state.limit);
        if missing > 0 && over > 0 {
            let keep: Vec<ChunkId> = chunks.iter().map(|&(id, _)| id).collect();
            let rest = state.space.reserve_bytes() - bytes_of(chunks);
            if rest < over {
                return Ok(false);
            }
            state.space.release_others(over, &keep);
        }
        let roomy = (state.space.physical_bytes() + missing) < state.limit / 2;
        let part = if roomy { size } else { size / TIGHT_PART };
        let mut largest = self.config.chunk_max.0.min(part).max(unit);
        if self.config.thrifty {
            largest = unit;
        }
        while missing > 0 {
            let bytes = (1 << missing.ilog2()).min(1 << largest.ilog2());
            if bytes < unit || state.space.physical_bytes() + bytes > state.limit {
                return Ok(false);
            }
            match state.space.create(bytes) {
                Ok(chunk) => {
                    state.reserved_peak = state.reserved_peak.max(state.space.physical_bytes());
                    chunks.push((chunk, bytes));
                    missing -= bytes;
                }
                Err(error) if error.is_out_of_memory() => {
                    let keep: Vec<ChunkId> = chunks.iter().map(|&(id, _)| id).collect();
                    if state.space.release_others(missing, &keep) == 0 {
                        largest = bytes / 2;
                    }
                    state.refusal = Some(error);
                    if largest < unit {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Takes the memory of a mapped extent away; its chunks go to the reserve. No unfinished work touches it.
    pub(crate) fn vacate_extent(&self, state: &mut PoolState, addr: u64) -> Result<()> {
        let extent = state.extents.get(addr);
        debug_assert_eq!(extent.backing, Backing::Mapped);
        let (size, lane, live) = (extent.size, extent.lane, extent.live as i64);
        state.space.withdraw(addr, addr + size)?;
        state.extents.get(addr).backing = Backing::Empty;
        state.extents.mapped_bytes -= size;
        self.active.fold(-(size as i64), 0);
        self.live.fold(-live, 0);
        self.note_mapping(state, EventKind::Unmap, Owner(lane), addr, size);
        Ok(())
    }

    /// The extent is not needed any more, in the order of its home stream and of what these other streams have been given to do so far.
    pub(crate) fn give_up_extent(&self, state: &mut PoolState, addr: u64, users: &[StreamId]) {
        let extent = state.extents.get(addr);
        let (size, lane, live) = (extent.size, extent.lane, std::mem::take(&mut extent.live));
        if extent.backing == Backing::Empty {
            return self.forget_extent(state, addr);
        }
        debug_assert_eq!(extent.backing, Backing::Mapped);
        let stamp = state.lanes.stamp(lane);
        let others = self.stamps_of(state, users);
        state.extents.get(addr).backing = Backing::Idle { stamp, others };
        state.extents.idle.insert(addr);
        state.extents.idle_bytes += size;
        self.active.fold(-(size as i64), 0);
        self.live.fold(-(live as i64), 0);
    }

    fn forget_extent(&self, state: &mut PoolState, addr: u64) {
        if let Some(extent) = state.extents.by_addr.remove(&addr) {
            // Where that fails, the addresses stay reserved, and the failure is counted.
            state.space.unreserve_segment(addr, extent.size);
        }
    }

    /// The memory of idle extents that all their streams have passed goes to the reserve, and their addresses back. Returns whether there was any.
    pub(super) fn vacate_idle(&self, state: &mut PoolState) -> bool {
        let is_over = |extent: &Extent| match &extent.backing {
            Backing::Idle { stamp, others } => {
                state.lanes.has_passed(extent.lane, *stamp) && self.have_passed(state, others)
            }
            _ => false,
        };
        let Extents { by_addr, idle, .. } = &state.extents;
        let over: Vec<u64> = idle.iter().copied().filter(|addr| is_over(&by_addr[addr])).collect();
        let mut any = false;
        for addr in over {
            let (size, lane) = (state.extents.get(addr).size, state.extents.get(addr).lane);
            if state.space.withdraw(addr, addr + size).is_err() {
                state.failures += 1;
                continue;
            }
            state.extents.mapped_bytes -= size;
            state.extents.idle_bytes -= size;
            state.extents.idle.remove(&addr);
            self.note_mapping(state, EventKind::Unmap, Owner(lane), addr, size);
            self.forget_extent(state, addr);
            any = true;
        }
        any
    }

    /// So many requested bytes more, or less, lie in an extent.
    pub(crate) fn count_in_extent(&self, state: &mut PoolState, addr: u64, requested: i64) {
        let extent = state.extents.get(addr);
        extent.live = extent.live.saturating_add_signed(requested);
        if extent.backing == Backing::Mapped {
            self.live.fold(requested, requested.max(0));
        }
    }

    /// Stamps of what streams have been given to do so far, for [`Pool::have_passed_stamps`].
    pub(crate) fn stamps_of(&self, state: &mut PoolState, streams: &[StreamId]) -> Vec<(u16, u64)> {
        let stamps = streams.iter().filter_map(|&stream| {
            let clock = state.lanes.clock_index(stream)?;
            Some((clock, state.lanes.clocks[clock as usize].stamp()))
        });
        stamps.collect()
    }

    /// Whether streams have passed these stamps, by the driver's word; with `wait`, once they have.
    pub(crate) fn have_passed_stamps(&self, state: &mut PoolState, stamps: &[(u16, u64)], wait: bool) -> Result<bool> {
        if !state.private.capturing() && !self.have_passed(state, stamps) {
            let PoolState { lanes, events, .. } = &mut *state;
            for &(clock, stamp) in stamps {
                let clock = &mut lanes.clocks[clock as usize];
                if !clock.has_passed(stamp) && wait {
                    clock.wait(&*self.driver, events)?;
                } else if !clock.has_passed(stamp) {
                    clock.close(&*self.driver, events)?;
                    clock.poll(&*self.driver, events)?;
                }
            }
        }
        Ok(self.have_passed(state, stamps))
    }

    /// Lets later work of a stream wait for what another one has been given to do so far.
    pub(crate) fn order_streams(&self, state: &mut PoolState, later: StreamId, earlier: StreamId) -> Result<()> {
        let clock = state.lanes.clock_index(earlier).ok_or_else(too_many_streams)?;
        let PoolState { lanes, events, .. } = &mut *state;
        let clock = &mut lanes.clocks[clock as usize];
        clock.stamp();
        Ok(clock.let_wait(later, &*self.driver, events)?)
    }

    /// Bytes of the smallest chunk.
    pub(crate) fn unit(&self, state: &PoolState) -> u64 {
        state.space.unit()
    }

    /// What is mapped in extents, as segments of one block each.
    pub(super) fn extent_segments<'a>(&self, state: &'a PoolState) -> impl Iterator<Item = SegmentInfo> + 'a {
        let mapped = state.extents.by_addr.iter().filter(|(_, extent)| extent.backing != Backing::Empty);
        mapped.map(|(&addr, extent)| {
            let (ptr, size, stream) = (DevicePtr(addr), extent.size, state.lanes.stream(extent.lane));
            let block_state = if extent.backing == Backing::Mapped { BlockState::Live } else { BlockState::Free };
            let (requested, tag) = (extent.live, if block_state == BlockState::Live { extent.tag } else { 0 });
            let pool = None;
            let block = BlockInfo { ptr, size, requested, state: block_state, stream, pool, tag, dedicated: false };
            SegmentInfo { ptr, size, aliased: 0, stream, pool, large: true, expandable: true, blocks: vec![block] }
        })
    }

    /// Checks the extents' counts, and that what is mapped in each is its size.
    pub(super) fn validate_extents(&self, state: &PoolState) -> std::result::Result<(), String> {
        state.extents.validate()?;
        for (&addr, extent) in &state.extents.by_addr {
            let mapped: u64 = state.space.fronts(addr, addr + extent.size).map(|(_, _, size)| size).sum();
            if mapped != if extent.backing == Backing::Empty { 0 } else { extent.size } {
                return Err(format!("extent {addr:#x} has {mapped} bytes of chunks: {extent:?}"));
            }
        }
        Ok(())
    }
}

fn bytes_of(chunks: &[(ChunkId, u64)]) -> u64 {
    chunks.iter().map(|&(_, bytes)| bytes).sum()
}
