//! Work that waits for the host: functions that run in stream order, and values that somebody writes.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::extras::Comparison;
use super::memory::Memory;
use crate::units::DevicePtr;

type HostFunction = Box<dyn FnOnce() + Send>;

const QUEUED: u8 = 0;
const OFFERED: u8 = 1;
const DONE: u8 = 2;

/// A function of the host, queued on a stream. It runs without the device's lock.
pub(super) struct HostWork {
    state: AtomicU8,
    function: Mutex<Option<HostFunction>>,
}

impl HostWork {
    pub(super) fn new(function: HostFunction) -> HostWork {
        HostWork { state: AtomicU8::new(QUEUED), function: Mutex::new(Some(function)) }
    }

    /// Whether it may be handed out now, which happens once.
    pub(super) fn offer(&self) -> bool {
        self.state.compare_exchange(QUEUED, OFFERED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(super) fn is_done(&self) -> bool {
        self.state.load(Ordering::Acquire) == DONE
    }

    /// Runs the function. Whoever took it from the schedule does so once.
    pub(super) fn run(&self) {
        let function = self.function.lock().take();
        if let Some(function) = function {
            function();
        }
        self.state.store(DONE, Ordering::Release);
    }
}

impl fmt::Debug for HostWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostWork").field("done", &self.is_done()).finish_non_exhaustive()
    }
}

/// A condition on a number in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    pub(super) ptr: DevicePtr,
    /// 4 or 8 bytes.
    pub(super) width: u64,
    pub(super) value: u64,
    pub(super) comparison: Comparison,
}

impl Until {
    /// Whether the condition holds. It does where the memory is gone or has no bytes, so that nobody waits for ever.
    pub(super) fn holds(&self, memory: &Memory) -> bool {
        if !memory.store.has_bytes() || memory.resolve(self.ptr, self.width, "work").is_err() {
            return true;
        }
        let mut bytes = [0; 8];
        // SAFETY: the range was just resolved, under the device's lock.
        unsafe { memory.store.read(&mut bytes[..self.width as usize], self.ptr.0) };
        self.comparison.holds(u64::from_le_bytes(bytes), self.value, self.width)
    }
}
