#![doc = include_str!("../README.md")]

mod allocator;
pub mod block;
mod cache;
pub mod config;
pub mod driver;
pub mod error;
#[cfg(feature = "cuda")]
pub mod interop;
mod pool;
pub mod snapshot;
mod stream;
pub(crate) mod sync;
mod telemetry;
pub mod units;
mod vm;

pub use allocator::{
    AllocFlags, AllocRequest, Allocation, Allocator, Buffer, Builder, DeviceSpec, Lifetime, OomAction, OomObserver,
    OwnedAllocation, Plain, Restored, Tag,
};
pub use config::{Config, Limit};
pub use error::{
    ConfigError, DriverError, DriverErrorKind, Error, OomAdvice, OomBlock, OomCause, OomExplanation, OomFree, OomGap,
    OomNeighbour, OomPool, OomRemedy, OomRequest, OomRung, OomTag, OutOfMemory, Result,
};
pub use pool::Checkpoint;
pub use snapshot::Snapshot;
pub use telemetry::{
    BlockInfo, BlockState, Event, EventKind, EventObserver, Gauge, Rung, SegmentInfo, SizeCount, Stats,
};
pub use units::{ByteSize, DevicePtr, PoolId, StreamId};
