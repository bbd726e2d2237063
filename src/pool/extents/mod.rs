//! Extents: ranges of addresses outside of the arenas whose memory comes and goes while the addresses stay. The tiers keep what can be
//! evicted in them.
//!
//! An extent is **empty**, **mapped**, or **idle**: given up in stream order, and still mapped. An idle one stays so until its memory is needed
//! elsewhere, so that whoever asks for as much next has it without a call of the driver. Its chunks are handed on, too: to another extent, whose
//! lane comes after all that has used them. They are mapped there once more, and the old mapping stays for work that may touch it still; where
//! all chunks have gone, the extent is a **ghost**, which is unmapped when its streams have passed it. So nothing is waited for. The chunks of an
//! extent that is vacated go to the reserve, from where they serve anybody at once.
//!
//! Conservation: bytes mapped in extents == bytes of their fronts, and they are no arena's ([`Pool::validate`]).

mod fill;
mod stamps;

use std::collections::{BTreeMap, BTreeSet};

use super::ladder::Magazines;
use super::lanes::LaneId;
use super::{Pool, PoolState, too_many_streams};
use crate::block::Owner;
use crate::driver::DriverResult;
use crate::error::Result;
use crate::telemetry::{BlockInfo, BlockState, EventKind, SegmentInfo};
use crate::units::{DevicePtr, StreamId};

pub(crate) use stamps::NEVER;

/// Addresses that are kept for extents to come: so many times the device's memory.
const VACANT_MAX: u64 = 4;

/// What a stream had been given to do at some time, by the number of its clock.
pub(crate) type Stamp = (u16, u64);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Backing {
    /// Addresses only.
    Empty,
    /// In use.
    Mapped,
    /// Given up: what it was used for is over when these clocks have passed. So many bytes of it have not been handed on.
    Idle { stamps: Vec<Stamp>, left: u64 },
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
    /// Those that are idle, by what is left of them.
    idle: BTreeSet<(u64, u64)>,
    /// Bytes of fronts, and of those that are in idle extents.
    mapped_bytes: u64,
    idle_bytes: u64,
    ghosts: usize,
    /// Reservations in which nothing is mapped, by their size.
    vacant: BTreeMap<u64, Vec<u64>>,
    vacant_bytes: u64,
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

    /// So many bytes less are left of an idle extent.
    fn hand_on(&mut self, addr: u64, bytes: u64) {
        let Backing::Idle { left, .. } = &mut self.get(addr).backing else { return };
        let before = *left;
        *left -= bytes;
        let after = *left;
        self.idle.remove(&(before, addr));
        self.idle.insert((after, addr));
        self.mapped_bytes -= bytes;
        self.idle_bytes -= bytes;
        self.ghosts += usize::from(after == 0 && before > 0);
    }

    /// An extent is idle no more: what was left of it.
    fn end_idle(&mut self, addr: u64) -> u64 {
        let Backing::Idle { left, .. } = self.get(addr).backing else { return 0 };
        self.idle.remove(&(left, addr));
        self.idle_bytes -= left;
        self.ghosts -= usize::from(left == 0);
        left
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let fronts = |extent: &Extent| match extent.backing {
            Backing::Empty => 0,
            Backing::Mapped => extent.size,
            Backing::Idle { left, .. } => left,
        };
        let idle = |(&addr, extent): (&u64, &Extent)| match extent.backing {
            Backing::Idle { left, .. } => Some((left, addr)),
            _ => None,
        };
        let found: BTreeSet<(u64, u64)> = self.by_addr.iter().filter_map(idle).collect();
        if found != self.idle {
            return Err(format!("extents: listed as idle are {:x?}", self.idle));
        }
        let mapped: u64 = self.by_addr.values().map(fronts).sum();
        let idle: u64 = found.iter().map(|&(left, _)| left).sum();
        let ghosts = found.iter().filter(|&&(left, _)| left == 0).count();
        if (mapped, idle, ghosts) != (self.mapped_bytes, self.idle_bytes, self.ghosts) {
            let counted = (self.mapped_bytes, self.idle_bytes, self.ghosts);
            return Err(format!(
                "extents: {:?} bytes mapped and idle, and ghosts, {counted:?} counted",
                (mapped, idle, ghosts)
            ));
        }
        let vacant: u64 = self.vacant.iter().map(|(size, addrs)| size * addrs.len() as u64).sum();
        if vacant != self.vacant_bytes {
            return Err(format!("extents: {vacant} bytes of addresses vacant, {} counted", self.vacant_bytes));
        }
        let too_full = self.by_addr.iter().find(|(_, extent)| extent.live > extent.size);
        too_full.map_or(Ok(()), |(addr, extent)| Err(format!("extent {addr:#x} holds more than it is: {extent:?}")))
    }
}

