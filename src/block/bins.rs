//! Free nodes by size: two levels of bitmaps over the heads of doubly linked lists.

use super::arena::{NIL, Node, NodeId};
use crate::units::GRANULE;

/// Bins to a doubling, as a power of two: 32, so that a bin spans 3 %.
const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
/// What is below 32 granules, and doublings from there on: enough for 2^64 bytes.
const DOUBLINGS: usize = 64 - GRANULE.trailing_zeros() as usize - STEP_BITS as usize + 1;

/// How many nodes of a bin a search looks at. Bins are narrow and mostly short, so that this is nearly always best fit.
const PROBES: usize = 32;

/// The free nodes of one owner.
#[derive(Debug, Clone)]
pub(super) struct Bins {
    /// Bit `d`: some bin of doubling `d` has a node.
    doublings: u64,
    /// Bit `s` of `steps[d]`: bin `d * STEPS + s` has a node.
    steps: [u32; DOUBLINGS],
    heads: [NodeId; DOUBLINGS * STEPS],
    /// Bytes in all nodes.
    pub(super) bytes: u64,
}

/// A bin's number. Those of larger sizes are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bin(u16);

impl Bin {
    /// The bin of a size in bytes: exact multiples of the granule below 64 granules, then 32 steps a doubling.
    #[inline]
    pub fn of(size: u64) -> Bin {
        let granules = size / GRANULE;
        // The first bit of 32 steps; the others say which of them.
        let doubling = 63 - (granules | (2 * STEPS as u64 - 1)).leading_zeros() - STEP_BITS;
        Bin((doubling as usize * STEPS + (granules >> doubling) as usize) as u16)
    }

    #[inline]
    fn at(doubling: usize, step: u32) -> Bin {
        Bin((doubling * STEPS) as u16 + step as u16)
    }

    #[inline]
    fn index(self) -> usize {
        self.0 as usize
    }

    #[inline]
    fn split(self) -> (usize, usize) {
        (self.index() / STEPS, self.index() % STEPS)
    }
}

impl Default for Bins {
    fn default() -> Bins {
        Bins { doublings: 0, steps: [0; DOUBLINGS], heads: [NIL; DOUBLINGS * STEPS], bytes: 0 }
    }
}

impl Bins {
    #[inline]
    pub(super) fn insert(&mut self, nodes: &mut [Node], id: NodeId) {
        let node = &mut nodes[id as usize];
        let bin = Bin::of(node.size);
        node.bin = bin;
        self.bytes += node.size;
        let head = std::mem::replace(&mut self.heads[bin.index()], id);
        node.bin_prev = NIL;
        node.bin_next = head;
        if head != NIL {
            nodes[head as usize].bin_prev = id;
            return;
        }
        let (doubling, step) = bin.split();
        self.steps[doubling] |= 1 << step;
        self.doublings |= 1 << doubling;
    }

    #[inline]
    pub(super) fn remove(&mut self, nodes: &mut [Node], id: NodeId) {
        let Node { size, bin, bin_prev, bin_next, .. } = nodes[id as usize];
        self.bytes -= size;
        if bin_next != NIL {
            nodes[bin_next as usize].bin_prev = bin_prev;
        }
        if bin_prev != NIL {
            nodes[bin_prev as usize].bin_next = bin_next;
            return;
        }
        self.heads[bin.index()] = bin_next;
        if bin_next == NIL {
            let (doubling, step) = bin.split();
            self.steps[doubling] &= !(1 << step);
            if self.steps[doubling] == 0 {
                self.doublings &= !(1 << doubling);
            }
        }
    }

