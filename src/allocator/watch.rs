//! The debug aids as users see them: reports, an explicit check, and a last look when the allocator or the process ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Allocator, Shared, Tag};
use crate::cache::DeviceCache;
use crate::config::Config;
use crate::debug::{Leaks, MemoryFault, MemoryObserver, MemoryReport};
use crate::error::Result;
use crate::sync::Mutex;

/// How long the last look waits for a thread that keeps a pool's lock.
const PATIENCE: Duration = Duration::from_secs(2);

/// Allocators to be looked at when the process ends, with the process that made them: a child of `fork` has nothing to tell.
static AT_EXIT: Mutex<Vec<(u32, Weak<Shared>)>> = Mutex::new(Vec::new());

/// What an allocator knows of its debug aids.
pub(super) struct Watch {
    observer: Mutex<Option<MemoryObserver>>,
    leaks: bool,
    watched: bool,
    looked: AtomicBool,
}

impl Watch {
    pub(super) fn new(config: &Config, devices: &[Arc<DeviceCache>]) -> Watch {
        Watch {
            observer: Mutex::new(None),
            leaks: config.leaks,
            watched: devices.iter().any(|device| device.is_watched()),
            looked: AtomicBool::new(false),
        }
    }
}

impl Allocator {
    /// Sets who is told of what the debug aids find (the keys `poison`, `redzone`, `quarantine` and `leaks` of [`Config`]), or nobody, which
    /// means a line on stderr. Returns who was.
    pub fn observe_memory(&self, observer: Option<MemoryObserver>) -> Option<MemoryObserver> {
        std::mem::replace(&mut self.shared.watch.observer.lock(), observer)
    }

    /// Waits for the device and compares every red zone and all poison on it. Returns what is found, and what was found before and not told
    /// yet; the observer is told as well. Nothing where no debug aid is on.
    pub fn check_memory(&self, device: usize) -> Result<Vec<MemoryFault>> {
        let device = self.device(device)?;
        if !device.is_watched() {
            return Ok(Vec::new());
        }
        let reports = self.shared.named(device.memory_reports(true, None)?);
        reports.iter().for_each(|report| self.shared.tell(report));
        let faults = reports.into_iter().filter_map(|report| match report {
            MemoryReport::Fault(fault) => Some(fault),
            _ => None,
        });
        Ok(faults.collect())
    }

    /// Tells what a call has found on its way. No lock is held.
    pub(super) fn tell_found(&self, device: &DeviceCache) {
        if device.is_watched() {
            self.shared.tell_of(device, false, None);
        }
    }

    /// Has the allocator looked at when the process ends, if it is ever to be.
    pub(super) fn look_at_exit(&self) {
        if !self.shared.watch.leaks && !self.shared.watch.watched {
            return;
        }
        static REGISTERED: AtomicBool = AtomicBool::new(false);
        if !REGISTERED.swap(true, Relaxed) {
            // SAFETY: the function is a plain one without arguments; a C library that is unloaded runs it first. Where no more functions can be
            // registered, there is no report.
            unsafe { libc::atexit(at_exit) };
        }
        let mut allocators = AT_EXIT.lock();
        allocators.retain(|(_, allocator)| allocator.strong_count() > 0);
        allocators.push((std::process::id(), Arc::downgrade(&self.shared)));
    }
}

/// Nothing may unwind into C.
extern "C" fn at_exit() {
    let _ = catch_unwind(|| {
        let allocators = std::mem::take(&mut *AT_EXIT.lock());
        let own = |(process, allocator): (u32, Weak<Shared>)| (process == std::process::id()).then_some(allocator);
        let allocators: Vec<_> = allocators.into_iter().filter_map(own).collect();
        allocators.iter().filter_map(Weak::upgrade).for_each(|shared| shared.look());
    });
}

impl Shared {
    /// Gives tags their names.
    fn named(&self, reports: Vec<MemoryReport>) -> Vec<MemoryReport> {
        let mut reports = reports;
        for report in &mut reports {
            if let MemoryReport::Fault(fault) = report
                && fault.tag != Tag::NONE.0
            {
                fault.tag_name = self.tags.lock().get(fault.tag as usize).cloned();
            }
        }
        reports
    }

    #[allow(clippy::print_stderr, reason = "where nobody listens, a line on stderr is what was promised")]
    fn tell(&self, report: &MemoryReport) {
        let observer = self.watch.observer.lock().clone();
        match observer {
            None => eprintln!("stratalloc: {report}"),
            // Its panic is not the fault of whoever allocates.
            Some(observer) => {
                if catch_unwind(AssertUnwindSafe(|| observer(report))).is_err() {
                    eprintln!("stratalloc: the observer of memory reports panicked; it was told: {report}");
                }
            }
        }
    }

    fn tell_of(&self, device: &DeviceCache, check: bool, patience: Option<Duration>) {
        match device.memory_reports(check, patience) {
            Ok(reports) => self.named(reports).iter().for_each(|report| self.tell(report)),
            // Of the last look, when the driver may be gone: there is nothing more to be found.
            Err(_) => {
                let reports = device.memory_reports(false, patience).unwrap_or_default();
                self.named(reports).iter().for_each(|report| self.tell(report));
            }
        }
    }

    /// The last look, once: damage, then leaks.
    pub(super) fn look(&self) {
        if self.watch.looked.swap(true, Relaxed) {
            return;
        }
        for device in &self.devices {
            if device.is_watched() {
                self.tell_of(device, true, Some(PATIENCE));
            }
            let live = if self.watch.leaks { device.live_blocks(PATIENCE) } else { None };
            let tags = self.tags.lock().clone();
            let name = |tag: u8| tags.get(tag as usize).cloned().unwrap_or_else(|| tag.to_string());
            if let Some(leaks) = live.and_then(|live| Leaks::of(device.pool.device, live, name)) {
                self.tell(&MemoryReport::Leaks(leaks));
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.watch.leaks || self.watch.watched {
            // An unwinding drop would end the process.
            let _ = catch_unwind(AssertUnwindSafe(|| self.look()));
        }
    }
}
