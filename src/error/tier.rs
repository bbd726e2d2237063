//! Errors of tiers, and of what is kept in them.

use super::DriverError;
use crate::units::{ByteSize, DevicePtr};

/// Why bytes did not get to a tier, or back. They are where they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TierError {
    /// No room.
    #[error("tier {tier} is full: {} asked for, {} of {} in use", ByteSize(*size), ByteSize(*used), ByteSize(*capacity))]
    Full {
        /// The tier.
        tier: String,
        /// What was asked for, in bytes.
        size: u64,
        /// What is in use, in bytes.
        used: u64,
        /// What the tier can hold, in bytes.
        capacity: u64,
    },
    /// As many transfers are under way as may be.
    #[error("tier {tier} is busy: {depth} transfers are under way")]
    Busy {
        /// The tier.
        tier: String,
        /// How many are under way.
        depth: usize,
    },
    /// A read or write failed, in a file or in whatever stands behind the tier.
    #[error("tier {tier}: {what}: {reason}")]
    Io {
        /// The tier.
        tier: String,
        /// What was done, to which file and where: `read 4 MiB at 12 GiB of /mnt/nvme0`.
        what: String,
        /// What the system says.
        reason: String,
        /// The system's error number, 0 where it has none: a file that ends too early, for instance.
        errno: i32,
    },
    /// The bytes that came back are not those that went.
    #[error("tier {tier}: {what} came back altered: checksum {found:#010x}, {expected:#010x} when they were stored")]
    Corrupt {
        /// The tier.
        tier: String,
        /// Which bytes.
        what: String,
        /// The checksum when they were stored.
        expected: u64,
        /// The checksum now.
        found: u64,
    },
    /// A tier that cannot be set up.
    #[error("tier {tier} cannot be used: {reason}")]
    Unusable {
        /// The tier.
        tier: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A codec cannot do what is asked of it.
    #[error("{0}")]
    Codec(#[from] CodecError),
    /// The transfer was cancelled.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The driver failed.
    #[error("{0}")]
    Driver(#[from] DriverError),
}

impl TierError {
    /// Whether there is no room, in the tier or on the disk behind it: another tier may have some.
    pub fn is_full(&self) -> bool {
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        matches!(self, TierError::Full { .. } | TierError::Io { errno: ENOSPC | EDQUOT, .. })
    }
}

/// What is wrong with a codec, or with what it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// No codec has the name.
    #[error("no codec is called {name:?}: there are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// This build has no such codec.
    #[error("this build has no codec {name}: build with the feature `codecs`")]
    NotBuilt {
        /// The name.
        name: String,
    },
    /// What is to be decoded was not encoded by this codec, or is damaged.
    #[error("codec {codec}: cannot be decoded: {what}")]
    Malformed {
        /// The codec.
        codec: String,
        /// What is wrong.
        what: String,
    },
    /// There is no room for what it makes.
    #[error("codec {codec}: {needed} bytes are needed, there is room for {room}")]
    NoRoom {
        /// The codec.
        codec: String,
        /// What is needed, in bytes.
        needed: usize,
        /// What there is, in bytes.
        room: usize,
    },
}

/// Why the residency of an evictable block is not what was asked for. Its bytes are where they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResidencyError {
    /// There are no tiers.
    #[error("no tiers are configured: configure tiers:host=32GiB, or nvme=/path=200GiB, or both with + between them")]
    NoTiers,
    /// The device cannot give memory up and keep its address.
    #[error("evictable memory needs virtual memory management, which the device does not have")]
    NoVirtualMemory,
    /// A dedicated block is for others to know, and does not go.
    #[error("a dedicated block cannot be evictable")]
    Dedicated,
    /// The pointer is not that of an evictable block.
    #[error("{ptr} is not the start of an evictable block")]
    NotEvictable {
        /// The pointer.
        ptr: DevicePtr,
    },
    /// The block is pinned, or shares its memory with one that is.
    #[error("{ptr} is pinned, or lies beside a block that is: {pins} pins")]
    Pinned {
        /// The pointer.
        ptr: DevicePtr,
        /// Pins of what would have to move together.
        pins: u32,
    },
    /// The device sleeps already, or the block was put to sleep.
    #[error("the device sleeps: wake it first")]
    Asleep,
    /// The device does not sleep.
    #[error("the device does not sleep")]
    Awake,
    /// There is no room on the device to have the block back.
    #[error("no room on the device for {} of an evicted block at {ptr}: {} could be evicted, {} is pinned{}", ByteSize(*size), ByteSize(*evictable), ByteSize(*pinned), failure.as_ref().map_or_else(String::new, |why| format!("; {why}")))]
    NoRoom {
        /// The block's first byte, or that of the memory it shares with others.
        ptr: DevicePtr,
        /// Bytes that have to come back together.
        size: u64,
        /// Bytes of other blocks that may be evicted.
        evictable: u64,
        /// Bytes of blocks that are pinned.
        pinned: u64,
        /// Why others could not be evicted.
        failure: Option<Box<TierError>>,
    },
    /// The callback that computes a dropped block again has failed, or panicked.
    #[error("the block at {ptr} could not be computed again: {reason}")]
    Recompute {
        /// The block's first byte.
        ptr: DevicePtr,
        /// What the callback says.
        reason: String,
    },
}
