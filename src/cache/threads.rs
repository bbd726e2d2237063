//! From a thread to its [`ThreadCache`] for a device: one thread-local load and one comparison.
//!
//! Caches are never freed: they go to a list of idle ones and serve the next thread or allocator, so that a `&'static` to one is
//! always good. They go there from the thread that had them, once it has forgotten them: of all threads only one ever points to a cache
//! that is not idle. So a cache that bears a device's number is the calling thread's own, and no other thread's for that device.

use std::cell::{Cell, RefCell};
use std::sync::Weak;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::DeviceCache;
use super::magazine::ThreadCache;
use crate::sync::Mutex;

/// Devices between which a thread changes without a look at its list. With more, those whose numbers collide take the lock.
const SLOTS: usize = 8;

/// The owner of a cache whose thread has ended while its allocator was going. No device has this number.
const ORPHAN: u64 = u64::MAX;

/// The cache of nobody, to point to instead of nowhere.
static NOBODY: ThreadCache = ThreadCache::new();

static IDLE: Mutex<Vec<&'static ThreadCache>> = Mutex::new(Vec::new());

thread_local! {
    /// Plain cells without a destructor: one load away, also while the thread is ending.
    static LAST: Cell<&'static ThreadCache> = const { Cell::new(&NOBODY) };
    static CURRENT: [Cell<&'static ThreadCache>; SLOTS] = const { [const { Cell::new(&NOBODY) }; SLOTS] };
    static MINE: RefCell<Mine> = const { RefCell::new(Mine { process: 0, caches: Vec::new() }) };
}

/// What a thread has to give back when it ends.
struct Mine {
    /// The process in which the caches are the thread's.
    process: u32,
    caches: Vec<(&'static ThreadCache, u64, Weak<DeviceCache>)>,
}

impl Drop for Mine {
    fn drop(&mut self) {
        // In a child after `fork` there is nothing to give back to, and a lock that a thread of the parent held is held forever.
        if self.process != std::process::id() {
            std::mem::forget(std::mem::take(&mut self.caches));
            return;
        }
        for (cache, owner, device) in self.caches.drain(..) {
            forget(cache);
            if let Some(device) = device.upgrade() {
                device.retire(cache);
            }
            make_idle(cache, owner);
        }
    }
}

/// Points the calling thread's cells elsewhere.
fn forget(cache: &'static ThreadCache) {
    let points_there = |cell: &Cell<&'static ThreadCache>| std::ptr::eq(cell.get(), cache);
    LAST.with(|last| points_there(last).then(|| last.set(&NOBODY)));
    CURRENT.with(|slots| slots.iter().filter(|slot| points_there(slot)).for_each(|slot| slot.set(&NOBODY)));
}

/// Lets the next thread have a cache that the calling thread has forgotten. If its allocator is going just now, and still at work on it, that
/// does so instead.
fn make_idle(cache: &'static ThreadCache, owner: u64) {
    if cache.owner.compare_exchange(owner, ORPHAN, AcqRel, Acquire).is_err() {
        IDLE.lock().push(cache);
    }
}

/// The calling thread's cache for the device with this number, if it has one.
#[inline]
pub(super) fn current(number: u64) -> Option<&'static ThreadCache> {
    let cache = LAST.get();
    if cache.owner.load(Relaxed) == number { Some(cache) } else { change_to(number) }
}

#[inline(never)]
fn change_to(number: u64) -> Option<&'static ThreadCache> {
    let cache = CURRENT.with(|slots| slots[number as usize % SLOTS].get());
    (cache.owner.load(Relaxed) == number).then(|| {
        LAST.set(cache);
        cache
    })
}

/// The calling thread's cache, a new one if need be. `None` while the thread is ending.
pub(super) fn current_or_new(device: &DeviceCache) -> Option<&'static ThreadCache> {
    current(device.number).or_else(|| new(device))
}

#[cold]
fn new(device: &DeviceCache) -> Option<&'static ThreadCache> {
    let number = device.number;
    let cache = MINE.try_with(|mine| {
        let mine = &mut *mine.try_borrow_mut().ok()?;
        mine.process = std::process::id();
        let mine = &mut mine.caches;
        // Allocators that have gone have let go of their caches.
        for (gone, owner, _) in mine.extract_if(.., |(cache, owner, _)| cache.owner.load(Acquire) != *owner) {
            forget(gone);
            make_idle(gone, owner);
        }
        if let Some(&(cache, ..)) = mine.iter().find(|(_, owner, _)| *owner == number) {
            return Some(cache);
        }
        let cache = IDLE.lock().pop().unwrap_or_else(|| Box::leak(Box::new(ThreadCache::new())));
        cache.owner.store(number, Release);
        mine.push((cache, number, device.this.clone()));
        device.adopt(cache);
        Some(cache)
    });
    let cache = cache.ok().flatten()?;
    LAST.set(cache);
    CURRENT.with(|slots| slots[number as usize % SLOTS].set(cache));
    Some(cache)
}

/// The device lets go of an emptied cache: it is for the thread that has it to make it idle, unless that has ended meanwhile.
pub(super) fn give_back(cache: &'static ThreadCache, owner: u64) {
    cache.reset();
    if cache.owner.compare_exchange(owner, 0, AcqRel, Acquire).is_err() {
        IDLE.lock().push(cache);
    }
}
