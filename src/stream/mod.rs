//! Stream order without a driver call a free: clocks, and the events that move them.

mod clock;
mod events;

pub use clock::Clock;
pub use events::EventPool;
