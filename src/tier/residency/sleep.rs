//! Sleep and wake: all evictable memory of a device, by tag.

use std::collections::BTreeSet;

use super::evict::Way;
use super::stage::Stage;
use super::table::{ExtentId, Table};
use super::{Tiers, Wait};
use crate::error::{ResidencyError, Result};
use crate::sync::MutexGuard;
use crate::units::DevicePtr;

/// What sleep does with the blocks of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SleepAction {
    /// They stay on the device.
    Keep,
    /// Their bytes go to a tier.
    #[default]
    Save,
    /// Their bytes are not wanted: after [`Allocator::wake`](crate::Allocator::wake) they hold anything.
    Drop,
}

/// What sleep does, tag by tag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SleepPlan {
    /// By tag number.
    pub tags: Vec<(u8, SleepAction)>,
    /// What happens to all others.
    pub others: SleepAction,
}

impl SleepPlan {
    /// This happens to all blocks whose tags nothing else is said of.
    pub fn new(others: SleepAction) -> SleepPlan {
        SleepPlan { tags: Vec::new(), others }
    }

    /// What happens to the blocks of a tag. The last word on a tag counts.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<u8>, action: SleepAction) -> SleepPlan {
        let tag = tag.into();
        self.tags.retain(|&(other, _)| other != tag);
        self.tags.push((tag, action));
        self
    }

    fn action(&self, tag: u8) -> SleepAction {
        self.tags.iter().find(|&&(other, _)| other == tag).map_or(self.others, |&(_, action)| action)
    }
}

impl Tiers {
    /// Whether it sleeps.
    pub(crate) fn is_asleep(&self) -> bool {
        self.table.lock().asleep
    }

    /// Puts memory away as planned. All of it, or none: where something fails, what has gone comes back. Returns the bytes that have gone.
    pub(crate) fn sleep(&self, plan: &SleepPlan) -> Result<u64> {
        let mut table = self.lock();
        let slept = self.try_sleep(&mut table, plan);
        self.unlock(table);
        slept
    }

    fn try_sleep(&self, table: &mut MutexGuard<'_, Table>, plan: &SleepPlan) -> Result<u64> {
        if table.asleep {
            return Err(ResidencyError::Asleep.into());
        }
        let of = |table: &Table, action: SleepAction| -> Vec<ExtentId> {
            let wanted = table.extents().filter(|(_, extent)| plan.action(extent.manner.tag) == action);
            wanted.map(|(id, _)| id).collect()
        };
        let (save, drop) = (of(table, SleepAction::Save), of(table, SleepAction::Drop));
        for &id in save.iter().chain(&drop) {
            let extent = table.extent(id);
            if extent.pins > 0 {
                let ptr = DevicePtr(extent.addr);
                let pins = extent.pins;
                return Err(ResidencyError::Pinned { ptr, pins }.into());
            }
        }
        table.asleep = true;
        let all: Vec<ExtentId> = save.iter().chain(&drop).copied().collect();
        all.iter().for_each(|&id| table.extent_mut(id).held += 1);
        let outcome = self.put_away(table, &save, &drop);
        all.iter().for_each(|&id| self.let_go(table, id));
        table.asleep = outcome.is_ok();
        outcome
    }

    /// The caller holds all of these.
    fn put_away(&self, table: &mut MutexGuard<'_, Table>, save: &[ExtentId], drop: &[ExtentId]) -> Result<u64> {
        // What is on its way gets where it goes.
        for &id in save.iter().chain(drop) {
            self.come_to_rest(table, id)?;
        }
        let there = |table: &Table, ids: &[ExtentId]| -> Vec<ExtentId> {
            ids.iter().copied().filter(|&id| matches!(table.extent(id).stage, Stage::Resident)).collect()
        };
        // First what can fail for want of room: nothing has been given up then.
        let (saved, dropped) = (there(table, save), there(table, drop));
        let mut evicted = 0;
        for (ids, way) in [(&saved, Way::Cheapest), (&dropped, Way::Blank)] {
            let room = self.evict(table, ids, way);
            evicted += room.evicted;
            if let Some(stays) = there(table, ids).into_iter().find(|&id| table.extent(id).objects > 0) {
                let extent = table.extent(stays);
                let (ptr, pins) = (DevicePtr(extent.addr), extent.pins);
                // Everything was there a moment ago: so it has room.
                let gone: Vec<ExtentId> = saved.iter().chain(&dropped).copied().collect();
                let back = self.bring_all(table, &gone, true, &|_| true);
                let why = room.failure.map_or_else(|| ResidencyError::Pinned { ptr, pins }.into(), Into::into);
                return back.and(Err(why));
            }
        }
        let there: BTreeSet<ExtentId> = saved.iter().chain(&dropped).copied().collect();
        for (&id, drops) in save.iter().map(|id| (id, false)).chain(drop.iter().map(|id| (id, true))) {
            let was_there = there.contains(&id);
            let is_away = !table.extent(id).stage.is_mapped();
            if is_away && drops && !matches!(table.extent(id).stage, Stage::Blank) {
                table.set_stage(id, Stage::Blank, None);
            }
            if is_away {
                table.extent_mut(id).slept = Some(was_there);
            }
        }
        Ok(evicted)
    }

    /// Waits until an extent is not on its way.
    fn come_to_rest(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId) -> Result<()> {
        loop {
            let stage = &table.extent(id).stage;
            let wait = match (stage.transfer(), stage) {
                (Some(transfer), _) => Wait::Transfer(transfer.clone()),
                (None, Stage::Dropping { stamps, .. }) => Wait::Streams(stamps.clone()),
                (None, Stage::Leaving | Stage::Recomputing) => Wait::Others,
                _ => return Ok(()),
            };
            self.wait_for(table, id, wait)?;
        }
    }

    /// Has memory back that sleep has put away: of these tags, or all of it. What had not been there before stays where it is.
    pub(crate) fn wake(&self, tags: Option<&[u8]>) -> Result<()> {
        let mut table = self.lock();
        let woken = self.try_wake(&mut table, tags);
        self.unlock(table);
        woken
    }

    fn try_wake(&self, table: &mut MutexGuard<'_, Table>, tags: Option<&[u8]>) -> Result<()> {
        if !table.asleep {
            return Err(ResidencyError::Awake.into());
        }
        let wanted = |tag: u8| tags.is_none_or(|tags| tags.contains(&tag));
        let sleeping: Vec<(ExtentId, bool)> = (table.extents())
            .filter(|(_, extent)| wanted(extent.manner.tag))
            .filter_map(|(id, extent)| Some((id, extent.slept?)))
            .collect();
        let ids: Vec<ExtentId> = sleeping.iter().filter(|&&(_, was_there)| was_there).map(|&(id, _)| id).collect();
        sleeping.iter().for_each(|&(id, _)| table.extent_mut(id).held += 1);
        // What came meanwhile may have to go; of what wakes, nothing goes for another.
        let back = self.bring_all(table, &ids, true, &|extent| extent.slept.is_some());
        for &(id, was_there) in &sleeping {
            let extent = table.extent_mut(id);
            if !was_there || extent.stage.is_mapped() {
                extent.slept = None;
            }
        }
        sleeping.iter().for_each(|&(id, _)| self.let_go(table, id));
        let sleeps_on = table.extents().any(|(_, extent)| extent.slept.is_some());
        table.asleep = sleeps_on;
        back
    }
}
