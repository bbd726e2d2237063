//! Giving memory back while it is in use: pages and chunks that share memory, and blocks that may be moved.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::AcqRel, Ordering::Acquire};
use std::time::Duration;

use parking_lot::Mutex;
use stratalloc::{ByteSize, Movable, PassLimits, Pinned};

use crate::blocks::{request_of, stratalloc_request};
use crate::handle::{check_out, check_process, device_number, get, stratalloc_allocator};
use crate::sized::{self, Sized_};
use crate::status::{Failure, Outcome, guard, stratalloc_status};

/// What one pass may do at most; 0 is no bound. Set `struct_size` to `sizeof(stratalloc_pass_limits)`.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_pass_limits {
    /// `sizeof(stratalloc_pass_limits)`.
    pub struct_size: usize,
    /// Bytes copied.
    pub bytes: u64,
    /// Nanoseconds on the device's clock, after which nothing more is begun.
    pub time_ns: u64,
}

// SAFETY: repr(C), a `usize` first, numbers only.
unsafe impl Sized_ for stratalloc_pass_limits {
    const NAME: &'static str = "stratalloc_pass_limits";
    const SIZE_MIN: usize = 16;
}

/// What `stratalloc_defragment` did.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_defrag_report {
    /// `sizeof(stratalloc_defrag_report)`.
    pub struct_size: usize,
    /// Pages of small blocks that were looked at, each with memory of its own.
    pub pages: u64,
    /// Pages that share another page's memory now.
    pub meshed: u64,
    /// Chunks of larger blocks, used in part, that were looked at.
    pub chunks: u64,
    /// Chunks that share another one's memory now.
    pub paired: u64,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes given back to the device.
    pub released: u64,
}

// SAFETY: repr(C), a `usize` first, numbers only.
unsafe impl Sized_ for stratalloc_defrag_report {
    const NAME: &'static str = "stratalloc_defrag_report";
    const SIZE_MIN: usize = 16;
}

/// What `stratalloc_compact` did.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_compact_report {
    /// `sizeof(stratalloc_compact_report)`.
    pub struct_size: usize,
    /// Blocks that lie elsewhere now.
    pub moved: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were to move, and were pinned or freed meanwhile, or left for want of time.
    pub left: u64,
}

// SAFETY: repr(C), a `usize` first, numbers only.
unsafe impl Sized_ for stratalloc_compact_report {
    const NAME: &'static str = "stratalloc_compact_report";
    const SIZE_MIN: usize = 16;
}

/// Null is no limits.
///
/// # Safety
/// `limits` is null or a struct of the size it says.
unsafe fn limits_of(limits: *const stratalloc_pass_limits) -> Outcome<PassLimits> {
    let mut bounds = PassLimits::default();
    if limits.is_null() {
        return Ok(bounds);
    }
    // SAFETY: as the caller promises.
    let said = unsafe { sized::read(limits) }?;
    if said.bytes > 0 {
        bounds.bytes = ByteSize(said.bytes);
    }
    if said.time_ns > 0 {
        bounds.time = Duration::from_nanos(said.time_ns);
    }
    Ok(bounds)
}

/// Checks a report before anything is done; null is nobody who wants it.
///
/// # Safety
/// `report` is null or a struct of the size it says.
unsafe fn writable<T: Sized_>(report: *mut T) -> Outcome<()> {
    // SAFETY: as the caller promises.
    if report.is_null() { Ok(()) } else { unsafe { sized::writable(report) } }
}

/// # Safety
/// As for [`writable`].
unsafe fn write<T: Sized_>(report: *mut T, value: &T) -> Outcome<()> {
    // SAFETY: as the caller promises.
    if report.is_null() { Ok(()) } else { unsafe { sized::write(report, value) } }
}

/// Waits until a device has done all that was submitted to it, then gives memory back while all pointers stay what they are: where what is in use
/// in two pages of small blocks, or in two chunks of larger ones, lies at different places, that of one is copied to the other, and both
/// addresses are mapped to the same memory. Until it returns, no thread may submit work that touches memory of the allocator: it would find
/// old bytes, or none. `STRATALLOC_CAPTURING` during a capture. `limits` and `report` may be null.
///
/// # Safety
/// `allocator` is null or a handle; `limits` and `report` are null or structs of the size they say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_defragment(
    allocator: *mut stratalloc_allocator,
    device: i32,
    limits: *const stratalloc_pass_limits,
    report: *mut stratalloc_defrag_report,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, limits) = unsafe {
            writable(report)?;
            (get(allocator)?, limits_of(limits)?)
        };
        let done = handle.allocator.quiesce(device_number(device)?)?.defragment(limits)?;
        let told = stratalloc_defrag_report {
            struct_size: size_of::<stratalloc_defrag_report>(),
            pages: done.pages,
            meshed: done.meshed,
            chunks: done.chunks,
            paired: done.paired,
            copied: done.copied,
            released: done.released,
        };
        // SAFETY: as the caller promises.
        unsafe { write(report, &told) }
    })
}

/// What a live movable block begins with. "strM".
const MAGIC: u32 = u32::from_le_bytes(*b"strM");

