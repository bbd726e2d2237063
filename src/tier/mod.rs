//! Memory beyond the device: tiers to which the bytes of allocations go while their addresses stay.
//!
//! A [`Tier`] is a place for bytes: pinned host memory, NVMe, another device. What is moved between a device and a tier, and when,
//! is decided elsewhere; a tier hands out [`Slot`]s, and reads and writes them.

pub mod codec;
mod host;
mod peer;
pub mod policy;
mod room;
pub mod transfer;

pub use host::{HostConfig, HostTier};
pub use peer::PeerTier;

use std::fmt;

use crate::driver::DriverError;
use crate::units::{ByteSize, DevicePtr};

/// A range of bytes in a tier, handed out by [`Tier::reserve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The first byte, counted from the tier's beginning. A multiple of [`Tier::alignment`].
    pub offset: u64,
    /// Bytes that were asked for.
    pub size: u64,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From memory into the tier.
    Write,
    /// From the tier into memory.
    Read,
}

/// One read or write of a part of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    /// Which way.
    pub direction: Direction,
    /// The slot.
    pub slot: Slot,
    /// Where in the slot, in bytes. A multiple of [`Tier::alignment`].
    pub offset: u64,
    /// The host memory, aligned to [`Tier::alignment`].
    pub buffer: *mut u8,
    /// How many bytes. The last piece of a slot may end anywhere; its buffer has room up to the next multiple of [`Tier::alignment`].
    pub size: u64,
}

// SAFETY: the pointer is only used by who holds the contract of `Tier::start`, which is not bound to a thread.
unsafe impl Send for Io {}

/// A read or write under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A place for bytes beyond the device. All methods may be called from any thread; none unwinds.
///
/// The device reaches some tiers by itself ([`Tier::address`]): its copies go straight there. Bytes for the others pass through pinned memory
/// in pieces, by [`Tier::start`] and [`Tier::finish`]. A store over a network is of this second kind.
pub trait Tier: Send + Sync + fmt::Debug {
    /// What reports call it: `host`, `nvme`.
    fn name(&self) -> &str;

    /// Bytes that it can hold.
    fn capacity(&self) -> u64;

    /// Bytes of it that slots take, with what rounding adds.
    fn used(&self) -> u64;

    /// What offsets and buffers are multiples of: a power of two.
    fn alignment(&self) -> u64 {
        1
    }

    /// Takes room for `size` bytes.
    ///
    /// # Errors
    /// [`TierError::Full`] where there is none.
    fn reserve(&self, size: u64) -> Result<Slot, TierError>;

    /// Gives a slot back. Nothing reads or writes it any more.
    fn release(&self, slot: Slot);

    /// Gives back what a slot has beyond its first `size` bytes, where that can be, and says what the slot is then.
    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        let _ = size;
        slot
    }

    /// Where copies of the device reach a slot, or `None` where they do not.
    fn address(&self, slot: Slot) -> Option<DevicePtr> {
        let _ = slot;
        None
    }

    /// Whether the host reads what [`Tier::address`] names as its own memory.
    fn is_host_memory(&self) -> bool {
        false
    }

    /// Copies of the device do not cross bytes of the tier that are multiples of this. 0: they may lie anywhere.
    fn seam(&self) -> u64 {
        0
    }

    /// Starts a read or write.
    ///
    /// # Errors
    /// [`TierError::Busy`] where as many are under way as may be: finish one first.
    ///
    /// # Safety
    /// The buffer holds `size` bytes, rounded up to [`Tier::alignment`], and nobody else touches them until [`Tier::finish`] has said that
    /// this ended.
    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError>;

    /// How a read or write ended, or `None` while it is under way; with `wait`, returns only when it has ended. A ticket ends once.
    fn finish(&self, ticket: Ticket, wait: bool) -> Option<Result<(), TierError>>;
}

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
    Codec(#[from] codec::CodecError),
    /// The transfer was cancelled.
    #[error("the transfer was cancelled")]
    Cancelled,
    /// The driver failed.
    #[error("{0}")]
    Driver(#[from] DriverError),
}
