//! A pool's memory as a list of ranges by address, and what of it a request could use if something were done.

use std::collections::{HashMap, HashSet};

use crate::block::{ClassId, NodeId, Owner, State};
use crate::pool::directory::{BlockId, Place, life, node_id, place, slot_id};
use crate::pool::lanes::LaneId;
use crate::pool::{DEDICATED, Pool, PoolState, SMALL};
use crate::units::PoolId;

/// Ranges looked at, at most, and headers of slots. An explanation is to take no longer than a few milliseconds.
const RANGES_MAX: usize = 1 << 16;
const SLOTS_MAX: u32 = 1 << 18;
/// A request that may not grow is often a question, so that it is answered with a sixteenth of that.
const BRIEF_SHIFT: u32 = 4;

/// One range, none of it a hole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) zone: usize,
    pub(super) addr: u64,
    pub(super) size: u64,
    pub(super) what: What,
    /// Whether the range before in the list ends where this one begins, in the same segment.
    pub(super) joined: bool,
    /// The segment of plain memory that it lies in, as its first byte and size, if one.
    pub(super) plain: Option<(u64, u64)>,
}

impl Range {
    pub(super) fn end(&self) -> u64 {
        self.addr + self.size
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Free; `passed` if no unfinished work touches it.
    Free { owner: LaneId, passed: bool },
    /// Live, pending, or in a magazine.
    Block(BlockId),
    /// A slab: an index into [`Map::slabs`].
    Slab(usize),
}

/// A slab in numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlabInfo {
    pub(super) number: u32,
    pub(super) class: ClassId,
    pub(super) lane: LaneId,
    /// Slots that lie in it.
    pub(super) places: u32,
    /// Slots that it owns.
    pub(super) slots: u32,
    /// Those of them that are not free.
    pub(super) taken: u32,
    /// Whether others share its page's memory: it leaves them once its stream is known to have passed it.
    pub(super) shares: bool,
    /// Whether the counts below were taken.
    pub(super) looked: bool,
    pub(super) live: u32,
    pub(super) cached: u32,
    pub(super) pending: u32,
    /// The tag of all live slots, if it is one.
    pub(super) tag: Option<u8>,
}

/// Which streams are taken to have been waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited<'a> {
    Nothing,
    /// Those with these clocks.
    Clocks(&'a [u16]),
    /// All, and the device for the sake of pools that are no more.
    All,
}

/// Which live blocks are taken to have been freed.
#[derive(Debug)]
pub(super) enum Freed {
    Nothing,
    Tag(u8),
    /// These, and how many of them lie in each slab.
    Blocks(HashSet<BlockId>, HashMap<u32, u32>),
}

impl Freed {
    pub(super) fn blocks(blocks: &[BlockId]) -> Freed {
        let mut by_slab = HashMap::new();
        for &block in blocks {
            if let Place::Slot(slab, _) = place(block) {
                *by_slab.entry(slab).or_default() += 1;
            }
        }
        Freed::Blocks(blocks.iter().copied().collect(), by_slab)
    }
}

/// What is taken to have been done before the request comes again.
#[derive(Debug)]
pub(super) struct Assume<'a> {
    pub(super) lane: LaneId,
    /// Where the request looks first.
    pub(super) zone: usize,
    pub(super) waited: Waited<'a>,
    /// Threads' magazines were emptied.
    pub(super) drained: bool,
    /// What is free elsewhere has to go back to the device, to be taken again as plain memory.
    pub(super) gives_back: bool,
    /// Free memory was given back to the device, whatever kind it is of.
    pub(super) emptied: bool,
    /// This private pool was released.
    pub(super) released: Option<PoolId>,
    pub(super) freed: Freed,
}

/// How a range could serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Not at all.
    No,
    /// Where it lies.
    InPlace,
    /// And its chunks elsewhere.
    Movable,
}

/// Neighbours that could serve together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) zone: usize,
    pub(super) addr: u64,
    pub(super) end: u64,
    /// Indices into [`Map::ranges`].
    pub(super) first: usize,
    pub(super) last: usize,
    /// Bytes that could be mapped elsewhere, or given back to the device and taken again.
    pub(super) movable: u64,
}

/// A pool's memory.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub(super) ranges: Vec<Range>,
    pub(super) slabs: Vec<SlabInfo>,
    /// By block: the clocks that a pending block waits for.
    pub(super) pending: HashMap<BlockId, Vec<u16>>,
    /// Not all of it.
    pub(super) is_partial: bool,
}

