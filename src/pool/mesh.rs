//! Slabs of one class whose live slots lie at different places of their pages come to share one page's memory: the live slots of one are copied
//! to the same places of the other, and both addresses are mapped to one chunk. Pointers stay what they were.
//!
//! Nothing may touch either page meanwhile, which is why this happens only where a caller asks for it and promises so
//! ([`Quiescent::defragment`](crate::Quiescent::defragment)). Free slots of a private pool are left alone: its graphs write to them when they
//! are replayed.
//!
//! A slot of shared memory is owned by one slab of the group, and only that one hands it out. When such a slab is empty, its address goes, and
//! its slots are another one's; with the last but one, the group is no more. When all slots are taken, further requests get pages of
//! their own: nothing is ever copied back.

use std::collections::HashMap;

use super::slabs::FreedSlab;
use super::{Pool, PoolState, SMALL};
use crate::block::{Owner, Slab, set_bits};
use crate::driver::{CopyOp, Driver, DriverResult};
use crate::error::{Error, Result};
use crate::telemetry::EventKind;
use crate::units::{DevicePtr, PAGE, StreamId};

/// The slabs of one page of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MeshPage {
    /// The class of its slots, by number.
    pub(crate) class: usize,
    /// How many slabs share it already.
    pub(crate) members: usize,
    /// How many may.
    pub(crate) members_max: usize,
    /// How many slots it has.
    pub(crate) slots: u32,
    /// Those that are taken, a bit each.
    pub(crate) taken: Box<[u64]>,
}

/// Pages, by their index, that are to share the memory of the first.
pub(crate) type MeshSet = Vec<usize>;

/// What a pass may do at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes: u64,
    /// On the driver's clock.
    pub(crate) time_ns: u64,
}

/// What meshing did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Meshed {
    /// Pages with slabs that were looked at.
    pub(crate) pages: u64,
    /// Pages that share another's memory now.
    pub(crate) meshed: u64,
    /// Chunks of larger blocks, used in part, that were looked at.
    pub(crate) chunks: u64,
    /// Those of them that share another's memory now.
    pub(crate) paired: u64,
    /// Bytes copied.
    pub(crate) copied: u64,
    /// Bytes given back to the device.
    pub(crate) released: u64,
}

/// Addresses that one page of small blocks may have.
const MEMBERS_MAX: usize = 16;
/// Pages that are copied before the copies are waited for.
const BATCH: usize = 64;

impl Pool {
    /// Lets pages of slabs share memory as `plan` says. Nothing is in magazines, and no work that touches the pool's memory is unfinished, or
    /// will be submitted meanwhile. Where the driver fails, what was done before stands, and the page it failed for is as it was.
    pub(crate) fn mesh(
        &self,
        state: &mut PoolState,
        plan: &dyn Fn(&[MeshPage]) -> Vec<MeshSet>,
        bounds: Bounds,
    ) -> Result<Meshed> {
        if state.private.capturing() {
            return Err(Error::Capturing { what: "letting pages share memory" });
        }
        let start = self.driver.clock_ns();
        self.settle(state)?;
        self.unshare_passed(state)?;
        // A chunk with older mappings could not be given back.
        self.retire_ghosts(state, usize::MAX);
        // Free slots will show what is live at another address.
        self.forget_contents(state, 0, u64::MAX);
        let (numbers, pages) = self.mesh_pages(state);
        let mut meshed = Meshed { pages: pages.len() as u64, ..Meshed::default() };
        let (mut pairs, mut bytes) = (Vec::new(), 0);
        let shared = state.slabs.shared_pages() as usize;
        let room = (self.directory.sharing_max() as usize).saturating_sub(shared);
        for set in plan(&pages) {
            for &page in &set[1..] {
                bytes += state.slabs.slab(numbers[page]).taken_bytes();
                if bytes <= bounds.bytes && pairs.len() < room {
                    pairs.push((numbers[set[0]], numbers[page]));
                }
            }
        }
        let reserve = state.space.reserve_bytes();
        let mut done = Ok(());
        for batch in pairs.chunks(BATCH) {
            if done.is_ok() && self.driver.clock_ns().saturating_sub(start) < bounds.time_ns {
                done = self.mesh_batch(state, batch, &mut meshed);
            }
        }
        if done.is_ok() {
            done = self.mesh_chunks(state, plan, (start, bounds), &mut meshed);
        }
        meshed.released = state.space.release_reserve(reserve);
        Ok(done.map(|()| meshed)?)
    }

