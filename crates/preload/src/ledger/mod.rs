//! The ledger: what this process holds, by device and kind, to the byte.
//!
//! A call that may allocate *charges* its size first, which fails where the device's limit would be exceeded, and then calls the driver; a failed
//! call takes the charge back. So two threads cannot both take the last bytes below the limit, and no lock is held over a call.
//!
//! For each device: `held` is the sum of the kinds that take device memory, and never above the limit but for memory that is taken
//! where this library cannot refuse it.

mod objects;
mod view;
mod vmm;

pub(crate) use objects::Object;
pub(crate) use view::LedgerView;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use stratalloc::Limit;

use objects::Objects;
use vmm::Vmm;

/// Devices that are told apart; CUDA shows no more to one process.
pub(crate) const DEVICES: usize = 64;

/// What memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Kind {
    /// Chunks and segments that the allocator holds, to serve from.
    Served,
    /// From `cuMemAlloc` and `cuMemAllocPitch`, passed on.
    Plain,
    /// From `cuMemAllocAsync` and pools, passed on.
    Pooled,
    /// Managed memory, on the device that was current.
    Managed,
    /// Arrays and mipmapped arrays.
    Array,
    /// The program's own physical memory from `cuMemCreate` on a device.
    Chunk,
    /// The same in host memory.
    HostChunk,
    /// Address space that the program has mapped.
    Mapped,
    /// Address space that the program has reserved.
    Reserved,
    /// Pinned host memory.
    Pinned,
    /// Host memory that was registered.
    Registered,
    /// Memory of another process or interface, mapped here.
    Imported,
}

impl Kind {
    /// How many kinds there are.
    pub(crate) const COUNT: usize = 12;

    /// Every kind, with its name in reports.
    pub(crate) const ALL: [(Kind, &'static str); Kind::COUNT] = [
        (Kind::Served, "held by the allocator"),
        (Kind::Plain, "cuMemAlloc, passed on"),
        (Kind::Pooled, "pools, passed on"),
        (Kind::Managed, "managed"),
        (Kind::Array, "arrays"),
        (Kind::Chunk, "cuMemCreate"),
        (Kind::HostChunk, "cuMemCreate in host memory"),
        (Kind::Mapped, "mapped"),
        (Kind::Reserved, "address space"),
        (Kind::Pinned, "pinned host"),
        (Kind::Registered, "registered host"),
        (Kind::Imported, "imported"),
    ];

    /// Whether it takes memory of the device, and counts towards the limit.
    fn is_device_memory(self) -> bool {
        use Kind::*;
        matches!(self, Served | Plain | Pooled | Managed | Array | Chunk)
    }
}

/// Bytes and number of one kind.
#[derive(Debug, Default)]
struct Figure {
    bytes: AtomicU64,
    count: AtomicU64,
}

/// One device's figures.
#[derive(Debug, Default)]
struct Books {
    held: AtomicU64,
    /// Memory of the device; 0 if it was not asked for yet.
    total: AtomicU64,
    /// Graphs were given memory nodes on this device.
    graphs: AtomicU64,
    figures: [Figure; Kind::COUNT],
}

/// What this process holds.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: Option<Limit>,
    books: [Books; DEVICES],
    objects: Mutex<Objects>,
    vmm: Mutex<Vmm>,
}

/// Bytes that were charged for a call. Dropped without [`Charge::keep`], they are given back.
#[must_use]
pub(crate) struct Charge<'a> {
    ledger: &'a Ledger,
    device: usize,
    kind: Kind,
    bytes: u64,
}

impl Charge<'_> {
    /// The call has succeeded.
    pub(crate) fn keep(self) {
        self.ledger.books[self.device].figures[self.kind as usize].count.fetch_add(1, Relaxed);
        std::mem::forget(self);
    }

    /// The same for an object of the driver, which is struck out when it goes.
    pub(crate) fn keep_as(self, object: Object, context: usize) {
        let (ledger, device, kind, bytes) = (self.ledger, self.device, self.kind, self.bytes);
        self.keep();
        ledger.insert(object, objects::Entry { device, kind, bytes, context });
    }

    /// Changes the size to what the driver really took.
    pub(crate) fn adjust(&mut self, bytes: u64) {
        self.ledger.sub(self.device, self.kind, self.bytes);
        self.ledger.add(self.device, self.kind, bytes);
        self.bytes = bytes;
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.ledger.sub(self.device, self.kind, self.bytes);
    }
}

impl Ledger {
    pub(crate) fn new(limit: Option<Limit>) -> Ledger {
        Ledger {
            limit,
            books: std::array::from_fn(|_| Books::default()),
            objects: Mutex::default(),
            vmm: Mutex::default(),
        }
    }

    /// Whether a device's memory is known.
    pub(crate) fn knows(&self, device: usize) -> bool {
        self.books.get(device).is_some_and(|books| books.total.load(Relaxed) > 0)
    }

    /// Notes how much memory a device has.
    pub(crate) fn set_total(&self, device: usize, total: u64) {
        if let Some(books) = self.books.get(device) {
            books.total.store(total, Relaxed);
        }
    }

    /// How much memory a device has.
    pub(crate) fn total(&self, device: usize) -> u64 {
        self.books.get(device).map_or(0, |books| books.total.load(Relaxed))
    }