    /// A node becomes another range, and the first of its bin. Most often it is so already.
    #[inline]
    pub(super) fn resize(&mut self, nodes: &mut [Node], id: NodeId, addr: u64, size: u64) {
        let node = &mut nodes[id as usize];
        if node.bin_prev == NIL && node.bin == Bin::of(size) {
            self.bytes = self.bytes - node.size + size;
            (node.addr, node.size) = (addr, size);
            return;
        }
        self.remove(nodes, id);
        (nodes[id as usize].addr, nodes[id as usize].size) = (addr, size);
        self.insert(nodes, id);
    }

    /// The smallest node of at least `size` bytes, the lowest address among equals, within the bound on probes. `None` where no node is so large.
    #[inline]
    pub(super) fn best_fit(&self, nodes: &[Node], size: u64) -> Option<NodeId> {
        if self.bytes < size {
            return None;
        }
        let bin = Bin::of(size);
        // The bin of `size` holds smaller nodes as well; every later bin holds larger ones only.
        let here = self.smallest_in(nodes, bin, size);
        let found = here.or_else(|| self.smallest_in(nodes, self.bin_from(bin, true)?, size));
        found.or_else(|| self.any_in(nodes, bin, size))
    }

    /// A node of at least `size` bytes of a bin, behind those that a search has looked at. It is all there is, and so worth looking at many.
    #[cold]
    #[inline(never)]
    fn any_in(&self, nodes: &[Node], bin: Bin, size: u64) -> Option<NodeId> {
        self.iter_in(nodes, bin).skip(PROBES).find(|&id| nodes[id as usize].size >= size)
    }

    #[inline]
    fn smallest_in(&self, nodes: &[Node], bin: Bin, size: u64) -> Option<NodeId> {
        let (mut best, mut best_size, mut best_addr) = (NIL, u64::MAX, u64::MAX);
        let mut id = self.heads[bin.index()];
        for _ in 0..PROBES {
            if id == NIL {
                break;
            }
            let node = &nodes[id as usize];
            let is_better = node.size < best_size || (node.size == best_size && node.addr < best_addr);
            if node.size >= size && is_better {
                (best, best_size, best_addr) = (id, node.size, node.addr);
            }
            id = node.bin_next;
        }
        Some(best).filter(|&best| best != NIL)
    }

    /// The first bin with nodes from one on, or after it.
    #[inline]
    pub(super) fn bin_from(&self, bin: Bin, after: bool) -> Option<Bin> {
        let (doubling, step) = Bin(bin.0 + u16::from(after)).split();
        let here = self.steps.get(doubling)? & !0 << step;
        if here != 0 {
            return Some(Bin::at(doubling, here.trailing_zeros()));
        }
        let above = self.doublings & !1 << doubling;
        let doubling = above.trailing_zeros() as usize;
        (above != 0).then(|| Bin::at(doubling, self.steps[doubling].trailing_zeros()))
    }

    /// The nodes of a bin.
    pub(super) fn iter_in<'a>(&'a self, nodes: &'a [Node], bin: Bin) -> impl Iterator<Item = NodeId> + 'a {
        let head = Some(self.heads[bin.index()]).filter(|&head| head != NIL);
        std::iter::successors(head, move |&id| Some(nodes[id as usize].bin_next).filter(|&next| next != NIL))
    }

    /// Every node, bin by bin from the smallest.
    pub(super) fn iter<'a>(&'a self, nodes: &'a [Node]) -> impl Iterator<Item = NodeId> + 'a {
        self.iter_from(nodes, 0)
    }

    /// Every node from the bin of `size` on, bin by bin.
    pub(super) fn iter_from<'a>(&'a self, nodes: &'a [Node], size: u64) -> impl Iterator<Item = NodeId> + 'a {
        let bins = std::iter::successors(self.bin_from(Bin::of(size), false), |&bin| self.bin_from(bin, true));
        bins.flat_map(move |bin| self.iter_in(nodes, bin))
    }

