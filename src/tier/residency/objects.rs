//! Blocks come, are recorded, and go.

use std::sync::atomic::Ordering::Relaxed;

use super::table::{ExtentId, Manner, Table};
use super::{Evictable, Tiers, not_evictable};
use crate::cache::{NEVER, Request, Stamp};
use crate::driver::Driver;
use crate::error::{ResidencyError, Result};
use crate::telemetry::{BlockInfo, BlockState, Event, EventKind};
use crate::units::{DevicePtr, GRANULE, StreamId, align_up};

impl Tiers {
    /// Where in the list of tiers the first is that a block may go to.
    fn first_tier(&self, how: &Evictable) -> Result<usize> {
        let Some(name) = &how.tier else { return Ok(0) };
        let at = self.stores.iter().position(|store| store.tier.name() == name);
        Ok(at.ok_or_else(|| self.no_such_tier(name))?)
    }

    /// A block; `None` where there is no room for it.
    pub(crate) fn alloc(&self, request: Request, how: &Evictable) -> Result<Option<DevicePtr>> {
        self.device.admit(request)?;
        let made = self.make(request, how);
        if !matches!(made, Ok(Some(_))) {
            self.device.count_tag(-(request.size as i64), request.tag);
        }
        let Some((ptr, cleared)) = made? else { return Ok(None) };
        self.device.note(Event::new(EventKind::Alloc, ptr, request.size).on(request.stream, None).tag(request.tag));
        if let Err(error) = cleared {
            self.free(ptr);
            return Err(error);
        }
        Ok(Some(ptr))
    }

    /// A block for a request that was admitted, and whether what lies behind it is clear; `None` where there is no room for it.
    fn make(&self, request: Request, how: &Evictable) -> Result<Option<(DevicePtr, Result<()>)>> {
        let Request { size, alignment, stream, tag, may_grow, .. } = request;
        let whole = align_up(size, self.unit).unwrap_or(u64::MAX);
        // What is smaller than that shares.
        let shared = whole - size > whole / 8;
        let manner = Manner::of(stream, tag, how, self.first_tier(how)?);
        let mut table = self.lock();
        let placed = if shared {
            let mut passed = |stamps: &[_]| self.device.have_passed(stamps, false).unwrap_or(false);
            table.place(&manner, size, alignment.max(GRANULE), &mut passed)
        } else {
            None
        };
        let (id, ptr) = match placed {
            Some(placed) => placed,
            None => {
                // Rather one chunk than none.
                let sizes = if shared { [whole.max(self.shared_bytes()), whole] } else { [whole, whole] };
                let make = |size: u64| -> Result<Option<(DevicePtr, Vec<Stamp>, u64)>> {
                    Ok(self.device.new_extent(stream, size, tag, may_grow)?.map(|(addr, after)| (addr, after, size)))
                };
                let mut made = make(sizes[0]);
                if matches!(made, Ok(None)) && sizes[0] != sizes[1] {
                    made = make(sizes[1]);
                }
                let made = match made {
                    Ok(made) => made,
                    Err(error) => {
                        self.unlock(table);
                        return Err(error);
                    }
                };
                let Some((addr, after, extent_bytes)) = made else {
                    self.unlock(table);
                    return Ok(None);
                };
                let id = table.add_extent(addr.0, extent_bytes, manner, how, shared);
                // The home stream comes after what its memory was used for. Others that pin it come after the home stream.
                table.extent_mut(id).computed = after;
                if !shared {
                    (id, addr)
                } else {
                    (id, table.place_in(id, size, alignment.max(GRANULE)).expect("it is empty, and large enough"))
                }
            }
        };
        table.add_object(id, ptr, size, how);
        let cleared = self.clear_behind(&table, id, ptr, size);
        self.note_use(&mut table, id);
        self.blocks.fetch_add(1, Relaxed);
        self.device.count_in_extent(DevicePtr(table.extent(id).addr), size as i64);
        self.unlock(table);
        Ok(Some((ptr, cleared)))
    }

    /// What lies behind a block and is encoded with it is zero: anything else could cost the block's own numbers their digits. In a capture it
    /// would be part of the graph.
    fn clear_behind(&self, table: &Table, id: ExtentId, ptr: DevicePtr, size: u64) -> Result<()> {
        let extent = table.extent(id);
        let behind = size.next_multiple_of(extent.grain()) - size;
        if behind == 0 || self.device.is_capturing() {
            return Ok(());
        }
        Ok(self.device.pool.driver.fill(ptr.add(size), behind, 0, extent.manner.stream)?)
    }

