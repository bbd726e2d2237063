//! Bytes go to a tier, and their memory to whoever needs it.

use std::collections::BTreeSet;

use super::stage::Stage;
use super::table::{Extent, ExtentId, Table, transfer_ns};
use super::{Select, Tiers, Wait, keep_first};
use crate::cache::NEVER;
use crate::error::{Error, ResidencyError, Result, TierError};
use crate::sync::MutexGuard;
use crate::tier::transfer::is_busy;
use crate::units::DevicePtr;

/// What making room gave.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Bytes that have gone from the device.
    pub(crate) evicted: u64,
    /// Why something did not go.
    pub(crate) failure: Option<TierError>,
}

/// How bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To a tier, or dropped where that is as good, behind all that its streams have been given to do.
    Cheapest,
    /// The same, since room is needed: whoever used it held pins, so what was submitted after the last of them is not waited for.
    Room,
    /// They are not wanted.
    Blank,
}

/// What came of an attempt to begin.
enum Begun {
    Yes,
    /// Not before this.
    After(Wait),
    No(TierError),
}

/// What goes ahead of need is at most this part of the device's limit: 1/64.
const AHEAD_SHIFT: u32 = 6;

/// So often slower tiers are asked to make a faster one roomy for one extent.
const SPILLS_MAX: u32 = 4;

impl Tiers {
    /// Evicts until `bytes` have gone, or nothing is left that may. Waits for no more than the transfers.
    pub(crate) fn make_room(&self, bytes: u64) -> Room {
        self.make_room_but(bytes, &|_| false)
    }

    /// [`Tiers::make_room`] that leaves alone what is `spared`.
    pub(super) fn make_room_but(&self, bytes: u64, spared: &dyn Fn(&Extent) -> bool) -> Room {
        let mut room = Room::default();
        if !self.has_blocks() || self.device.is_capturing() {
            return room;
        }
        let mut tried: BTreeSet<ExtentId> = BTreeSet::new();
        let mut table = self.lock();
        while room.evicted < bytes {
            let may_go = |id: ExtentId, extent: &Extent| {
                extent.may_go()
                    && extent.held == 0
                    && extent.manner.automatic
                    && !spared(extent)
                    && !tried.contains(&id)
            };
            // What was begun ahead of need, or by others, helps first.
            let helps = |&id: &ExtentId| {
                let extent = table.extent(id);
                matches!(extent.stage, Stage::Evicting { .. }) && !tried.contains(&id) && !spared(extent)
            };
            if let Some(id) = table.moving.iter().copied().find(helps) {
                tried.insert(id);
                table.extent_mut(id).held += 1;
                room.evicted += self.await_gone(&mut table, id, &mut room.failure);
                self.let_go(&mut table, id);
                continue;
            }
            let victims = table.victims(bytes - room.evicted, &may_go);
            if victims.is_empty() {
                break;
            }
            tried.extend(&victims);
            let gone = self.evict(&mut table, &victims, Way::Room);
            room.evicted += gone.evicted;
            if let Some(failure) = gone.failure {
                keep_first(&mut room.failure, failure);
            }
        }
        if room.evicted > 0 && !self.is_observed() {
            self.evict_ahead(&mut table, bytes, spared);
        }
        self.unlock(table);
        room
    }

    /// Begins to evict what the next requests are likely to want, and waits for none of it: twice as much with each request that found no room,
    /// half as much with each block that is wanted back.
    fn evict_ahead(&self, table: &mut MutexGuard<'_, Table>, bytes: u64, spared: &dyn Fn(&Extent) -> bool) {
        let most = self.device.limit() >> AHEAD_SHIFT;
        table.ahead = (table.ahead * 2).max(bytes).min(most);
        let may_go = |_: ExtentId, extent: &Extent| {
            extent.may_go() && extent.held == 0 && extent.manner.automatic && extent.size <= most && !spared(extent)
        };
        let going = |&&id: &&ExtentId| matches!(table.extent(id).stage, Stage::Evicting { .. });
        let under_way: u64 = table.moving.iter().filter(going).map(|&id| table.extent(id).size).sum();
        let wanted = table.ahead.saturating_sub(under_way);
        for id in table.victims(wanted, &may_go) {
            // Nothing spills for it, which would have to be waited for.
            let mut spills = SPILLS_MAX;
            if !matches!(self.try_begin(table, id, Way::Room, &mut spills), Begun::Yes) {
                break;
            }
        }
    }

