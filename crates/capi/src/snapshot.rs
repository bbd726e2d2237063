//! What the memory of a device looks like: told segment by segment, or written to a file.

use std::ffi::{c_char, c_void};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ptr;

use stratalloc::{BlockState, SegmentInfo, snapshot};

use crate::blocks::{stratalloc_block, stratalloc_stream};
use crate::handle::{device_number, get, path, stratalloc_allocator};
use crate::pools::stratalloc_pool_id;
use crate::status::{Failure, guard, stratalloc_status};

/// A range of addresses with memory behind all of it.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_segment {
    /// The size of this struct as the library knows it: read no field beyond.
    pub struct_size: usize,
    /// The device's number.
    pub device: i32,
    /// First byte.
    pub address: u64,
    /// Bytes, all of them mapped.
    pub bytes: u64,
    /// Bytes that were requested.
    pub requested: u64,
    /// Bytes of live blocks.
    pub allocated: u64,
    /// Bytes of blocks that are live, or wait for recorded streams.
    pub active: u64,
    /// The stream that the segment grows for.
    pub stream: stratalloc_stream,
    /// The private pool, or {0, 0}.
    pub pool: stratalloc_pool_id,
    /// Whether this is where blocks above 1 MiB lie, or those that were said to live long.
    pub is_large: bool,
    /// Whether it can grow and shrink: chunks in reserved address space, not plain memory.
    pub is_expandable: bool,
    /// The blocks, which tile the segment in order. Use `stratalloc_segment_block`: a later library's blocks may be larger.
    pub blocks: *const stratalloc_block,
    /// How many blocks there are.
    pub block_count: usize,
}

/// Told of a segment, with no lock held. Returns whether to go on. The segment is valid during the call. Must not unwind.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub type stratalloc_segment_visitor =
    Option<unsafe extern "C" fn(context: *mut c_void, segment: *const stratalloc_segment) -> bool>;

/// Block `index` of a segment, by address; null beyond the last.
///
/// # Safety
/// `segment` is null or was given to a visitor that has not returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_segment_block(
    segment: *const stratalloc_segment,
    index: usize,
) -> *const stratalloc_block {
    if segment.is_null() {
        return ptr::null();
    }
    // SAFETY: not null, and valid as the caller promises: `blocks` has `block_count` elements.
    unsafe { if index < (*segment).block_count { (*segment).blocks.add(index) } else { ptr::null() } }
}

fn told(device: usize, segment: &SegmentInfo, blocks: &[stratalloc_block]) -> stratalloc_segment {
    let allocated = segment.bytes_in(BlockState::Live);
    stratalloc_segment {
        struct_size: size_of::<stratalloc_segment>(),
        device: device as i32,
        address: segment.ptr.0,
        bytes: segment.size,
        requested: segment.requested(),
        allocated,
        active: allocated + segment.bytes_in(BlockState::Pending),
        stream: segment.stream.0 as stratalloc_stream,
        pool: segment.pool.into(),
        is_large: segment.large,
        is_expandable: segment.expandable,
        blocks: blocks.as_ptr(),
        block_count: blocks.len(),
    }
}

/// Tells `visitor` all segments of a device, by address, as they are at one time. Takes time in proportion to the blocks, and holds up all calls
/// while it looks.
///
/// # Safety
/// `allocator` is null or a handle; `visitor` takes `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_visit_segments(
    allocator: *mut stratalloc_allocator,
    device: i32,
    visitor: stratalloc_segment_visitor,
    context: *mut c_void,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let visitor = visitor.ok_or_else(|| Failure::argument("the visitor is null"))?;
        let device = device_number(device)?;
        for segment in &handle.allocator.snapshot(device)?.segments {
            let blocks: Vec<_> = segment.blocks.iter().map(|info| stratalloc_block::new(device, info)).collect();
            let told = told(device, segment, &blocks);
            // SAFETY: the caller has given function and context for each other.
            if !unsafe { visitor(context, &told) } {
                break;
            }
        }
        Ok(())
    })
}

/// Writes all devices to a file that pytorch.org/memory_viz opens, and that Python's pickle reads: the segments with their blocks, and the events
/// of the ring that the configuration key `trace` sizes. `STRATALLOC_IO` if the file cannot be written; what is there of it then is of no use.
///
/// # Safety
/// `allocator` is null or a handle; `path` is null or ends in 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_write_snapshot(
    allocator: *mut stratalloc_allocator,
    path: *const c_char,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let (handle, path) = unsafe { (get(allocator)?, self::path(path)?) };
        let devices = 0..handle.allocator.device_count();
        let snapshots = devices.map(|device| handle.allocator.snapshot(device)).collect::<Result<Vec<_>, _>>()?;
        let write = || {
            let mut file = BufWriter::new(File::create(path)?);
            snapshot::write_pickle(&snapshots, &mut file)?;
            file.flush()
        };
        write().map_err(|error| Failure::io(path, &error))
    })
}
