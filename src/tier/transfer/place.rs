//! Where an object's bytes are, complete.

use std::fmt;
use std::sync::Arc;

use crate::tier::codec::Codec;
use crate::tier::{Slot, Tier};

/// One piece of what is stored: its bytes in the tier, and their CRC-32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) bytes: u32,
    pub(super) sum: u32,
}

/// The bytes of an object in a tier: all of them, with their checksums. Dropping the last reference gives the slot back.
pub struct Place {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) slot: Slot,
    pub(super) size: u64,
    pub(super) codec: Option<Arc<dyn Codec>>,
    /// Piece by piece; none where only the device can read the tier.
    pub(super) pieces: Box<[Stored]>,
    /// The sum of the object's bytes by [`Driver::checksum`](crate::driver::Driver::checksum), where it was taken.
    pub(super) device_sum: Option<u64>,
}

impl Place {
    /// The tier.
    pub fn tier(&self) -> &Arc<dyn Tier> {
        &self.tier
    }

    /// Where in the tier.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the tier holds for it.
    pub fn stored(&self) -> u64 {
        self.slot.size
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tier.release(self.slot);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("tier", &self.tier.name())
            .field("slot", &self.slot)
            .field("size", &self.size)
            .finish()
    }
}
