//! A pool's memory, read from end to end. In time proportional to its blocks; nothing that is on the way of a request.

use std::collections::{HashMap, HashSet};

use super::directory::{Header, life, node_id, slot_id};
use super::lanes::LaneId;
use super::{BlockId, Pool, PoolState, SMALL};
use crate::block::{Arena, ClassId, Node, NodeId, Slab, State, set_bits};
use crate::telemetry::{BlockInfo, BlockState, SegmentInfo};
use crate::units::{DevicePtr, PAGE};

/// The slabs of a pool by the node that each lies in.
type SlabsByNode<'a> = HashMap<NodeId, (u32, &'a Slab)>;

impl Pool {
    /// All memory behind addresses: each stretch without a hole is a segment.
    pub(crate) fn segments(&self, state: &PoolState) -> Vec<SegmentInfo> {
        let slabs: SlabsByNode<'_> = state.slabs.iter().map(|(number, node, slab)| (node, (number, slab))).collect();
        let mut segments = Vec::new();
        for (zone, arena) in state.zones.iter().enumerate() {
            for head in arena.heads() {
                let mut open: Option<SegmentInfo> = None;
                for id in arena.from(head) {
                    let node = arena.node(id);
                    if matches!(node.state, State::Hole | State::Ghost) {
                        segments.extend(open.take());
                        continue;
                    }
                    let segment = open.get_or_insert_with(|| SegmentInfo {
                        ptr: DevicePtr(node.addr),
                        size: 0,
                        aliased: 0,
                        stream: state.lanes.stream(node.home.0),
                        pool: state.lanes.get(node.home.0).private,
                        large: zone != SMALL,
                        expandable: state.space.plain_segment(arena.node(head).addr).is_none(),
                        blocks: Vec::new(),
                    });
                    match slabs.get(&id).filter(|_| zone == SMALL && node.state == State::Used) {
                        Some(&(number, slab)) => {
                            self.push_slots(state, segment, number, slab);
                            let aliased = state.space.is_shared(slab.addr) && !state.slabs.is_own(number);
                            segment.aliased += if aliased { PAGE } else { 0 };
                        }
                        None => self.push_node(state, segment, zone, id, node),
                    }
                }
                segments.extend(open);
            }
        }
        segments.extend(self.extent_segments(state));
        segments.sort_unstable_by_key(|segment| segment.ptr);
        segments
    }

    /// Whether every large block in the hands of a caller is found by its address.
    pub(super) fn validate_directory(&self, state: &PoolState) -> Result<(), String> {
        for (zone, arena) in state.zones.iter().enumerate() {
            for id in arena.used().map(|node| node_id(zone, node)) {
                let header = self.directory.header(id);
                let found = self.directory.find(header.ptr()).map(|(id, _)| id);
                if header.check_live().is_ok() && found != Some(id) {
                    return Err(format!("block {id} at {:?} is live, its address leads to {found:?}", header.ptr()));
                }
            }
        }
        Ok(())
    }

