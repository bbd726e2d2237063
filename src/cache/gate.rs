//! Who may touch a magazine: its thread at any time, without a lock; another thread now and then, to take blocks back.
//!
//! This is Dekker's protocol with the cost on one side (as in asymmetric fences, Linux `membarrier(2)`):
//!
//! | owner, on every operation | thief, under the pool's lock |
//! |---|---|
//! | 1. `busy = 1` | 1. `attention |= CLOSED` |
//! | 2. compiler fence | 2. `membarrier`: every thread passes a full fence |
//! | 3. `attention == 0`? else back off to the lock | 3. wait until `busy == 0` |
//! | 4. work | 4. work |
//! | 5. `busy = 0` (release) | 5. `attention &= !CLOSED` (release) |
//!
//! Either the owner sees the thief's mark in step 3, or the thief sees the owner's in step 3: never neither. Where there is no
//! `membarrier`, `attention` is never 0, and every operation takes the lock. The owner off the hot path holds the pool's lock too, which
//! keeps thieves out. Loom checks the protocol in `tests/loom`.

use crate::sync::{AtomicU32, Ordering, fence, spin_hint};

/// The owner has to take the lock: a thief is at work.
const CLOSED: u32 = 1;
/// The owner has to take the lock: private pools are being filled, or events traced.
pub(crate) const SLOW: u32 = 2;

/// The owner has to take the lock, always: there is no `membarrier`.
const NO_BARRIER: u32 = 4;

/// Whether this machine has `membarrier`. Registers the process when called first.
#[cfg(not(loom))]
fn has_barrier() -> bool {
    static BARRIER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *BARRIER.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
}

#[cfg(loom)]
fn has_barrier() -> bool {
    true
}

#[cfg(not(loom))]
fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Step 2 of the owner. Loom has no `membarrier`: there both sides pay.
#[inline]
fn owner_barrier() {
    #[cfg(not(loom))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// Step 2 of the thief.
fn thief_barrier() {
    fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    if has_barrier() && !membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
        // It was registered, so this cannot fail; carrying on could hand one block out twice.
        std::process::abort();
    }
}

/// The door to one thread's magazines.
#[derive(Debug)]
pub(crate) struct Gate {
    busy: AtomicU32,
    attention: AtomicU32,
}

impl Gate {
    /// A gate that nobody can enter, until [`Gate::set_slow`].
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Gate {
        Gate { busy: AtomicU32::new(0), attention: AtomicU32::new(SLOW) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Gate {
        Gate { busy: AtomicU32::new(0), attention: AtomicU32::new(SLOW) }
    }

    /// Owner: goes in, unless there is a reason to take the lock.
    #[inline]
    #[must_use]
    pub(crate) fn try_enter(&self) -> bool {
        self.busy.store(1, Ordering::Relaxed);
        owner_barrier();
        if self.attention.load(Ordering::Acquire) == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Owner: goes out.
    #[inline]
    pub(crate) fn leave(&self) {
        self.busy.store(0, Ordering::Release);
    }

    /// Asks the owner to take the lock from now on, or no longer. Under the pool's lock.
    pub(crate) fn set_slow(&self, slow: bool) {
        if !has_barrier() {
            self.attention.fetch_or(NO_BARRIER, Ordering::Relaxed);
        }
        if slow {
            self.attention.fetch_or(SLOW, Ordering::Relaxed);
        } else {
            self.attention.fetch_and(!SLOW, Ordering::Release);
        }
    }

    /// Whether every call of the owner has to take the lock. Under the pool's lock.
    #[inline]
    pub(crate) fn is_slow(&self) -> bool {
        self.attention.load(Ordering::Relaxed) & (SLOW | NO_BARRIER) != 0
    }

    /// Thief: shuts these gates, and returns when no owner is inside.
    pub(crate) fn close<'a>(gates: impl Iterator<Item = &'a Gate> + Clone) {
        for gate in gates.clone() {
            gate.attention.fetch_or(CLOSED, Ordering::Relaxed);
        }
        thief_barrier();
        for gate in gates {
            while gate.busy.load(Ordering::Acquire) != 0 {
                spin_hint();
            }
        }
    }

    /// Thief: opens the gate again.
    pub(crate) fn open(&self) {
        self.attention.fetch_and(!CLOSED, Ordering::Release);
    }
}
