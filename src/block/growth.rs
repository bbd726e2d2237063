//! Where an arena's segments grow and shrink: holes, where nothing is mapped, and ghosts, whose memory has moved elsewhere.

use super::arena::{Arena, NIL, Node, NodeId, Owner, State};
use crate::units::{align_down, align_up};

/// Where memory has to be mapped so that a request fits: `bytes` at `at`, inside one hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// First byte to map.
    pub at: u64,
    /// How much, a multiple of the chunk size or the whole hole.
    pub bytes: u64,
    /// Where the request lies then: from here
    pub start: u64,
    /// to here. What is free in between counts already.
    pub end: u64,
    /// The most that may be mapped, more than is needed: to the hole's other end.
    pub room: u64,
    /// Whether that end is the upper one.
    pub upwards: bool,
}

impl Growth {
    /// The same, with more mapped.
    pub fn widened(self, bytes: u64) -> Growth {
        debug_assert!(self.bytes <= bytes && bytes <= self.room);
        let at = if self.upwards { self.at } else { self.at + self.bytes - bytes };
        Growth { at, bytes, ..self }
    }
}

impl Arena {
    /// The cheapest place in the segments of `home` where mapping memory into a hole makes room for `size` bytes: the least to map; among
    /// equals what leaves the least beside the request, then the lowest address. What `usable` owners have free beside the hole counts.
    pub fn plan_growth(
        &self,
        home: Owner,
        size: u64,
        alignment: u64,
        chunk: u64,
        usable: impl Fn(Owner) -> bool,
    ) -> Option<Growth> {
        self.plan_roomy_growth(home, size, alignment, chunk, 0, usable)
    }

    /// [`Arena::plan_growth`] where the hole has `least` bytes of room.
    pub fn plan_roomy_growth(
        &self,
        home: Owner,
        size: u64,
        alignment: u64,
        chunk: u64,
        least: u64,
        usable: impl Fn(Owner) -> bool,
    ) -> Option<Growth> {
        // Free nodes in a row count together: of one owner they never stand side by side, but `usable` may name several.
        let beside = |from, step| self.run(from, step, |id| self.is_free_for_any(id, &usable)).1;
        let mut best: Option<(Growth, u64)> = None;
        let mut offer = |growth: Growth, rest: u64| {
            if best.is_none_or(|(best, least)| (growth.bytes, rest, growth.at) < (best.bytes, least, best.at)) {
                best = Some((growth, rest));
            }
        };
        for id in self.holes.get(home.0 as usize)?.iter_from(&self.nodes, least) {
            let hole = &self.nodes[id as usize];
            let room = hole.size;
            if room < least {
                continue;
            }
            let first = hole.addr - beside(hole.prev, |node| node.prev);
            let last = hole.end() + beside(hole.next, |node| node.next);
            // From the left: the request starts as low as it can.
            let Some(start) = align_up(first, alignment) else { continue };
            let Some(end) = start.checked_add(size).filter(|&end| end <= last) else { continue };
            let bytes = align_up(end.saturating_sub(hole.addr).max(1), chunk).unwrap_or(u64::MAX).min(room);
            // What is free between the request and the hole stays, or the two would not meet.
            let rest = (hole.addr + bytes).saturating_sub(end);
            offer(Growth { at: hole.addr, bytes, start, end: end.max(hole.addr), room, upwards: true }, rest);
            // From the right: it ends as high as it can.
            let start = align_down(last - size, alignment);
            let bytes = align_up(hole.end().saturating_sub(start).max(1), chunk).unwrap_or(u64::MAX);
            if last > hole.end() && bytes <= room && start + size > hole.end() - bytes {
                let (at, rest) = (hole.end() - bytes, start.saturating_sub(hole.end() - bytes));
                let (start, end) = (start.min(hole.end()), start + size);
                offer(Growth { at, bytes, start, end, room, upwards: false }, rest);
            }
        }
        best.map(|(growth, _)| growth)
    }

    /// The nodes from `from` on, in one direction, as long as they are `wanted`: the first that is not, and the bytes of those before it.
    fn run(&self, from: NodeId, step: fn(&Node) -> NodeId, wanted: impl Fn(NodeId) -> bool) -> (NodeId, u64) {
        let (mut id, mut bytes) = (from, 0);
        while id != NIL && wanted(id) {
            bytes += self.nodes[id as usize].size;
            id = step(&self.nodes[id as usize]);
        }
        (id, bytes)
    }

