//! Free chunks that may be mapped elsewhere, in the order in which they are taken.

use std::cmp::Reverse;

use super::lanes::LaneId;
use super::{DEDICATED, Pool, PoolState};
use crate::block::{Bin, Growth, NodeId, Owner};
use crate::vm::ChunkId;

/// What is left of a free range beside its chunks is compared in steps of this part of it, a quarter: less than one is little.
const REST_STEPS: u64 = 4;

/// A free chunk that may be mapped elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Donor {
    pub(super) chunk: ChunkId,
    pub(super) size: u64,
    /// The lane's epoch that has to have passed before others may use it; 0 where it is everyone's.
    pub(super) stamp: u64,
    /// The zone and the free node it lies in, and its address. `None` in the reserve.
    pub(super) from: Option<(usize, NodeId, u64)>,
}

/// Whose free chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The lane's own, and everyone's.
    Own,
    /// Those too that other lanes own and have passed.
    Passed,
    /// Every lane's: the lane's stream has been made to wait for them.
    Waited,
}

impl Pool {
    /// Free chunks that the lane may use at once, outside of a growth. The reserve comes first, then what leaves the least beside it, and of
    /// that what lies in the smallest free blocks. If it is to be `neat`, only what leaves little.
    pub(super) fn donors<'a>(
        &self,
        state: &'a PoolState,
        lane: LaneId,
        growth: Growth,
        whose: Whose,
        neat: bool,
    ) -> impl Iterator<Item = Donor> + use<'a> {
        // What the lane's stream waits for it has passed with what it does next.
        let others = if whose == Whose::Waited { state.lanes.open_epoch(lane) } else { 0 };
        let reserve = state.space.reserve().rev().map(|(chunk, size)| Donor { chunk, size, stamp: 0, from: None });
        let mut ranges = Ranges::new(state, lane, whose, neat);
        let ranges = std::iter::from_fn(move || ranges.next());
        let donors = ranges.flat_map(move |(zone, id)| {
            let node = state.zones[zone].node(id);
            let fronts = state.space.fronts(node.addr, node.end());
            let apart =
                fronts.filter(move |&(addr, _, size)| addr + size <= growth.keep_from || growth.keep_to <= addr);
            let stamp = if node.owner == Owner(lane) { node.stamp } else { others };
            apart.map(move |(addr, chunk, size)| Donor { chunk, size, stamp, from: Some((zone, id, addr)) })
        });
        reserve.chain(donors)
    }

    /// Whether lanes other than this one may have free chunks that it may use once they are known to have passed them.
    pub(super) fn others_have_chunks(&self, state: &PoolState, lane: LaneId) -> bool {
        let unit = state.space.unit();
        let is_other = |&owner: &Owner| owner != Owner::SHARED && owner != Owner(lane);
        state.zones.iter().take(DEDICATED).any(|arena| {
            let mut others = arena.owners().filter(is_other);
            others.any(|owner| !state.lanes.is_private(owner.0) && arena.free_bytes(owner) >= unit)
        })
    }
}

/// What a range leaves beside its chunks, its size, its zone, its address and its node. Of equals the highest comes first: requests are served
/// from the lowest.
type Range = (u64, u64, usize, Reverse<u64>, NodeId);

/// The free ranges that have whole chunks which a lane may use: those that leave little beside them, from the smallest, then those that leave
/// more. They are looked for bin by bin, as far as somebody asks.
struct Ranges<'a> {
    state: &'a PoolState,
    lane: LaneId,
    whose: Whose,
    neat: bool,
    /// The zones and owners that have any.
    lists: Vec<(usize, Owner)>,
    /// Where the search goes on.
    bin: Option<Bin>,
    /// Of the bin that was looked through last, the next one at the end.
    found: Vec<Range>,
    /// Those that leave more beside them.
    later: Vec<Range>,
}

impl Ranges<'_> {
    fn new<'a>(state: &'a PoolState, lane: LaneId, whose: Whose, neat: bool) -> Ranges<'a> {
        let usable = |owner: Owner| {
            let own = owner == Owner::SHARED || owner == Owner(lane);
            (own || whose != Whose::Own) && !state.lanes.is_private(owner.0)
        };
        let arenas = state.zones.iter().enumerate().take(DEDICATED);
        let lists = arenas.flat_map(|(zone, arena)| arena.owners().map(move |owner| (zone, owner)));
        let lists: Vec<(usize, Owner)> = lists.filter(|&(_, owner)| usable(owner)).collect();
        let first = Bin::of(state.space.unit());
        let bins = lists.iter().filter_map(|&(zone, owner)| state.zones[zone].bin_from(owner, first, false));
        let bin = bins.min();
        Ranges { state, lane, whose, neat, lists, bin, found: Vec::new(), later: Vec::new() }
    }

    fn next(&mut self) -> Option<(usize, NodeId)> {
        loop {
            if let Some((_, _, zone, _, id)) = self.found.pop() {
                return Some((zone, id));
            }
            match self.bin {
                Some(bin) => self.look_through(bin),
                None if self.later.is_empty() => return None,
                None => {
                    self.found = std::mem::take(&mut self.later);
                    self.found.sort_unstable_by(|one, other| other.cmp(one));
                }
            }
        }
    }

    fn look_through(&mut self, bin: Bin) {
        let Ranges { state, lane, whose, .. } = *self;
        for &(zone, owner) in &self.lists {
            let own = owner == Owner::SHARED || owner == Owner(lane);
            for (id, node) in state.zones[zone].free_nodes_in(owner, bin) {
                if node.size < state.space.unit()
                    || !(own || whose == Whose::Waited || state.lanes.has_passed(owner.0, node.stamp))
                {
                    continue;
                }
                let [whole, _] = state.space.whole_beside(node.addr, node.end(), 0);
                let steps = (node.size - whole) * REST_STEPS / node.size;
                match steps {
                    _ if whole == 0 => {}
                    0 => self.found.push((0, node.size, zone, Reverse(node.addr), id)),
                    _ if self.neat => {}
                    _ => self.later.push((steps, node.size, zone, Reverse(node.addr), id)),
                }
            }
        }
        self.found.sort_unstable_by(|one, other| other.cmp(one));
        let after = |&(zone, owner): &(usize, Owner)| state.zones[zone].bin_from(owner, bin, true);
        self.bin = self.lists.iter().filter_map(after).min();
    }
}
