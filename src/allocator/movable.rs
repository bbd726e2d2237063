//! Blocks that may be moved, and passes that move them so that chunks become free.

use std::collections::HashSet;

use super::{AllocRequest, Allocator, PassLimits};
use crate::defrag::{self, Handle};
use crate::driver::Driver;
use crate::error::Result;
use crate::pool::Moving;
use crate::units::{DevicePtr, StreamId};

/// A block that [`Allocator::compact`] may move while nobody holds a [`Pinned`] of it. Freed, in the order of its home stream, when it is dropped.
///
/// ```
/// use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec, PassLimits};
/// # fn main() -> stratalloc::Result<()> {
/// # let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(1))).build()?;
/// let cache = allocator.alloc_movable(AllocRequest::new(3 << 20))?;
/// let pinned = cache.pin();
/// let ptr = pinned.ptr(); // Submit work that uses it to the home stream, then let go.
/// drop(pinned);
/// allocator.compact(0, PassLimits::default())?; // Reads and writes submitted from now on go by a new `pin`.
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping a movable block frees it"]
pub struct Movable {
    allocator: Allocator,
    device: usize,
    handle: Handle,
    size: u64,
    stream: StreamId,
}

impl Movable {
    /// Says where the block lies, and holds it there. Work on the home stream that was submitted under a pin may go on after it: moves come
    /// after it in stream order.
    pub fn pin(&self) -> Pinned<'_> {
        Pinned { ptr: self.allocator.shared.movables[self.device].pin(self.handle), movable: self }
    }

    /// Bytes, as requested.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The home stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// The device's ordinal in the allocator.
    pub fn device(&self) -> usize {
        self.device
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        // A pass that is moving the block finds it gone, and gives its new place back.
        if let Some(ptr) = self.allocator.shared.movables[self.device].remove(self.handle) {
            self.allocator.free_or_count(ptr);
        }
    }
}

/// A [`Movable`] that stays where it is for as long as this lives.
#[derive(Debug)]
pub struct Pinned<'a> {
    movable: &'a Movable,
    ptr: DevicePtr,
}

impl Pinned<'_> {
    /// The first byte.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// Says that work on `stream`, other than the home stream, uses the block, so that freeing it waits for that work too. The block stays where it
    /// is from now on: a move would have to be ordered with every such stream.
    pub fn record_stream(&self, stream: StreamId) -> Result<()> {
        if stream != self.movable.stream {
            let Movable { allocator, device, handle, .. } = self.movable;
            allocator.shared.movables[*device].keep(*handle);
            allocator.record_stream(self.ptr, stream)?;
        }
        Ok(())
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.movable.allocator.shared.movables[self.movable.device].unpin(self.movable.handle);
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CompactReport {
    /// Blocks that lie elsewhere now.
    pub moved: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were to move, and were pinned or freed meanwhile, or left for want of time.
    pub left: u64,
}

/// One move of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Move {
    /// Where the block lies.
    pub from: DevicePtr,
    /// Where it is to lie.
    pub to: DevicePtr,
    /// Its bytes, rounded up as [`Allocator::usable_size`] has them.
    pub size: u64,
    /// Its home stream, on which it is copied.
    pub stream: StreamId,
}

/// A pass that moves blocks, between its steps: places are taken, bytes are copied, owners follow. Dropped before the last, it moves nothing.
/// A block that is pinned or freed meanwhile stays where it is.
#[derive(Debug)]
#[must_use = "dropping a pass aborts it"]
pub struct Compaction<'a> {
    allocator: &'a Allocator,
    device: usize,
    pass: u64,
    limits: PassLimits,
    start_ns: u64,
    moving: Vec<(Handle, Moving)>,
    /// So many of them have been copied, from the first on.
    copied: Option<usize>,
}

impl Allocator {
    /// Allocates a block that [`Allocator::compact`] may move. What is asked for counts as for [`Allocator::alloc`]; a block of a private pool and a
    /// dedicated one are never moved.
    pub fn alloc_movable(&self, request: AllocRequest) -> Result<Movable> {
        let ptr = self.raw_alloc(request)?;
        let handle = self.shared.movables[request.device].add(ptr, request.alignment);
        let AllocRequest { device, size, stream, .. } = request;
        Ok(Movable { allocator: self.clone(), device, handle, size, stream })
    }

