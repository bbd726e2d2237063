//! Taking a range at an address that is given, rather than one that fits.

use super::{Arena, NIL, NodeId, Owner, State};
use crate::units::align_down;

impl Arena {
    /// The node that contains an address, sought from another one of the same segment, node by node.
    pub fn node_at(&self, from: NodeId, addr: u64) -> Option<NodeId> {
        let mut id = from;
        loop {
            let node = self.node(id);
            id = if addr < node.addr {
                node.prev
            } else if addr >= node.end() {
                node.next
            } else {
                return Some(id);
            };
            if id == NIL {
                return None;
            }
        }
    }

    /// Whether the node with this number is in use and begins here.
    pub fn is_used_at(&self, id: NodeId, addr: u64) -> bool {
        self.nodes.get(id as usize).is_some_and(|node| node.state == State::Used && node.addr == addr)
    }

    /// What of `size` bytes at `addr` is not mapped, in whole chunks or up to a hole's end; nothing if all is. `None` where something else is
    /// there than free memory of `usable` owners and holes. `from` is any node of the segment, the nearer the better.
    pub fn gaps(
        &self,
        from: NodeId,
        addr: u64,
        size: u64,
        chunk: u64,
        usable: impl Fn(Owner) -> bool,
    ) -> Option<Vec<(u64, u64)>> {
        let end = addr.checked_add(size)?;
        let mut gaps = Vec::new();
        let mut id = self.node_at(from, addr)?;
        loop {
            let node = self.node(id);
            match node.state {
                State::Free if usable(node.owner) => {}
                State::Hole => {
                    let first = align_down(addr.max(node.addr), chunk).max(node.addr);
                    let last = end.min(node.end()).checked_next_multiple_of(chunk)?.min(node.end());
                    gaps.push((first, last - first));
                }
                _ => return None,
            }
            if node.end() >= end {
                return Some(gaps);
            }
            id = node.next;
            if id == NIL {
                return None;
            }
        }
    }

    /// Takes exactly `size` bytes at `addr`, if all of it is free for `usable` owners. The rests stay with theirs.
    pub fn claim(&mut self, from: NodeId, addr: u64, size: u64, usable: impl Fn(Owner) -> bool) -> Option<NodeId> {
        if !self.gaps(from, addr, size, 1, &usable)?.is_empty() {
            return None;
        }
        let mut id = self.node_at(from, addr)?;
        let end = addr + size;
        if self.node(id).end() >= end {
            return Some(self.take_at(id, addr, size));
        }
        // Over several nodes: the first and the last are cut, and what lies between becomes one.
        let mut taken = NIL;
        loop {
            let node = *self.node(id);
            self.bins[node.owner.0 as usize].remove(&mut self.nodes, id);
            let (from, to) = (addr.max(node.addr), end.min(node.end()));
            let part = self.cut(id, from, to - from, |arena, rest| arena.put_free(rest, node.owner, node.stamp));
            if taken == NIL {
                taken = part;
            } else {
                self.merge_next(taken);
            }
            if node.end() >= end {
                break;
            }
            id = self.node(taken).next;
        }
        self.nodes[taken as usize].state = State::Used;
        self.used_bytes += size;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Owner(1);
    const B: Owner = Owner(2);
    const UNIT: u64 = 4096;

    /// A segment of 16 units: 4 of A, one used, 3 of everyone, 2 of A, 2 of B, a hole.
    fn arena() -> (Arena, NodeId) {
        let mut arena = Arena::default();
        arena.add_segment(0, 16 * UNIT, A);
        arena.fill(A, 0, 12 * UNIT, A, 0, |_| false);
        let mut ids = Vec::new();
        for size in [4, 1, 3, 2, 2] {
            ids.push(arena.take(A, size * UNIT, 512).unwrap());
        }
        arena.release(ids[0], A, 7);
        arena.release(ids[2], Owner::SHARED, 0);
        arena.release(ids[3], A, 9);
        arena.release(ids[4], B, 5);
        arena.validate().unwrap();
        (arena, ids[1])
    }

    #[test]
    fn a_range_over_nodes_of_several_owners_is_taken_and_the_rests_stay_theirs() {
        let usable = |owner: Owner| owner == A || owner == Owner::SHARED;
        for near_first in [true, false] {
            let (mut arena, used) = arena();
            let from = if near_first { arena.heads().next().unwrap() } else { used };
            let id = arena.claim(from, 6 * UNIT, 3 * UNIT, usable).unwrap();
            assert_eq!((arena.node(id).addr, arena.node(id).size), (6 * UNIT, 3 * UNIT));
            assert_eq!(arena.node(id).state, State::Used);
            assert_eq!((arena.free_bytes(A), arena.free_bytes(Owner::SHARED)), (5 * UNIT, UNIT));
            let stamps: Vec<u64> = arena.free_nodes(A).map(|(_, node)| node.stamp).collect();
            assert!(stamps.contains(&7) && stamps.contains(&9), "{stamps:?}");
            arena.validate().unwrap();
            arena.release(id, A, 11);
            arena.validate().unwrap();
        }
    }

    #[test]
    fn what_is_not_all_free_and_usable_is_not_taken() {
        let usable = |owner: Owner| owner == A || owner == Owner::SHARED;
        let (mut arena, used) = arena();
        let before = arena.free_bytes_total();
        for (at, size) in [(3, 2), (4, 1), (8, 3), (9, 4), (14, 1), (15, 2), (16, 1)] {
            assert_eq!(arena.claim(used, at * UNIT, size * UNIT, usable), None, "{at} {size}");
        }
        assert_eq!(arena.free_bytes_total(), before);
        arena.validate().unwrap();
    }

    #[test]
    fn gaps_are_whole_chunks_within_holes() {
        let everyone = |_| true;
        let (arena, used) = arena();
        let gaps = |at, size| arena.gaps(used, at * UNIT, size * UNIT, 2 * UNIT, everyone);
        assert_eq!(gaps(11, 2), Some(vec![(12 * UNIT, 2 * UNIT)]));
        assert_eq!(gaps(13, 2), Some(vec![(12 * UNIT, 4 * UNIT)]));
        assert_eq!(gaps(5, 6), Some(Vec::new()));
        assert_eq!(gaps(3, 2), None, "in use");
        assert_eq!(gaps(15, 2), None, "beyond the segment");
    }
}
