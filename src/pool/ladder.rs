//! The reuse ladder: how a request is served that no magazine had a block for. Cheapest rung first, and after each the
//! search is repeated, so that nothing is waited for, moved or taken from the device that is not needed.
//!
//! | step | what | if |
//! |---|---|---|
//! | [`Pool::take`] | what the lane has free, then what anyone may use | |
//! | [`Pool::retire_empty_own`] | the memory of empty slabs | a small range is wanted |
//! | [`Pool::advance_pending`] | blocks whose recorded streams have passed | no capture |
//! | [`Pool::stream_wait`] | other streams' memory, waited for on the device | `cross_stream_wait:true` |
//! | [`Magazines::drain`] | the thread's large blocks, everyone's; for a small range all blocks | |
//! | [`Pool::stream_wait`] | as above | much lies idle elsewhere, `scarce`; the request may grow |
//! | [`Pool::grow`] | free chunks mapped here, then new ones | the request may grow |
//! | [`Pool::advance`], [`Pool::absorb`] | what streams have passed; neighbours that anyone may use | the first: no capture |
//! | | | all below: the request may grow |
//! | [`Magazines::drain`], [`Pool::grow`] | everything in magazines, chunks up to the limit | |
//! | [`Pool::stream_wait`] | as above | `scarce` |
//! | [`Pool::settle`], [`Pool::grow`] | all streams, waited for on the host | no capture |
//! | [`Pool::take_smaller`] | a smaller slab than is usual | |
//! | [`Pool::take_large`], [`Pool::borrow`] | a small block among large ones; what a private pool lends | |

use super::directory::BlockId;
use super::grow::Terms;
use super::lanes::LaneId;
use super::{DEDICATED, LARGE, PERSISTENT, Pool, PoolState, SMALL, SMALL_MAX};
use crate::block::{CLASS_SIZE_MAX, ClassId, NodeId, Owner, Slab};
use crate::config::StreamWait;
use crate::driver::{Driver, DriverResult};
use crate::telemetry::{Event, EventKind, Rung};
use crate::units::GRANULE;

/// Streams wait for one another's memory on the device where more than this part of what is held lies idle there: 1/64.
const IDLE_SHIFT: u32 = 6;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    /// For which lane.
    pub(crate) lane: LaneId,
    /// How much.
    pub(crate) kind: Kind,
    /// Whether memory may be taken from the device, and streams waited for.
    pub(crate) may_grow: bool,
}

/// How much is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A slot of a slab; of a new one of so many bytes if none has one free.
    Slot(ClassId, u64),
    /// So many bytes, a multiple of the granule above the largest class, at a multiple of `alignment`.
    Range { size: u64, alignment: u64, persistent: bool },
    /// So many bytes, a multiple of [`PAGE`](crate::units::PAGE), in a segment of their own.
    Dedicated { size: u64 },
}

impl Want {
    /// Where to look, for how much, at which alignment: a slot needs a slab if none has one free.
    pub(super) fn range(&self) -> (usize, u64, u64) {
        match self.kind {
            Kind::Slot(_, slab) => (SMALL, slab, slab),
            Kind::Dedicated { size } => (DEDICATED, size, GRANULE),
            Kind::Range { size, alignment, persistent: true } => (PERSISTENT, size, alignment),
            Kind::Range { size, alignment, .. } => (if size <= SMALL_MAX { SMALL } else { LARGE }, size, alignment),
        }
    }
}

/// Which of the blocks in magazines to take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    /// The calling thread's large blocks.
    OwnLarge,
    /// Every thread's large blocks.
    Large,
    /// Every block of every thread.
    All,
}

/// The blocks in threads' magazines, as the pool sees them.
pub(crate) trait Magazines {
    /// Takes blocks back into the pool. Returns how many bytes.
    fn drain(&self, state: &mut PoolState, what: Drain) -> u64;

    /// How many bytes they are, about.
    fn held(&self) -> u64;
}

/// Free ranges of so many of the smallest chunks are large.
const END_LEAST: u64 = 13;

