//! What stands around every exported function: nothing unwinds into the program, a forked child is left alone, and what has to be
//! said is said once, in one line.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::abi::{INVALID_VALUE, OUT_OF_MEMORY, STUB_LIBRARY, Status, UNKNOWN};
use crate::entries::{Driver, Entry};
use crate::hooks;
use crate::resolve;
use crate::settings;
use crate::state::Shim;

/// Calls of each entry point.
static CALLS: [AtomicU64; Entry::NAMES.len()] = [const { AtomicU64::new(0) }; Entry::NAMES.len()];

/// Whether this process is a child of one that had state here. It then passes everything on and touches none of that state: locks may
/// have been held, and CUDA itself does not survive a fork.
static ORPHAN: AtomicBool = AtomicBool::new(false);

/// Prepares for a fork. A child of a process that has called `cuInit` cannot use CUDA, and is an orphan here; a child of one that only looked
/// functions up can, and starts afresh: nothing was allocated yet.
pub(crate) fn watch_forks() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if !WATCHED.swap(true, Relaxed) {
        // SAFETY: the handler is a function of this library, which is never unloaded, see `resolve::pin`.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}

extern "C" fn in_child() {
    if CALLS[Entry::cuInit as usize].load(Relaxed) > 0 {
        ORPHAN.store(true, Relaxed);
    }
}

/// Whether everything is passed on.
#[inline]
pub(crate) fn is_orphan() -> bool {
    ORPHAN.load(Relaxed)
}

/// Runs the body of an exported function: `active` where this library is at work, `passive` where the call is only passed on.
#[inline]
pub(crate) fn export(
    entry: Entry,
    active: impl FnOnce(&'static Shim) -> Status,
    passive: impl FnOnce(&'static Driver) -> Status,
) -> Status {
    caught(|| {
        let Some(loaded) = resolve::driver() else { return STUB_LIBRARY };
        if is_orphan() {
            return passive(&loaded.driver);
        }
        CALLS[entry as usize].fetch_add(1, Relaxed);
        active(Shim::get(loaded))
    })
}

/// Runs the body of a function that is only counted. Makes no state: `cuInit` and `cuGetExportTable` come first in a process.
#[inline]
pub(crate) fn passed_on(entry: Entry, call: impl Fn(&'static Driver) -> Status) -> Status {
    caught(|| {
        let Some(loaded) = resolve::driver() else { return STUB_LIBRARY };
        CALLS[entry as usize].fetch_add(1, Relaxed);
        if entry as usize == Entry::cuInit as usize && settings::are_refused() {
            return INVALID_VALUE;
        }
        let code = call(&loaded.driver);
        // Modules, graphs and contexts take memory of the driver's own.
        match Shim::existing() {
            Some(shim) if code == OUT_OF_MEMORY && !is_orphan() => {
                hooks::make_room_everywhere(shim);
                call(&loaded.driver)
            }
            _ => code,
        }
    })
}

/// Keeps a panic out of the program.
pub(crate) fn caught(body: impl FnOnce() -> Status) -> Status {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        static SAID: AtomicBool = AtomicBool::new(false);
        say_once(&SAID, format_args!("a fault in this library, see above; the call returned CUDA_ERROR_UNKNOWN"));
        UNKNOWN
    })
}

/// How often an entry point was called.
pub(crate) fn calls() -> impl Iterator<Item = (&'static str, u64)> {
    Entry::NAMES.iter().zip(&CALLS).map(|(name, calls)| (*name, calls.load(Relaxed)))
}

/// One line on stderr.
pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    // Where stderr is closed, nobody is left to tell. One write, so that lines of several processes do not mix.
    let _ = std::io::stderr().write_all(format!("stratalloc: {what}\n").as_bytes());
}

/// One line on stderr, the first time only.
pub(crate) fn say_once(said: &AtomicBool, what: std::fmt::Arguments<'_>) {
    if !said.swap(true, Relaxed) {
        say(what);
    }
}
