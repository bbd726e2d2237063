//! Where the bytes of an extent are: the states, and which may follow which.
//!
//! | stage | memory | the bytes are | next |
//! |---|---|---|---|
//! | `Resident` | mapped | there | `Leaving`, `Evicting`, `Dropping` |
//! | `Leaving` | mapped | there; observers are being told | `Resident`, `Evicting`, `Dropping` |
//! | `Evicting` | mapped | there, until the copy is complete | `Resident`, `Away` |
//! | `Dropping` | mapped | not needed; streams still use the memory | `Resident`, `Dropped`, `Blank` |
//! | `Away` | none | in a place | `Filled`, `Spilling`, `Blank` |
//! | `Spilling` | none | in a place, until the copy of it is complete | `Away`, `Filled`, `Blank` |
//! | `Filled` | mapped | in a place still | `Restoring`, `Away` |
//! | `Restoring` | mapped | in a place still | `Resident`, `Filled`, `Away` |
//! | `Dropped` | none | computed again when wanted | `Recomputing`, `Blank` |
//! | `Recomputing` | mapped | being computed | `Resident`, `Dropped` |
//! | `Blank` | none | not wanted | `Resident` |
//!
//! There is one complete copy of the bytes in every stage that has a place or says "there", and nothing gives it up before the next is complete:
//! a stage that holds a [`Place`] hands it on or keeps it.

use std::sync::Arc;

use crate::cache::Stamp;
use crate::tier::transfer::{Place, Transfer};

/// Where the bytes of an extent are.
#[derive(Debug)]
pub(super) enum Stage {
    Resident,
    Leaving,
    Evicting { transfer: Transfer },
    Dropping { stamps: Vec<Stamp>, blank: bool },
    Away { place: Arc<Place> },
    Spilling { place: Arc<Place>, transfer: Transfer },
    Filled { place: Arc<Place> },
    Restoring { place: Arc<Place>, transfer: Transfer, lent: bool },
    Dropped,
    Recomputing,
    Blank,
}

/// Where the bytes of an evictable block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Residency {
    /// On the device.
    Resident,
    /// On the device, and on their way to a tier.
    Evicting,
    /// In pinned memory of the host.
    Host,
    /// In pinned memory of the host, and on their way to a slower tier.
    Spilling,
    /// In files.
    Disk,
    /// In the memory of another device.
    Peer,
    /// In a tier of the user's own.
    Custom,
    /// In a tier, and on their way back.
    Restoring,
    /// Nowhere: they are computed again when they are wanted, or are not wanted.
    Dropped,
}

impl Residency {
    /// The state's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Residency::Resident => "resident",
            Residency::Evicting => "evicting",
            Residency::Host => "host",
            Residency::Spilling => "spilling",
            Residency::Disk => "disk",
            Residency::Peer => "peer",
            Residency::Custom => "custom",
            Residency::Restoring => "restoring",
            Residency::Dropped => "dropped",
        }
    }
}

impl Stage {
    /// Whether memory is mapped.
    pub(super) fn is_mapped(&self) -> bool {
        !matches!(self, Stage::Away { .. } | Stage::Spilling { .. } | Stage::Dropped | Stage::Blank)
    }

    /// Whether it does not stay as it is: a transfer is under way, or streams are waited for.
    pub(super) fn is_moving(&self) -> bool {
        use Stage::*;
        matches!(self, Evicting { .. } | Dropping { .. } | Spilling { .. } | Filled { .. } | Restoring { .. })
    }

    /// The transfer that is under way.
    pub(super) fn transfer(&self) -> Option<&Transfer> {
        match self {
            Stage::Evicting { transfer } | Stage::Spilling { transfer, .. } | Stage::Restoring { transfer, .. } => {
                Some(transfer)
            }
            _ => None,
        }
    }

    /// Whether `next` may follow. What the table above says.
    pub(super) fn may_become(&self, next: &Stage) -> bool {
        use Stage::*;
        matches!(
            (self, next),
            (Resident, Leaving | Evicting { .. } | Dropping { .. })
                | (Leaving, Resident | Evicting { .. } | Dropping { .. })
                | (Evicting { .. }, Resident | Away { .. })
                | (Dropping { .. }, Resident | Dropped | Blank)
                | (Away { .. }, Filled { .. } | Spilling { .. } | Blank)
                | (Spilling { .. }, Away { .. } | Filled { .. } | Blank)
                | (Filled { .. }, Restoring { .. } | Away { .. })
                | (Restoring { .. }, Resident | Filled { .. } | Away { .. })
                | (Dropped, Recomputing | Blank)
                | (Recomputing, Resident | Dropped)
                | (Blank, Resident)
        )
    }
}
