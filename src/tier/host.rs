//! Pinned host memory, taken step by step.
//!
//! Addresses for all of it are reserved at once, so that a slot is one range whatever its size; each step is pinned by one call, in the
//! background where that is wanted, since pinning takes long: some 0.1 s a GiB. Where the host gives no more, the tier is as large as
//! what was pinned, and says why ([`HostTier::shortfall`]).

use std::ptr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Condvar;

use super::room::Room;
use super::{Direction, Io, Slot, Ticket, Tier, TierError};
use crate::driver::{Driver, DriverError, HostPtr};
use crate::sync::Mutex;
use crate::units::{ByteSize, DevicePtr, PAGE, align_up};

const NAME: &str = "host";

/// How a [`HostTier`] is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// What it may hold, in bytes. Rounded up to 2 MiB.
    pub capacity_bytes: u64,
    /// How much is pinned at a time, in bytes, up to 1 GiB. Rounded up to 2 MiB.
    pub step_bytes: u64,
    /// Whether a thread pins all of it, beginning now. Otherwise a step is pinned when it is needed, by who needs it.
    pub background: bool,
}

impl Default for HostConfig {
    fn default() -> HostConfig {
        HostConfig { capacity_bytes: 1 << 30, step_bytes: 256 << 20, background: false }
    }
}

/// Pinned host memory as a tier.
#[derive(Debug)]
pub struct HostTier {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    driver: Arc<dyn Driver>,
    /// Where the reserved addresses begin.
    base: usize,
    capacity: u64,
    step: u64,
    /// The NUMA node to which the memory is bound.
    node: Option<u32>,
    state: Mutex<State>,
    /// Told after every step.
    grown: Condvar,
    process: u32,
}

#[derive(Debug)]
struct State {
    room: Room,
    /// Whether somebody is pinning the next step, or will: the thread, while it lives.
    growing: bool,
    stop: bool,
    failed: Option<DriverError>,
}

impl HostTier {
    /// A tier in the memory of the host, as near to the driver's device as the host's NUMA nodes allow.
    ///
    /// # Errors
    /// [`TierError::Unusable`] for a size that cannot be, or where the host has no addresses or no thread for it.
    pub fn new(driver: Arc<dyn Driver>, config: &HostConfig) -> Result<HostTier, TierError> {
        let refuse = |reason: String| Err(TierError::Unusable { tier: NAME.to_owned(), reason });
        let size = |bytes: u64| align_up(bytes, PAGE).filter(|&bytes| (PAGE..=1 << 46).contains(&bytes));
        let (Some(capacity), Some(step)) = (size(config.capacity_bytes), size(config.step_bytes)) else {
            return refuse(format!(
                "{} cannot be pinned {} at a time",
                ByteSize(config.capacity_bytes),
                ByteSize(config.step_bytes)
            ));
        };
        if step > 1 << 30 {
            return refuse(format!("{} at a time are more than 1 GiB", ByteSize(step)));
        }
        let base = match map(capacity) {
            Ok(base) => base,
            Err(error) => return refuse(format!("no addresses for {}: {error}", ByteSize(capacity))),
        };
        let node = driver.properties().host_node.filter(|&node| bind(base, capacity, node));
        let state = State { room: Room::new(capacity), growing: config.background, stop: false, failed: None };
        let shared = Shared {
            driver,
            base,
            capacity,
            step,
            node,
            state: Mutex::new(state),
            grown: Condvar::new(),
            process: std::process::id(),
        };
        let tier = HostTier { shared: Arc::new(shared), thread: Mutex::new(None) };
        if config.background {
            let shared = tier.shared.clone();
            let spawned = thread::Builder::new().name("stratalloc-pin".to_owned()).spawn(move || shared.pin_all());
            match spawned {
                Ok(thread) => *tier.thread.lock() = Some(thread),
                Err(error) => return refuse(format!("no thread to pin it: {error}")),
            }
        }
        Ok(tier)
    }

    /// Bytes pinned so far.
    pub fn pinned_bytes(&self) -> u64 {
        self.shared.state.lock().room.made()
    }

    /// Why no more could be pinned, where that is so. The tier holds what was.
    pub fn shortfall(&self) -> Option<DriverError> {
        self.shared.state.lock().failed.clone()
    }

    /// The NUMA node to which the memory is bound: none where the host has but one, or does not say which is the device's.
    pub fn node(&self) -> Option<u32> {
        self.shared.node
    }
}

impl Shared {
    /// Pins the next step, without the lock: whoever calls it has set `growing`.
    fn pin_step(&self, made: u64) -> Result<u64, DriverError> {
        let bytes = self.step.min(self.capacity - made);
        self.driver.pin_host(HostPtr(self.base + made as usize), bytes)?;
        Ok(bytes)
    }

