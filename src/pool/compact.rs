//! Blocks that are moved for owners who follow them. A pass has three steps: places are taken for the blocks that a plan names, the bytes are
//! copied in the order of each block's stream, and the blocks go back, in that order too. Nothing is waited for.
//!
//! A place is either free for the block's lane in stream order, or everyone's; so what is copied there comes after all that used it. The block
//! that goes back is its lane's, whose later users come after the copy.

use std::collections::{BTreeMap, HashMap};

use super::checkpoint::{FreeByAddr, take_range};
use super::directory::{life, node_id, slot_id};
use super::lanes::LaneId;
use super::mesh::Bounds;
use super::{BlockId, DEDICATED, Pool, PoolState, SMALL};
use crate::block::{Node, NodeId, Owner, State, set_bits};
use crate::driver::{CopyOp, Driver, DriverResult};
use crate::error::{Error, Result};
use crate::telemetry::{Event, EventKind};
use crate::units::{DevicePtr, StreamId};

/// Blocks whose bytes are copied with one call.
const BATCH: usize = 256;

/// A block that may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovableBlock {
    pub(crate) addr: u64,
    pub(crate) size: u64,
    pub(crate) lane: LaneId,
    pub(crate) zone: usize,
    pub(crate) alignment: u64,
    /// Whether it is a slot of a slab.
    pub(crate) slot: bool,
}

/// A free range that `lane` may use at once, or anyone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gap {
    pub(crate) addr: u64,
    pub(crate) end: u64,
    pub(crate) zone: usize,
    pub(crate) lane: Option<LaneId>,
}

/// The free slots of a slab.
#[derive(Debug, Clone)]
pub(crate) struct SlabGaps {
    /// Where its first slot is.
    pub(crate) begin: u64,
    /// Bytes a slot.
    pub(crate) size: u64,
    pub(crate) lane: LaneId,
    /// A bit a slot.
    pub(crate) free: Box<[u64]>,
}

/// What a plan is made from. The lists are in the order of addresses.
#[derive(Debug, Default)]
pub(crate) struct CompactView {
    /// First byte and end of each chunk.
    pub(crate) chunks: Vec<(u64, u64)>,
    /// Ranges in use that stay where they are.
    pub(crate) fixed: Vec<(u64, u64)>,
    pub(crate) blocks: Vec<MovableBlock>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) slabs: Vec<SlabGaps>,
}

/// A block, by its index in [`CompactView::blocks`], is to move to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MoveTo {
    pub(crate) block: usize,
    pub(crate) addr: u64,
}

/// A block that is being moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moving {
    pub(crate) from: DevicePtr,
    pub(crate) to: DevicePtr,
    pub(crate) size: u64,
    pub(crate) stream: StreamId,
    old: BlockId,
    new: BlockId,
}

impl Pool {
    /// Takes places for blocks, as `plan` says, out of those at these addresses, each with its alignment. Nothing is in magazines.
    pub(crate) fn begin_moves(
        &self,
        state: &mut PoolState,
        movable: &[(DevicePtr, u64)],
        plan: &dyn Fn(&CompactView) -> Vec<MoveTo>,
    ) -> Result<Vec<Moving>> {
        if state.private.capturing() {
            return Err(Error::Capturing { what: "moving blocks" });
        }
        self.advance(state)?;
        let (view, ids) = self.compact_view(state, movable);
        let moves = plan(&view);
        let mut free: HashMap<LaneId, FreeByAddr> = HashMap::new();
        let slabs: BTreeMap<u64, u32> = state.slabs.iter().map(|(number, _, slab)| (slab.addr, number)).collect();
        let mut moving: Vec<Moving> = Vec::with_capacity(moves.len());
        for MoveTo { block: index, addr } in moves {
            let block = view.blocks[index];
            let taken = if block.slot {
                let (_, &number) = slabs.range(..=addr).next_back().expect("the slot's slab is there");
                let slab = state.slabs.slab(number);
                let slot = slab.slot_at(addr).expect("the slot is one of the slab's");
                let (class, lane) = (slab.class, state.slabs.lane(number));
                let enter = || self.directory.enter_slot(number, slot, addr, class, lane);
                Ok(state.slabs.take_slot(number, slot).then(enter))
            } else {
                self.take_place(state, &mut free, block, addr)
            };
            let new = match taken {
                Ok(Some(new)) => new,
                // The numbers are used up: the block stays where it is.
                Ok(None) => continue,
                Err(error) => {
                    moving.iter().for_each(|moving| self.abort_move(state, moving));
                    return Err(error.into());
                }
            };
            let (header, old) = (self.directory.header(new), self.directory.header(ids[index]));
            header.hand_out(old.requested(), old.tag());
            self.compare_place(state, new);
            // Not live before the move is over, so that nobody frees it.
            header.set_life(life::PENDING);
            self.active.fold(block.size as i64, block.size as i64);
            let (from, to, stream) = (DevicePtr(block.addr), DevicePtr(addr), state.lanes.stream(block.lane));
            moving.push(Moving { from, to, size: block.size, stream, old: ids[index], new });
        }
        Ok(moving)
    }

    /// Takes one particular range for a block of an arena.
    fn take_place(
        &self,
        state: &mut PoolState,
        free: &mut HashMap<LaneId, FreeByAddr>,
        block: MovableBlock,
        addr: u64,
    ) -> DriverResult<Option<BlockId>> {
        for owner in [block.lane, Owner::SHARED.0] {
            let nodes = match free.remove(&owner) {
                Some(nodes) => nodes,
                None => self.free_by_addr(state, &[owner]),
            };
            let nodes = free.entry(owner).or_insert(nodes);
            let Some((zone, node)) = take_range(state, nodes, addr, block.size) else { continue };
            let entered = self.directory.enter_node(zone, node, addr, block.size, block.lane);
            if !matches!(entered, Ok(Some(_))) {
                let stamp = state.lanes.stamp(block.lane);
                state.zones[zone].release(node, Owner(block.lane), stamp);
                free.clear();
            }
            return entered;
        }
        Ok(None)
    }

