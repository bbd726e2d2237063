//! From an address to its block, without a lock: two loads and a multiplication to its number, and one more load for its header.
//!
//! Blocks above [`CLASS_SIZE_MAX`] start at least that far apart, so that a *window* of that size holds the start of at most one of
//! them; a slab covers whole windows. An entry a window therefore suffices: the number of a block, or that which the first slot of a
//! slab's page would have, and what to multiply an offset by to get the slot. Windows come in leaves, one for each 4 GiB of addresses. As long as a leaf has none but
//! large blocks, its windows are eight times as wide, so that the entries of a whole device's large blocks stay in the processor's caches.
//! The headers are out of band: nodes of the arenas first, then 4096 slots for each slab that may exist.
//!
//! Entries are written when a block or slab comes into being, headers of slots when these are first taken. Neither is ever cleared: a
//! stale entry, or none, leads to a header that is free or bears another address, and callers check both.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::key::{Key, LaneBits};
use crate::block::{CLASS_SIZE_MAX, ClassId, NodeId};
use crate::error::{DriverError, DriverErrorKind, Error};
use crate::sync::Mutex;
use crate::units::{DevicePtr, GRANULE, PAGE};

/// A block's number.
pub(crate) type BlockId = u32;
/// No block. Its header is there, but bears the null address.
pub(crate) const NO_BLOCK: BlockId = 0;

/// Arena nodes a zone that may have a header.
const NODES: u32 = 1 << 23;
/// Headers of nodes are two apart, so that blocks in the hands of different threads do not share a cache line.
const NODE_STRIDE: u32 = 2;
/// Zones with an arena.
pub(super) const ZONES: usize = 4;
const FIRST_SLOT: u32 = (NODES * ZONES as u32 + 1) * NODE_STRIDE;
/// Slots a slab at most; its headers are this far apart.
const SLOTS: u32 = (PAGE / GRANULE) as u32;
/// Slabs a device at most: as many as the numbers allow.
const SLABS_MAX: u32 = (u32::MAX - FIRST_SLOT) / SLOTS;

const WINDOW_SHIFT: u32 = CLASS_SIZE_MAX.trailing_zeros();
/// Of windows where all blocks are at least as large as these: 512 KiB.
const WIDE_SHIFT: u32 = 19;
const LEAF_SHIFT: u32 = 32;
/// Device addresses have at most so many bits.
const ADDRESS_BITS: u32 = 48;
const ROOT: usize = 1 << (ADDRESS_BITS - LEAF_SHIFT);

/// A window's entry: what to multiply an offset by in the high half (0 for a block of an arena), a block's number in the low half.
/// 0, for none, leads to [`NO_BLOCK`].
type Entry = AtomicU64;

/// What a block is doing.
pub(crate) mod life {
    /// Never handed out.
    pub(crate) const NONE: u8 = 0;
    /// In the hands of a caller.
    pub(crate) const LIVE: u8 = 1;
    /// In a thread's magazine.
    pub(crate) const CACHED: u8 = 2;
    /// Back in the pool.
    pub(crate) const FREE: u8 = 3;
    /// Freed, and waiting for streams that were recorded for it.
    pub(crate) const PENDING: u8 = 4;
}

/// What is known of a block. Plain data, in atomics because a caller's bug (a free in two threads at once) must not become
/// undefined behaviour; every access is relaxed. Between a successful allocation and its free the caller owns the block, and
/// else the magazine or the pool that holds it.
#[repr(align(32))]
#[derive(Debug)]
pub(crate) struct Header {
    addr: AtomicU64,
    key: AtomicU64,
    requested: AtomicU64,
    next: AtomicU32,
    /// `life`, then bits for recorded streams, dedicated and lent memory, then the tag, a byte each.
    status: AtomicU32,
}

const _: () = assert!(size_of::<Header>() == 32);

/// No stream is recorded for the block.
pub(super) const NO_RECORD: u32 = u32::MAX;
const RECORDED: u32 = 1 << 8;
const DEDICATED: u32 = 1 << 9;
const LENT: u32 = 1 << 10;
const TAG_SHIFT: u32 = 16;