impl Pool {
    /// Serves a request, or says that there is no room (`Ok(None)`) or that the driver failed. On failure nothing has changed that a
    /// caller could see.
    #[inline]
    pub(crate) fn alloc(
        &self,
        state: &mut PoolState,
        want: Want,
        magazines: &dyn Magazines,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        if state.plans.is_some() {
            return self.alloc_planned(state, want, magazines);
        }
        self.alloc_unplanned(state, want, magazines)
    }

    /// [`Pool::alloc`] without plans.
    #[inline]
    pub(super) fn alloc_unplanned(
        &self,
        state: &mut PoolState,
        want: Want,
        magazines: &dyn Magazines,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        if let Some(block) = self.take(state, want, Owner(want.lane))? {
            return Ok(Some((block, Rung::Own)));
        }
        self.climb(state, want, magazines)
    }

    #[inline(never)]
    fn climb(
        &self,
        state: &mut PoolState,
        want: Want,
        magazines: &dyn Magazines,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let found = |block: Option<BlockId>, rung| block.map(|block| (block, rung));
        if let Some(found) = found(self.take(state, want, Owner::SHARED)?, Rung::Shared) {
            return Ok(Some(found));
        }
        state.begin_notes(want.lane);
        // Empty slabs are kept as long as nobody wants their memory.
        if want.range().0 == SMALL
            && state.slabs.any_idle()
            && self.retire_empty_own(state)
            && let Some(found) = found(self.search(state, want)?, Rung::Merge)
        {
            return Ok(Some(found));
        }
        // During a capture no event may be asked for, and none recorded.
        let may_ask = !state.private.capturing();
        if may_ask
            && self.advance_pending(state)?
            && let Some(found) = found(self.search(state, want)?, Rung::Passed)
        {
            return Ok(Some(found));
        }
        if may_ask {
            state.tried(want.lane, Rung::Passed);
        }
        if may_ask
            && self.config.cross_stream_wait == StreamWait::Always
            && let Some(found) = found(self.stream_wait(state, want)?, Rung::StreamWait)
        {
            return Ok(Some(found));
        }
        for drain in [Drain::OwnLarge, Drain::Large] {
            if magazines.drain(state, drain) > 0
                && let Some(found) = found(self.search(state, want)?, Rung::Merge)
            {
                return Ok(Some(found));
            }
        }
        if want.range().0 == SMALL {
            // A new slab is rarely needed, and what it takes may be lying in magazines, slot by slot.
            magazines.drain(state, Drain::All);
            self.retire_empty_own(state);
            if let Some(found) = found(self.search(state, want)?, Rung::Merge) {
                return Ok(Some(found));
            }
        }
        state.tried(want.lane, Rung::Merge);
        if want.may_grow {
            if may_ask && self.idles_elsewhere(state, want) {
                if let Some(found) = self.grow(state, want, magazines, Terms { create: false, ..Terms::FIRST })? {
                    return Ok(Some(found));
                }
                if self.idles_elsewhere(state, want)
                    && let Some(found) = found(self.stream_wait(state, want)?, Rung::StreamWait)
                {
                    return Ok(Some(found));
                }
            }
            if let Some(found) = self.grow(state, want, magazines, Terms::FIRST)? {
                return Ok(Some(found));
            }
            state.tried(want.lane, Rung::NewChunk);
        }
        if (may_ask && self.advance(state)?) | self.absorb(state, want)
            && let Some(found) = found(self.search(state, want)?, Rung::Passed)
        {
            return Ok(Some(found));
        }
        if may_ask {
            state.tried(want.lane, Rung::Passed);
        }
        if !want.may_grow {
            return Ok(None);
        }
        if (magazines.drain(state, Drain::All) > 0) | self.retire_empty(state)
            && let Some(found) = found(self.search(state, want)?, Rung::Merge)
        {
            return Ok(Some(found));
        }
        state.tried(want.lane, Rung::Merge);
        if let Some(found) = self.grow(state, want, magazines, Terms::LAST)? {
            return Ok(Some(found));
        }
        state.tried(want.lane, Rung::Stitch);
        if may_ask
            && self.config.cross_stream_wait == StreamWait::Scarce
            && let Some(found) = found(self.stream_wait(state, want)?, Rung::StreamWait)
        {
            return Ok(Some(found));
        }
        if may_ask {
            let has_changed = self.settle(state)? | (self.release_dedicated(state, want.range().1)? > 0);
            self.absorb(state, want);
            state.tried(want.lane, Rung::Wait);
            // Also where nothing was left to wait for: the search for more may have found that streams are done.
            if let Some(found) = found(self.search(state, want)?, Rung::Wait) {
                return Ok(Some(found));
            }
            if has_changed && let Some((block, _)) = self.grow(state, want, magazines, Terms::LAST)? {
                return Ok(Some((block, Rung::Wait)));
            }
        }
        if let Some(block) = self.take_smaller(state, want)? {
            return Ok(Some((block, Rung::Own)));
        }
        if let Some(block) = self.take_large(state, want)? {
            return Ok(Some((block, Rung::Own)));
        }
        Ok(found(self.borrow(state, want)?, Rung::Lent))
    }

