//! Chunks that are used in part, and that share one chunk's memory because the parts are different ones: the end of one large block and the
//! beginning of another, say. As with slabs, both addresses are mapped to one chunk, and pointers stay what they were.
//!
//! Each byte of the chunk is served at one of the two addresses. At the other one a ghost lies there, so that nobody is given it: free
//! bytes of the address that moved are ghosts, and where it has something in use the other one has ghosts. When nothing is in use at one of the
//! addresses any more, it is unmapped, and the ghosts of the other are free again.

use std::collections::HashMap;

use super::checkpoint::FreeByAddr;
use super::directory::node_id;
use super::mesh::{Bounds, MeshPage, MeshSet, Meshed};
use super::{DEDICATED, Pool, PoolState, SMALL};
use crate::block::{ClassId, Node, NodeId, Owner, State};
use crate::driver::{CopyOp, Driver, DriverResult};
use crate::telemetry::EventKind;
use crate::units::{DevicePtr, GRANULE, PAGE, StreamId};

/// One address of a pair, with the ghosts that lie there.
#[derive(Debug, Clone)]
struct Side {
    zone: usize,
    addr: u64,
    ghosts: Vec<NodeId>,
}

/// Two addresses of one chunk, or of two that are to become one.
#[derive(Debug, Clone)]
struct Pair {
    sides: [Side; 2],
    size: u64,
    /// Whether the memory is shared. Where not, a copy may still run, or an address lacks its memory: the ghosts are there so that nobody gets
    /// what they cover, until that is over.
    shared: bool,
}

/// The chunks of a pool that share memory in pairs.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    list: Vec<Pair>,
}

impl Pairs {
    /// Bytes that ghosts cover: of each pair as many as one of its addresses has.
    pub(super) fn ghost_bytes(&self) -> u64 {
        self.list.iter().map(|pair| pair.size).sum()
    }

    /// Bytes at addresses whose memory is counted at another one.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.list.iter().filter(|pair| pair.shared).map(|pair| pair.size).sum()
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.list.is_empty()
    }

    /// Whether a copy may still run, or an address lacks its memory.
    pub(super) fn any_unfinished(&self) -> bool {
        self.list.iter().any(|pair| !pair.shared)
    }
}

/// A chunk that is used in part.
#[derive(Debug, Clone)]
struct Partial {
    zone: usize,
    addr: u64,
    size: u64,
    /// First byte and end, as offsets in the chunk.
    live: Vec<(u64, u64)>,
    free: Vec<(u64, u64)>,
}

impl Pool {
    /// Lets chunks that are used in part share memory in pairs, as `plan` says; else as [`Pool::mesh`].
    pub(super) fn mesh_chunks(
        &self,
        state: &mut PoolState,
        plan: &dyn Fn(&[MeshPage]) -> Vec<MeshSet>,
        (start_ns, bounds): (u64, Bounds),
        meshed: &mut Meshed,
    ) -> DriverResult<()> {
        let partial = self.partial_chunks(state);
        let pages: Vec<MeshPage> = partial.iter().map(Partial::page).collect();
        meshed.chunks = pages.len() as u64;
        let mut free = self.free_by_addr(state, &[Owner::SHARED.0]);
        for set in plan(&pages) {
            let [keep, give] = [&partial[set[0]], &partial[set[1]]];
            let bytes: u64 = give.live.iter().map(|(from, to)| to - from).sum();
            let late = self.driver.clock_ns().saturating_sub(start_ns) >= bounds.time_ns;
            if late || meshed.copied + bytes > bounds.bytes {
                continue;
            }
            self.pair(state, keep, give, &mut free)?;
            meshed.copied += bytes;
            meshed.paired += 1;
        }
        Ok(())
    }

