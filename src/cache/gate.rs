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
//! Either the owner sees the thief's mark in step 3, or the thief sees the owner's in step 3: never neither. Without `membarrier`
//! the owner's step 2 is a full fence. The owner off the hot path holds the pool's lock instead, which keeps thieves out.
//! Loom checks the protocol in `tests/loom`.

use crate::sync::{AtomicU32, Ordering, fence, spin_hint};

/// The owner has to take the lock: a thief is at work.
const CLOSED: u32 = 1;
/// The owner has to take the lock: private pools are being filled, or events traced.
pub(crate) const SLOW: u32 = 2;

/// How the two sides order their marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// `membarrier` on the thief's side, nothing on the owner's.
    Asymmetric,
    /// A full fence on both sides.
    Full,
}

impl Barrier {
    /// What this machine offers. Registers the process with `membarrier` when called first.
    #[cfg(not(loom))]
    pub(crate) fn detect() -> Barrier {
        static BARRIER: std::sync::OnceLock<Barrier> = std::sync::OnceLock::new();
        *BARRIER.get_or_init(|| match membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) {
            Ok(()) => Barrier::Asymmetric,
            Err(()) => Barrier::Full,
        })
    }

    #[inline]
    fn owner(self) {
        match self {
            #[cfg(not(loom))]
            Barrier::Asymmetric => std::sync::atomic::compiler_fence(Ordering::SeqCst),
            _ => fence(Ordering::SeqCst),
        }
    }

    fn thief(self) {
        fence(Ordering::SeqCst);
        #[cfg(not(loom))]
        if self == Barrier::Asymmetric && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED).is_err() {
            // It was registered, so this cannot fail; carrying on could hand one block out twice.
            std::process::abort();
        }
    }
}

#[cfg(not(loom))]
fn membarrier(command: libc::c_int) -> Result<(), ()> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    if unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } == 0 { Ok(()) } else { Err(()) }
}

/// The door to one thread's magazines.
#[derive(Debug)]
pub(crate) struct Gate {
    busy: AtomicU32,
    attention: AtomicU32,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate { busy: AtomicU32::new(0), attention: AtomicU32::new(0) }
    }

    /// Owner: goes in, unless there is a reason to take the lock.
    #[inline]
    #[must_use]
    pub(crate) fn try_enter(&self, barrier: Barrier) -> bool {
        self.busy.store(1, Ordering::Relaxed);
        barrier.owner();
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
        if slow {
            self.attention.fetch_or(SLOW, Ordering::Relaxed);
        } else {
            self.attention.fetch_and(!SLOW, Ordering::Release);
        }
    }

    /// Thief: shuts these gates, and returns when no owner is inside.
    pub(crate) fn close<'a>(gates: impl Iterator<Item = &'a Gate> + Clone, barrier: Barrier) {
        for gate in gates.clone() {
            gate.attention.fetch_or(CLOSED, Ordering::Relaxed);
        }
        barrier.thief();
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