    /// Whether so much lies free in other lanes, or waits for other streams, that a lane is rather made to wait for it on the device than
    /// given new memory, where there is any to take.
    fn idles_elsewhere(&self, state: &PoolState, want: Want) -> bool {
        let dedicated = matches!(want.kind, Kind::Dedicated { .. });
        if self.config.cross_stream_wait != StreamWait::Scarce || dedicated || !self.driver.properties().vmm {
            return false;
        }
        if state.space.physical_bytes() + state.space.unit() > state.limit {
            return false;
        }
        let others = state.lanes.ids().filter(|&id| id != want.lane && !state.lanes.is_private(id));
        let free = others.map(|id| state.zones.iter().map(|zone| zone.free_bytes(Owner(id))).sum::<u64>());
        let idle = state.pending.bytes() + free.sum::<u64>();
        // What is left of the last chunk of each lane is no reason.
        let least = self.config.chunk_max.0.max(state.space.physical_bytes() >> IDLE_SHIFT);
        idle >= want.range().1.max(least)
    }

    /// Serves a slot from a smaller slab than the lane would get next.
    fn take_smaller(&self, state: &mut PoolState, want: Want) -> DriverResult<Option<BlockId>> {
        let Kind::Slot(class, size) = want.kind else { return Ok(None) };
        if state.lanes.is_private(want.lane) {
            return Ok(None);
        }
        let smaller = std::iter::successors(Some(size / 2), |size| Some(size / 2));
        for size in smaller.take_while(|&size| size >= Slab::least(class)) {
            if let Some(block) = self.search(state, Want { kind: Kind::Slot(class, size), ..want })? {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Serves a small request from what is free among large blocks, which may be too little for a chunk to be moved.
    fn take_large(&self, state: &mut PoolState, want: Want) -> DriverResult<Option<BlockId>> {
        let (size, alignment) = match want.kind {
            // The smallest that may lie there, and aligned as a slot is.
            Kind::Slot(class, _) => (CLASS_SIZE_MAX + GRANULE, 1 << class.size().trailing_zeros()),
            Kind::Range { size, alignment, persistent: false } if size <= SMALL_MAX => (size, alignment),
            _ => return Ok(None),
        };
        let private = state.lanes.is_private(want.lane);
        for owner in [Owner(want.lane), Owner::SHARED] {
            if private && owner == Owner::SHARED {
                continue;
            }
            let Some(node) = state.zones[LARGE].take(owner, size, alignment) else { continue };
            let addr = state.zones[LARGE].node(node).addr;
            let entered = self.directory.enter_node(LARGE, node, addr, size, want.lane);
            if !matches!(entered, Ok(Some(_))) {
                let stamp = state.lanes.stamp(want.lane);
                state.zones[LARGE].release(node, Owner(want.lane), stamp);
            }
            return entered;
        }
        Ok(None)
    }

    /// Takes what a private pool lends that has free memory of the same stream.
    fn borrow(&self, state: &mut PoolState, want: Want) -> DriverResult<Option<BlockId>> {
        if state.lanes.is_private(want.lane) {
            return Ok(None);
        }
        let stream = state.lanes.stream(want.lane);
        for pool in state.private.lending().to_vec() {
            let Some(lane) = state.lanes.existing(stream, pool) else { continue };
            let kind = match want.kind {
                Kind::Slot(class, _) => state.slot(lane, class),
                kind => kind,
            };
            if let Some(block) = self.take(state, Want { lane, kind, ..want }, Owner(lane))? {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Looks through what the lane may use at once.
    pub(super) fn search(&self, state: &mut PoolState, want: Want) -> DriverResult<Option<BlockId>> {
        match self.take(state, want, Owner(want.lane))? {
            Some(block) => Ok(Some(block)),
            None => self.take(state, want, Owner::SHARED),
        }
    }

    /// Takes what is wanted from `owner`'s free memory.
    pub(super) fn take(&self, state: &mut PoolState, want: Want, owner: Owner) -> DriverResult<Option<BlockId>> {
        self.take_known(state, want, owner)
    }

    /// [`Pool::take`], inlined where it is known what is wanted.
    #[inline(always)]
    pub(crate) fn take_known(&self, state: &mut PoolState, want: Want, owner: Owner) -> DriverResult<Option<BlockId>> {
        if let Kind::Slot(class, _) = want.kind
            && let Some(block) = self.take_slot(state, want.lane, class)
        {
            return Ok(Some(block));
        }
        let (zone, size, alignment) = want.range();
        let node = match want.kind {
            Kind::Dedicated { .. } => state.zones[zone].take_whole(owner, size),
            Kind::Range { persistent: false, .. } if zone == LARGE && alignment <= GRANULE => {
                self.take_end(state, owner, size)
            }
            _ => state.zones[zone].take(owner, size, alignment),
        };
        match node {
            Some(node) => self.enter(state, want, node),
            None => Ok(None),
        }
    }

    /// Takes a large block from the lower end of a free node, so that what is freed one after the other comes together again; from the upper
    /// end of a large one where more whole chunks are left beside it, which can be mapped elsewhere, as long as there is room for the rests.
    fn take_end(&self, state: &mut PoolState, owner: Owner, size: u64) -> Option<NodeId> {
        let id = state.zones[LARGE].best_fit(owner, size)?;
        let node = state.zones[LARGE].node(id);
        let (addr, end) = (node.addr, node.end());
        if end - addr - size >= state.space.unit() && end - addr >= state.space.unit() * END_LEAST && state.is_roomy(0)
        {
            let [beside_lower, beside_upper] = state.space.whole_beside(addr, end, size);
            if beside_upper > beside_lower {
                return Some(state.zones[LARGE].take_at(id, end - size, size));
            }
        }
        Some(state.zones[LARGE].take_from(id, size, GRANULE))
    }

    /// Makes a block of a node that was taken for the request.
    #[inline(always)]
    pub(super) fn enter(&self, state: &mut PoolState, want: Want, node: NodeId) -> DriverResult<Option<BlockId>> {
        let (zone, size, _) = want.range();
        let addr = state.zones[zone].node(node).addr;
        let entered = match want.kind {
            Kind::Range { .. } | Kind::Dedicated { .. } => self.directory.enter_node(zone, node, addr, size, want.lane),
            Kind::Slot(class, size) => {
                let number = state.slabs.next_number();
                if number >= self.directory.slabs_max() {
                    Ok(None)
                } else {
                    self.directory.enter_slab(number, addr, size, class).map(|()| {
                        state.slabs.add(addr, size, class, want.lane, node);
                        self.take_slot(state, want.lane, class)
                    })
                }
            }
        };
        if !matches!(entered, Ok(Some(_))) {
            // The numbers are used up, or there is no host memory for metadata.
            let stamp = state.lanes.stamp(want.lane);
            state.zones[zone].release(node, Owner(want.lane), stamp);
        }
        entered
    }

    /// Takes a free slot of the lane's slabs.
    #[inline]
    fn take_slot(&self, state: &mut PoolState, lane: LaneId, class: ClassId) -> Option<BlockId> {
        let (slab, slot, addr) = state.slabs.take(lane, class)?;
        Some(self.directory.enter_slot(slab, slot, addr, class, lane))
    }

    /// More free slots of a class, as many as there are places for them, without climbing. Returns how many there were.
    pub(crate) fn refill(&self, state: &mut PoolState, lane: LaneId, class: ClassId, into: &mut [BlockId]) -> usize {
        let slots = std::iter::from_fn(|| self.take_slot(state, lane, class));
        into.iter_mut().zip(slots).map(|(place, block)| *place = block).count()
    }

    /// Learns how far the streams are that freed blocks wait for. Returns whether blocks became free.
    pub(super) fn advance_pending(&self, state: &mut PoolState) -> DriverResult<bool> {
        if state.pending.bytes() == 0 {
            return Ok(false);
        }
        let PoolState { lanes, events, pending, .. } = &mut *state;
        for (_, clock) in (0..=u16::MAX).zip(&mut lanes.clocks).filter(|&(index, _)| pending.waits_for(index)) {
            clock.close(&*self.driver, events)?;
            clock.poll(&*self.driver, events)?;
        }
        Ok(self.finish_pending(state))
    }

    /// Learns how far all streams are, and makes what they have passed everyone's. Returns whether there was any.
    pub(super) fn advance(&self, state: &mut PoolState) -> DriverResult<bool> {
        self.poll(state)?;
        self.finish_pending(state);
        Ok(self.share_passed(state))
    }

    /// Learns how far all streams are.
    pub(super) fn poll(&self, state: &mut PoolState) -> DriverResult<()> {
        self.poll_clocks(state)?;
        // What shares memory with others goes its own way again as soon as it can.
        self.unshare_passed(state)
    }

    /// [`Pool::poll`] that changes nothing but what is known.
    pub(super) fn poll_clocks(&self, state: &mut PoolState) -> DriverResult<()> {
        let PoolState { lanes, events, .. } = &mut *state;
        for clock in lanes.clocks.iter_mut().filter(|clock| !clock.is_settled()) {
            clock.close(&*self.driver, events)?;
            clock.poll(&*self.driver, events)?;
        }
        Ok(())
    }

    /// Blocks that waited for recorded streams and do so no longer go back to where they belong.
    pub(super) fn finish_pending(&self, state: &mut PoolState) -> bool {
        if state.pending.bytes() == 0 {
            return false;
        }
        let done = state.pending.take_passed(&state.lanes.clocks);
        self.complete(state, &done);
        !done.is_empty()
    }

    /// Blocks wait for nothing any more, with the stamps of their home streams from which on that is so.
    pub(super) fn complete(&self, state: &mut PoolState, done: &[(BlockId, u64)]) {
        let mut bytes = 0;
        for &(block, home_stamp) in done {
            let header = self.directory.header(block);
            // What the debug aids do to it now is work on the home stream: the stamp of then would pass too early.
            let watched = state.is_watched();
            if watched && !self.retire(state, block) {
                continue;
            }
            bytes += header.size() as i64;
            let event = Event::new(EventKind::FreeCompleted, header.ptr(), header.requested());
            self.ring.push(state.on_lane(event, header.lane()));
            if !watched {
                self.put_back_as_of(state, block, Some(home_stamp));
            }
        }
        self.active.fold(-bytes, 0);
    }

    /// What the lanes have passed becomes everyone's.
    pub(super) fn share_passed(&self, state: &mut PoolState) -> bool {
        let mut any = false;
        for id in state.lanes.ids() {
            let lane = state.lanes.get(id);
            if lane.private.is_some() {
                continue;
            }
            let passed = state.lanes.clocks[lane.clock as usize].passed();
            for zone in &mut state.zones {
                any |= zone.free_bytes(Owner(id)) > 0 && zone.share(Owner(id), passed) > 0;
            }
        }
        any
    }

    /// Coalesces what the lane has free with what anyone may use.
    fn absorb(&self, state: &mut PoolState, want: Want) -> bool {
        let zone = &mut state.zones[want.range().0];
        let owner = Owner(want.lane);
        !state.lanes.is_private(want.lane)
            && zone.free_bytes(owner) > 0
            && zone.free_bytes(Owner::SHARED) > 0
            && zone.absorb(owner)
    }
}