    /// The chunks that are used in part, and may share memory: all that is free there is everyone's, and all that is used no private pool's.
    fn partial_chunks(&self, state: &PoolState) -> Vec<Partial> {
        let mut found = Vec::new();
        let is_private = |lane: u16| state.lanes.is_private(lane);
        let is_ours = |number| state.slabs.is_own(number) && !is_private(state.slabs.lane(number));
        let slabs: HashMap<NodeId, bool> =
            state.slabs.iter().map(|(number, node, _)| (node, is_ours(number))).collect();
        for (zone, arena) in state.zones.iter().enumerate().take(DEDICATED) {
            for head in arena.heads() {
                let nodes: Vec<NodeId> = arena.from(head).collect();
                let end = nodes.last().map_or(0, |&id| arena.node(id).end());
                let mut at = 0;
                for (addr, _, size) in state.space.fronts(arena.node(head).addr, end) {
                    let mut chunk = Partial { zone, addr, size, live: Vec::new(), free: Vec::new() };
                    // What ends below ends below every later chunk, too.
                    at += nodes[at..].iter().take_while(|&&id| arena.node(id).end() <= addr).count();
                    let inside = nodes[at..].iter().take_while(|&&id| arena.node(id).addr < addr + size);
                    let may_share = inside.copied().all(|id| {
                        let node = arena.node(id);
                        let part = (node.addr.max(addr) - addr, node.end().min(addr + size) - addr);
                        match node.state {
                            State::Free => chunk.free.push(part),
                            _ => chunk.live.push(part),
                        }
                        match (node.state, slabs.get(&id).filter(|_| zone == SMALL)) {
                            (State::Free, _) => node.owner == Owner::SHARED,
                            (State::Used, Some(&is_ours)) => is_ours && !is_private(node.home.0),
                            (State::Used, None) => !is_private(self.directory.header(node_id(zone, id)).lane()),
                            _ => false,
                        }
                    });
                    if may_share && !chunk.live.is_empty() && !chunk.free.is_empty() {
                        found.push(chunk);
                    }
                }
            }
        }
        found
    }

    /// Lets the second chunk share the memory of the first.
    fn pair(&self, state: &mut PoolState, keep: &Partial, give: &Partial, free: &mut FreeByAddr) -> DriverResult<()> {
        // First of all, so that whatever happens nobody is given what is about to be somebody else's.
        let mut sides = [Side::new(keep), Side::new(give)];
        for (side, parts) in sides.iter_mut().zip([&give.live, &give.free]) {
            for &(from, to) in parts {
                let ghost = self.ghost_range(state, free, side.addr + from, to - from);
                side.ghosts.push(ghost);
            }
        }
        let ops: Vec<CopyOp> = (give.live.iter())
            .map(|&(from, to)| CopyOp {
                dst: DevicePtr(keep.addr + from),
                src: DevicePtr(give.addr + from),
                size: to - from,
            })
            .collect();
        let copied = self.driver.copy(&ops, StreamId::DEFAULT);
        let copied = copied.and_then(|()| self.driver.synchronize_stream(StreamId::DEFAULT));
        let running = copied.is_err() && self.driver.synchronize_device().is_err();
        let done = copied.and_then(|()| state.space.share(keep.addr, give.addr));
        state.pairs.list.push(Pair { sides, size: keep.size, shared: done.is_ok() });
        if done.is_err() && !running && !state.space.is_broken(give.addr) {
            self.finish_pairs(state);
        }
        done
    }

    /// Makes a range that is everyone's a ghost.
    fn ghost_range(&self, state: &mut PoolState, free: &mut FreeByAddr, addr: u64, size: u64) -> NodeId {
        let (&at, &(zone, id)) = free.range(..=addr).next_back().expect("the range is free");
        let (start, end) = (state.zones[zone].node(id).addr, state.zones[zone].node(id).end());
        assert!(addr + size <= end, "the range is free");
        free.remove(&at);
        let ghost = state.zones[zone].leave_ghost(id, addr, size);
        let [left, right] = state.zones[zone].beside(ghost);
        free.extend(left.filter(|_| start < addr).map(|left| (start, (zone, left))));
        free.extend(right.filter(|_| addr + size < end).map(|right| (addr + size, (zone, right))));
        let home = state.zones[zone].node(ghost).home;
        self.note_mapping(state, EventKind::Unmap, home, addr, size);
        ghost
    }