/// A block that `stratalloc_compact` may move while it is not pinned. Free it before its allocator is destroyed.
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug)]
pub struct stratalloc_movable {
    /// [`MAGIC`], until it is freed.
    magic: AtomicU32,
    /// Before `block`, which they borrow: fields are dropped in this order.
    pins: Mutex<Vec<Pinned<'static>>>,
    block: Box<Movable>,
}

/// The block behind a handle.
///
/// # Safety
/// `movable` is null, or from [`stratalloc_alloc_movable`] and not freed during the call.
unsafe fn movable_of<'a>(movable: *const stratalloc_movable) -> Outcome<&'a stratalloc_movable> {
    check_process()?;
    if movable.is_null() || !movable.is_aligned() {
        return Err(Failure::argument("the movable block's handle is null or not one"));
    }
    // SAFETY: not null, aligned, and readable as the caller promises.
    let found = unsafe { &*movable };
    if found.magic.load(Acquire) == MAGIC {
        Ok(found)
    } else {
        Err(Failure::argument("the movable block's handle is not one, or was freed"))
    }
}

/// Allocates a block that `stratalloc_compact` may move, as a request says. `*out` is null after a failure. It has no address until it is pinned, and is in
/// no recording.
///
/// # Safety
/// `allocator` is null or a handle; `request` is null or a struct of the size it says; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_alloc_movable(
    allocator: *mut stratalloc_allocator,
    request: *const stratalloc_request,
    out: *mut *mut stratalloc_movable,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = ptr::null_mut() };
        // SAFETY: as the caller promises.
        let (handle, request) = unsafe { (get(allocator)?, sized::read(request)?) };
        let block = Box::new(handle.allocator.alloc_movable(request_of(handle, &request)?)?);
        let made = stratalloc_movable { magic: AtomicU32::new(MAGIC), pins: Mutex::new(Vec::new()), block };
        // SAFETY: as above.
        unsafe { *out = Box::into_raw(Box::new(made)) };
        Ok(())
    })
}

/// Says where a block lies, and holds it there until `stratalloc_movable_unpin`, once for each pin. Submit work that uses it to its home stream, then
/// let go: moves come after that work in stream order.
///
/// # Safety
/// `movable` is null or a handle; `out` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_movable_pin(
    movable: *mut stratalloc_movable,
    out: *mut *mut c_void,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = ptr::null_mut() };
        // SAFETY: as the caller promises.
        let found = unsafe { movable_of(movable) }?;
        let block: *const Movable = &raw const *found.block;
        // SAFETY: the box stays where it is and lives until the handle is freed, which drops the pins first.
        let pinned = unsafe { &*block }.pin();
        let ptr = pinned.ptr();
        found.pins.lock().push(pinned);
        // SAFETY: as above.
        unsafe { *out = ptr.0 as *mut c_void };
        Ok(())
    })
}

/// Takes one pin back. `STRATALLOC_INVALID_ARGUMENT` where the block is not pinned.
///
/// # Safety
/// `movable` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_movable_unpin(movable: *mut stratalloc_movable) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let last = unsafe { movable_of(movable) }?.pins.lock().pop();
        last.map(drop).ok_or_else(|| Failure::argument("the movable block is not pinned"))
    })
}

/// Frees a block with its pins, in the order of its home stream. Null is no block, and fine.
///
/// # Safety
/// `movable` is null or a handle that no other thread uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_movable_free(movable: *mut stratalloc_movable) -> stratalloc_status {
    guard(|| {
        if movable.is_null() {
            return Ok(());
        }
        // SAFETY: as the caller promises.
        let found = unsafe { movable_of(movable) }?;
        if found.magic.swap(0, AcqRel) != MAGIC {
            return Err(Failure::argument("the movable block's handle was freed meanwhile"));
        }
        // SAFETY: it was made by `Box::into_raw`, and whoever took the magic away, this call, frees it.
        drop(unsafe { Box::from_raw(movable) });
        Ok(())
    })
}

