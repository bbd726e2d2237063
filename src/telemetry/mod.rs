//! What happened: counters, and a bounded ring of events.

mod ring;
mod segments;
mod stats;

pub use ring::{Event, EventKind, EventObserver, TraceRing};
pub use segments::{BlockInfo, BlockState, SegmentInfo};
pub use stats::{Gauge, Rung, SizeCount, Stats};
pub(crate) use stats::{Peak, SIZE_COUNTS, size_count_index};
