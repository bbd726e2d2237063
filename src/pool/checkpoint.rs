//! Checkpoints of private pools: which blocks were live, and making exactly those live again. What PyTorch's trees of graphs need: before a
//! graph is recorded, the pool has to be as it was when the graph before it had run, whichever tensors have come and gone since.

use super::directory::{Key, life, node_id, slot_id};
use super::ladder::Kind;
use super::{BlockId, DEDICATED, LARGE, PERSISTENT, Pool, PoolState, SMALL};
use crate::block::{ClassId, Owner};
use crate::driver::DriverError;
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

impl Pool {
    /// The live blocks of a private pool. Magazines hold none of its blocks.
    pub(crate) fn checkpoint(&self, state: &PoolState, pool: PoolId, device_number: u64) -> Result<Checkpoint> {
        state.private.check_exists(pool)?;
        let in_use = self.in_use(state, &state.lanes.of_pool(pool));
        let live = in_use.into_iter().map(|(block, slab)| (self.directory.header(block), slab));
        let live = live.filter(|(header, _)| header.life() == life::LIVE);
        let save = |(header, slab): (&super::Header, _)| Saved {
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
        Ok(Checkpoint { pool, device_number, blocks })
    }

    /// Makes exactly the blocks of a checkpoint live. Returns what was live before, and what is after. Magazines hold none of the pool's blocks.
    pub(crate) fn restore(&self, state: &mut PoolState, to: &Checkpoint) -> Result<(Vec<Moved>, Vec<Moved>)> {
        state.private.check_exists(to.pool)?;
        if !state.private.capturing() {
            self.advance_pending(state)?;
        }
        let in_use = self.in_use(state, &state.lanes.of_pool(to.pool));
        if in_use.iter().any(|&(block, _)| self.directory.header(block).life() == life::PENDING) {
            return Err(Error::UnknownPool {
                pool: to.pool,
                what: "has blocks that wait for streams: synchronise them first",
            });
        }
        let wanted = |ptr: DevicePtr, size: u64| {
            let at = to.blocks.binary_search_by_key(&ptr, |saved| saved.ptr);
            at.is_ok_and(|at| to.blocks[at].size == size)
        };
        let mut before = Vec::new();
        for (block, _) in in_use {
            let header = self.directory.header(block);
            let (ptr, key, requested, tag) = (header.ptr(), header.key(), header.requested(), header.tag());
            let stays = wanted(ptr, key.bytes());
            before.push(Moved { ptr, key, requested, tag, stays });
            if !stays {
                self.put_back(state, block);
            }
        }
        // Pages of slabs that were begun since are in the way.
        for retired in state.slabs.retire_empty() {
            state.put_page(retired);
        }
        let mut after = Vec::new();
        for saved in &to.blocks {
            let stays = before.iter().any(|moved| moved.ptr == saved.ptr && moved.stays);
            let block =
                if stays { self.containing(state, saved.ptr.0) } else { self.take_again(state, to.pool, saved)? };
            // Nobody else gets a private pool's memory, and nothing of it is given up while the pool exists.
            let Some(block) = block else { return Err(Error::UnknownPool { pool: to.pool, what: "has lost memory" }) };
            let header = self.directory.header(block);
            if !stays {
                header.hand_out(saved.requested, saved.tag);
                if saved.dedicated {
                    header.mark_dedicated();
                }
            }
            after.push(Moved { ptr: saved.ptr, key: header.key(), requested: saved.requested, tag: saved.tag, stays });
        }
        Ok((before, after))
    }

    /// Takes one particular block out of the free memory of its lane.
    fn take_again(
        &self,
        state: &mut PoolState,
        pool: PoolId,
        saved: &Saved,
    ) -> std::result::Result<Option<BlockId>, DriverError> {
        let Some(lane) = state.lanes.existing(saved.stream, pool) else { return Ok(None) };
        let Some((page, class)) = saved.slab else {
            for zone in [SMALL, LARGE, PERSISTENT, DEDICATED] {
                if let Some(node) = state.zones[zone].take_at(Owner(lane), saved.ptr.0, saved.size) {
                    self.directory.enter_node(zone, node, saved.ptr.0, saved.size, lane)?;
                    return Ok(Some(node_id(zone, node)));
                }
            }
            return Ok(None);
        };
        let slot = ((saved.ptr.0 - page) / class.size()) as u32;
        let known = state.slabs.iter().find(|&(_, _, slab)| slab.addr == page && slab.class == class);
        let number = match known.map(|(number, _, _)| number) {
            Some(number) => number,
            None => {
                let Some(node) = state.zones[SMALL].take_at(Owner(lane), page, PAGE) else { return Ok(None) };
                let want = super::Want { lane, kind: Kind::Slot(class), may_grow: false };
                // Takes the first slot along, which goes back at once.
                let Some(first) = self.enter(state, want, node)? else { return Ok(None) };
                let Some((number, _, _)) = state.slabs.iter().find(|&(_, _, slab)| slab.addr == page) else {
                    return Ok(None);
                };
                self.put_back(state, first);
                number
            }
        };
        Ok(state.slabs.take_slot(number, slot).then(|| slot_id(number, slot)))
    }
}
