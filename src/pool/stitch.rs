//! Stitching: free chunks that lie apart are mapped once more, side by side, and serve one large request. Nothing is waited for: the lane's
//! own free chunks are free for it in stream order, at whichever address. Where they were, a **ghost** stays: the old mapping, which
//! unfinished work may still touch. It is undone when its stream has passed it and mappings have become many, or a plan wants its place.
//!
//! Virtual aliases of one allocation are CUDA's ("Virtual Aliasing Support" in its programming guide): what a kernel has written through one
//! address is there for a later one, in stream order, through another. GMLake (Guo et al., ASPLOS 2024) stitches so.

use std::collections::VecDeque;

use super::directory::ZONES;
use super::donors::Donor;
use super::ladder::Want;
use super::{Pool, PoolState};
use crate::block::{Growth, NodeId, Owner, State};
use crate::driver::DriverResult;
use crate::telemetry::EventKind;

/// So many ghosts may stand before the oldest are undone.
const GHOSTS_MAX: usize = 1 << 14;
/// So many are undone at a time.
const RETIRE_BATCH: usize = 64;

/// The ghosts of a pool.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// By zone and node: the number of the ghost that it is, or 0.
    numbers: [Vec<u64>; ZONES],
    /// Oldest first. Some have gone already.
    queue: VecDeque<Ghost>,
    last: u64,
    count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Ghost {
    number: u64,
    zone: usize,
    node: NodeId,
}

impl Ghosts {
    fn add(&mut self, zone: usize, node: NodeId) {
        let numbers = &mut self.numbers[zone];
        if numbers.len() <= node as usize {
            numbers.resize(node as usize + 1, 0);
        }
        self.last += 1;
        numbers[node as usize] = self.last;
        self.queue.push_back(Ghost { number: self.last, zone, node });
        self.count += 1;
        // Those that have gone are not to outnumber the others for long.
        if self.queue.len() > 2 * self.count.max(RETIRE_BATCH) {
            let numbers = &self.numbers;
            self.queue.retain(|ghost| numbers[ghost.zone][ghost.node as usize] == ghost.number);
        }
    }

    /// The number of the ghost that a node is, the older the smaller; one of a pair has none.
    fn number(&self, zone: usize, node: NodeId) -> Option<u64> {
        self.numbers[zone].get(node as usize).copied().filter(|&number| number != 0)
    }

    /// Whether a node is a ghost of these.
    fn has(&self, zone: usize, node: NodeId) -> bool {
        self.number(zone, node).is_some()
    }

    fn remove(&mut self, zone: usize, node: NodeId) {
        self.numbers[zone][node as usize] = 0;
        self.count -= 1;
    }

    /// The oldest, taken off the queue.
    fn pop_oldest(&mut self) -> Option<Ghost> {
        while let Some(ghost) = self.queue.pop_front() {
            if self.numbers[ghost.zone][ghost.node as usize] == ghost.number {
                return Some(ghost);
            }
        }
        None
    }

    /// The zones and nodes of all.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (usize, NodeId)> + '_ {
        let stands = |ghost: &&Ghost| self.numbers[ghost.zone][ghost.node as usize] == ghost.number;
        self.queue.iter().filter(stands).map(|ghost| (ghost.zone, ghost.node))
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The number of the last one there has been; 0 before the first.
    pub(super) fn last(&self) -> u64 {
        self.last
    }
}

impl Pool {
    /// These chunks have been mapped elsewhere.
    pub(super) fn leave_ghosts(&self, state: &mut PoolState, mut donors: Vec<Donor>) {
        // From the upper end of each node, which keeps its number as long as something of it is left below.
        donors.sort_unstable_by_key(|donor| std::cmp::Reverse(donor.from));
        for Donor { size, from, .. } in donors {
            let Some((zone, id, addr)) = from else { continue };
            let ghost = state.zones[zone].leave_ghost(id, addr, size);
            let home = state.zones[zone].node(ghost).home;
            state.ghosts.add(zone, ghost);
            self.note_mapping(state, EventKind::Unmap, home, addr, size);
        }
        if state.ghosts.count() > GHOSTS_MAX {
            if !state.private.capturing() && self.poll_clocks(state).is_err() {
                state.failures += 1;
            }
            self.retire_ghosts(state, RETIRE_BATCH);
        }
    }

