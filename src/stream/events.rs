//! Events used again instead of created and destroyed.

use crate::driver::{Driver, DriverResult, EventId};

/// Events that nothing waits for.
#[derive(Debug, Default)]
pub struct EventPool {
    idle: Vec<EventId>,
}

impl EventPool {
    /// An idle event, created if there is none.
    pub fn get(&mut self, driver: &dyn Driver) -> DriverResult<EventId> {
        self.idle.pop().map_or_else(|| driver.create_event(), Ok)
    }

    /// Takes an event back.
    pub fn put(&mut self, event: EventId) {
        self.idle.push(event);
    }

    /// Destroys the idle events.
    pub fn clear(&mut self, driver: &dyn Driver) {
        for event in self.idle.drain(..) {
            // An event that cannot be destroyed belongs to a context that is gone.
            let _ = driver.destroy_event(event);
        }
    }
}