    /// What is where, and the numbers of the movable blocks.
    fn compact_view(&self, state: &PoolState, movable: &[(DevicePtr, u64)]) -> (CompactView, Vec<BlockId>) {
        let mut view = CompactView::default();
        let mut ids = Vec::new();
        let wanted: HashMap<u64, u64> = movable.iter().map(|&(ptr, alignment)| (ptr.0, alignment)).collect();
        let slabs: HashMap<NodeId, u32> = state.slabs.iter().map(|(number, node, _)| (node, number)).collect();
        let may_move = |id: BlockId| {
            let header = self.directory.header(id);
            let plain =
                header.life() == life::LIVE && !header.is_recorded() && !header.is_dedicated() && !header.is_lent();
            let private = state.lanes.is_private(header.lane());
            wanted.get(&header.ptr().0).copied().filter(|_| plain && !private)
        };
        let mut add = |view: &mut CompactView, id: BlockId, zone: usize, slot: bool| match may_move(id) {
            Some(alignment) => {
                let header = self.directory.header(id);
                let (addr, size, lane) = (header.ptr().0, header.size(), header.lane());
                view.blocks.push(MovableBlock { addr, size, lane, zone, alignment, slot });
                ids.push(id);
            }
            None => {
                let (start, size) = (self.directory.header(id).ptr().0, self.directory.header(id).size());
                view.fixed.push((start, start + size));
            }
        };
        for (zone, arena) in state.zones.iter().enumerate().take(DEDICATED) {
            for head in arena.heads() {
                for id in arena.from(head) {
                    let Node { addr, size, owner, state: node_state, .. } = *arena.node(id);
                    let private = state.lanes.is_private(owner.0);
                    match (node_state, slabs.get(&id).filter(|_| zone == SMALL)) {
                        (State::Used, None) => add(&mut view, node_id(zone, id), zone, false),
                        (State::Used, Some(&number)) if !state.slabs.is_own(number) => {
                            view.fixed.push((addr, addr + size))
                        }
                        (State::Used, Some(&number)) => {
                            let slab = state.slabs.slab(number);
                            let (taken, owned) = (slab.taken(), slab.owned());
                            for slot in set_bits(taken.iter().copied()) {
                                add(&mut view, slot_id(number, slot), zone, true);
                            }
                            let free = owned.iter().zip(&taken).map(|(owned, taken)| owned & !taken).collect();
                            let lane = state.slabs.lane(number);
                            view.slabs.push(SlabGaps { begin: slab.slot_addr(0), size: slab.class.size(), lane, free });
                        }
                        // Part of its memory is served elsewhere: it cannot be emptied.
                        (State::Ghost, _) => view.fixed.push((addr, addr + size)),
                        (State::Free, _) if !private => {
                            let lane = (owner != Owner::SHARED).then_some(owner.0);
                            view.gaps.push(Gap { addr, end: addr + size, zone, lane });
                        }
                        _ => {}
                    }
                }
                let end = arena.from(head).last().map_or(0, |id| arena.node(id).end());
                view.chunks.extend(state.space.fronts(arena.node(head).addr, end).map(|(at, _, size)| (at, at + size)));
            }
        }
        view.chunks.sort_unstable();
        (view, ids)
    }

    /// Copies the bytes of these blocks, those of each stream in its order. Stops after the time that is allowed; gives how many were copied.
    pub(crate) fn copy_moves(&self, moving: &[Moving], start_ns: u64, bounds: Bounds) -> Result<usize> {
        let mut copied = 0;
        for same in moving.chunk_by(|a, b| a.stream == b.stream) {
            for batch in same.chunks(BATCH) {
                if self.driver.clock_ns().saturating_sub(start_ns) >= bounds.time_ns {
                    return Ok(copied);
                }
                let ops: Vec<CopyOp> =
                    batch.iter().map(|&Moving { from, to, size, .. }| CopyOp { dst: to, src: from, size }).collect();
                self.driver.copy(&ops, batch[0].stream)?;
                copied += batch.len();
            }
        }
        Ok(copied)
    }

    /// A block has moved: the old one goes back, in stream order.
    pub(crate) fn finish_move(&self, state: &mut PoolState, moving: &Moving) {
        let (old, new) = (self.directory.header(moving.old), self.directory.header(moving.new));
        let (requested, tag, lane) = (old.requested(), old.tag(), old.lane());
        new.hand_out(requested, tag);
        let freed = if self.would_hold(state, moving.old) { EventKind::FreeDeferred } else { EventKind::Free };
        for (kind, ptr) in [(freed, moving.from), (EventKind::Alloc, moving.to)] {
            self.ring.push(Event::new(kind, ptr, requested).on(state.lanes.stream(lane), None).tag(tag));
        }
        if self.retire(state, moving.old) {
            self.active.fold(-(moving.size as i64), 0);
        }
        // Whatever was written to the red zone has been found in the old one: the copy of it is drawn over.
        self.watch_alloc(state, moving.new);
    }

    /// A block has not moved: its new place goes back, in stream order, since the copy may be on its way.
    pub(crate) fn abort_move(&self, state: &mut PoolState, moving: &Moving) {
        self.active.fold(-(moving.size as i64), 0);
        self.put_back(state, moving.new);
    }
}
