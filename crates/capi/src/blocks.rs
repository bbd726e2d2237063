//! Allocating and freeing. `stratalloc_malloc` and `stratalloc_free` are the hot path: a handle that looks like one, nothing out of the
//! ordinary in the process, and straight on.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use stratalloc::{AllocFlags, AllocRequest, Allocator, BlockInfo, BlockState, DevicePtr, Error, Lifetime, StreamId};

use crate::handle::{check_out, device_number, get, stratalloc_allocator};
use crate::mode;
use crate::pools::stratalloc_pool_id;
use crate::record::stream_number;
use crate::sized::{self, Sized_};
use crate::status::stratalloc_status::{self, STRATALLOC_OK};
use crate::status::{Failure, Outcome, caught, guard};
use crate::tags;

/// A stream: a `CUstream`, which is a `cudaStream_t`. Null is the default stream.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_stream = *mut c_void;

/// Fill the block with zeros, in stream order.
pub const STRATALLOC_ZEROED: u32 = 1;
/// Serve the request from what is held already: take nothing from the device and wait for nothing. Observers are not asked.
pub const STRATALLOC_NO_GROW: u32 = 2;
/// Give the block a physical allocation of its own (`cuMemAlloc`), which nothing else shares: one whose memory is to be exported to other
/// processes or registered with other devices. Rounded up to 2 MiB, aligned to 512 bytes.
pub const STRATALLOC_DEDICATED: u32 = 4;

// The header's flags are the library's.
const _: () = assert!(AllocFlags::all().bits() as u32 == STRATALLOC_ZEROED | STRATALLOC_NO_GROW | STRATALLOC_DEDICATED);
const _: () = assert!(AllocFlags::NO_GROW.bits() as u32 == STRATALLOC_NO_GROW);
const _: () = assert!(AllocFlags::DEDICATED.bits() as u32 == STRATALLOC_DEDICATED);

/// Not known how long the block will live.
pub const STRATALLOC_LIFETIME_UNKNOWN: u32 = 0;
/// It lives within a step: activations, workspaces.
pub const STRATALLOC_LIFETIME_TRANSIENT: u32 = 1;
/// It lives over many steps: weights, optimizer state, caches.
pub const STRATALLOC_LIFETIME_PERSISTENT: u32 = 2;

/// A request with all that can be said of it. Set `struct_size` to `sizeof(stratalloc_request)` and the rest to 0, then what you want.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_request {
    /// `sizeof(stratalloc_request)`.
    pub struct_size: usize,
    /// How many bytes, at least 1.
    pub bytes: usize,
    /// A power of two up to 2 MiB, or 0. Every block is aligned to 512 bytes at least.
    pub alignment: usize,
    /// The device's number.
    pub device: i32,
    /// What the memory is for, from `stratalloc_tag`; 0 is "none".
    pub tag: u32,
    /// The stream that uses the block first, and in whose order its free takes effect.
    pub stream: stratalloc_stream,
    /// `STRATALLOC_ZEROED`, `STRATALLOC_NO_GROW`, `STRATALLOC_DEDICATED`.
    pub flags: u32,
    /// `STRATALLOC_LIFETIME_UNKNOWN`, `_TRANSIENT` or `_PERSISTENT`: a hint.
    pub lifetime: u32,
}

// SAFETY: repr(C), a `usize` first; numbers and a pointer that is never read through.
unsafe impl Sized_ for stratalloc_request {
    const NAME: &'static str = "stratalloc_request";
    const SIZE_MIN: usize = 16;
}

/// The block is free, in whatever cache.
pub const STRATALLOC_BLOCK_FREE: u32 = 0;
/// The block is in the hands of a caller.
pub const STRATALLOC_BLOCK_LIVE: u32 = 1;
/// The block was freed, and waits for recorded streams.
pub const STRATALLOC_BLOCK_PENDING: u32 = 2;

/// What is known of a block.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_block {
    /// `sizeof(stratalloc_block)`.
    pub struct_size: usize,
    /// First byte.
    pub address: *mut c_void,
    /// Bytes of the block.
    pub bytes: usize,
    /// Bytes that were requested; 0 where the block is free.
    pub requested: usize,
    /// The device's number.
    pub device: i32,
    /// What the memory is for.
    pub tag: u32,
    /// The home stream.
    pub stream: stratalloc_stream,
    /// The private pool, or {0, 0}.
    pub pool: stratalloc_pool_id,
    /// `STRATALLOC_BLOCK_FREE`, `_LIVE` or `_PENDING`.
    pub state: u32,
    /// Whether it has a physical allocation of its own: `STRATALLOC_DEDICATED`.
    pub is_dedicated: bool,
}

