//! Why a request found no room, and what would make it succeed: [`OomExplanation`], as data.

use super::DriverError;
use crate::units::{DevicePtr, PoolId, StreamId};

/// The state of a device when a request found no room.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// What was asked for, in bytes.
    pub size: u64,
    /// The device's ordinal in this allocator.
    pub device: usize,
    /// Memory of the device, in bytes.
    pub capacity: u64,
    /// The limit on reserved memory, in bytes, if there is one.
    pub limit: Option<u64>,
    /// Physical memory held, in bytes.
    pub reserved: u64,
    /// Requested and not freed, in bytes.
    pub live: u64,
    /// Held, in blocks that are free but may not be used yet, because a stream has not passed them, in bytes.
    pub pending: u64,
    /// Held in blocks that are free, in bytes.
    pub cached: u64,
    /// The largest free block, in bytes.
    pub largest_free: u64,
    /// What the driver said, where it was the driver that had no memory.
    pub driver: Option<DriverError>,
    /// Why there was no room, and what to do.
    pub explanation: OomExplanation,
}

/// Why a request found no room. Where several things stood in the way, the one that is undone most cheaply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OomCause {
    /// More than the device has at all.
    LargerThanDevice,
    /// More than the limit on reserved memory.
    LargerThanLimit,
    /// The limit of the request's tag.
    TagLimit,
    /// The limit on reserved memory: the device has more.
    Limit,
    /// Other processes, or the driver for itself, hold what is missing.
    OtherProcesses,
    /// Live blocks fill what there is.
    #[default]
    InUse,
    /// What is free has not been passed by its streams, and the request was not to wait.
    Streams,
    /// The request was to take nothing from the device and to move nothing.
    NoGrow,
    /// A capture is under way, in which nothing may be waited for.
    Capture,
    /// A private pool keeps what is missing to itself.
    PrivatePool,
    /// Enough is free, but in pieces, and there is no virtual memory management to join them.
    FragmentedSegments,
    /// Enough is free, but in pieces of chunks that live blocks share: such chunks cannot be moved.
    FragmentedChunks,
    /// Enough is free, but as slots of slabs that are not empty.
    FragmentedSlabs,
    /// Only the alignment does not fit.
    Alignment,
    /// Only a physical allocation of its own does not fit.
    Dedicated,
    /// Only the place apart for long-lived blocks has no room.
    Persistent,
    /// What is left of the device, or its limit, is less than one chunk of the configured size.
    ChunkSize,
    /// The driver makes no more mappings.
    Mappings,
    /// No addresses are left.
    Addresses,
    /// The host has no memory for metadata.
    HostMemory,
    /// The driver refused, though it says that there is room.
    DriverRefused,
    /// The driver failed for another reason.
    DriverFailed,
    /// The context is broken: nothing works any more.
    DriverDead,
}

/// What would make a request succeed. The order is by what it costs the program, about: cheapest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum OomRemedy {
    /// Ask again: nothing that is known stands in the way.
    Retry,
    /// Wait for these streams.
    Synchronize(Vec<StreamId>),
    /// Ask without [`AllocFlags::NO_GROW`](crate::AllocFlags::NO_GROW).
    AllowGrowth,
    /// Give free memory back to the device.
    EmptyCache,
    /// Let pages of small blocks share memory: [`Quiescent::defragment`](crate::Quiescent::defragment).
    Defragment,
    /// End the captures that are under way, then ask.
    EndCapture,
    /// Ask for no more than this alignment.
    LowerAlignment(u64),
    /// Ask without saying that the block lives long.
    DropPersistent,
    /// Ask without [`AllocFlags::DEDICATED`](crate::AllocFlags::DEDICATED).
    DropDedicated,
    /// Let this private pool lend, which no capture has filled.
    LendPool(PoolId),
    /// Raise the limit on reserved memory to at least so many bytes.
    RaiseLimit(u64),
    /// Raise a tag's limit to at least so many bytes.
    RaiseTagLimit {
        /// The tag's number.
        tag: u8,
        /// The least limit, in bytes.
        to: u64,
    },
    /// Free blocks that only keep pieces of free memory apart: few bytes beside what is asked for.
    FreePins(Vec<OomBlock>),
    /// Release this private pool: destroy the graphs, or whatever else uses it.
    ReleasePool(PoolId),
    /// Start with this setting.
    Configure {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// Free so many bytes in other processes, or of the driver's own.
    FreeElsewhere(u64),
    /// Ask for pieces of at most so many bytes.
    Split(u64),
    /// Free these live blocks.
    Free(Vec<OomBlock>),
    /// Free the live blocks of this tag.
    FreeTag(u8),
    /// Ask for at most so many bytes.
    AskForLess(u64),
    /// Give the process more host memory or address space (`ulimit -v`).
    FreeHostMemory,
    /// Start the process again: nothing else helps.
    Restart,
}

