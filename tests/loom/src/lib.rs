//! Models of the library's protocols between threads. Run by `cargo xtask validate`, or alone:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --manifest-path tests/loom/Cargo.toml
//! ```
//!
//! The files of the library are included as they are; what they take from `crate::sync` and `crate::driver` is this crate's, on loom.
//! Each model has a twin with a planted mistake, which loom must find: so a model that cannot fail is noticed.
#![cfg(all(loom, test))]
#![allow(dead_code, reason = "a model uses a part of what the included files have")]

mod cache;
mod clock_model;
mod driver;
#[path = "../../../src/error/mod.rs"]
mod error;
mod gate_model;
mod stream;
mod sync;
#[path = "../../../src/units.rs"]
mod units;
