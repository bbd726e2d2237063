//! Stream order without a driver call a free: clocks, the events that move them, and which streams are being captured.

mod clock;
mod events;

pub use clock::Clock;
pub use events::EventPool;
