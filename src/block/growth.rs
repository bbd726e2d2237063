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
    /// What is free from here
    pub keep_from: u64,
    /// to here is part of the place: none of it is to be mapped elsewhere for this growth.
    pub keep_to: u64,
    /// The most that may be mapped, more than is needed: to the hole's other end.
    pub room: u64,
    /// Whether that end is the upper one.
    pub upwards: bool,
}

/// From a node to one beside it.
type Step = fn(&Node) -> NodeId;

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
            let (keep_from, keep_to) = (start, end.max(hole.addr));
            offer(Growth { at: hole.addr, bytes, keep_from, keep_to, room, upwards: true }, rest);
            // From the right: it ends as high as it can.
            let start = align_down(last - size, alignment);
            let bytes = align_up(hole.end().saturating_sub(start).max(1), chunk).unwrap_or(u64::MAX);
            if last > hole.end() && bytes <= room && start + size > hole.end() - bytes {
                let (at, rest) = (hole.end() - bytes, start.saturating_sub(hole.end() - bytes));
                let (keep_from, keep_to) = (start.min(hole.end()), start + size);
                offer(Growth { at, bytes, keep_from, keep_to, room, upwards: false }, rest);
            }
        }
        best.map(|(growth, _)| growth)
    }

    /// The nodes from `from` on, in one direction, as long as they are `wanted`: the first that is not, and the bytes of those before it.
    fn run(&self, from: NodeId, step: Step, wanted: impl Fn(NodeId) -> bool) -> (NodeId, u64) {
        let (mut id, mut bytes) = (from, 0);
        while id != NIL && wanted(id) {
            bytes += self.nodes[id as usize].size;
            id = step(&self.nodes[id as usize]);
        }
        (id, bytes)
    }

    /// The ghosts that are over, with the holes between them, in whose place the least would have to be mapped to make room for `size` bytes
    /// beside what `usable` owners have free: the first of these nodes, and where they end. `None` where none takes less than `bytes`.
    /// `age` tells ghosts that are over, the older the smaller. Among equals it is where the oldest of them is.
    pub fn plan_over_ghosts(
        &self,
        home: Owner,
        age: impl Fn(NodeId) -> Option<u64>,
        size: u64,
        bytes: u64,
        usable: impl Fn(Owner) -> bool,
    ) -> Option<(NodeId, u64)> {
        let is_hole = |id: NodeId| self.nodes[id as usize].state == State::Hole;
        let is_free = |id: NodeId| self.is_free_for_any(id, &usable);
        let (up, down): (Step, Step) = (|node| node.next, |node| node.prev);
        let (mut best, mut least) = (None, (bytes, 0));
        // Less than `bytes` is to be missing: of the rest, half or more is free on one side.
        let free = size.saturating_sub(bytes) / 2;
        let owners = [home, Owner::SHARED].into_iter().filter(|&owner| usable(owner));
        let nodes = owners.flat_map(|owner| self.free_nodes(owner)).filter(|(_, node)| node.home == home);
        for ((id, node), onwards, back) in nodes.flat_map(|node| [(node, up, down), (node, down, up)]) {
            let open = |id: NodeId| age(id).or_else(|| is_hole(id).then_some(u64::MAX));
            let mut next = onwards(node);
            if next == NIL || open(next).is_none() {
                continue;
            }
            let (_, here) = self.run(id, back, is_free);
            if here < free {
                continue;
            }
            let (mut range, mut oldest, mut bytes) = ([next; 2], u64::MAX, 0);
            while next != NIL
                && let Some(age) = open(next)
            {
                oldest = oldest.min(age);
                bytes += self.nodes[next as usize].size;
                range[1] = next;
                next = onwards(&self.nodes[next as usize]);
            }
            if oldest == u64::MAX {
                continue;
            }
            let (_, beyond) = self.run(next, onwards, is_free);
            let missing = size.saturating_sub(here.max(beyond)).min(bytes);
            if here + bytes + beyond >= size && (missing, oldest) < least {
                least = (missing, oldest);
                range.sort_unstable_by_key(|&id| self.node(id).addr);
                best = Some((range[0], self.node(range[1]).end()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::rng::Rng;

    const A: Owner = Owner(1);
    const UNIT: u64 = 4096;

    /// What [`Arena::plan_over_ghosts`] says, by looking at every range of nodes between two that are no open ones.
    fn least_over_ghosts(
        arena: &Arena,
        age: &dyn Fn(NodeId) -> Option<u64>,
        size: u64,
        bytes: u64,
    ) -> Option<(u64, u64)> {
        let usable = |node: &Node| node.state == State::Free && (node.owner == A || node.owner == Owner::SHARED);
        let nodes: Vec<NodeId> = arena.heads().flat_map(|head| arena.from(head)).collect();
        let is_open = |&id: &NodeId| arena.node(id).state == State::Hole || age(id).is_some();
        let row = |ids: &mut dyn Iterator<Item = &NodeId>| {
            ids.map(|&id| arena.node(id)).take_while(|node| usable(node)).map(|node| node.size).sum::<u64>()
        };
        let mut best = None;
        let mut first = 0;
        for run in nodes.chunk_by(|one, other| is_open(one) == is_open(other)) {
            let next = first + run.len();
            let oldest = run.iter().filter_map(|&id| age(id)).min();
            let (below, above) = (row(&mut nodes[..first].iter().rev()), row(&mut nodes[next..].iter()));
            let open: u64 = run.iter().map(|&id| arena.node(id).size).sum();
            let missing = size.saturating_sub(below.max(above)).min(open);
            if let Some(oldest) =
                oldest.filter(|_| below.max(above) > 0 && below + open + above >= size && missing < bytes)
            {
                let range = (arena.node(run[0]).addr, arena.node(run[0]).addr + open);
                best = best.min(Some((missing, oldest, range))).or(Some((missing, oldest, range)));
            }
            first = next;
        }
        best.map(|(.., range)| range)
    }

    #[test]
    fn the_least_is_mapped_in_place_of_ghosts() {
        let mut rng = Rng::new(7);
        let mut found = 0;
        for _ in 0..500 {
            let mut arena = Arena::default();
            arena.add_segment(UNIT, 64 * UNIT, A);
            arena.fill(A, UNIT, 64 * UNIT, A, 0, |_| false);
            // Pieces of one to four units: used, ghosts that are over or not, holes, free for A, for another one.
            let (mut at, mut ages) = (UNIT, Vec::new());
            while at < 60 * UNIT {
                let size = (1 + rng.below(4) as u64) * UNIT;
                let id = arena.free_nodes(A).map(|(id, _)| id).max_by_key(|&id| arena.node(id).addr).unwrap();
                match rng.below(9) {
                    0 => _ = arena.take_at(id, at, size),
                    1 | 2 => ages.push((arena.leave_ghost(id, at, size), true)),
                    3 => ages.push((arena.leave_ghost(id, at, size), false)),
                    4 => arena.punch(id, at, size),
                    5 => _ = arena.take_at(id, at, size),
                    _ => {}
                }
                at += size;
            }
            // Some of what was taken is everyone's, so that free nodes stand side by side.
            for id in arena.used().filter(|_| rng.chance(0.6)).collect::<Vec<_>>() {
                arena.release(id, Owner::SHARED, 0);
            }
            arena.validate().unwrap();
            let age = |id: NodeId| {
                let index = ages.iter().position(|&(ghost, over)| ghost == id && over)?;
                Some((ages.len() - index) as u64)
            };
            for size in [3, 8, 15] {
                for bytes in [2, 5, 12] {
                    let (size, bytes) = (size * UNIT, bytes * UNIT);
                    let plan =
                        arena.plan_over_ghosts(A, age, size, bytes, |owner| owner == A || owner == Owner::SHARED);
                    let plan = plan.map(|(first, end)| (arena.node(first).addr, end));
                    assert_eq!(plan, least_over_ghosts(&arena, &age, size, bytes), "{size} {bytes}: {arena:?}");
                    found += usize::from(plan.is_some());
                }
            }
        }
        assert!(found > 500, "{found}");
    }
}
