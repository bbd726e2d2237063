//! One word that the hot path looks at: 0 as long as nothing is out of the ordinary.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// This process is a child of one that had an allocator.
const FORKED: u32 = 1 << 31;

/// One thread that has said what its requests are for; below are the allocators that record a trace.
const TAGGING: u32 = 1 << 16;

/// [`FORKED`], how many threads have pushed tags, and how many allocators record a trace.
static MODE: AtomicU32 = AtomicU32::new(0);

/// Whether the hot path may go straight to the allocator.
#[inline(always)]
pub(crate) fn is_plain() -> bool {
    MODE.load(Relaxed) == 0
}

/// Whether this process was forked from one that had an allocator, or had begun to make one.
#[inline]
pub(crate) fn is_forked() -> bool {
    MODE.load(Relaxed) & FORKED != 0
}

/// Whether some allocator records a trace.
#[inline]
pub(crate) fn is_recording() -> bool {
    MODE.load(Relaxed) & (TAGGING - 1) != 0
}

/// Whether some thread has pushed tags.
#[inline]
pub(crate) fn is_tagging() -> bool {
    MODE.load(Relaxed) & (FORKED - TAGGING) != 0
}

/// One thread more, or one less, has pushed tags.
pub(crate) fn count_tagging(more: bool) {
    if more {
        MODE.fetch_add(TAGGING, Relaxed)
    } else {
        MODE.fetch_sub(TAGGING, Relaxed)
    };
}

/// One allocator more, or one less, records.
pub(crate) fn count_recording(more: bool) {
    if more {
        MODE.fetch_add(1, Relaxed)
    } else {
        MODE.fetch_sub(1, Relaxed)
    };
}

extern "C" fn in_child() {
    MODE.fetch_or(FORKED, Relaxed);
}

/// From now on, children of this process are told apart. To be called before the first driver call.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a function of this library, and does nothing but set an atomic. Where it cannot be registered for want of
        // memory, children are not told apart: they were not before either. glibc forgets it when the library is unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}
