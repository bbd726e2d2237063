//! Evictable memory: blocks whose bytes go to a tier and come back, at the same address; and bytes kept in a tier without an address.

use std::ffi::{c_char, c_void};
use std::slice;
use std::sync::Arc;

use stratalloc::tier::codec::{self, Codec};
use stratalloc::tier::{Evictable, PinGuard, Select, SleepAction, SleepPlan};
use stratalloc::{AllocRequest, DevicePtr, StreamId};

use crate::blocks::{request_of, stratalloc_request, stratalloc_stream};
use crate::handle::{check_out, check_process, device_number, get, stratalloc_allocator, text};
use crate::pools::stratalloc_drop;
use crate::record::stream_number;
use crate::sized::{self, Sized_};
use crate::status::{Failure, Outcome, guard, stratalloc_status};

/// Computes a block's contents again, on `stream`, in place of bytes that were stored. Returns whether it could. Must not unwind.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_recompute = Option<
    unsafe extern "C" fn(context: *mut c_void, address: *mut c_void, bytes: usize, stream: stratalloc_stream) -> bool,
>;

/// How a block may leave the device. Set `struct_size` to `sizeof(stratalloc_evictable)` and the rest to 0, then what you want.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_evictable {
    /// `sizeof(stratalloc_evictable)`.
    pub struct_size: usize,
    /// What its bytes are stored as: "lossless16" for weights of 16 bits, "int8-bf16" for fewer bytes and a bounded error, and so on. Null, and
    /// "none": as they are.
    pub codec: *const c_char,
    /// Whether it leaves only when asked to: by `stratalloc_offload` and `stratalloc_sleep`, but not to make room for another request. For
    /// blocks that are used without `stratalloc_pin`.
    pub only_when_asked: bool,
    /// What computes the contents again, so that they need not be stored; null is none.
    pub recompute: stratalloc_recompute,
    /// Handed to `recompute`, on any thread.
    pub context: *mut c_void,
    /// Called with `context` when the block has gone, or the call has failed that was to make it; may be null.
    pub drop_context: stratalloc_drop,
    /// The fastest tier that it may go to, by its name; null is any.
    pub tier: *const c_char,
    /// How long `recompute` takes, in nanoseconds; 0 where that is not known, and taken to be less than any transfer.
    pub recompute_ns: u64,
}

// SAFETY: repr(C), a `usize` first; numbers, and pointers for which null is a value.
unsafe impl Sized_ for stratalloc_evictable {
    const NAME: &'static str = "stratalloc_evictable";
    const SIZE_MIN: usize = 16;
}

/// A callback of the caller's, with its context, which goes when this goes.
struct Recompute {
    compute: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, stratalloc_stream) -> bool,
    context: *mut c_void,
    drop: stratalloc_drop,
}

// SAFETY: the context is handed to the caller's own functions and nothing else, and the header asks them to work on any thread.
unsafe impl Send for Recompute {}
// SAFETY: as above.
unsafe impl Sync for Recompute {}

impl Drop for Recompute {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: the caller has given function and context for each other, and nothing calls the callback any more.
            unsafe { drop(self.context) }
        }
    }
}

impl Recompute {
    fn computed(&self, ptr: DevicePtr, bytes: u64, stream: StreamId) -> Result<(), String> {
        // SAFETY: the caller has given function and context for each other.
        let done = unsafe {
            (self.compute)(self.context, ptr.0 as *mut c_void, bytes as usize, stream.0 as stratalloc_stream)
        };
        if done { Ok(()) } else { Err("the callback says that it could not".to_owned()) }
    }
}

fn codec_of(name: &str) -> Outcome<Option<Arc<dyn Codec>>> {
    codec::by_name(name).map_err(|error| Failure::argument(error.to_string()))
}

/// Allocates, and tells a recording.
pub(crate) fn alloc(handle: &stratalloc_allocator, request: AllocRequest, how: Evictable) -> Outcome<DevicePtr> {
    let ptr = handle.allocator.alloc_evictable(request, how)?;
    if let Some(recorder) = handle.recording() {
        recorder.alloc(ptr.0, request.size, stream_number(request.device, request.stream.0));
    }
    Ok(ptr)
}

impl stratalloc_evictable {
    /// As the library has it. The callback's context is the library's from now on.
    ///
    /// # Safety
    /// `codec` and `tier` are null or end in 0.
    pub(crate) unsafe fn options(&self) -> Outcome<Evictable> {
        let mut options = Evictable::default();
        // First of all, so that the context goes whatever else is wrong.
        if let Some(compute) = self.recompute {
            let recompute = Recompute { compute, context: self.context, drop: self.drop_context };
            let takes_ns = (self.recompute_ns > 0).then_some(self.recompute_ns);
            options =
                options.recompute(Arc::new(move |ptr, bytes, stream| recompute.computed(ptr, bytes, stream)), takes_ns);
        }
        if !self.tier.is_null() {
            // SAFETY: as the caller promises.
            options = options.tier(unsafe { text(self.tier, "tier") }?);
        }
        if self.only_when_asked {
            options = options.on_request_only();
        }
        if !self.codec.is_null() {
            // SAFETY: as the caller promises.
            options.codec = codec_of(unsafe { text(self.codec, "codec") }?)?;
        }
        Ok(options)
    }
}

