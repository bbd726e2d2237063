//! Reads and writes of tiers that the device does not reach.

use std::sync::Arc;

use super::guarded::{self, NotBegun};
use super::job::{Kind, Piece, UNIT};
use super::shared::Shared;
use crate::tier::{Direction, Io, Ticket, TierError};

impl Shared {
    /// Starts the read or write that comes next for a piece.
    pub(super) fn start(&self, piece: Piece) {
        let (direction, tier, slot, stored, buffer) = {
            let job = &*piece.job;
            let own = |index: u32| job.progress.lock().stored.get(index as usize).copied();
            match (piece.reading, job.source()) {
                (true, Some(place)) => {
                    let stored = piece.stored_in_source().unwrap_or_default();
                    let encoded = matches!(job.kind, Kind::Load { .. }) && u64::from(stored.bytes) < piece.size();
                    let buffer = if encoded { &piece.coded } else { &piece.raw };
                    (Direction::Read, place.tier.clone(), place.slot, stored, buffer)
                }
                _ => {
                    let stored = own(piece.index).unwrap_or_default();
                    // A save gives the raw buffer back when it has encoded.
                    let buffer = if piece.raw.is_some() { &piece.raw } else { &piece.coded };
                    (Direction::Write, job.tier.clone(), job.slot, stored, buffer)
                }
            }
        };
        let address = match (buffer, piece.job.direct) {
            (Some(buffer), _) => buffer.address(),
            (None, Some(direct)) => direct.0 as usize + stored.at as usize * UNIT as usize,
            (None, None) => {
                let reason = "a piece has no buffer".to_owned();
                return self.finish(piece, Err(TierError::Unusable { tier: tier.name().to_owned(), reason }));
            }
        };
        let offset = u64::from(stored.at) * UNIT;
        // Up to the next unit, which the buffer has, but not beyond the slot.
        let size = u64::from(stored.bytes).next_multiple_of(UNIT).min(slot.size - offset);
        let io = Io { direction, slot, offset, buffer: address as *mut u8, size };
        // SAFETY: the buffer is the piece's own, is a whole number of units long and no shorter than what is stored; the piece stays in
        // `io`, and the buffer with it, until `finish` has said that this ended. Without a buffer it is whole units of the place that is
        // spilled, which the job holds, and which nobody writes.
        match unsafe { guarded::start(&*tier, io) } {
            Ok(ticket) => self.queues.lock().io.push_back((ticket, piece)),
            Err(NotBegun::Error(TierError::Busy { .. })) => self.queues.lock().stalled.push_back(piece),
            Err(NotBegun::Error(error)) => self.finish(piece, Err(error)),
            Err(NotBegun::Panic(error)) => self.abandon_one(piece, error),
        }
    }

    /// Takes over reads and writes that have ended, and starts one that had to wait. Whether there were any.
    pub(super) fn poll_io(&self) -> bool {
        let mut any = false;
        let count = self.queues.lock().io.len();
        for _ in 0..count {
            let Some((ticket, piece)) = self.queues.lock().io.pop_front() else { break };
            any |= self.finish_io(ticket, piece, false);
        }
        let stalled = self.queues.lock().stalled.pop_front();
        if let Some(piece) = stalled {
            let before = Arc::as_ptr(&piece.job);
            self.start(piece);
            // It is where it was where the tier is still busy.
            any |= self.queues.lock().stalled.back().is_none_or(|piece| Arc::as_ptr(&piece.job) != before);
        }
        any
    }

    /// Waits for a read or write: whether there was any.
    pub(super) fn wait_io(&self) -> bool {
        let Some((ticket, piece)) = self.queues.lock().io.pop_front() else { return false };
        self.finish_io(ticket, piece, true)
    }

    fn finish_io(&self, ticket: Ticket, piece: Piece, wait: bool) -> bool {
        let tier = match (piece.reading, piece.job.source()) {
            (true, Some(place)) => place.tier.clone(),
            _ => piece.job.tier.clone(),
        };
        let ended = match guarded::finish(&*tier, ticket, wait) {
            Ok(ended) => ended,
            Err(error) => {
                self.abandon_one(piece, error);
                return true;
            }
        };
        match ended {
            None => {
                self.queues.lock().io.push_back((ticket, piece));
                false
            }
            Some(Ok(())) if piece.reading => {
                self.queues.lock().compute(piece);
                self.wake();
                true
            }
            Some(result) => {
                self.finish(piece, result);
                true
            }
        }
    }
}
