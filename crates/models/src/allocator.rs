//! Requests and frees: which free block serves, how it is cut, how it is merged again.

use std::collections::{BTreeMap, VecDeque};

use crate::blocks::{BlockId, Blocks, Pool};
use crate::device::{Call, Device};
use crate::expandable::Segment;
use crate::settings::{LARGE_ABOVE, MIN_BLOCK, Settings};

/// What a request came to, once rounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) size: u64,
    pub(crate) stream: u16,
    pub(crate) small: bool,
    /// What is taken from the driver for it where nothing cached serves.
    pub(crate) segment: u64,
}

/// One device's caching allocator.
#[derive(Debug)]
pub(crate) struct Allocator {
    pub(crate) settings: Settings,
    pub(crate) device: Device,
    /// The most it may hold, where a part of the device's memory was set.
    pub(crate) allowed: Option<u64>,
    pub(crate) blocks: Blocks,
    pub(crate) small: Pool,
    pub(crate) large: Pool,
    pub(crate) segments: Vec<Option<Segment>>,
    /// Events that were recorded for blocks, in order, by stream: when each is seen to complete, and the block.
    events: BTreeMap<u16, VecDeque<(u64, BlockId)>>,
    reserved: u64,
    peak_reserved: u64,
    allocated: u64,
    pub(crate) retries: u64,
    pub(crate) releases: u64,
}

impl Allocator {
    pub(crate) fn new(settings: Settings, device: Device) -> Allocator {
        let part = settings.memory_fraction.filter(|&part| part < 1.0);
        Allocator {
            allowed: part.map(|part| (part * device.capacity() as f64) as u64),
            settings,
            device,
            blocks: Blocks::default(),
            small: Pool::default(),
            large: Pool::default(),
            segments: Vec::new(),
            events: BTreeMap::new(),
            reserved: 0,
            peak_reserved: 0,
            allocated: 0,
            retries: 0,
            releases: 0,
        }
    }

    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(crate) fn peak_reserved(&self) -> u64 {
        self.peak_reserved
    }

    pub(crate) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Counts memory that came from the driver.
    pub(crate) fn note_taken(&mut self, size: u64) {
        self.reserved += size;
        self.peak_reserved = self.peak_reserved.max(self.reserved);
    }

    /// Counts memory that went back.
    pub(crate) fn note_given_back(&mut self, size: u64) {
        self.reserved -= size;
    }

    pub(crate) fn pool(&mut self, small: bool) -> &mut Pool {
        if small { &mut self.small } else { &mut self.large }
    }

    /// Puts a block among the free ones.
    pub(crate) fn insert_free(&mut self, id: BlockId) {
        let pool = if self.blocks[id].small { &mut self.small } else { &mut self.large };
        pool.insert(&mut self.blocks, id);
    }

    /// Takes a block out of the free or the unmapped ones.
    pub(crate) fn forget(&mut self, id: BlockId) {
        let pool = if self.blocks[id].small { &mut self.small } else { &mut self.large };
        pool.forget(&self.blocks, id);
    }

    /// Whether blocks age: only then are searches counted, and old segments given back before new ones are taken.
    pub(crate) fn collects_garbage(&self) -> bool {
        self.allowed.is_some() && self.settings.gc_threshold > 0.0
    }

    pub(crate) fn malloc(&mut self, bytes: u64, stream: u16) -> Option<BlockId> {
        self.process_events();
        let size = self.settings.round(bytes);
        let small = size <= LARGE_ABOVE;
        let request = Request { size, stream, small, segment: self.settings.segment_for(size) };
        let found = self.find_free(&request).or_else(|| {
            self.collect_garbage();
            self.take_segment(&request)
                .or_else(|| self.release_enough(&request).then(|| self.take_segment(&request)).flatten())
                .or_else(|| {
                    self.release_cached();
                    self.retries += 1;
                    self.take_segment(&request)
                })
        });
        let id = found?;
        if self.may_split(id, size) {
            let rest = self.blocks.cut(id, size);
            self.insert_free(rest);
        }
        self.blocks[id].allocated = true;
        self.allocated += self.blocks[id].size;
        Some(id)
    }