    /// Evicts blocks by name. Returns the bytes that have gone. Those that are pinned stay, which is an error only for one that was named.
    pub(crate) fn offload(&self, select: Select) -> Result<u64> {
        let mut table = self.lock();
        let ids = match select {
            Select::Ptr(ptr) => {
                let id = match table.object(ptr) {
                    Ok(object) => object.extent,
                    Err(error) => {
                        self.unlock(table);
                        return Err(error.into());
                    }
                };
                let pins = table.extent(id).pins;
                if pins > 0 {
                    self.unlock(table);
                    return Err(ResidencyError::Pinned { ptr, pins }.into());
                }
                vec![id]
            }
            Select::Tag(tag) => {
                table.extents().filter(|(_, extent)| extent.manner.tag == tag).map(|(id, _)| id).collect()
            }
            Select::All => table.extents().map(|(id, _)| id).collect(),
        };
        let room = self.evict(&mut table, &ids, Way::Cheapest);
        self.unlock(table);
        match room.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(room.evicted),
        }
    }

    /// Evicts those of these extents that are there and that nobody has pinned.
    pub(super) fn evict(&self, table: &mut MutexGuard<'_, Table>, ids: &[ExtentId], way: Way) -> Room {
        let mut room = Room::default();
        if self.device.is_capturing() {
            room.failure = Some(TierError::Unusable {
                tier: "device".to_string(),
                reason: "a capture is under way, in which nothing may be waited for".to_string(),
            });
            return room;
        }
        let ids: Vec<ExtentId> = ids.iter().copied().filter(|&id| table.extent(id).may_go()).collect();
        ids.iter().for_each(|&id| table.extent_mut(id).held += 1);
        let (ids, told) = self.announce(table, ids);
        let mut under_way = Vec::new();
        for &id in &ids {
            let extent = table.extent(id);
            let is_there = match told {
                None => matches!(extent.stage, Stage::Resident),
                Some(told) => told && matches!(extent.stage, Stage::Leaving),
            };
            let goes = extent.pins == 0 && extent.objects > 0 && is_there;
            let begun = if goes { self.begin(table, id, way) } else { Err(None) };
            match begun {
                Ok(()) => {
                    under_way.push(id);
                    // Who wants it back need not wait for all of it to go.
                    self.changed.notify_all();
                }
                Err(why) => {
                    if told.is_some() && matches!(table.extent(id).stage, Stage::Leaving) {
                        table.set_stage(id, Stage::Resident, None);
                        self.came_back(table, id);
                        self.changed.notify_all();
                    }
                    if let Some(why) = why {
                        self.counts.failed();
                        keep_first(&mut room.failure, why);
                    }
                    self.let_go(table, id);
                }
            }
        }
        for id in under_way {
            room.evicted += self.await_gone(table, id, &mut room.failure);
            self.let_go(table, id);
        }
        if told == Some(false) {
            let reason = "an observer of its memory panicked".to_string();
            keep_first(&mut room.failure, TierError::Unusable { tier: "device".to_string(), reason });
        }
        room
    }

    /// Tells observers that memory is about to go. Returns the extents that may, and where there are observers, whether they have taken it
    /// well. What others have taken meanwhile is left to them.
    fn announce(&self, table: &mut MutexGuard<'_, Table>, ids: Vec<ExtentId>) -> (Vec<ExtentId>, Option<bool>) {
        if ids.is_empty() || !self.is_observed() {
            return (ids, None);
        }
        self.tell_remapped(table);
        for &id in &ids {
            while table.extent(id).telling > 0 {
                self.changed.wait(table);
                self.settle(table);
            }
        }
        let (mine, others): (Vec<_>, Vec<_>) = ids.into_iter().partition(|&id| table.extent(id).may_go());
        others.into_iter().for_each(|id| self.let_go(table, id));
        let mut changes = Vec::new();
        for &id in &mine {
            table.set_stage(id, Stage::Leaving, None);
            changes.extend(self.changes_of(table, id, true));
        }
        let told = MutexGuard::unlocked(table, || self.tell(&changes));
        self.settle(table);
        (mine, Some(told))
    }

    /// Begins to evict an extent that is there, waiting for earlier transfers where as many are under way as may be.
    fn begin(
        &self,
        table: &mut MutexGuard<'_, Table>,
        id: ExtentId,
        way: Way,
    ) -> std::result::Result<(), Option<TierError>> {
        let mut spills = 0;
        let ready = std::mem::discriminant(&table.extent(id).stage);
        loop {
            match self.try_begin(table, id, way, &mut spills) {
                Begun::Yes => return Ok(()),
                Begun::No(error) => return Err(Some(error)),
                Begun::After(wait) => {
                    if self.wait_for(table, id, wait).is_err() {
                        return Err(None);
                    }
                    let extent = table.extent(id);
                    let is_ready = std::mem::discriminant(&extent.stage) == ready;
                    if extent.pins > 0 || extent.objects == 0 || !is_ready {
                        return Err(None);
                    }
                }
            }
        }
    }

    fn try_begin(&self, table: &mut Table, id: ExtentId, way: Way, spills: &mut u32) -> Begun {
        let extent = table.extent_mut(id);
        extent.failure = None;
        let (from, size, codec) = (DevicePtr(extent.addr), extent.size, extent.codec.clone());
        let first_tier = extent.manner.first_tier;
        let may_push = !self.selective || extent.returned;
        let mut after = vec![extent.manner.stream];
        after.extend(&extent.users);
        let by_pins = way == Way::Room && extent.manner.automatic;
        // Unknown, it is worth it: the callback is there to be used.
        let cheap = extent.recompute_ns.is_none_or(|ns| ns <= transfer_ns(size));
        if way == Way::Blank || (extent.manner.recompute && cheap) {
            let stamps = match self.device.stamps_of(after[0], &after) {
                Ok(stamps) => stamps,
                Err(error) => return Begun::No(super::settle::tier_error(error)),
            };
            table.set_stage(id, Stage::Dropping { stamps, blank: way == Way::Blank }, None);
            return Begun::Yes;
        }
        if by_pins && !extent.used.contains(&NEVER) {
            let used = extent.used.clone();
            after.clone_from(&extent.recorded);
            let outward = self.engine.stream(false);
            let open = outward.map_err(Error::from).and_then(|outward| self.device.order_after_stamps(outward, &used));
            match open {
                Ok(open) => after.extend(open),
                Err(error) => return Begun::No(super::settle::tier_error(error)),
            }
        }
        let mut failure = None;
        for (tier, store) in self.stores.iter().enumerate().skip(first_tier) {
            match self.engine.try_save(from, size, &store.tier, codec.as_ref(), &after) {
                Ok(transfer) => {
                    table.set_stage(id, Stage::Evicting { transfer }, None);
                    return Begun::Yes;
                }
                Err(error) if is_busy(&error) => return Begun::After(Wait::Room),
                Err(error) => {
                    let full = error.is_full();
                    keep_first(&mut failure, error);
                    // What went there first goes on to a slower tier, so that what went last is the quickest to have back.
                    if full && may_push && *spills < SPILLS_MAX && tier + 1 < self.stores.len() {
                        *spills += 1;
                        if let Some(wait) = self.spill(table, tier, size) {
                            return Begun::After(wait);
                        }
                    }
                }
            }
        }
        Begun::No(failure.unwrap_or_else(|| TierError::Unusable {
            tier: "device".to_string(),
            reason: "no tiers are configured".to_string(),
        }))
    }

    /// Begins to move what has been in a tier for longest on to the next, until that are so many bytes. Returns what to wait for: the last
    /// transfer, if any, or room for one.
    fn spill(&self, table: &mut Table, tier: usize, bytes: u64) -> Option<Wait> {
        let (mut spilled, mut last) = (0, None);
        while spilled < bytes
            && let Some(&(_, id)) = table.parked[tier].first()
            && let Stage::Away { place } = &table.extent(id).stage
        {
            let place = place.clone();
            let mut slower = self.stores[tier + 1..].iter();
            let begun = slower.find_map(|to| match self.engine.try_spill(&place, &to.tier) {
                Ok(transfer) => Some(Ok(transfer)),
                Err(error) => is_busy(&error).then_some(Err(Wait::Room)),
            });
            let transfer = match begun {
                Some(Ok(transfer)) => transfer,
                Some(Err(wait)) => return Some(last.map_or(wait, Wait::Transfer)),
                None => break,
            };
            spilled += place.stored();
            last = Some(transfer.clone());
            table.set_stage(id, Stage::Spilling { place, transfer }, None);
        }
        // One that others began will do, too.
        let last = last.or_else(|| {
            let spilling = |&&id: &&ExtentId| matches!(table.extent(id).stage, Stage::Spilling { .. });
            let id = *table.moving.iter().find(spilling)?;
            table.extent(id).stage.transfer().cloned()
        });
        last.map(Wait::Transfer)
    }

    /// Waits until an extent has gone, or stays after all. Returns the bytes that have gone.
    fn await_gone(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId, failure: &mut Option<TierError>) -> u64 {
        loop {
            let extent = table.extent(id);
            let wait = match &extent.stage {
                Stage::Evicting { transfer } => Wait::Transfer(transfer.clone()),
                Stage::Dropping { stamps, .. } => Wait::Streams(stamps.clone()),
                stage => {
                    let gone = !stage.is_mapped();
                    let size = extent.size;
                    if let Some(why) = table.extent_mut(id).failure.take().filter(|_| !gone) {
                        keep_first(failure, *why);
                    }
                    return if gone { size } else { 0 };
                }
            };
            if extent.objects == 0 && extent.held <= 1 {
                // Freed meanwhile: it goes as all that is freed does.
                return 0;
            }
            if let Err(error) = self.wait_for(table, id, wait) {
                keep_first(failure, super::settle::tier_error(error));
                return 0;
            }
        }
    }
}
