//! The library's `sync`, on loom.

use std::cell::Cell;

pub(crate) use loom::sync::atomic::AtomicU32;
pub(crate) use std::sync::atomic::Ordering;

thread_local! {
    /// All threads of a model are coroutines of one thread, and tests have threads of their own.
    static FENCES: Cell<bool> = const { Cell::new(true) };
}

/// The same as loom's, unless [`without_fences`].
pub(crate) fn fence(order: Ordering) {
    if FENCES.get() {
        loom::sync::atomic::fence(order);
    }
}

/// Runs a model with every fence left out: the planted mistake.
pub(crate) fn without_fences(model: impl FnOnce()) {
    FENCES.set(false);
    model();
}

/// Waits a little inside a spin loop.
pub(crate) fn spin_hint() {
    loom::thread::yield_now();
}