/// Moves movable blocks that nobody has pinned, so that chunks become free; they are, once the streams get there. Waits for nothing. Work
/// that is submitted from now on goes by a new `stratalloc_movable_pin`. Where the driver fails, nothing has moved. `limits` and `report` may be null.
///
/// # Safety
/// `allocator` is null or a handle; `limits` and `report` are null or structs of the size they say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_compact(
    allocator: *mut stratalloc_allocator,
    device: i32,
    limits: *const stratalloc_pass_limits,
    report: *mut stratalloc_compact_report,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, limits) = unsafe {
            writable(report)?;
            (get(allocator)?, limits_of(limits)?)
        };
        let done = handle.allocator.compact(device_number(device)?, limits)?;
        let told = stratalloc_compact_report {
            struct_size: size_of::<stratalloc_compact_report>(),
            moved: done.moved,
            bytes: done.bytes,
            left: done.left,
        };
        // SAFETY: as the caller promises.
        unsafe { write(report, &told) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::stratalloc_destroy;
    use crate::status::stratalloc_status::*;

    fn request(bytes: usize) -> stratalloc_request {
        // SAFETY: all zeros is a value.
        let zeros: stratalloc_request = unsafe { std::mem::zeroed() };
        stratalloc_request { struct_size: size_of::<stratalloc_request>(), bytes, ..zeros }
    }

    /// Sixteen blocks of 1 MiB, of which every other is freed: the rest move together, and keep their contents.
    #[test]
    fn movable_blocks_move_unless_pinned() {
        const COUNT: usize = 16;
        let handle = Box::into_raw(stratalloc_allocator::over_software(1));
        let mut blocks = [ptr::null_mut(); COUNT];
        // SAFETY: the handles live until they are freed below, where nobody else has them; out-pointers are those of locals.
        unsafe {
            let place = |block: *mut stratalloc_movable| {
                let mut at = ptr::null_mut();
                assert_eq!(stratalloc_movable_pin(block, &mut at), STRATALLOC_OK);
                at
            };
            for (number, block) in (1u8..).zip(&mut blocks) {
                assert_eq!(stratalloc_alloc_movable(handle, &request(3 << 20), block), STRATALLOC_OK);
                place(*block).cast::<u8>().write(number);
                assert_eq!(stratalloc_movable_unpin(*block), STRATALLOC_OK);
            }
            for block in blocks.iter().skip(1).step_by(2) {
                assert_eq!(stratalloc_movable_free(*block), STRATALLOC_OK);
            }
            let kept: Vec<_> = blocks.iter().copied().step_by(2).collect();
            let held = place(kept[7]);
            let mut report: stratalloc_compact_report = std::mem::zeroed();
            assert_eq!(stratalloc_compact(handle, 0, ptr::null(), &mut report), STRATALLOC_INVALID_ARGUMENT);
            report.struct_size = size_of::<stratalloc_compact_report>();
            assert_eq!(stratalloc_compact(handle, 0, ptr::null(), &mut report), STRATALLOC_OK);
            assert!(report.moved > 0 && report.bytes >= 3 << 20, "{report:?}");
            assert_eq!(place(kept[7]), held, "it is pinned");
            for (index, &block) in kept.iter().enumerate() {
                assert_eq!(place(block).cast::<u8>().read(), 2 * index as u8 + 1);
            }
            assert_eq!(stratalloc_movable_unpin(kept[0]), STRATALLOC_OK);
            assert_eq!(stratalloc_movable_unpin(kept[0]), STRATALLOC_INVALID_ARGUMENT);
            // Pinned or not.
            kept.iter().for_each(|&block| assert_eq!(stratalloc_movable_free(block), STRATALLOC_OK));
            assert_eq!(stratalloc_movable_free(ptr::null_mut()), STRATALLOC_OK);
            assert_eq!(stratalloc_movable_pin(ptr::null_mut(), &mut ptr::null_mut()), STRATALLOC_INVALID_ARGUMENT);
            stratalloc_destroy(handle);
        }
    }

    /// Two pages of 64 KiB blocks, one with its first half in use and one with its second.
    #[test]
    fn pages_share_memory_and_limits_hold() {
        const BLOCK: usize = 60_000;
        let handle = Box::into_raw(stratalloc_allocator::over_software(1));
        // SAFETY: as above.
        unsafe {
            let mut blocks = vec![ptr::null_mut(); 256];
            for block in &mut blocks {
                let made = crate::blocks::stratalloc_malloc(handle, BLOCK, 0, ptr::null_mut(), block);
                assert_eq!(made, STRATALLOC_OK);
            }
            for (index, &block) in blocks.iter().enumerate().filter(|(index, _)| index % 4 != 0) {
                assert_eq!(crate::blocks::stratalloc_free(handle, block), STRATALLOC_OK, "{index}");
            }
            for (number, &block) in (0u8..).zip(blocks.iter().step_by(4)) {
                block.cast::<u8>().write(number);
            }
            let limits =
                stratalloc_pass_limits { struct_size: size_of::<stratalloc_pass_limits>(), bytes: 1, time_ns: 0 };
            let mut report: stratalloc_defrag_report = std::mem::zeroed();
            report.struct_size = size_of::<stratalloc_defrag_report>();
            assert_eq!(stratalloc_defragment(handle, 0, &limits, &mut report), STRATALLOC_OK);
            assert_eq!((report.copied, report.meshed, report.paired), (0, 0, 0), "{report:?}");
            assert_eq!(stratalloc_defragment(handle, 0, ptr::null(), &mut report), STRATALLOC_OK);
            assert!(report.pages > 0, "{report:?}");
            assert_eq!(stratalloc_defragment(handle, 0, ptr::null(), ptr::null_mut()), STRATALLOC_OK);
            assert_eq!(stratalloc_defragment(handle, 1, ptr::null(), ptr::null_mut()), STRATALLOC_INVALID_ARGUMENT);
            for (number, &block) in (0u8..).zip(blocks.iter().step_by(4)) {
                assert_eq!(block.cast::<u8>().read(), number);
            }
            stratalloc_destroy(handle);
        }
    }
}
