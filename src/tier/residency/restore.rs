//! Bytes come back, and stay where they are while they are pinned.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::stage::Stage;
use super::table::{Extent, ExtentId, Table};
use super::{Recompute, Select, Tiers, Transfer, Wait, words_of};
use crate::cache::{NEVER, Stamp};
use crate::driver::Driver;
use crate::error::{ResidencyError, Result};
use crate::sync::MutexGuard;
use crate::tier::transfer::is_busy;
use crate::units::{DevicePtr, StreamId};

/// How far bytes are to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// They are on their way.
    Begun,
    /// What is submitted to this stream from now on, and to the home stream, finds them.
    Usable(StreamId),
}

/// How they are to come back.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) goal: Goal,
    /// Also what sleep has put away.
    pub(super) waking: bool,
    /// What is not evicted for it.
    pub(super) spared: &'a dyn Fn(&Extent) -> bool,
}

/// So often room is made for one extent: others may take it away.
const ROOMS_MAX: u32 = 64;

impl Tiers {
    /// Has a block there, and keeps it there until [`Tiers::unpin`]. Work submitted to `stream` from now on finds its bytes.
    pub(crate) fn pin(&self, ptr: DevicePtr, stream: StreamId) -> Result<()> {
        self.with_block(ptr, Goal::Usable(stream), |table, id| {
            let object = table.objects.get_mut(&ptr.0).ok_or(ResidencyError::NotEvictable { ptr })?;
            object.pins += 1;
            let extent = table.extent_mut(id);
            extent.pins += 1;
            let size = extent.size;
            extent.used_by(stream);
            if extent.pins == 1 {
                table.pinned_bytes += size;
            }
            Ok(())
        })
    }

    /// Begins to have a block back, if it is not there, for work on `stream`, which counts as recorded. Whoever pins it waits for the rest.
    pub(crate) fn prefetch(&self, ptr: DevicePtr, stream: StreamId) -> Result<()> {
        self.with_block(ptr, Goal::Begun, |table, id| {
            table.extent_mut(id).recorded_on(stream);
            Ok(())
        })
    }

    fn with_block(
        &self,
        ptr: DevicePtr,
        goal: Goal,
        then: impl FnOnce(&mut Table, ExtentId) -> Result<()>,
    ) -> Result<()> {
        self.check_owned(ptr)?;
        let mut table = self.lock();
        let found = table.object(ptr).map(|object| object.extent);
        let brought = match found {
            Ok(id) => {
                table.extent_mut(id).held += 1;
                let terms = Terms { goal, waking: false, spared: &|_| false };
                let brought = self.bring(&mut table, id, terms).and_then(|()| {
                    table.policy.touch(u64::from(id));
                    then(&mut table, id)
                });
                self.let_go(&mut table, id);
                brought
            }
            Err(error) => Err(error.into()),
        };
        self.unlock(table);
        brought
    }

    /// Has blocks back. What sleep has put away stays away, which is an error only for one that was named. Where there is no room for all
    /// of them, none goes for another.
    pub(crate) fn restore(&self, select: Select) -> Result<()> {
        let mut table = self.lock();
        let ids = match select {
            Select::Ptr(ptr) => match table.object(ptr) {
                Ok(object) => vec![object.extent],
                Err(error) => {
                    self.unlock(table);
                    return Err(error.into());
                }
            },
            Select::Tag(tag) => {
                let wanted = |extent: &Extent| extent.manner.tag == tag && extent.slept.is_none();
                table.extents().filter(|(_, extent)| wanted(extent)).map(|(id, _)| id).collect()
            }
            Select::All => table.extents().filter(|(_, extent)| extent.slept.is_none()).map(|(id, _)| id).collect(),
        };
        let spared = |extent: &Extent| match select {
            Select::Ptr(_) => false,
            Select::Tag(tag) => extent.manner.tag == tag,
            Select::All => true,
        };
        let restored = self.bring_all(&mut table, &ids, false, &spared);
        self.unlock(table);
        restored
    }

    /// Has all of these back, at least those that can be. The first error.
    pub(super) fn bring_all(
        &self,
        table: &mut MutexGuard<'_, Table>,
        ids: &[ExtentId],
        waking: bool,
        spared: &dyn Fn(&Extent) -> bool,
    ) -> Result<()> {
        let mut outcome = Ok(());
        ids.iter().for_each(|&id| table.extent_mut(id).held += 1);
        // All are on their way before the first is waited for.
        for usable in [false, true] {
            for &id in ids {
                let extent = table.extent(id);
                if extent.objects == 0 {
                    continue;
                }
                let goal = if usable { Goal::Usable(extent.manner.stream) } else { Goal::Begun };
                if let Err(error) = self.bring(table, id, Terms { goal, waking, spared })
                    && table.extent(id).objects > 0
                {
                    outcome = outcome.and(Err(error));
                }
            }
            if outcome.is_err() {
                break;
            }
        }
        ids.iter().for_each(|&id| self.let_go(table, id));
        outcome
    }