impl Header {
    /// The block's first byte.
    #[inline]
    pub(crate) fn ptr(&self) -> DevicePtr {
        DevicePtr(self.addr.load(Relaxed))
    }
    /// Lane and size.
    #[inline]
    pub(crate) fn key(&self) -> Key {
        Key::from_number(self.key.load(Relaxed))
    }
    /// What the caller asked for, in bytes.
    #[inline]
    pub(crate) fn requested(&self) -> u64 {
        self.requested.load(Relaxed)
    }
    /// The block's size in bytes.
    #[inline]
    pub(crate) fn size(&self) -> u64 {
        self.key().bytes()
    }
    /// The lane that the block belongs to.
    #[inline]
    pub(crate) fn lane(&self) -> u16 {
        self.key().lane()
    }
    /// The tag of the caller.
    #[inline]
    pub(crate) fn tag(&self) -> u8 {
        (self.status.load(Relaxed) >> TAG_SHIFT) as u8
    }
    /// One of [`life`].
    #[inline]
    pub(crate) fn life(&self) -> u8 {
        self.status.load(Relaxed) as u8
    }
    /// Whether the block is live, no stream was recorded for it, its memory is neither dedicated nor lent, and it has no tag.
    #[inline]
    pub(crate) fn is_plainly_live(&self) -> bool {
        self.status.load(Relaxed) == u32::from(life::LIVE)
    }
    /// An error where the block is not in the hands of a caller.
    pub(crate) fn check_live(&self) -> Result<(), Error> {
        match self.life() {
            life::LIVE => Ok(()),
            life::NONE => Err(Error::InvalidPointer { ptr: self.ptr() }),
            _ => Err(Error::DoubleFree { ptr: self.ptr() }),
        }
    }
    /// Whether a stream was recorded for the block.
    #[inline]
    pub(crate) fn is_recorded(&self) -> bool {
        self.status.load(Relaxed) & RECORDED != 0
    }
    /// Whether the live block has a physical allocation of its own.
    #[inline]
    pub(crate) fn is_dedicated(&self) -> bool {
        self.status.load(Relaxed) & DEDICATED != 0
    }
    /// Notes that the block, which was handed out just now, has a physical allocation of its own.
    pub(crate) fn mark_dedicated(&self) {
        self.status.store(self.status.load(Relaxed) | DEDICATED, Relaxed);
    }
    /// Whether the live block lies in memory that a private pool has lent.
    #[inline]
    pub(crate) fn is_lent(&self) -> bool {
        self.status.load(Relaxed) & LENT != 0
    }
    /// Notes that the block, which was handed out just now, lies in memory that a private pool has lent.
    pub(crate) fn mark_lent(&self) {
        self.status.store(self.status.load(Relaxed) | LENT, Relaxed);
    }
    /// The next block of a chain.
    #[inline]
    pub(crate) fn next(&self) -> BlockId {
        self.next.load(Relaxed)
    }
    /// Links the block, which is in a magazine now, into a chain.
    #[inline]
    pub(crate) fn set_cached(&self, next: BlockId) {
        self.next.store(next, Relaxed);
        self.status.store(u32::from(life::CACHED), Relaxed);
    }
    /// Sets what the block is doing. No stream is recorded any more.
    #[inline]
    pub(crate) fn set_life(&self, life: u8) {
        self.status.store(u32::from(life), Relaxed);
    }
    /// Where the chain of streams recorded for the live block begins. It takes the place of the link to the next block, which only blocks
    /// in magazines have.
    pub(super) fn first_record(&self) -> u32 {
        if self.is_recorded() { self.next.load(Relaxed) } else { NO_RECORD }
    }
    /// Notes that streams were recorded for the live block.
    pub(super) fn set_first_record(&self, index: u32) {
        self.next.store(index, Relaxed);
        self.status.store(self.status.load(Relaxed) | RECORDED, Relaxed);
    }
    /// The block is handed out for a request.
    #[inline]
    pub(crate) fn hand_out(&self, requested: u64, tag: u8) {
        self.requested.store(requested, Relaxed);
        self.status.store(u32::from(life::LIVE) | u32::from(tag) << TAG_SHIFT, Relaxed);
    }
}

