//! The evictable blocks of a device, and the extents that they lie in.
//!
//! Bytes are moved by the extent. A block whose size, rounded up to whole chunks, wastes at most an eighth has one of its own. Smaller ones share
//! extents with others of the same stream, tag and manner: moved one by one they would cost a copy each, and free nothing before
//! the last of them had gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::ThreadId;

use super::gaps::{Gaps, granules};
use super::stage::Stage;
use super::{Evictable, Place, Recompute};
use crate::cache::Stamp;
use crate::error::{ResidencyError, TierError};
use crate::tier::codec::Codec;
use crate::tier::policy::{Item, VictimPolicy};
use crate::units::{DevicePtr, GRANULE, StreamId};

/// An extent's number, used again when it has gone.
pub(super) type ExtentId = u32;

/// One evictable block.
pub(super) struct Object {
    pub(super) requested: u64,
    pub(super) extent: ExtentId,
    pub(super) pins: u32,
    pub(super) recompute: Option<Recompute>,
}

/// What blocks must have in common to share an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manner {
    pub(super) stream: StreamId,
    pub(super) tag: u8,
    /// Which codec, as a number that means nothing else.
    codec: usize,
    pub(super) recompute: bool,
    pub(super) automatic: bool,
    /// Where in the list of tiers the first is that it may go to.
    pub(super) first_tier: usize,
}

impl Manner {
    pub(super) fn of(stream: StreamId, tag: u8, how: &Evictable, first_tier: usize) -> Manner {
        let codec = how.codec.as_ref().map_or(0, |codec| Arc::as_ptr(codec).cast::<()>() as usize);
        Manner { stream, tag, codec, recompute: how.recompute.is_some(), automatic: how.automatic, first_tier }
    }
}

/// A freed range that other streams may still use.
#[derive(Debug)]
struct Freed {
    start: u32,
    size: u32,
    stamps: Vec<Stamp>,
}

/// A range of addresses whose bytes move together.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) addr: u64,
    pub(super) size: u64,
    pub(super) manner: Manner,
    pub(super) codec: Option<Arc<dyn Codec>>,
    /// What computing all of it again takes, in nanoseconds, as far as its owners say.
    pub(super) recompute_ns: Option<u64>,
    pub(super) stage: Stage,
    /// None where one block has all of it.
    gaps: Option<Gaps>,
    freed: Vec<Freed>,
    pub(super) objects: u32,
    pub(super) pins: u32,
    /// Streams besides the home stream that have used it since its memory came.
    pub(super) users: Vec<StreamId>,
    /// Those of them that do so without pins: only what they have been given to do by now says when they are done.
    pub(super) recorded: Vec<StreamId>,
    /// What its streams had been given to do when the last pin was taken off, and when its memory came.
    pub(super) used: Vec<Stamp>,
    /// A transfer out of it has failed, and nobody can say whether its copies still read it: streams that use it next come after them.
    pub(super) is_read: bool,
    /// The thread that is having it computed again: it would wait for itself.
    pub(super) computing: Option<ThreadId>,
    /// What the home stream had been given to do when it had been computed again.
    pub(super) computed: Vec<Stamp>,
    /// What has to pass before memory that was filled in vain may go, and before anything is brought there.
    pub(super) busy: Vec<Stamp>,
    /// Calls under way that come back to it.
    pub(super) held: u32,
    /// Threads that are telling observers that it is back.
    pub(super) telling: u32,
    /// Whether sleep has put it away, and whether it had been resident.
    pub(super) slept: Option<bool>,
    /// Whether its bytes have been wanted back before.
    pub(super) returned: bool,
    /// Why it could not be moved the last time.
    pub(super) failure: Option<Box<TierError>>,
    /// When it went to the tier that it is in.
    pub(super) since: u64,
}

impl Extent {
    /// What its codec takes together.
    pub(super) fn grain(&self) -> u64 {
        self.codec.as_ref().map_or(1, |codec| codec.grain())
    }

