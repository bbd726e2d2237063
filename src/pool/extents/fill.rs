//! Memory for empty extents: chunks of the reserve, chunks that idle extents hand on, new ones.

use super::{Backing, Extent, Extents, NEVER, Stamp};
use crate::block::Owner;
use crate::config::StreamWait;
use crate::driver::DriverResult;
use crate::error::Result;
use crate::pool::ladder::{Drain, Magazines};
use crate::pool::lanes::LaneId;
use crate::pool::{Pool, PoolState};
use crate::telemetry::{EventKind, Rung};
use crate::vm::ChunkId;

/// While there is little left of the limit, no chunk made for an extent is more than this part of it: 1/4.
const TIGHT_PART: u64 = 4;
/// So many ghosts may stand before chunks that streams have not passed are handed on no more.
const GHOSTS_MAX: usize = 1 << 12;

/// Chunks for an extent, which nothing has happened to yet.
#[derive(Debug, Default)]
struct Picked {
    chunks: Vec<ChunkId>,
    bytes: u64,
    /// Of that, from the reserve.
    reserved: u64,
    /// The idle extents that hand chunks on, and how many bytes.
    donors: Vec<(u64, u64)>,
}

/// Whose idle extents hand chunks on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lenders {
    /// Those that all streams but the lane's own have passed.
    Own,
    /// All: the lane's stream is made to wait for the others.
    All,
}

impl Pool {
    /// Maps chunks in an empty extent, which hold nothing of what it held. Returns what has to pass before others than the lane's stream use
    /// them; `None` where there were not enough.
    pub(crate) fn fill_extent(
        &self,
        state: &mut PoolState,
        addr: u64,
        magazines: &dyn Magazines,
    ) -> Result<Option<Vec<Stamp>>> {
        let &mut Extent { size, lane, .. } = state.extents.get(addr);
        state.begin_notes(lane);
        let may_ask = !state.private.capturing();
        let waits = self.config.cross_stream_wait;
        let first = if waits == StreamWait::Always && may_ask { Lenders::All } else { Lenders::Own };
        let mut filled = self.try_fill(state, addr, first)?;
        if filled.is_none() {
            let drained = magazines.drain(state, Drain::All) > 0;
            if drained | self.retire_empty(state) {
                filled = self.try_fill(state, addr, first)?;
            }
            state.tried(lane, Rung::Merge);
        }
        if filled.is_none() && may_ask && waits == StreamWait::Scarce && state.extents.idle_bytes > 0 {
            filled = self.try_fill(state, addr, Lenders::All)?;
        }
        if filled.is_none() && may_ask && self.waiting_may_help(state, size) {
            if self.settle(state)? {
                filled = self.try_fill(state, addr, Lenders::Own)?;
            }
            state.tried(lane, Rung::Wait);
        }
        if filled.is_some() {
            self.filled(state, addr);
        }
        Ok(filled)
    }

    /// Whether waiting for streams could make so much memory free.
    fn waiting_may_help(&self, state: &PoolState, size: u64) -> bool {
        let free: u64 = state.zones.iter().map(|zone| zone.free_bytes_total()).sum();
        let held = state.space.reserve_bytes() + state.extents.idle_bytes + state.pending.bytes() + free;
        let new = state.limit.saturating_sub(state.space.physical_bytes());
        held + new >= size || state.slabs.any_frozen() || state.pairs.any_unfinished()
    }