impl Pool {
    /// A mapped extent of `size` bytes, a multiple of the smallest chunk, for a stream, and what its memory was used for that is not over
    /// yet: the stream comes after that. `None` where there is no room. Without magazines, from the reserve alone.
    pub(crate) fn new_extent(
        &self,
        state: &mut PoolState,
        stream: StreamId,
        size: u64,
        tag: u8,
        magazines: Option<&dyn Magazines>,
    ) -> Result<Option<(u64, Vec<Stamp>)>> {
        let lane = state.lanes.intern(stream, None).ok_or_else(too_many_streams)?;
        if let Some(addr) = self.find_idle(state, lane, size)? {
            state.extents.end_idle(addr);
            let extent = state.extents.get(addr);
            (extent.tag, extent.lane) = (tag, lane);
            let before = std::mem::replace(&mut extent.backing, Backing::Mapped);
            let Backing::Idle { stamps, .. } = before else { unreachable!("found among the idle ones") };
            self.active.fold(size as i64, size as i64);
            return Ok(Some((addr, self.not_passed(state, &stamps))));
        }
        let Some(addr) = self.extent_address(state, size)? else { return Ok(None) };
        let extent = Extent { size, lane, tag, live: 0, backing: Backing::Empty };
        state.extents.by_addr.insert(addr, extent);
        let filled = match magazines {
            Some(magazines) => self.fill_extent(state, addr, magazines),
            None => self.fill_from_reserve(state, addr),
        };
        if !matches!(filled, Ok(Some(_))) {
            self.forget_extent(state, addr);
        }
        Ok(filled?.map(|after| (addr, after)))
    }