/// A table of zeros that takes memory only where it is touched.
#[derive(Debug)]
struct LazyTable<T: ZeroIsValid> {
    base: NonNull<T>,
    len: usize,
}

/// # Safety
/// All zero bytes are a valid value, which needs no drop and may be shared between threads.
unsafe trait ZeroIsValid: Sync {}
// SAFETY: atomics of integers; zero is a value of each.
unsafe impl ZeroIsValid for Header {}
// SAFETY: an integer.
unsafe impl ZeroIsValid for Entry {}
// SAFETY: null is a valid value of a raw pointer.
unsafe impl ZeroIsValid for AtomicPtr<Entry> {}

// SAFETY: a table is a `[T]` that it owns, and `ZeroIsValid` requires `T: Sync`; no `T` is ever moved out.
unsafe impl<T: ZeroIsValid> Send for LazyTable<T> {}
// SAFETY: as above.
unsafe impl<T: ZeroIsValid> Sync for LazyTable<T> {}

impl<T: ZeroIsValid> LazyTable<T> {
    fn new(len: usize) -> Result<LazyTable<T>, DriverError> {
        LazyTable::with_flags(len, libc::MAP_NORESERVE)
    }

    /// One that takes all of its memory at once, which is many page faults less than one at a time.
    fn populated(len: usize) -> Result<LazyTable<T>, DriverError> {
        LazyTable::with_flags(len, libc::MAP_POPULATE)
    }

    fn with_flags(len: usize, more: libc::c_int) -> Result<LazyTable<T>, DriverError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more;
        // SAFETY: a fresh anonymous mapping touches no memory that exists.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len * size_of::<T>(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        match NonNull::new(base.cast::<T>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(LazyTable { base, len }),
            _ => Err(DriverError::new(
                DriverErrorKind::Other,
                "mmap",
                format!(
                    "{} bytes of address space for metadata: {}",
                    len * size_of::<T>(),
                    std::io::Error::last_os_error()
                ),
            )),
        }
    }

    #[inline]
    fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: the mapping holds `len` values of `T`, page-aligned and zero where untouched, which `ZeroIsValid` makes valid;
        // it lives as long as `self`.
        Some(unsafe { self.base.add(index).as_ref() })
    }
}

impl<T: ZeroIsValid> Drop for LazyTable<T> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}

/// The windows of 4 GiB of addresses.
#[derive(Clone, Copy)]
struct Leaf {
    /// Null where there are none.
    first: *mut Entry,
    /// How wide they are, as a power of two.
    shift: u32,
}

impl Leaf {
    /// Entries are page-aligned, and shifts small.
    const SHIFTS: usize = 63;

    #[inline]
    fn from_root(tagged: *mut Entry) -> Leaf {
        Leaf { first: tagged.map_addr(|addr| addr & !Leaf::SHIFTS), shift: (tagged.addr() & Leaf::SHIFTS) as u32 }
    }

    fn to_root(self) -> *mut Entry {
        self.first.map_addr(|addr| addr | self.shift as usize)
    }

    /// The entry of an address's window. Not for a leaf that is null.
    #[inline]
    fn entry(&self, addr: u64) -> &Entry {
        debug_assert!(!self.first.is_null());
        // SAFETY: `first` is that of a table that `Directory::new_leaf` made, with an entry for each window of this shift in 32 bits of
        // addresses. The directory, whose methods alone have leaves, drops none before itself.
        unsafe { &*self.first.add((addr as u32 >> self.shift) as usize) }
    }
}

/// The addresses of one device's blocks.
#[derive(Debug)]
pub(crate) struct Directory {
    headers: LazyTable<Header>,
    /// By the high half of an address: the first entry of a leaf, with the shift of its windows in the low bits, or null.
    root: LazyTable<AtomicPtr<Entry>>,
    /// Owns what `root` points to. Only grows.
    leaves: Mutex<Vec<LazyTable<Entry>>>,
    slabs: u32,
}

