//! The part of the library's `Driver` that clocks use, and a device for it: one stream, whose work is a number that grows.

pub(crate) use crate::error::{DriverError, DriverErrorKind};
use crate::units::StreamId;
use loom::sync::Mutex;

pub(crate) type DriverResult<T> = Result<T, DriverError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventId(pub(crate) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum EventStatus {
    Complete,
    Pending,
}

pub(crate) trait Driver {
    fn create_event(&self) -> DriverResult<EventId>;
    fn destroy_event(&self, event: EventId) -> DriverResult<()>;
    fn record_event(&self, event: EventId, stream: StreamId) -> DriverResult<()>;
    fn query_event(&self, event: EventId) -> DriverResult<EventStatus>;
    fn wait_event(&self, stream: StreamId, event: EventId) -> DriverResult<()>;
    fn synchronize_event(&self, event: EventId) -> DriverResult<()>;
    fn synchronize_device(&self) -> DriverResult<()>;
}

/// A device whose work is done when [`Device::run`] says so.
pub(crate) struct Device(Mutex<State>);

#[derive(Default)]
struct State {
    /// Work submitted: pieces 1 to this.
    submitted: u64,
    /// Work done: pieces 1 to this.
    done: u64,
    /// By event: how much work was submitted when it was recorded.
    events: Vec<u64>,
}

impl Device {
    pub(crate) fn new() -> Device {
        Device(Mutex::new(State::default()))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Submits a piece of work. Returns its number.
    pub(crate) fn submit(&self) -> u64 {
        self.with(|state| {
            state.submitted += 1;
            state.submitted
        })
    }

    /// Does everything submitted so far.
    pub(crate) fn run(&self) {
        self.with(|state| state.done = state.submitted);
    }

    /// Whether a piece of work is done.
    pub(crate) fn is_done(&self, work: u64) -> bool {
        self.with(|state| work <= state.done)
    }
}

impl Driver for Device {
    fn create_event(&self) -> DriverResult<EventId> {
        self.with(|state| {
            state.events.push(0);
            Ok(EventId(state.events.len() as u64 - 1))
        })
    }

    fn destroy_event(&self, _: EventId) -> DriverResult<()> {
        Ok(())
    }

    fn record_event(&self, event: EventId, _: StreamId) -> DriverResult<()> {
        self.with(|state| state.events[event.0 as usize] = state.submitted);
        Ok(())
    }

    fn query_event(&self, event: EventId) -> DriverResult<EventStatus> {
        self.with(|state| {
            let complete = state.events[event.0 as usize] <= state.done;
            Ok(if complete { EventStatus::Complete } else { EventStatus::Pending })
        })
    }

    fn wait_event(&self, _: StreamId, _: EventId) -> DriverResult<()> {
        Ok(())
    }

    fn synchronize_event(&self, event: EventId) -> DriverResult<()> {
        self.with(|state| state.done = state.done.max(state.events[event.0 as usize]));
        Ok(())
    }

    fn synchronize_device(&self) -> DriverResult<()> {
        self.run();
        Ok(())
    }
}