    pub(super) fn fill_from_reserve(&self, state: &mut PoolState, addr: u64) -> Result<Option<Vec<Stamp>>> {
        state.begin_notes(Owner::SHARED.0);
        let size = state.extents.get(addr).size;
        let picked = self.pick_reserve(state, size);
        if picked.bytes < size {
            return Ok(None);
        }
        state.space.map(addr, &picked.chunks)?;
        self.filled(state, addr);
        Ok(Some(Vec::new()))
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

    /// With chunks of the reserve, then of idle extents, then what is free elsewhere and passed, then new ones as far as limit and device
    /// allow.
    fn try_fill(&self, state: &mut PoolState, addr: u64, from: Lenders) -> DriverResult<Option<Vec<Stamp>>> {
        let &mut Extent { size, lane, .. } = state.extents.get(addr);
        let may_ask = !state.private.capturing();
        let mut picked = self.pick_reserve(state, size);
        if picked.bytes < size && may_ask {
            self.poll(state)?;
            self.finish_pending(state);
            picked = self.pick_reserve(state, size);
        }
        if picked.bytes < size {
            self.pick_idle(state, lane, size, from, &mut picked);
        }
        if picked.bytes < size {
            self.harvest(state, size - picked.bytes)?;
            picked = self.pick_reserve(state, size);
            self.pick_idle(state, lane, size, from, &mut picked);
        }
        if !self.create_for_extent(state, size, &mut picked)? {
            return Ok(None);
        }
        let own = state.lanes.get(lane).clock;
        let mut stamps: Vec<Stamp> = Vec::new();
        for &(donor, _) in &picked.donors {
            if let Backing::Idle { stamps: used, .. } = &state.extents.by_addr[&donor].backing {
                stamps.extend(self.not_passed(state, used));
            }
        }
        stamps.sort_unstable();
        stamps.dedup();
        let others = stamps.iter().map(|&(clock, _)| clock).filter(|&clock| clock != own).collect();
        self.order_after(state, lane, others)?;
        match state.space.map(addr, &picked.chunks) {
            Ok(()) => {}
            Err(error) if error.is_out_of_memory() => {
                // There is a limit to mappings too.
                let again = self.retire_passed_ghosts(state)? && state.space.map(addr, &picked.chunks).is_ok();
                if !again {
                    state.refusal = Some(error);
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
        for (donor, bytes) in picked.donors {
            // One that was over may have been undone for the sake of mappings: its chunks came from the reserve then.
            if state.extents.by_addr.contains_key(&donor) {
                state.extents.hand_on(donor, bytes);
            }
        }
        self.unmap_spent(state, false);
        Ok(Some(stamps))
    }

    /// Chunks of the reserve of `size` bytes together, or of as much as there is. Largest first: sizes are powers of two, so that this comes
    /// closest.
    fn pick_reserve(&self, state: &PoolState, size: u64) -> Picked {
        let mut reserve: Vec<(ChunkId, u64)> = state.space.reserve().collect();
        reserve.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let mut picked = Picked::default();
        for (chunk, bytes) in reserve {
            if picked.bytes + bytes <= size {
                picked.chunks.push(chunk);
                picked.bytes += bytes;
            }
        }
        picked.reserved = picked.bytes;
        picked
    }

    /// Adds chunks of idle extents, until that are `size` bytes together: of the smallest extent that has enough, then of others.
    fn pick_idle(&self, state: &PoolState, lane: LaneId, size: u64, from: Lenders, picked: &mut Picked) {
        let Extents { by_addr, idle, ghosts, .. } = &state.extents;
        let own = state.lanes.get(lane).clock;
        let missing = size - picked.bytes;
        if missing == 0 {
            return;
        }
        let order = idle.range((missing, 0)..).chain(idle.range((1, 0)..(missing, 0)).rev());
        for &(_, addr) in order {
            if picked.bytes == size {
                return;
            }
            let Extent { size: whole, backing: Backing::Idle { stamps, .. }, .. } = &by_addr[&addr] else { continue };
            let over = self.have_passed(state, stamps);
            let in_order = if from == Lenders::All {
                !stamps.contains(&NEVER)
            } else {
                self.have_passed_but(state, stamps, Some(own))
            };
            if !over && (!in_order || *ghosts >= GHOSTS_MAX) {
                continue;
            }
            let before = picked.bytes;
            for (_, chunk, bytes) in state.space.fronts(addr, addr + whole) {
                if picked.bytes + bytes <= size {
                    picked.chunks.push(chunk);
                    picked.bytes += bytes;
                }
            }
            if picked.bytes > before {
                picked.donors.push((addr, picked.bytes - before));
            }
        }
    }

    /// Creates what is missing of `size` bytes. Chunks of the reserve that are too large go back to the device where they are in the way.
    fn create_for_extent(&self, state: &mut PoolState, size: u64, picked: &mut Picked) -> DriverResult<bool> {
        let unit = state.space.unit();
        let mut missing = size - picked.bytes;
        let over = (state.space.physical_bytes() + missing).saturating_sub(state.limit);
        if missing > 0 && over > 0 {
            let rest = state.space.reserve_bytes() - picked.reserved;
            if rest < over {
                return Ok(false);
            }
            state.space.release_others(over, &picked.chunks);
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
            match state.create_chunk(bytes)? {
                Some(chunk) => {
                    picked.chunks.push(chunk);
                    missing -= bytes;
                }
                None if state.space.release_others(missing, &picked.chunks) > 0 => {}
                None if bytes / 2 < unit => return Ok(false),
                None => largest = bytes / 2,
            }
        }
        Ok(true)
    }
}
