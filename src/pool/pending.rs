//! Blocks that were freed while streams other than their own may still use them (`record_stream`).

use std::collections::{HashMap, VecDeque};

use super::directory::BlockId;
use crate::stream::Clock;

/// What a freed block still waits for: the clocks of the recorded streams, with their stamps.
#[derive(Debug)]
struct Waiting {
    block: BlockId,
    bytes: u64,
    /// Of the home stream, when the block was freed.
    home_stamp: u64,
    stamp: u64,
    /// What to wait for after this.
    rest: Vec<(u16, u64)>,
}

/// All such blocks, in a queue a clock. A queue is in order of stamps.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Streams recorded for live blocks, as clock indices.
    recorded: HashMap<BlockId, Vec<u16>>,
    queues: Vec<VecDeque<Waiting>>,
    bytes: u64,
    /// Bytes queued at each clock since its epoch was closed.
    unclosed: Vec<u64>,
}

impl Pending {
    /// Notes that the stream of `clock` uses a live block.
    pub(super) fn record(&mut self, block: BlockId, clock: u16) {
        let clocks = self.recorded.entry(block).or_default();
        if !clocks.contains(&clock) {
            clocks.push(clock);
        }
    }

    /// The block is freed: it waits for the streams recorded. Returns a clock whose epoch is worth closing now.
    pub(super) fn free(
        &mut self,
        block: BlockId,
        bytes: u64,
        home_stamp: u64,
        clocks: &mut [Clock],
        close_at: u64,
    ) -> Option<u16> {
        let recorded = self.recorded.remove(&block).unwrap_or_default();
        let mut stamps = recorded.into_iter().map(|clock| (clock, clocks[clock as usize].stamp()));
        let (first, stamp) = stamps.next()?;
        self.bytes += bytes;
        self.enqueue(first, Waiting { block, bytes, home_stamp, stamp, rest: stamps.collect() });
        let unclosed = &mut self.unclosed[first as usize];
        *unclosed += bytes;
        (*unclosed >= close_at).then(|| {
            *unclosed = 0;
            first
        })
    }

    fn enqueue(&mut self, clock: u16, waiting: Waiting) {
        let needed = clock as usize + 1;
        if self.queues.len() < needed {
            self.queues.resize_with(needed, VecDeque::new);
            self.unclosed.resize(needed, 0);
        }
        // Stamps of a clock grow, but a block comes late to its second clock.
        let queue = &mut self.queues[clock as usize];
        let at = queue.partition_point(|other| other.stamp <= waiting.stamp);
        queue.insert(at, waiting);
    }

    /// Blocks that no longer wait for anything, by what is known of the clocks, with the stamps of their home streams.
    pub(super) fn take_passed(&mut self, clocks: &[Clock]) -> Vec<(BlockId, u64)> {
        let mut done = Vec::new();
        for clock in 0..self.queues.len() {
            while let Some(front) = self.queues[clock].front() {
                if !clocks[clock].has_passed(front.stamp) {
                    break;
                }
                let Some(mut waiting) = self.queues[clock].pop_front() else { break };
                match waiting.rest.iter().position(|&(next, stamp)| !clocks[next as usize].has_passed(stamp)) {
                    Some(index) => {
                        let (next, stamp) = waiting.rest.swap_remove(index);
                        waiting.stamp = stamp;
                        self.enqueue(next, waiting);
                    }
                    None => {
                        self.bytes -= waiting.bytes;
                        done.push((waiting.block, waiting.home_stamp));
                    }
                }
            }
        }
        done
    }

    /// Whether anything waits for this clock.
    pub(super) fn waits_for(&self, clock: u16) -> bool {
        self.queues.get(clock as usize).is_some_and(|queue| !queue.is_empty())
    }

    /// Bytes that wait.
    #[inline]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks the byte count.
    pub(super) fn validate(&self) -> Result<(), String> {
        let bytes: u64 = self.queues.iter().flatten().map(|waiting| waiting.bytes).sum();
        if bytes == self.bytes { Ok(()) } else { Err(format!("{bytes} bytes pending, {} counted", self.bytes)) }
    }
}
