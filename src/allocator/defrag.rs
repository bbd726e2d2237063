//! Defragmentation: letting pages and chunks that are used in part share memory.

use std::marker::PhantomData;
use std::time::Duration;

use super::Allocator;
use crate::defrag;
use crate::error::Result;
use crate::pool::{Bounds, Meshed};
use crate::units::ByteSize;

/// Says that a device is quiescent: no unfinished work touches memory of the allocator, and none will be submitted that does while this value
/// lives. From [`Allocator::quiesce`], which waits for the device, or [`Quiescent::assume`].
///
/// That nothing is submitted meanwhile, by any thread, is for the caller to see to: a kernel that runs while
/// [`Quiescent::defragment`] moves bytes would find old ones, or none.
#[derive(Debug)]
#[must_use = "it says that memory may be moved now"]
pub struct Quiescent<'a> {
    allocator: &'a Allocator,
    device: usize,
    /// For the thread that knows.
    here_only: PhantomData<*const ()>,
}

impl<'a> Quiescent<'a> {
    /// [`Allocator::quiesce`] without waiting.
    ///
    /// # Safety
    /// No unfinished work touches memory that the allocator has handed out on the device, or has taken back, and none that does is submitted, by
    /// any thread or process, while the value lives.
    pub unsafe fn assume(allocator: &'a Allocator, device: usize) -> Result<Quiescent<'a>> {
        allocator.device(device)?;
        Ok(Quiescent { allocator, device, here_only: PhantomData })
    }

    /// The device's ordinal in the allocator.
    pub fn device(&self) -> usize {
        self.device
    }

    /// Gives memory back to the device while all pointers stay what they are: where what is in use in two pages of small blocks, or in two chunks
    /// of larger ones, lies at different places, that of one is copied to the other, and both addresses are mapped to the same memory. When all
    /// blocks at one address have been freed, it goes; when all places are taken, later blocks get memory of their own.
    ///
    /// Does nothing where the device has no virtual memory management, and leaves private pools alone. Memory that is registered with another device,
    /// such as a network card, must not be moved: ask for it with [`AllocFlags::DEDICATED`](super::AllocFlags::DEDICATED). Fails
    /// during a capture.
    ///
    /// Where the driver fails, what was done before stays done, and the page that it failed for is as it was.
    pub fn defragment(&self, limits: PassLimits) -> Result<DefragReport> {
        let plan = |pages: &[_]| defrag::mesh(pages, SEED);
        let done = self.allocator.device(self.device)?.mesh(&plan, limits.bounds())?;
        let Meshed { pages, meshed, chunks, paired, copied, released } = done;
        Ok(DefragReport { pages, meshed, chunks, paired, copied, released })
    }
}

/// What one pass may do at most. No bounds by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassLimits {
    /// Bytes copied.
    pub bytes: ByteSize,
    /// Time on the driver's clock, after which nothing more is begun.
    pub time: Duration,
}

impl Default for PassLimits {
    fn default() -> PassLimits {
        PassLimits { bytes: ByteSize(u64::MAX), time: Duration::MAX }
    }
}

impl PassLimits {
    pub(super) fn bounds(self) -> Bounds {
        Bounds { bytes: self.bytes.0, time_ns: u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX) }
    }
}

/// What [`Quiescent::defragment`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DefragReport {
    /// Pages of small blocks that were looked at, each with memory of its own.
    pub pages: u64,
    /// Pages that share another page's memory now.
    pub meshed: u64,
    /// Chunks of larger blocks, used in part, that were looked at.
    pub chunks: u64,
    /// Chunks that share another one's memory now.
    pub paired: u64,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes given back to the device.
    pub released: u64,
}

impl Allocator {
    /// Waits until the device has done all that was submitted to it, and says so. Fails during a capture.
    pub fn quiesce(&self, device: usize) -> Result<Quiescent<'_>> {
        self.device(device)?.quiesce()?;
        Ok(Quiescent { allocator: self, device, here_only: PhantomData })
    }
}

/// Of the order in which pages are tried. Any number will do, and a replay finds the same.
const SEED: u64 = 1;
