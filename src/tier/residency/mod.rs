//! Evictable blocks: where their bytes are, and what moves them.
//!
//! A block keeps its address for as long as it lives. Its bytes go to a tier and come back with the **extent** that it lies in, a range
//! of addresses outside of the arenas; when they have gone, the extent's chunks serve anybody. Whoever uses a block holds a pin, which has it
//! there and keeps it there.
//!
//! | file | what |
//! |---|---|
//! | `stage` | the states of an extent, and which may follow which |
//! | `table` | the blocks, and the extents that they lie in |
//! | `gaps` | free ranges in an extent |
//! | `objects` | allocating, freeing, recording |
//! | `evict` | bytes go to a tier |
//! | `restore` | bytes come back, and stay while they are pinned |
//! | `pins` | pins as values |
//! | `sleep` | all of a device's blocks, by tag |
//! | `stash` | bytes without an address of their own |
//! | `settle` | what transfers that have ended change |
//! | `stats` | the numbers |
//!
//! One lock guards the table. Nothing is waited for under it: a call that has to wait says what for, gives the lock up, waits, and looks again. It
//! **holds** the extent meanwhile, so that its number is not used again. Locked before the pool; observers and callbacks are called
//! without it.

mod evict;
mod gaps;
mod objects;
mod pins;
mod restore;
mod settle;
mod sleep;
mod stage;
mod stash;
mod stats;
mod table;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Condvar;

use super::codec::Codec;
use super::policy::VictimPolicy;
use super::transfer::{Engine, Place, Transfer, words_of};
use super::{Tier, TierError};
use crate::cache::{DeviceCache, Stamp};
use crate::error::{ResidencyError, Result};
use crate::sync::{Mutex, MutexGuard};
use crate::units::{DevicePtr, StreamId};

pub use pins::PinGuard;
pub use sleep::{SleepAction, SleepPlan};
pub use stage::Residency;
pub use stash::Stash;
use stats::Counts;
pub use stats::{TierStats, TierUse};
use table::{ExtentId, Table};

/// Computes a block again: its pointer, its bytes, and the stream to submit the work to. The allocator may be called from it.
pub type Recompute = Arc<dyn Fn(DevicePtr, u64, StreamId) -> std::result::Result<(), String> + Send + Sync>;

/// How a block may be evicted.
#[derive(Clone)]
#[non_exhaustive]
pub struct Evictable {
    /// What its bytes are stored as; as they are, where there is none.
    pub codec: Option<Arc<dyn Codec>>,
    /// Computes it again. Its bytes are then dropped instead of stored, where that costs no more than having them back.
    pub recompute: Option<Recompute>,
    /// How long that takes, in nanoseconds; unknown, it is taken to cost less than any transfer.
    pub recompute_ns: Option<u64>,
    /// The fastest tier that it may go to, by its name; any, where there is none.
    pub tier: Option<String>,
    /// Whether it may go whenever room is needed, while nobody has pinned it. Where not, it goes only when it is asked to.
    pub automatic: bool,
}

impl Default for Evictable {
    fn default() -> Evictable {
        Evictable { codec: None, recompute: None, recompute_ns: None, tier: None, automatic: true }
    }
}

impl fmt::Debug for Evictable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Evictable { codec, recompute, recompute_ns, tier, automatic } = self;
        let mut told = f.debug_struct("Evictable");
        told.field("codec", codec).field("recompute", &recompute.is_some());
        told.field("recompute_ns", recompute_ns).field("tier", tier).field("automatic", automatic).finish()
    }
}

impl Evictable {
    /// To be stored by this codec.
    pub fn codec(mut self, codec: Arc<dyn Codec>) -> Evictable {
        self.codec = Some(codec);
        self
    }

    /// To be computed again by this callback, which takes about so long, where that is known.
    pub fn recompute(mut self, recompute: Recompute, takes_ns: Option<u64>) -> Evictable {
        (self.recompute, self.recompute_ns) = (Some(recompute), takes_ns);
        self
    }

    /// To go to this tier, or to a slower one.
    pub fn tier(mut self, name: impl Into<String>) -> Evictable {
        self.tier = Some(name.into());
        self
    }

    /// Only when it is asked to: for memory that is used without pins.
    pub fn on_request_only(mut self) -> Evictable {
        self.automatic = false;
        self
    }
}

/// Which evictable blocks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The one at this address, with those that share its memory.
    Ptr(DevicePtr),
    /// Those of a tag, by its number.
    Tag(u8),
    /// All of them.
    All,
}