    /// The pages of slabs that may share memory, each with the number of one of its slabs.
    fn mesh_pages(&self, state: &PoolState) -> (Vec<u32>, Vec<MeshPage>) {
        let mut by_group: HashMap<u32, usize> = HashMap::new();
        let (mut numbers, mut pages): (Vec<u32>, Vec<MeshPage>) = (Vec::new(), Vec::new());
        for (number, lane, group, slab) in state.slabs.sharable() {
            let taken = slab.taken();
            if let Some(&at) = group.and_then(|group| by_group.get(&group)) {
                pages[at].members += 1;
                pages[at].taken.iter_mut().zip(&taken).for_each(|(all, taken)| *all |= taken);
                continue;
            }
            let private = state.lanes.is_private(lane);
            if !private && (group.is_some() || state.space.is_front(slab.addr, PAGE)) {
                by_group.extend(group.map(|group| (group, pages.len())));
                numbers.push(number);
                let (class, slots) = (slab.class.index(), slab.class.slots());
                pages.push(MeshPage { class, members: 1, members_max: MEMBERS_MAX, slots, taken });
            }
        }
        (numbers, pages)
    }

    /// Lets the second of each pair share the memory of the first.
    fn mesh_batch(&self, state: &mut PoolState, pairs: &[(u32, u32)], meshed: &mut Meshed) -> DriverResult<()> {
        let copies = |&(keep, give): &(u32, u32)| copies(state.slabs.slab(keep).addr, state.slabs.slab(give));
        let ops: Vec<CopyOp> = pairs.iter().flat_map(copies).collect();
        // Any stream will do, since nothing is unfinished on any; this one cannot have been destroyed. The wait is for the sources, which are
        // unmapped; and whatever is done with the copies comes after it.
        let copied = self.driver.copy(&ops, StreamId::DEFAULT);
        let copied = copied.and_then(|()| self.driver.synchronize_stream(StreamId::DEFAULT));
        if copied.is_err() && self.driver.synchronize_device().is_err() {
            for &(keep, give) in pairs {
                let pages = state.slabs.members(keep);
                state.slabs.freeze(&pages);
                state.slabs.freeze(&[give]);
            }
        }
        copied?;
        for &(keep, give) in pairs {
            let (kept, given) = (state.slabs.slab(keep).addr, state.slabs.slab(give).addr);
            if let Err(error) = state.space.share(kept, given) {
                if state.space.is_broken(given) {
                    state.slabs.freeze(&[give]);
                }
                return Err(error);
            }
            meshed.copied += state.slabs.slab(give).taken_bytes();
            state.slabs.join(keep, give);
            meshed.meshed += 1;
        }
        Ok(())
    }

    /// Slabs that are empty and share a page leave it, as far as their streams have passed what was freed there; so with larger chunks.
    pub(super) fn unshare_passed(&self, state: &mut PoolState) -> DriverResult<()> {
        self.part_pairs(state)?;
        while let Some(leaver) = state.slabs.leaver(|lane, stamp| state.lanes.has_passed(lane, stamp)) {
            if let Some(heir) = leaver.heir {
                state.space.unshare(leaver.addr, heir)?;
            }
            let Some((FreedSlab { node, lane }, stamp)) = state.slabs.leave(leaver.number) else { break };
            let home = state.zones[SMALL].node(node).home;
            let node = state.zones[SMALL].release(node, Owner(lane), stamp);
            if leaver.heir.is_some() {
                state.zones[SMALL].punch(node, leaver.addr, PAGE);
                self.note_mapping(state, EventKind::Unmap, home, leaver.addr, PAGE);
            }
        }
        Ok(())
    }
}

/// The copies of a slab's live slots to the same places of another page. Neighbours are one copy.
fn copies(keep: u64, give: &Slab) -> Vec<CopyOp> {
    let (taken, size) = (give.taken(), give.class.size());
    let mut ops: Vec<CopyOp> = Vec::new();
    for slot in set_bits(taken) {
        let at = u64::from(slot) * size;
        match ops.last_mut() {
            Some(last) if last.src.0 + last.size == give.addr + at => last.size += size,
            _ => ops.push(CopyOp { dst: DevicePtr(keep + at), src: DevicePtr(give.addr + at), size }),
        }
    }
    ops
}
