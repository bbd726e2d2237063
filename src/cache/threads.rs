//! From a thread to its [`ThreadCache`] for a device: one thread-local load and one comparison.
//!
//! Caches are never freed: they go to a list of idle ones and serve the next thread or allocator, so that a `&'static` to one is
//! always good, and whose it is can be checked by its owner number alone.

use std::cell::{Cell, RefCell};
use std::sync::Weak;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::DeviceCache;
use super::magazine::ThreadCache;
use crate::sync::Mutex;

/// Devices between which a thread changes without a look at its list. With more, those whose numbers collide take the lock.
const SLOTS: usize = 8;

/// The cache of nobody, to point to instead of nowhere.
static NOBODY: ThreadCache = ThreadCache::new();

static IDLE: Mutex<Vec<&'static ThreadCache>> = Mutex::new(Vec::new());

thread_local! {
    /// Plain cells without a destructor: one load away, also while the thread is ending.
    static LAST: Cell<&'static ThreadCache> = const { Cell::new(&NOBODY) };
    static CURRENT: [Cell<&'static ThreadCache>; SLOTS] = const { [const { Cell::new(&NOBODY) }; SLOTS] };
    static MINE: RefCell<Mine> = const { RefCell::new(Mine { caches: Vec::new() }) };
}

/// What a thread has to give back when it ends.
struct Mine {
    caches: Vec<(&'static ThreadCache, u64, Weak<DeviceCache>)>,
}

impl Drop for Mine {
    fn drop(&mut self) {
        LAST.set(&NOBODY);
        CURRENT.with(|slots| slots.iter().for_each(|slot| slot.set(&NOBODY)));
        for (cache, owner, device) in self.caches.drain(..) {
            // Where the allocator has gone, or is going, it has taken the cache back itself.
            if cache.owner.load(Relaxed) == owner
                && let Some(device) = device.upgrade()
            {
                device.retire(cache);
            }
        }
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
        // A device's number is taken once, so that an entry that still bears it is this thread's own.
        let mine = &mut mine.try_borrow_mut().ok()?.caches;
        mine.retain(|(cache, owner, _)| cache.owner.load(Relaxed) == *owner);
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

/// Makes an emptied cache idle, if it is still its owner's. Of a thread that ends and an allocator that goes, one wins.
pub(super) fn give_back(cache: &'static ThreadCache, owner: u64) {
    if cache.owner.compare_exchange(owner, 0, AcqRel, Acquire).is_ok() {
        cache.reset();
        IDLE.lock().push(cache);
    }
}