impl Map {
    pub(super) fn new(pool: &Pool, state: &PoolState, is_brief: bool) -> Map {
        let shift = if is_brief { BRIEF_SHIFT } else { 0 };
        let mut map = Map { pending: state.pending.waiting().collect(), ..Map::default() };
        let by_node = map.look_at_slabs(pool, state, SLOTS_MAX >> shift);
        for (zone, arena) in state.zones.iter().enumerate() {
            for head in arena.heads() {
                let start = arena.node(head).addr;
                let plain = state.space.plain_segment(start).map(|size| (start, size));
                let mut joined = false;
                for id in arena.from(head) {
                    let node = arena.node(id);
                    let what = match node.state {
                        State::Free => {
                            let owner = node.owner.0;
                            What::Free { owner, passed: state.lanes.has_passed(owner, node.stamp) }
                        }
                        State::Used => match by_node.get(&id).filter(|_| zone == SMALL) {
                            Some(&slab) => What::Slab(slab),
                            None => What::Block(node_id(zone, id)),
                        },
                        State::Hole | State::Ghost | State::Vacant => {
                            joined = false;
                            continue;
                        }
                    };
                    if map.ranges.len() == RANGES_MAX >> shift {
                        map.is_partial = true;
                        return map;
                    }
                    map.ranges.push(Range { zone, addr: node.addr, size: node.size, what, joined, plain });
                    joined = true;
                }
            }
        }
        map
    }

    /// The emptiest first, as many as there is time for.
    fn look_at_slabs(&mut self, pool: &Pool, state: &PoolState, slots: u32) -> HashMap<NodeId, usize> {
        let mut by_node = HashMap::new();
        for (number, node, slab) in state.slabs.iter() {
            by_node.insert(node, self.slabs.len());
            let (class, slots, taken) = (slab.class, slab.slots(), slab.slots() - slab.free_slots());
            let places = slab.places();
            let lane = state.slabs.lane(number);
            let shares = !state.slabs.is_own(number);
            let (looked, live, cached, pending, tag) = (false, 0, 0, 0, None);
            self.slabs.push(SlabInfo {
                number,
                class,
                lane,
                places,
                slots,
                taken,
                shares,
                looked,
                live,
                cached,
                pending,
                tag,
            });
        }
        let mut order: Vec<usize> = (0..self.slabs.len()).collect();
        order.sort_by_key(|&index| (self.slabs[index].taken, index));
        let mut budget = slots;
        for index in order {
            let info = &mut self.slabs[index];
            let Some(left) = budget.checked_sub(info.places) else {
                self.is_partial = true;
                break;
            };
            budget = left;
            info.looked = true;
            let mut tags = (None, false);
            for slot in 0..info.places {
                let header = pool.directory.header(slot_id(info.number, slot));
                match header.life() {
                    life::LIVE => {
                        info.live += 1;
                        tags = (Some(header.tag()), tags.1 || tags.0.is_some_and(|tag| tag != header.tag()));
                    }
                    life::CACHED => info.cached += 1,
                    life::PENDING => info.pending += 1,
                    _ => {}
                }
            }
            info.tag = tags.0.filter(|_| !tags.1);
        }
        by_node
    }

    /// Whether what is freed on a lane could serve, given what is assumed.
    pub(super) fn lane_serves(state: &PoolState, assume: &Assume<'_>, lane: LaneId) -> Use {
        let Some(private) = state.lanes.get(lane).private else {
            return match assume.waited {
                Waited::All => Use::Movable,
                Waited::Clocks(clocks) if clocks.contains(&state.lanes.get(lane).clock) => Use::Movable,
                // Chunks are mapped once more in stream order; to give them back, the stream has to have passed them.
                _ if lane == assume.lane => {
                    if assume.gives_back {
                        Use::InPlace
                    } else {
                        Use::Movable
                    }
                }
                _ => Use::No,
            };
        };
        let dissolved = state.lanes.get(lane).dissolved.is_some();
        let all = assume.waited == Waited::All;
        match (dissolved || assume.released == Some(private)) && all {
            true => Use::Movable,
            false if lane == assume.lane => Use::InPlace,
            false => Use::No,
        }
    }

