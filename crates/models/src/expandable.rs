//! Expandable segments: long reservations into which pages are mapped where the lowest room is, and from which whole free pages go back.

use crate::allocator::{Allocator, Request};
use crate::blocks::{Block, BlockId};
use crate::device::Call;

/// One reservation. Pages are mapped one handle each, so that the blocks say which are there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    address: u64,
    page: u64,
    size: u64,
}

impl Allocator {
    /// Maps pages until a block has room for the request. The block is in no set then. On failure, what was mapped stays, free.
    pub(crate) fn expand(&mut self, request: &Request) -> Option<BlockId> {
        let mut id = self.room(request);
        if !self.blocks[id].mapped {
            let size = self.blocks[id].size.min(request.size);
            if !self.map(id, size) {
                return None;
            }
        }
        while self.blocks[id].size < request.size {
            // Free, then not mapped: what is mapped of the latter joins the former.
            let next = self.blocks[id].next?;
            let missing = (request.size - self.blocks[id].size).min(self.blocks[next].size);
            if !self.map(next, missing) {
                return None;
            }
            id = next;
        }
        self.forget(id);
        Some(id)
    }

    /// The lowest block of the stream's segments from which on there are enough addresses, free or not mapped; or a new segment.
    fn room(&mut self, request: &Request) -> BlockId {
        let blocks = &self.blocks;
        let pool = if request.small { &self.small } else { &self.large };
        let start = |id: BlockId| blocks[id].prev.filter(|&prev| blocks[prev].is_idle()).unwrap_or(id);
        let has_room = |id: &BlockId| {
            let (mut bytes, mut at) = (0, Some(*id));
            while let Some(id) = at.filter(|&id| bytes < request.size && blocks[id].is_idle()) {
                bytes += blocks[id].size;
                at = blocks[id].next;
            }
            bytes >= request.size
        };
        if let Some(id) = pool.all_unmapped(request.stream).map(start).find(has_room) {
            return id;
        }
        let page = self.settings.page(request.small);
        let capacity = self.device.capacity();
        // Addresses for all of the device's memory and an eighth more.
        let size = (capacity + capacity / 8).div_ceil(page) * page;
        let address = self.device.reserve(size);
        let segment = self.segments.len() as u32;
        self.segments.push(Some(Segment { address, page, size }));
        let id = self.blocks.add_segment(request.stream, address, size, request.small);
        let block = &mut self.blocks[id];
        (block.mapped, block.segment) = (false, Some(segment));
        let pool = if request.small { &mut self.small } else { &mut self.large };
        pool.insert_unmapped(&self.blocks, id);
        id
    }

    fn segment_of(&self, block: &Block) -> Segment {
        let segment = block.segment.and_then(|segment| self.segments[segment as usize]);
        segment.expect("only blocks of live segments are mapped and unmapped")
    }

    /// Puts memory behind the first `size` bytes of a block, rounded up to pages. It is free then, merged with its neighbours.
    fn map(&mut self, id: BlockId, size: u64) -> bool {
        let Segment { page, .. } = self.segment_of(&self.blocks[id]);
        let pages = size.div_ceil(page);
        for created in 0..pages {
            if !self.device.create(page) {
                (0..created).for_each(|_| self.device.release(page));
                return false;
            }
        }
        (0..pages).for_each(|_| self.device.call(Call::MemMap, page));
        self.device.call(Call::MemSetAccess, pages * page);
        self.forget(id);
        let mapped = pages * page;
        if mapped < self.blocks[id].size {
            let rest = self.blocks.cut(id, mapped);
            let pool = if self.blocks[rest].small { &mut self.small } else { &mut self.large };
            pool.insert_unmapped(&self.blocks, rest);
        }
        self.blocks[id].mapped = true;
        let block = &self.blocks[id];
        for neighbour in [block.prev, block.next] {
            self.merge(id, neighbour);
        }
        self.insert_free(id);
        self.note_taken(mapped);
        true
    }

    /// Takes the whole pages out of a free block. Where nothing of its segment is left, the segment goes.
    pub(crate) fn unmap(&mut self, id: BlockId) {
        let block = &self.blocks[id];
        let segment = self.segment_of(block);
        let offset = block.address - segment.address;
        let last = offset + block.size;
        let begin = offset.next_multiple_of(segment.page);
        let end = last / segment.page * segment.page;
        if begin >= end {
            return;
        }
        let pages = (end - begin) / segment.page;
        self.device.call(Call::StreamSynchronize, 0);
        for _ in 0..pages {
            self.device.call(Call::MemUnmap, segment.page);
            self.device.release(segment.page);
        }
        self.forget(id);
        let (before, after) = (begin - offset, last - end);
        let mut middle = id;
        if before > 0 {
            middle = self.blocks.cut(id, before);
            self.insert_free(id);
        }
        if after > 0 {
            let size = self.blocks[middle].size;
            let rest = self.blocks.cut(middle, size - after);
            self.insert_free(rest);
        }
        self.blocks[middle].mapped = false;
        let block = &self.blocks[middle];
        for neighbour in [block.prev, block.next] {
            self.merge(middle, neighbour);
        }
        self.note_given_back(end - begin);
        if self.blocks[middle].is_split() {
            let pool = if self.blocks[middle].small { &mut self.small } else { &mut self.large };
            pool.insert_unmapped(&self.blocks, middle);
        } else {
            self.drop_segment(middle);
        }
    }

    /// Gives the addresses of a segment back of which nothing is mapped.
    fn drop_segment(&mut self, id: BlockId) {
        let Segment { address, size, .. } = self.segment_of(&self.blocks[id]);
        self.device.unreserve(address, size);
        if let Some(segment) = self.blocks[id].segment {
            self.segments[segment as usize] = None;
        }
        self.blocks.remove(id);
    }
}