impl Directory {
    /// For a device with so much memory.
    pub(super) fn new(capacity: u64) -> Result<Directory, DriverError> {
        // Four times as many as there are pages: one for each, one for each that shares another's memory, and as many again for parts of pages.
        let slabs = (capacity / PAGE * 4).clamp(1, u64::from(SLABS_MAX)) as u32;
        Ok(Directory {
            headers: LazyTable::new(FIRST_SLOT as usize + slabs as usize * SLOTS as usize + 1)?,
            root: LazyTable::new(ROOT)?,
            leaves: Mutex::new(Vec::new()),
            slabs,
        })
    }

    /// How many nodes of a zone the numbers suffice for.
    pub(super) fn nodes_max(&self) -> u32 {
        NODES
    }

    /// How many slabs the numbers suffice for.
    pub(super) fn slabs_max(&self) -> u32 {
        self.slabs
    }

    /// How many of them may share a page's memory with another one.
    pub(super) fn sharing_max(&self) -> u32 {
        self.slabs / 4
    }

    /// How many of them may be parts of a page.
    pub(super) fn parts_max(&self) -> u32 {
        self.slabs / 2
    }

    /// The block's header. The number comes from [`Directory::find`] or the pool.
    #[inline]
    pub(crate) fn header(&self, id: BlockId) -> &Header {
        debug_assert!((id as usize) < self.headers.len);
        // SAFETY: numbers are made here only: NO_BLOCK, by `node_id` for nodes below NODES (`enter_node` checks), by `slot_id` for slabs
        // below `self.slabs` (the pool checks before `enter_slab`), and in `find`, at most one before a slab's first slot or past its
        // last: before those of all slabs are those of nodes, and after them one more. All lie inside the table that `new` made for
        // them. The table is valid for every index below its length, as in `LazyTable::get`.
        unsafe { self.headers.base.add(id as usize).as_ref() }
    }

    /// The block that may start at `ptr`, whatever it is doing: its header bears that address, but may be that of a slot that never was
    /// handed out.
    #[inline]
    pub(crate) fn find(&self, ptr: DevicePtr) -> Option<(BlockId, &Header)> {
        let index = (ptr.0 >> LEAF_SHIFT) as usize & (ROOT - 1);
        debug_assert!(index < self.root.len);
        // SAFETY: the table has ROOT entries, a power of two, and the mask keeps the index below it. (An address of more bits than
        // that finds an entry of another one, and its header tells.)
        let leaf = unsafe { self.root.base.add(index).as_ref() }.load(std::sync::atomic::Ordering::Acquire);
        let leaf = Leaf::from_root(leaf);
        if leaf.first.is_null() {
            return None;
        }
        let entry = leaf.entry(ptr.0).load(Relaxed);
        let slot = ClassId::slot_by_reciprocal(entry >> 32, ptr.0 & (PAGE - 1));
        // What lies before a slab's first slot, or after its last, may count as one more, of which there is a header too.
        let id = entry as u32 + slot;
        let header = self.header(id);
        (header.ptr() == ptr).then_some((id, header))
    }

    /// The leaf for an address. With `wide` it may be one of wide windows.
    #[inline]
    fn leaf(&self, addr: u64, wide: bool) -> Result<Leaf, DriverError> {
        let leaf = self.root.get((addr >> LEAF_SHIFT) as usize).map_or(std::ptr::null_mut(), |slot| slot.load(Relaxed));
        let leaf = Leaf::from_root(leaf);
        if leaf.first.is_null() || (leaf.shift == WIDE_SHIFT && !wide) {
            self.new_leaf(addr, leaf, wide)
        } else {
            Ok(leaf)
        }
    }

