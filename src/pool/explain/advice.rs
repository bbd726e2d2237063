//! What could be done about a shortage, cheapest first, and the verdict that follows from it.

use super::map::{Assume, Waited};
use super::scene::Scene;
use crate::block::Owner;
use crate::config::StreamWait;
use crate::driver::DriverErrorKind;
use crate::error::{DriverError, OomAdvice, OomBlock, OomCause, OomExplanation, OomRemedy, OomRequest};
use crate::pool::{Kind, LARGE, SMALL_MAX, Want};
use crate::units::{GRANULE, PAGE, align_down, align_up};

/// What others hold of a device is not worth a word below this part: 1/64. A context alone takes some hundred MiB.
const ELSEWHERE_SHIFT: u32 = 6;
/// Blocks that keep free memory apart are pins if they are less than this part of the request: 1/8.
const PINS_SHIFT: u32 = 3;
/// Pieces that a request may be split into.
const PIECES: [u64; 4] = [2, 3, 4, 8];

fn advice(remedy: OomRemedy, frees: u64, suffices: bool) -> OomAdvice {
    OomAdvice { remedy, frees, suffices }
}

/// For a request whose block, of so many bytes, is larger than the limit.
pub(super) fn of_never(told: &OomExplanation, limit: u64, block: u64) -> Vec<OomAdvice> {
    let mut list = Vec::new();
    let block = align_up(block, told.chunk).unwrap_or(u64::MAX);
    if block <= told.capacity && limit < told.capacity {
        // All that is held may be in use.
        let to = told.reserved.saturating_add(block).min(told.capacity);
        let room = (to - told.reserved).min(told.device_free.unwrap_or(told.capacity));
        list.push(advice(OomRemedy::RaiseLimit(to), to - limit, room >= block));
    }
    let most = align_down(limit, PAGE);
    list.push(advice(OomRemedy::AskForLess(most), 0, most > 0 && told.reserved == 0));
    sort(&mut list);
    list
}

/// What would suffice first, of that the cheapest.
fn sort(list: &mut [OomAdvice]) {
    list.sort_by(|a, b| (!a.suffices, &a.remedy).cmp(&(!b.suffices, &b.remedy)));
}

/// For a request that would take its tag over the tag's limit. `idle` bytes are free for anyone.
pub(super) fn of_tag_limit(
    told: &OomExplanation,
    limit: u64,
    idle: u64,
    in_use: u64,
    tag_limit: u64,
) -> Vec<OomAdvice> {
    let (size, tag) = (told.request.size, told.request.tag);
    let to = in_use.saturating_add(size);
    let room = limit.saturating_sub(told.reserved).min(told.device_free.unwrap_or(0));
    // What is idle may lie in pieces.
    let there_is_room = align_up(size, told.chunk).is_some_and(|size| size <= room) || idle >= size.saturating_mul(2);
    let mut list = vec![advice(OomRemedy::RaiseTagLimit { tag, to }, to - tag_limit, there_is_room)];
    if in_use > 0 && size <= tag_limit {
        list.push(advice(OomRemedy::FreeTag(tag), in_use, there_is_room));
    }
    if tag_limit > in_use {
        list.push(advice(OomRemedy::AskForLess(tag_limit - in_use), 0, there_is_room));
    }
    list
}

/// What a failed driver call says of the cause, where it says anything.
fn cause_of(driver: Option<&DriverError>) -> Option<OomCause> {
    let driver = driver?;
    match (driver.kind, driver.call) {
        (DriverErrorKind::Sticky, _) => Some(OomCause::DriverDead),
        (DriverErrorKind::OutOfMemory, "cuMemMap" | "cuMemSetAccess") => Some(OomCause::Mappings),
        (DriverErrorKind::OutOfMemory, "cuMemAddressReserve") => Some(OomCause::Addresses),
        (DriverErrorKind::OutOfMemory, _) => None,
        (_, "mmap") => Some(OomCause::HostMemory),
        _ => Some(OomCause::DriverFailed),
    }
}