/// What happens to a block's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryChange {
    /// It is about to be taken: registrations of it are to be given up, and nothing may write to it from now on.
    Unmapping {
        /// The block.
        ptr: DevicePtr,
        /// Its bytes, as requested.
        size: u64,
    },
    /// It is there, after [`MemoryChange::Unmapping`]: other memory than before, unless the block stayed after all.
    Remapped {
        /// The block.
        ptr: DevicePtr,
        /// Its bytes, as requested.
        size: u64,
    },
}

/// Is told when memory of evictable blocks comes and goes. Called with no lock held; it must not free, pin, offload or restore the block it is
/// told of.
pub type ResidencyObserver = Arc<dyn Fn(&MemoryChange) + Send + Sync>;

/// What a tier is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TierKind {
    /// Pinned memory of the host.
    Host,
    /// Files.
    Disk,
    /// Memory of another device.
    Peer,
    /// The user's own.
    Custom,
}

/// A tier of a device.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) tier: Arc<dyn Tier>,
    pub(crate) kind: TierKind,
}

/// What a call has to wait for before it looks again.
enum Wait {
    /// Somebody else, who has the extent in hand.
    Others,
    /// A transfer.
    Transfer(Transfer),
    /// Streams.
    Streams(Vec<Stamp>),
    /// That fewer transfers are under way.
    Room,
}

/// The evictable blocks of one device, and its tiers.
pub(crate) struct Tiers {
    // Dropped in this order: places before the engine, that before the tiers, and the device's memory last.
    table: Mutex<Table>,
    engine: Engine,
    stores: Vec<Store>,
    /// Whether only what has been wanted back before may push others out of a tier.
    selective: bool,
    changed: Condvar,
    observers: Mutex<Vec<(u64, ResidencyObserver)>>,
    counts: Counts,
    /// How many blocks there are, so that nobody takes the lock where there are none.
    blocks: AtomicU64,
    unit: u64,
    device: Arc<DeviceCache>,
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiers").field("stores", &self.stores).field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

/// Shared extents are this part of the device's limit, 1/256, within bounds.
const SHARED_SHIFT: u32 = 8;
const SHARED_MAX: u64 = 32 << 20;

impl Tiers {
    /// The fastest tier comes first.
    pub(crate) fn new(
        device: Arc<DeviceCache>,
        engine: Engine,
        stores: Vec<Store>,
        policy: Box<dyn VictimPolicy>,
        selective: bool,
    ) -> Tiers {
        let unit = device.unit();
        Tiers {
            table: Mutex::new(Table::new(policy, stores.len())),
            counts: Counts::new(stores.len()),
            engine,
            stores,
            selective,
            changed: Condvar::new(),
            observers: Mutex::default(),
            blocks: AtomicU64::new(0),
            unit,
            device,
        }
    }

    /// Whether there is any evictable block.
    pub(crate) fn has_blocks(&self) -> bool {
        self.blocks.load(Relaxed) > 0
    }

    /// What extents that are shared are at least, in bytes.
    fn shared_bytes(&self) -> u64 {
        let part = (self.device.limit() >> SHARED_SHIFT).min(SHARED_MAX);
        part.checked_ilog2().map_or(0, |log| 1 << log).max(self.unit)
    }

    /// The device.
    pub(crate) fn device(&self) -> &DeviceCache {
        &self.device
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    #[cold]
    fn no_such_tier(&self, name: &str) -> TierError {
        let known: Vec<&str> = self.stores.iter().map(|store| store.tier.name()).collect();
        let reason = format!("there is none of that name; there are {}", known.join(", "));
        TierError::Unusable { tier: name.to_string(), reason }
    }

    /// Adds an observer.
    pub(crate) fn observe(&self, number: u64, observer: ResidencyObserver) {
        self.observers.lock().push((number, observer));
    }

    /// Removes an observer. Whether there was one of that number.
    pub(crate) fn forget_observer(&self, number: u64) -> bool {
        let mut observers = self.observers.lock();
        let before = observers.len();
        observers.retain(|&(other, _)| other != number);
        observers.len() < before
    }

    fn is_observed(&self) -> bool {
        !self.observers.lock().is_empty()
    }

    /// Tells observers. No lock is held. Whether none of them panicked.
    fn tell(&self, changes: &[MemoryChange]) -> bool {
        let observers: Vec<ResidencyObserver> = self.observers.lock().iter().map(|(_, o)| o.clone()).collect();
        let told = catch_unwind(AssertUnwindSafe(|| {
            changes.iter().for_each(|change| observers.iter().for_each(|observer| observer(change)));
        }));
        told.is_ok()
    }

    fn changes_of(&self, table: &Table, id: ExtentId, unmapping: bool) -> Vec<MemoryChange> {
        let of = |(ptr, size)| match unmapping {
            true => MemoryChange::Unmapping { ptr, size },
            false => MemoryChange::Remapped { ptr, size },
        };
        table.objects_in(id).map(|(ptr, object)| of((ptr, object.requested))).collect()
    }

    /// The table, with all transfers that have ended taken note of.
    fn lock(&self) -> MutexGuard<'_, Table> {
        let mut table = self.table.lock();
        self.settle(&mut table);
        table
    }

