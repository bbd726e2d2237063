//! What the debug aids tell users.

use std::fmt;
use std::sync::Arc;

use crate::telemetry::BlockInfo;
use crate::units::{ByteSize, DevicePtr, StreamId};

/// Told of what the debug aids find. Called with no lock held, by the thread whose call looked; it may call the allocator.
pub type MemoryObserver = Arc<dyn Fn(&MemoryReport) + Send + Sync>;

/// What the debug aids found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MemoryReport {
    /// Memory was written that should not have been.
    Fault(MemoryFault),
    /// Blocks were still in use when the allocator or the process ended.
    Leaks(Leaks),
    /// Red zones and poison are off from now on, since the device or its driver has no kernels for them.
    Off {
        /// The device's ordinal in the allocator.
        device: usize,
        /// The driver's words.
        reason: String,
    },
}

/// What was done to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryFaultKind {
    /// The red zone behind a block was written. By a user of the block, beyond its end; or by one of the block that begins behind the
    /// zone, before its start.
    Overflow,
    /// A block was written after it was freed.
    WriteAfterFree,
}

/// Memory was written that should not have been.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryFault {
    /// The device's ordinal in the allocator.
    pub device: usize,
    /// What was done.
    pub kind: MemoryFaultKind,
    /// The block's first byte.
    pub ptr: DevicePtr,
    /// What its caller had asked for, in bytes.
    pub size: u64,
    /// Its bytes in all, red zone included.
    pub block_size: u64,
    /// Its home stream.
    pub stream: StreamId,
    /// Its tag, by number.
    pub tag: u8,
    /// Its tag's name, where it has one.
    pub tag_name: Option<String>,
    /// The first byte that is not what it was.
    pub at: DevicePtr,
    /// How many bytes are not what they were, in the part that was compared.
    pub count: u64,
    /// What is at `at`.
    pub found: u8,
    /// What was there.
    pub expected: u8,
}

impl MemoryFault {
    /// How far into the block the first changed byte lies.
    pub fn offset(&self) -> u64 {
        self.at.0 - self.ptr.0
    }
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            MemoryFaultKind::Overflow => {
                let behind = self.offset() - self.size;
                write!(f, "overflow: {} byte(s) changed in the red zone of a block, ", self.count)?;
                write!(f, "the first {behind} byte(s) behind its end, at {}", self.at)?;
            }
            MemoryFaultKind::WriteAfterFree => {
                write!(f, "write after free: {} byte(s) changed in a freed block, ", self.count)?;
                write!(f, "the first at its offset {}, at {}", self.offset(), self.at)?;
            }
        }
        write!(f, " ({:#04x} in place of {:#04x}); ", self.found, self.expected)?;
        write!(f, "block at {} of {} bytes, {}", self.ptr, self.size, self.stream)?;
        match (&self.tag_name, self.tag) {
            (Some(name), _) => write!(f, ", tag {name}")?,
            (None, 0) => {}
            (None, tag) => write!(f, ", tag {tag}")?,
        }
        write!(f, ", device {}", self.device)
    }
}

/// What one tag or one stream has of the blocks still in use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Share {
    /// The tag's name, or the stream.
    pub name: String,
    /// How many blocks.
    pub blocks: u64,
    /// What was asked for, in bytes.
    pub bytes: u64,
}

/// Blocks that were still in use when the allocator or the process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leaks {
    /// The device's ordinal in the allocator.
    pub device: usize,
    /// How many blocks.
    pub blocks: u64,
    /// What was asked for, in bytes.
    pub bytes: u64,
    /// By tag, the most bytes first.
    pub by_tag: Vec<Share>,
    /// By home stream, the most bytes first.
    pub by_stream: Vec<Share>,
    /// The largest blocks, with the names of their tags; the largest first.
    pub largest: Vec<(BlockInfo, String)>,
}

/// Blocks named in a report of leaks.
const LARGEST: usize = 10;

impl Leaks {
    /// The blocks that are live among these. `None` where none is.
    pub(crate) fn of(device: usize, live: Vec<BlockInfo>, tag_name: impl Fn(u8) -> String) -> Option<Leaks> {
        let mut live = live;
        live.sort_by_key(|block| (std::cmp::Reverse(block.requested), block.ptr));
        if live.is_empty() {
            return None;
        }
        Some(Leaks {
            device,
            blocks: live.len() as u64,
            bytes: live.iter().map(|block| block.requested).sum(),
            by_tag: shares(&live, |block| tag_name(block.tag)),
            by_stream: shares(&live, |block| block.stream.to_string()),
            largest: live.iter().take(LARGEST).map(|&block| (block, tag_name(block.tag))).collect(),
        })
    }
}

fn shares(blocks: &[BlockInfo], name: impl Fn(&BlockInfo) -> String) -> Vec<Share> {
    let mut shares = std::collections::BTreeMap::<String, (u64, u64)>::new();
    for block in blocks {
        let share = shares.entry(name(block)).or_default();
        *share = (share.0 + 1, share.1 + block.requested);
    }
    let share = |(name, (blocks, bytes))| Share { name, blocks, bytes };
    let mut shares: Vec<Share> = shares.into_iter().map(share).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leaks { device, blocks, bytes, by_tag, by_stream, largest } = self;
        write!(f, "{blocks} block(s) of {} still in use on device {device}", ByteSize(*bytes))?;
        for (what, shares) in [("tag", by_tag), ("stream", by_stream)] {
            for Share { name, blocks, bytes } in shares {
                let name = name.strip_prefix(what).map_or(name.as_str(), str::trim_start);
                write!(f, "\n  {what} {name}: {blocks} block(s), {}", ByteSize(*bytes))?;
            }
        }
        for (block, tag) in largest {
            write!(f, "\n  {} bytes at {}, {}, tag {tag}", block.requested, block.ptr, block.stream)?;
        }
        let more = blocks - largest.len() as u64;
        if more > 0 { write!(f, "\n  and {more} smaller") } else { Ok(()) }
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryReport::Fault(fault) => fault.fmt(f),
            MemoryReport::Leaks(leaks) => leaks.fmt(f),
            MemoryReport::Off { device, reason } => {
                write!(f, "red zones and poison are off on device {device}: {reason}")
            }
        }
    }
}