    /// A leaf for an address, which has none yet, or an old one of wide windows.
    #[cold]
    fn new_leaf(&self, addr: u64, old: Leaf, wide: bool) -> Result<Leaf, DriverError> {
        let fail = || DriverError::new(DriverErrorKind::Other, "address", format!("{addr:#x} has more than 48 bits"));
        let slot = self.root.get((addr >> LEAF_SHIFT) as usize).ok_or_else(fail)?;
        let shift = if wide { WIDE_SHIFT } else { WINDOW_SHIFT };
        let table = LazyTable::<Entry>::populated(1 << (LEAF_SHIFT - shift))?;
        let leaf = Leaf { first: table.base.as_ptr(), shift };
        for window in (0..1 << LEAF_SHIFT).step_by(1 << WIDE_SHIFT).filter(|_| !old.first.is_null()) {
            let entry = old.entry(window).load(Relaxed);
            // One whose block has gone may bear an address of another window by now, where another block may be.
            let start = self.header(entry as u32).ptr().0;
            if entry != 0 && start >> WIDE_SHIFT == (addr >> LEAF_SHIFT << LEAF_SHIFT | window) >> WIDE_SHIFT {
                leaf.entry(start).store(entry, Relaxed);
            }
        }
        // The old one stays: other threads may be reading it, and find in it what they look for.
        self.leaves.lock().push(table);
        // Only the pool, under its lock, adds leaves.
        slot.store(leaf.to_root(), std::sync::atomic::Ordering::Release);
        Ok(leaf)
    }

    /// Enters an arena's block. Its number, or `None` when the numbers are used up.
    #[inline]
    pub(super) fn enter_node(
        &self,
        zone: usize,
        node: NodeId,
        addr: u64,
        size: u64,
        lane: u16,
    ) -> Result<Option<BlockId>, DriverError> {
        if node >= NODES {
            return Ok(None);
        }
        let id = node_id(zone, node);
        self.leaf(addr, size >= 1 << WIDE_SHIFT)?.entry(addr).store(u64::from(id), Relaxed);
        self.fill_header(id, addr, size, lane);
        Ok(Some(id))
    }

    /// Enters a slab. Its slots follow as they are taken: [`Directory::enter_slot`].
    pub(super) fn enter_slab(&self, slab: u32, addr: u64, size: u64, class: ClassId) -> Result<(), DriverError> {
        debug_assert!(slab < self.slabs && addr.is_multiple_of(size) && size.is_multiple_of(CLASS_SIZE_MAX));
        // What `find` adds is counted from the page's start.
        let entry = class.reciprocal() << 32 | u64::from(slot_id(slab, 0) - class.slots_below(addr % PAGE));
        const { assert!(1 << LEAF_SHIFT >= PAGE && PAGE.is_multiple_of(CLASS_SIZE_MAX)) };
        // All of a page's windows are in one leaf.
        let leaf = self.leaf(addr, false)?;
        (addr..addr + size).step_by(CLASS_SIZE_MAX as usize).for_each(|addr| leaf.entry(addr).store(entry, Relaxed));
        Ok(())
    }

    /// Enters a slot of a slab that has been entered, unless it has been as the same block. Its number. Until then, the header is what an earlier
    /// slab of this number has left: free, or never used.
    #[inline]
    pub(super) fn enter_slot(&self, slab: u32, slot: u32, addr: u64, class: ClassId, lane: u16) -> BlockId {
        let id = slot_id(slab, slot);
        let header = self.header(id);
        let key = Key::new(LaneBits::new(lane), (class.size() / GRANULE) as u32);
        if header.ptr().0 != addr || header.key() != key {
            self.fill_header(id, addr, class.size(), lane);
        }
        id
    }

    #[inline]
    fn fill_header(&self, id: BlockId, addr: u64, size: u64, lane: u16) {
        let header = self.header(id);
        header.addr.store(addr, Relaxed);
        header.key.store(Key::new(LaneBits::new(lane), (size / GRANULE) as u32).number(), Relaxed);
        header.set_life(life::NONE);
    }

