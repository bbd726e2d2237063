//! Read-only views of all of a device's memory, and what they are written as.

mod pickle;

use crate::telemetry::{Event, SegmentInfo};

pub use pickle::write_pickle;

/// One device at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The device's ordinal in its allocator.
    pub device: usize,
    /// All memory behind addresses, by address.
    pub segments: Vec<SegmentInfo>,
    /// The newest events, oldest first. Empty unless `trace` is configured.
    pub events: Vec<Event>,
}