    /// Has an extent back, which the caller holds.
    pub(super) fn bring(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId, terms: Terms<'_>) -> Result<()> {
        let mut rooms = 0;
        loop {
            let extent = table.extent(id);
            let (addr, home) = (DevicePtr(extent.addr), extent.manner.stream);
            if extent.objects == 0 {
                return Err(ResidencyError::NotEvictable { ptr: addr }.into());
            }
            if extent.slept.is_some() && !terms.waking {
                return Err(ResidencyError::Asleep.into());
            }
            match &extent.stage {
                Stage::Resident => return self.after_others(table, id, terms.goal),
                Stage::Recomputing if extent.computing == Some(std::thread::current().id()) => {
                    let reason = "it asks for what it is to compute, or for what shares memory with that".to_string();
                    return Err(ResidencyError::Recompute { ptr: addr, reason }.into());
                }
                Stage::Leaving | Stage::Recomputing => self.wait_for(table, id, Wait::Others)?,
                Stage::Evicting { transfer } => {
                    let transfer = transfer.clone();
                    transfer.cancel();
                    self.wait_for(table, id, Wait::Transfer(transfer))?;
                }
                // Its bytes have not been given up yet.
                Stage::Dropping { .. } => {
                    table.set_stage(id, Stage::Resident, None);
                    self.came_back(table, id);
                }
                Stage::Away { .. } | Stage::Spilling { .. } | Stage::Dropped | Stage::Blank => {
                    self.have_memory(table, id, terms, &mut rooms)?;
                    if matches!(table.extent(id).stage, Stage::Recomputing) {
                        self.compute(table, id)?;
                    }
                }
                Stage::Filled { place } => {
                    let place = Arc::clone(place);
                    self.load(table, id, &place)?;
                }
                Stage::Restoring { place, transfer, .. } => {
                    let Goal::Usable(stream) = terms.goal else { return Ok(()) };
                    let (transfer, is_compared_late) = (transfer.clone(), place.is_compared_late());
                    if is_compared_late {
                        // Nobody is to use what may yet be found to be wrong.
                        self.without_lock(table, id, || transfer.wait())?;
                        continue;
                    }
                    let ordered = self.without_lock(table, id, || {
                        self.engine.order(&transfer, home)?;
                        if stream == home { Ok(()) } else { self.engine.order(&transfer, stream) }
                    });
                    ordered?;
                    if let Stage::Restoring { lent, .. } = &mut table.extent_mut(id).stage {
                        *lent = true;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Lets a stream that is to use an extent come after what others do to it: its computation by the home stream, and copies out of it that
    /// have failed, of which nobody can say whether they are done.
    fn after_others(&self, table: &mut Table, id: ExtentId, goal: Goal) -> Result<()> {
        let Goal::Usable(stream) = goal else { return Ok(()) };
        let extent = table.extent_mut(id);
        let home = extent.manner.stream;
        if stream != home && !extent.computed.is_empty() {
            if self.device.have_passed(&extent.computed, false)? {
                extent.computed.clear();
            } else {
                self.device.order_streams(stream, home)?;
            }
        }
        if !extent.is_read && (stream == home || extent.users.is_empty()) {
            return Ok(());
        }
        let outward = self.engine.stream(false)?;
        if table.extent(id).is_read {
            self.device.order_streams(home, outward)?;
            table.extent_mut(id).is_read = false;
        }
        if stream != home && table.extent(id).users.contains(&outward) {
            self.device.order_streams(stream, outward)?;
        }
        Ok(())
    }

    /// Gives an extent memory, for which others may have to go.
    fn have_memory(
        &self,
        table: &mut MutexGuard<'_, Table>,
        id: ExtentId,
        terms: Terms<'_>,
        rooms: &mut u32,
    ) -> Result<()> {
        let extent = table.extent(id);
        let (addr, size) = (DevicePtr(extent.addr), extent.size);
        if let Some(after) = self.device.fill_extent(addr)? {
            let next = match &table.extent(id).stage {
                Stage::Away { place } => Stage::Filled { place: place.clone() },
                Stage::Spilling { place, transfer } => {
                    transfer.cancel();
                    Stage::Filled { place: place.clone() }
                }
                Stage::Dropped => Stage::Recomputing,
                _ => Stage::Resident,
            };
            let extent = table.extent_mut(id);
            extent.used_until(&after);
            extent.busy = after;
            if matches!(next, Stage::Recomputing | Stage::Resident) && extent.grain() > 1 {
                // Of what nobody writes nothing is to be found beside what is written. Where that fails, some numbers are less exact.
                let cleared = self.device.pool.driver.fill(addr, size, 0, extent.manner.stream);
                cleared.unwrap_or_else(|_| self.counts.failed());
            }
            table.set_stage(id, next, None);
            if matches!(table.extent(id).stage, Stage::Resident) {
                let extent = table.extent_mut(id);
                extent.computed = std::mem::take(&mut extent.busy);
                self.note_use(table, id);
            }
            self.came_back(table, id);
            return Ok(());
        }
        let made = self.without_lock(table, id, || self.make_room_but(size, terms.spared));
        *rooms += 1;
        if made.evicted > 0 && *rooms < ROOMS_MAX {
            return Ok(());
        }
        let (evictable, pinned) = self.evictable_in(table);
        let failure = made.failure.map(Box::new);
        Err(ResidencyError::NoRoom { ptr: addr, size, evictable, pinned, failure }.into())
    }

    /// Begins to bring the bytes of an extent that has memory.
    fn load(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId, place: &Arc<super::Place>) -> Result<()> {
        // Nothing is brought to memory that others use still, in the order of their streams.
        let inward = self.engine.stream(true)?;
        let after = self.device.order_after_stamps(inward, &table.extent(id).busy)?;
        table.ahead /= 2;
        match self.engine.try_load(place, DevicePtr(table.extent(id).addr), &after) {
            Ok(transfer) => {
                let place = Arc::clone(place);
                table.set_stage(id, Stage::Restoring { place, transfer, lent: false }, None);
                Ok(())
            }
            Err(error) if is_busy(&error) => self.wait_for(table, id, Wait::Room),
            Err(error) => {
                self.counts.failed();
                self.empty_again(table, id);
                Err(error.into())
            }
        }
    }

    /// Has what lies in an extent that has memory computed again. Where that fails, the memory goes back.
    fn compute(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId) -> Result<()> {
        let home = table.extent(id).manner.stream;
        let work: Vec<(DevicePtr, u64, Recompute)> = (table.objects_in(id))
            .filter_map(|(ptr, object)| Some((ptr, object.requested, object.recompute.clone()?)))
            .collect();
        table.extent_mut(id).computing = Some(std::thread::current().id());
        // The callbacks go with it where their blocks have been freed meanwhile: they may call the allocator then, too.
        let computed = self.without_lock(table, id, move || {
            work.iter().try_for_each(|(ptr, size, recompute)| {
                let called = catch_unwind(AssertUnwindSafe(|| recompute(*ptr, *size, home)));
                let reason = match called {
                    Ok(Ok(())) => {
                        self.counts.recomputed();
                        return Ok(());
                    }
                    Ok(Err(reason)) => reason,
                    Err(panic) => words_of(&*panic),
                };
                Err(ResidencyError::Recompute { ptr: *ptr, reason })
            })
        });
        table.extent_mut(id).computing = None;
        let outcome = match computed {
            Ok(()) => {
                table.extent_mut(id).computed = self.home_stamps(home);
                table.set_stage(id, Stage::Resident, None);
                self.note_use(table, id);
                Ok(())
            }
            Err(error) => {
                self.counts.failed();
                // What it has submitted before it failed may touch the memory still.
                let stamps = self.home_stamps(home);
                let passed = self.without_lock(table, id, || self.device.have_passed(&stamps, true));
                let addr = DevicePtr(table.extent(id).addr);
                match passed.and_then(|_| self.device.vacate_extent(addr)) {
                    Ok(()) => table.set_stage(id, Stage::Dropped, None),
                    // The memory stays, as for a block whose bytes are not wanted. That it could not be computed is said all the same.
                    Err(_) => table.set_stage(id, Stage::Resident, None),
                }
                Err(error.into())
            }
        };
        self.changed.notify_all();
        outcome
    }

    /// What a home stream has been given to do. It has a clock since the first extent of it was made.
    pub(super) fn home_stamps(&self, home: StreamId) -> Vec<Stamp> {
        self.device.stamps_of(home, &[home]).unwrap_or_else(|_| vec![NEVER])
    }

    /// Lets later work of a stream come after all that has begun to come back. Waits on the host until its copies are submitted.
    pub(crate) fn follow(&self, stream: StreamId) -> Result<()> {
        let table = self.lock();
        let coming: Vec<Transfer> = (table.moving.iter())
            .filter_map(|&id| match &table.extent(id).stage {
                Stage::Restoring { transfer, .. } => Some(transfer.clone()),
                _ => None,
            })
            .collect();
        self.unlock(table);
        // How one failed is told to whoever pins it.
        coming.iter().for_each(|transfer| _ = self.engine.submitted(transfer));
        self.device.order_streams(stream, self.engine.stream(true)?)
    }

    fn evictable_in(&self, table: &Table) -> (u64, u64) {
        let may_go = table.extents().filter(|(_, extent)| extent.may_go() && extent.manner.automatic);
        (may_go.map(|(_, extent)| extent.size).sum(), table.pinned_bytes)
    }

    /// Bytes that may be evicted when room is needed, and pinned bytes.
    pub(crate) fn evictable(&self) -> (u64, u64) {
        self.evictable_in(&self.table.lock())
    }
}