    /// The limit on a device with `total` bytes.
    pub(crate) fn limit_of(&self, total: u64) -> u64 {
        self.limit.map_or(total, |limit| limit.bytes(total))
    }

    /// Whether there is a limit.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Device memory that is held, in bytes.
    pub(crate) fn held(&self, device: usize) -> u64 {
        self.books.get(device).map_or(0, |books| books.held.load(Relaxed))
    }

    /// Bytes and number of a kind.
    pub(crate) fn figure(&self, device: usize, kind: Kind) -> (u64, u64) {
        let Some(books) = self.books.get(device) else { return (0, 0) };
        let figure = &books.figures[kind as usize];
        (figure.bytes.load(Relaxed), figure.count.load(Relaxed))
    }

    /// Notes that a graph has memory of its own on a device.
    pub(crate) fn note_graph(&self, device: usize) {
        if let Some(books) = self.books.get(device) {
            books.graphs.fetch_add(1, Relaxed);
        }
    }

    /// Memory nodes that graphs were given.
    pub(crate) fn graph_nodes(&self, device: usize) -> u64 {
        self.books.get(device).map_or(0, |books| books.graphs.load(Relaxed))
    }

    /// Charges `bytes`, or returns `None` where that would exceed the limit. Devices beyond the last are not told apart.
    pub(crate) fn charge(&self, device: usize, kind: Kind, bytes: u64) -> Option<Charge<'_>> {
        let device = device.min(DEVICES - 1);
        let books = &self.books[device];
        if kind.is_device_memory() {
            let limit = if self.limit.is_some() { self.limit_of(self.total(device)) } else { u64::MAX };
            let more = |held: u64| held.checked_add(bytes).filter(|&held| held <= limit);
            books.held.fetch_update(Relaxed, Relaxed, more).ok()?;
        }
        books.figures[kind as usize].bytes.fetch_add(bytes, Relaxed);
        Some(Charge { ledger: self, device, kind, bytes })
    }

    /// Charges what cannot be refused.
    pub(crate) fn charge_anyway(&self, device: usize, kind: Kind, bytes: u64) -> Charge<'_> {
        let device = device.min(DEVICES - 1);
        self.add(device, kind, bytes);
        Charge { ledger: self, device, kind, bytes }
    }

    /// Strikes out what [`Charge::keep`] kept.
    pub(crate) fn strike(&self, device: usize, kind: Kind, bytes: u64) {
        let device = device.min(DEVICES - 1);
        self.sub(device, kind, bytes);
        self.books[device].figures[kind as usize].count.fetch_sub(1, Relaxed);
    }

    fn add(&self, device: usize, kind: Kind, bytes: u64) {
        let books = &self.books[device];
        books.figures[kind as usize].bytes.fetch_add(bytes, Relaxed);
        if kind.is_device_memory() {
            books.held.fetch_add(bytes, Relaxed);
        }
    }

    fn sub(&self, device: usize, kind: Kind, bytes: u64) {
        let books = &self.books[device];
        books.figures[kind as usize].bytes.fetch_sub(bytes, Relaxed);
        if kind.is_device_memory() {
            books.held.fetch_sub(bytes, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_over_all_kinds_of_device_memory() {
        let ledger = Ledger::new(Some(Limit::Bytes(stratalloc::ByteSize(1000))));
        ledger.set_total(3, 4000);
        let first = ledger.charge(3, Kind::Plain, 600).unwrap();
        assert!(ledger.charge(3, Kind::Array, 401).is_none());
        assert!(ledger.charge(3, Kind::Array, u64::MAX).is_none(), "no overflow");
        let pinned = ledger.charge(3, Kind::Pinned, 5000).unwrap();
        let second = ledger.charge(3, Kind::Array, 400).unwrap();
        assert_eq!(ledger.held(3), 1000);
        drop(first);
        assert_eq!((ledger.held(3), ledger.figure(3, Kind::Plain)), (400, (0, 0)));
        second.keep_as(Object::Array(7), 0);
        pinned.keep();
        assert_eq!((ledger.figure(3, Kind::Array), ledger.figure(3, Kind::Pinned)), ((400, 1), (5000, 1)));
        assert_eq!(ledger.giving_back(Object::Array(7), || 1), 1, "refused, so it is still there");
        assert_eq!(ledger.figure(3, Kind::Array), (400, 1));
        for _ in 0..2 {
            assert_eq!(ledger.giving_back(Object::Array(7), || 0), 0);
        }
        assert_eq!((ledger.held(3), ledger.figure(3, Kind::Array)), (0, (0, 0)));
    }

    #[test]
    fn a_name_that_is_given_out_again_during_the_call_is_the_new_owners() {
        let ledger = Ledger::new(None);
        let object = Object::Pointer(0x1000);
        ledger.charge(0, Kind::Plain, 100).unwrap().keep_as(object, 0);
        ledger.giving_back(object, || {
            // Another thread is given the address, between the driver's work and this thread's next step.
            ledger.charge(0, Kind::Plain, 7).unwrap().keep_as(object, 0);
            0
        });
        assert_eq!(ledger.figure(0, Kind::Plain), (7, 1));
        ledger.giving_back(object, || 0);
        assert_eq!((ledger.figure(0, Kind::Plain), ledger.held(0)), ((0, 0), 0));
    }

    #[test]
    fn kinds_are_numbered_in_the_order_of_the_list() {
        for (index, (kind, _)) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
