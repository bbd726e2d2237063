//! A stream's epoch counter.
//!
//! Time on a stream is cut into epochs. A block that is freed gets the number of the epoch that is *open* as its stamp, which costs no
//! driver call. To learn whether the stream has passed a stamp, the epoch is *closed*: one event is recorded, which
//! stands for all work submitted before it, and so for every block freed in that epoch and earlier. Once the event is complete,
//! the clock has *passed* the epoch.
//!
//! Why no stamp passes early: a stamp is taken after the caller has submitted the work that uses the block, and the event of
//! its epoch is recorded after that. Both happen under the pool's lock, so that no stamp of an epoch can be taken once its event
//! is recorded.

use std::collections::VecDeque;

use super::EventPool;
use crate::driver::{Driver, DriverErrorKind, DriverResult, EventId, EventStatus};
use crate::units::StreamId;

/// The clock of one stream.
#[derive(Debug)]
pub struct Clock {
    stream: StreamId,
    /// The open epoch. Stamps are at most this.
    epoch: u64,
    /// Whether a stamp of the open epoch has been taken.
    stamped: bool,
    /// Closed epochs with their events, oldest first.
    closed: VecDeque<(u64, EventId)>,
    /// The last epoch known to have completed.
    passed: u64,
}

impl Clock {
    /// The clock of a stream of which nothing is known.
    pub fn new(stream: StreamId) -> Clock {
        Clock { stream, epoch: 1, stamped: false, closed: VecDeque::new(), passed: 0 }
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The stamp of a block freed now.
    #[inline]
    pub fn stamp(&mut self) -> u64 {
        self.stamped = true;
        self.epoch
    }

    /// The stamp of a block freed now, without freeing one.
    pub fn open_epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether all work that a stamp stands for is known to have completed.
    #[inline]
    pub fn has_passed(&self, stamp: u64) -> bool {
        stamp <= self.passed
    }

    /// The last epoch known to have completed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Whether every stamp taken so far has passed.
    pub fn is_settled(&self) -> bool {
        !self.stamped && self.closed.is_empty()
    }

    /// An event that stands for all work of a stamp, and that has been recorded.
    pub fn event_of(&self, stamp: u64) -> Option<EventId> {
        self.closed.iter().find(|&&(epoch, _)| epoch >= stamp).map(|&(_, event)| event)
    }

    /// Closes the open epoch, if anything was freed in it.
    pub fn close(&mut self, driver: &dyn Driver, events: &mut EventPool) -> DriverResult<()> {
        if !self.stamped {
            return Ok(());
        }
        let event = events.get(driver)?;
        match driver.record_event(event, self.stream) {
            Ok(()) => {
                self.closed.push_back((self.epoch, event));
                self.epoch += 1;
                self.stamped = false;
                Ok(())
            }
            // The stream was destroyed, which does not wait for its work. Nothing else is left to wait for.
            Err(error) if error.kind == DriverErrorKind::InvalidHandle => {
                events.put(event);
                driver.synchronize_device()?;
                self.pass_all(events);
                Ok(())
            }
            Err(error) => {
                events.put(event);
                Err(error)
            }
        }
    }

    /// Asks the driver how far the stream is, without waiting. Returns the last epoch passed.
    pub fn poll(&mut self, driver: &dyn Driver, events: &mut EventPool) -> DriverResult<u64> {
        while let Some(&(epoch, event)) = self.closed.front() {
            match driver.query_event(event)? {
                EventStatus::Pending => break,
                EventStatus::Complete => self.pass(epoch, events),
            }
        }
        Ok(self.passed)
    }

    /// Waits until every stamp taken so far has passed.
    pub fn wait(&mut self, driver: &dyn Driver, events: &mut EventPool) -> DriverResult<()> {
        self.close(driver, events)?;
        if let Some(&(epoch, event)) = self.closed.back() {
            driver.synchronize_event(event)?;
            self.pass(epoch, events);
        }
        Ok(())
    }

    /// Makes `waiter` wait for every stamp taken so far. Later work of `waiter` may then use what they stand for.
    pub fn let_wait(&mut self, waiter: StreamId, driver: &dyn Driver, events: &mut EventPool) -> DriverResult<()> {
        self.close(driver, events)?;
        match self.closed.back() {
            Some(&(_, event)) => driver.wait_event(waiter, event),
            None => Ok(()),
        }
    }

    /// Gives the events of closed epochs back unasked: the clock is not needed any more.
    pub fn retire(&mut self, events: &mut EventPool) {
        self.closed.drain(..).for_each(|(_, event)| events.put(event));
    }

    fn pass(&mut self, upto: u64, events: &mut EventPool) {
        while let Some(&(epoch, event)) = self.closed.front() {
            if epoch > upto {
                break;
            }
            self.closed.pop_front();
            events.put(event);
        }
        self.passed = self.passed.max(upto);
    }

    fn pass_all(&mut self, events: &mut EventPool) {
        self.pass(self.epoch, events);
        self.epoch += 1;
        self.stamped = false;
    }
}
