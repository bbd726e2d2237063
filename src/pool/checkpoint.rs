//! Checkpoints of private pools: which blocks were live, and making exactly those live again. What PyTorch's trees of graphs need: before a
//! graph is recorded, the pool has to be as it was when the graph before it had run, whichever tensors have come and gone since.

use std::collections::{BTreeMap, HashMap};

use super::directory::{Header, life, node_id};
use super::key::Key;
use super::lanes::LaneId;
use super::{BlockId, Pool, PoolState, SMALL};
use crate::block::{ClassId, NodeId, Owner};
use crate::driver::DriverResult;
use crate::error::{Error, Result};
use crate::units::{DevicePtr, PAGE, PoolId, StreamId};

/// One live block of a checkpoint.
#[derive(Debug, Clone, Copy)]
struct Saved {
    ptr: DevicePtr,
    size: u64,
    requested: u64,
    tag: u8,
    stream: StreamId,
    dedicated: bool,
    /// Page and class of the slab, if it is a slot.
    slab: Option<(u64, ClassId)>,
}

/// The live blocks of a private pool at one time, from [`Allocator::checkpoint`](crate::Allocator::checkpoint).
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub(crate) pool: PoolId,
    /// Of the device cache that it is of.
    pub(crate) device_number: u64,
    /// Of the pool: another one may have its number now.
    birth: u64,
    blocks: Vec<Saved>,
}

impl Checkpoint {
    /// The pool that it is of.
    pub fn pool(&self) -> PoolId {
        self.pool
    }

    /// The addresses and sizes of the blocks.
    pub fn blocks(&self) -> impl Iterator<Item = (DevicePtr, u64)> + '_ {
        self.blocks.iter().map(|saved| (saved.ptr, saved.size))
    }
}

/// What restoring a checkpoint freed or handed out, for the counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) ptr: DevicePtr,
    pub(crate) key: Key,
    pub(crate) requested: u64,
    pub(crate) tag: u8,
    /// Whether the block was, or is, the same before and after.
    pub(crate) stays: bool,
}

impl Saved {
    /// What has to be free, so that the block can be taken again: the whole page of a slot's slab, unless that is there.
    fn range(&self, slabs: &SlabsByPage) -> (u64, u64) {
        match self.slab {
            Some((page, class)) if slabs.get(&page).is_none_or(|&(_, other)| other != class) => (page, page + PAGE),
            _ => (self.ptr.0, self.ptr.0 + self.size),
        }
    }
}

/// Slabs by their page's address: number and class.
type SlabsByPage = HashMap<u64, (u32, ClassId)>;
/// A pool's free nodes by address.
pub(super) type FreeByAddr = BTreeMap<u64, (usize, NodeId)>;
/// What is in the way: its end, and the page and class of its slab.
type Obstacle = (u64, Option<(u64, ClassId)>);
/// By address.
type Obstacles = BTreeMap<u64, Obstacle>;

impl Pool {
    /// The live blocks of a private pool. No magazine holds blocks of it. What it has lent is somebody else's.
    pub(crate) fn checkpoint(&self, state: &PoolState, pool: PoolId, device_number: u64) -> Result<Checkpoint> {
        let birth = state.private.birth(pool)?;
        let in_use = self.in_use(state, &state.lanes.of_pool(pool));
        let live = in_use.into_iter().map(|(block, slab)| (self.directory.header(block), slab));
        let live = live.filter(|(header, _)| header.life() == life::LIVE && !header.is_lent());
        let save = |(header, slab): (&Header, _)| Saved {
            ptr: header.ptr(),
            size: header.size(),
            requested: header.requested(),
            tag: header.tag(),
            dedicated: header.is_dedicated(),
            stream: state.lanes.stream(header.lane()),
            slab,
        };
        let mut blocks: Vec<Saved> = live.map(save).collect();
        blocks.sort_unstable_by_key(|saved| saved.ptr);
        Ok(Checkpoint { pool, device_number, birth, blocks })
    }

