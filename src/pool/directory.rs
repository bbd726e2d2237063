//! From an address to its block, without a lock: two loads, a multiplication at most, and one more load for the header.
//!
//! Blocks above [`CLASS_SIZE_MAX`] start at least that far apart, so that a *window* of that size holds the start of at most one of
//! them; a slab covers whole windows. An entry a window therefore suffices. The headers are out of band, numbered: nodes
//! of the two arenas first, then 4096 slots for each slab that may exist.
//!
//! Entries are written when a block or slab comes into being and never cleared: a stale entry leads to a header that is free, or
//! bears another address, and [`Directory::find`] checks both.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::block::{CLASS_SIZE_MAX, ClassId, NodeId};
use crate::error::{DriverError, DriverErrorKind};
use crate::sync::Mutex;
use crate::units::{DevicePtr, GRANULE, PAGE};

/// A block's number.
pub type BlockId = u32;
/// No block.
pub const NO_BLOCK: BlockId = BlockId::MAX;

/// Arena nodes a zone that may have a header.
const NODES: u32 = 1 << 23;
/// Zones with an arena.
pub(super) const ZONES: usize = 3;
const FIRST_SLOT: u32 = NODES * ZONES as u32;
/// Slots a slab at most; its headers are this far apart.
const SLOTS: u32 = (PAGE / GRANULE) as u32;
/// Slabs a device at most: as many as the numbers allow.
const SLABS_MAX: u32 = (u32::MAX - FIRST_SLOT) / SLOTS;

const WINDOW_SHIFT: u32 = CLASS_SIZE_MAX.trailing_zeros();
const LEAF_SHIFT: u32 = 32;
const LEAF_WINDOWS: usize = 1 << (LEAF_SHIFT - WINDOW_SHIFT);
/// Device addresses have at most so many bits.
const ADDRESS_BITS: u32 = 48;

/// A window's entry: 0 for none, a node's header number plus one, or a slab's number and class.
const SLAB_FLAG: u32 = 1 << 31;
const SLAB_CLASS_SHIFT: u32 = 24;
const _: () = assert!(SLABS_MAX < 1 << SLAB_CLASS_SHIFT && ClassId::COUNT <= 1 << 6 && FIRST_SLOT < SLAB_FLAG);

/// What a block is doing.
pub mod life {
    /// Never handed out.
    pub const NONE: u8 = 0;
    /// In the hands of a caller.
    pub const LIVE: u8 = 1;
    /// In a thread's magazine.
    pub const CACHED: u8 = 2;
    /// Back in the pool.
    pub const FREE: u8 = 3;
    /// Freed, and waiting for streams that were recorded for it.
    pub const PENDING: u8 = 4;
}

/// What is known of a block. Plain data, in atomics because a caller's bug (a free in two threads at once) must not become
/// undefined behaviour; every access is relaxed. Between a successful allocation and its free the caller owns the block, and
/// else the magazine or the pool that holds it.
#[repr(align(32))]
#[derive(Debug)]
pub struct Header {
    addr: AtomicU64,
    requested: AtomicU64,
    granules: AtomicU32,
    next: AtomicU32,
    lane: AtomicU16,
    tag: AtomicU8,
    life: AtomicU8,
    recorded: AtomicU8,
}

const _: () = assert!(size_of::<Header>() == 32);

