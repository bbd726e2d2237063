//! The memory of another device, which this one reaches over P2P.
//!
//! Chunks are created in the other device's memory and mapped into a range of addresses of this one (`cuMemCreate` with a location,
//! `cuMemSetAccess`), so copies go there like anywhere else. The host reads none of it: the device's own sums say whether a copy is right.

use std::sync::Arc;

use super::room::Room;
use super::{Io, Slot, Ticket, Tier, TierError};
use crate::driver::{ChunkHandle, Driver, DriverError, Location};
use crate::sync::Mutex;
use crate::units::{ByteSize, DevicePtr, align_up};

/// Memory of another device as a tier.
#[derive(Debug)]
pub struct PeerTier {
    driver: Arc<dyn Driver>,
    name: String,
    peer: u32,
    base: DevicePtr,
    capacity: u64,
    step: u64,
    state: Mutex<State>,
    process: u32,
}

#[derive(Debug)]
struct State {
    room: Room,
    /// In the order of their addresses, all of one step but the last.
    chunks: Vec<(ChunkHandle, u64)>,
    failed: Option<DriverError>,
}

impl PeerTier {
    /// A tier of `capacity_bytes` in the memory of device `peer`, by the driver's ordinal, taken `step_bytes` at a time. The first step is
    /// taken now, which shows whether this device reaches that one.
    ///
    /// # Errors
    /// [`TierError::Unusable`], with the driver's reason, where it does not, or where there is no memory.
    pub fn new(
        driver: Arc<dyn Driver>,
        peer: u32,
        capacity_bytes: u64,
        step_bytes: u64,
    ) -> Result<PeerTier, TierError> {
        let name = format!("peer {peer}");
        let refuse = |reason: String| TierError::Unusable { tier: name.clone(), reason };
        let properties = driver.properties();
        let granularity = properties.granularity;
        if !properties.vmm {
            return Err(refuse("the device has no virtual memory management, which maps another's memory".to_owned()));
        }
        if properties.ordinal == peer {
            return Err(refuse("it is the device itself".to_owned()));
        }
        let whole = |bytes| align_up(bytes, granularity).filter(|&bytes| bytes > 0);
        let (Some(capacity), Some(step)) = (whole(capacity_bytes), whole(step_bytes)) else {
            return Err(refuse(format!(
                "{} cannot be taken {} at a time",
                ByteSize(capacity_bytes),
                ByteSize(step_bytes)
            )));
        };
        let base = driver.reserve(capacity, granularity).map_err(|error| refuse(error.to_string()))?;
        let state = State { room: Room::new(capacity), chunks: Vec::new(), failed: None };
        let (state, process) = (Mutex::new(state), std::process::id());
        let tier = PeerTier { driver, name, peer, base, capacity, step, state, process };
        let first = tier.grow(&mut tier.state.lock());
        match first {
            Ok(()) => Ok(tier),
            Err(error) => {
                let reason = format!("its memory cannot be reached from here: {error}");
                Err(TierError::Unusable { tier: tier.name.clone(), reason })
            }
        }
    }

    /// Why no more memory could be had, where that is so. The tier holds what was.
    pub fn shortfall(&self) -> Option<DriverError> {
        self.state.lock().failed.clone()
    }

    fn grow(&self, state: &mut State) -> Result<(), DriverError> {
        let made = state.room.made();
        let bytes = self.step.min(self.capacity - made);
        let at = self.base.add(made);
        let chunk = self.driver.create(bytes, Location::Peer(self.peer))?;
        let mapped = self.driver.map(at, bytes, chunk, 0).and_then(|()| {
            self.driver.set_access(at, bytes).inspect_err(|_| {
                // Nothing touches what has no access.
                let _ = self.driver.unmap(at, bytes);
            })
        });
        if let Err(error) = mapped {
            // A chunk that cannot be released belongs to a context that is gone.
            let _ = self.driver.release(chunk);
            return Err(error);
        }
        state.chunks.push((chunk, bytes));
        state.room.grow(bytes);
        Ok(())
    }
}

impl Tier for PeerTier {
    fn name(&self) -> &str {
        &self.name
    }

    /// What was asked for, or what could be had of it.
    fn capacity(&self) -> u64 {
        let state = self.state.lock();
        if state.failed.is_some() { state.room.made() } else { self.capacity }
    }

    fn used(&self) -> u64 {
        self.state.lock().room.used()
    }

    fn alignment(&self) -> u64 {
        512
    }

    fn reserve(&self, size: u64) -> Result<Slot, TierError> {
        let mut state = self.state.lock();
        loop {
            if let Some(slot) = state.room.take(size) {
                return Ok(slot);
            }
            let made = state.room.made();
            let left = if state.failed.is_some() { 0 } else { self.capacity - made };
            if left == 0 || size > made - state.room.used() + left {
                let (used, capacity) = (state.room.used(), made + left);
                return Err(TierError::Full { tier: self.name.clone(), size, used, capacity });
            }
            if let Err(error) = self.grow(&mut state) {
                state.failed = Some(error);
            }
        }
    }

    fn release(&self, slot: Slot) {
        self.state.lock().room.give(slot);
    }

    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        self.state.lock().room.shrink(slot, size)
    }

    fn address(&self, slot: Slot) -> Option<DevicePtr> {
        Some(self.base.add(slot.offset))
    }

    /// Refuses.
    ///
    /// # Safety
    /// The buffer is not touched.
    unsafe fn start(&self, _io: Io) -> Result<Ticket, TierError> {
        let reason = "the host does not reach it, only copies of a device do".to_owned();
        Err(TierError::Unusable { tier: self.name.clone(), reason })
    }

    fn finish(&self, _ticket: Ticket, _wait: bool) -> Option<Result<(), TierError>> {
        Some(Ok(()))
    }
}

impl Drop for PeerTier {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A child of `fork` has not got the device.
            return;
        }
        let mut at = self.base;
        for &(chunk, bytes) in &self.state.get_mut().chunks {
            // Nothing is under way: every slot came back. What fails belongs to a context that is gone.
            let _ = self.driver.unmap(at, bytes);
            let _ = self.driver.release(chunk);
            at = at.add(bytes);
        }
        let _ = self.driver.unreserve(self.base, self.capacity);
    }
}
