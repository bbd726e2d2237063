//! Where an object's bytes are, complete.

use std::fmt;
use std::sync::Arc;

use super::guarded;
use crate::tier::codec::Codec;
use crate::tier::{Slot, Tier};

/// One piece of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stored {
    /// Where it begins in the slot, in [`UNIT`](super::job::UNIT)s.
    pub(super) at: u32,
    /// Its bytes in the tier. As many as the device has: stored as they are.
    pub(super) bytes: u32,
    /// Their CRC-32C.
    pub(super) sum: u32,
}

/// The bytes of an object in a tier: all of them, with their checksums. Dropping the last reference gives the slot back.
pub struct Place {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) slot: Slot,
    pub(super) size: u64,
    /// Bytes of the object in all pieces but the last.
    pub(super) piece: u64,
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

    /// Bytes that are stored for it: fewer where a codec had something to gain.
    pub fn stored(&self) -> u64 {
        if self.pieces.is_empty() { self.size } else { self.pieces.iter().map(|piece| u64::from(piece.bytes)).sum() }
    }

    /// Whether what is loaded is compared with what was saved only when all of it has arrived.
    pub(crate) fn is_compared_late(&self) -> bool {
        self.device_sum.is_some()
    }

    /// The codec, where there is one.
    pub fn codec(&self) -> Option<&Arc<dyn Codec>> {
        self.codec.as_ref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        guarded::release(&*self.tier, self.slot);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Place");
        debug.field("tier", &self.tier.name()).field("slot", &self.slot).field("size", &self.size);
        debug.finish_non_exhaustive()
    }
}