impl Header {
    /// The block's first byte.
    #[inline]
    pub fn ptr(&self) -> DevicePtr {
        DevicePtr(self.addr.load(Relaxed))
    }
    /// What the caller asked for, in bytes.
    #[inline]
    pub fn requested(&self) -> u64 {
        self.requested.load(Relaxed)
    }
    /// The block's size in granules.
    #[inline]
    pub fn granules(&self) -> u32 {
        self.granules.load(Relaxed)
    }
    /// The block's size in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        u64::from(self.granules()) * GRANULE
    }
    /// The lane that the block belongs to.
    #[inline]
    pub fn lane(&self) -> u16 {
        self.lane.load(Relaxed)
    }
    /// The tag of the caller.
    #[inline]
    pub fn tag(&self) -> u8 {
        self.tag.load(Relaxed)
    }
    /// One of [`life`].
    #[inline]
    pub fn life(&self) -> u8 {
        self.life.load(Relaxed)
    }
    /// Whether a stream was recorded for the block.
    #[inline]
    pub fn is_recorded(&self) -> bool {
        self.recorded.load(Relaxed) != 0
    }
    /// The next block of a chain.
    #[inline]
    pub fn next(&self) -> BlockId {
        self.next.load(Relaxed)
    }
    /// Links the block into a chain.
    #[inline]
    pub fn set_next(&self, next: BlockId) {
        self.next.store(next, Relaxed);
    }
    /// Sets what the block is doing.
    #[inline]
    pub fn set_life(&self, life: u8) {
        self.life.store(life, Relaxed);
    }
    /// Notes that streams were recorded, or that they have been dealt with.
    pub fn set_recorded(&self, recorded: bool) {
        self.recorded.store(u8::from(recorded), Relaxed);
    }
    /// The block is handed out for a request.
    #[inline]
    pub fn hand_out(&self, requested: u64, tag: u8) {
        self.requested.store(requested, Relaxed);
        self.tag.store(tag, Relaxed);
        self.life.store(life::LIVE, Relaxed);
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
unsafe impl ZeroIsValid for AtomicU32 {}
// SAFETY: null is a valid value of a raw pointer.
unsafe impl ZeroIsValid for AtomicPtr<AtomicU32> {}

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
                format!("{} bytes of address space for metadata: {}", len * size_of::<T>(), std::io::Error::last_os_error()),
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
pub struct Directory {
    headers: LazyTable<Header>,
    /// By the high half of an address: the first entry of a leaf, or null.
    root: LazyTable<AtomicPtr<AtomicU32>>,
    /// Owns what `root` points to. Only grows.
    leaves: Mutex<Vec<LazyTable<AtomicU32>>>,
    slabs: u32,
}

impl Directory {
    /// For a device with so much memory.
    pub(super) fn new(capacity: u64) -> Result<Directory, DriverError> {
        let slabs = (capacity / PAGE).clamp(1, u64::from(SLABS_MAX)) as u32;
        Ok(Directory {
            headers: LazyTable::new(FIRST_SLOT as usize + slabs as usize * SLOTS as usize)?,
            root: LazyTable::new(1 << (ADDRESS_BITS - LEAF_SHIFT))?,
            leaves: Mutex::new(Vec::new()),
            slabs,
        })
    }

    /// How many slabs the numbers suffice for.
    pub(super) fn slabs_max(&self) -> u32 {
        self.slabs
    }

    /// The block's header. The number comes from [`Directory::find`] or the pool.
    #[inline]
    pub fn header(&self, id: BlockId) -> &Header {
        self.headers.get(id as usize).expect("block numbers stay inside the table")
    }

    /// The block that starts at `ptr`, whatever it is doing, if one ever did.
    #[inline]
    pub fn find(&self, ptr: DevicePtr) -> Option<(BlockId, &Header)> {
        let leaf = self.root.get((ptr.0 >> LEAF_SHIFT) as usize)?.load(std::sync::atomic::Ordering::Acquire);
        if leaf.is_null() {
            return None;
        }
        // SAFETY: a leaf that `root` points to has LEAF_WINDOWS entries and lives as long as `self` (`leaves` only grows); the
        // index is below that count by the mask.
        let entry = unsafe { &*leaf.add((ptr.0 >> WINDOW_SHIFT) as usize & (LEAF_WINDOWS - 1)) }.load(Relaxed);
        let id = if entry & SLAB_FLAG != 0 {
            let class = ClassId::from_index((entry & !SLAB_FLAG) as usize >> SLAB_CLASS_SHIFT)?;
            slot_id(entry & ((1 << SLAB_CLASS_SHIFT) - 1), class.slot_at(ptr.0 & (PAGE - 1)))
        } else {
            entry.checked_sub(1)?
        };
        let header = self.headers.get(id as usize)?;
        (header.ptr() == ptr && header.life() != life::NONE).then_some((id, header))
    }

    fn window(&self, addr: u64) -> Result<&AtomicU32, DriverError> {
        let fail = || DriverError::new(DriverErrorKind::Other, "address", format!("{addr:#x} has more than 48 bits"));
        let slot = self.root.get((addr >> LEAF_SHIFT) as usize).ok_or_else(fail)?;
        let mut leaf = slot.load(Relaxed);
        if leaf.is_null() {
            let mut leaves = self.leaves.lock();
            let table = LazyTable::<AtomicU32>::new(LEAF_WINDOWS)?;
            leaf = table.base.as_ptr();
            leaves.push(table);
            // Only the pool, under its lock, adds leaves.
            slot.store(leaf, std::sync::atomic::Ordering::Release);
        }
        // SAFETY: as in `find`.
        Ok(unsafe { &*leaf.add((addr >> WINDOW_SHIFT) as usize & (LEAF_WINDOWS - 1)) })
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
        self.window(addr)?.store(id + 1, Relaxed);
        self.fill_header(id, addr, size, lane);
        Ok(Some(id))
    }

    /// Enters all slots of a slab.
    pub(super) fn enter_slab(&self, slab: u32, addr: u64, class: ClassId, lane: u16) -> Result<(), DriverError> {
        debug_assert!(slab < self.slabs && addr.is_multiple_of(PAGE));
        let entry = SLAB_FLAG | (class.index() as u32) << SLAB_CLASS_SHIFT | slab;
        for window in (addr..addr + PAGE).step_by(CLASS_SIZE_MAX as usize) {
            self.window(window)?.store(entry, Relaxed);
        }
        for slot in 0..class.slots() {
            self.fill_header(slot_id(slab, slot), addr + u64::from(slot) * class.size(), class.size(), lane);
        }
        Ok(())
    }

    #[inline]
    fn fill_header(&self, id: BlockId, addr: u64, size: u64, lane: u16) {
        let header = self.header(id);
        header.addr.store(addr, Relaxed);
        header.granules.store((size / GRANULE) as u32, Relaxed);
        header.lane.store(lane, Relaxed);
        header.recorded.store(0, Relaxed);
        header.life.store(life::NONE, Relaxed);
    }

    /// Host memory that headers and windows take when so many nodes and slabs have been in use, in bytes.
    pub(super) fn touched_bytes(&self, nodes: u64, slabs: u64) -> u64 {
        let leaves = self.leaves.lock().len() as u64 * (LEAF_WINDOWS * size_of::<AtomicU32>()) as u64;
        leaves + (nodes + slabs * u64::from(SLOTS)) * size_of::<Header>() as u64
    }
}

/// The number of an arena's block.
#[inline]
pub(super) fn node_id(zone: usize, node: NodeId) -> BlockId {
    zone as u32 * NODES + node
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
        None => Place::Node((id / NODES) as usize, id % NODES),
    }
}
