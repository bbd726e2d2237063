//! What the memory of a device looks like: segments, tiled by blocks.

use crate::units::{DevicePtr, PoolId, StreamId};

/// What a block is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockState {
    /// Free, in whatever cache.
    Free,
    /// In the hands of a caller.
    Live,
    /// Freed, and waiting for recorded streams.
    Pending,
}

/// One block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockInfo {
    /// First byte.
    pub ptr: DevicePtr,
    /// Bytes.
    pub size: u64,
    /// What the caller asked for, in bytes. 0 where the block is free.
    pub requested: u64,
    /// What it is doing.
    pub state: BlockState,
    /// The home stream.
    pub stream: StreamId,
    /// The private pool, if one.
    pub pool: Option<PoolId>,
    /// The caller's tag, by its number.
    pub tag: u8,
    /// Whether it has a physical allocation of its own
    /// ([`AllocFlags::DEDICATED`](crate::AllocFlags::DEDICATED)).
    pub dedicated: bool,
}

/// A range of addresses with memory behind all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// First byte.
    pub ptr: DevicePtr,
    /// Bytes, all of them mapped.
    pub size: u64,
    /// Bytes whose memory is counted at another address: pages of small blocks that share memory. Their places that another page's blocks have
    /// are shown as free.
    pub aliased: u64,
    /// The stream that the segment grows for.
    pub stream: StreamId,
    /// The private pool, if one.
    pub pool: Option<PoolId>,
    /// Whether this is where blocks above 512 KiB lie, or those that were said to live long.
    pub large: bool,
    /// Whether it can grow and shrink: chunks in reserved address space, not plain memory.
    pub expandable: bool,
    /// The blocks, in order and without a gap. Free neighbours are one.
    pub blocks: Vec<BlockInfo>,
}

impl SegmentInfo {
    /// Bytes of blocks in one state.
    pub fn bytes_in(&self, state: BlockState) -> u64 {
        self.blocks.iter().filter(|block| block.state == state).map(|block| block.size).sum()
    }

    /// Bytes that callers asked for.
    pub fn requested(&self) -> u64 {
        self.blocks.iter().map(|block| block.requested).sum()
    }

    /// Adds a block at the end; a free one joins a free one.
    pub(crate) fn push(&mut self, block: BlockInfo) {
        debug_assert_eq!(self.ptr.0 + self.size, block.ptr.0, "blocks tile a segment");
        self.size += block.size;
        match self.blocks.last_mut() {
            Some(last) if last.state == BlockState::Free && block.state == BlockState::Free => last.size += block.size,
            _ => self.blocks.push(block),
        }
    }
}
