//! Free nodes by size: two levels of bitmaps over the heads of doubly linked lists.

use super::arena::{NIL, Node, NodeId};
use crate::units::GRANULE;

/// Bins to a doubling, as a power of two: 32, so that a bin spans 3 %.
const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
/// Doublings from one granule up: enough for 2^64 bytes.
const DOUBLINGS: usize = 64 - GRANULE.trailing_zeros() as usize - STEP_BITS as usize + 1;

/// How many nodes of a bin a search looks at. Bins are narrow and mostly short, so that this is nearly always best fit.
const PROBES: usize = 32;

/// The free nodes of one owner.
#[derive(Debug, Clone)]
pub(super) struct Bins {
    /// Bit `d`: some bin of doubling `d` has a node.
    doublings: u64,
    /// Bit `s` of `steps[d]`: bin `(d, s)` has a node.
    steps: [u32; DOUBLINGS],
    heads: [[NodeId; STEPS]; DOUBLINGS],
    /// Bytes in all nodes.
    pub(super) bytes: u64,
}

/// A bin. Those of larger sizes are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bin {
    doubling: usize,
    step: usize,
}

impl Bin {
    /// The bin of a size in bytes.
    pub fn of(size: u64) -> Bin {
        let (doubling, step) = bin_of(size);
        Bin { doubling, step }
    }
}

/// The bin of `size`: exact multiples of the granule below 32 granules, then 32 steps a doubling.
#[inline]
fn bin_of(size: u64) -> (usize, usize) {
    let granules = size / GRANULE;
    if granules < STEPS as u64 {
        return (0, granules as usize);
    }
    let doubling = 63 - granules.leading_zeros() - STEP_BITS;
    let step = (granules >> doubling) as usize - STEPS;
    (doubling as usize + 1, step)
}

impl Default for Bins {
    fn default() -> Bins {
        Bins { doublings: 0, steps: [0; DOUBLINGS], heads: [[NIL; STEPS]; DOUBLINGS], bytes: 0 }
    }
}

impl Bins {
    #[inline(always)]
    pub(super) fn insert(&mut self, nodes: &mut [Node], id: NodeId) {
        let size = nodes[id as usize].size;
        let (doubling, step) = bin_of(size);
        let head = self.heads[doubling][step];
        nodes[id as usize].bin_prev = NIL;
        nodes[id as usize].bin_next = head;
        if head != NIL {
            nodes[head as usize].bin_prev = id;
        }
        self.heads[doubling][step] = id;
        self.steps[doubling] |= 1 << step;
        self.doublings |= 1 << doubling;
        self.bytes += size;
    }

    #[inline(always)]
    pub(super) fn remove(&mut self, nodes: &mut [Node], id: NodeId) {
        let Node { size, bin_prev, bin_next, .. } = nodes[id as usize];
        if bin_next != NIL {
            nodes[bin_next as usize].bin_prev = bin_prev;
        }
        if bin_prev != NIL {
            nodes[bin_prev as usize].bin_next = bin_next;
        } else {
            let (doubling, step) = bin_of(size);
            self.heads[doubling][step] = bin_next;
            if bin_next == NIL {
                self.steps[doubling] &= !(1 << step);
                if self.steps[doubling] == 0 {
                    self.doublings &= !(1 << doubling);
                }
            }
        }
        self.bytes -= size;
    }

    /// The smallest node of at least `size` bytes, the lowest address among equals, within the bound on probes.
    #[inline]
    pub(super) fn best_fit(&self, nodes: &[Node], size: u64) -> Option<NodeId> {
        if self.bytes < size {
            return None;
        }
        let (doubling, step) = bin_of(size);
        // The bin of `size` holds smaller nodes as well; every later bin holds larger ones only.
        self.smallest_in(nodes, self.heads[doubling][step], size).or_else(|| {
            let (doubling, step) = self.next_bin(doubling, step + 1)?;
            self.smallest_in(nodes, self.heads[doubling][step], size)
        })
    }

    /// The first bin with nodes from `(doubling, step)` on.
    #[inline]
    fn next_bin(&self, doubling: usize, step: usize) -> Option<(usize, usize)> {
        let here = if step < STEPS { self.steps[doubling] & (!0 << step) } else { 0 };
        if here != 0 {
            return Some((doubling, here.trailing_zeros() as usize));
        }
        let above = if doubling + 1 < DOUBLINGS { self.doublings & (!0 << (doubling + 1)) } else { 0 };
        if above == 0 {
            return None;
        }
        let doubling = above.trailing_zeros() as usize;
        Some((doubling, self.steps[doubling].trailing_zeros() as usize))
    }

    #[inline]
    fn smallest_in(&self, nodes: &[Node], head: NodeId, size: u64) -> Option<NodeId> {
        let mut best: Option<(u64, u64, NodeId)> = None;
        let mut id = head;
        for _ in 0..PROBES {
            if id == NIL {
                break;
            }
            let node = &nodes[id as usize];
            let rank = (node.size, node.addr, id);
            if node.size >= size && best.is_none_or(|best| rank < best) {
                best = Some(rank);
                if node.size == size && node.bin_next == NIL {
                    break;
                }
            }
            id = node.bin_next;
        }
        best.map(|(_, _, id)| id)
    }

    /// The first bin with nodes from one on, or after it.
    pub(super) fn bin_from(&self, bin: Bin, after: bool) -> Option<Bin> {
        let (doubling, step) = self.next_bin(bin.doubling, bin.step + usize::from(after))?;
        Some(Bin { doubling, step })
    }

    /// The nodes of a bin.
    pub(super) fn iter_in<'a>(&'a self, nodes: &'a [Node], bin: Bin) -> impl Iterator<Item = NodeId> + 'a {
        let head = Some(self.heads[bin.doubling][bin.step]).filter(|&head| head != NIL);
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

    /// A node of the largest non-empty bin: the largest within 3 %.
    pub(super) fn largest(&self, nodes: &[Node]) -> u64 {
        if self.doublings == 0 {
            return 0;
        }
        let doubling = 63 - self.doublings.leading_zeros() as usize;
        let step = 31 - self.steps[doubling].leading_zeros() as usize;
        let mut id = self.heads[doubling][step];
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
                let head = self.heads[doubling][step];
                if (self.steps[doubling] >> step & 1 == 1) != (head != NIL) {
                    return Err(format!("step bitmap is wrong at {doubling}/{step}"));
                }
                let (mut prev, mut id) = (NIL, head);
                while id != NIL {
                    let node = &nodes[id as usize];
                    if node.bin_prev != prev || bin_of(node.size) != (doubling, step) {
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

    #[test]
    fn bins_ascend_and_span_at_most_a_32nd() {
        let mut last = (0, 0);
        for granules in 1..100_000u64 {
            let bin = bin_of(granules * GRANULE);
            assert!(bin >= last, "{granules}");
            if bin.0 > 0 {
                // A bin is a 32nd of its doubling wide.
                assert!(bin_of((granules + granules / 32 + 1) * GRANULE) > bin, "{granules}");
            }
            last = bin;
        }
        let (doubling, step) = bin_of(u64::MAX);
        assert!(doubling < DOUBLINGS && step < STEPS);
        assert_eq!(bin_of(32 * GRANULE), (1, 0));
        assert_eq!(bin_of(63 * GRANULE), (1, 31));
        assert_eq!(bin_of(64 * GRANULE), (2, 0));
    }
}
