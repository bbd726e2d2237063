//! Transfers that have ended: their extents are where they were to go, or where they were.

use std::sync::Arc;

use super::stage::Stage;
use super::table::{ExtentId, Table};
use super::{Place, Tiers};
use crate::cache::NEVER;
use crate::driver::DriverError;
use crate::error::{Error, TierError};
use crate::telemetry::{Event, EventKind};
use crate::units::{DevicePtr, StreamId};

impl Tiers {
    /// Takes note of all that has ended.
    pub(super) fn settle(&self, table: &mut Table) {
        // Nothing reads them any more.
        table.read_still.retain(|(stamps, _)| !matches!(self.device.have_passed(stamps, false), Ok(true)));
        if table.moving.is_empty() {
            return;
        }
        self.engine.pump();
        let moving: Vec<ExtentId> = table.moving.iter().copied().collect();
        let mut any = false;
        for id in moving {
            any |= self.settle_one(table, id);
        }
        if any {
            self.changed.notify_all();
        }
    }

    fn settle_one(&self, table: &mut Table, id: ExtentId) -> bool {
        match &table.extent(id).stage {
            Stage::Evicting { transfer } => match transfer.poll() {
                None => false,
                Some(Ok(Some(place))) => {
                    let size = table.extent(id).size;
                    if self.vacate(table, id, Stage::Away { place: place.clone() }, Some(self.tier_of(&place))) {
                        self.counts.evicted(size);
                        self.counts.stored(self.tier_of(&place), place.stored());
                    }
                    true
                }
                Some(ended) => {
                    let may_read = transfer.is_abandoned();
                    self.stays(table, id, Stage::Resident, ended.err());
                    if may_read {
                        self.let_read(table, id);
                    }
                    true
                }
            },
            Stage::Dropping { stamps, blank } => {
                let (stamps, blank) = (stamps.clone(), *blank);
                match self.device.have_passed(&stamps, false) {
                    Ok(false) => false,
                    Ok(true) => {
                        if self.vacate(table, id, if blank { Stage::Blank } else { Stage::Dropped }, None) {
                            self.counts.dropped();
                        }
                        true
                    }
                    Err(error) => {
                        self.stays(table, id, Stage::Resident, Some(tier_error(error)));
                        true
                    }
                }
            }
            Stage::Spilling { place, transfer } => match transfer.poll() {
                None => false,
                Some(Ok(Some(new))) => {
                    let tier = self.tier_of(&new);
                    self.counts.stored(tier, new.stored());
                    self.counts.spilled();
                    table.set_stage(id, Stage::Away { place: new }, Some(tier));
                    self.note(table, id, EventKind::Spilled);
                    true
                }
                Some(ended) => {
                    let (place, tier) = (place.clone(), self.tier_of(place));
                    self.stays(table, id, Stage::Away { place }, ended.err());
                    self.repark(table, id, tier);
                    true
                }
            },
            Stage::Restoring { place, transfer, lent } => match transfer.poll() {
                None => false,
                Some(Ok(_)) => {
                    let (tier, stored, size) = (self.tier_of(place), place.stored(), table.extent(id).size);
                    self.counts.loaded(tier, stored);
                    self.counts.restored(size);
                    table.extent_mut(id).returned = true;
                    table.set_stage(id, Stage::Resident, None);
                    self.note(table, id, EventKind::Restored);
                    true
                }
                Some(Err(_)) if *lent => {
                    let place = place.clone();
                    self.stays_lent(table, id, place);
                    true
                }
                Some(Err(error)) => {
                    let (place, may_write) = (place.clone(), transfer.is_abandoned());
                    self.counts.failed();
                    table.extent_mut(id).failure = Some(Box::new(error));
                    // Copies that may write there still have to be done before the memory goes.
                    let mut busy: Vec<StreamId> = Vec::new();
                    if let Some(inward) = self.engine.stream(true).ok().filter(|_| may_write) {
                        table.extent_mut(id).used_by(inward);
                        busy.push(inward);
                    }
                    // An earlier attempt may have left copies that go on still.
                    let home = table.extent(id).manner.stream;
                    let stamps = self.device.stamps_of(home, &busy).unwrap_or_else(|_| vec![NEVER]);
                    table.extent_mut(id).busy.extend(stamps);
                    table.set_stage(id, Stage::Filled { place }, None);
                    self.empty_again(table, id);
                    true
                }
            },
            // Nobody came for it after it had failed.
            Stage::Filled { .. } if table.extent(id).held == 0 => self.empty_again(table, id),
            _ => false,
        }
    }

    /// A transfer into an extent has failed after streams were told to use it: all of its copies were submitted, and those streams come after them
    /// and may have written since. So the bytes are here, and nowhere else. Only when the copies have read the last of the place nobody can say yet.
    fn stays_lent(&self, table: &mut Table, id: ExtentId, place: Arc<Place>) {
        let home = table.extent(id).manner.stream;
        let computed = self.home_stamps(home);
        let inward = self.engine.stream(true).ok();
        let extent = table.extent_mut(id);
        inward.into_iter().for_each(|inward| extent.used_by(inward));
        // The home stream comes after the copies, and whoever uses it next after the home stream.
        extent.computed = computed;
        extent.returned = true;
        let stamps = inward.and_then(|inward| self.device.stamps_of(home, &[inward]).ok());
        self.counts.failed();
        self.counts.loaded(self.tier_of(&place), place.stored());
        self.counts.restored(table.extent(id).size);
        table.read_still.push((stamps.unwrap_or_else(|| vec![NEVER]), place));
        table.set_stage(id, Stage::Resident, None);
        self.note(table, id, EventKind::Restored);
    }

