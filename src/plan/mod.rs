//! Lifetime plans: a program that repeats its steps asks for the same blocks in the same order, so where each one should lie can be worked
//! out once, for the whole step, rather than request by request.
//!
//! Pure numbers: nothing here touches memory, asks a driver or takes a lock. The pool tells what is asked for, placed and freed, and takes
//! the advice or leaves it.
//!
//! | word | what |
//! |---|---|
//! | request | one of a lane's requests for a large block; a lane's time is counted in them |
//! | step | as many requests as the lane makes before it begins again: sizes, and for how many requests each block stays |
//! | life | requests from a block's own to the first one that may have its memory; it may reach into the next step |
//! | layout | an address for every block of a step, such that no two that live at one time overlap |
//! | room | addresses that a layout may use; a guest is a block in use that has its place there already |
//! | reach | whether a layout may use addresses at which nothing is mapped |
//!
//! | file | what |
//! |---|---|
//! | `step` | steps, and the bound that no layout can go below |
//! | `solve` | layouts |
//! | `learn` | steps found in what a lane asks for |
//! | `follow` | one lane: where in its step it is, what it is advised, and whether that pays |
//! | `plans` | all lanes of a device |
//! | `codec` | steps as bytes, for the next run |

#![forbid(unsafe_code)]

/// Blocks above this many bytes are planned: 512 KiB. Smaller ones have an arena of their own.
pub const PLANNED_ABOVE: u64 = 1 << 19;

mod codec;
mod follow;
mod learn;
mod plans;
mod solve;
mod step;

pub use codec::{Export, decode, encode};
pub(crate) use follow::Reach;
pub use learn::{Learner, Period};
pub use plans::PlanStats;
pub(crate) use plans::{Plans, Usage};
pub use solve::{Guest, Layout, Room, solve};
pub use step::{Block, Step};