    /// Where the host has no more, that is the tier. Another failure may pass: who needs memory next tries again.
    fn take_over(&self, state: &mut State, pinned: Result<u64, DriverError>) -> Result<(), DriverError> {
        self.grown.notify_all();
        match pinned {
            Ok(bytes) => {
                state.room.grow(bytes);
                Ok(())
            }
            Err(error) if error.is_out_of_memory() => {
                state.failed = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn pin_all(&self) {
        loop {
            let made = {
                let mut state = self.state.lock();
                let made = state.room.made();
                if state.stop || state.failed.is_some() || made == self.capacity {
                    state.growing = false;
                    self.grown.notify_all();
                    return;
                }
                made
            };
            let pinned = self.pin_step(made);
            let state = &mut *self.state.lock();
            if self.take_over(state, pinned).is_err() {
                state.stop = true;
            }
        }
    }
}

impl Tier for HostTier {
    fn name(&self) -> &str {
        NAME
    }

    /// What was asked for, or what could be pinned of it.
    fn capacity(&self) -> u64 {
        let state = self.shared.state.lock();
        if state.failed.is_some() { state.room.made() } else { self.shared.capacity }
    }

    fn used(&self) -> u64 {
        self.shared.state.lock().room.used()
    }

    fn alignment(&self) -> u64 {
        512
    }

    /// Waits for the next step, where there is no room but will be.
    fn reserve(&self, size: u64) -> Result<Slot, TierError> {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        loop {
            if let Some(slot) = state.room.take(size) {
                return Ok(slot);
            }
            let made = state.room.made();
            let left = if state.failed.is_some() { 0 } else { shared.capacity - made };
            let free = made - state.room.used() + left;
            if left == 0 || size > free {
                let (used, capacity) = (state.room.used(), made + left);
                return Err(TierError::Full { tier: NAME.to_owned(), size, used, capacity });
            }
            if state.growing {
                shared.grown.wait(&mut state);
                continue;
            }
            state.growing = true;
            let pinned = parking_lot::MutexGuard::unlocked(&mut state, || shared.pin_step(made));
            state.growing = false;
            shared.take_over(&mut state, pinned)?;
        }
    }

    fn release(&self, slot: Slot) {
        self.shared.state.lock().room.give(slot);
    }

    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        self.shared.state.lock().room.shrink(slot, size)
    }

    fn address(&self, slot: Slot) -> Option<DevicePtr> {
        Some(DevicePtr(self.shared.base as u64 + slot.offset))
    }

    fn is_host_memory(&self) -> bool {
        true
    }

    fn seam(&self) -> u64 {
        self.shared.step
    }

    /// Copies at once.
    ///
    /// # Safety
    /// As [`Tier::start`] says.
    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError> {
        let Io { direction, slot, offset, buffer, size } = io;
        if offset.checked_add(size).is_none_or(|end| end > slot.size) {
            let what = format!("{size} bytes at {offset} of a slot of {}", slot.size);
            return Err(TierError::Io { tier: NAME.to_owned(), what, reason: "beyond its end".to_owned(), errno: 0 });
        }
        let memory = (self.shared.base + (slot.offset + offset) as usize) as *mut u8;
        // SAFETY: the slot was reserved here, so it lies in the mapping, all of which may be written; the buffer is the caller's promise.
        unsafe {
            match direction {
                Direction::Write => ptr::copy_nonoverlapping(buffer, memory, size as usize),
                Direction::Read => ptr::copy_nonoverlapping(memory, buffer, size as usize),
            }
        }
        Ok(Ticket(0))
    }

    fn finish(&self, _ticket: Ticket, _wait: bool) -> Option<Result<(), TierError>> {
        Some(Ok(()))
    }
}

impl Drop for HostTier {
    fn drop(&mut self) {
        let shared = &*self.shared;
        if shared.process != std::process::id() {
            // A child of `fork` has neither the thread nor the memory.
            return;
        }
        shared.state.lock().stop = true;
        if let Some(thread) = self.thread.get_mut().take() {
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
        let made = shared.state.lock().room.made();
        for at in (0..made).step_by(shared.step as usize) {
            // What cannot be unpinned belongs to a context that is gone.
            let _ = shared.driver.unpin_host(HostPtr(shared.base + at as usize));
        }
        // SAFETY: the range is the mapping that `map` made, of which nobody has a slot any more.
        unsafe { libc::munmap(shared.base as *mut _, shared.capacity as usize) };
    }
}

/// Addresses for so many bytes, which take memory when they are pinned or written. Children of `fork` do not have them: what the device writes
/// would be theirs as well.
fn map(size: u64) -> std::io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks free addresses.
    let at = unsafe { libc::mmap(ptr::null_mut(), size as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    for advice in [libc::MADV_DONTFORK, libc::MADV_HUGEPAGE] {
        // SAFETY: the range was just mapped. A kernel that does not know the advice goes on without it.
        unsafe { libc::madvise(at, size as usize, advice) };
    }
    Ok(at as usize)
}

/// Asks the kernel to take the memory of a range from this node while it has some. Whether there is more than one, and it agreed.
fn bind(base: usize, size: u64, node: u32) -> bool {
    const PREFERRED: libc::c_int = 1;
    let online = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    if node >= u64::BITS || !has_several(&online) {
        return false;
    }
    let mask: libc::c_ulong = 1 << node;
    // SAFETY: the range is a mapping of the caller's; the mask is valid for the bits that are announced (the kernel counts one more).
    let result = unsafe {
        libc::syscall(libc::SYS_mbind, base, size as usize, PREFERRED, &raw const mask, u64::BITS as usize + 1, 0)
    };
    result == 0
}

/// Whether a list such as `0-1,3` names more than one node.
fn has_several(list: &str) -> bool {
    list.contains(['-', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes() {
        assert!(!has_several("0\n") && !has_several(""));
        assert!(has_several("0-1\n") && has_several("0,2"));
    }

    #[test]
    fn memory_can_be_bound_where_there_are_nodes() {
        let base = map(PAGE).unwrap();
        // One node, or several: neither is an error.
        let several = has_several(&std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default());
        assert!(several || !bind(base, PAGE, 0));
        assert!(!bind(base, PAGE, 64));
        // SAFETY: mapped above.
        unsafe { libc::munmap(base as *mut _, PAGE as usize) };
    }
}