/// Allocates a block that can leave the device and come back, at the same address. `STRATALLOC_TIER_UNUSABLE` where no tiers are configured (the key
/// `tiers`). It is freed as any other. Work that uses it holds a pin, unless it leaves only when asked. `*out` is null after a failure.
///
/// # Safety
/// `allocator` is null or a handle; `request` and `evictable` are null or structs of the size they say, and `evictable` holds functions that take
/// its context, on any thread; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_alloc_evictable(
    allocator: *mut stratalloc_allocator,
    request: *const stratalloc_request,
    evictable: *const stratalloc_evictable,
    out: *mut *mut c_void,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let how = unsafe { sized::read(evictable).and_then(|evictable| evictable.options()) };
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = std::ptr::null_mut() };
        // SAFETY: as the caller promises.
        let (handle, request) = unsafe { (get(allocator)?, sized::read(request)?) };
        let how = how?;
        let ptr = alloc(handle, request_of(handle, &request)?, how)?;
        // SAFETY: as above.
        unsafe { *out = ptr.0 as *mut c_void };
        Ok(())
    })
}

/// What is selected: the block at the address `which`, with those that share its memory.
pub const STRATALLOC_SELECT_BLOCK: u32 = 0;
/// The evictable blocks of the tag with the number `which`.
pub const STRATALLOC_SELECT_TAG: u32 = 1;
/// All evictable blocks.
pub const STRATALLOC_SELECT_ALL: u32 = 2;

fn selected(handle: &stratalloc_allocator, select: u32, which: u64) -> Outcome<Select> {
    match select {
        STRATALLOC_SELECT_BLOCK => Ok(Select::Ptr(DevicePtr(which))),
        STRATALLOC_SELECT_TAG => {
            let number = u32::try_from(which).unwrap_or(u32::MAX);
            Ok(Select::Tag(handle.tag_of(number)?.number()))
        }
        STRATALLOC_SELECT_ALL => Ok(Select::All),
        other => Err(Failure::argument(format!("selection {other}: known are 0 (block), 1 (tag) and 2 (all)"))),
    }
}

/// Sends evictable blocks to a tier, behind what their streams have been given to do, and gives their memory up. Pinned ones stay, and are
/// `STRATALLOC_RESIDENCY` where `which` names them.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_offload(
    allocator: *mut stratalloc_allocator,
    select: u32,
    which: u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        handle.allocator.offload(selected(handle, select, which)?)?;
        Ok(())
    })
}

/// Brings evictable blocks back.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_restore(
    allocator: *mut stratalloc_allocator,
    select: u32,
    which: u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        Ok(handle.allocator.restore_evicted(selected(handle, select, which)?)?)
    })
}

/// Begins to bring an evictable block back, for work on `stream`.
///
/// # Safety
/// `allocator` is null or a handle. `ptr` may be anything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_prefetch(
    allocator: *mut stratalloc_allocator,
    ptr: *mut c_void,
    stream: stratalloc_stream,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        Ok(handle.allocator.prefetch(DevicePtr(ptr as u64), StreamId(stream as u64))?)
    })
}

/// Holds an evictable block on its device.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub struct stratalloc_pinned {
    _guard: PinGuard,
}

/// Brings an evictable block back for work on `stream`, which waits for it on the device, and holds it there until `stratalloc_unpin`. `*out`
/// is null after a failure.
///
/// # Safety
/// `allocator` is null or a handle, which outlives the pin; `out` is null or may be written. `ptr` may be anything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pin(
    allocator: *mut stratalloc_allocator,
    ptr: *mut c_void,
    stream: stratalloc_stream,
    out: *mut *mut stratalloc_pinned,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = std::ptr::null_mut() };
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let guard = handle.allocator.pin(DevicePtr(ptr as u64), StreamId(stream as u64))?;
        // SAFETY: as above.
        unsafe { *out = Box::into_raw(Box::new(stratalloc_pinned { _guard: guard })) };
        Ok(())
    })
}

/// Lets a block go. Null is none.
///
/// # Safety
/// `pinned` is null or from `stratalloc_pin`, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_unpin(pinned: *mut stratalloc_pinned) {
    guard(|| {
        if !pinned.is_null() {
            // In a child after `fork`, it is the parent's.
            check_process()?;
            // SAFETY: it came from `Box::into_raw`, as the caller promises.
            drop(unsafe { Box::from_raw(pinned) });
        }
        Ok(())
    });
}

