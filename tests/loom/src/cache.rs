//! What `src/cache` is to the gate.

#[path = "../../../src/cache/gate.rs"]
pub(crate) mod gate;