    /// Of those `ghosts` that are over, with the holes between them, the range in whose place the least would have to be mapped to make room
    /// for `size` bytes at any address: what `usable` owners have free beside it counts. `None` where none takes less than `bytes`.
    pub fn plan_over_ghosts(
        &self,
        ghosts: impl Iterator<Item = NodeId>,
        is_over: impl Fn(NodeId) -> bool,
        size: u64,
        bytes: u64,
        usable: impl Fn(Owner) -> bool,
    ) -> Option<(u64, u64)> {
        let is_open = |id: NodeId| self.nodes[id as usize].state == State::Hole || is_over(id);
        let is_free = |id: NodeId| self.is_free_for_any(id, &usable);
        let mut best = None;
        let mut least = bytes;
        for ghost in ghosts.filter(|&id| is_over(id)) {
            let Node { addr, prev, .. } = self.nodes[ghost as usize];
            // Each range once: from its lowest ghost.
            if prev != NIL && is_over(prev) {
                continue;
            }
            let (left, before) = self.run(prev, |node| node.prev, is_open);
            let (right, from_here) = self.run(ghost, |node| node.next, is_open);
            let range = before + from_here;
            let (_, below) = self.run(left, |node| node.prev, is_free);
            let (_, above) = self.run(right, |node| node.next, is_free);
            let missing = size.saturating_sub(below.max(above)).min(range);
            if below + range + above >= size && missing < least {
                least = missing;
                best = Some((addr - before, addr + from_here));
            }
        }
        best
    }

    /// Memory has been mapped: `bytes` at `at`, inside one hole, become free for `owner`, coalesced with their `usable` neighbours.
    /// Returns the node that they are part of then.
    pub fn fill(
        &mut self,
        home: Owner,
        at: u64,
        bytes: u64,
        owner: Owner,
        stamp: u64,
        usable: impl Fn(Owner) -> bool,
    ) -> NodeId {
        let hole = self.hole_around(home, at, bytes).expect("growth lies in a hole");
        self.take_hole(hole);
        let id = self.cut(hole, at, bytes, |arena, rest| arena.put_hole(rest));
        self.put_joined(id, owner, stamp, usable)
    }

    /// Puts an unbinned node into the bins of `owner`, merged with all that is `usable` on either side.
    fn put_joined(&mut self, id: NodeId, owner: Owner, stamp: u64, usable: impl Fn(Owner) -> bool) -> NodeId {
        let mut id = self.put_coalesced(id, owner, stamp, &usable);
        // A neighbour that has joined may have had a usable one on its other side.
        while self.has_neighbour_for(id, &usable) {
            self.bins[owner.0 as usize].remove(&mut self.nodes, id);
            let stamp = self.nodes[id as usize].stamp;
            id = self.put_coalesced(id, owner, stamp, &usable);
        }
        id
    }

    /// Memory is to be unmapped: `size` bytes at `addr` of the free node `id` become a hole.
    pub fn punch(&mut self, id: NodeId, addr: u64, size: u64) {
        let cut = self.cut_free(id, addr, size);
        self.put_hole_merged(cut);
    }

    /// Memory is served from another place now: `size` bytes at `addr` of the free node `id` become a ghost, a node of its own.
    pub fn leave_ghost(&mut self, id: NodeId, addr: u64, size: u64) -> NodeId {
        let ghost = self.cut_free(id, addr, size);
        self.nodes[ghost as usize].state = State::Ghost;
        ghost
    }

    /// A ghost's mapping has been undone.
    pub fn retire_ghost(&mut self, id: NodeId) {
        assert!(self.node(id).state == State::Ghost, "only ghosts retire");
        self.put_hole_merged(id);
    }

    /// Memory is served from a ghost's place again: it becomes free for `owner`, coalesced with its `usable` neighbours.
    pub fn revive_ghost(&mut self, id: NodeId, owner: Owner, stamp: u64, usable: impl Fn(Owner) -> bool) -> NodeId {
        assert!(self.node(id).state == State::Ghost, "only ghosts come back");
        self.put_joined(id, owner, stamp, usable)
    }

    /// Takes a range out of a free node, unbinned, with its owner and stamp.
    fn cut_free(&mut self, id: NodeId, addr: u64, size: u64) -> NodeId {
        let Node { owner, stamp, state, .. } = self.nodes[id as usize];
        assert!(state == State::Free, "only what is free is cut");
        self.bins[owner.0 as usize].remove(&mut self.nodes, id);
        let taken = self.cut(id, addr, size, |arena, rest| arena.put_free(rest, owner, stamp));
        self.nodes[taken as usize].owner = owner;
        self.nodes[taken as usize].stamp = stamp;
        taken
    }

    /// Makes an unbinned node a hole, merged with the holes beside it.
    fn put_hole_merged(&mut self, id: NodeId) {
        let Node { prev, next, .. } = self.nodes[id as usize];
        let mut merged = id;
        if next != NIL && self.nodes[next as usize].state == State::Hole {
            self.take_hole(next);
            self.merge_next(merged);
        }
        if prev != NIL && self.nodes[prev as usize].state == State::Hole {
            self.take_hole(prev);
            self.merge_next(prev);
            merged = prev;
        }
        self.put_hole(merged);
    }

    /// The hole that contains the whole range.
    fn hole_around(&self, home: Owner, addr: u64, size: u64) -> Option<NodeId> {
        self.holes.get(home.0 as usize)?.iter_from(&self.nodes, size).find(|&id| {
            let hole = self.node(id);
            hole.addr <= addr && addr + size <= hole.end()
        })
    }
}
