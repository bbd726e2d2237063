//! stratalloc.

pub mod block;
mod cache;
pub mod config;
pub mod driver;
pub mod error;
mod pool;
mod stream;
pub(crate) mod sync;
mod telemetry;
pub mod units;
mod vm;