    /// Frees a block, in the order of its home stream and of those that have used it. `None` where it is none of these.
    pub(crate) fn free(&self, ptr: DevicePtr) -> Option<Result<()>> {
        if !self.has_blocks() {
            return None;
        }
        let mut table = self.lock();
        let freed = table.objects.get(&ptr.0).map(|object| (object.pins, object.extent));
        let Some((pins, id)) = freed else {
            self.unlock(table);
            return None;
        };
        if pins > 0 {
            self.unlock(table);
            return Some(Err(ResidencyError::Pinned { ptr, pins }.into()));
        }
        let extent = table.extent(id);
        let (addr, tag, home) = (DevicePtr(extent.addr), extent.manner.tag, extent.manner.stream);
        // What goes with its extent waits with that.
        let last = extent.objects == 1;
        let stamps = if last { Ok(Vec::new()) } else { self.device.stamps_of(home, &extent.users) };
        let stamps = match stamps {
            Ok(stamps) => stamps,
            Err(error) => {
                self.unlock(table);
                return Some(Err(error));
            }
        };
        let removed = table.remove_object(ptr, stamps);
        if let Some(object) = &removed {
            self.blocks.fetch_sub(1, Relaxed);
            self.device.count_in_extent(addr, -(object.requested as i64));
            self.device.count_tag(-(object.requested as i64), tag);
            self.device.note(Event::new(EventKind::Free, ptr, object.requested).on(home, None).tag(tag));
        }
        self.dispose(&mut table, id);
        self.unlock(table);
        // What the user's callback holds may call the allocator when it goes.
        drop(removed);
        Some(Ok(()))
    }

    /// Notes that work on `stream` uses a block. `false` where it is none of these.
    pub(crate) fn record_stream(&self, ptr: DevicePtr, stream: StreamId) -> bool {
        if !self.has_blocks() {
            return false;
        }
        let mut table = self.lock();
        let id = table.objects.get(&ptr.0).map(|object| object.extent);
        if let Some(id) = id {
            table.extent_mut(id).recorded_on(stream);
        }
        self.unlock(table);
        id.is_some()
    }

    /// The block that contains an address.
    pub(crate) fn block_at(&self, inside: DevicePtr) -> Option<BlockInfo> {
        if !self.has_blocks() {
            return None;
        }
        let table = self.lock();
        let found = table.objects.range(..=inside.0).next_back().and_then(|(&start, object)| {
            let size = table.usable(object);
            let manner = &table.extent(object.extent).manner;
            (inside.0 - start < size).then_some(BlockInfo {
                ptr: DevicePtr(start),
                size,
                requested: object.requested,
                state: BlockState::Live,
                stream: manner.stream,
                pool: None,
                tag: manner.tag,
                dedicated: false,
            })
        });
        self.unlock(table);
        found
    }

    /// The bytes that may be used at a block's pointer.
    pub(crate) fn usable_size(&self, ptr: DevicePtr) -> Option<u64> {
        if !self.has_blocks() {
            return None;
        }
        let table = self.lock();
        let usable = table.objects.get(&ptr.0).map(|object| table.usable(object));
        self.unlock(table);
        usable
    }

    /// Whether this is one of these blocks.
    pub(crate) fn owns(&self, ptr: DevicePtr) -> bool {
        self.has_blocks() && self.table.lock().objects.contains_key(&ptr.0)
    }

    /// Takes a pin off.
    pub(crate) fn unpin(&self, ptr: DevicePtr) {
        let mut table = self.lock();
        if let Some(object) = table.objects.get_mut(&ptr.0) {
            object.pins -= 1;
            let id = object.extent;
            let extent = table.extent_mut(id);
            extent.pins -= 1;
            if extent.pins == 0 {
                let size = extent.size;
                table.pinned_bytes -= size;
            }
            self.note_use(&mut table, id);
        }
        self.unlock(table);
    }

    /// Its streams use an extent up to here.
    pub(super) fn note_use(&self, table: &mut Table, id: ExtentId) {
        let extent = table.extent_mut(id);
        let home = extent.manner.stream;
        let mut streams = vec![home];
        streams.extend(&extent.users);
        // Where nobody can say, all that they are given to do counts.
        let stamps = self.device.stamps_of(home, &streams).unwrap_or_else(|_| vec![NEVER]);
        extent.used_until(&stamps);
    }

    /// What a pointer must be.
    pub(super) fn check_owned(&self, ptr: DevicePtr) -> Result<()> {
        if self.owns(ptr) { Ok(()) } else { Err(not_evictable(ptr).into()) }
    }
}
