#![doc = include_str!("../README.md")]

mod allocator;
pub mod block;
mod cache;
pub mod config;
mod debug;
mod defrag;
pub mod driver;
pub mod error;
#[cfg(feature = "cuda")]
pub mod interop;
pub mod plan;
mod pool;
pub mod snapshot;
mod stream;
pub(crate) mod sync;
mod telemetry;
pub mod tier;
pub mod units;
mod vm;

pub use allocator::{
    AllocFlags, AllocRequest, Allocation, Allocator, Buffer, Builder, CompactReport, Compaction, DefragReport,
    DeviceSpec, Lifetime, Movable, Move, OomAction, OomObserver, OwnedAllocation, PassLimits, Pinned, Plain, Quiescent,
    Restored, Tag,
};
pub use config::{Config, Limit, Poison};
pub use debug::{Leaks, MemoryFault, MemoryFaultKind, MemoryObserver, MemoryReport, Share};
pub use error::{
    ConfigError, DriverError, DriverErrorKind, Error, OomAdvice, OomBlock, OomCause, OomExplanation, OomFree, OomGap,
    OomNeighbour, OomPool, OomRemedy, OomRequest, OomRung, OomTag, OomTiers, OutOfMemory, PlanError, ResidencyError,
    Result, TierError,
};
pub use plan::PlanStats;
pub use pool::Checkpoint;
pub use snapshot::Snapshot;
pub use telemetry::{
    BlockInfo, BlockState, Event, EventKind, EventObserver, Gauge, Rung, SegmentInfo, SizeCount, Stats,
};
pub use units::{ByteSize, DevicePtr, PoolId, StreamId};
