//! More memory where a request is: free chunks from elsewhere first, then new ones, mapped into a hole of the lane's segments.

use std::ops::ControlFlow;

use super::donors::{Donor, Whose};
use super::ladder::{Drain, Kind, Magazines, Want};
use super::lanes::LaneId;
use super::{BlockId, LARGE, Pool, PoolState, SMALL};
use crate::block::{Arena, Growth, NodeId, Owner};
use crate::driver::{Driver, DriverResult};
use crate::telemetry::{EventKind, Rung};
use crate::units::{PAGE, align_up};
use crate::vm::ChunkId;

/// The first lanes get address space for many times the device's memory at once: 16.
const WIDE_LANES: LaneId = 16;

/// From which part of the most that was needed on is held besides it, how large new chunks are, in 64ths of the largest. Measured on the
/// recorded traces; DESIGN.md has the curve.
const EXCESS: [(f64, u64); 4] = [(0.0, 64), (0.0025, 32), (0.0045, 16), (0.0062, 8)];
/// The last of these only where so many 64ths of the largest chunk are held besides: two or three chunks say little.
const EXCESS_LEAST: u64 = 32;
/// No less than this part of what is missing at once: few of its chunks are shared with another block.
const PIECES: u64 = 64;
/// The limit from which on chunks are as large as configured. With less they are smaller in proportion: 256 GiB.
const FULL_SIZE: f64 = (256u64 << 30) as f64;
/// But no smaller than this part: a quarter.
const FULL_LEAST: f64 = 0.25;
/// The part of the limit beyond which all new chunks are small, and free ranges are kept in one piece: what is left has to do.
const ROOMY: f64 = 0.3;
/// As long as so many bytes of the limit are free, new chunks for large blocks are large all the same: 32 GiB.
const SPARE: f64 = (32u64 << 30) as f64;
/// The part beyond which that is so for programs as well that give memory back and take it again.
const SCARCE: f64 = 0.9;
/// New chunks get twice as large when memory has been given back, so many times: 4 x.
const REGROWTH_MAX: u32 = 2;
/// Memory that was given back is taken again in chunks of this part of the most that was needed,
const REGROWTH_PART: u64 = 128;
/// up to this part of it: the rest in chunks that pack.
const REGROWN: f64 = 0.9;
/// No chunk is larger: 1 GiB.
const CHUNK_LIMIT: u64 = 1 << 30;

/// What a growth may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// It is not to fail: up to the limit rather than the threshold, in whatever hole.
    pub(super) last: bool,
    /// The lane's stream has been made to wait for all others.
    pub(super) waited: bool,
    /// New chunks may be created.
    pub(super) create: bool,
}

impl Terms {
    /// All that can be done without a wait.
    pub(super) const LAST: Terms = Terms { last: true, waited: false, create: true };
    /// What comes first.
    pub(super) const FIRST: Terms = Terms { last: false, ..Terms::LAST };
}

/// Chunks for a growth, which nothing has happened to yet.
#[derive(Debug, Default)]
pub(super) struct Picked {
    chunks: Vec<ChunkId>,
    pub(super) bytes: u64,
    /// Those of them that blocks could be served from where they are.
    donors: Vec<Donor>,
    /// Whether none of these are wanted.
    stays: bool,
    /// Whether the growth is of memory all of which will be in use.
    ahead: bool,
    /// Whether any will do, in however many pieces they leave what they lie in.
    any: bool,
}

impl Picked {
    /// Nothing yet, for a planned place. `stays`: none of what blocks could be served from where it is. `ahead`: all that is mapped will be
    /// in use.
    pub(super) fn planned(stays: bool, ahead: bool) -> Picked {
        Picked { stays, ahead, ..Picked::default() }
    }

    pub(super) fn add(&mut self, donor: Donor) {
        self.chunks.push(donor.chunk);
        self.bytes += donor.size;
        self.donors.extend(donor.from.is_some().then_some(donor));
    }
}

impl Pool {
    /// Maps memory where that makes room: chunks that are free elsewhere, then new ones as long as the limit and the device allow.
    pub(super) fn grow(
        &self,
        state: &mut PoolState,
        want: Want,
        magazines: &dyn Magazines,
        terms: Terms,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        if !self.driver.properties().vmm || matches!(want.kind, Kind::Dedicated { .. }) {
            return self.grow_plain(state, want, magazines, terms.last);
        }
        self.grow_from(state, want, terms)
    }