/// What becomes of a tag's blocks: their bytes go to a tier.
pub const STRATALLOC_SLEEP_SAVE: u32 = 0;
/// They stay on the device.
pub const STRATALLOC_SLEEP_KEEP: u32 = 1;
/// Their contents are given up.
pub const STRATALLOC_SLEEP_DROP: u32 = 2;

/// What becomes of the blocks of one tag.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_sleep_tag {
    /// The tag's number.
    pub tag: u32,
    /// `STRATALLOC_SLEEP_SAVE`, `_KEEP` or `_DROP`.
    pub action: u32,
}

/// What `stratalloc_sleep` does. Set `struct_size` to `sizeof(stratalloc_sleep_plan)` and the rest to 0, then what you want.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_sleep_plan {
    /// `sizeof(stratalloc_sleep_plan)`.
    pub struct_size: usize,
    /// What becomes of the blocks of all tags that `tags` does not name.
    pub otherwise: u32,
    /// How many entries `tags` has.
    pub tag_count: u32,
    /// What becomes of the blocks of tags; null where `tag_count` is 0.
    pub tags: *const stratalloc_sleep_tag,
}

// SAFETY: repr(C), a `usize` first; null and 0 are values.
unsafe impl Sized_ for stratalloc_sleep_plan {
    const NAME: &'static str = "stratalloc_sleep_plan";
    const SIZE_MIN: usize = 24;
}

fn action(number: u32) -> Outcome<SleepAction> {
    match number {
        STRATALLOC_SLEEP_SAVE => Ok(SleepAction::Save),
        STRATALLOC_SLEEP_KEEP => Ok(SleepAction::Keep),
        STRATALLOC_SLEEP_DROP => Ok(SleepAction::Drop),
        other => Err(Failure::argument(format!("sleep action {other}: known are 0 (save), 1 (keep) and 2 (drop)"))),
    }
}

/// `count` values of the caller's.
///
/// # Safety
/// `first` is null, or so many are there during `'a`.
unsafe fn values<'a, T>(first: *const T, count: usize, name: &str) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    check_out(first, name)?;
    if count > COUNT_MAX {
        return Err(Failure::argument(format!("{count} `{name}`: there are {COUNT_MAX} at most")));
    }
    // SAFETY: not null, aligned, and so many are there, as the caller promises.
    Ok(unsafe { slice::from_raw_parts(first, count) })
}

/// More tags than there may be.
const COUNT_MAX: usize = 1 << 16;

/// Sends the evictable blocks of all devices away, as `plan` says by tag, and gives their memory back to the devices, so that other programs can
/// have it. `stratalloc_wake` undoes it. `STRATALLOC_RESIDENCY`, and nothing done, where they sleep already.
///
/// # Safety
/// `allocator` is null or a handle; `plan` is null or a struct of the size it says, whose `tags` are as many as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_sleep(
    allocator: *mut stratalloc_allocator,
    plan: *const stratalloc_sleep_plan,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, plan) = unsafe { (get(allocator)?, sized::read(plan)?) };
        // SAFETY: as the caller promises.
        let tags = unsafe { values(plan.tags, plan.tag_count as usize, "tags") }?;
        let mut wanted = SleepPlan::new(action(plan.otherwise)?);
        for entry in tags {
            wanted = wanted.tag(handle.tag_of(entry.tag)?.number(), action(entry.action)?);
        }
        handle.allocator.sleep(&wanted)?;
        Ok(())
    })
}

/// Brings back what `stratalloc_sleep` sent away: all of it where `tags` is null, else the blocks of `tag_count` tags. Contents that were dropped
/// are undefined. `STRATALLOC_RESIDENCY` where nothing sleeps.
///
/// # Safety
/// `allocator` is null or a handle; `tags` is null or `tag_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_wake(
    allocator: *mut stratalloc_allocator,
    tags: *const u32,
    tag_count: usize,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        if tags.is_null() && tag_count == 0 {
            return Ok(handle.allocator.wake(None)?);
        }
        // SAFETY: as the caller promises.
        let numbers = unsafe { values(tags, tag_count, "tags") }?;
        let tags = numbers.iter().map(|&number| handle.tag_of(number)).collect::<Outcome<Vec<_>>>()?;
        Ok(handle.allocator.wake(Some(&tags))?)
    })
}

/// Has work that is submitted to `stream` from now on come after all that has begun to come back to a device: for streams that no other call has
/// named.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_follow_restores(
    allocator: *mut stratalloc_allocator,
    device: i32,
    stream: stratalloc_stream,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        Ok(handle.allocator.follow_restores(device_number(device)?, StreamId(stream as u64))?)
    })
}
