//! Observers: of rare events, and of requests that find no room.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};

use parking_lot::Mutex;
use stratalloc::driver::Driver;
use stratalloc::{Event, EventKind, EventObserver, OomAction, OutOfMemory};

use crate::blocks::stratalloc_stream;
use crate::handle::{check_out, device_number, get, stratalloc_allocator};
use crate::pools::stratalloc_pool_id;
use crate::status::{Failure, copy_out, guard, stratalloc_status};

/// What happened.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the names of the header")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum stratalloc_event_kind {
    /// A block was handed out.
    STRATALLOC_EVENT_ALLOC = 0,
    /// A block was freed.
    STRATALLOC_EVENT_FREE = 1,
    /// A freed block that waited for recorded streams has become free.
    STRATALLOC_EVENT_FREE_COMPLETED = 2,
    /// Physical memory was mapped, or a segment of plain memory allocated.
    STRATALLOC_EVENT_MAP = 3,
    /// Physical memory was unmapped, or a segment of plain memory freed.
    STRATALLOC_EVENT_UNMAP = 4,
    /// A stream was recorded for a block.
    STRATALLOC_EVENT_RECORD_STREAM = 5,
    /// A request found no room.
    STRATALLOC_EVENT_OUT_OF_MEMORY = 6,
    /// Free memory was given back to the device.
    STRATALLOC_EVENT_EMPTY_CACHE = 7,
    /// A block was freed that waits for recorded streams.
    STRATALLOC_EVENT_FREE_DEFERRED = 8,
}

use stratalloc_event_kind::*;

/// One event.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_event {
    /// The size of this struct as the library knows it: read no field beyond.
    pub struct_size: usize,
    /// A `stratalloc_event_kind`; later versions may have more.
    pub kind: u32,
    /// The device's number.
    pub device: i32,
    /// The first byte of the block or the range, or 0.
    pub address: u64,
    /// Requested bytes; bytes mapped, unmapped or given back.
    pub bytes: u64,
    /// The stream.
    pub stream: stratalloc_stream,
    /// The private pool, or {0, 0}.
    pub pool: stratalloc_pool_id,
    /// What the memory is for.
    pub tag: u32,
    /// Microseconds since the allocator was made.
    pub time_us: u64,
}

/// Told of rare events: memory mapped and unmapped, deferred frees completed, requests without room, caches emptied. Called with the device's
/// lock held: it must not call the allocator, nor unwind.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_segment_observer =
    Option<unsafe extern "C" fn(context: *mut c_void, event: *const stratalloc_event)>;

/// A context of the caller's, for the caller's own functions.
#[derive(Clone, Copy)]
pub(crate) struct Context(*mut c_void);

// SAFETY: it is handed to the caller's own functions and nothing else, and the header asks them to work on any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn new(context: *mut c_void) -> Context {
        Context(context)
    }

    /// The pointer. A method, so that closures take the whole struct, which may be sent.
    pub(crate) fn get(self) -> *mut c_void {
        self.0
    }
}

fn told(device: usize, event: &Event) -> Option<stratalloc_event> {
    let kind = match event.kind {
        EventKind::Alloc => STRATALLOC_EVENT_ALLOC,
        EventKind::Free => STRATALLOC_EVENT_FREE,
        EventKind::FreeDeferred => STRATALLOC_EVENT_FREE_DEFERRED,
        EventKind::FreeCompleted => STRATALLOC_EVENT_FREE_COMPLETED,
        EventKind::Map => STRATALLOC_EVENT_MAP,
        EventKind::Unmap => STRATALLOC_EVENT_UNMAP,
        EventKind::RecordStream => STRATALLOC_EVENT_RECORD_STREAM,
        EventKind::OutOfMemory => STRATALLOC_EVENT_OUT_OF_MEMORY,
        EventKind::EmptyCache => STRATALLOC_EVENT_EMPTY_CACHE,
        _ => return None,
    };
    Some(stratalloc_event {
        struct_size: size_of::<stratalloc_event>(),
        kind: kind as u32,
        device: device as i32,
        address: event.ptr.0,
        bytes: event.size,
        stream: event.stream.0 as stratalloc_stream,
        pool: event.pool.into(),
        tag: event.tag.into(),
        time_us: event.time_us,
    })
}

/// Waits until nobody but the caller has it: calls under way end soon, since they may not call the allocator.
fn wait_until_unused<T: ?Sized>(shared: &Arc<T>) {
    while Arc::strong_count(shared) > 1 {
        std::thread::yield_now();
    }
}

