//! A device in numbers.

use stratalloc::driver::Driver;
use stratalloc::{Gauge, SizeCount};

use crate::handle::{device_number, get, stratalloc_allocator};
use crate::sized::{self, Sized_};
use crate::status::{guard, stratalloc_status};

/// A quantity now, and at its highest since the start or since `stratalloc_reset_peaks`.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy, Default)]
pub struct stratalloc_gauge {
    /// Now.
    pub current: u64,
    /// At its highest.
    pub peak: u64,
}

/// How many ranges of block sizes are counted apart.
pub const STRATALLOC_SIZE_RANGES: usize = 40;

/// How many rungs there is room for.
pub const STRATALLOC_RUNGS: usize = 16;

/// Requests of one range of block sizes, since the start.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy, Default)]
pub struct stratalloc_size_range {
    /// The largest block size of the range.
    pub up_to: u64,
    /// Blocks handed out.
    pub allocs: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Bytes of the blocks handed out.
    pub bytes_allocated: u64,
    /// Bytes of the blocks freed.
    pub bytes_freed: u64,
}

/// The state of one device, in bytes unless it says otherwise. Exact when no call is under way.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_stats {
    /// `sizeof(stratalloc_stats)`.
    pub struct_size: usize,
    /// Requested and not freed.
    pub live: stratalloc_gauge,
    /// In blocks that are not free: live, plus rounding, plus what waits for recorded streams.
    pub active: stratalloc_gauge,
    /// Physical memory held.
    pub reserved: stratalloc_gauge,
    /// Held and free.
    pub cached: u64,
    /// Part of `cached` that threads' magazines hold.
    pub magazines: u64,
    /// Part of `active` that waits for recorded streams.
    pub pending: u64,
    /// Part of `cached` in chunks that are mapped nowhere.
    pub reserve: u64,
    /// The limit on `reserved`.
    pub limit: u64,
    /// The device's memory.
    pub capacity: u64,
    /// Blocks handed out, ever.
    pub allocs: u64,
    /// Blocks freed, ever.
    pub frees: u64,
    /// Requests that found no room.
    pub out_of_memory: u64,
    /// Driver calls that failed while giving memory back.
    pub cleanup_failures: u64,
    /// Host memory for metadata.
    pub metadata: u64,
    /// Physical chunks and plain segments held: how many.
    pub chunks: u64,
    /// Bytes a chunk.
    pub chunk_bytes: u64,
    /// Driver calls that took physical memory from the device.
    pub device_allocs: u64,
    /// Driver calls that gave physical memory back.
    pub device_frees: u64,
    /// Driver calls that waited for a stream, an event or the device.
    pub synchronizations: u64,
    /// The largest free block that some stream could have at once.
    pub largest_free: u64,
    /// Driver calls, all of them.
    pub driver_calls: u64,
    /// Their time, in nanoseconds on the device's clock.
    pub driver_ns: u64,
    /// Requests by block size: range i holds blocks of up to `512 << i` bytes that the range before does not.
    pub sizes: [stratalloc_size_range; STRATALLOC_SIZE_RANGES],
    /// Requests by how they were served: magazine, own, shared, passed, stream_wait, merge, new_chunk, trim, wait, observer, lent.
    pub rungs: [u64; STRATALLOC_RUNGS],
}

// SAFETY: repr(C), a `usize` first, numbers only.
unsafe impl Sized_ for stratalloc_stats {
    const NAME: &'static str = "stratalloc_stats";
    const SIZE_MIN: usize = 56;
}

// Both grow with the library's own; then these are to grow at the struct's end.
const _: () = assert!(stratalloc::Rung::ALL.len() <= STRATALLOC_RUNGS);

impl From<Gauge> for stratalloc_gauge {
    fn from(gauge: Gauge) -> stratalloc_gauge {
        stratalloc_gauge { current: gauge.current, peak: gauge.peak }
    }
}

/// Every range, the empty ones too.
fn ranges(counted: &[SizeCount]) -> [stratalloc_size_range; STRATALLOC_SIZE_RANGES] {
    std::array::from_fn(|index| {
        let up_to = 512 << index;
        let mut range = stratalloc_size_range { up_to, ..stratalloc_size_range::default() };
        if let Some(count) = counted.iter().find(|count| count.up_to == up_to) {
            range.allocs = count.allocs;
            range.frees = count.frees;
            range.bytes_allocated = count.allocated;
            range.bytes_freed = count.freed;
        }
        range
    })
}

/// Tells a device in numbers. Takes the device's lock and reads what every thread has counted.
///
/// # Safety
/// `allocator` is null or a handle; `out` is null or a struct of the size it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_get_stats(
    allocator: *mut stratalloc_allocator,
    device: i32,
    out: *mut stratalloc_stats,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe {
            sized::writable(out)?;
            get(allocator)?
        };
        let device = device_number(device)?;
        let stats = handle.allocator.stats(device)?;
        let driver = handle.allocator.driver(device)?;
        let calls = driver.calls().total();
        let mut rungs = [0; STRATALLOC_RUNGS];
        rungs.iter_mut().zip(stats.rungs).for_each(|(to, from)| *to = from);
        let told = stratalloc_stats {
            struct_size: size_of::<stratalloc_stats>(),
            live: stats.live.into(),
            active: stats.active.into(),
            reserved: stats.reserved.into(),
            cached: stats.cached,
            magazines: stats.magazines,
            pending: stats.pending,
            reserve: stats.reserve,
            limit: stats.limit,
            capacity: driver.properties().total_memory,
            allocs: stats.allocs,
            frees: stats.frees,
            out_of_memory: stats.out_of_memory,
            cleanup_failures: stats.cleanup_failures,
            metadata: stats.metadata,
            chunks: stats.chunks,
            chunk_bytes: stats.chunk_size,
            device_allocs: stats.device_allocs,
            device_frees: stats.device_frees,
            synchronizations: stats.synchronizations,
            largest_free: stats.largest_free,
            driver_calls: calls.count,
            driver_ns: calls.time_ns,
            sizes: ranges(&stats.sizes),
            rungs,
        };
        // SAFETY: as the caller promises.
        unsafe { sized::write(out, &told) }
    })
}

/// Starts new peaks from what is in use now.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_reset_peaks(
    allocator: *mut stratalloc_allocator,
    device: i32,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        Ok(unsafe { get(allocator) }?.allocator.reset_peaks(device_number(device)?)?)
    })
}