    /// Granules that a block of so many bytes takes here.
    fn taken(&self, size: u64) -> u32 {
        granules(size).next_multiple_of(granules(self.grain()))
    }

    /// Work on a stream uses it from now on. Where its memory is not there, nothing does.
    pub(super) fn used_by(&mut self, stream: StreamId) {
        if self.stage.is_mapped() && self.manner.stream != stream && !self.users.contains(&stream) {
            self.users.push(stream);
        }
    }

    /// [`Extent::used_by`], without pins.
    pub(super) fn recorded_on(&mut self, stream: StreamId) {
        self.used_by(stream);
        if self.stage.is_mapped() && !self.recorded.contains(&stream) {
            self.recorded.push(stream);
        }
    }

    /// What it is used for is over when these have passed, too.
    pub(super) fn used_until(&mut self, stamps: &[Stamp]) {
        for &(clock, stamp) in stamps {
            match self.used.iter_mut().find(|(known, _)| *known == clock) {
                Some((_, known)) => *known = stamp.max(*known),
                None => self.used.push((clock, stamp)),
            }
        }
    }

    /// Whether its bytes are there, and nobody has pinned them.
    pub(super) fn may_go(&self) -> bool {
        self.pins == 0 && matches!(self.stage, Stage::Resident)
    }
}

/// What the lock guards.
pub(super) struct Table {
    pub(super) objects: BTreeMap<u64, Object>,
    extents: Vec<Option<Extent>>,
    vacant: Vec<ExtentId>,
    /// Resident shared extents with free ranges, by the largest.
    open: BTreeMap<Manner, BTreeSet<(u32, ExtentId)>>,
    pub(super) policy: Box<dyn VictimPolicy>,
    /// Extents that are on their way.
    pub(super) moving: BTreeSet<ExtentId>,
    /// Extents that are away, by tier, the first that went first.
    pub(super) parked: Vec<BTreeSet<(u64, ExtentId)>>,
    pub(super) now: u64,
    pub(super) asleep: bool,
    /// Blocks that have come back, which observers are to be told.
    pub(super) remapped: VecDeque<ExtentId>,
    pub(super) pinned_bytes: u64,
    /// So many bytes go ahead of need when the next request finds no room.
    pub(super) ahead: u64,
    /// Places that are wanted no more once streams have passed these stamps: copies may read them until then.
    pub(super) read_still: Vec<(Vec<Stamp>, Arc<Place>)>,
}

impl Table {
    pub(super) fn new(policy: Box<dyn VictimPolicy>, tiers: usize) -> Table {
        Table {
            objects: BTreeMap::new(),
            extents: Vec::new(),
            vacant: Vec::new(),
            open: BTreeMap::new(),
            policy,
            moving: BTreeSet::new(),
            parked: vec![BTreeSet::new(); tiers],
            now: 0,
            asleep: false,
            remapped: VecDeque::new(),
            pinned_bytes: 0,
            ahead: 0,
            read_still: Vec::new(),
        }
    }

    pub(super) fn extent(&self, id: ExtentId) -> &Extent {
        self.extents[id as usize].as_ref().expect("extents that are named exist")
    }