    /// Whether every slab has the memory that its node has, and every slot of it in the hands of a caller is found by its address.
    pub(super) fn validate_slabs(&self, state: &PoolState) -> Result<(), String> {
        for (number, node, slab) in state.slabs.iter() {
            let Node { addr, size, state: node_state, .. } = *state.zones[SMALL].node(node);
            if (node_state, addr, size) != (State::Used, slab.addr, slab.size) {
                return Err(format!("slab {number} of {} bytes at {:#x} lies in node {node}", slab.size, slab.addr));
            }
            if state.lanes.is_private(state.slabs.lane(number)) && !slab.is_whole() {
                return Err(format!("slab {number} of a private pool is a part of a page"));
            }
            for slot in set_bits(slab.taken()) {
                let (id, ptr) = (slot_id(number, slot), DevicePtr(slab.slot_addr(slot)));
                let found = self.directory.find(ptr).map(|(id, _)| id);
                if self.directory.header(id).check_live().is_ok() && found != Some(id) {
                    return Err(format!(
                        "slot {slot} of slab {number} is live, its address {ptr:?} leads to {found:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn push_node(&self, state: &PoolState, segment: &mut SegmentInfo, zone: usize, id: NodeId, node: &Node) {
        if node.state == State::Used {
            segment.push(self.describe(state, self.directory.header(node_id(zone, id))));
        } else {
            segment.push(free(segment, node.addr, node.size));
        }
    }

    fn push_slots(&self, state: &PoolState, segment: &mut SegmentInfo, number: u32, slab: &Slab) {
        let lane = state.slabs.lane(number);
        let mut at = slab.addr;
        for slot in 0..slab.places() {
            let addr = slab.slot_addr(slot);
            if at < addr {
                segment.push(free(segment, at, addr - at));
            }
            // One that was never taken has not been entered yet.
            let block = self.directory.enter_slot(number, slot, addr, slab.class, lane);
            segment.push(self.describe(state, self.directory.header(block)));
            at = addr + slab.class.size();
        }
        if at < slab.end() {
            segment.push(free(segment, at, slab.end() - at));
        }
    }

    /// A block by its header.
    pub(crate) fn describe(&self, state: &PoolState, header: &Header) -> BlockInfo {
        let block_state = match header.life() {
            life::LIVE => BlockState::Live,
            life::PENDING => BlockState::Pending,
            _ => BlockState::Free,
        };
        let is_free = block_state == BlockState::Free;
        BlockInfo {
            ptr: header.ptr(),
            size: header.size(),
            requested: if is_free { 0 } else { header.requested() },
            state: block_state,
            stream: state.lanes.stream(header.lane()),
            pool: state.lanes.get(header.lane()).private,
            tag: if is_free { 0 } else { header.tag() },
            dedicated: !is_free && header.is_dedicated(),
        }
    }

    /// The block, in whatever state, that contains an address.
    pub(crate) fn containing(&self, state: &PoolState, addr: u64) -> Option<BlockId> {
        if let Some((block, header)) = self.directory.find(DevicePtr(addr))
            && header.check_live().is_ok()
        {
            return Some(block);
        }
        let (zone, node) =
            state.zones.iter().enumerate().find_map(|(zone, arena)| Some((zone, arena.used_at(addr)?)))?;
        let slab = state.slabs.iter().find(|&(_, in_node, _)| zone == SMALL && in_node == node);
        match slab {
            None => Some(node_id(zone, node)),
            Some((number, _, slab)) => {
                let slot = slab.slot_at(addr)?;
                let lane = state.slabs.lane(number);
                Some(self.directory.enter_slot(number, slot, slab.slot_addr(slot), slab.class, lane))
            }
        }
    }

    /// The lanes that blocks belong to which are not in the bins.
    pub(super) fn lanes_of_blocks(&self, state: &PoolState) -> HashSet<LaneId> {
        let slabs: HashMap<NodeId, LaneId> = state.slabs.lanes().collect();
        let lane_of = |zone: usize, id: NodeId| match slabs.get(&id).filter(|_| zone == SMALL) {
            Some(&lane) => lane,
            None => self.directory.header(node_id(zone, id)).lane(),
        };
        let zones = state.zones.iter().enumerate();
        zones
            .flat_map(|(zone, arena)| arena.used().map(move |id| (zone, id)))
            .map(|(zone, id)| lane_of(zone, id))
            .collect()
    }

    /// Every block of these lanes that is not free, with the class and page of its slab if it is a slot.
    pub(super) fn in_use(&self, state: &PoolState, lanes: &[LaneId]) -> Vec<(BlockId, Option<(u64, ClassId)>)> {
        let is_in_use = |block: BlockId| {
            let header = self.directory.header(block);
            matches!(header.life(), life::LIVE | life::PENDING) && lanes.contains(&header.lane())
        };
        let mut found = Vec::new();
        let mut slab_nodes = Vec::new();
        for (number, node, slab) in state.slabs.iter() {
            slab_nodes.push(node);
            let slots = (0..slab.places()).map(|slot| slot_id(number, slot));
            found.extend(slots.filter(|&slot| is_in_use(slot)).map(|slot| (slot, Some((slab.addr, slab.class)))));
        }
        slab_nodes.sort_unstable();
        for (zone, arena) in state.zones.iter().enumerate() {
            let is_slab = |id: &NodeId| zone == SMALL && slab_nodes.binary_search(id).is_ok();
            let used = Arena::used(arena).filter(|id| !is_slab(id)).map(|id| node_id(zone, id));
            found.extend(used.filter(|&block| is_in_use(block)).map(|block| (block, None)));
        }
        found
    }
}

fn free(segment: &SegmentInfo, addr: u64, size: u64) -> BlockInfo {
    let (stream, pool) = (segment.stream, segment.pool);
    let (ptr, state) = (DevicePtr(addr), BlockState::Free);
    BlockInfo { ptr, size, requested: 0, state, stream, pool, tag: 0, dedicated: false }
}
