//! A fresh start: when next to nothing is in use, the free memory of a lane is put together again.
//!
//! Chunks that were mapped once more where they were wanted leave the lane's memory in many ranges, each a little larger than what it holds
//! next. A program that ends one phase and begins another, as when a model is dropped and the next one loaded, would so need a little more each
//! time. Stitching repairs that, too: all that is free in small ranges is mapped once more, as one.

use super::donors::Donor;
use super::grow::Picked;
use super::ladder::Climb;
use super::lanes::LaneId;
use super::{LARGE, Pool, PoolState};
use crate::block::{NodeId, Owner};
use crate::units::GRANULE;

/// Nearly all of the limit is held when less than this part of it is left: 1/32. Before, more memory costs less than gathering.
const FULL_SHIFT: u32 = 5;
/// Next to nothing is in use when it is less than this part of what is held: 1/16.
const IDLE_SHIFT: u32 = 4;

impl Pool {
    /// Puts the lane's free memory together, if nearly all of the limit is held, next to nothing is in use, and something has come apart since the
    /// last time. `unfolded` is what the calling thread adds to the sum of what is in use.
    pub(crate) fn gather_idle(&self, state: &mut PoolState, lane: LaneId, unfolded: i64) {
        let in_use = (self.active.sum() + unfolded).max(0) as u64;
        let is_idle = in_use < state.space.physical_bytes() >> IDLE_SHIFT && state.is_full();
        if is_idle && state.ghosts.last() != state.gathered && !state.private.capturing() {
            if self.gather(state, lane).is_err() {
                state.failures += 1;
            }
            state.gathered = state.ghosts.last();
        }
    }

    fn gather(&self, state: &mut PoolState, lane: LaneId) -> Climb<()> {
        if state.lanes.get(lane).private.is_some() {
            return Ok(());
        }
        // What they keep apart comes together, and their addresses are free.
        self.lay_ghosts(state)?;
        let home = Owner(lane);
        // A chunk may lie across two of them.
        state.zones[LARGE].absorb(home);
        let (arena, unit) = (&state.zones[LARGE], state.space.unit());
        let free = [home, Owner::SHARED].into_iter().flat_map(|owner| arena.free_nodes_from(owner, unit));
        let mut ranges: Vec<(u64, NodeId)> = free.map(|(id, node)| (node.addr, id)).collect();
        if ranges.len() < 2 {
            return Ok(());
        }
        ranges.sort_unstable();
        let mut picked = Picked::default();
        for (_, id) in ranges {
            let node = arena.node(id);
            let stamp = if node.owner == home { node.stamp } else { 0 };
            for (addr, chunk, size) in state.space.fronts(node.addr, node.end()) {
                picked.add(Donor { chunk, size, stamp, from: Some((LARGE, id, addr)) });
            }
        }
        if let Some(place) = arena.plan_roomy_growth(home, picked.bytes, GRANULE, unit, picked.bytes, |_| false) {
            self.lay(state, lane, LARGE, place, picked)?;
        }
        Ok(())
    }
}

impl PoolState {
    /// Whether nearly all of the limit is held.
    pub(super) fn is_full(&self) -> bool {
        self.limit.saturating_sub(self.space.physical_bytes()) < self.limit >> FULL_SHIFT
    }
}
