//! A fresh start: when next to nothing is in use, the free memory of a lane is put together again.
//!
//! Chunks that were mapped once more where they were wanted leave the lane's memory in many ranges, each a little larger than what it holds
//! next. A program that ends one phase and begins another, as when a model is dropped and the next one loaded, would so need a little more each
//! time. Stitching repairs that, too: where memory is nearly full, all whole chunks that are free are mapped once more, as one range.

use super::donors::Donor;
use super::grow::Picked;
use super::ladder::{Drain, Kind, Magazines, Want};
use super::{LARGE, Pool, PoolState};
use crate::block::{NodeId, Owner};
use crate::driver::DriverResult;
use crate::units::GRANULE;

/// Nearly all of the limit is held when less than this part of it is left: 1/32. Before, more memory costs less than gathering.
const FULL_SHIFT: u32 = 5;
/// Gathering pays when this part of what is free lies outside of the largest range: 1/8.
const APART_SHIFT: u32 = 3;

impl Pool {
    /// Puts the free memory of a request's lane together, if something has come apart since the last time. For a pool that is
    /// [`Pressure::Idle`](super::Pressure::Idle).
    pub(crate) fn gather_idle(&self, state: &mut PoolState, want: Want, magazines: &dyn Magazines) {
        let seen = (want.lane, state.ghosts.last());
        let is_large = want.range().0 == LARGE && matches!(want.kind, Kind::Range { .. });
        // By plan, blocks go where they have been before.
        if !is_large || state.gathered == seen || state.private.capturing() || state.plans.is_some() {
            return;
        }
        // What others have freed belongs to it.
        magazines.drain(state, Drain::Large);
        if self.gather(state, want).is_err() {
            state.failures += 1;
        }
        state.gathered = (want.lane, state.ghosts.last());
    }

    fn gather(&self, state: &mut PoolState, want: Want) -> DriverResult<()> {
        let home = Owner(want.lane);
        if state.lanes.is_private(want.lane) {
            return Ok(());
        }
        // A chunk may lie across two ranges.
        state.zones[LARGE].absorb(home);
        let ranges = self.ranges_of(state, home);
        let whole = ranges.iter().map(|&(_, whole, _)| whole);
        let all: u64 = whole.clone().sum();
        if all - whole.max().unwrap_or(0) <= all >> APART_SHIFT {
            return Ok(());
        }
        // The addresses of ghosts, too, come together.
        self.retire_passed_ghosts(state)?;
        let (arena, unit) = (&state.zones[LARGE], state.space.unit());
        let mut picked = Picked::default();
        for (_, _, id) in ranges {
            let node = arena.node(id);
            let stamp = if node.owner == home { node.stamp } else { 0 };
            for (addr, chunk, size) in state.space.fronts(node.addr, node.end()) {
                picked.add(Donor { chunk, size, stamp, from: Some((LARGE, id, addr)) });
            }
        }
        if let Some(place) = arena.plan_roomy_growth(home, picked.bytes, GRANULE, unit, picked.bytes, |_| false) {
            self.map_picked(state, want.lane, LARGE, place, picked)?;
        }
        Ok(())
    }

    /// The free ranges for large blocks that a lane may use and that have whole chunks, in ascending order: addresses, bytes of whole chunks, nodes.
    fn ranges_of(&self, state: &PoolState, home: Owner) -> Vec<(u64, u64, NodeId)> {
        let (arena, unit) = (&state.zones[LARGE], state.space.unit());
        let free = [home, Owner::SHARED].into_iter().flat_map(|owner| arena.free_nodes_from(owner, unit));
        let whole = free.map(|(id, node)| {
            let [whole, _] = state.space.whole_beside(node.addr, node.end(), 0);
            (node.addr, whole, id)
        });
        let mut ranges: Vec<(u64, u64, NodeId)> = whole.filter(|&(_, whole, _)| whole > 0).collect();
        ranges.sort_unstable();
        ranges
    }
}

impl PoolState {
    /// Whether nearly all of the limit is held, or of what the device has been seen to have for us.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        let most = self.limit.min(self.refused_at);
        most.saturating_sub(self.space.physical_bytes()) < most >> FULL_SHIFT
    }
}
