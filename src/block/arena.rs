//! The offset allocator: nodes that tile segments, best fit by owner, O(1) split and coalesce, holes that grow and shrink.

mod claim;
mod vacant;

use vacant::Vacant;

use super::bins::{Bin, Bins};
use crate::units::{GRANULE, align_up};

/// A node's number, dense from 0 and used again.
pub type NodeId = u32;
/// No node.
pub(super) const NIL: NodeId = NodeId::MAX;

/// Whoever may use a free node at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u16);

impl Owner {
    /// Anyone: no unfinished work touches the node.
    pub const SHARED: Owner = Owner(0);
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The number is not in use.
    Vacant,
    /// Handed out.
    Used,
    /// Mapped, and in the bins of its owner.
    Free,
    /// Nothing is mapped there.
    Hole,
    /// A mapping whose memory is served from another place now. Its owner and stamp say what may still touch it.
    Ghost,
}

/// A range of a segment.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// First byte.
    pub addr: u64,
    /// Bytes, a multiple of the granule.
    pub size: u64,
    /// The owner's epoch when the node became free.
    pub stamp: u64,
    pub(super) prev: NodeId,
    pub(super) next: NodeId,
    /// While the node is in one.
    pub(super) bin: Bin,
    pub(super) bin_prev: NodeId,
    pub(super) bin_next: NodeId,
    /// Who may use the node, while it is free.
    pub owner: Owner,
    /// Who the segment is for: only it grows there.
    pub home: Owner,
    /// What the node is.
    pub state: State,
}

impl Node {
    /// One past the last byte.
    #[inline]
    pub fn end(&self) -> u64 {
        self.addr + self.size
    }
}

/// Ranges of one or several segments. See the [module](super) for the words.
///
/// Conservation: used + free + hole + ghost bytes == bytes of all segments, and the bins of all owners hold exactly the free nodes
/// ([`Arena::validate`]).
#[derive(Debug, Clone, Default)]
pub struct Arena {
    pub(super) nodes: Vec<Node>,
    vacant: Vacant,
    /// By owner.
    pub(super) bins: Vec<Bins>,
    /// By home.
    pub(super) holes: Vec<Bins>,
    used_bytes: u64,
    segment_bytes: u64,
}

impl Arena {
    /// The node with this number.
    #[inline]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The numbers of nodes there are or have been: every [`NodeId`] is below it.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes free for `owner`.
    #[inline]
    pub fn free_bytes(&self, owner: Owner) -> u64 {
        self.bins.get(owner.0 as usize).map_or(0, |bins| bins.bytes)
    }

    /// Bytes free for anyone at all, whether or not a clock has to pass first.
    pub fn free_bytes_total(&self) -> u64 {
        self.bins.iter().map(|bins| bins.bytes).sum()
    }

    /// Bytes handed out.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The largest free node of `owner`, in bytes.
    pub fn largest_free(&self, owner: Owner) -> u64 {
        self.bins.get(owner.0 as usize).map_or(0, |bins| bins.largest(&self.nodes))
    }

    /// The free nodes of `owner`, from the smallest bin.
    pub fn free_nodes(&self, owner: Owner) -> impl Iterator<Item = (NodeId, &Node)> {
        self.free_nodes_from(owner, 0)
    }

    /// The free nodes of `owner` of at least so many bytes, from the smallest bin.
    pub fn free_nodes_from(&self, owner: Owner, least: u64) -> impl Iterator<Item = (NodeId, &Node)> {
        let bins = self.bins.get(owner.0 as usize).filter(|bins| bins.bytes >= least);
        let ids = bins.into_iter().flat_map(move |bins| bins.iter_from(&self.nodes, least));
        ids.map(|id| (id, self.node(id))).filter(move |(_, node)| node.size >= least)
    }

    /// The first bin that has free nodes of `owner`, from one on, or after it.
    pub fn bin_from(&self, owner: Owner, bin: Bin, after: bool) -> Option<Bin> {
        self.bins.get(owner.0 as usize)?.bin_from(bin, after)
    }