    /// Makes exactly the blocks of a checkpoint live. Returns what was live before, and what is after. No magazine holds blocks of the pool, and
    /// no thread is inside its gate. All that can stand in the way is looked for before anything is changed.
    pub(crate) fn restore(&self, state: &mut PoolState, to: &Checkpoint) -> Result<(Vec<Moved>, Vec<Moved>)> {
        let refuse = |what| Err(Error::UnknownPool { pool: to.pool, what });
        if state.private.birth(to.pool)? != to.birth {
            return refuse("was released since the checkpoint");
        }
        if !state.private.capturing() {
            self.advance_pending(state)?;
        }
        let lanes = state.lanes.of_pool(to.pool);
        let slabs = self.slabs_by_page(state);
        let wanted: HashMap<DevicePtr, u64> = to.blocks.iter().map(|saved| (saved.ptr, saved.size)).collect();
        let (mut before, mut leaving, mut there) = (Vec::new(), Vec::new(), HashMap::new());
        let mut obstacles = Obstacles::new();
        for (block, slab) in self.in_use(state, &lanes) {
            let header = self.directory.header(block);
            let (ptr, key, requested, tag) = (header.ptr(), header.key(), header.requested(), header.tag());
            if header.is_lent() || header.life() == life::PENDING {
                obstacles.insert(ptr.0, (ptr.0 + key.bytes(), slab));
                continue;
            }
            let stays = wanted.get(&ptr) == Some(&key.bytes());
            before.push(Moved { ptr, key, requested, tag, stays });
            if stays {
                there.insert(ptr, block);
            } else if header.is_recorded() {
                return refuse("has blocks to free that other streams were recorded for");
            } else {
                leaving.push(block);
            }
        }
        let mut missing = to.blocks.iter().filter(|saved| !there.contains_key(&saved.ptr));
        if missing.any(|saved| is_in_the_way(&obstacles, saved, &slabs)) {
            return refuse("has blocks in the way that wait for streams, or that it has lent");
        }
        let nodes = state.zones.iter().map(|zone| zone.node_count()).max().unwrap_or(0);
        let room_for_nodes = nodes + 2 * to.blocks.len() < self.directory.nodes_max() as usize;
        if !room_for_nodes || state.slabs.count() as usize + to.blocks.len() >= self.directory.slabs_max() as usize {
            return refuse("has too many blocks");
        }
        for block in leaving {
            self.put_back(state, block);
        }
        // Pages of slabs that were begun since are in the way.
        for retired in state.slabs.retire_empty() {
            state.put_slab(retired);
        }
        let mut free = self.free_by_addr(state, &lanes);
        let mut slabs = self.slabs_by_page(state);
        let mut after = Vec::with_capacity(to.blocks.len());
        for saved in &to.blocks {
            let stays = there.get(&saved.ptr).copied();
            let block = match stays {
                Some(block) => block,
                None => match self.take_again(state, to.pool, saved, &mut free, &mut slabs)? {
                    Some(block) => block,
                    // Nobody else gets a private pool's memory, and nothing of it is given up while it has users.
                    None => return refuse("has lost memory"),
                },
            };
            let header = self.directory.header(block);
            if stays.is_none() {
                header.hand_out(saved.requested, saved.tag);
                if saved.dedicated {
                    header.mark_dedicated();
                }
            }
            let (key, requested, tag) = (header.key(), saved.requested, saved.tag);
            after.push(Moved { ptr: saved.ptr, key, requested, tag, stays: stays.is_some() });
        }
        Ok((before, after))
    }

    fn slabs_by_page(&self, state: &PoolState) -> SlabsByPage {
        // Private pools have whole pages.
        let pages = state.slabs.iter().filter(|(_, _, slab)| slab.is_whole());
        pages.map(|(number, _, slab)| (slab.addr, (number, slab.class))).collect()
    }

    pub(super) fn free_by_addr(&self, state: &PoolState, lanes: &[LaneId]) -> FreeByAddr {
        let mut free = FreeByAddr::new();
        for (zone, arena) in state.zones.iter().enumerate() {
            for &lane in lanes {
                free.extend(arena.free_nodes(Owner(lane)).map(|(id, node)| (node.addr, (zone, id))));
            }
        }
        free
    }

    /// Takes one particular block out of the pool's free memory.
    fn take_again(
        &self,
        state: &mut PoolState,
        pool: PoolId,
        saved: &Saved,
        free: &mut FreeByAddr,
        slabs: &mut SlabsByPage,
    ) -> DriverResult<Option<BlockId>> {
        let Some(lane) = state.lanes.existing(saved.stream, pool) else { return Ok(None) };
        let Some((page, class)) = saved.slab else {
            let Some((zone, node)) = take_range(state, free, saved.ptr.0, saved.size) else { return Ok(None) };
            self.directory.enter_node(zone, node, saved.ptr.0, saved.size, lane)?;
            return Ok(Some(node_id(zone, node)));
        };
        let number = match slabs.get(&page).filter(|&&(_, other)| other == class) {
            Some(&(number, _)) => number,
            None => {
                let Some((SMALL, node)) = take_range(state, free, page, PAGE) else { return Ok(None) };
                let number = state.slabs.next_number();
                self.directory.enter_slab(number, page, PAGE, class)?;
                state.slabs.add(page, PAGE, class, lane, node);
                slabs.insert(page, (number, class));
                number
            }
        };
        let slot = ((saved.ptr.0 - page) / class.size()) as u32;
        let enter = || self.directory.enter_slot(number, slot, saved.ptr.0, class, lane);
        Ok(state.slabs.take_slot(number, slot).then(enter))
    }
}

/// Whether one of the obstacles keeps the block from being taken again. A slot is in the way of others of its slab only where it lies.
fn is_in_the_way(obstacles: &Obstacles, saved: &Saved, slabs: &SlabsByPage) -> bool {
    let (start, end) = saved.range(slabs);
    let in_way = |(&at, &(until, slab)): (&u64, &Obstacle)| {
        let (at, until) = match slab {
            Some((page, _)) if slab != saved.slab => (page, page + PAGE),
            _ => (at, until),
        };
        at < end && start < until
    };
    // Obstacles do not overlap: of those that start below, only the last can reach here, or slots of the same page.
    let before = obstacles.range(..start).next_back();
    obstacles.range(start.saturating_sub(PAGE)..end + PAGE).chain(before).any(in_way)
}

/// Takes a range out of the free node that contains it.
pub(super) fn take_range(
    state: &mut PoolState,
    free: &mut FreeByAddr,
    addr: u64,
    size: u64,
) -> Option<(usize, NodeId)> {
    let (&at, &(zone, id)) = free.range(..=addr).next_back()?;
    let arena = &mut state.zones[zone];
    let (start, end) = (arena.node(id).addr, arena.node(id).end());
    if addr + size > end {
        return None;
    }
    free.remove(&at);
    let taken = arena.take_at(id, addr, size);
    let [left, right] = arena.beside(taken);
    free.extend(left.filter(|_| start < addr).map(|left| (start, (zone, left))));
    free.extend(right.filter(|_| addr + size < end).map(|right| (addr + size, (zone, right))));
    Some((zone, taken))
}
