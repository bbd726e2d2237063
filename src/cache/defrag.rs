//! Defragmentation, as threads see it: nothing is in magazines, and no thread gets past its gate.

use super::DeviceCache;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::pool::{Bounds, MeshPage, MeshSet, Meshed};

impl DeviceCache {
    /// Waits for the device.
    pub(crate) fn quiesce(&self) -> Result<()> {
        let state = self.pool.lock();
        if self.pool.capturing(&state) {
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
}
