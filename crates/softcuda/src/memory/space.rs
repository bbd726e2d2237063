//! The address space of the process: which allocation an address belongs to, on whatever device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use stratalloc::driver::{Driver, HostPtr};
use stratalloc::units::DevicePtr;

use crate::abi::codes::{Code, Res};
use crate::process::contexts::Context;
use crate::process::devices::{Device, code_of};

/// What an allocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From `cuMemAlloc` and its like.
    Plain,
    Managed,
    /// Behind an array.
    Array,
    /// From `cuMemAllocAsync`, in use.
    Pool {
        pool: usize,
    },
    /// Of a graph's memory node.
    Graph,
    /// Pinned host memory, with its flags.
    Host {
        flags: u32,
    },
    /// The program's own host memory, pinned.
    Registered {
        flags: u32,
    },
    /// Another process's, opened here.
    Shared,
    /// Reserved addresses.
    Reservation,
}

impl Kind {
    /// Whether it is host memory.
    pub(crate) fn is_host(self) -> bool {
        matches!(self, Kind::Host { .. } | Kind::Registered { .. })
    }
}

/// An allocation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) base: u64,
    /// As asked for, where the device gave more.
    pub(crate) size: u64,
    pub(crate) kind: Kind,
    pub(crate) device: &'static Device,
    pub(crate) context: Option<&'static Context>,
    /// Never used twice.
    pub(crate) id: u64,
}

static SPACE: RwLock<BTreeMap<u64, Block>> = RwLock::new(BTreeMap::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Enters an allocation that the device has just made.
pub(crate) fn insert(base: u64, size: u64, kind: Kind, device: &'static Device, context: Option<&'static Context>) {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    if let Some(counter) = device.account.of(kind) {
        counter.add(size);
    }
    SPACE.write().insert(base, Block { base, size, kind, device, context, id });
}

/// The allocation that an address lies in.
pub(crate) fn find(ptr: u64) -> Option<Block> {
    let space = SPACE.read();
    let (_, block) = space.range(..=ptr).next_back()?;
    // An allocation of no bytes has none, but an address.
    (ptr - block.base < block.size.max(1)).then_some(*block)
}

/// Takes the allocation that begins at an address out, if it is one that `wanted` accepts. The caller gives it back to the
/// device after that, or enters it again: an address that is free may be another thread's at once.
pub(crate) fn take(base: u64, wanted: impl Fn(&Block) -> bool) -> Res<Block> {
    let mut space = SPACE.write();
    let block = *space.get(&base).filter(|block| wanted(block)).ok_or(Code::INVALID_VALUE)?;
    space.remove(&base);
    if let Some(counter) = block.device.account.of(block.kind) {
        counter.remove(block.size);
    }
    Ok(block)
}

/// Enters an allocation again that could not be given back.
pub(crate) fn put_back(block: Block) {
    if let Some(counter) = block.device.account.of(block.kind) {
        counter.add(block.size);
    }
    SPACE.write().insert(block.base, block);
}

/// Gives an allocation that was taken out back to its device.
pub(crate) fn release(block: Block) -> Res {
    let soft = &block.device.soft;
    let result = match block.kind {
        Kind::Plain | Kind::Managed | Kind::Array | Kind::Graph => soft.free_plain(DevicePtr(block.base)),
        Kind::Host { .. } => soft.free_host(HostPtr(block.base as usize)),
        Kind::Registered { .. } => soft.unregister_host(DevicePtr(block.base)),
        Kind::Shared => soft.close_shared(DevicePtr(block.base)),
        Kind::Reservation => soft.unreserve(DevicePtr(block.base), block.size),
        Kind::Pool { pool } => return super::pools::take_back(pool, block),
    };
    result.map_err(|error| {
        put_back(block);
        code_of(error)
    })
}

/// Gives back whatever was allocated in a context, but for addresses: those belong to no context.
pub(crate) fn free_all_of(context: &Context) {
    let own =
        |block: &Block| block.kind != Kind::Reservation && block.context.is_some_and(|of| std::ptr::eq(of, context));
    let bases: Vec<u64> = SPACE.read().values().filter(|block| own(block)).map(|block| block.base).collect();
    for base in bases {
        // Another thread may have freed it meanwhile.
        let _ = take(base, own).and_then(release);
    }
}
