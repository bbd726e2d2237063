//! Whether a request would be served if something were done: the ladder's rungs, on a [`Map`] instead of the memory.

use super::map::{Assume, Freed, Map, Run, Use, Waited, What};
use crate::block::{CLASS_SIZE_MAX, ClassId, Owner, block_granules};
use crate::pool::directory::{BlockId, Place, life, place, slot_id};
use crate::pool::{Kind, LARGE, Pool, PoolState, SMALL, SMALL_MAX, Want};
use crate::units::{GRANULE, PAGE, PoolId, align_down, align_up};

/// What is known when a request has failed.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) pool: &'a Pool,
    pub(super) state: &'a PoolState,
    pub(super) map: Map,
    pub(super) want: Want,
    pub(super) vmm: bool,
    pub(super) capturing: bool,
    /// Free by the driver's word, or else all that this pool does not hold.
    pub(super) device_free: u64,
}

impl Scene<'_> {
    /// The request as it came, and nothing done.
    pub(super) fn as_is(&self) -> Assume<'static> {
        let waited = if self.want.may_grow && !self.capturing { Waited::All } else { Waited::Nothing };
        let drained = self.want.may_grow || self.want.range().0 == SMALL;
        let gives_back = self.is_plain(self.want);
        let (emptied, released, freed) = (false, None, Freed::Nothing);
        let (lane, (zone, _, _)) = (self.want.lane, self.want.range());
        Assume { lane, zone, waited, drained, gives_back, emptied, released, freed }
    }

    /// All that the whole ladder does outside of captures.
    pub(super) fn at_best(&self) -> Assume<'static> {
        Assume { waited: Waited::All, drained: true, ..self.as_is() }
    }

    /// What could still be taken from the device: the limit's and the device's.
    pub(super) fn room(&self) -> u64 {
        self.state.limit.saturating_sub(self.state.space.physical_bytes()).min(self.device_free)
    }

    fn is_plain(&self, want: Want) -> bool {
        !self.vmm || matches!(want.kind, Kind::Dedicated { .. })
    }

    /// What has to be mapped for a request that finds nothing beside a hole.
    pub(super) fn needed(&self, want: Want) -> u64 {
        let (_, size, alignment) = want.range();
        let (size, unit) = match self.is_plain(want) {
            true => (size.saturating_add(if alignment > GRANULE { alignment } else { 0 }), PAGE),
            false => (size, self.state.space.unit()),
        };
        align_up(size, unit).unwrap_or(u64::MAX)
    }

    /// What can be mapped anew: free chunks from elsewhere, the reserve, and what `room` gives.
    pub(super) fn supply(&self, want: Want, runs: &[Run], emptied: bool, room: u64) -> u64 {
        // A chunk that is still mapped somewhere cannot be given back, and nothing is known to be over during a capture.
        let stays = self.is_plain(want) && self.capturing;
        let (mut chunks, mut plain) = (if stays { 0 } else { self.state.space.reserve_bytes() }, 0);
        for run in runs {
            match self.map.ranges[run.first].plain {
                // Chunks do not take the place of plain segments that are free, unless those are given back.
                Some(_) if emptied || self.is_plain(want) => plain += run.movable,
                Some(_) => {}
                None => chunks += run.movable,
            }
        }
        let taken = plain + room;
        match self.is_plain(want) {
            true => chunks + taken,
            false => chunks + align_down(taken, self.state.space.unit()),
        }
    }

    /// Whether a free stretch can hold the request where it lies: at any alignment, since no search is made for one that happens to be aligned.
    pub(super) fn holds(want: Want, zone: usize, addr: u64, end: u64) -> bool {
        let (wanted, size, alignment) = want.range();
        match want.kind {
            Kind::Dedicated { .. } => zone == wanted && end - addr == size,
            _ => zone == wanted && size.saturating_add(alignment - GRANULE) <= end - addr,
        }
    }

    /// Whether `want` would be served, with so much room on the device.
    pub(super) fn serves(&self, want: Want, assume: &Assume<'_>, room: u64) -> bool {
        if self.has_slot(want, assume) {
            return true;
        }
        let runs = self.map.runs(self.pool, self.state, assume);
        if runs.iter().any(|run| Scene::holds(want, run.zone, run.addr, run.end)) {
            return true;
        }
        want.may_grow
            && (self.needed(want) <= self.supply(want, &runs, assume.emptied, room)
                || self.fits_among_large(want, &runs))
    }

    /// Whether a slab of the request's class has a slot free.
    fn has_slot(&self, want: Want, assume: &Assume<'_>) -> bool {
        let Kind::Slot(class, _) = want.kind else { return false };
        self.map.slabs.iter().filter(|slab| slab.class == class && slab.lane == want.lane).any(|slab| {
            let is_in = |block: &BlockId| matches!(place(*block), Place::Slot(number, _) if number == slab.number);
            let serves = |block| self.map.block_serves(self.pool, self.state, assume, block) != Use::No;
            slab.taken < slab.slots
                || (assume.drained && slab.cached > 0)
                || match &assume.freed {
                    Freed::Nothing => false,
                    Freed::Tag(tag) => slab.live > 0 && slab.tag == Some(*tag),
                    Freed::Blocks(_, by_slab) => by_slab.contains_key(&slab.number),
                }
                || (slab.pending > 0 && self.map.pending.keys().copied().any(|block| is_in(&block) && serves(block)))
        })
    }

    /// Whether a small request could lie among large blocks, as a last resort.
    fn fits_among_large(&self, want: Want, runs: &[Run]) -> bool {
        let (size, alignment) = match want.kind {
            Kind::Slot(class, _) => (CLASS_SIZE_MAX + GRANULE, 1 << class.size().trailing_zeros()),
            Kind::Range { size, alignment, persistent: false } if size <= SMALL_MAX => (size, alignment),
            _ => return false,
        };
        if self.state.lanes.is_private(want.lane) {
            return false;
        }
        // A plain segment that is free as a whole has gone back to the device before that.
        let stays = |run: &&Run| run.zone == LARGE && (self.map.ranges[run.first].plain.is_none() || run.movable == 0);
        let holds = |run: &Run| {
            self.map.ranges[run.first..=run.last].iter().any(|range| size + alignment - GRANULE <= range.size)
        };
        runs.iter().filter(stays).any(holds)
    }

    /// The same request with no wish but the size, and maybe the lifetime: how it is served then.
    pub(super) fn unaligned(&self, size: u64, persistent: bool) -> Want {
        let kind = match size <= CLASS_SIZE_MAX {
            true => self.state.slot(self.want.lane, ClassId::for_size(size)),
            false => Kind::Range { size: block_granules(size) * GRANULE, alignment: GRANULE, persistent },
        };
        Want { kind, ..self.want }
    }

    pub(super) fn not_persistent(&self) -> Option<Want> {
        let Kind::Range { size, alignment, persistent: true } = self.want.kind else { return None };
        Some(Want { kind: Kind::Range { size, alignment, persistent: false }, ..self.want })
    }

    /// The largest block that a lending pool could give a request of this stream.
    pub(super) fn lendable(&self, pool: PoolId) -> u64 {
        let (zone, size, alignment) = self.want.range();
        let stream = self.state.lanes.stream(self.want.lane);
        let Some(lane) = self.state.lanes.existing(stream, pool) else { return 0 };
        if matches!(self.want.kind, Kind::Dedicated { .. }) {
            let mut whole = self.state.zones[zone].free_nodes(Owner(lane));
            return if whole.any(|(_, node)| node.size == size) { size } else { 0 };
        }
        let free = self.state.zones[zone].largest_free(Owner(lane));
        free.saturating_sub(alignment - GRANULE)
    }

    /// The largest size of a request of this kind that would be served now, down to what another zone would serve.
    pub(super) fn largest(&self) -> u64 {
        let assume = self.as_is();
        let runs = self.map.runs(self.pool, self.state, &assume);
        let (zone, _, alignment) = self.want.range();
        let least = match self.want.kind {
            Kind::Range { persistent: false, .. } if zone == LARGE => SMALL_MAX + GRANULE,
            Kind::Range { .. } => CLASS_SIZE_MAX + GRANULE,
            Kind::Dedicated { .. } => PAGE,
            Kind::Slot(..) => return 0,
        };
        let in_place = |run: &Run| (run.end - run.addr).saturating_sub(alignment - GRANULE);
        let best = match self.want.kind {
            Kind::Dedicated { .. } => 0,
            _ => runs.iter().filter(|run| run.zone == zone).map(in_place).max().unwrap_or(0),
        };
        let slack = if self.is_plain(self.want) && alignment > GRANULE { alignment } else { 0 };
        // During a capture streams are not waited for, so that what is free in pieces may not be had together.
        let mapped = match self.want.may_grow && !self.capturing {
            true => align_down(self.supply(self.want, &runs, false, self.room()), PAGE).saturating_sub(slack),
            false => 0,
        };
        // No more than was asked for: what is mapped may not be counted to the byte.
        let (_, size, _) = self.want.range();
        let best = align_down(best.max(mapped).min(size - GRANULE), GRANULE);
        if best >= least { best } else { 0 }
    }

    /// Pieces of so many bytes that would be served now, one after the other.
    pub(super) fn pieces(&self, piece: u64) -> u64 {
        let (zone, _, alignment) = self.want.range();
        let runs = self.map.runs(self.pool, self.state, &self.as_is());
        let apart = align_up(piece, alignment).unwrap_or(u64::MAX);
        let fit = |run: &Run| (run.end - run.addr).saturating_sub(alignment - GRANULE) / apart;
        let in_place: u64 = runs.iter().filter(|run| run.zone == zone).map(fit).sum();
        // Where a stretch serves in its place, its chunks do not serve elsewhere as well.
        let elsewhere: Vec<Run> = runs.into_iter().filter(|run| run.zone != zone).collect();
        let slack = if !self.vmm && alignment > GRANULE { alignment } else { 0 };
        let (least, unit) = match self.vmm {
            true => (piece, self.state.space.unit()),
            false => ((piece + slack).max(self.pool.plain_least()), PAGE),
        };
        let mapped = align_up(least, unit).unwrap_or(u64::MAX);
        let supply = self.supply(self.want, &elsewhere, false, self.room());
        in_place + if self.want.may_grow { supply / mapped } else { 0 }
    }

    /// The live blocks in a range.
    pub(super) fn live_blocks(&self, what: What) -> Vec<BlockId> {
        let is_live = |block: &BlockId| self.pool.directory.header(*block).life() == life::LIVE;
        match what {
            What::Free { .. } => Vec::new(),
            What::Block(block) => Some(block).filter(is_live).into_iter().collect(),
            What::Slab(index) => {
                let slab = &self.map.slabs[index];
                (0..slab.places).map(|slot| slot_id(slab.number, slot)).filter(is_live).collect()
            }
        }
    }
}
