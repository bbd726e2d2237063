//! What streams had been given to do at some time, and who waits for it.

use super::Stamp;
use crate::driver::{Driver, DriverResult};
use crate::error::Result;
use crate::pool::{Pool, PoolState, too_many_streams};
use crate::units::StreamId;

/// A stamp that no clock passes.
pub(crate) const NEVER: Stamp = (0, u64::MAX);

impl Pool {
    /// Stamps of what streams have been given to do so far, for [`Pool::have_passed_stamps`]. There may be more streams than clocks: `home` is
    /// then made to wait for those that have none, on the device, and its own stamp stands for them.
    pub(crate) fn stamps_of(&self, state: &mut PoolState, home: StreamId, streams: &[StreamId]) -> Result<Vec<Stamp>> {
        let mut stamps = Vec::with_capacity(streams.len());
        let mut orders = false;
        for &stream in streams {
            match state.lanes.clock_index(stream) {
                Some(clock) => stamps.push((clock, state.lanes.clocks[clock as usize].stamp())),
                None => {
                    self.order_by_event(state, home, stream)?;
                    orders = true;
                }
            }
        }
        if orders {
            let clock = state.lanes.clock_index(home).ok_or_else(too_many_streams)?;
            stamps.push((clock, state.lanes.clocks[clock as usize].stamp()));
        }
        Ok(stamps)
    }

    /// [`Pool::order_streams`] without a clock.
    fn order_by_event(&self, state: &mut PoolState, later: StreamId, earlier: StreamId) -> DriverResult<()> {
        let event = state.events.get(&*self.driver)?;
        let ordered = self.driver.record_event(event, earlier).and_then(|()| self.driver.wait_event(later, event));
        // What waits for an event waits for its last recording, so it may be used again at once.
        state.events.put(event);
        ordered
    }

    /// Lets later work of a stream come after what these stamps stand for, without waiting for what came after. Returns the clocks' streams of
    /// which nothing has been recorded since: what they have been given to do by now is to be waited for.
    pub(crate) fn order_after_stamps(
        &self,
        state: &mut PoolState,
        later: StreamId,
        stamps: &[Stamp],
    ) -> Result<Vec<StreamId>> {
        let mut open = Vec::new();
        // Of these nobody can say when it is over.
        if stamps.contains(&NEVER) {
            return Err(too_many_streams());
        }
        for &(clock, stamp) in stamps {
            let clock = &state.lanes.clocks[clock as usize];
            if clock.stream() != later && !clock.has_passed(stamp) {
                match clock.event_of(stamp) {
                    Some(event) => self.driver.wait_event(later, event)?,
                    None => open.push(clock.stream()),
                }
            }
        }
        Ok(open)
    }

    /// Whether streams have passed these stamps, by the driver's word; with `wait`, once they have.
    pub(crate) fn have_passed_stamps(&self, state: &mut PoolState, stamps: &[(u16, u64)], wait: bool) -> Result<bool> {
        if !state.private.capturing() && !self.have_passed(state, stamps) {
            let PoolState { lanes, events, .. } = &mut *state;
            for &(clock, stamp) in stamps {
                let clock = &mut lanes.clocks[clock as usize];
                if !clock.has_passed(stamp) && wait {
                    clock.wait(&*self.driver, events)?;
                } else if !clock.has_passed(stamp) {
                    clock.close(&*self.driver, events)?;
                    clock.poll(&*self.driver, events)?;
                }
            }
        }
        Ok(self.have_passed(state, stamps))
    }

    /// Lets later work of a stream wait for what another one has been given to do so far.
    pub(crate) fn order_streams(&self, state: &mut PoolState, later: StreamId, earlier: StreamId) -> Result<()> {
        let Some(clock) = state.lanes.clock_index(earlier) else {
            return Ok(self.order_by_event(state, later, earlier)?);
        };
        let PoolState { lanes, events, .. } = &mut *state;
        let clock = &mut lanes.clocks[clock as usize];
        clock.stamp();
        Ok(clock.let_wait(later, &*self.driver, events)?)
    }
}