    /// Addresses for an extent, in which nothing is mapped.
    fn extent_address(&self, state: &mut PoolState, size: u64) -> Result<Option<u64>> {
        if let Some(addr) = state.extents.vacant.get_mut(&size).and_then(Vec::pop) {
            state.extents.vacant_bytes -= size;
            return Ok(Some(addr));
        }
        loop {
            match state.space.reserve_segment(size, size) {
                Ok((addr, reserved)) => {
                    debug_assert_eq!(size, reserved);
                    return Ok(Some(addr));
                }
                Err(error) if error.is_out_of_memory() && self.give_addresses_back(state) => {}
                Err(error) if error.is_out_of_memory() => {
                    state.refusal = Some(error);
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives back the addresses that are kept for extents to come. Whether there were any.
    pub(super) fn give_addresses_back(&self, state: &mut PoolState) -> bool {
        state.extents.vacant_bytes = 0;
        let mut any = false;
        for (size, addrs) in std::mem::take(&mut state.extents.vacant) {
            // Where that fails, the addresses stay reserved, and the failure is counted.
            addrs.into_iter().for_each(|addr| any |= state.space.unreserve_segment(addr, size));
        }
        any
    }

    /// An idle extent of that size, whole, that a lane may use in stream order.
    fn find_idle(&self, state: &mut PoolState, lane: LaneId, size: u64) -> DriverResult<Option<u64>> {
        let own = state.lanes.get(lane).clock;
        let find = |state: &PoolState| {
            let Extents { by_addr, idle, .. } = &state.extents;
            let fits = |addr: u64| match &by_addr[&addr] {
                Extent { size: whole, backing: Backing::Idle { stamps, .. }, .. } => {
                    *whole == size && self.have_passed_but(state, stamps, Some(own))
                }
                _ => false,
            };
            let mut whole = idle.range((size, 0)..=(size, u64::MAX)).map(|&(_, addr)| addr);
            (idle.range((size, 0)..=(size, u64::MAX)).next().is_some(), whole.find(|&addr| fits(addr)))
        };
        let (any, found) = find(state);
        if found.is_some() || !any || state.private.capturing() {
            return Ok(found);
        }
        // Streams may have got on.
        self.poll_clocks(state)?;
        Ok(find(state).1)
    }

    fn have_passed(&self, state: &PoolState, stamps: &[Stamp]) -> bool {
        self.have_passed_but(state, stamps, None)
    }

    /// Whether clocks have passed these stamps, but for one that need not, since its stream comes after them anyhow.
    fn have_passed_but(&self, state: &PoolState, stamps: &[Stamp], own: Option<u16>) -> bool {
        stamps.iter().all(|&(clock, stamp)| {
            (own == Some(clock) && stamp != NEVER.1) || state.lanes.clocks[clock as usize].has_passed(stamp)
        })
    }

    /// Those of these stamps that have not passed yet.
    fn not_passed(&self, state: &PoolState, stamps: &[Stamp]) -> Vec<Stamp> {
        let left = stamps.iter().filter(|&&(clock, stamp)| !state.lanes.clocks[clock as usize].has_passed(stamp));
        left.copied().collect()
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
        let stamps = self.stamps_of(state, state.lanes.stream(lane), users);
        let mut stamps = stamps.unwrap_or_else(|_| {
            // Nobody can say when it is over: it stays.
            state.failures += 1;
            vec![NEVER]
        });
        let home = (state.lanes.get(lane).clock, state.lanes.stamp(lane));
        if !stamps.iter().any(|&(clock, _)| clock == home.0) {
            stamps.insert(0, home);
        }
        state.extents.get(addr).backing = Backing::Idle { stamps, left: size };
        state.extents.idle.insert((size, addr));
        state.extents.idle_bytes += size;
        self.active.fold(-(size as i64), 0);
        self.live.fold(-(live as i64), 0);
    }

    /// An extent in which nothing is mapped is no more. Its addresses are for the next one of its size.
    fn forget_extent(&self, state: &mut PoolState, addr: u64) {
        let Some(Extent { size, .. }) = state.extents.by_addr.remove(&addr) else { return };
        if state.extents.vacant_bytes + size <= self.capacity.saturating_mul(VACANT_MAX) {
            state.extents.vacant.entry(size).or_default().push(addr);
            state.extents.vacant_bytes += size;
        } else {
            // Where that fails, the addresses stay reserved, and the failure is counted.
            state.space.unreserve_segment(addr, size);
        }
    }

    /// Ghosts that their streams have passed are unmapped; with `partly`, also what has handed on a part of its chunks. Whether there were any.
    pub(super) fn unmap_spent(&self, state: &mut PoolState, partly: bool) -> bool {
        let Extents { by_addr, idle, .. } = &state.extents;
        let most = if partly { u64::MAX } else { 0 };
        let ghosts = idle.range((0, 0)..=(most, u64::MAX)).filter(|(left, addr)| by_addr[addr].size > *left);
        let over: Vec<u64> = ghosts.map(|&(_, addr)| addr).filter(|&addr| self.is_over(state, addr)).collect();
        over.iter().fold(false, |any, &addr| self.unmap_idle(state, addr) | any)
    }

    /// Whether all streams have passed what an idle extent was used for.
    fn is_over(&self, state: &PoolState, addr: u64) -> bool {
        match &state.extents.by_addr[&addr].backing {
            Backing::Idle { stamps, .. } => self.have_passed(state, stamps),
            _ => false,
        }
    }

    /// Unmaps an idle extent that all its streams have passed: what is left of it goes to the reserve. Whether that went well.
    fn unmap_idle(&self, state: &mut PoolState, addr: u64) -> bool {
        let (size, lane) = (state.extents.get(addr).size, state.extents.get(addr).lane);
        if state.space.withdraw(addr, addr + size).is_err() {
            state.failures += 1;
            return false;
        }
        let left = state.extents.end_idle(addr);
        state.extents.mapped_bytes -= left;
        self.note_mapping(state, EventKind::Unmap, Owner(lane), addr, size);
        self.forget_extent(state, addr);
        true
    }

    /// The memory of idle extents that all their streams have passed goes to the reserve, until that are `wanted` bytes. Returns the bytes.
    pub(super) fn vacate_idle(&self, state: &mut PoolState, wanted: u64) -> u64 {
        if wanted == 0 {
            return 0;
        }
        self.unmap_spent(state, false);
        let idle = state.extents.idle.range((1, 0)..).rev();
        let over: Vec<(u64, u64)> = idle.filter(|&&(_, addr)| self.is_over(state, addr)).copied().collect();
        let mut gained = 0;
        for (left, addr) in over {
            if gained >= wanted {
                break;
            }
            gained += if self.unmap_idle(state, addr) { left } else { 0 };
        }
        gained
    }

    /// So many requested bytes more, or less, lie in an extent.
    pub(crate) fn count_in_extent(&self, state: &mut PoolState, addr: u64, requested: i64) {
        let extent = state.extents.get(addr);
        extent.live = extent.live.saturating_add_signed(requested);
        if extent.backing == Backing::Mapped {
            self.live.fold(requested, requested.max(0));
        }
    }

    /// What is mapped in extents, as segments of one block each.
    pub(super) fn extent_segments<'a>(&self, state: &'a PoolState) -> impl Iterator<Item = SegmentInfo> + 'a {
        let mapped = state.extents.by_addr.iter().filter(|(_, extent)| extent.backing != Backing::Empty);
        mapped.map(|(&addr, extent)| {
            let (ptr, size, stream) = (DevicePtr(addr), extent.size, state.lanes.stream(extent.lane));
            let block_state = if extent.backing == Backing::Mapped { BlockState::Live } else { BlockState::Free };
            let aliased = if let Backing::Idle { left, .. } = extent.backing { size - left } else { 0 };
            let (requested, tag) = (extent.live, if block_state == BlockState::Live { extent.tag } else { 0 });
            let pool = None;
            let block = BlockInfo { ptr, size, requested, state: block_state, stream, pool, tag, dedicated: false };
            SegmentInfo { ptr, size, aliased, stream, pool, large: true, expandable: true, blocks: vec![block] }
        })
    }

    /// Checks the extents' counts, and that what is mapped in each is its size.
    pub(super) fn validate_extents(&self, state: &PoolState) -> std::result::Result<(), String> {
        state.extents.validate()?;
        for (&addr, extent) in &state.extents.by_addr {
            let mapped: u64 = state.space.fronts(addr, addr + extent.size).map(|(_, _, size)| size).sum();
            let fronts = match extent.backing {
                Backing::Empty => 0,
                Backing::Mapped => extent.size,
                Backing::Idle { left, .. } => left,
            };
            if mapped != fronts {
                return Err(format!("extent {addr:#x} has {mapped} bytes of chunks: {extent:?}"));
            }
        }
        Ok(())
    }
}