/// One thing that could be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OomAdvice {
    /// What to do.
    pub remedy: OomRemedy,
    /// How many bytes it would free or open up; 0 where that is not what it is about.
    pub frees: u64,
    /// Whether the request would then succeed, if nothing else changes.
    pub suffices: bool,
}

/// A block that is in somebody's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub struct OomBlock {
    /// Its first byte.
    pub ptr: DevicePtr,
    /// Its size in bytes.
    pub size: u64,
    /// Requested bytes.
    pub requested: u64,
    /// Its home stream.
    pub stream: StreamId,
    /// Its tag's number.
    pub tag: u8,
    /// The private pool that it lies in, if one.
    pub pool: Option<PoolId>,
    /// Whether it has a physical allocation of its own.
    pub dedicated: bool,
    /// Whether it was freed and waits for recorded streams.
    pub pending: bool,
    /// Events and microseconds since it was handed out, where the trace ring (the key `trace`) still knows.
    pub age: Option<(u64, u64)>,
}

/// What lies beside a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OomNeighbour {
    /// A block.
    Block(OomBlock),
    /// A slab.
    Slab {
        /// Bytes a slot.
        slot_size: u64,
        /// Slots that are not free.
        taken: u32,
        /// All slots.
        slots: u32,
    },
    /// Free memory that the request may not use: of another stream, or of a private pool.
    Foreign {
        /// Whose.
        stream: StreamId,
        /// The pool.
        pool: Option<PoolId>,
        /// Bytes.
        size: u64,
    },
    /// Nothing: addresses without memory, or the end of the segment.
    Edge,
}

/// A range without a hole that the request could use, but for its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OomGap {
    /// First byte.
    pub ptr: DevicePtr,
    /// Bytes.
    pub size: u64,
    /// What lies below and above.
    pub beside: [OomNeighbour; 2],
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OomRequest {
    /// Bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub alignment: u64,
    /// The stream.
    pub stream: StreamId,
    /// The private pool that the request went to, if one.
    pub pool: Option<PoolId>,
    /// The tag's number.
    pub tag: u8,
    /// Whether memory could be taken from the device, and streams waited for.
    pub may_grow: bool,
    /// Whether it was said to live long.
    pub persistent: bool,
    /// Whether it was to have a physical allocation of its own.
    pub dedicated: bool,
}

/// Bytes that are held and not live, by who has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OomFree {
    /// Free, of the request's own lane.
    pub own: u64,
    /// Free, for anyone.
    pub shared: u64,
    /// Free, of streams that have not passed it.
    pub not_passed: u64,
    /// Free in private pools.
    pub private: u64,
    /// Freed, and waiting for recorded streams.
    pub pending: u64,
    /// Free slots of slabs.
    pub slots: u64,
    /// In threads' magazines.
    pub magazines: u64,
    /// In chunks that are mapped nowhere.
    pub reserve: u64,
}

/// What a rung of the ladder did for the request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OomRung {
    /// Its name, as [`Rung::name`](crate::Rung::name) gives it.
    pub name: &'static str,
    /// Bytes that became free for the request, or that were taken from the device.
    pub gained: u64,
    /// What the driver refused it.
    pub error: Option<String>,
}

/// What the tiers did for a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OomTiers {
    /// Bytes that were evicted for it.
    pub evicted: u64,
    /// Bytes that may be evicted, and are not.
    pub evictable: u64,
    /// Bytes of evictable blocks that are pinned.
    pub pinned: u64,
    /// Why something could not be evicted.
    pub failure: Option<String>,
}

