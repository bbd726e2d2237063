//! stratalloc for C: the functions of `include/stratalloc.h`, which `cargo xtask abi` generates from this crate.
//!
//! | file | what |
//! |---|---|
//! | `status.rs` | status codes, the thread's last error, the guard around every export |
//! | `sized.rs` | structs that begin with their size |
//! | `mode.rs` | the one word that the hot path looks at: forked, or recording |
//! | `handle.rs` | allocators: made, destroyed, the process's own |
//! | `blocks.rs` | allocating and freeing, the hot path first |
//! | `device.rs` | limits, tags, giving memory back |
//! | `stats.rs` | statistics |
//! | `snapshot.rs` | segments, blocks, the file that memory_viz opens |
//! | `observe.rs` | observers of events and of requests without room |
//! | `record.rs` | recording a trace |
//! | `defrag.rs` | sharing memory, movable blocks |
//! | `plans.rs` | plans of repeating steps |
//! | `pools.rs` | private pools, captures, checkpoints |
//! | `tiers.rs` | evictable memory: allocating, moving, sleeping |
//! | `residency.rs` | where it is, in numbers, and who is told |
//! | `stash.rs` | bytes in a tier without an address |
//! | `tags.rs` | what a thread's requests are for |
//! | `torch.rs` | what `torch.cuda.memory.CUDAPluggableAllocator` takes, over the process's own allocator |
//!
//! **How an export is written.** It calls `guard` of `status.rs` with what it does. What that returns as a failure becomes the status and
//! the thread's last error. Out-pointers are checked before anything is done, and written last. A panic of ours is caught and is
//! `STRATALLOC_INTERNAL`; callbacks of the caller must not unwind, as any C function must not.

pub mod blocks;
pub mod defrag;
pub mod device;
pub mod handle;
mod mode;
pub mod observe;
pub mod plans;
pub mod pools;
pub mod record;
pub mod residency;
mod sized;
pub mod snapshot;
pub mod stash;
pub mod stats;
pub mod status;
pub mod tags;
pub mod tiers;
pub mod torch;
pub mod version;