impl Scene<'_> {
    /// Fills in what could be done, and the verdict.
    pub(super) fn advise(&self, told: &mut OomExplanation, driver: Option<&DriverError>) {
        let hard = cause_of(driver);
        told.missing = self.extra();
        told.advice = match hard {
            Some(OomCause::DriverDead) => vec![advice(OomRemedy::Restart, 0, false)],
            Some(OomCause::DriverFailed) => vec![advice(OomRemedy::Retry, 0, false)],
            Some(OomCause::HostMemory) => vec![advice(OomRemedy::FreeHostMemory, 0, true)],
            Some(OomCause::Mappings) => self.for_mappings(),
            Some(OomCause::Addresses) => self.for_addresses(),
            _ => self.for_memory(told, driver.is_some()),
        };
        sort(&mut told.advice);
        told.cause = hard.unwrap_or_else(|| self.verdict(told));
    }

    fn verdict(&self, told: &OomExplanation) -> OomCause {
        let enough_in_pieces = self.in_pieces().saturating_add(self.room()) >= self.want.range().1;
        let in_pieces = || match (self.want.kind, self.vmm) {
            _ if told.free.slots >= told.free.own + told.free.shared => OomCause::FragmentedSlabs,
            (Kind::Dedicated { .. }, _) | (_, true) => OomCause::FragmentedChunks,
            (_, false) => OomCause::FragmentedSegments,
        };
        match told.remedy() {
            Some(OomRemedy::Retry) => OomCause::DriverRefused,
            Some(OomRemedy::Synchronize(_)) => OomCause::Streams,
            Some(OomRemedy::AllowGrowth) => OomCause::NoGrow,
            Some(OomRemedy::EndCapture) => OomCause::Capture,
            Some(OomRemedy::LowerAlignment(_)) => OomCause::Alignment,
            Some(OomRemedy::DropPersistent) => OomCause::Persistent,
            Some(OomRemedy::DropDedicated) => OomCause::Dedicated,
            Some(OomRemedy::LendPool(_) | OomRemedy::ReleasePool(_)) => OomCause::PrivatePool,
            Some(OomRemedy::RaiseLimit(_)) => OomCause::Limit,
            Some(OomRemedy::Configure { key: "chunk", .. }) => OomCause::ChunkSize,
            Some(OomRemedy::FreeElsewhere(_)) => OomCause::OtherProcesses,
            Some(OomRemedy::FreePins(_) | OomRemedy::Defragment) => in_pieces(),
            _ if enough_in_pieces => in_pieces(),
            _ => OomCause::InUse,
        }
    }

    /// What would have to be taken from the device in addition, if nothing else is done.
    fn extra(&self) -> u64 {
        let assume = self.as_is();
        let runs = self.map.runs(self.pool, self.state, &assume);
        let supply = self.supply(self.want, &runs, false, 0);
        let mut needed = self.needed(self.want);
        let (zone, size, alignment) = self.want.range();
        if self.vmm && !matches!(self.want.kind, Kind::Dedicated { .. }) && supply <= self.reserve() {
            // Nothing is left to be moved, so what lies beside holes stays there and counts.
            let (home, chunk) = (Owner(self.want.lane), self.state.space.unit());
            let usable = self.state.lanes.usable(self.want.lane);
            let growth = self.state.zones[zone].plan_growth(home, size, alignment, chunk, usable);
            needed = growth.map_or(needed, |growth| growth.bytes.min(needed));
        }
        needed.saturating_sub(supply)
    }

    fn reserve(&self) -> u64 {
        self.state.space.reserve_bytes()
    }

    /// What would make room, where it is memory that is missing.
    fn for_memory(&self, told: &OomExplanation, refused: bool) -> Vec<OomAdvice> {
        let mut list = Vec::new();
        let serves = |assume: &Assume<'_>| self.serves(self.want, assume, self.room());
        if refused && serves(&self.as_is()) {
            return vec![advice(OomRemedy::Retry, 0, true)];
        }
        self.add_waiting(&mut list);
        self.add_wishes(told, &mut list);
        self.add_pools(told, &mut list);
        if self.want.may_grow {
            self.add_device(told, &mut list);
        }
        self.add_meshes(&mut list);
        self.add_blocks(told, &mut list);
        let (zone, size, _) = self.want.range();
        if matches!(self.want.kind, Kind::Range { .. }) {
            // Smaller ones would be served elsewhere.
            let least = if zone == LARGE { SMALL_MAX } else { crate::block::CLASS_SIZE_MAX };
            let pieces = PIECES.map(|count| (count, align_up(size.div_ceil(count), GRANULE).unwrap_or(u64::MAX)));
            // Each piece has red zones of its own, if there are any.
            let fits =
                |&(count, piece): &(u64, u64)| piece > least && self.pieces(piece + self.pool.redzone()) >= count;
            if let Some((_, piece)) = pieces.into_iter().find(fits) {
                list.push(advice(OomRemedy::Split(piece), 0, true));
            }
        }
        let most = self.largest().saturating_sub(align_up(self.pool.redzone(), GRANULE).unwrap_or(0));
        if most > 0 {
            list.push(advice(OomRemedy::AskForLess(most), 0, true));
        }
        list
    }

    /// What only has to be waited for, or allowed.
    fn add_waiting(&self, list: &mut Vec<OomAdvice>) {
        let serves = |assume: &Assume<'_>| self.serves(self.want, assume, self.room());
        let clocks = self.clocks();
        if !self.capturing && !self.want.may_grow && !clocks.is_empty() {
            let all: Vec<u16> = clocks.iter().map(|&(clock, _)| clock).collect();
            let alone = all.iter().map(std::slice::from_ref);
            let with = |clocks| Assume { waited: Waited::Clocks(clocks), ..self.as_is() };
            let found = alone.chain([&all[..]]).find(|clocks| serves(&with(clocks)));
            let named = found.unwrap_or(&all);
            let bytes = clocks.iter().filter(|(clock, _)| named.contains(clock)).map(|&(_, bytes)| bytes).sum();
            let streams = named.iter().map(|&clock| self.clock_stream(clock)).collect();
            list.push(advice(OomRemedy::Synchronize(streams), bytes, found.is_some()));
        }
        if !self.want.may_grow {
            let freely = Want { may_grow: true, ..self.want };
            let assume = if self.capturing { Assume { drained: true, ..self.as_is() } } else { self.at_best() };
            list.push(advice(OomRemedy::AllowGrowth, 0, self.serves(freely, &assume, self.room())));
            if self.pool.config.cross_stream_wait != StreamWait::Always && !self.capturing && self.could_wait_for() > 0
            {
                let (key, value) = ("cross_stream_wait", "true".to_string());
                list.push(advice(OomRemedy::Configure { key, value }, self.could_wait_for(), true));
            }
        }
        if self.capturing {
            let bytes = clocks.iter().map(|&(_, bytes)| bytes).sum();
            // One that may not grow does not wait either, and what it would find then is not known.
            let suffices = self.want.may_grow && serves(&self.at_best());
            list.push(advice(OomRemedy::EndCapture, bytes, suffices));
        }
    }

    /// Wishes beside the size.
    fn add_wishes(&self, told: &OomExplanation, list: &mut Vec<OomAdvice>) {
        let OomRequest { size, persistent, .. } = told.request;
        let unaligned = Some(self.unaligned(size.saturating_add(self.pool.redzone()), persistent));
        let others = match self.want.kind {
            Kind::Dedicated { .. } => vec![(OomRemedy::DropDedicated, unaligned)],
            Kind::Range { alignment, .. } if alignment > GRANULE => {
                vec![
                    (OomRemedy::LowerAlignment(GRANULE), unaligned),
                    (OomRemedy::DropPersistent, self.not_persistent()),
                ]
            }
            _ => vec![(OomRemedy::DropPersistent, self.not_persistent())],
        };
        for (remedy, want) in others {
            let assume = |want: Want| Assume { zone: want.range().0, ..self.as_is() };
            if want.is_some_and(|want| self.serves(want, &assume(want), self.room())) {
                list.push(advice(remedy, 0, true));
            }
        }
    }

    fn add_pools(&self, told: &OomExplanation, list: &mut Vec<OomAdvice>) {
        if self.state.lanes.is_private(self.want.lane) {
            return;
        }
        for pool in told.pools.iter().filter(|pool| pool.users > 0) {
            let private = &self.state.private;
            let size = self.want.range().1;
            if private.may_lend(pool.pool) && self.want.may_grow && self.lendable(pool.pool) >= size {
                list.push(advice(OomRemedy::LendPool(pool.pool), pool.free, true));
            }
            if !private.is_open(pool.pool) && !self.capturing && self.want.may_grow {
                let assume = Assume { released: Some(pool.pool), ..self.at_best() };
                let suffices = self.serves(self.want, &assume, self.room());
                if suffices || pool.free > 0 {
                    list.push(advice(OomRemedy::ReleasePool(pool.pool), pool.free, suffices));
                }
            }
        }
    }

    /// More from the device.
    fn add_device(&self, told: &OomExplanation, list: &mut Vec<OomAdvice>) {
        let (physical, limit) = (self.state.space.physical_bytes(), self.state.limit);
        let extra = told.missing;
        if extra == 0 {
            return;
        }
        let to = physical.saturating_add(extra);
        if to > limit && limit < told.capacity {
            let suffices = to <= told.capacity && self.device_free >= extra;
            list.push(advice(OomRemedy::RaiseLimit(to.min(told.capacity)), to.min(told.capacity) - limit, suffices));
        }
        let elsewhere = told.elsewhere.unwrap_or(0);
        if elsewhere > 0 && elsewhere >= told.capacity >> ELSEWHERE_SHIFT && extra > self.device_free {
            let bytes = extra - self.device_free;
            list.push(advice(OomRemedy::FreeElsewhere(bytes.min(elsewhere)), bytes, bytes <= elsewhere && to <= limit));
        }
        let room = align_down(self.room(), PAGE) + self.reserve();
        let fits = align_up(self.want.range().1, PAGE).is_some_and(|size| size <= room);
        if self.vmm && self.state.space.unit() > PAGE && !matches!(self.want.kind, Kind::Dedicated { .. }) && fits {
            let (key, value) = ("chunk", "2MiB".to_string());
            list.push(advice(OomRemedy::Configure { key, value }, 0, true));
        } else if self.vmm && !self.pool.config.thrifty && !matches!(self.want.kind, Kind::Dedicated { .. }) {
            // Small chunks would be free where parts of large ones are.
            let unit = self.state.space.unit();
            let runs = self.map.runs(self.pool, self.state, &self.as_is());
            let whole =
                |addr: u64, end: u64| align_down(end, unit).saturating_sub(align_up(addr, unit).unwrap_or(u64::MAX));
            let chunks = runs.iter().filter(|run| self.map.ranges[run.first].plain.is_none());
            let pages: u64 = chunks.map(|run| whole(run.addr, run.end)).sum();
            if pages + self.reserve() + align_down(self.room(), unit) >= self.needed(self.want) {
                let (key, value) = ("thrifty", "true".to_string());
                // Blocks would lie elsewhere then, so that nothing is certain.
                list.push(advice(OomRemedy::Configure { key, value }, pages, false));
            }
        }
    }

    /// What pages of slabs would give that share memory.
    fn add_meshes(&self, list: &mut Vec<OomAdvice>) {
        let gain = if self.capturing || !self.vmm || !self.want.may_grow { 0 } else { self.meshable() };
        if gain > 0 {
            let runs = self.map.runs(self.pool, self.state, &self.as_is());
            let supply = self.supply(self.want, &runs, false, self.room() + gain);
            list.push(advice(OomRemedy::Defragment, gain, supply >= self.needed(self.want)));
        }
    }

    /// Live blocks.
    fn add_blocks(&self, told: &OomExplanation, list: &mut Vec<OomAdvice>) {
        if let Some((blocks, bytes)) = self.blocks_to_free() {
            let mut blocks: Vec<OomBlock> = blocks.into_iter().map(|block| self.block(block)).collect();
            blocks.sort_unstable();
            let is_pins = bytes << PINS_SHIFT <= self.want.range().1;
            let remedy = if is_pins { OomRemedy::FreePins(blocks) } else { OomRemedy::Free(blocks) };
            list.push(advice(remedy, bytes, true));
        }
        for tag in told.tags.iter().filter(|tag| tag.tag != 0) {
            list.push(advice(OomRemedy::FreeTag(tag.tag), tag.bytes, self.tag_serves(tag.tag)));
        }
    }

    /// What would make do with fewer mappings.
    fn for_mappings(&self) -> Vec<OomAdvice> {
        let mut list = Vec::new();
        let needed = self.needed(self.want);
        let runs = self.map.runs(self.pool, self.state, &self.at_best());
        let mapped_free: u64 = runs.iter().map(|run| run.movable).sum();
        if !self.capturing && mapped_free > 0 {
            list.push(advice(OomRemedy::EmptyCache, mapped_free, mapped_free >= needed));
        }
        let chunk = self.state.space.unit();
        let mapped = self.state.space.mapped_bytes();
        let segments: u64 = self.state.zones.iter().map(|zone| zone.heads().count() as u64).sum();
        for shift in [4, 6, 9] {
            let larger = (chunk << shift).min(1 << 30);
            let mappings = segments + 1 + mapped.saturating_add(needed).div_ceil(larger);
            let fits = (segments + 1).saturating_mul(larger) <= self.pool.capacity;
            if larger > chunk && mappings <= mapped / chunk && fits {
                let (key, value) = ("chunk", format!("{}MiB", larger >> 20));
                list.push(advice(OomRemedy::Configure { key, value }, 0, true));
                break;
            }
        }
        list
    }

    /// What would make do with fewer addresses.
    fn for_addresses(&self) -> Vec<OomAdvice> {
        let now = self.pool.config.address_space;
        if now == 1 {
            return vec![advice(OomRemedy::Restart, 0, false)];
        }
        let (key, value) = ("address_space", (now / 8).max(1).to_string());
        vec![advice(OomRemedy::Configure { key, value }, 0, true)]
    }
}
