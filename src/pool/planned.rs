//! Large requests placed by plan. A plan knows where the block should lie; whether it can is found out here, and where it cannot the ladder
//! serves the request as if there were no plan.

use super::directory::{BlockId, Place, place};
use super::grow::Picked;
use super::ladder::{Kind, Magazines, Want};
use super::lanes::LaneId;
use super::{LARGE, Pool, PoolState, SMALL_MAX};
use crate::block::{Growth, NodeId, Owner, State};
use crate::config::Plan;
use crate::driver::{Driver, DriverResult};
use crate::plan::{Export, Guest, PLANNED_ABOVE, PlanStats, Plans, Reach, Room, Usage};
use crate::telemetry::Rung;

/// So much more than the program needs may be held for a plan, as a part of that: 1/128.
const SLACK_SHIFT: u32 = 7;

impl Pool {
    /// Whether blocks of this size are placed by plans, and so kept out of magazines.
    #[inline]
    pub(crate) fn plans_for(&self, size: u64) -> bool {
        const { assert!(SMALL_MAX == PLANNED_ABOVE) };
        self.has_plans() && size > SMALL_MAX
    }

    /// Whether requests are looked at to make plans of them.
    #[inline]
    pub(crate) fn has_plans(&self) -> bool {
        self.config.plan != Plan::Off
    }

    /// Serves a request at its planned place if it has one that is free, else by the ladder, and lets the plans see it.
    pub(super) fn alloc_planned(
        &self,
        state: &mut PoolState,
        want: Want,
        magazines: &dyn Magazines,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let size = match want.kind {
            Kind::Range { size, persistent: false, .. } if self.plans_for(size) => size,
            _ => return self.alloc_unplanned(state, want, magazines),
        };
        if state.lanes.is_private(want.lane) {
            return self.alloc_unplanned(state, want, magazines);
        }
        // When this one is served, too.
        let used = state.planned_usage() + size;
        let idle = state.space.physical_bytes().saturating_sub(used);
        let Some(plans) = &mut state.plans else { return self.alloc_unplanned(state, want, magazines) };
        if plans.request(want.lane, size, idle) {
            self.lay_out(state, want);
        }
        let served = match self.take_planned(state, want, size) {
            Ok(None) => self.alloc_unplanned(state, want, magazines),
            served => served,
        };
        let Some(plans) = &mut state.plans else { return served };
        match served {
            Ok(Some((block, _))) => {
                plans.needed(used);
                // A block lent by a private pool is not this lane's.
                let header = self.directory.header(block);
                match place(block) {
                    Place::Node(LARGE, node) if header.lane() == want.lane => {
                        plans.placed(want.lane, header.ptr().0, size, node);
                    }
                    _ => plans.refused(want.lane, size),
                }
            }
            _ => plans.refused(want.lane, size),
        }
        served
    }