    /// Best fit: the smallest that is large enough, of equals that in the eldest segment. It is taken out.
    fn find_free(&mut self, request: &Request) -> Option<BlockId> {
        let counts = self.collects_garbage();
        let settings = &self.settings;
        let (blocks, pool) = (&self.blocks, if request.small { &mut self.small } else { &mut self.large });
        pool.searches += u64::from(counts);
        let mut fitting = pool.at_least(request.stream, request.size).peekable();
        let mut id = fitting.next()?;
        if blocks[id].segment.is_some() {
            // The last block before unmapped addresses counts as large as it can grow: others, if a little larger, serve first.
            let grown = |id: BlockId| {
                let next = blocks[id].next.map(|next| &blocks[next]);
                blocks[id].size + next.filter(|next| !next.mapped).map_or(0, |next| next.size)
            };
            while let Some(&next) = fitting.peek()
                && grown(next) < grown(id)
            {
                id = next;
                fitting.next();
            }
        }
        drop(fitting);
        let found = blocks[id].size;
        let (limit, slack) = (settings.max_split_size, settings.max_non_split_rounding);
        let is_oversize = request.size < limit && found >= limit;
        let is_wasteful = request.size >= limit && found >= request.size.saturating_add(slack);
        if is_oversize || is_wasteful {
            return None;
        }
        pool.remove(blocks, id);
        Some(id)
    }

    fn may_split(&self, id: BlockId, size: u64) -> bool {
        let block = &self.blocks[id];
        let rest = block.size - size;
        if block.small || self.settings.expandable {
            rest >= MIN_BLOCK
        } else {
            size < self.settings.max_split_size && rest > LARGE_ABOVE
        }
    }

    /// Memory from the driver.
    fn take_segment(&mut self, request: &Request) -> Option<BlockId> {
        if self.allowed.is_some_and(|allowed| self.reserved + request.segment > allowed) {
            return None;
        }
        if self.settings.expandable {
            return self.expand(request);
        }
        let address = self.device.malloc(request.segment)?;
        self.note_taken(request.segment);
        Some(self.blocks.add_segment(request.stream, address, request.segment, request.small))
    }

    pub(crate) fn record_stream(&mut self, id: BlockId, stream: u16) {
        let block = &mut self.blocks[id];
        if stream != block.stream && !block.uses.contains(&stream) {
            block.uses.push(stream);
        }
    }

    pub(crate) fn free(&mut self, id: BlockId) {
        let block = &mut self.blocks[id];
        block.allocated = false;
        self.allocated -= block.size;
        let uses = std::mem::take(&mut block.uses);
        if uses.is_empty() {
            return self.free_now(id);
        }
        block.events = uses.len() as u32;
        for stream in uses {
            let done = self.device.record_event();
            self.events.entry(stream).or_default().push_back((done, id));
        }
    }

    fn free_now(&mut self, id: BlockId) {
        let block = &self.blocks[id];
        for neighbour in [block.prev, block.next] {
            self.merge(id, neighbour);
        }
        self.insert_free(id);
    }

    /// Takes a neighbour into a block that is in no set, if both are alike.
    pub(crate) fn merge(&mut self, id: BlockId, neighbour: Option<BlockId>) {
        let Some(other) = neighbour else { return };
        if !self.blocks[other].is_idle() || self.blocks[other].mapped != self.blocks[id].mapped {
            return;
        }
        self.forget(other);
        let (prev, next, size, address) = {
            let other = &self.blocks[other];
            (other.prev, other.next, other.size, other.address)
        };
        let block = &mut self.blocks[id];
        block.size += size;
        if block.prev == Some(other) {
            block.address = address;
            block.prev = prev;
            if let Some(prev) = prev {
                self.blocks[prev].next = Some(id);
            }
        } else {
            block.next = next;
            if let Some(next) = next {
                self.blocks[next].prev = Some(id);
            }
        }
        self.blocks.remove(other);
    }

    /// Asks each stream's oldest events, up to the first that is not complete.
    fn process_events(&mut self) {
        let streams: Vec<u16> = self.events.keys().copied().collect();
        for stream in streams {
            while let Some(&(done, id)) = self.events.get(&stream).and_then(VecDeque::front) {
                self.device.call(Call::EventQuery, 0);
                if done > self.device.now {
                    break;
                }
                self.events.get_mut(&stream).map(VecDeque::pop_front);
                self.event_done(id);
            }
        }
        self.events.retain(|_, queue| !queue.is_empty());
    }

    /// Waits for all events.
    pub(crate) fn synchronize_events(&mut self) {
        for (done, id) in std::mem::take(&mut self.events).into_values().flatten() {
            self.device.call(Call::EventSynchronize, 0);
            self.device.now = self.device.now.max(done);
            self.event_done(id);
        }
    }

    fn event_done(&mut self, id: BlockId) {
        self.blocks[id].events -= 1;
        if self.blocks[id].events == 0 {
            self.free_now(id);
        }
    }
}
