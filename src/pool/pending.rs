//! Blocks that were freed while streams other than their own may still use them (`record_stream`).

use std::collections::VecDeque;

use super::directory::{BlockId, Header, NO_RECORD};
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

/// A stream recorded for a live block, and the next one recorded for it.
#[derive(Debug, Clone, Copy)]
struct Record {
    clock: u16,
    next: u32,
}

/// All such blocks, in a queue a clock. A queue is in order of stamps.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Streams recorded for live blocks, in chains that begin at the blocks' headers.
    records: Vec<Record>,
    vacant: Vec<u32>,
    queues: Vec<VecDeque<Waiting>>,
    bytes: u64,
    /// Bytes queued since the clocks were last asked.
    unasked: u64,
}

impl Pending {
    /// Notes that the stream of `clock` uses a live block.
    pub(super) fn record(&mut self, header: &Header, clock: u16) {
        let first = header.first_record();
        let mut at = first;
        while at != NO_RECORD {
            let record = self.records[at as usize];
            if record.clock == clock {
                return;
            }
            at = record.next;
        }
        let record = Record { clock, next: first };
        let index = self.vacant.pop().unwrap_or(self.records.len() as u32);
        match self.records.get_mut(index as usize) {
            Some(slot) => *slot = record,
            None => self.records.push(record),
        }
        header.set_first_record(index);
    }

    /// The block is freed: it waits for the streams recorded. Returns whether so much waits that it is worth asking how far they are.
    pub(super) fn free(
        &mut self,
        block: BlockId,
        header: &Header,
        home_stamp: u64,
        clocks: &mut [Clock],
        ask_at: u64,
    ) -> bool {
        let bytes = header.size();
        let mut at = header.first_record();
        let mut stamps = std::iter::from_fn(|| {
            let record = *self.records.get(at as usize)?;
            self.vacant.push(at);
            at = record.next;
            Some((record.clock, clocks[record.clock as usize].stamp()))
        });
        let Some((first, stamp)) = stamps.next() else { return false };
        let rest = stamps.collect();
        self.bytes += bytes;
        self.unasked += bytes;
        self.enqueue(first, Waiting { block, bytes, home_stamp, stamp, rest });
        self.unasked >= ask_at
    }

    fn enqueue(&mut self, clock: u16, waiting: Waiting) {
        let needed = clock as usize + 1;
        if self.queues.len() < needed {
            self.queues.resize_with(needed, VecDeque::new);
        }
        // Stamps of a clock grow, but a block comes late to its second clock.
        let queue = &mut self.queues[clock as usize];
        if queue.back().is_none_or(|last| last.stamp <= waiting.stamp) {
            queue.push_back(waiting);
            return;
        }
        let at = queue.partition_point(|other| other.stamp <= waiting.stamp);
        queue.insert(at, waiting);
    }

    /// Blocks that no longer wait for anything, by what is known of the clocks, with the stamps of their home streams.
    pub(super) fn take_passed(&mut self, clocks: &[Clock]) -> Vec<(BlockId, u64)> {
        self.unasked = 0;
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

    /// Every block that waits, and the clocks that it waits for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (BlockId, Vec<u16>)> + '_ {
        (0..=u16::MAX).zip(&self.queues).flat_map(|(clock, queue)| {
            let clocks = move |waiting: &Waiting| {
                [clock].into_iter().chain(waiting.rest.iter().map(|&(next, _)| next)).collect()
            };
            queue.iter().map(move |waiting| (waiting.block, clocks(waiting)))
        })
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