    /// The request's planned place, if it is free or, where that is allowed, can be mapped.
    fn take_planned(&self, state: &mut PoolState, want: Want, size: u64) -> DriverResult<Option<(BlockId, Rung)>> {
        let Kind::Range { alignment, .. } = want.kind else { return Ok(None) };
        let Some(addr) = state.plans.as_ref().and_then(|plans| plans.place(want.lane)) else { return Ok(None) };
        if !addr.is_multiple_of(alignment) {
            return Ok(None);
        }
        let home = Owner(want.lane);
        let usable = |owner: Owner| owner == home || owner == Owner::SHARED;
        let may_map = want.may_grow && self.driver.properties().vmm;
        let mut mapped = None;
        // One gap after the other; the last growth takes the place.
        while let Some(node) = node_at(state, addr) {
            match state.zones[LARGE].gaps(node, addr, size, state.space.unit(), usable).as_deref() {
                Some([]) => {
                    let node = state.zones[LARGE].claim(node, addr, size, usable).expect("all of it is free");
                    return Ok(self.enter(state, want, node)?.map(|block| (block, Rung::Own)));
                }
                Some(&[(at, bytes), ..]) if may_map && mapped != Some(at) => {
                    mapped = Some(at);
                    let zone = &state.zones[LARGE];
                    // As long as less is held than the program will need, it comes from none of the plan's places, or those would be gone. Else
                    // where the ladder would map memory, too: at the planned place it serves the next steps as well.
                    let stays = self.spares_places(state, want.lane, bytes);
                    if !stays && zone.largest_free(home).max(zone.largest_free(Owner::SHARED)) >= size {
                        break;
                    }
                    let wide = state.widened(want.lane, node, (at, bytes), self.chunk_ahead(state));
                    let ahead = wide.filter(|&wide| stays && self.spares_places(state, want.lane, wide));
                    let bytes = ahead.unwrap_or(bytes);
                    let growth =
                        Growth { at, bytes, keep_from: addr, keep_to: addr + size, room: bytes, upwards: true };
                    if let Some(found) =
                        self.grow_at(state, want, growth, addr, Picked::planned(stays, ahead.is_some()))?
                    {
                        return Ok(Some(found));
                    }
                }
                None if self.open_ghosts(state, node, addr + size)? => {}
                _ => break,
            }
        }
        Ok(None)
    }

    /// Undoes the mapping of a ghost that its stream has passed, and of those that follow it, from a node on up to `end`, where memory was taken
    /// away and nothing is in use. Whether there was one.
    fn open_ghosts(&self, state: &mut PoolState, first: NodeId, end: u64) -> DriverResult<bool> {
        let zone = &state.zones[LARGE];
        let mut ghost = None;
        for id in zone.from(first).take_while(|&id| zone.node(id).addr < end) {
            match zone.node(id).state {
                State::Used => return Ok(false),
                State::Ghost if ghost.is_none() => ghost = Some(id),
                _ => {}
            }
        }
        let Some(ghost) = ghost.filter(|&ghost| state.is_stitched_away(LARGE, ghost)) else { return Ok(false) };
        if state.private.capturing() {
            return Ok(false);
        }
        self.poll_clocks(state)?;
        Ok(self.retire_ghost_at(state, LARGE, ghost))
    }

    /// Whether memory is rather created for a lane than taken from where its plan has places.
    pub(super) fn spares_places(&self, state: &PoolState, lane: LaneId, bytes: u64) -> bool {
        state.is_short(lane, bytes) && !self.over_threshold(state, bytes)
    }

    /// Gives the lane's plan the addresses that it may use: what the lane has free, or will have when the step goes on as planned.
    fn lay_out(&self, state: &mut PoolState, want: Want) {
        let Some(plans) = &state.plans else { return };
        let may_map = self.driver.properties().vmm;
        let (mut rooms, mut guests) = state.rooms(plans, want.lane, false);
        let mapped: u64 = rooms.iter().map(|room| room.to - room.from).sum();
        let usage = Usage { used: state.planned_usage(), held: state.space.physical_bytes(), mapped };
        let (reach, idle) = plans.reach(want.lane, usage, &guests);
        let reach = if may_map { reach } else { Reach::Mapped };
        if reach != Reach::Mapped {
            (rooms, guests) = state.rooms(plans, want.lane, true);
        }
        if let Some(plans) = &mut state.plans {
            plans.lay_out(want.lane, rooms, guests, reach, idle);
        }
    }

    /// The program says that a step begins.
    pub(crate) fn mark_step(&self, state: &mut PoolState) {
        if let Some(plans) = &mut state.plans {
            plans.mark();
        }
    }

    /// The steps that are known; none where plans are off.
    pub(crate) fn export_plan(&self, state: &PoolState) -> Option<Export> {
        state.plans.as_ref().map(|plans| plans.export())
    }