// SAFETY: repr(C), a `usize` first; numbers and pointers that are never read through.
unsafe impl Sized_ for stratalloc_block {
    const NAME: &'static str = "stratalloc_block";
    const SIZE_MIN: usize = 24;
}

impl stratalloc_block {
    pub(crate) fn new(device: usize, info: &BlockInfo) -> stratalloc_block {
        stratalloc_block {
            struct_size: size_of::<stratalloc_block>(),
            address: info.ptr.0 as *mut c_void,
            bytes: info.size as usize,
            requested: info.requested as usize,
            device: device as i32,
            tag: info.tag.into(),
            stream: info.stream.0 as stratalloc_stream,
            pool: info.pool.into(),
            state: match info.state {
                BlockState::Live => STRATALLOC_BLOCK_LIVE,
                BlockState::Pending => STRATALLOC_BLOCK_PENDING,
                _ => STRATALLOC_BLOCK_FREE,
            },
            is_dedicated: info.dedicated,
        }
    }
}

/// The handle's allocator, if the hot path may go on.
///
/// # Safety
/// As for [`get`].
#[inline(always)]
unsafe fn plain<'a>(handle: *const stratalloc_allocator) -> Option<&'a Allocator> {
    // SAFETY: as the caller promises; it is borrowed no longer than the call.
    unsafe { (mode::is_plain() && stratalloc_allocator::is_live(handle)).then(|| &(*handle).allocator) }
}

#[inline(always)]
fn short_request(size: usize, device: i32, stream: stratalloc_stream) -> AllocRequest {
    // A negative device becomes one that no allocator has, where it was not refused before.
    AllocRequest::new(size as u64).device(device as u32 as usize).stream(StreamId(stream as u64))
}

/// Allocates `size` bytes on a device, for a stream: work submitted to it may use them at once. `*out` is null after a failure.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_malloc(
    allocator: *mut stratalloc_allocator,
    size: usize,
    device: i32,
    stream: stratalloc_stream,
    out: *mut *mut c_void,
) -> stratalloc_status {
    // SAFETY: as the caller promises.
    if let Some(plain) = unsafe { plain(allocator) }
        && !out.is_null()
        && device >= 0
    {
        let made = catch_unwind(AssertUnwindSafe(|| plain.raw_alloc(short_request(size, device, stream))));
        let (status, ptr) = match made {
            Ok(Ok(ptr)) => (STRATALLOC_OK, ptr),
            Ok(Err(error)) => (Failure::from(error).report(), DevicePtr::NULL),
            Err(panic) => (caught(&*panic), DevicePtr::NULL),
        };
        // SAFETY: not null, writable as the caller promises; this store wants no alignment.
        unsafe { out.write_unaligned(ptr.0 as *mut c_void) };
        return status;
    }
    // SAFETY: as the caller promises.
    unsafe { malloc_slow(allocator, size, device, stream, out) }
}

/// # Safety
/// As for [`stratalloc_malloc`].
#[cold]
#[inline(never)]
unsafe fn malloc_slow(
    allocator: *mut stratalloc_allocator,
    size: usize,
    device: i32,
    stream: stratalloc_stream,
    out: *mut *mut c_void,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = ptr::null_mut() };
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        device_number(device)?;
        let ptr = alloc(handle, short_request(size, device, stream))?;
        // SAFETY: as above.
        unsafe { *out = ptr.0 as *mut c_void };
        Ok(())
    })
}

/// Allocates for what the thread has said its requests are for, and tells a recording.
pub(crate) fn alloc(handle: &stratalloc_allocator, request: AllocRequest) -> Outcome<DevicePtr> {
    let ptr = tags::serve(handle, request)?;
    if let Some(recorder) = handle.recording() {
        recorder.alloc(ptr.0, request.size, stream_number(request.device, request.stream.0));
    }
    Ok(ptr)
}

/// Frees, and tells a recording before the memory is anybody else's. Null is nothing.
pub(crate) fn free(handle: &stratalloc_allocator, ptr: DevicePtr, device: Option<usize>) -> Outcome<()> {
    if ptr.is_null() {
        return Ok(());
    }
    if let Some(recorder) = handle.recording() {
        // Only what will succeed is told: a free that fails has not happened.
        handle.allocator.usable_size(ptr)?;
        let owner = handle.allocator.block_at(ptr).map(|(owner, _)| owner);
        if device.is_none() || owner == device {
            recorder.free(ptr.0);
        }
    }
    match device {
        Some(device) => Ok(handle.allocator.raw_free_on(ptr, device)?),
        None => Ok(handle.allocator.raw_free(ptr)?),
    }
}

