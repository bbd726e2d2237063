//! stratalloc.

pub mod driver;
pub mod error;
pub(crate) mod sync;
pub mod units;
