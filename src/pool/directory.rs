//! From an address to its block, without a lock: two loads and a multiplication to its number, and one more load for its header.
//!
//! Blocks above [`CLASS_SIZE_MAX`] start at least that far apart, so that a *window* of that size holds the start of at most one of
//! them; a slab covers whole windows. An entry a window therefore suffices: the number of a block, or of a slab's first slot, and
//! what to multiply an offset by to get the slot. The headers are out of band: nodes of the arenas first, then 4096 slots for
//! each slab that may exist.
//!
//! Entries are written when a block or slab comes into being, headers of slots when these are first taken. Neither is ever cleared: a
//! stale entry, or none, leads to a header that is free or bears another address, and callers check both.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};

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
const LEAF_SHIFT: u32 = 32;
const LEAF_WINDOWS: usize = 1 << (LEAF_SHIFT - WINDOW_SHIFT);
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

/// A lane and a block size in granules: blocks of one key serve each other's requests. Kept multiplied by an odd number, which can be
/// undone, and makes the high bits a hash (Knuth's multiplicative hashing; the number is 2^64 / golden ratio). The lowest bit, which
/// that leaves alone, says whether the block is above [`CLASS_SIZE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u64);

const LANE_SHIFT: u32 = 33;
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The inverse of [`SCATTER`] modulo 2^64, by Newton's iteration: each step doubles the bits that are right, from three.
const GATHER: u64 = {
    let mut inverse = SCATTER;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(SCATTER.wrapping_mul(inverse)));
        step += 1;
    }
    assert!(SCATTER.wrapping_mul(inverse) == 1);
    inverse
};

impl Key {
    #[inline]
    pub(crate) fn new(lane: LaneBits, granules: u32) -> Key {
        let large = u64::from(granules) > CLASS_SIZE_MAX / GRANULE;
        Key((lane.0 | u64::from(granules) << 1 | u64::from(large)).wrapping_mul(SCATTER))
    }

    /// Whether the block is too large for a slab.
    #[inline]
    pub(crate) fn is_large(self) -> bool {
        self.0 & 1 != 0
    }

    /// The key as a number, never 0: no lane is 0.
    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// The key with this number.
    #[inline]
    pub(crate) fn from_number(number: u64) -> Key {
        Key(number)
    }

    #[inline]
    pub(crate) fn lane(self) -> u16 {
        (self.0.wrapping_mul(GATHER) >> LANE_SHIFT) as u16
    }

    #[inline]
    pub(crate) fn granules(self) -> u32 {
        (self.0.wrapping_mul(GATHER) >> 1) as u32
    }

    /// The block size in bytes.
    #[inline]
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.granules()) * GRANULE
    }
}

/// A lane's number where a [`Key`] wants it. 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LaneBits(u64);

impl LaneBits {
    /// No lane.
    pub(crate) const NONE: LaneBits = LaneBits(0);

    pub(crate) fn lane(self) -> u16 {
        (self.0 >> LANE_SHIFT) as u16
    }

    pub(crate) fn new(lane: u16) -> LaneBits {
        LaneBits(u64::from(lane) << LANE_SHIFT)
    }

    #[inline]
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) fn from_number(number: u64) -> LaneBits {
        LaneBits(number)
    }
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
        Key(self.key.load(Relaxed))
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
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
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

/// The addresses of one device's blocks.
#[derive(Debug)]
pub(crate) struct Directory {
    headers: LazyTable<Header>,
    /// By the high half of an address: the first entry of a leaf, or null.
    root: LazyTable<AtomicPtr<Entry>>,
    /// Owns what `root` points to. Only grows.
    leaves: Mutex<Vec<LazyTable<Entry>>>,
    slabs: u32,
}