/// Sets who is told of the rare events of all devices, with `context`; null is nobody. There is one. Costs the hot path nothing. The observer
/// before is not called any more once this returns.
///
/// # Safety
/// `allocator` is null or a handle; `observer` takes `context`, on any thread, and does not call this allocator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_set_segment_observer(
    allocator: *mut stratalloc_allocator,
    observer: stratalloc_segment_observer,
    context: *mut c_void,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let context = Context(context);
        for device in 0..handle.allocator.device_count() {
            let made = observer.map(|tell| -> EventObserver {
                Arc::new(move |event: &Event| {
                    if let Some(event) = told(device, event) {
                        // SAFETY: the caller has given function and context for each other.
                        unsafe { tell(context.get(), &event) }
                    }
                })
            });
            if let Some(before) = handle.allocator.observe_events(device, made)? {
                wait_until_unused(&before);
            }
        }
        Ok(())
    })
}

/// The state of a device when a request found no room, in bytes.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_shortage {
    /// The size of this struct as the library knows it: read no field beyond.
    pub struct_size: usize,
    /// The device's number.
    pub device: i32,
    /// What was asked for.
    pub requested: u64,
    /// Requested and not freed.
    pub live: u64,
    /// Physical memory held.
    pub reserved: u64,
    /// The device's memory.
    pub capacity: u64,
    /// The limit on `reserved`; the capacity where there is none.
    pub limit: u64,
    /// What the driver says is free; 0 where it does not say.
    pub driver_free: u64,
    /// All of it in words, on one line. Valid during the call.
    pub explanation: *const c_char,
}

/// Called when a request finds no room, with no lock held: it may free memory. Returns whether the request is to be tried again. Requests of its
/// own that find no room fail at once. Must not unwind.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_oom_observer =
    Option<unsafe extern "C" fn(context: *mut c_void, shortage: *const stratalloc_shortage) -> bool>;

thread_local! {
    /// Whether this thread is inside such an observer.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// An observer of the caller's. That of the library's own list holds one too, as long as it is called.
struct Watcher {
    ask: unsafe extern "C" fn(*mut c_void, *const stratalloc_shortage) -> bool,
    context: Context,
    drivers: Vec<Arc<dyn Driver>>,
    /// Not to be called any more. The library asks those that there were when a request failed, one after the other: the one before may
    /// have removed this one, and its context be gone.
    is_removed: AtomicBool,
}

impl Watcher {
    fn asked(&self, shortage: &OutOfMemory) -> bool {
        if self.is_removed.load(Acquire) {
            return false;
        }
        let driver_free = self.drivers.get(shortage.device).and_then(|driver| driver.memory_info().ok());
        let explanation = CString::new(shortage.to_string()).unwrap_or_default();
        let told = stratalloc_shortage {
            struct_size: size_of::<stratalloc_shortage>(),
            device: shortage.device as i32,
            requested: shortage.size,
            live: shortage.live,
            reserved: shortage.reserved,
            capacity: shortage.capacity,
            limit: shortage.limit.unwrap_or(shortage.capacity),
            driver_free: driver_free.map_or(0, |info| info.free),
            explanation: explanation.as_ptr(),
        };
        let before = INSIDE.replace(true);
        // SAFETY: the caller has given function and context for each other.
        let retry = unsafe { (self.ask)(self.context.get(), &told) };
        INSIDE.set(before);
        retry
    }
}

/// Those of one allocator, by the library's numbers.
#[derive(Default)]
pub(crate) struct OomObservers(Mutex<HashMap<u64, Arc<Watcher>>>);

/// Adds an observer of requests that find no room, called with `context`. `out_id`, which may be null, receives its number, for
/// `stratalloc_remove_oom_observer`.
///
/// # Safety
/// `allocator` is null or a handle; `observer` takes `context`, on any thread; `out_id` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_add_oom_observer(
    allocator: *mut stratalloc_allocator,
    observer: stratalloc_oom_observer,
    context: *mut c_void,
    out_id: *mut u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        if !out_id.is_null() {
            check_out(out_id, "out_id")?;
        }
        let ask = observer.ok_or_else(|| Failure::argument("the observer is null"))?;
        let drivers = (0..handle.allocator.device_count())
            .map(|device| Ok(handle.allocator.driver(device)?.inner().clone()))
            .collect::<Result<_, stratalloc::Error>>()?;
        let watcher = Arc::new(Watcher { ask, context: Context(context), drivers, is_removed: AtomicBool::new(false) });
        let shared = watcher.clone();
        let mut watchers = handle.observers.0.lock();
        let id = handle
            .allocator
            .add_oom_observer(move |shortage| if shared.asked(shortage) { OomAction::Retry } else { OomAction::Fail });
        watchers.insert(id, watcher);
        if !out_id.is_null() {
            // SAFETY: aligned, writable as the caller promises.
            unsafe { *out_id = id };
        }
        Ok(())
    })
}

