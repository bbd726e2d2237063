//! What goes back to the driver: everything that is cached, enough of what is oversize, or what has been free for long.

use crate::allocator::{Allocator, Request};
use crate::blocks::BlockId;
use crate::settings::UNLIMITED;

impl Allocator {
    pub(crate) fn empty_cache(&mut self) {
        self.release_cached();
    }

    /// Waits for all events, and gives back every segment of which nothing is used, and every such page of expandable ones.
    pub(crate) fn release_cached(&mut self) {
        self.releases += 1;
        self.synchronize_events();
        for small in [false, true] {
            let free: Vec<BlockId> = self.pool(small).all().collect();
            let (expandable, whole): (Vec<_>, Vec<_>) =
                free.into_iter().partition(|&id| self.blocks[id].segment.is_some());
            for id in whole {
                if !self.blocks[id].is_split() {
                    self.release(id);
                }
            }
            for id in expandable {
                self.unmap(id);
            }
        }
    }

    /// Gives back a segment that is one free block.
    fn release(&mut self, id: BlockId) {
        let (address, size) = (self.blocks[id].address, self.blocks[id].size);
        self.device.free(address, size);
        self.note_given_back(size);
        self.forget(id);
        self.blocks.remove(id);
    }

    /// Where blocks above some size are never split: gives back one that is large enough, or several, the largest first, until together
    /// they are. Whether they are.
    pub(crate) fn release_enough(&mut self, request: &Request) -> bool {
        let limit = self.settings.max_split_size;
        if limit == UNLIMITED {
            return false;
        }
        let wanted = request.size.max(limit);
        let pool = if request.small { &self.small } else { &self.large };
        let one = pool.at_least(request.stream, wanted).next();
        if let Some(id) = one.filter(|&id| self.blocks[id].segment.is_none()) {
            self.release(id);
            return true;
        }
        let blocks = &self.blocks;
        let is_wanted = |id: &BlockId| blocks[*id].size >= limit && blocks[*id].stream == request.stream;
        // Where one is there after all, it lies in an expandable segment, and what follows begins before it.
        let candidates: Vec<BlockId> = pool.below(request.stream, wanted).take_while(is_wanted).collect();
        let mut released = 0;
        for id in candidates {
            if released >= wanted {
                break;
            }
            if self.blocks[id].segment.is_none() {
                released += self.blocks[id].size;
                self.release(id);
            }
        }
        released >= wanted
    }

    /// Above the threshold: gives back large segments that have been free for longer than the average, again and again, until enough has
    /// gone or nothing more goes. Never waits for events.
    pub(crate) fn collect_garbage(&mut self) {
        let Some(allowed) = self.allowed.filter(|_| self.collects_garbage()) else { return };
        let threshold = (self.settings.gc_threshold * allowed as f64) as u64;
        if self.reserved() <= threshold {
            return;
        }
        let target = self.reserved() - threshold;
        let searches = self.large.searches;
        let age = |allocator: &Allocator, id: BlockId| searches - allocator.blocks[id].free_since;
        let whole: Vec<BlockId> = self.large.all().filter(|&id| !self.blocks[id].is_split()).collect();
        let mut total_age: u64 = whole.iter().map(|&id| age(self, id)).sum();
        let mut count = whole.len() as u64;
        let mut left: Vec<BlockId> = whole.into_iter().filter(|&id| self.blocks[id].segment.is_none()).collect();
        let (mut reclaimed, mut any) = (0, true);
        while reclaimed < target && any && count > 0 {
            let average = total_age as f64 / count as f64;
            let (old, young): (Vec<_>, Vec<_>) = left.into_iter().partition(|&id| age(self, id) as f64 >= average);
            any = !old.is_empty();
            for id in old {
                reclaimed += self.blocks[id].size;
                total_age -= age(self, id);
                count -= 1;
                self.release(id);
            }
            left = young;
        }
    }
}