impl Directory {
    /// For a device with so much memory.
    pub(super) fn new(capacity: u64) -> Result<Directory, DriverError> {
        // Twice as many as there are pages: those whose pages share memory count too, of which there are never more than pages.
        let slabs = (capacity / PAGE * 2).clamp(1, u64::from(SLABS_MAX)) as u32;
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

    /// The block's header. The number comes from [`Directory::find`] or the pool.
    #[inline]
    pub(crate) fn header(&self, id: BlockId) -> &Header {
        debug_assert!((id as usize) < self.headers.len);
        // SAFETY: numbers are made here only: NO_BLOCK, by `node_id` for nodes below NODES (`enter_node` checks), by `slot_id` for slabs
        // below `self.slabs` (the pool checks before `enter_slab`), and in `find`, at most one past a slab's last. All lie inside the
        // table that `new` made for them. The table is valid for every index below its length, as in `LazyTable::get`.
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
        if leaf.is_null() {
            return None;
        }
        // SAFETY: a leaf that `root` points to has LEAF_WINDOWS entries and lives as long as `self` (`leaves` only grows); the
        // index is below that count by the mask.
        let entry = unsafe { &*leaf.add((ptr.0 >> WINDOW_SHIFT) as usize & (LEAF_WINDOWS - 1)) }.load(Relaxed);
        let slot = ClassId::slot_by_reciprocal(entry >> 32, ptr.0 & (PAGE - 1));
        // A slab's tail may count as one slot too many, of which there is a header too.
        let id = entry as u32 + slot;
        let header = self.header(id);
        (header.ptr() == ptr).then_some((id, header))
    }

    #[inline]
    fn window(&self, addr: u64) -> Result<&Entry, DriverError> {
        self.windows(addr, 1).map(|windows| &windows[0])
    }

    /// So many windows from the one of an address on, as far as its leaf goes.
    #[inline]
    fn windows(&self, addr: u64, count: usize) -> Result<&[Entry], DriverError> {
        let leaf = self.root.get((addr >> LEAF_SHIFT) as usize).map_or(std::ptr::null_mut(), |slot| slot.load(Relaxed));
        let leaf = if leaf.is_null() { self.new_leaf(addr)? } else { leaf };
        let first = (addr >> WINDOW_SHIFT) as usize & (LEAF_WINDOWS - 1);
        // SAFETY: as in `find`; the windows end where the leaf does.
        Ok(unsafe { std::slice::from_raw_parts(leaf.add(first), count.min(LEAF_WINDOWS - first)) })
    }

    /// The leaf for an address, which has none yet.
    #[cold]
    fn new_leaf(&self, addr: u64) -> Result<*mut Entry, DriverError> {
        let fail = || DriverError::new(DriverErrorKind::Other, "address", format!("{addr:#x} has more than 48 bits"));
        let slot = self.root.get((addr >> LEAF_SHIFT) as usize).ok_or_else(fail)?;
        let mut leaves = self.leaves.lock();
        let table = LazyTable::<Entry>::new(LEAF_WINDOWS)?;
        let leaf = table.base.as_ptr();
        leaves.push(table);
        // Only the pool, under its lock, adds leaves.
        slot.store(leaf, std::sync::atomic::Ordering::Release);
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
        self.window(addr)?.store(u64::from(id), Relaxed);
        self.fill_header(id, addr, size, lane);
        Ok(Some(id))
    }

    /// Enters a slab. Its slots follow as they are taken: [`Directory::enter_slot`].
    pub(super) fn enter_slab(&self, slab: u32, addr: u64, class: ClassId) -> Result<(), DriverError> {
        debug_assert!(slab < self.slabs && addr.is_multiple_of(PAGE));
        let entry = class.reciprocal() << 32 | u64::from(slot_id(slab, 0));
        const { assert!(1 << LEAF_SHIFT >= PAGE && PAGE.is_multiple_of(CLASS_SIZE_MAX)) };
        // All of a page's windows are in one leaf.
        self.windows(addr, (PAGE / CLASS_SIZE_MAX) as usize)?.iter().for_each(|window| window.store(entry, Relaxed));
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
        header.key.store(Key::new(LaneBits::new(lane), (size / GRANULE) as u32).0, Relaxed);
        header.set_life(life::NONE);
    }

    /// Host memory that headers and windows take when so many nodes and slabs have been in use, in bytes.
    pub(super) fn touched_bytes(&self, nodes: u64, slabs: u64) -> u64 {
        let leaves = self.leaves.lock().len() as u64 * (LEAF_WINDOWS * size_of::<Entry>()) as u64;
        leaves + (nodes * u64::from(NODE_STRIDE) + slabs * u64::from(SLOTS)) * size_of::<Header>() as u64
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
