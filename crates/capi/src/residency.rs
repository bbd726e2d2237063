//! Where evictable memory is: of one block, of all in numbers, and who is told of changes.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use stratalloc::tier::{MemoryChange, Residency, TierKind};
use stratalloc::{DevicePtr, Tag};

use crate::blocks::find;
use crate::handle::{check_out, device_number, get, stratalloc_allocator};
use crate::observe::Context;
use crate::sized::{self, Sized_};
use crate::status::{Failure, copy_out, guard, stratalloc_status};

/// Where the bytes of an evictable block are.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the names of the header")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum stratalloc_residency_state {
    /// On the device.
    STRATALLOC_RESIDENT = 0,
    /// On the device, and on their way to a tier.
    STRATALLOC_EVICTING = 1,
    /// In pinned memory of the host.
    STRATALLOC_ON_HOST = 2,
    /// In pinned memory of the host, and on their way to a slower tier.
    STRATALLOC_SPILLING = 3,
    /// In files.
    STRATALLOC_ON_DISK = 4,
    /// In the memory of another device.
    STRATALLOC_ON_PEER = 5,
    /// In a tier of another kind.
    STRATALLOC_ELSEWHERE = 6,
    /// In a tier, and on their way back.
    STRATALLOC_RESTORING = 7,
    /// Nowhere: they are computed again when they are wanted, or are not wanted.
    STRATALLOC_DROPPED = 8,
}

use stratalloc_residency_state::*;

fn state_of(residency: Residency) -> stratalloc_residency_state {
    match residency {
        Residency::Resident => STRATALLOC_RESIDENT,
        Residency::Evicting => STRATALLOC_EVICTING,
        Residency::Host => STRATALLOC_ON_HOST,
        Residency::Spilling => STRATALLOC_SPILLING,
        Residency::Disk => STRATALLOC_ON_DISK,
        Residency::Peer => STRATALLOC_ON_PEER,
        Residency::Restoring => STRATALLOC_RESTORING,
        Residency::Dropped => STRATALLOC_DROPPED,
        _ => STRATALLOC_ELSEWHERE,
    }
}

/// Tells where the bytes of the evictable block at `ptr` are: `*state` is a `stratalloc_residency_state`. `STRATALLOC_INVALID_POINTER` where no evictable
/// block begins there. What it is for, and how large, `stratalloc_find` tells.
///
/// # Safety
/// `allocator` is null or a handle; `state` is null or may be written. `ptr` may be anything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_residency(
    allocator: *mut stratalloc_allocator,
    ptr: *mut c_void,
    state: *mut u32,
) -> stratalloc_status {
    guard(|| {
        check_out(state, "state")?;
        // SAFETY: as the caller promises.
        let residency = unsafe { get(allocator) }?.allocator.residency(DevicePtr(ptr as u64))?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *state = state_of(residency) as u32 };
        Ok(())
    })
}

/// What happens to the memory of an evictable block: it is about to be taken.
pub const STRATALLOC_UNMAPPING: u32 = 0;
/// It is there again.
pub const STRATALLOC_REMAPPED: u32 = 1;

/// Told when the memory of an evictable block is about to be taken (`STRATALLOC_UNMAPPING`): registrations of it are to be given up; and when it is
/// there again (`STRATALLOC_REMAPPED`). Called with no lock held; it must not free, pin, offload or restore the block it is told of,
/// nor unwind.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_residency_observer =
    Option<unsafe extern "C" fn(context: *mut c_void, change: u32, address: *mut c_void, bytes: u64)>;

/// Adds an observer of memory that goes and comes back, called with `context` on the thread that moves it. `out_id`, which may be null, receives
/// its number, for `stratalloc_remove_residency_observer`.
///
/// # Safety
/// `allocator` is null or a handle; `observer` takes `context`, on any thread; `out_id` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_add_residency_observer(
    allocator: *mut stratalloc_allocator,
    observer: stratalloc_residency_observer,
    context: *mut c_void,
    out_id: *mut u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        if !out_id.is_null() {
            check_out(out_id, "out_id")?;
        }
        let tell = observer.ok_or_else(|| Failure::argument("the observer is null"))?;
        let context = Context::new(context);
        let id = handle.allocator.on_residency(move |change: &MemoryChange| {
            let (what, ptr, size) = match *change {
                MemoryChange::Unmapping { ptr, size } => (STRATALLOC_UNMAPPING, ptr, size),
                MemoryChange::Remapped { ptr, size } => (STRATALLOC_REMAPPED, ptr, size),
                _ => return,
            };
            // SAFETY: the caller has given function and context for each other.
            unsafe { tell(context.get(), what, ptr.0 as *mut c_void, size) }
        })?;
        if !out_id.is_null() {
            // SAFETY: aligned, writable as the caller promises.
            unsafe { *out_id = id };
        }
        Ok(())
    })
}

/// Removes an observer. Calls that are under way on other threads may still reach it: keep the context until they have returned.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_remove_residency_observer(
    allocator: *mut stratalloc_allocator,
    id: u64,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        if handle.allocator.remove_residency_observer(id) {
            return Ok(());
        }
        Err(Failure::argument(format!("there is no observer {id}")))
    })
}
