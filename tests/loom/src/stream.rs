//! What `src/stream` is to the clock.

#[path = "../../../src/stream/clock.rs"]
mod clock;
#[path = "../../../src/stream/events.rs"]
mod events;

pub(crate) use clock::Clock;
pub(crate) use events::EventPool;
