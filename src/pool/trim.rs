//! Free chunks: moved to the reserve, from where they go to another address or back to the device.

use super::ladder::{Drain, Magazines};
use super::{DEDICATED, Pool, PoolState};
use crate::block::{Node, NodeId, Owner};
use crate::driver::{Driver, DriverResult};
use crate::error::{Error, Result};
use crate::telemetry::EventKind;
use crate::units::PoolId;

impl Pool {
    /// Unmaps free chunks that no unfinished work touches into the reserve, until `wanted` bytes are there or none is left; those of the
    /// largest free blocks first. Without virtual memory management, plain segments go back to the device. Returns the bytes gained.
    pub(super) fn harvest(&self, state: &mut PoolState, wanted: u64) -> DriverResult<u64> {
        let of_arenas = self.harvest_where(state, wanted, |_, _| true)?;
        Ok(of_arenas + self.vacate_idle(state, wanted.saturating_sub(of_arenas)))
    }

    /// Gives dedicated memory that is free back to the device, up to `wanted` bytes. Returns the bytes given back.
    pub(super) fn release_dedicated(&self, state: &mut PoolState, wanted: u64) -> DriverResult<u64> {
        self.harvest_where(state, wanted, |zone, _| zone == DEDICATED)
    }

    /// [`Pool::harvest`] of the nodes that `wants` names.
    fn harvest_where(
        &self,
        state: &mut PoolState,
        wanted: u64,
        wants: impl Fn(usize, &Node) -> bool,
    ) -> DriverResult<u64> {
        self.retire_empty(state);
        if !state.private.capturing() {
            self.advance(state)?;
        }
        self.unshare_passed(state)?;
        let mut candidates: Vec<(u64, usize, NodeId, u64)> = Vec::new();
        for (zone, arena) in state.zones.iter().enumerate() {
            for owner in arena.owners() {
                let private = state.lanes.is_private(owner.0);
                let free = arena.free_nodes(owner).filter(|(_, node)| !private && wants(zone, node));
                let passed = free.filter(|(_, node)| state.lanes.has_passed(owner.0, node.stamp));
                candidates.extend(passed.map(|(id, node)| (node.size, zone, id, node.addr)));
            }
        }
        candidates.sort_unstable_by_key(|&(bytes, zone, _, addr)| (std::cmp::Reverse(bytes), zone, addr));
        let mut gained = 0;
        for (bytes, zone, id, addr) in candidates {
            if gained >= wanted {
                break;
            }
            let home = state.zones[zone].node(id).home;
            if let Some(whole) = state.space.plain_segment(addr) {
                if whole == bytes {
                    state.space.free_plain(addr)?;
                    state.zones[zone].punch(id, addr, bytes);
                    state.zones[zone].remove_segment(id);
                    self.note_mapping(state, EventKind::Unmap, home, addr, bytes);
                    gained += bytes;
                }
                continue;
            }
            // From the upper end, so that low addresses stay in use. Chunks in a free block lie side by side.
            let mut range: Option<(u64, u64)> = None;
            for (at, _, size) in state.space.fronts(addr, addr + bytes).rev() {
                let end = range.map_or(at + size, |(_, end)| end);
                range = Some((at, end));
                if gained + (end - at) >= wanted {
                    break;
                }
            }
            if let Some((at, end)) = range {
                state.space.withdraw(at, end)?;
                state.zones[zone].punch(id, at, end - at);
                self.note_mapping(state, EventKind::Unmap, home, at, end - at);
                gained += end - at;
            }
        }
        Ok(gained)
    }

    /// Frees the memory of empty slabs. Returns whether there were any.
    pub(super) fn retire_empty(&self, state: &mut PoolState) -> bool {
        let parted = state.slabs.empty_leave(|lane| state.lanes.stamp(lane));
        self.retire_empty_own(state) || parted
    }

    /// Frees the memory of empty slabs that have theirs to themselves. Returns whether there were any.
    pub(super) fn retire_empty_own(&self, state: &mut PoolState) -> bool {
        let retired = state.slabs.retire_empty();
        retired.iter().for_each(|&retired| state.put_slab(retired));
        !retired.is_empty()
    }

