//! The one place that chooses between `std` and loom. Everything that loom checks takes its atomics from here.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, fence};

pub(crate) use parking_lot::{Mutex, MutexGuard};
pub(crate) use std::sync::atomic::Ordering;

/// Waits a little inside a spin loop.
#[inline]
pub(crate) fn spin_hint() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}
