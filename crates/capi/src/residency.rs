//! Where evictable memory is: of one block, of all in numbers, and who is told of changes.

use std::ffi::{c_char, c_void};

use stratalloc::DevicePtr;
use stratalloc::driver::metered::CallKind;
use stratalloc::tier::{MemoryChange, Residency, TierKind};

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

/// The evictable memory of a device in numbers. Bytes are of what moves together, as it moves, unless said otherwise.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_tier_stats {
    /// `sizeof(stratalloc_tier_stats)`.
    pub struct_size: usize,
    /// How many tiers there are, for `stratalloc_get_tier`.
    pub tiers: u64,
    /// Evictable blocks.
    pub blocks: u64,
    /// Their bytes, as requested.
    pub requested: u64,
    /// Bytes on the device.
    pub resident: u64,
    /// Bytes that are pinned.
    pub pinned: u64,
    /// Bytes in tiers.
    pub away: u64,
    /// Bytes that are nowhere: to be computed again, or not wanted.
    pub dropped: u64,
    /// Bytes on their way, in whatever direction.
    pub moving: u64,
    /// How often something went to a tier.
    pub evictions: u64,
    /// Its bytes.
    pub evicted_bytes: u64,
    /// How often something was given up.
    pub drops: u64,
    /// How often something went on to a slower tier.
    pub spills: u64,
    /// How often something came back.
    pub restores: u64,
    /// Its bytes.
    pub restored_bytes: u64,
    /// Blocks that were computed again.
    pub recomputes: u64,
    /// Transfers, callbacks and calls of the driver that failed.
    pub failures: u64,
    /// How long calls have waited for all that, in nanoseconds.
    pub stall_ns: u64,
    /// Host memory for what is known of blocks, in bytes.
    pub metadata: u64,
    /// How often this library has waited for the device as a whole, for whatever.
    pub device_synchronizations: u64,
    /// Whether the device sleeps.
    pub asleep: bool,
}

// SAFETY: repr(C), a `usize` first, numbers only.
unsafe impl Sized_ for stratalloc_tier_stats {
    const NAME: &'static str = "stratalloc_tier_stats";
    const SIZE_MIN: usize = 16;
}

/// Tells the evictable memory of a device in numbers; all 0 where there are no tiers.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or a struct of the size it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_get_tier_stats(
    allocator: *mut stratalloc_allocator,
    device: i32,
    out: *mut stratalloc_tier_stats,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe {
            sized::writable(out)?;
            get(allocator)?
        };
        let device = device_number(device)?;
        let stats = handle.allocator.tier_stats(device)?;
        let told = stratalloc_tier_stats {
            struct_size: size_of::<stratalloc_tier_stats>(),
            tiers: stats.tiers.len() as u64,
            blocks: stats.blocks,
            requested: stats.requested,
            resident: stats.resident,
            pinned: stats.pinned,
            away: stats.away,
            dropped: stats.dropped,
            moving: stats.moving,
            evictions: stats.evictions,
            evicted_bytes: stats.evicted_bytes,
            drops: stats.drops,
            spills: stats.spills,
            restores: stats.restores,
            restored_bytes: stats.restored_bytes,
            recomputes: stats.recomputes,
            failures: stats.failures,
            stall_ns: stats.stall_ns,
            metadata: stats.metadata,
            device_synchronizations: handle.allocator.driver(device)?.calls().of(CallKind::SynchronizeDevice).count,
            asleep: stats.asleep,
        };
        // SAFETY: as the caller promises.
        unsafe { sized::write(out, &told) }
    })
}

/// A tier of a device.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_tier {
    /// `sizeof(stratalloc_tier)`.
    pub struct_size: usize,
    /// What the bytes of a block are when they are there: a `stratalloc_residency_state`.
    pub state: u32,
    /// Its name, cut to fit and with its final 0.
    pub name: [c_char; STRATALLOC_TIER_NAME_BYTES],
    /// Bytes that it can hold.
    pub capacity: u64,
    /// Bytes that are taken, with what rounding adds.
    pub used: u64,
    /// Bytes stored there, ever, as they are stored.
    pub bytes_in: u64,
    /// Bytes had back from there, ever, as they are stored.
    pub bytes_out: u64,
}

/// The room for a tier's name.
pub const STRATALLOC_TIER_NAME_BYTES: usize = 60;

// SAFETY: repr(C), a `usize` first, numbers only.
unsafe impl Sized_ for stratalloc_tier {
    const NAME: &'static str = "stratalloc_tier";
    const SIZE_MIN: usize = 88;
}

/// Tells of one tier of a device, by its number: the fastest is 0.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or a struct of the size it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_get_tier(
    allocator: *mut stratalloc_allocator,
    device: i32,
    number: u32,
    out: *mut stratalloc_tier,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe {
            sized::writable(out)?;
            get(allocator)?
        };
        let stats = handle.allocator.tier_stats(device_number(device)?)?;
        let count = stats.tiers.len();
        let tier = stats.tiers.get(number as usize);
        let tier = tier.ok_or_else(|| Failure::argument(format!("no tier {number}: device {device} has {count}")))?;
        let mut name = [0; STRATALLOC_TIER_NAME_BYTES];
        // SAFETY: the buffer has as much room as is said.
        unsafe { copy_out(tier.name.as_bytes(), name.as_mut_ptr(), name.len()) };
        let told = stratalloc_tier {
            struct_size: size_of::<stratalloc_tier>(),
            state: match tier.kind {
                TierKind::Host => STRATALLOC_ON_HOST,
                TierKind::Disk => STRATALLOC_ON_DISK,
                TierKind::Peer => STRATALLOC_ON_PEER,
                _ => STRATALLOC_ELSEWHERE,
            } as u32,
            name,
            capacity: tier.capacity,
            used: tier.used,
            bytes_in: tier.bytes_in,
            bytes_out: tier.bytes_out,
        };
        // SAFETY: as the caller promises.
        unsafe { sized::write(out, &told) }
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