    /// The free nodes of `owner` in a bin.
    pub fn free_nodes_in(&self, owner: Owner, bin: Bin) -> impl Iterator<Item = (NodeId, &Node)> {
        let bins = self.bins.get(owner.0 as usize).into_iter();
        bins.flat_map(move |bins| bins.iter_in(&self.nodes, bin)).map(|id| (id, self.node(id)))
    }

    /// The owners that have free nodes.
    pub fn owners(&self) -> impl Iterator<Item = Owner> + '_ {
        (0..=u16::MAX).zip(&self.bins).filter(|(_, bins)| bins.bytes > 0).map(|(index, _)| Owner(index))
    }

    /// The first node of every segment.
    pub fn heads(&self) -> impl Iterator<Item = NodeId> + '_ {
        (0..).zip(&self.nodes).filter(|(_, node)| node.state != State::Vacant && node.prev == NIL).map(|(id, _)| id)
    }

    /// A node and those after it, to the end of the segment.
    pub fn from(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(Some(id), |&id| Some(self.node(id).next).filter(|&next| next != NIL))
    }

    /// The nodes handed out.
    pub fn used(&self) -> impl Iterator<Item = NodeId> + '_ {
        (0..).zip(&self.nodes).filter(|(_, node)| node.state == State::Used).map(|(id, _)| id)
    }

    /// The node handed out that contains an address.
    pub fn used_at(&self, addr: u64) -> Option<NodeId> {
        self.used().find(|&id| (self.node(id).addr..self.node(id).end()).contains(&addr))
    }

    /// The nodes on either side.
    pub fn beside(&self, id: NodeId) -> [Option<NodeId>; 2] {
        let Node { prev, next, .. } = *self.node(id);
        [prev, next].map(|other| Some(other).filter(|&other| other != NIL))
    }

    /// Whether the segment that begins with this node is one hole.
    pub fn is_empty_segment(&self, head: NodeId) -> bool {
        let node = self.node(head);
        node.state == State::Hole && node.prev == NIL && node.next == NIL
    }

    /// Takes exactly `size` bytes at `addr` out of a free node that contains them. The rests stay with its owner: the node itself is one of
    /// them, if there are any.
    #[inline]
    pub fn take_at(&mut self, id: NodeId, addr: u64, size: u64) -> NodeId {
        let node = self.nodes[id as usize];
        assert!(node.state == State::Free && addr >= node.addr && addr + size <= node.end(), "taken of what is free");
        self.used_bytes += size;
        let (below, above) = (addr - node.addr, node.end() - (addr + size));
        let bins = &mut self.bins[node.owner.0 as usize];
        let taken = if below > 0 {
            bins.resize(&mut self.nodes, id, node.addr, below);
            let taken = self.new_node(addr, size, id, node.next, node.home);
            if above > 0 {
                let rest = self.new_node(addr + size, above, taken, node.next, node.home);
                self.put_free(rest, node.owner, node.stamp);
            }
            taken
        } else if above > 0 {
            bins.resize(&mut self.nodes, id, addr + size, above);
            self.new_node(addr, size, node.prev, id, node.home)
        } else {
            bins.remove(&mut self.nodes, id);
            id
        };
        self.nodes[taken as usize].state = State::Used;
        taken
    }

    /// Adds a segment for `home` in which nothing is mapped. It has no neighbours.
    pub fn add_segment(&mut self, addr: u64, size: u64, home: Owner) -> NodeId {
        self.segment_bytes += size;
        let id = self.new_node(addr, size, NIL, NIL, home);
        self.put_hole(id);
        id
    }

    /// Takes a segment out that is one single hole.
    pub fn remove_segment(&mut self, id: NodeId) {
        let node = self.nodes[id as usize];
        assert!(node.state == State::Hole && node.prev == NIL && node.next == NIL, "segment in use: {node:?}");
        self.take_hole(id);
        self.segment_bytes -= node.size;
        self.retire(id);
    }

    /// Takes `size` bytes at a multiple of `alignment` out of the free nodes of `owner`. Best fit.
    #[inline]
    pub fn take(&mut self, owner: Owner, size: u64, alignment: u64) -> Option<NodeId> {
        debug_assert!(size > 0 && size.is_multiple_of(GRANULE) && alignment.is_power_of_two());
        let bins = self.bins.get(owner.0 as usize)?;
        let id = if alignment <= GRANULE {
            bins.best_fit(&self.nodes, size)?
        } else {
            // A node that fits as it stands, else one that fits wherever it starts.
            let fits = |&id: &NodeId| {
                let node = &self.nodes[id as usize];
                align_up(node.addr, alignment).is_some_and(|start| start + size <= node.end())
            };
            let exact = bins.best_fit(&self.nodes, size).filter(fits);
            exact.or_else(|| bins.best_fit(&self.nodes, size.checked_add(alignment - GRANULE)?))?
        };
        Some(self.take_from(id, size, alignment))
    }

    /// The free node of `owner` that [`Arena::take`] would take from, for any address.
    #[inline]
    pub fn best_fit(&self, owner: Owner, size: u64) -> Option<NodeId> {
        self.bins.get(owner.0 as usize)?.best_fit(&self.nodes, size)
    }

    /// Takes a free node of `owner` of exactly this size.
    pub fn take_whole(&mut self, owner: Owner, size: u64) -> Option<NodeId> {
        let id = self.bins.get(owner.0 as usize)?.best_fit(&self.nodes, size)?;
        (self.nodes[id as usize].size == size).then(|| self.take_from(id, size, GRANULE))
    }

    /// Takes `size` bytes at a multiple of `alignment` out of a free node that has room for them. The rests stay with its owner.
    #[inline]
    pub fn take_from(&mut self, id: NodeId, size: u64, alignment: u64) -> NodeId {
        let addr = self.nodes[id as usize].addr;
        self.take_at(id, if alignment <= GRANULE { addr } else { addr.next_multiple_of(alignment) }, size)
    }

    /// Frees a used node for `owner`, whose epoch is `stamp`, and coalesces it with the neighbours that `owner` has already. Returns the node
    /// that it is part of then.
    #[inline]
    pub fn release(&mut self, id: NodeId, owner: Owner, stamp: u64) -> NodeId {
        debug_assert!(self.nodes[id as usize].state == State::Used);
        self.used_bytes -= self.nodes[id as usize].size;
        self.put_coalesced(id, owner, stamp, |neighbour| neighbour == owner)
    }

    /// Makes the free nodes of `owner` whose stamp is at most `passed` usable by anyone.
    pub fn share(&mut self, owner: Owner, passed: u64) -> u64 {
        debug_assert!(owner != Owner::SHARED);
        let ids: Vec<NodeId> = self.free_nodes(owner).filter(|(_, n)| n.stamp <= passed).map(|(id, _)| id).collect();
        let mut bytes = 0;
        for id in ids {
            bytes += self.nodes[id as usize].size;
            self.bins[owner.0 as usize].remove(&mut self.nodes, id);
            self.put_coalesced(id, Owner::SHARED, 0, |neighbour| neighbour == Owner::SHARED);
        }
        bytes
    }

    /// Coalesces the free nodes of `owner` with neighbours that anyone may use, which become `owner`'s.
    /// Returns whether any were.
    pub fn absorb(&mut self, owner: Owner) -> bool {
        let beside_shared = |&(_, node): &(NodeId, &Node)| {
            [node.prev, node.next].iter().any(|&n| n != NIL && self.is_free_for(n, Owner::SHARED))
        };
        let ids: Vec<NodeId> = self.free_nodes(owner).filter(beside_shared).map(|(id, _)| id).collect();
        for &id in &ids {
            // An earlier round may have merged this node into another.
            if self.is_free_for(id, owner) {
                let stamp = self.nodes[id as usize].stamp;
                self.bins[owner.0 as usize].remove(&mut self.nodes, id);
                self.put_coalesced(id, owner, stamp, |neighbour| neighbour == owner || neighbour == Owner::SHARED);
            }
        }
        !ids.is_empty()
    }

    /// Cuts `[addr, addr + size)` out of the unbinned node `id`; `put` takes the rests on either side.
    pub(super) fn cut(&mut self, id: NodeId, addr: u64, size: u64, mut put: impl FnMut(&mut Arena, NodeId)) -> NodeId {
        let mut middle = id;
        if addr > self.nodes[id as usize].addr {
            middle = self.split(id, addr - self.nodes[id as usize].addr);
            put(self, id);
        }
        if self.nodes[middle as usize].size > size {
            let rest = self.split(middle, size);
            put(self, rest);
        }
        middle
    }

    #[inline]
    pub(super) fn is_free_for(&self, id: NodeId, owner: Owner) -> bool {
        let node = &self.nodes[id as usize];
        node.state == State::Free && node.owner == owner
    }

    #[inline]
    pub(super) fn is_free_for_any(&self, id: NodeId, usable: impl Fn(Owner) -> bool) -> bool {
        let node = &self.nodes[id as usize];
        node.state == State::Free && usable(node.owner)
    }

    pub(super) fn has_neighbour_for(&self, id: NodeId, usable: impl Fn(Owner) -> bool) -> bool {
        let Node { prev, next, .. } = self.nodes[id as usize];
        [prev, next].into_iter().any(|beside| beside != NIL && self.is_free_for_any(beside, &usable))
    }

    /// Splits an unbinned node after `size` bytes. Returns the second part.
    #[inline]
    fn split(&mut self, id: NodeId, size: u64) -> NodeId {
        let Node { addr, size: whole, next, home, .. } = self.nodes[id as usize];
        debug_assert!(0 < size && size < whole);
        self.nodes[id as usize].size = size;
        self.new_node(addr + size, whole - size, id, next, home)
    }

    /// Merges an unbinned node with its unbinned right neighbour, which ceases to be.
    #[inline]
    pub(super) fn merge_next(&mut self, id: NodeId) {
        let right = self.nodes[id as usize].next;
        self.nodes[id as usize].size += self.nodes[right as usize].size;
        self.retire(right);
    }

    /// Puts an unbinned node into the bins of `owner`, merged with the free neighbours whose owner `joins`.
    #[inline]
    pub(super) fn put_coalesced(
        &mut self,
        mut id: NodeId,
        owner: Owner,
        mut stamp: u64,
        joins: impl Fn(Owner) -> bool,
    ) -> NodeId {
        let Node { addr, size, prev, next, .. } = self.nodes[id as usize];
        let joins_prev = prev != NIL && self.is_free_for_any(prev, &joins);
        if next != NIL && self.is_free_for_any(next, &joins) {
            if !joins_prev && self.nodes[next as usize].owner == owner {
                self.retire(id);
                return self.widen(next, addr, size, stamp);
            }
            stamp = self.unbin(next, owner, stamp);
            self.merge_next(id);
        }
        if joins_prev {
            let (addr, size) = (self.nodes[prev as usize].addr, self.nodes[id as usize].size);
            if self.nodes[prev as usize].owner == owner {
                self.retire(id);
                return self.widen(prev, addr, size, stamp);
            }
            stamp = self.unbin(prev, owner, stamp);
            self.merge_next(prev);
            id = prev;
        }
        self.put_free(id, owner, stamp);
        id
    }

    /// Adds `size` bytes to a free node, which then begins at `addr`.
    #[inline]
    fn widen(&mut self, id: NodeId, addr: u64, size: u64, stamp: u64) -> NodeId {
        let node = &mut self.nodes[id as usize];
        node.stamp = node.stamp.max(stamp);
        let (owner, size) = (node.owner, node.size + size);
        self.bins[owner.0 as usize].resize(&mut self.nodes, id, addr, size);
        id
    }

    /// Takes a free node out of its bins. Returns the later one of `stamp` and its own, if it is `owner`'s.
    #[inline(always)]
    fn unbin(&mut self, id: NodeId, owner: Owner, stamp: u64) -> u64 {
        let node = &self.nodes[id as usize];
        let (whose, at) = (node.owner, node.stamp);
        self.bins[whose.0 as usize].remove(&mut self.nodes, id);
        if whose == owner { stamp.max(at) } else { stamp }
    }

    #[inline(always)]
    pub(super) fn put_free(&mut self, id: NodeId, owner: Owner, stamp: u64) {
        let node = &mut self.nodes[id as usize];
        node.state = State::Free;
        node.owner = owner;
        node.stamp = stamp;
        if self.bins.len() <= owner.0 as usize {
            self.add_bins(owner);
        }
        self.bins[owner.0 as usize].insert(&mut self.nodes, id);
    }

    /// Bins for all owners up to this one. Apart, since they are large, and pass through the stack.
    #[cold]
    #[inline(never)]
    fn add_bins(&mut self, owner: Owner) {
        self.bins.resize_with(owner.0 as usize + 1, Bins::default);
    }

    pub(super) fn put_hole(&mut self, id: NodeId) {
        self.nodes[id as usize].state = State::Hole;
        let home = self.nodes[id as usize].home.0 as usize;
        if self.holes.len() <= home {
            self.holes.resize_with(home + 1, Bins::default);
        }
        self.holes[home].insert(&mut self.nodes, id);
    }

    pub(super) fn take_hole(&mut self, id: NodeId) {
        let home = self.nodes[id as usize].home.0 as usize;
        self.holes[home].remove(&mut self.nodes, id);
    }

    /// A new node between two, or at an end.
    #[inline]
    fn new_node(&mut self, addr: u64, size: u64, prev: NodeId, next: NodeId, home: Owner) -> NodeId {
        let node = Node {
            addr,
            size,
            stamp: 0,
            prev,
            next,
            bin: Bin::default(),
            bin_prev: NIL,
            bin_next: NIL,
            owner: Owner::SHARED,
            home,
            state: State::Vacant,
        };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as NodeId
            }
        };
        if prev != NIL {
            self.nodes[prev as usize].next = id;
        }
        if next != NIL {
            self.nodes[next as usize].prev = id;
        }
        id
    }

    /// Takes a node out from between its neighbours.
    #[inline]
    fn retire(&mut self, id: NodeId) {
        let node = &mut self.nodes[id as usize];
        node.state = State::Vacant;
        let Node { prev, next, .. } = *node;
        if prev != NIL {
            self.nodes[prev as usize].next = next;
        }
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        self.vacant.push(id);
    }

    /// Checks the whole structure: tiling, neighbour links, bins, byte counts, and that no two free neighbours of one owner stand apart.
    pub fn validate(&self) -> Result<(), String> {
        let (mut used, mut total, mut free_nodes, mut hole_nodes) = (0, 0, 0, 0);
        for (id, node) in (0..).zip(&self.nodes).filter(|(_, node)| node.state != State::Vacant) {
            let fail = |what: &str| Err(format!("node {id}: {what}: {node:?}"));
            total += node.size;
            match node.state {
                State::Used => used += node.size,
                State::Free => free_nodes += 1,
                State::Hole => hole_nodes += 1,
                State::Ghost | State::Vacant => {}
            }
            if node.size == 0 || !node.size.is_multiple_of(GRANULE) || !node.addr.is_multiple_of(GRANULE) {
                return fail("not a multiple of the granule");
            }
            if node.next != NIL {
                let next = self.node(node.next);
                if next.state == State::Vacant || next.prev != id || next.addr != node.end() || next.home != node.home {
                    return fail("wrong neighbour");
                }
                let apart = match (node.state, next.state) {
                    (State::Free, State::Free) => node.owner == next.owner,
                    (State::Hole, State::Hole) => true,
                    _ => false,
                };
                if apart {
                    return fail("not coalesced");
                }
            }
            if node.prev != NIL && self.node(node.prev).next != id {
                return fail("wrong left neighbour");
            }
        }
        let mut binned = 0;
        for (owner, bins) in self.bins.iter().enumerate() {
            binned += bins.validate(&self.nodes).map_err(|e| format!("owner {owner}: {e}"))?;
            let stray = bins.iter(&self.nodes).find(|&id| !self.is_free_for(id, Owner(owner as u16)));
            if let Some(id) = stray {
                return Err(format!("node {id} is in the bins of owner {owner}: {:?}", self.node(id)));
            }
        }
        let mut holes = 0;
        for bins in &self.holes {
            holes += bins.validate(&self.nodes)?;
        }
        if holes != hole_nodes || binned != free_nodes {
            return Err(format!("{free_nodes} free nodes, {binned} binned; {hole_nodes} holes, {holes} binned"));
        }
        if used != self.used_bytes || total != self.segment_bytes {
            return Err(format!("used {used} != {}, total {total} != {}", self.used_bytes, self.segment_bytes));
        }
        Ok(())
    }
}
