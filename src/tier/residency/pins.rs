//! Pins as values.

use std::sync::Arc;

use super::Tiers;
use crate::error::Result;
use crate::units::{DevicePtr, StreamId};

/// Keeps an evictable block on its device for as long as it lives. Work that was submitted under it may go on after it: what comes later is
/// ordered behind it.
#[derive(Debug)]
#[must_use = "dropping a pin lets the block go"]
pub struct PinGuard {
    tiers: Arc<Tiers>,
    ptr: DevicePtr,
}

impl PinGuard {
    /// Has a block there for work on `stream`.
    pub(crate) fn new(tiers: &Arc<Tiers>, ptr: DevicePtr, stream: StreamId) -> Result<PinGuard> {
        tiers.pin(ptr, stream)?;
        Ok(PinGuard { tiers: tiers.clone(), ptr })
    }

    /// The block's first byte.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

impl Drop for PinGuard {
    /// Also while a panic unwinds: a thread that dies leaves no pin behind.
    fn drop(&mut self) {
        self.tiers.unpin(self.ptr);
    }
}
