//! What the debug aids are told of the pool's blocks. Every call is under the pool's lock; where no aid is on, each is one look at an
//! empty box, off the hot path.

use super::directory::life;
use super::{BlockId, Pool, PoolState};
use crate::debug::MemoryReport;
use crate::error::{Error, Result};
use crate::telemetry::{Event, EventKind};

impl Pool {
    /// Bytes that every block gets for its red zone.
    pub(crate) fn redzone(&self) -> u64 {
        self.config.redzone.0
    }

    /// A block has been handed out to a caller.
    pub(crate) fn watch_alloc(&self, state: &mut PoolState, block: BlockId) {
        let header = self.directory.header(block);
        let lane = header.lane();
        let (ptr, size) = (header.ptr(), header.size());
        // A graph's kernels use private memory at any time, and during a capture nothing may be submitted.
        let leave_alone = state.lanes.is_private(lane) || state.private.capturing();
        let stream = state.lanes.stream(lane);
        let Some(aids) = &mut state.aids else { return };
        if leave_alone {
            return aids.forget(ptr.0, ptr.0 + size);
        }
        aids.handed_out(&*self.driver, ptr, (header.requested(), size), stream, header.tag());
    }

    /// A block is about to be written to by the allocator: what is left of poison there is compared before.
    pub(super) fn compare_place(&self, state: &mut PoolState, block: BlockId) {
        let header = self.directory.header(block);
        let (ptr, size, stream) = (header.ptr(), header.size(), state.lanes.stream(header.lane()));
        if let Some(aids) = &mut state.aids {
            aids.compare_patches(&*self.driver, ptr, size, stream);
        }
    }

    /// Whether a block that is freed now will be held back.
    pub(crate) fn would_hold(&self, state: &PoolState, block: BlockId) -> bool {
        let aids = state.aids.as_ref().filter(|_| !state.private.capturing());
        aids.is_some_and(|aids| aids.would_hold(self.directory.header(block).ptr()))
    }

    /// Takes back a block that no stream uses any more, but for the order of its home stream. Returns whether it became free, rather than
    /// being held back.
    pub(super) fn retire(&self, state: &mut PoolState, block: BlockId) -> bool {
        let header = self.directory.header(block);
        if state.private.capturing() {
            if let Some(aids) = &mut state.aids {
                aids.abandon(header.ptr());
            }
            self.put_back(state, block);
            return true;
        }
        let Some(aids) = &mut state.aids else {
            self.put_back(state, block);
            return true;
        };
        let free = aids.freed(&*self.driver, block, header.ptr());
        match free {
            Some(block) => self.put_back(state, block),
            None => header.set_life(life::PENDING),
        }
        self.release_held(state, None);
        free.is_some()
    }

    /// Lets go of blocks that are held back, the oldest first, until there are at most `keep` bytes, or as many as are configured. Returns
    /// the bytes.
    pub(crate) fn release_held(&self, state: &mut PoolState, keep: Option<u64>) -> u64 {
        let mut bytes = 0;
        while let Some(aids) = &mut state.aids
            && let Some(block) = aids.release(&*self.driver, keep)
        {
            let header = self.directory.header(block);
            bytes += header.size();
            self.active.fold(-(header.size() as i64), 0);
            let event = Event::new(EventKind::FreeCompleted, header.ptr(), header.requested());
            self.ring.push(event.on(state.lanes.stream(header.lane()), None));
            self.put_back(state, block);
        }
        bytes
    }

    /// What lies at these addresses is no longer what was written there.
    pub(crate) fn forget_contents(&self, state: &mut PoolState, addr: u64, bytes: u64) {
        if let Some(aids) = &mut state.aids {
            aids.forget(addr, addr + bytes);
        }
    }

    /// Waits for the device, and compares all that is watched.
    pub(crate) fn check_memory(&self, state: &mut PoolState) -> Result<()> {
        if state.private.capturing() {
            return Err(Error::Capturing { what: "checking memory" });
        }
        match &mut state.aids {
            Some(aids) => Ok(aids.check_all(&*self.driver)?),
            None => Ok(()),
        }
    }

    /// Takes back what could not be told after all.
    pub(crate) fn give_back_reports(&self, state: &mut PoolState, reports: Vec<MemoryReport>) {
        if let Some(aids) = &mut state.aids {
            aids.give_back(reports);
        }
    }

    /// What was found and not told.
    pub(crate) fn take_memory_reports(&self, state: &mut PoolState) -> Vec<MemoryReport> {
        state.aids.as_mut().map_or_else(Vec::new, |aids| aids.take_reports())
    }
}
