//! Copies under way: which are done, as their events say, and what is done where the driver cannot say.

use super::job::Way;
use super::queues::Batch;
use super::shared::Shared;
use crate::driver::{DriverErrorKind, DriverResult, EventId, EventStatus};
use crate::units::StreamId;

/// How often an event may fail to say whether it has passed before it is waited for.
const STRIKES: u32 = 3;

impl Shared {
    /// Takes over copies of a way that are done. Whether there were any.
    pub(super) fn poll_line(&self, way: Way) -> bool {
        let Some(events) = self.claim(way) else { return false };
        let mut done = 0;
        let mut silent = false;
        match events.last() {
            // One stream, one order: the last stands for all.
            Some(&last) if events.len() > 1 && matches!(self.has_passed(last), Ok(true)) => done = events.len(),
            _ => {
                while done < events.len() {
                    match self.has_passed(events[done]) {
                        Ok(true) => done += 1,
                        Ok(false) => break,
                        Err(_) => {
                            silent = true;
                            break;
                        }
                    }
                }
            }
        }
        if done == 0 && silent && self.strike(way) >= STRIKES {
            return self.wait_for(way, events[0]).unwrap_or(false);
        }
        self.unclaim(way, done);
        done > 0
    }

    /// Waits for the first copies of a way that are under way: whether there were any that nobody else asks about.
    pub(super) fn wait_line(&self, way: Way) -> DriverResult<bool> {
        let Some(events) = self.claim(way) else { return Ok(false) };
        self.wait_for(way, events[0])
    }

    /// Waits for a claimed batch, and gives the claim up.
    fn wait_for(&self, way: Way, event: EventId) -> DriverResult<bool> {
        let passed = self.driver.synchronize_event(event).or_else(|error| {
            let stream = self.streams[way as usize].lock().unwrap_or(StreamId::DEFAULT);
            if error.kind == DriverErrorKind::Capturing {
                return Err(error);
            }
            self.driver.synchronize_stream(stream).map_err(|_| error)
        });
        match passed {
            Ok(()) => {
                self.unclaim(way, 1);
                Ok(true)
            }
            Err(error) if error.kind == DriverErrorKind::Capturing => {
                self.unclaim(way, 0);
                Err(error)
            }
            Err(error) => {
                let batch = self.take_first(way);
                self.unclaim(way, 0);
                if let Some(batch) = batch {
                    self.forget_event(&batch);
                    self.abandon(batch.pieces, &error);
                }
                Ok(true)
            }
        }
    }

    /// Whether an event has passed. While any stream is captured, nobody can say.
    fn has_passed(&self, event: EventId) -> DriverResult<bool> {
        match self.driver.query_event(event) {
            Ok(status) => Ok(status == EventStatus::Complete),
            Err(error) if error.kind == DriverErrorKind::Capturing => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The events of a way's batches, which nobody else asks about until [`Shared::unclaim`].
    fn claim(&self, way: Way) -> Option<Vec<EventId>> {
        let mut queues = self.queues.lock();
        let line = queues.line(way);
        if line.polling || line.flying.is_empty() {
            return None;
        }
        line.polling = true;
        Some(line.flying.iter().map(|batch| batch.event).collect())
    }

    fn strike(&self, way: Way) -> u32 {
        let mut queues = self.queues.lock();
        queues.line(way).flying.front_mut().map_or(0, |batch| {
            batch.strikes += 1;
            batch.strikes
        })
    }

    fn take_first(&self, way: Way) -> Option<Batch> {
        let mut queues = self.queues.lock();
        let line = queues.line(way);
        let batch = line.flying.pop_front()?;
        line.flying_pieces -= batch.pieces.len();
        Some(batch)
    }

    /// The first `done` batches are done, and others may ask again.
    fn unclaim(&self, way: Way, done: usize) {
        let batches: Vec<Batch> = (0..done).filter_map(|_| self.take_first(way)).collect();
        self.queues.lock().line(way).polling = false;
        for batch in batches {
            self.forget_event(&batch);
            self.events.lock().put(batch.event);
            batch.pieces.into_iter().for_each(|(piece, failed)| self.copied(piece, failed));
        }
    }

    fn forget_event(&self, batch: &Batch) {
        for (piece, _) in &batch.pieces {
            let mut progress = piece.job.progress.lock();
            if progress.event == Some(batch.event) {
                progress.event = None;
            }
        }
    }
}
