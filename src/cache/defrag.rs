//! Defragmentation, as threads see it: nothing is in magazines, and no thread gets past its gate.

use super::DeviceCache;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::pool::{Bounds, CompactView, MeshPage, MeshSet, Meshed, MoveTo, Moving};
use crate::units::DevicePtr;

impl DeviceCache {
    /// Waits for the device.
    pub(crate) fn quiesce(&self) -> Result<()> {
        let state = self.pool.lock();
        if state.capturing() {
            return Err(Error::Capturing { what: "waiting for the device" });
        }
        Ok(self.pool.driver.synchronize_device()?)
    }

    /// Lets pages of slabs share memory. No work that touches them is unfinished, and none is submitted meanwhile.
    pub(crate) fn mesh(&self, plan: &dyn Fn(&[MeshPage]) -> Vec<MeshSet>, bounds: Bounds) -> Result<Meshed> {
        let mut state = self.pool.lock();
        let meshed = self.with_all_drained(&mut state, |state| self.pool.mesh(state, plan, bounds));
        self.check_invariants(&state);
        meshed
    }

    /// Takes places for blocks that are to move, out of those at these addresses, each with its alignment.
    pub(crate) fn begin_moves(
        &self,
        movable: &[(DevicePtr, u64)],
        plan: &dyn Fn(&CompactView) -> Vec<MoveTo>,
    ) -> Result<Vec<Moving>> {
        let mut state = self.pool.lock();
        let moving = self.with_all_drained(&mut state, |state| self.pool.begin_moves(state, movable, plan));
        self.check_invariants(&state);
        moving
    }

    /// Blocks have moved, or stay after all: what they leave goes back.
    pub(crate) fn end_moves<'a>(
        &self,
        moved: impl Iterator<Item = &'a Moving>,
        stay: impl Iterator<Item = &'a Moving>,
    ) {
        let mut state = self.pool.lock();
        moved.for_each(|moving| self.pool.finish_move(&mut state, moving));
        stay.for_each(|moving| self.pool.abort_move(&mut state, moving));
        self.check_invariants(&state);
    }
}
