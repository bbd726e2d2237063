//! What happened: counters, and a bounded ring of events.

mod ring;
mod stats;

pub use ring::{Event, EventKind, TraceRing};
pub use stats::{Gauge, Rung, SizeCount, Stats};
pub(crate) use stats::{Peak, SIZE_COUNTS, size_count_index};