    pub(super) fn extent_mut(&mut self, id: ExtentId) -> &mut Extent {
        self.extents[id as usize].as_mut().expect("extents that are named exist")
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = (ExtentId, &Extent)> {
        (0..).zip(&self.extents).filter_map(|(id, extent)| Some((id, extent.as_ref()?)))
    }

    pub(super) fn object(&self, ptr: DevicePtr) -> Result<&Object, ResidencyError> {
        self.objects.get(&ptr.0).ok_or(ResidencyError::NotEvictable { ptr })
    }

    /// The blocks in an extent, with their addresses.
    pub(super) fn objects_in(&self, id: ExtentId) -> impl Iterator<Item = (DevicePtr, &Object)> {
        let Extent { addr, size, .. } = *self.extent(id);
        self.objects.range(addr..addr + size).map(|(&ptr, object)| (DevicePtr(ptr), object))
    }

    /// A place for a block in an extent that is there and shared.
    pub(super) fn place(
        &mut self,
        manner: &Manner,
        size: u64,
        alignment: u64,
        passed: &mut dyn FnMut(&[Stamp]) -> bool,
    ) -> Option<(ExtentId, DevicePtr)> {
        let set = self.open.get(manner)?;
        let wanted = set.first().map_or(0, |&(_, id)| self.extent(id).taken(size));
        let fits: Vec<ExtentId> = set.range((wanted, 0)..).map(|&(_, id)| id).take(8).collect();
        fits.into_iter().find_map(|id| {
            self.collect_freed(id, passed);
            Some((id, self.place_in(id, size, alignment)?))
        })
    }

    /// A place for a block in this extent.
    pub(super) fn place_in(&mut self, id: ExtentId, size: u64, alignment: u64) -> Option<DevicePtr> {
        let extent = self.extent_mut(id);
        let (wanted, grain) = (extent.taken(size), granules(extent.grain()));
        let alignment = ((alignment / GRANULE) as u32).max(grain);
        let before = extent.gaps.as_ref().map_or(0, Gaps::largest);
        let at = extent.gaps.as_mut()?.take(wanted, alignment)?;
        let ptr = DevicePtr(extent.addr + u64::from(at) * GRANULE);
        self.reopen(id, before);
        Some(ptr)
    }

    /// Freed ranges whose streams have passed are free again.
    fn collect_freed(&mut self, id: ExtentId, passed: &mut dyn FnMut(&[Stamp]) -> bool) {
        let extent = self.extent_mut(id);
        if extent.freed.is_empty() {
            return;
        }
        let before = extent.gaps.as_ref().map_or(0, Gaps::largest);
        let Extent { freed, gaps, .. } = extent;
        freed.retain(|range| {
            let over = passed(&range.stamps);
            if let Some(gaps) = gaps.as_mut().filter(|_| over) {
                gaps.give(range.start, range.size);
            }
            !over
        });
        self.reopen(id, before);
    }

    /// The largest free range of an extent has changed.
    fn reopen(&mut self, id: ExtentId, before: u32) {
        let extent = self.extent(id);
        let (manner, is_there) = (extent.manner, matches!(extent.stage, Stage::Resident));
        let Some(after) = extent.gaps.as_ref().map(Gaps::largest) else { return };
        let open = self.open.entry(manner).or_default();
        open.remove(&(before, id));
        if is_there && after > 0 {
            open.insert((after, id));
        }
        if open.is_empty() {
            self.open.remove(&manner);
        }
    }

    /// A new extent, whose memory is there.
    pub(super) fn add_extent(
        &mut self,
        addr: u64,
        size: u64,
        manner: Manner,
        how: &Evictable,
        shared: bool,
    ) -> ExtentId {
        let extent = Extent {
            addr,
            size,
            manner,
            codec: how.codec.clone(),
            recompute_ns: how.recompute.as_ref().and(how.recompute_ns),
            stage: Stage::Resident,
            gaps: shared.then(|| Gaps::new(granules(size))),
            freed: Vec::new(),
            objects: 0,
            pins: 0,
            users: Vec::new(),
            recorded: Vec::new(),
            used: Vec::new(),
            is_read: false,
            returned: false,
            computing: None,
            computed: Vec::new(),
            busy: Vec::new(),
            held: 0,
            telling: 0,
            slept: None,
            failure: None,
            since: 0,
        };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.extents[id as usize] = Some(extent);
                id
            }
            None => {
                self.extents.push(Some(extent));
                self.extents.len() as ExtentId - 1
            }
        };
        let item = self.item(id);
        self.policy.insert(u64::from(id), item);
        self.reopen(id, 0);
        id
    }

    /// What the policy is to know. Time is what the slowest link of today's machines would take: it is compared, never waited for.
    fn item(&self, id: ExtentId) -> Item {
        let extent = self.extent(id);
        Item {
            size: extent.size,
            frees: extent.size,
            transfer_ns: transfer_ns(extent.size),
            recompute_ns: extent.recompute_ns.filter(|_| extent.manner.recompute),
        }
    }

    /// Extents that are to go so that so many bytes become free, as far as they may.
    pub(super) fn victims(&mut self, bytes: u64, may_go: &dyn Fn(ExtentId, &Extent) -> bool) -> Vec<ExtentId> {
        let Table { policy, extents, .. } = self;
        let mut may_go = |key: u64| {
            let extent = extents.get(key as usize).and_then(Option::as_ref);
            extent.is_some_and(|extent| may_go(key as ExtentId, extent))
        };
        policy.victims(bytes, &mut may_go).into_iter().map(|key| key as ExtentId).collect()
    }

    pub(super) fn add_object(&mut self, id: ExtentId, ptr: DevicePtr, requested: u64, how: &Evictable) {
        let object = Object { requested, extent: id, pins: 0, recompute: how.recompute.clone() };
        self.objects.insert(ptr.0, object);
        let extent = self.extent_mut(id);
        extent.objects += 1;
        if extent.gaps.is_some() && extent.objects > 1 {
            // All of them have to be computed again.
            extent.recompute_ns = extent.recompute_ns.zip(how.recompute_ns).map(|(sum, more)| sum + more);
        }
        self.policy.touch(u64::from(id));
    }

    /// Takes a block out. Its range may be used again by the home stream at once, and has to wait for `stamps`.
    pub(super) fn remove_object(&mut self, ptr: DevicePtr, stamps: Vec<Stamp>) -> Option<Object> {
        let object = self.objects.remove(&ptr.0)?;
        let id = object.extent;
        let extent = self.extent_mut(id);
        extent.objects -= 1;
        let (start, size) = (granules(ptr.0 - extent.addr), extent.taken(object.requested));
        if let Some(gaps) = &mut extent.gaps {
            let before = gaps.largest();
            if stamps.is_empty() {
                gaps.give(start, size);
            } else {
                extent.freed.push(Freed { start, size, stamps });
            }
            self.reopen(id, before);
        }
        Some(object)
    }

    /// The bytes that may be used at a block's pointer.
    pub(super) fn usable(&self, object: &Object) -> u64 {
        let extent = self.extent(object.extent);
        if extent.gaps.is_none() { extent.size } else { u64::from(extent.taken(object.requested)) * GRANULE }
    }

    /// An extent's bytes are elsewhere now, or on their way.
    pub(super) fn set_stage(&mut self, id: ExtentId, stage: Stage, tier: Option<usize>) {
        let extent = self.extent_mut(id);
        assert!(extent.stage.may_become(&stage), "{:?} does not become {stage:?}", extent.stage);
        let was_there =
            matches!(extent.stage, Stage::Resident | Stage::Leaving | Stage::Evicting { .. } | Stage::Dropping { .. });
        let is_there =
            matches!(stage, Stage::Resident | Stage::Leaving | Stage::Evicting { .. } | Stage::Dropping { .. });
        let parks = matches!(stage, Stage::Away { .. });
        let moves = stage.is_moving();
        extent.stage = stage;
        if !extent.stage.is_mapped() {
            extent.users.clear();
            extent.recorded.clear();
            extent.used.clear();
            extent.is_read = false;
            extent.computed.clear();
            // No stream touches what has been taken away.
            let (freed, gaps) = (std::mem::take(&mut extent.freed), &mut extent.gaps);
            if let Some(gaps) = gaps {
                freed.iter().for_each(|range| gaps.give(range.start, range.size));
            }
        }
        let (since, largest) = (extent.since, extent.gaps.as_ref().map_or(0, Gaps::largest));
        self.parked.iter_mut().for_each(|parked| _ = parked.remove(&(since, id)));
        if parks && let Some(tier) = tier {
            self.now += 1;
            self.extent_mut(id).since = self.now;
            self.parked[tier].insert((self.now, id));
        }
        if moves {
            self.moving.insert(id)
        } else {
            self.moving.remove(&id)
        };
        match (was_there, is_there) {
            (true, false) => self.policy.evicted(u64::from(id)),
            (false, true) => {
                let item = self.item(id);
                self.policy.insert(u64::from(id), item);
            }
            _ => {}
        }
        self.reopen(id, largest);
    }

    /// Takes an extent out in which nothing lies and to which nobody comes back.
    pub(super) fn remove_extent(&mut self, id: ExtentId) -> Extent {
        let extent = self.extents[id as usize].take().expect("extents that are named exist");
        let largest = extent.gaps.as_ref().map_or(0, Gaps::largest);
        if let Some(open) = self.open.get_mut(&extent.manner) {
            open.remove(&(largest, id));
            if open.is_empty() {
                self.open.remove(&extent.manner);
            }
        }
        self.parked.iter_mut().for_each(|parked| _ = parked.remove(&(extent.since, id)));
        self.moving.remove(&id);
        self.policy.remove(u64::from(id));
        self.vacant.push(id);
        extent
    }

    /// Host memory that blocks and extents take, in bytes: about.
    pub(super) fn metadata_bytes(&self) -> u64 {
        // A node of a B-tree is at least half full.
        let object = (size_of::<u64>() + size_of::<Object>()) * 3 / 2;
        let extent = size_of::<Option<Extent>>() + size_of::<[u64; 8]>();
        (self.objects.len() * object + self.extents.len() * extent) as u64
    }

    /// Checks that blocks lie in their extents, do not overlap, and are all counted.
    pub(super) fn validate(&self) -> Result<(), String> {
        let mut end = 0;
        for (&ptr, object) in &self.objects {
            let extent = self.extents.get(object.extent as usize).and_then(Option::as_ref);
            let extent = extent.ok_or_else(|| format!("block {ptr:#x} lies in no extent"))?;
            let usable = self.usable(object);
            if ptr < end || ptr < extent.addr || ptr + usable > extent.addr + extent.size {
                return Err(format!("block {ptr:#x} of {usable} bytes overlaps another, or its extent's end"));
            }
            end = ptr + usable;
        }
        for (id, extent) in self.extents() {
            let (objects, pins) =
                self.objects_in(id).fold((0, 0), |(count, pins), (_, object)| (count + 1, pins + object.pins));
            if (objects, pins) != (extent.objects, extent.pins) || (objects == 0 && extent.held == 0) {
                return Err(format!("extent {id} has {objects} blocks and {pins} pins: {extent:?}"));
            }
            if pins > 0 && !matches!(extent.stage, Stage::Resident | Stage::Restoring { .. } | Stage::Filled { .. }) {
                return Err(format!("extent {id} is pinned, and not there: {extent:?}"));
            }
            if let Some(gaps) = &extent.gaps {
                gaps.validate()?;
            }
            let is_open = self.open.get(&extent.manner).is_some_and(|open| open.iter().any(|&(_, open)| open == id));
            let largest = extent.gaps.as_ref().map_or(0, Gaps::largest);
            if is_open != (matches!(extent.stage, Stage::Resident) && largest > 0) {
                return Err(format!("extent {id} is open: {is_open}: {extent:?}"));
            }
            let parked = self.parked.iter().filter(|parked| parked.contains(&(extent.since, id))).count();
            if parked != usize::from(matches!(extent.stage, Stage::Away { .. }))
                || self.moving.contains(&id) != extent.stage.is_moving()
            {
                return Err(format!("extent {id} is parked {parked} times: {extent:?}"));
            }
        }
        let pinned: u64 = self.extents().filter(|(_, extent)| extent.pins > 0).map(|(_, extent)| extent.size).sum();
        if pinned != self.pinned_bytes {
            return Err(format!("{pinned} bytes pinned, {} counted", self.pinned_bytes));
        }
        Ok(())
    }
}

/// What having bytes back takes over a link of 20 GB/s.
pub(super) fn transfer_ns(bytes: u64) -> u64 {
    bytes / 20
}
