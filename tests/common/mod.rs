//! What several test files share.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file is a crate of its own and uses a part of this one"
)]

pub mod contract;
pub mod filled;
pub mod rig;
pub mod tiers;