    /// Undoes the mappings of all ghosts that their streams have passed by now. Returns whether there were any.
    pub(super) fn retire_passed_ghosts(&self, state: &mut PoolState) -> DriverResult<bool> {
        if !state.private.capturing() {
            self.poll_clocks(state)?;
        }
        Ok(self.retire_ghosts(state, usize::MAX))
    }

    /// Undoes the mappings of so many ghosts, the oldest first, as far as streams are known to have passed them. Returns whether
    /// there were any.
    pub(super) fn retire_ghosts(&self, state: &mut PoolState, count: usize) -> bool {
        let of_extents = count == usize::MAX && self.unmap_spent(state, true);
        let mut left = Vec::new();
        let mut retired = 0;
        while retired < count
            && let Some(ghost) = state.ghosts.pop_oldest()
        {
            let Ghost { zone, node, .. } = ghost;
            if !state.is_over(zone, node) {
                left.push(ghost);
                if left.len() > RETIRE_BATCH {
                    break;
                }
                continue;
            }
            match self.retire_run(state, zone, node) {
                Some(count) => retired += count,
                None => {
                    left.push(ghost);
                    break;
                }
            }
        }
        left.into_iter().rev().for_each(|ghost| state.ghosts.queue.push_front(ghost));
        of_extents || retired > 0
    }

    /// Undoes the mapping of a ghost of these that its stream is known to have passed, and of those that follow it. Whether that was done.
    pub(super) fn retire_ghost_at(&self, state: &mut PoolState, zone: usize, ghost: NodeId) -> bool {
        let is_open = state.ghosts.has(zone, ghost) && state.is_over(zone, ghost);
        is_open && self.retire_run(state, zone, ghost).is_some()
    }

    /// Undoes the mappings of a ghost that is over and of those that follow it, in one call. Returns how many; `None` if the driver failed.
    fn retire_run(&self, state: &mut PoolState, zone: usize, first: NodeId) -> Option<usize> {
        let mut run = vec![first];
        let mut last = first;
        // A segment, whose nodes are linked, is one reservation.
        while let [_, Some(next)] = state.zones[zone].beside(last)
            && state.ghosts.has(zone, next)
            && state.is_over(zone, next)
        {
            run.push(next);
            last = next;
        }
        let (addr, end) = (state.zones[zone].node(first).addr, state.zones[zone].node(last).end());
        if state.space.unmap_aliases(addr, end).is_err() {
            state.failures += 1;
            return None;
        }
        for &node in &run {
            state.zones[zone].retire_ghost(node);
            state.ghosts.remove(zone, node);
        }
        Some(run.len())
    }

    /// Undoes ghosts in whose place less would have to be mapped for a request than `growth` takes: what is free beside them, too little for
    /// a chunk, is of use there. Returns whether there were any.
    pub(super) fn make_place(&self, state: &mut PoolState, want: Want, growth: Growth) -> DriverResult<bool> {
        // A chunk less, or it does not pay.
        let least = growth.bytes.saturating_sub(state.space.unit());
        if least == 0 || state.ghosts.count() == 0 || state.private.capturing() {
            return Ok(false);
        }
        self.poll_clocks(state)?;
        let (zone, size, _) = want.range();
        let home = Owner(want.lane);
        let usable = state.lanes.usable(want.lane);
        let arena = &state.zones[zone];
        let age = |id| state.ghosts.number(zone, id).filter(|_| state.is_over(zone, id));
        let Some((first, end)) = arena.plan_over_ghosts(home, age, size, least, usable) else {
            return Ok(false);
        };
        let inside = arena.from(first).take_while(|&id| arena.node(id).addr < end);
        let inside: Vec<NodeId> = inside.filter(|&id| state.ghosts.has(zone, id)).collect();
        let mut any = false;
        for id in inside {
            // The one before it may have taken it along.
            if state.ghosts.has(zone, id) {
                if self.retire_run(state, zone, id).is_none() {
                    break;
                }
                any = true;
            }
        }
        Ok(any)
    }
}

impl PoolState {
    /// Whether a node is a ghost whose memory was mapped elsewhere, rather than one of a pair.
    pub(super) fn is_stitched_away(&self, zone: usize, node: NodeId) -> bool {
        self.ghosts.has(zone, node)
    }

    /// Whether a ghost's stream is known to have passed it.
    fn is_over(&self, zone: usize, ghost: NodeId) -> bool {
        let node = self.zones[zone].node(ghost);
        debug_assert!(node.state == State::Ghost);
        self.lanes.has_passed(node.owner.0, node.stamp)
    }
}