    /// Host memory that headers and windows take when so many nodes, and slabs of so many bytes, have been in use: about so many bytes.
    pub(super) fn touched_bytes(&self, nodes: u64, slab_bytes: u64) -> u64 {
        let leaves: usize = self.leaves.lock().iter().map(|leaf| leaf.len * size_of::<Entry>()).sum();
        leaves as u64 + (nodes * u64::from(NODE_STRIDE) + slab_bytes / GRANULE) * size_of::<Header>() as u64
    }
}

/// The number of an arena's block.
#[inline]
pub(super) fn node_id(zone: usize, node: NodeId) -> BlockId {
    (zone as u32 * NODES + node + 1) * NODE_STRIDE
}

/// The number of a slab's slot.
#[inline]
pub(super) fn slot_id(slab: u32, slot: u32) -> BlockId {
    FIRST_SLOT + slab * SLOTS + slot
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A node of a zone's arena.
    Node(usize, NodeId),
    /// A slot of a slab.
    Slot(u32, u32),
}

/// The place that a number stands for.
#[inline]
pub(super) fn place(id: BlockId) -> Place {
    match id.checked_sub(FIRST_SLOT) {
        Some(slot) => Place::Slot(slot / SLOTS, slot % SLOTS),
        None => {
            let node = id / NODE_STRIDE - 1;
            Place::Node((node / NODES) as usize, node % NODES)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Enters a block, as the pool does.
    fn enter(directory: &Directory, node: NodeId, addr: u64, size: u64) -> (u64, BlockId) {
        (addr, directory.enter_node(1, node, addr, size, 1).unwrap().unwrap())
    }

    #[test]
    fn blocks_are_found_as_windows_become_narrow() {
        let directory = Directory::new(1 << 36).unwrap();
        let base = 7 << LEAF_SHIFT;
        let large = (0..4000u32).map(|node| enter(&directory, node, base + u64::from(node) * MIB + 512, MIB));
        let mut blocks: Vec<(u64, BlockId)> = large.collect();
        // Of these two only the entries are left. The node of one is another block's by now, in another leaf; that of the other has become
        // free where a third block is.
        let gone = blocks.pop().unwrap().0;
        blocks.push(enter(&directory, 3999, 9 << LEAF_SHIFT, MIB));
        enter(&directory, 5000, base + 4008 * MIB, MIB);
        enter(&directory, 5000, base + 4005 * MIB, MIB);
        blocks.push(enter(&directory, 5001, base + 4005 * MIB, MIB));
        let found = |blocks: &[(u64, BlockId)]| {
            for &(addr, id) in blocks {
                assert_eq!(directory.find(DevicePtr(addr)).map(|(id, _)| id), Some(id), "{addr:#x}");
                assert!(directory.find(DevicePtr(addr + GRANULE)).is_none());
            }
            assert!(directory.find(DevicePtr(gone)).is_none());
            directory.touched_bytes(0, 0)
        };
        let wide = found(&blocks);
        // Two in one wide window, and a slab.
        let small = base + 4010 * MIB;
        blocks.extend(
            [0, 1, 2].map(|k| enter(&directory, 4000 + k, small + u64::from(k) * CLASS_SIZE_MAX, CLASS_SIZE_MAX)),
        );
        let narrow = found(&blocks);
        assert!(narrow > wide * 4, "{wide} {narrow}");
        let class = ClassId::for_size(4096);
        directory.enter_slab(5, base + 4020 * MIB, PAGE, class).unwrap();
        let slots = [0, 1, 511].map(|slot| {
            let addr = base + 4020 * MIB + u64::from(slot) * class.size();
            (addr, directory.enter_slot(5, slot, addr, class, 1))
        });
        blocks.extend(slots);
        for addr in [base + 4022 * MIB, base + 4023 * MIB] {
            blocks.push(enter(&directory, 4010 + (addr / MIB % 2) as u32, addr, MIB));
        }
        // Nothing grows any more.
        let bytes =
            blocks.iter().map(|&(addr, id)| u64::from(directory.find(DevicePtr(addr)).unwrap().0 == id)).sum::<u64>();
        assert_eq!((bytes, directory.touched_bytes(0, 0)), (blocks.len() as u64, narrow));
    }
}