/// Why the last request on a device failed that found no room, whichever thread's: the verdict and the cheapest thing to do in the first line,
/// then what is where, what was tried, and what else could be done, in less than 40 lines; "" where none has failed. Copied, cut to fit
/// and with its final 0, into `capacity` bytes at `buffer`, which may be null if `capacity` is 0. Returns the length that the whole text
/// needs, with its final 0; or 0 where there is no such allocator or device, as `stratalloc_last_error` then says.
///
/// # Safety
/// `allocator` is null or a handle; `buffer` is null or has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_explain_oom(
    allocator: *mut stratalloc_allocator,
    device: i32,
    buffer: *mut c_char,
    capacity: usize,
) -> usize {
    let mut length = 0;
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let last = handle.allocator.last_oom(device_number(device)?)?;
        let text = last.map(|explanation| explanation.to_string().replace('\0', " ")).unwrap_or_default();
        // SAFETY: as the caller promises; the text is a new one.
        length = unsafe { copy_out(text.as_bytes(), buffer, capacity) };
        Ok(())
    });
    length
}

/// Removes an observer. It is not called any more once this returns. From inside an observer, this does not wait for calls that are under way,
/// those on other threads included: keep the context until they have returned.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_remove_oom_observer(
    allocator: *mut stratalloc_allocator,
    id: u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let watcher = handle.observers.0.lock().remove(&id);
        let watcher = watcher.ok_or_else(|| Failure::argument(format!("there is no observer {id}")))?;
        watcher.is_removed.store(true, Release);
        handle.allocator.remove_oom_observer(id);
        if !INSIDE.get() {
            wait_until_unused(&watcher);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::stratalloc_malloc;
    use crate::status::stratalloc_status::{STRATALLOC_INVALID_ARGUMENT, STRATALLOC_OK, STRATALLOC_OUT_OF_MEMORY};

    /// Two observers, each of which removes both.
    struct Pair {
        handle: *mut stratalloc_allocator,
        ids: [u64; 2],
        removals: Vec<stratalloc_status>,
        calls: u32,
    }

    /// # Safety
    /// `context` is a [`Pair`] that nobody else has during the call.
    unsafe extern "C" fn remove_both(context: *mut c_void, _: *const stratalloc_shortage) -> bool {
        // SAFETY: as the caller promises.
        let pair = unsafe { &mut *context.cast::<Pair>() };
        pair.calls += 1;
        for id in pair.ids {
            // SAFETY: the handle lives.
            pair.removals.push(unsafe { stratalloc_remove_oom_observer(pair.handle, id) });
        }
        false
    }

    #[test]
    fn an_observer_that_another_one_removes_is_not_called() {
        let handle = Box::into_raw(stratalloc_allocator::over_software(1));
        let mut pair = Pair { handle, ids: [0; 2], removals: Vec::new(), calls: 0 };
        let context = (&raw mut pair).cast();
        let (mut held, mut block) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the handle lives until the end, where nobody else has it; so does the context; out-pointers are those of locals.
        unsafe {
            for id in 0..2 {
                let out = (&raw mut pair.ids).cast::<u64>().add(id);
                assert_eq!(stratalloc_add_oom_observer(handle, Some(remove_both), context, out), STRATALLOC_OK);
            }
            assert_eq!(stratalloc_malloc(handle, 200 << 20, 0, std::ptr::null_mut(), &mut held), STRATALLOC_OK);
            let status = stratalloc_malloc(handle, 200 << 20, 0, std::ptr::null_mut(), &mut block);
            assert_eq!(status, STRATALLOC_OUT_OF_MEMORY);
            assert_eq!((pair.calls, &pair.removals[..]), (1, &[STRATALLOC_OK; 2][..]));
            assert_eq!(stratalloc_remove_oom_observer(handle, pair.ids[1]), STRATALLOC_INVALID_ARGUMENT);
            crate::handle::stratalloc_destroy(handle);
        }
    }
}