    /// Nothing came of it.
    fn stays(&self, table: &mut Table, id: ExtentId, stage: Stage, why: Option<TierError>) {
        let tier = match &stage {
            Stage::Away { place } => Some(self.tier_of(place)),
            _ => None,
        };
        let is_there = matches!(stage, Stage::Resident);
        table.set_stage(id, stage, tier);
        if let Some(why) = why {
            if why != TierError::Cancelled {
                self.counts.failed();
            }
            table.extent_mut(id).failure = Some(Box::new(why));
        }
        if is_there {
            self.came_back(table, id);
        }
    }

    /// A transfer out of an extent has failed: its copies may read the memory still. The home stream comes after them.
    fn let_read(&self, table: &mut Table, id: ExtentId) {
        let Ok(outward) = self.engine.stream(false) else { return };
        let extent = table.extent_mut(id);
        extent.used_by(outward);
        let home = extent.manner.stream;
        // Where not even that works, whoever pins it next tries again.
        extent.is_read = self.device.order_streams(home, outward).is_err();
    }

    /// What failed to spill is not the next one to be tried.
    fn repark(&self, table: &mut Table, id: ExtentId, tier: usize) {
        let since = table.extent(id).since;
        table.parked[tier].remove(&(since, id));
        table.now += 1;
        let now = table.now;
        table.extent_mut(id).since = now;
        table.parked[tier].insert((now, id));
    }

    /// Observers that were told that memory goes are told that it is there.
    pub(super) fn came_back(&self, table: &mut Table, id: ExtentId) {
        if self.is_observed() {
            table.remapped.push_back(id);
            // Whoever gets the lock next must not find the number used by another.
            table.extent_mut(id).held += 1;
        }
    }

    /// Takes the memory of an extent whose bytes are safe. Where the driver refuses, they stay where they are. Whether it went well.
    fn vacate(&self, table: &mut Table, id: ExtentId, stage: Stage, tier: Option<usize>) -> bool {
        match self.device.vacate_extent(DevicePtr(table.extent(id).addr)) {
            Ok(()) => {
                table.set_stage(id, stage, tier);
                self.note(table, id, EventKind::Evicted);
                true
            }
            Err(error) => {
                self.stays(table, id, Stage::Resident, Some(tier_error(error)));
                false
            }
        }
    }

    /// Takes the memory of an extent back that has been filled in vain, if nothing touches it. Where it stays, the next attempt to have the
    /// bytes back begins with it. Whether it went.
    pub(super) fn empty_again(&self, table: &mut Table, id: ExtentId) -> bool {
        let extent = table.extent(id);
        let Stage::Filled { place } = &extent.stage else { return false };
        let (place, tier) = (place.clone(), self.tier_of(place));
        let is_idle = extent.pins == 0 && matches!(self.device.have_passed(&extent.busy, false), Ok(true));
        if !is_idle || self.device.vacate_extent(DevicePtr(extent.addr)).is_err() {
            return false;
        }
        table.set_stage(id, Stage::Away { place }, Some(tier));
        true
    }

    pub(super) fn note(&self, table: &Table, id: ExtentId, kind: EventKind) {
        let extent = table.extent(id);
        let event = Event::new(kind, DevicePtr(extent.addr), extent.size);
        self.device.note(event.on(extent.manner.stream, None).tag(extent.manner.tag));
    }

    /// A call comes back to an extent no more. Where nothing lies in it by now, it goes.
    pub(super) fn let_go(&self, table: &mut Table, id: ExtentId) {
        table.extent_mut(id).held -= 1;
        self.dispose(table, id);
    }

    /// Gives an extent up in which nothing lies, unless somebody comes back to it.
    pub(super) fn dispose(&self, table: &mut Table, id: ExtentId) {
        let extent = table.extent(id);
        if extent.objects > 0 || extent.held > 0 {
            return;
        }
        let mut users = extent.users.clone();
        // What is begun nothing more of may still be under way on the engine's streams.
        if let Some(transfer) = extent.stage.transfer() {
            transfer.cancel();
            match &extent.stage {
                // The home stream comes after all of it. It has come back, and was used.
                Stage::Restoring { place, lent: true, .. } if !transfer.is_abandoned() => {
                    self.counts.loaded(self.tier_of(place), place.stored());
                    self.counts.restored(extent.size);
                }
                stage => {
                    let inwards = matches!(stage, Stage::Restoring { .. });
                    users.extend(self.engine.stream(inwards).ok());
                }
            }
        }
        let addr = DevicePtr(table.remove_extent(id).addr);
        self.device.give_up_extent(addr, &users);
    }
}

/// A failure of the device, as the tiers tell it.
pub(super) fn tier_error(error: Error) -> TierError {
    match error {
        Error::Driver(error) => TierError::Driver(error),
        other => {
            TierError::Driver(DriverError::new(crate::driver::DriverErrorKind::Other, "extent", other.to_string()))
        }
    }
}
