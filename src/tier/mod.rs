//! Memory beyond the device: tiers to which the bytes of allocations go while their addresses stay.
//!
//! A [`Tier`] is a place for bytes: pinned host memory, NVMe, another device. What is moved between a device and a tier, and when,
//! is decided elsewhere; a tier hands out [`Slot`]s, and reads and writes them.

pub mod codec;
pub mod fault;
mod host;
pub mod nvme;
mod peer;
pub mod policy;
pub(crate) mod residency;
mod room;
pub mod transfer;

pub use host::{HostConfig, HostTier};
pub use peer::PeerTier;

use std::fmt;

pub use crate::error::TierError;
use crate::units::DevicePtr;
pub use residency::{
    Evictable, MemoryChange, PinGuard, Recompute, Residency, ResidencyObserver, Select, SleepAction, SleepPlan, Stash,
    TierKind, TierStats, TierUse,
};

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

    /// What it is made of, and by which means it goes about it: for reports.
    fn describe(&self) -> String {
        self.name().to_string()
    }

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

    /// Says that reads and writes will use this memory, for a tier that can prepare memory once instead of at each of them. Others do nothing.
    /// A tier that cannot does without it.
    ///
    /// # Safety
    /// The memory stays mapped until [`Tier::detach`], or until the tier is gone.
    unsafe fn attach(&self, memory: *mut u8, size: u64) {
        let _ = (memory, size);
    }

    /// Forgets memory that was attached, by its first byte. No read or write uses it any more.
    fn detach(&self, memory: *mut u8) {
        let _ = memory;
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