    /// Nothing runs any more and all addresses have memory: pairs that came to nothing are given up.
    pub(super) fn finish_pairs(&self, state: &mut PoolState) {
        let (unfinished, rest) = std::mem::take(&mut state.pairs.list).into_iter().partition(|pair| !pair.shared);
        state.pairs.list = rest;
        let unfinished: Vec<Pair> = unfinished;
        unfinished.iter().flat_map(|pair| &pair.sides).for_each(|side| self.revive(state, side));
    }

    /// The ghosts of an address are free, for anyone.
    fn revive(&self, state: &mut PoolState, side: &Side) {
        for &ghost in &side.ghosts {
            let Node { addr, size, home, .. } = *state.zones[side.zone].node(ghost);
            state.zones[side.zone].revive_ghost(ghost, Owner::SHARED, 0, |owner| owner == Owner::SHARED);
            self.note_mapping(state, EventKind::Map, home, addr, size);
        }
    }

    /// Pairs end where nothing is in use any more at one of the addresses, as far as streams have passed what was freed there.
    pub(super) fn part_pairs(&self, state: &mut PoolState) -> DriverResult<()> {
        let mut at = 0;
        while at < state.pairs.list.len() {
            let pair = &state.pairs.list[at];
            let idle = (0..2).find_map(|side| Some((side, self.idle_parts(state, &pair.sides[side], pair.size)?)));
            let Some((leaves, parts)) = idle.filter(|_| pair.shared) else {
                at += 1;
                continue;
            };
            let (leave, heir) = (pair.sides[leaves].addr, pair.sides[1 - leaves].addr);
            state.space.unshare(leave, heir)?;
            let pair = state.pairs.list.swap_remove(at);
            let [left, stays] = [&pair.sides[leaves], &pair.sides[1 - leaves]];
            for (id, addr, size) in parts {
                let home = state.zones[left.zone].node(id).home;
                state.zones[left.zone].punch(id, addr, size);
                self.note_mapping(state, EventKind::Unmap, home, addr, size);
            }
            left.ghosts.iter().for_each(|&ghost| state.zones[left.zone].retire_ghost(ghost));
            self.revive(state, stays);
        }
        Ok(())
    }

    /// The free parts of an address at which nothing else is, if no unfinished work touches any: their nodes, first bytes and sizes.
    fn idle_parts(&self, state: &PoolState, side: &Side, size: u64) -> Option<Vec<(NodeId, u64, u64)>> {
        let arena = &state.zones[side.zone];
        let end = side.addr + size;
        let step = |from: NodeId, forward: bool| {
            std::iter::successors(Some(from), move |&id| arena.beside(id)[usize::from(forward)])
                .take_while(move |&id| side.addr < arena.node(id).end() && arena.node(id).addr < end)
        };
        let &ghost = side.ghosts.first()?;
        let mut parts = Vec::new();
        for id in step(ghost, false).chain(step(ghost, true).skip(1)) {
            let node = arena.node(id);
            let private = state.lanes.is_private(node.owner.0);
            match node.state {
                State::Ghost => {}
                State::Free if !private && state.lanes.has_passed(node.owner.0, node.stamp) => {
                    let (from, to) = (node.addr.max(side.addr), node.end().min(end));
                    parts.push((id, from, to - from));
                }
                _ => return None,
            }
        }
        Some(parts)
    }
}

impl Side {
    fn new(chunk: &Partial) -> Side {
        Side { zone: chunk.zone, addr: chunk.addr, ghosts: Vec::new() }
    }
}

impl Partial {
    /// The chunk as a plan sees it: a slot a granule, a class for each size.
    fn page(&self) -> MeshPage {
        let slots = self.size / GRANULE;
        let mut taken = vec![0u64; (slots as usize).div_ceil(64)].into_boxed_slice();
        for &(from, to) in &self.live {
            for granule in from / GRANULE..to / GRANULE {
                taken[granule as usize / 64] |= 1 << (granule % 64);
            }
        }
        let class = ClassId::COUNT + (self.size / PAGE) as usize;
        MeshPage { class, members: 1, members_max: 2, slots: slots as u32, taken }
    }
}