    /// [`Pool::grow`] with virtual memory management.
    pub(super) fn grow_from(
        &self,
        state: &mut PoolState,
        want: Want,
        terms: Terms,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let grown = self.grow_in(state, want, terms, 0)?;
        if grown.is_some() || !terms.last {
            return Ok(grown);
        }
        // The hole with the least to map may have no room for the chunks that are free.
        let (_, size, alignment) = want.range();
        self.grow_in(state, want, terms, size + alignment + self.chunk_largest(state))
    }

    /// [`Pool::grow`] in a hole of at least so many bytes.
    fn grow_in(
        &self,
        state: &mut PoolState,
        want: Want,
        terms: Terms,
        roomy: u64,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let (zone, size, alignment) = want.range();
        let home = Owner(want.lane);
        let private = state.lanes.is_private(want.lane);
        let usable = state.lanes.usable(want.lane);
        let unit = state.space.unit();
        let mut whose = if terms.waited { Whose::Waited } else { Whose::Own };
        let mut is_best = false;
        let (growth, picked) = loop {
            let zones = &mut state.zones;
            let Some(growth) = zones[zone].plan_roomy_growth(home, size, alignment, unit, roomy, usable) else {
                let Some(least) = align_up((size + alignment).max(roomy), unit) else { return Ok(None) };
                match state.space.reserve_segment(self.segment_size(zone, want.lane, private), least) {
                    Ok((addr, size)) => _ = state.zones[zone].add_segment(addr, size, home),
                    // Address space, too, can be had from pools that are no more, and from where memory has moved away.
                    Err(error)
                        if error.is_out_of_memory()
                            && (self.recycle_dissolved(state) || self.retire_passed_ghosts(state)?) => {}
                    Err(error) if error.is_out_of_memory() => {
                        if roomy == 0 {
                            state.refusal = Some(error);
                        }
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            let may_ask = whose == Whose::Own && !state.private.capturing();
            let stays = terms.create && !terms.last && self.spares_places(state, want.lane, growth.bytes);
            let mut picked = Picked { any: terms.last, stays, ..Picked::default() };
            let found = self.pick(state, want, growth, whose, &mut picked);
            if may_ask && !found {
                // Blocks that waited may have come home, and other streams may be done with theirs. Either changes what is free: the place
                // is looked for anew.
                let settled = !state.slabs.any_shared() && !state.pairs.any();
                self.poll(state)?;
                let missing = growth.bytes.saturating_sub(picked.bytes);
                let settled = settled && self.vacate_idle(state, missing) == 0;
                let came_home = self.finish_pending(state);
                if came_home && let Some(block) = self.search(state, want)? {
                    return Ok(Some((block, Rung::Passed)));
                }
                if came_home || !settled || self.others_have_chunks(state, want.lane) {
                    whose = Whose::Passed;
                    continue;
                }
            }
            if !found && terms.create && !is_best {
                is_best = true;
                if self.make_place(state, want, growth)? {
                    continue;
                }
            }
            break (growth, (picked, found));
        };
        self.grow_with(state, want, growth, picked, None, terms)
    }

    /// Carries a growth out, with chunks that are free elsewhere as far as they go and `picked` allows, and serves the request at `addr`.
    pub(super) fn grow_at(
        &self,
        state: &mut PoolState,
        want: Want,
        growth: Growth,
        addr: u64,
        mut picked: Picked,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let found = self.pick(state, want, growth, Whose::Passed, &mut picked);
        self.grow_with(state, want, growth, (picked, found), Some(addr), Terms::FIRST)
    }

    /// Carries a growth out with what has been picked for it, `found` saying whether that suffices, and serves the request from what is
    /// free there then: at `place`, if that is given.
    fn grow_with(
        &self,
        state: &mut PoolState,
        want: Want,
        growth: Growth,
        (mut picked, mut found): (Picked, bool),
        place: Option<u64>,
        terms: Terms,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let (zone, size, alignment) = want.range();
        let usable = state.lanes.usable(want.lane);
        let missing = growth.bytes.saturating_sub(picked.bytes);
        if !found && terms.create && (terms.last || !self.over_threshold(state, missing)) {
            found = self.create_chunks(state, want, growth, &mut picked)?;
        }
        if !found {
            return Ok(None);
        }
        let rung = if missing > 0 { Rung::NewChunk } else { Rung::Stitch };
        let growth = growth.widened(picked.bytes);
        let Some(node) = self.map_picked(state, want.lane, zone, growth, picked)? else { return Ok(None) };
        let node = match place {
            Some(addr) => state.zones[zone].claim(node, addr, size, usable),
            None => Some(state.zones[zone].take_from(node, size, alignment)),
        };
        let Some(node) = node else { return Ok(None) };
        Ok(self.enter(state, want, node)?.map(|block| (block, rung)))
    }

    /// Maps what has been picked for a growth, free for the lane with what it may use beside it. `None` where the driver has no room for more
    /// mappings.
    pub(super) fn map_picked(
        &self,
        state: &mut PoolState,
        lane: LaneId,
        zone: usize,
        growth: Growth,
        picked: Picked,
    ) -> DriverResult<Option<NodeId>> {
        let home = Owner(lane);
        let private = state.lanes.is_private(lane);
        let usable = state.lanes.usable(lane);
        if let Err(error) = state.space.map(growth.at, &picked.chunks) {
            // There is a limit to mappings too. What was created stays in the reserve.
            let again = if error.is_out_of_memory() && self.retire_passed_ghosts(state)? {
                state.space.map(growth.at, &picked.chunks)
            } else {
                Err(error)
            };
            match again {
                Ok(()) => {}
                Err(error) if error.is_out_of_memory() => {
                    state.refusal = Some(error);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let stamp = picked.donors.iter().map(|donor| donor.stamp).max().unwrap_or(0);
        let stamp = if private { u64::MAX } else { stamp };
        self.leave_ghosts(state, picked.donors);
        let node = state.zones[zone].fill(home, growth.at, growth.bytes, home, stamp, usable);
        self.note_mapping(state, EventKind::Map, home, growth.at, growth.bytes);
        Ok(Some(node))
    }

    /// Picks free chunks for a growth: those in the reserve, and those that lie free elsewhere. Returns whether they suffice.
    fn pick(&self, state: &PoolState, want: Want, growth: Growth, whose: Whose, picked: &mut Picked) -> bool {
        let unit = state.space.unit();
        // Of those that are too large, the first of the smallest and of the largest size of each doubling.
        let mut left = [None::<[Donor; 2]>; u32::BITS as usize];
        // Rests that nothing fits into are worth a new chunk while there are some, but not when much is free: there will be uses for them.
        let may_create = state.space.physical_bytes() + growth.bytes <= state.limit;
        let neat = !picked.any && may_create && !state.is_roomy(0);
        let found = self.donors(state, want.lane, growth, whose, neat).try_for_each(|donor| {
            if picked.stays && donor.from.is_some() {
                return ControlFlow::Break(false);
            }
            if picked.bytes + donor.size <= growth.bytes {
                picked.add(donor);
                if picked.bytes == growth.bytes {
                    return ControlFlow::Break(true);
                }
            } else {
                let [least, most] = left[(donor.size / unit).ilog2() as usize].get_or_insert([donor; 2]);
                if donor.size < least.size {
                    *least = donor;
                } else if donor.size > most.size {
                    *most = donor;
                }
            }
            ControlFlow::Continue(())
        });
        if found == ControlFlow::Break(true) {
            return true;
        }
        let missing = growth.bytes - picked.bytes;
        let mut rest = left.into_iter().flatten().flatten();
        // Small blocks would keep a large chunk from all others. Rather a new one, as long as there are any.
        let may_create = state.space.physical_bytes() + missing <= state.limit;
        let most = if want.range().0 == SMALL && may_create { self.small_chunk(state).max(missing) } else { u64::MAX };
        let most = most.min(growth.room - picked.bytes);
        let fits = |donor: &Donor| missing <= donor.size && donor.size <= most;
        let Some(rest) = rest.find(fits) else { return false };
        picked.add(rest);
        true
    }

    /// No chunk is larger.
    fn chunk_largest(&self, state: &PoolState) -> u64 {
        let unit = state.space.unit();
        let regrowth = (state.needed / REGROWTH_PART).max(self.config.chunk_max.0.max(unit) << REGROWTH_MAX);
        regrowth.min(CHUNK_LIMIT.max(unit))
    }

    /// How large new chunks are to be, and what to round up to. Large ones cost few driver calls, small ones leave no large rests that no
    /// request can use: so they are large as long as much of the device is free and hardly more is held than was ever needed at once.
    /// A program that gives its memory back and takes it again gets larger ones.
    fn chunk_sizes(&self, state: &mut PoolState, want: Want, missing: u64) -> (u64, u64) {
        let unit = state.space.unit();
        let (zone, size, _) = want.range();
        let largest = self.config.chunk_max.0.max(unit);
        if self.config.thrifty || largest == unit {
            return (unit, unit);
        }
        let limit = state.limit as f64;
        let whole = |bytes: u64| (bytes / unit * unit).clamp(unit, CHUNK_LIMIT.max(unit));
        let largest = self.chunk_scaled(state);
        let held = state.space.physical_bytes() + missing;
        let is_roomy = state.is_roomy(missing);
        if zone == SMALL {
            let size = if is_roomy { self.small_chunk(state).min(largest) } else { unit };
            return (size, size);
        }
        state.needed = state.needed.max(state.used_bytes() + size);
        let regrowth = state.emptied.min(REGROWTH_MAX);
        if !is_roomy {
            let base = if held as f64 <= limit - SPARE { largest } else { unit };
            let regrowth = if held as f64 > limit * SCARCE { 0 } else { regrowth };
            return (whole(base << regrowth), unit);
        }
        if state.emptied > 0 && state.needed as f64 <= limit * ROOMY {
            let part = whole(state.needed / REGROWTH_PART);
            if (held - missing + missing.max(part)) as f64 <= state.needed as f64 * REGROWN {
                return (part, part);
            }
        }
        let besides = held.saturating_sub(state.needed);
        let excess = besides as f64 / state.needed as f64;
        let few = besides < largest / 64 * EXCESS_LEAST || regrowth > 0;
        let steps = if few { &EXCESS[..EXCESS.len() - 1] } else { &EXCESS[..] };
        let (_, part) = steps.iter().rfind(|&&(bound, _)| excess >= bound).unwrap_or(&EXCESS[0]);
        let largest = largest << regrowth;
        let size = whole((largest / 64 * part).max(largest.min(missing / PIECES)));
        (size, (2 * unit).min(size))
    }

    /// How large chunks are that are mapped for a plan all of which will be in use, and how much of them is mapped at once.
    pub(super) fn chunk_ahead(&self, state: &PoolState) -> u64 {
        if self.config.thrifty { state.space.unit() } else { self.chunk_scaled(state) }
    }

    /// The largest chunk of the configuration, in proportion to the limit.
    fn chunk_scaled(&self, state: &PoolState) -> u64 {
        let unit = state.space.unit();
        let largest =
            self.config.chunk_max.0.max(unit) as f64 * (state.limit as f64 / FULL_SIZE).clamp(FULL_LEAST, 1.0);
        (largest as u64 / unit * unit).clamp(unit, CHUNK_LIMIT.max(unit))
    }

    /// How large new chunks for small blocks are: a part of what those have, so that what they do not use of it is little.
    fn small_chunk(&self, state: &PoolState) -> u64 {
        let part = state.zones[SMALL].used_bytes() / 16;
        state.space.unit().max(1 << part.max(1).ilog2())
    }

    /// Creates chunks for what a growth still lacks, as far as the limit and the device allow. Returns whether that is all of it.
    fn create_chunks(
        &self,
        state: &mut PoolState,
        want: Want,
        growth: Growth,
        picked: &mut Picked,
    ) -> DriverResult<bool> {
        let unit = state.space.unit();
        let mut missing = growth.bytes - picked.bytes;
        // A page of slots can share memory with another one if its chunk is all its own.
        let (mut largest, step) = match want.kind {
            Kind::Slot(_, PAGE) => (unit, unit),
            // All of it will be in use.
            _ if picked.ahead => (self.chunk_ahead(state), unit),
            _ => self.chunk_sizes(state, want, missing),
        };
        let rounded = missing.next_multiple_of(step);
        let fits = state.space.physical_bytes() + rounded <= state.limit && picked.bytes + rounded <= growth.room;
        if fits {
            missing = rounded;
        }
        while missing > 0 {
            let allowed = state.limit.saturating_sub(state.space.physical_bytes());
            let size = largest.min(missing).min(allowed) / unit * unit;
            if size < unit {
                return Ok(false);
            }
            match state.create_chunk(size)? {
                Some(chunk) => {
                    picked.chunks.push(chunk);
                    picked.bytes += size;
                    missing -= size;
                }
                None => largest = size / 2,
            }
        }
        Ok(true)
    }

    pub(super) fn over_threshold(&self, state: &PoolState, bytes: u64) -> bool {
        let bound = state.limit as f64 * self.config.gc_threshold;
        (state.space.physical_bytes() + bytes) as f64 > bound && self.config.gc_threshold < 1.0
    }

    /// Address space for a zone's segment. A later one is needed only when this is in pieces; lanes of which there may be hundreds begin
    /// with less.
    fn segment_size(&self, zone: usize, lane: LaneId, private: bool) -> u64 {
        if private || lane > WIDE_LANES {
            return (self.capacity >> 3).max(self.capacity.min(1 << 30));
        }
        // The first four lanes, which do most, get all that is configured, the next four half of it, and so on.
        let part = u64::from(self.config.address_space) >> (lane.saturating_sub(1) / 4);
        let multiple = if zone == LARGE { part.max(1) } else { 1 };
        self.capacity.saturating_mul(multiple)
    }

    /// [`Pool::grow`] of what lies in memory of its own, and of all without virtual memory management: a segment of plain memory, with `trim`
    /// after those that are not in use were freed.
    fn grow_plain(
        &self,
        state: &mut PoolState,
        want: Want,
        magazines: &dyn Magazines,
        trim: bool,
    ) -> DriverResult<Option<(BlockId, Rung)>> {
        let (zone, size, alignment) = want.range();
        let home = Owner(want.lane);
        let least = if alignment > 512 { size.saturating_add(alignment) } else { size };
        let shared = !matches!(want.kind, Kind::Dedicated { .. });
        let wanted = if shared { least.max(self.plain_least()) } else { least };
        if trim
            && magazines.drain(state, Drain::All) > 0
            && let Some(block) = self.search(state, want)?
        {
            return Ok(Some((block, Rung::Merge)));
        }
        for bytes in [wanted, least] {
            let Some(bytes) = align_up(bytes, PAGE) else { return Ok(None) };
            loop {
                if let Some(addr) = self.plain_segment(state, bytes)? {
                    let arena: &mut Arena = &mut state.zones[zone];
                    arena.add_segment(addr, bytes, home);
                    let node = arena.fill(home, addr, bytes, home, 0, |_| false);
                    let node = arena.take_from(node, size, alignment);
                    self.note_mapping(state, EventKind::Map, home, addr, bytes);
                    return Ok(self.enter(state, want, node)?.map(|block| (block, Rung::NewChunk)));
                }
                let freed = if trim { self.harvest(state, bytes)? } else { 0 };
                // A chunk that is still mapped somewhere stays the device's.
                let _ = trim && self.retire_ghosts(state, usize::MAX);
                // Chunks in the reserve are no plain memory: they go back to the device first.
                let reserve = state.space.reserve_bytes();
                if state.space.release_reserve(reserve.saturating_sub(bytes)) == 0 && freed == 0 {
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Plain segments are to be a 64th of the device, so that they stay few.
    pub(super) fn plain_least(&self) -> u64 {
        (self.capacity >> 6).min(64 << 20)
    }

    fn plain_segment(&self, state: &mut PoolState, bytes: u64) -> DriverResult<Option<u64>> {
        if state.space.physical_bytes().saturating_add(bytes) > state.limit {
            return Ok(None);
        }
        match state.space.alloc_plain(bytes) {
            Ok(addr) => {
                state.reserved_peak = state.reserved_peak.max(state.space.physical_bytes());
                Ok(Some(addr))
            }
            Err(error) if error.is_out_of_memory() => {
                state.refusal = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl PoolState {
    /// A new chunk; `None` where the device has no room for it, which is noted.
    pub(super) fn create_chunk(&mut self, size: u64) -> DriverResult<Option<ChunkId>> {
        let created = self.space.create(size);
        let held = self.space.physical_bytes();
        match created {
            Ok(chunk) => {
                self.reserved_peak = self.reserved_peak.max(held);
                if held > self.refused_at {
                    self.refused_at = u64::MAX;
                }
                Ok(Some(chunk))
            }
            Err(error) if error.is_out_of_memory() => {
                self.refused_at = held;
                self.refusal = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether most of the limit is free, and will be with so many bytes more.
    #[inline]
    pub(super) fn is_roomy(&self, more: u64) -> bool {
        (self.space.physical_bytes() + more) as f64 <= self.limit as f64 * ROOMY
    }
}