    /// Tells observers what has come back, then gives the lock up.
    fn unlock(&self, mut table: MutexGuard<'_, Table>) {
        self.tell_remapped(&mut table);
    }

    /// Tells observers what has come back. Until they know, nobody tells them that it goes again.
    fn tell_remapped(&self, table: &mut MutexGuard<'_, Table>) {
        while !table.remapped.is_empty() {
            let ids = std::mem::take(&mut table.remapped);
            let changes: Vec<MemoryChange> = ids.iter().flat_map(|&id| self.changes_of(table, id, false)).collect();
            ids.iter().for_each(|&id| table.extent_mut(id).telling += 1);
            MutexGuard::unlocked(table, || self.tell(&changes));
            for id in ids {
                table.extent_mut(id).telling -= 1;
                self.let_go(table, id);
            }
            self.changed.notify_all();
        }
    }

    /// Does something without the lock, holding an extent.
    fn without_lock<T>(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId, work: impl FnOnce() -> T) -> T {
        table.extent_mut(id).held += 1;
        let start = self.device.clock_ns();
        let result = MutexGuard::unlocked(table, work);
        self.counts.stalled(self.device.clock_ns().saturating_sub(start));
        self.settle(table);
        self.let_go(table, id);
        result
    }

    /// Waits, holding an extent.
    fn wait_for(&self, table: &mut MutexGuard<'_, Table>, id: ExtentId, wait: Wait) -> Result<()> {
        match wait {
            Wait::Others => {
                table.extent_mut(id).held += 1;
                self.changed.wait(table);
                self.settle(table);
                self.let_go(table, id);
                Ok(())
            }
            // How it ended is found by whoever settles it: until then, what comes of it is kept here.
            Wait::Transfer(transfer) => match self.without_lock(table, id, || transfer.wait()) {
                // A capture, during which nobody can say.
                Err(error) if transfer.poll().is_none() => Err(error.into()),
                _ => Ok(()),
            },
            Wait::Room => Ok(self.without_lock(table, id, || self.engine.wait_for_room(1))?),
            Wait::Streams(stamps) => self.without_lock(table, id, || self.device.have_passed(&stamps, true)).map(drop),
        }
    }

    /// Where in the list of tiers a place is.
    fn tier_of(&self, place: &Place) -> usize {
        let at = self.stores.iter().position(|store| Arc::ptr_eq(&store.tier, place.tier()));
        at.expect("places are made in these tiers")
    }

    /// Where the bytes of a block are.
    pub(crate) fn residency(&self, ptr: DevicePtr) -> Result<Residency> {
        let table = self.lock();
        let id = table.object(ptr)?.extent;
        let stage = &table.extent(id).stage;
        let residency = match stage {
            stage::Stage::Resident | stage::Stage::Leaving => Residency::Resident,
            stage::Stage::Evicting { .. } | stage::Stage::Dropping { .. } => Residency::Evicting,
            stage::Stage::Spilling { .. } => Residency::Spilling,
            stage::Stage::Away { place } => match self.stores[self.tier_of(place)].kind {
                TierKind::Host => Residency::Host,
                TierKind::Disk => Residency::Disk,
                TierKind::Peer => Residency::Peer,
                TierKind::Custom => Residency::Custom,
            },
            stage::Stage::Filled { .. } | stage::Stage::Restoring { .. } | stage::Stage::Recomputing => {
                Residency::Restoring
            }
            stage::Stage::Dropped | stage::Stage::Blank => Residency::Dropped,
        };
        self.unlock(table);
        Ok(residency)
    }

    /// Checks every structure. Exact when no call is under way.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        let table = self.lock();
        let checked = table.validate();
        self.unlock(table);
        checked
    }
}

/// The first of what failed.
fn keep_first(slot: &mut Option<TierError>, error: TierError) {
    slot.get_or_insert(error);
}

/// A tier failure on the way to something else.
fn not_evictable(ptr: DevicePtr) -> ResidencyError {
    ResidencyError::NotEvictable { ptr }
}
