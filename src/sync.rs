//! The one place that names `std::sync` for what loom checks: `tests/loom` has a module of the same name, over loom, and
//! includes the checked files as they are.

pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Waits a little inside a spin loop.
#[inline]
pub(crate) fn spin_hint() {
    std::thread::yield_now();
}