    /// Moves blocks of [`Allocator::alloc_movable`] that nobody has pinned, so that chunks become free; they are, once the streams get there. Waits for
    /// nothing. Where the driver fails, nothing has moved.
    pub fn compact(&self, device: usize, limits: PassLimits) -> Result<CompactReport> {
        let mut pass = self.begin_compaction(device, limits)?;
        pass.copy()?;
        Ok(pass.commit())
    }

    /// The first step of [`Allocator::compact`]: chooses which blocks move, and takes places for them. Fails during a capture.
    pub fn begin_compaction(&self, device: usize, limits: PassLimits) -> Result<Compaction<'_>> {
        let cache = self.device(device)?;
        let start_ns = cache.pool.driver.clock_ns();
        self.shared.movables[device].with(|table| {
            let idle = table.idle();
            let blocks: Vec<(DevicePtr, u64)> = idle.iter().map(|block| (block.ptr, block.alignment)).collect();
            let plan = |view: &_| defrag::compact(view, limits.bytes.0);
            let mut moving = cache.begin_moves(&blocks, &plan)?;
            // Those of one stream together, so that they are copied together.
            moving.sort_by_key(|moving| moving.stream);
            let handles: std::collections::HashMap<DevicePtr, Handle> =
                idle.iter().map(|block| (block.ptr, block.handle)).collect();
            let pass = table.begin();
            let moving: Vec<(Handle, Moving)> =
                moving.into_iter().map(|moving| (handles[&moving.from], moving)).collect();
            moving.iter().for_each(|&(handle, _)| table.set_moving(handle, pass));
            Ok(Compaction { allocator: self, device, pass, limits, start_ns, moving, copied: None })
        })
    }
}

impl Compaction<'_> {
    /// What is to move.
    pub fn moves(&self) -> impl Iterator<Item = Move> + '_ {
        self.moving.iter().map(|(_, moving)| {
            let &Moving { from, to, size, stream, .. } = moving;
            Move { from, to, size, stream }
        })
    }

    /// The second step: copies the bytes, each block's on its home stream. Only once; a second call does nothing. Where it fails, the pass is to be
    /// dropped: nothing moves then.
    pub fn copy(&mut self) -> Result<()> {
        if self.copied.is_some() {
            return Ok(());
        }
        let Compaction { allocator, device, pass, limits, start_ns, .. } = *self;
        let cache = allocator.device(device)?;
        let moving = &mut self.moving;
        // Nothing is pinned or freed between the look at what still moves and the copies.
        let copied = allocator.shared.movables[device].with(|table| {
            moving.sort_by_key(|(handle, moving)| (!table.is_moving(*handle, pass), moving.stream));
            let still = moving.partition_point(|(handle, _)| table.is_moving(*handle, pass));
            let blocks: Vec<Moving> = moving[..still].iter().map(|&(_, moving)| moving).collect();
            cache.pool.copy_moves(&blocks, start_ns, limits.bounds())
        })?;
        self.copied = Some(copied);
        Ok(())
    }

    /// The last step: whoever pins a block from now on gets its new place, and the old one goes back, in the order of its stream. Without
    /// [`Compaction::copy`] before it, moves nothing.
    pub fn commit(mut self) -> CompactReport {
        let copied = self.copied.take().unwrap_or(0);
        self.end(copied)
    }

    /// Ends all moves; the first `copied` blocks have moved, where they were left alone.
    fn end(&mut self, copied: usize) -> CompactReport {
        let Compaction { allocator, device, pass, .. } = *self;
        let moving = std::mem::take(&mut self.moving);
        let Ok(cache) = allocator.device(device) else { return CompactReport::default() };
        allocator.shared.movables[device].with(|table| {
            let mut moved = HashSet::new();
            for (index, (handle, moving)) in moving.iter().enumerate() {
                if table.is_moving(*handle, pass) {
                    table.settle(*handle, (index < copied).then_some(moving.to));
                    if index < copied {
                        moved.insert(moving.to);
                    }
                }
            }
            let (went, stays): (Vec<Moving>, Vec<Moving>) =
                moving.iter().map(|&(_, moving)| moving).partition(|moving| moved.contains(&moving.to));
            cache.end_moves(went.iter(), stays.iter());
            let bytes = went.iter().map(|moving| moving.size).sum();
            CompactReport { moved: went.len() as u64, bytes, left: stays.len() as u64 }
        })
    }
}

impl Drop for Compaction<'_> {
    fn drop(&mut self) {
        self.end(0);
    }
}