    /// Takes over steps to look out for. Whether plans are on.
    pub(crate) fn import_plan(&self, state: &mut PoolState, export: Export) -> bool {
        state.plans.as_mut().map(|plans| plans.import(export)).is_some()
    }

    /// What plans have done.
    pub(crate) fn plan_stats(&self, state: &PoolState) -> PlanStats {
        state.plans.as_ref().map(|plans| plans.stats()).unwrap_or_default()
    }

    /// The plans of a configuration.
    pub(super) fn new_plans(plan: Plan) -> Option<Box<Plans>> {
        (plan != Plan::Off).then(|| Box::new(Plans::new(plan == Plan::On)))
    }
}

impl PoolState {
    /// What a layout for a lane may use, with holes or without, and the blocks of the plan that lie there already.
    fn rooms(&self, plans: &Plans, lane: LaneId, holes: bool) -> (Vec<Room>, Vec<Guest>) {
        let zone = &self.zones[LARGE];
        let home = Owner(lane);
        let (mut rooms, mut guests): (Vec<Room>, Vec<Guest>) = (Vec::new(), Vec::new());
        for head in zone.heads().filter(|&head| zone.node(head).home == home) {
            let mut open = false;
            for id in zone.from(head) {
                let node = zone.node(id);
                let guest = match node.state {
                    State::Used => plans.guest(lane, node.addr),
                    _ => None,
                };
                let is_room = match node.state {
                    State::Free => node.owner == home || node.owner == Owner::SHARED,
                    State::Hole => holes,
                    State::Used => guest.is_some(),
                    State::Ghost | State::Vacant => false,
                };
                guests.extend(guest);
                match rooms.last_mut() {
                    Some(room) if is_room && open => room.to = node.end(),
                    _ if is_room => rooms.push(Room { from: node.addr, to: node.end() }),
                    _ => {}
                }
                open = is_room;
            }
        }
        rooms.sort_unstable_by_key(|room| room.from);
        (rooms, guests)
    }

    /// What plans take for the bytes in use: all that has an owner, so that what is held besides is idle.
    fn planned_usage(&self) -> u64 {
        self.used_bytes() + self.extents.in_use_bytes()
    }

    /// Whether a lane follows a plan, and less is held than the program will need, with so many bytes more that can be had.
    fn is_short(&self, lane: LaneId, bytes: u64) -> bool {
        let needs = self.plans.as_ref().map_or(0, |plans| plans.needs(lane));
        let most = needs.saturating_add(needs >> SLACK_SHIFT).min(self.limit).min(self.refused_at);
        self.space.physical_bytes() - self.space.reserve_bytes() + bytes <= most
    }

    /// How much to map at a planned place where `bytes` are missing from `at` on, if memory may be mapped ahead: up to `most`.
    fn widened(&self, lane: LaneId, node: NodeId, (at, bytes): (u64, u64), most: u64) -> Option<u64> {
        let unit = self.space.unit();
        let to = self.plans.as_ref()?.maps_to(lane).next_multiple_of(unit);
        let zone = &self.zones[LARGE];
        let hole = zone.node(zone.node_at(node, at)?).end();
        let room = hole.min(to).checked_sub(at)?;
        Some(bytes.max(most.min(room) / unit * unit))
    }
}

/// The node that contains an address. Sought from the blocks in use on either side, between which there is little; from a segment's beginning
/// only where nothing is in use in it.
fn node_at(state: &PoolState, addr: u64) -> Option<NodeId> {
    let zone = &state.zones[LARGE];
    let beside = state.plans.as_ref()?.beside(addr).into_iter().flatten();
    let near = beside.filter(|near| zone.is_used_at(near.node, near.addr));
    near.filter_map(|near| zone.node_at(near.node, addr)).next().or_else(|| {
        let heads = zone.heads().filter(|&head| zone.node(head).addr <= addr);
        zone.node_at(heads.max_by_key(|&head| zone.node(head).addr)?, addr)
    })
}