    /// The size of the largest node.
    pub(super) fn largest(&self, nodes: &[Node]) -> u64 {
        if self.doublings == 0 {
            return 0;
        }
        let doubling = 63 - self.doublings.leading_zeros() as usize;
        let step = 31 - self.steps[doubling].leading_zeros() as usize;
        let mut id = self.heads[doubling * STEPS + step];
        let mut largest = 0;
        while id != NIL {
            largest = largest.max(nodes[id as usize].size);
            id = nodes[id as usize].bin_next;
        }
        largest
    }

    /// Checks that bitmaps, links, bins and the byte count agree. Returns the number of nodes.
    pub(super) fn validate(&self, nodes: &[Node]) -> Result<usize, String> {
        let (mut count, mut bytes) = (0, 0);
        for doubling in 0..DOUBLINGS {
            if (self.doublings >> doubling & 1 == 1) != (self.steps[doubling] != 0) {
                return Err(format!("doubling bitmap is wrong at {doubling}"));
            }
            for step in 0..STEPS {
                let bin = Bin::at(doubling, step as u32);
                let head = self.heads[bin.index()];
                if (self.steps[doubling] >> step & 1 == 1) != (head != NIL) {
                    return Err(format!("step bitmap is wrong at {doubling}/{step}"));
                }
                let (mut prev, mut id) = (NIL, head);
                while id != NIL {
                    let node = &nodes[id as usize];
                    if node.bin_prev != prev || node.bin != bin || Bin::of(node.size) != bin {
                        return Err(format!(
                            "node {id} of {} bytes is linked wrongly in bin {doubling}/{step}",
                            node.size
                        ));
                    }
                    count += 1;
                    bytes += node.size;
                    if count > nodes.len() {
                        return Err(format!("bin {doubling}/{step} is a cycle"));
                    }
                    (prev, id) = (id, node.bin_next);
                }
            }
        }
        if bytes == self.bytes { Ok(count) } else { Err(format!("{bytes} bytes in bins, {} counted", self.bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Owner, State};

    const MIB: u64 = 1 << 20;

    #[test]
    fn bins_ascend_and_span_at_most_a_32nd() {
        let mut last = Bin(0);
        for granules in 1..100_000u64 {
            let bin = Bin::of(granules * GRANULE);
            assert!(bin >= last, "{granules}");
            if granules < 2 * STEPS as u64 {
                assert_eq!(bin, Bin(granules as u16), "exact");
            } else {
                // A bin is a 32nd of its doubling wide.
                assert!(Bin::of((granules + granules / 32 + 1) * GRANULE) > bin, "{granules}");
            }
            last = bin;
        }
        assert_eq!(Bin::of(u64::MAX), Bin((DOUBLINGS * STEPS - 1) as u16));
        assert_eq!(Bin::of(64 * GRANULE).split(), (2, 0));
    }

    #[test]
    fn a_node_is_found_behind_many_that_are_too_small() {
        let (mut bins, mut nodes) = (Bins::default(), Vec::new());
        // One bin: sizes from 128 to 131 granules.
        let sizes = std::iter::repeat_n(128, PROBES).chain([131]).chain(std::iter::repeat_n(129, 3 * PROBES));
        for (id, granules) in (0..).zip(sizes) {
            nodes.push(Node {
                addr: id * MIB,
                size: granules * GRANULE,
                stamp: 0,
                prev: NIL,
                next: NIL,
                bin: Bin::default(),
                bin_prev: NIL,
                bin_next: NIL,
                owner: Owner(1),
                home: Owner(1),
                state: State::Free,
            });
            bins.insert(&mut nodes, id as NodeId);
        }
        assert_eq!(bins.validate(&nodes), Ok(nodes.len()));
        assert_eq!(bins.best_fit(&nodes, 131 * GRANULE), Some(PROBES as NodeId));
        assert_eq!(bins.best_fit(&nodes, 132 * GRANULE), None);
        let small = bins.best_fit(&nodes, 129 * GRANULE).unwrap();
        assert_eq!(nodes[small as usize].size, 129 * GRANULE);
    }
}