    /// Whether a block that is not free could serve.
    pub(super) fn block_serves(&self, pool: &Pool, state: &PoolState, assume: &Assume<'_>, block: BlockId) -> Use {
        let header = pool.directory.header(block);
        let is_done = match header.life() {
            life::LIVE => match &assume.freed {
                Freed::Nothing => false,
                Freed::Tag(tag) => header.tag() == *tag,
                Freed::Blocks(blocks, _) => blocks.contains(&block),
            },
            life::CACHED => assume.drained,
            life::PENDING => match assume.waited {
                Waited::Nothing => false,
                Waited::All => true,
                Waited::Clocks(waited) => {
                    self.pending.get(&block).is_some_and(|clocks| clocks.iter().all(|clock| waited.contains(clock)))
                }
            },
            _ => false,
        };
        if is_done { Map::lane_serves(state, assume, header.lane()) } else { Use::No }
    }

    fn slab_serves(state: &PoolState, assume: &Assume<'_>, slab: &SlabInfo) -> Use {
        let live_goes = slab.live == 0
            || match &assume.freed {
                Freed::Nothing => false,
                Freed::Tag(tag) => slab.tag == Some(*tag),
                Freed::Blocks(_, by_slab) => by_slab.get(&slab.number) == Some(&slab.live),
            };
        let goes = slab.looked
            && live_goes
            && (slab.cached == 0 || assume.drained)
            && (slab.pending == 0 || assume.waited == Waited::All)
            // Only its address would go: others have the memory.
            && !slab.shares;
        if goes { Map::lane_serves(state, assume, slab.lane) } else { Use::No }
    }

    /// How a range could serve, given what is assumed.
    pub(super) fn serves(&self, pool: &Pool, state: &PoolState, assume: &Assume<'_>, range: &Range) -> Use {
        match range.what {
            What::Free { owner, .. } if Owner(owner) == Owner::SHARED => Use::Movable,
            What::Free { owner, passed } => match Map::lane_serves(state, assume, owner) {
                // During a capture, what streams have passed is not made everyone's.
                Use::No if state.private.capturing() => Use::No,
                Use::InPlace | Use::No if passed && !state.lanes.is_private(owner) => Use::Movable,
                other => other,
            },
            What::Block(block) => self.block_serves(pool, state, assume, block),
            What::Slab(index) => Map::slab_serves(state, assume, &self.slabs[index]),
        }
    }

    /// Bytes of `[addr, end)` that could be had elsewhere: whole chunks, or the whole of a plain segment.
    pub(super) fn movable(state: &PoolState, range: &Range, addr: u64, end: u64) -> u64 {
        match range.plain {
            Some((start, size)) => {
                if addr == start && end == start + size {
                    size
                } else {
                    0
                }
            }
            None => state.space.fronts(addr, end).map(|(_, _, size)| size).sum(),
        }
    }

    /// What could serve together, given what is assumed.
    pub(super) fn runs(&self, pool: &Pool, state: &PoolState, assume: &Assume<'_>) -> Vec<Run> {
        // A private pool's own memory does not coalesce with what is everyone's, and others' only where the request is, unless it can
        // be waited for.
        let here_only = assume.waited == Waited::Nothing;
        let alone = state.lanes.is_private(assume.lane);
        let mut runs: Vec<Run> = Vec::new();
        let mut open: Option<(Run, Option<u64>)> = None;
        let close = |open: Option<(Run, Option<u64>)>, runs: &mut Vec<Run>| {
            let Some((mut run, from)) = open else { return };
            run.movable += from.map_or(0, |from| Map::movable(state, &self.ranges[run.last], from, run.end));
            runs.push(run);
        };
        for (index, range) in self.ranges.iter().enumerate() {
            let serves = self.serves(pool, state, assume, range);
            let joins = range.joined && !alone && (range.zone == assume.zone || !here_only) && range.zone != DEDICATED;
            if serves == Use::No || !joins {
                close(open.take(), &mut runs);
            }
            if serves == Use::No {
                continue;
            }
            let fresh =
                Run { zone: range.zone, addr: range.addr, end: range.addr, first: index, last: index, movable: 0 };
            let (run, from) = open.get_or_insert((fresh, None));
            match (serves == Use::Movable, *from) {
                (true, None) => *from = Some(range.addr),
                (false, Some(start)) => {
                    run.movable += Map::movable(state, range, start, range.addr);
                    *from = None;
                }
                _ => {}
            }
            (run.end, run.last) = (range.end(), index);
        }
        close(open, &mut runs);
        runs
    }
}
