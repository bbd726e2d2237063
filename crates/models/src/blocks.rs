//! Blocks and the two sets in which a pool keeps those that are free. A block is a number; its neighbours in the segment are links.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

/// A block, as an index into [`Blocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockId(u32);

/// A range of addresses that is lent, free, or not mapped.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) stream: u16,
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// How many segments had been taken when its own was: of free blocks of one size, the one in the eldest segment serves.
    pub(crate) born: u64,
    pub(crate) small: bool,
    pub(crate) allocated: bool,
    /// Whether there is memory behind it. False in expandable segments only.
    pub(crate) mapped: bool,
    pub(crate) prev: Option<BlockId>,
    pub(crate) next: Option<BlockId>,
    /// Streams other than its own on which it was used.
    pub(crate) uses: Vec<u16>,
    /// Events that have yet to be seen complete before it is free.
    pub(crate) events: u32,
    /// How often its pool had been searched when it became free.
    pub(crate) free_since: u64,
    /// Which expandable segment it belongs to.
    pub(crate) segment: Option<u32>,
}

impl Block {
    pub(crate) fn is_split(&self) -> bool {
        self.prev.is_some() || self.next.is_some()
    }

    /// Whether it may be merged or served: not lent, and not waited for.
    pub(crate) fn is_idle(&self) -> bool {
        !self.allocated && self.events == 0 && self.uses.is_empty()
    }
}

/// All blocks. Numbers of those that have gone are used again.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    all: Vec<Block>,
    unused: Vec<BlockId>,
    births: u64,
}

impl Index<BlockId> for Blocks {
    type Output = Block;

    fn index(&self, id: BlockId) -> &Block {
        &self.all[id.0 as usize]
    }
}

impl IndexMut<BlockId> for Blocks {
    fn index_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.all[id.0 as usize]
    }
}

impl Blocks {
    fn add(&mut self, block: Block) -> BlockId {
        match self.unused.pop() {
            Some(id) => {
                self[id] = block;
                id
            }
            None => {
                self.all.push(block);
                BlockId(u32::try_from(self.all.len() - 1).expect("a trace has fewer blocks than u32 counts"))
            }
        }
    }

    pub(crate) fn remove(&mut self, id: BlockId) {
        self.unused.push(id);
    }

    /// A whole segment as one block without neighbours.
    pub(crate) fn add_segment(&mut self, stream: u16, address: u64, size: u64, small: bool) -> BlockId {
        self.births += 1;
        self.add(Block {
            stream,
            address,
            size,
            born: self.births,
            small,
            allocated: false,
            mapped: true,
            prev: None,
            next: None,
            uses: Vec::new(),
            events: 0,
            free_since: 0,
            segment: None,
        })
    }

    /// Cuts a block after `size` bytes. It keeps its first part; the rest is a new block behind it.
    pub(crate) fn cut(&mut self, id: BlockId, size: u64) -> BlockId {
        let block = &self[id];
        let (address, left, next) = (block.address + size, block.size - size, block.next);
        let rest = Block { address, size: left, prev: Some(id), next, uses: Vec::new(), events: 0, ..block.clone() };
        let rest = self.add(rest);
        if let Some(next) = next {
            self[next].prev = Some(rest);
        }
        let block = &mut self[id];
        block.size = size;
        block.next = Some(rest);
        rest
    }
}

/// The key of a free block, by stream, size, age of its segment and address: best fit is the first at or after (stream, size).
type BySize = (u16, u64, u64, u64, BlockId);

const FIRST: BlockId = BlockId(0);

/// What is free of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: BTreeSet<BySize>,
    unmapped: BTreeSet<(u16, u64, BlockId)>,
    /// How often it was searched, counted only where ages matter.
    pub(crate) searches: u64,
}

fn by_size(blocks: &Blocks, id: BlockId) -> BySize {
    let block = &blocks[id];
    (block.stream, block.size, block.born, block.address, id)
}

impl Pool {
    pub(crate) fn insert(&mut self, blocks: &mut Blocks, id: BlockId) {
        blocks[id].free_since = self.searches;
        self.free.insert(by_size(blocks, id));
    }

    pub(crate) fn remove(&mut self, blocks: &Blocks, id: BlockId) {
        let removed = self.free.remove(&by_size(blocks, id));
        debug_assert!(removed);
    }

    pub(crate) fn insert_unmapped(&mut self, blocks: &Blocks, id: BlockId) {
        self.unmapped.insert((blocks[id].stream, blocks[id].address, id));
    }

    pub(crate) fn remove_unmapped(&mut self, blocks: &Blocks, id: BlockId) {
        let removed = self.unmapped.remove(&(blocks[id].stream, blocks[id].address, id));
        debug_assert!(removed);
    }

    /// Takes out a block of either kind.
    pub(crate) fn forget(&mut self, blocks: &Blocks, id: BlockId) {
        if blocks[id].mapped {
            self.remove(blocks, id);
        } else {
            self.remove_unmapped(blocks, id);
        }
    }

    /// The free blocks of a stream from `size` bytes up, the smallest first.
    pub(crate) fn at_least(&self, stream: u16, size: u64) -> impl Iterator<Item = BlockId> {
        self.free.range((stream, size, 0, 0, FIRST)..).take_while(move |key| key.0 == stream).map(|key| key.4)
    }

    /// The free blocks before `size` bytes of a stream, the largest first, those of other streams behind.
    pub(crate) fn below(&self, stream: u16, size: u64) -> impl Iterator<Item = BlockId> {
        self.free.range(..(stream, size, 0, 0, FIRST)).rev().map(|key| key.4)
    }

    /// All free blocks.
    pub(crate) fn all(&self) -> impl Iterator<Item = BlockId> {
        self.free.iter().map(|key| key.4)
    }

    /// What is not mapped of a stream's segments, by address.
    pub(crate) fn all_unmapped(&self, stream: u16) -> impl Iterator<Item = BlockId> {
        self.unmapped.range((stream, 0, FIRST)..).take_while(move |entry| entry.0 == stream).map(|entry| entry.2)
    }
}