pub(crate) fn request_of(handle: &stratalloc_allocator, request: &stratalloc_request) -> Outcome<AllocRequest> {
    let flags = match u8::try_from(request.flags).ok().and_then(AllocFlags::from_bits) {
        Some(flags) => flags,
        None => {
            return Err(Failure::argument(format!(
                "flags {:#x}: known are 1 (ZEROED), 2 (NO_GROW) and 4 (DEDICATED)",
                request.flags
            )));
        }
    };
    let lifetime = match request.lifetime {
        STRATALLOC_LIFETIME_UNKNOWN => Lifetime::Unknown,
        STRATALLOC_LIFETIME_TRANSIENT => Lifetime::Transient,
        STRATALLOC_LIFETIME_PERSISTENT => Lifetime::Persistent,
        other => return Err(Failure::argument(format!("lifetime {other}: known are 0, 1 and 2"))),
    };
    let plain = short_request(request.bytes, request.device, request.stream);
    device_number(request.device)?;
    let full = plain.tag(handle.tag_of(request.tag)?).flags(flags).lifetime(lifetime);
    Ok(if request.alignment == 0 { full } else { full.alignment(request.alignment as u64) })
}

/// Allocates as a request says. `*out` is null after a failure.
///
/// # Safety
/// `allocator` is null or a handle; `request` is null or a struct of the size it says; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_alloc(
    allocator: *mut stratalloc_allocator,
    request: *const stratalloc_request,
    out: *mut *mut c_void,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = ptr::null_mut() };
        // SAFETY: as the caller promises.
        let (handle, request) = unsafe { (get(allocator)?, sized::read(request)?) };
        let ptr = alloc(handle, request_of(handle, &request)?)?;
        // SAFETY: as above.
        unsafe { *out = ptr.0 as *mut c_void };
        Ok(())
    })
}

/// Frees a block, in the order of its home stream: work submitted to that stream before may still use it. Never waits. Null is no block, and
/// fine.
///
/// # Safety
/// `allocator` is null or a handle. `ptr` may be anything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_free(allocator: *mut stratalloc_allocator, ptr: *mut c_void) -> stratalloc_status {
    // SAFETY: as the caller promises.
    let Some(plain) = (unsafe { plain(allocator) }) else {
        // SAFETY: as the caller promises.
        return unsafe { free_slow(allocator, ptr) };
    };
    match catch_unwind(AssertUnwindSafe(|| plain.raw_free(DevicePtr(ptr as u64)))) {
        Ok(Ok(())) => STRATALLOC_OK,
        Ok(Err(error)) => free_failed(error),
        Err(panic) => caught(&*panic),
    }
}

#[cold]
#[inline(never)]
fn free_failed(error: Error) -> stratalloc_status {
    match error {
        Error::InvalidPointer { ptr } if ptr.is_null() => STRATALLOC_OK,
        error => Failure::from(error).report(),
    }
}

/// # Safety
/// As for [`stratalloc_free`].
#[cold]
#[inline(never)]
unsafe fn free_slow(allocator: *mut stratalloc_allocator, ptr: *mut c_void) -> stratalloc_status {
    // SAFETY: as the caller promises.
    guard(|| free(unsafe { get(allocator) }?, DevicePtr(ptr as u64), None))
}

/// `stratalloc_free` where the caller says which device the block is on: `STRATALLOC_WRONG_DEVICE`, and nothing freed, if it is not.
///
/// # Safety
/// As for `stratalloc_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_free_on(
    allocator: *mut stratalloc_allocator,
    ptr: *mut c_void,
    device: i32,
) -> stratalloc_status {
    // SAFETY: as the caller promises.
    guard(|| free(unsafe { get(allocator) }?, DevicePtr(ptr as u64), Some(device_number(device)?)))
}

/// Says that work on `stream` uses a live block. Its free then takes effect when `stream`, too, has done what was submitted to it before the
/// free. Call it before freeing, once for every stream other than the home stream.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_record_stream(
    allocator: *mut stratalloc_allocator,
    ptr: *mut c_void,
    stream: stratalloc_stream,
) -> stratalloc_status {
    // SAFETY: as the caller promises.
    guard(|| record_stream(unsafe { get(allocator) }?, DevicePtr(ptr as u64), StreamId(stream as u64)))
}

pub(crate) fn record_stream(handle: &stratalloc_allocator, ptr: DevicePtr, stream: StreamId) -> Outcome<()> {
    handle.allocator.record_stream(ptr, stream)?;
    if let Some(recorder) = handle.recording() {
        let device = handle.allocator.block_at(ptr).map_or(0, |(device, _)| device);
        recorder.record_stream(ptr.0, stream_number(device, stream.0));
    }
    Ok(())
}