    /// Waits until the streams have passed everything that was freed on them; then it is everyone's. Returns whether that changed anything.
    pub(super) fn settle(&self, state: &mut PoolState) -> DriverResult<bool> {
        if state.slabs.any_frozen() || state.pairs.any_unfinished() {
            self.driver.synchronize_device()?;
            state.space.heal()?;
            state.slabs.thaw();
            self.finish_pairs(state);
        }
        self.retire_empty(state);
        let mut waited = !state.dissolved.is_empty();
        if waited {
            // Replays of a graph ran on streams that nobody told of: only the whole device is certain.
            self.driver.synchronize_device()?;
        }
        let PoolState { lanes, events, .. } = &mut *state;
        for clock in lanes.clocks.iter_mut().filter(|clock| !clock.is_settled()) {
            clock.wait(&*self.driver, events)?;
            waited = true;
        }
        self.finish_pending(state);
        if self.retire_empty(state) | state.is_watched() {
            // What waited brought slabs home, whose pages are freed only now; or debug aids have worked on it.
            let PoolState { lanes, events, .. } = &mut *state;
            for clock in lanes.clocks.iter_mut().filter(|clock| !clock.is_settled()) {
                clock.wait(&*self.driver, events)?;
            }
        }
        // After all that was freed on these lanes has come home, with stamps that no clock passes.
        for lane in std::mem::take(&mut state.dissolved) {
            state.lanes.open(lane);
            for zone in &mut state.zones {
                zone.share(Owner(lane), u64::MAX);
            }
        }
        // Nothing may be left to wait for, and yet neighbours that streams passed long ago come together only here.
        Ok(self.share_passed(state) | waited)
    }

    /// Gives the free memory of a private pool without users back to the device, after waiting for it; nothing of one that has users. Returns
    /// the bytes given back.
    pub(crate) fn empty_private(&self, state: &mut PoolState, magazines: &dyn Magazines, pool: PoolId) -> Result<u64> {
        if state.private.capturing() {
            return Err(Error::Capturing { what: "giving memory back to the device" });
        }
        let lanes = state.lanes.left_of(pool);
        if lanes.is_empty() {
            return Ok(0);
        }
        magazines.drain(state, Drain::All);
        self.settle(state)?;
        self.retire_ghosts(state, usize::MAX);
        let before = state.space.physical_bytes();
        let keep = state.space.reserve_bytes();
        self.harvest_where(state, u64::MAX, |_, node| lanes.contains(&node.home.0))?;
        state.space.release_reserve(keep);
        self.recycle_dissolved(state);
        Ok(before - state.space.physical_bytes())
    }

    /// Gives back the address space of private pools that are no more, where nothing is mapped in it, and the numbers of lanes that nothing
    /// names any more. Returns whether there was any.
    pub(super) fn recycle_dissolved(&self, state: &mut PoolState) -> bool {
        let opened = state.lanes.opened();
        if opened.is_empty() {
            return false;
        }
        let named = self.lanes_of_blocks(state);
        let mut any = false;
        for lane in opened {
            // A private pool may have taken memory that was everyone's, in other lanes' segments.
            let haunts = |(zone, node): (usize, NodeId)| state.zones[zone].node(node).owner == Owner(lane);
            let mut is_left = state.ghosts.nodes().any(haunts)
                || named.contains(&lane)
                || state.zones.iter().any(|zone| zone.free_bytes(Owner(lane)) > 0);
            for zone in &mut state.zones {
                let heads: Vec<NodeId> = zone.heads().filter(|&id| zone.node(id).home == Owner(lane)).collect();
                for head in heads {
                    let Node { addr, size, .. } = *zone.node(head);
                    if zone.is_empty_segment(head) && state.space.unreserve_segment(addr, size) {
                        zone.remove_segment(head);
                        any = true;
                    } else {
                        is_left = true;
                    }
                }
            }
            if !is_left {
                state.lanes.recycle(lane);
            }
        }
        any
    }

    /// Takes back what threads have in magazines, waits for the streams, and gives free chunks back to the device until at most `keep` bytes
    /// are held. Returns the bytes given back.
    pub(crate) fn empty(&self, state: &mut PoolState, magazines: &dyn Magazines, keep: u64) -> Result<u64> {
        if state.private.capturing() {
            return Err(Error::Capturing { what: "giving memory back to the device" });
        }
        magazines.drain(state, Drain::All);
        self.settle(state)?;
        self.retire_ghosts(state, usize::MAX);
        let before = state.space.physical_bytes();
        let excess = before.saturating_sub(keep);
        let missing = excess.saturating_sub(state.space.reserve_bytes());
        if missing > 0 {
            self.harvest(state, missing)?;
        }
        let in_use = state.space.physical_bytes() - state.space.reserve_bytes();
        if state.space.release_reserve(keep.saturating_sub(in_use)) > 0 {
            state.emptied += 1;
        }
        self.give_addresses_back(state);
        self.recycle_dissolved(state);
        Ok(before - state.space.physical_bytes())
    }
}