/// A private pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OomPool {
    /// Which.
    pub pool: PoolId,
    /// Users.
    pub users: usize,
    /// What it has free, in bytes.
    pub free: u64,
}

/// The live blocks of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OomTag {
    /// The tag's number; 0 for none.
    pub tag: u8,
    /// Its name, where the allocator has given it one.
    pub name: String,
    /// Bytes of its blocks.
    pub bytes: u64,
    /// How many blocks.
    pub blocks: u64,
}

/// Why a request found no room: what is where, what was tried, and what to do. Its text is what one wants to read first; its fields are the
/// same as data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct OomExplanation {
    /// The verdict.
    pub cause: OomCause,
    /// What was asked for.
    pub request: OomRequest,
    /// The device's ordinal in this allocator.
    pub device: usize,
    /// Memory of the device, in bytes.
    pub capacity: u64,
    /// The limit on reserved memory, in bytes, if there is one.
    pub limit: Option<u64>,
    /// Physical memory held, in bytes.
    pub reserved: u64,
    /// Requested and not freed, in bytes.
    pub live: u64,
    /// Free by the driver's word, in bytes; unknown where it gave none.
    pub device_free: Option<u64>,
    /// In use by other processes, and by the driver for itself, in bytes: neither free nor held here.
    pub elsewhere: Option<u64>,
    /// Bytes a chunk.
    pub chunk: u64,
    /// What would have to be found in addition, in bytes.
    pub missing: u64,
    /// Held and not live, by who has it.
    pub free: OomFree,
    /// The largest gaps, largest first.
    pub gaps: Vec<OomGap>,
    /// Free bytes that wait for a stream, by stream, most first.
    pub waiting: Vec<(StreamId, u64)>,
    /// The private pools that have memory.
    pub pools: Vec<OomPool>,
    /// The tags that hold most.
    pub tags: Vec<OomTag>,
    /// The rungs that were tried, in order.
    pub rungs: Vec<OomRung>,
    /// What the tiers did for the request, where there are any.
    pub tiers: Option<OomTiers>,
    /// What could be done: what suffices first, and of that the cheapest.
    pub advice: Vec<OomAdvice>,
    /// What the driver said.
    pub driver: Option<DriverError>,
    /// Whether there were more blocks than are looked at in one go. What is said still holds, but there may be more to say.
    pub is_partial: bool,
}

impl OomExplanation {
    /// The cheapest thing to do that suffices, if anything known does.
    pub fn remedy(&self) -> Option<&OomRemedy> {
        self.advice.iter().find(|advice| advice.suffices).map(|advice| &advice.remedy)
    }
}

impl OomExplanation {
    /// Every block that is told of.
    pub(crate) fn blocks_mut(&mut self, work: &mut dyn FnMut(&mut OomBlock)) {
        for gap in &mut self.gaps {
            for beside in &mut gap.beside {
                if let OomNeighbour::Block(block) = beside {
                    work(block);
                }
            }
        }
        for advice in &mut self.advice {
            if let OomRemedy::Free(blocks) | OomRemedy::FreePins(blocks) = &mut advice.remedy {
                blocks.iter_mut().for_each(&mut *work);
            }
        }
    }

    /// Fills in the names of tags.
    pub(crate) fn name_tags(&mut self, name: impl Fn(u8) -> Option<String>) {
        let mentioned = self.advice.iter().filter_map(|advice| match advice.remedy {
            OomRemedy::RaiseTagLimit { tag, .. } | OomRemedy::FreeTag(tag) => Some(tag),
            _ => None,
        });
        let mentioned: Vec<u8> = mentioned.chain([self.request.tag]).filter(|&tag| tag != 0).collect();
        for tag in mentioned {
            if !self.tags.iter().any(|known| known.tag == tag) {
                self.tags.push(OomTag { tag, name: String::new(), bytes: 0, blocks: 0 });
            }
        }
        for tag in &mut self.tags {
            tag.name = name(tag.tag).unwrap_or_default();
        }
    }
}