/// The bytes that may be used at a live block's address: what was requested, rounded up.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_usable_size(
    allocator: *mut stratalloc_allocator,
    ptr: *mut c_void,
    out: *mut usize,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: as the caller promises.
        let bytes = unsafe { get(allocator) }?.allocator.usable_size(DevicePtr(ptr as u64))?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = bytes as usize };
        Ok(())
    })
}

/// Finds the block, live or waiting for recorded streams, that contains an address. `STRATALLOC_INVALID_POINTER` where there is none. Takes time
/// in proportion to the blocks, unless the address is a live block's first byte.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or a struct of the size it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_find(
    allocator: *mut stratalloc_allocator,
    inside: *const c_void,
    out: *mut stratalloc_block,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe {
            sized::writable(out)?;
            get(allocator)?
        };
        let (device, info) = find(handle, DevicePtr(inside as u64))?;
        // SAFETY: as the caller promises.
        unsafe { sized::write(out, &stratalloc_block::new(device, &info)) }
    })
}

pub(crate) fn find(handle: &stratalloc_allocator, inside: DevicePtr) -> Outcome<(usize, BlockInfo)> {
    let text = || format!("{inside} is in no block of this allocator");
    let found = handle.allocator.block_at(inside);
    found.ok_or_else(|| Failure::new(stratalloc_status::STRATALLOC_INVALID_POINTER, text()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::stratalloc_status::*;

    /// The C interface makes allocators of one software device only; machines have more.
    #[test]
    fn blocks_of_another_device_are_told_apart() {
        let handle = Box::into_raw(stratalloc_allocator::over_software(2));
        let mut blocks = [ptr::null_mut(); 2];
        // SAFETY: the handle lives until the end, where nobody else has it; out-pointers are those of locals.
        unsafe {
            for (device, block) in (0..).zip(&mut blocks) {
                assert_eq!(stratalloc_malloc(handle, 1 << 20, device, ptr::null_mut(), block), STRATALLOC_OK);
            }
            assert_eq!(stratalloc_free_on(handle, blocks[0], 1), STRATALLOC_WRONG_DEVICE);
            assert_eq!(stratalloc_free_on(handle, blocks[1], 0), STRATALLOC_WRONG_DEVICE);
            let mut found: stratalloc_block = std::mem::zeroed();
            found.struct_size = size_of::<stratalloc_block>();
            assert_eq!(stratalloc_find(handle, blocks[1], &mut found), STRATALLOC_OK);
            assert_eq!((found.device, found.address), (1, blocks[1]));
            assert_eq!(stratalloc_free(handle, blocks[1]), STRATALLOC_OK);
            assert_eq!(stratalloc_free_on(handle, blocks[0], 0), STRATALLOC_OK);
            crate::handle::stratalloc_destroy(handle);
        }
    }

    /// Streams of two devices with one handle are two in a trace.
    #[test]
    fn a_recording_tells_devices_apart_and_refused_frees_are_not_in_it() {
        let path = std::env::temp_dir().join(format!("stratalloc-capi-{}.trace", std::process::id()));
        let text = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        let handle = Box::into_raw(stratalloc_allocator::over_software(2));
        let (mut first, mut second, mut calls) = (ptr::null_mut(), ptr::null_mut(), 0);
        // SAFETY: as above.
        unsafe {
            assert_eq!(crate::record::stratalloc_trace_start(handle, text.as_ptr()), STRATALLOC_OK);
            assert_eq!(stratalloc_malloc(handle, 1000, 0, ptr::null_mut(), &mut first), STRATALLOC_OK);
            assert_eq!(stratalloc_malloc(handle, 2000, 1, ptr::null_mut(), &mut second), STRATALLOC_OK);
            assert_eq!(stratalloc_free_on(handle, second, 0), STRATALLOC_WRONG_DEVICE);
            assert_eq!(stratalloc_free_on(handle, second, 1), STRATALLOC_OK);
            assert_eq!(stratalloc_free_on(handle, second, 1), STRATALLOC_DOUBLE_FREE);
            assert_eq!(crate::record::stratalloc_trace_stop(handle, &mut calls), STRATALLOC_OK);
            assert_eq!(stratalloc_free(handle, first), STRATALLOC_OK);
            crate::handle::stratalloc_destroy(handle);
        }
        let trace = stratalloc_trace::Trace::load(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        assert_eq!((calls, trace.allocs, trace.frees, trace.streams), (3, 2, 1, 2));
        assert_eq!(trace.header["device-bytes"], "268435456 268435456");
    }
}
