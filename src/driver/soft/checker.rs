//! The happens-before checker: vector clocks over streams and the host, and who touched which bytes last.
//!
//! Every order between two operations runs through the host's calls: stream order, an event that one call records and a
//! later one waits for, a synchronisation that the host has seen before it submits more. So an operation's clock is known
//! when it is submitted, and is checked then, whatever order the device later runs the queues in: one run finds what any
//! legal interleaving could. All host threads count as one, since the device's lock orders their calls.
//!
//! A clock holds, for each stream, the number of its last operation known to have completed before. Conflicts are found by
//! physical bytes, so that two addresses of one chunk conflict; unmapping is checked by address, since it harms only those
//! who use that address.

use super::intervals::IntervalMap;
use super::memory::Extent;
use super::report::{AccessKind, OpKind, Place, Report};
use crate::units::{DevicePtr, StreamId};

/// Reports kept. Later ones are counted.
const KEPT_REPORTS: usize = 1000;
/// Reports for one unmapping, each with a different use.
const REPORTS_PER_UNMAP: usize = 8;

/// For each stream, by number, an operation of it and thereby all before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    fn get(&self, stream: StreamId) -> u64 {
        self.0.get(stream.0 as usize).copied().unwrap_or(0)
    }

    fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    fn tick(&mut self, stream: StreamId) -> u64 {
        let at = stream.0 as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] += 1;
        self.0[at]
    }

    /// Whether an access has completed before whoever has this clock goes on.
    fn covers(&self, place: &Place) -> bool {
        self.get(place.stream) >= place.op
    }
}

/// The last accesses to some bytes: those that a later access must be ordered after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct History {
    write: Option<Place>,
    reads: Vec<Place>,
}

impl History {
    /// The earlier accesses that conflict with one of this kind.
    fn conflicts(&self, access: AccessKind) -> impl Iterator<Item = &Place> {
        let reads = if access == AccessKind::Write { &self.reads[..] } else { &[] };
        self.write.iter().chain(reads)
    }
}

/// Whose some bytes are, as far as the harness has said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Live(Place),
    Freed(Place),
}

/// An access that should be ordered before the one being checked, and the bytes in common.
struct Race {
    first: Place,
    ptr: DevicePtr,
    size: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// By stream number. A stream that has done nothing may be missing.
    streams: Vec<Clock>,
    host: Clock,
    /// By physical byte.
    history: IntervalMap<History>,
    owners: IntervalMap<Owner>,
    /// By address: the last uses of each stream that the user before it does not cover.
    uses: IntervalMap<Vec<Place>>,
    reports: Vec<Report>,
    report_count: u64,
    /// The owners of what a copy of the allocator's own has read, by offset, until it writes.
    moving: Vec<(u64, u64, Owner)>,
    /// Whether copies and fills are the allocator's own, and may touch blocks that nobody owns.
    pub(super) allocator_copies: bool,
}

impl Checker {
    pub(super) fn reports(&self) -> &[Report] {
        &self.reports
    }

    pub(super) fn report_count(&self) -> u64 {
        self.report_count
    }

    fn report(&mut self, report: Report) {
        self.report_count += 1;
        if self.reports.len() < KEPT_REPORTS {
            self.reports.push(report);
        }
    }

    fn stream(&mut self, stream: StreamId) -> &mut Clock {
        let at = stream.0 as usize;
        if self.streams.len() <= at {
            self.streams.resize_with(at + 1, Clock::default);
        }
        &mut self.streams[at]
    }

    // ---- order ------------------------------------------------------------------------------------------------------

    /// The number of a new operation, which comes after all that the host has seen.
    pub(super) fn next_op(&mut self, stream: StreamId) -> u64 {
        let host = std::mem::take(&mut self.host);
        let clock = self.stream(stream);
        clock.join(&host);
        let op = clock.tick(stream);
        self.host = host;
        op
    }

    /// What an event recorded now on `stream` stands for.
    pub(super) fn recorded(&mut self, stream: StreamId) -> Clock {
        self.stream(stream).clone()
    }

    /// Later work of `stream` comes after what the event stands for.
    pub(super) fn waits(&mut self, stream: StreamId, event: &Clock) {
        self.stream(stream).join(event);
    }

    /// The host has seen that the work an event stands for is done.
    pub(super) fn host_saw(&mut self, event: &Clock) {
        self.host.join(event);
    }

    /// The host has seen that a stream's work is done.
    pub(super) fn host_saw_stream(&mut self, stream: StreamId) {
        let clock = self.recorded(stream);
        self.host.join(&clock);
    }

    /// The host has seen that all work is done.
    pub(super) fn host_saw_all(&mut self) {
        for clock in &self.streams {
            self.host.join(clock);
        }
    }

    // ---- accesses ---------------------------------------------------------------------------------------------------

    /// Checks an access against all before it, and remembers it.
    pub(super) fn access(&mut self, place: Place, extents: &[Extent]) {
        self.check_owner(place, extents);
        self.check_order(place, extents);
        self.remember(place, extents);
    }

    fn check_owner(&mut self, place: Place, extents: &[Extent]) {
        if place.what == OpKind::Watch {
            return;
        }
        if self.allocator_copies && matches!(place.what, OpKind::Copy | OpKind::Fill) {
            return self.move_owners(place, extents);
        }
        let freed = self.owners_of(extents).find_map(|owner| match owner {
            Owner::Freed(freed) => Some(*freed),
            Owner::Live(_) => None,
        });
        if let Some(freed) = freed {
            self.report(Report::UseAfterFree { access: place, freed });
        }
    }

    /// A copy of the allocator's own: who owned the bytes that it reads owns those that it writes after that.
    fn move_owners(&mut self, place: Place, extents: &[Extent]) {
        let mut at = 0;
        if place.access == AccessKind::Read {
            self.moving.clear();
            for extent in extents {
                for (from, to, owner) in self.owners.overlapping(extent.phys, extent.phys + extent.size) {
                    let offset = at + (from - extent.phys);
                    self.moving.push((offset, offset + (to - from), owner.clone()));
                }
                self.owners.remove(extent.phys, extent.phys + extent.size);
                at += extent.size;
            }
            return;
        }
        let moving = std::mem::take(&mut self.moving);
        for extent in extents {
            match place.what {
                OpKind::Fill => self.owners.assign(extent.phys, extent.phys + extent.size, Owner::Live(place)),
                _ => self.owners.remove(extent.phys, extent.phys + extent.size),
            }
            for (from, to, owner) in &moving {
                let (from, to) = (*from.max(&at), *to.min(&(at + extent.size)));
                if from < to {
                    self.owners.assign(extent.phys + (from - at), extent.phys + (to - at), owner.clone());
                }
            }
            at += extent.size;
        }
    }

    fn owners_of<'a>(&'a self, extents: &'a [Extent]) -> impl Iterator<Item = &'a Owner> {
        let owners = extents.iter().flat_map(|e| self.owners.overlapping(e.phys, e.phys + e.size));
        owners.map(|(_, _, owner)| owner)
    }

    /// Reports, for each stream, the last access that this one should come after and does not.
    fn check_order(&mut self, place: Place, extents: &[Extent]) {
        let clock = self.streams.get(place.stream.0 as usize).unwrap_or(&self.host);
        let mut races: Vec<Race> = Vec::new();
        for extent in extents {
            for (from, to, history) in self.history.overlapping(extent.phys, extent.phys + extent.size) {
                for &first in history.conflicts(place.access) {
                    let same_op = first.stream == place.stream && first.op == place.op;
                    // The copies of a batch have no order; what one kernel does is its own affair.
                    let ordered = if same_op { place.what != OpKind::Copy } else { clock.covers(&first) };
                    if ordered {
                        continue;
                    }
                    let race = Race { first, ptr: DevicePtr(extent.ptr + (from - extent.phys)), size: to - from };
                    match races.iter_mut().find(|known| known.first.stream == first.stream) {
                        Some(known) if known.first.op >= first.op => {}
                        Some(known) => *known = race,
                        None => races.push(race),
                    }
                }
            }
        }
        for Race { first, ptr, size } in races {
            self.report(Report::Race { first, second: place, ptr, size });
        }
    }

    fn remember(&mut self, place: Place, extents: &[Extent]) {
        let clock = self.streams.get(place.stream.0 as usize).unwrap_or(&self.host);
        for extent in extents {
            let (start, end) = (extent.phys, extent.phys + extent.size);
            match place.access {
                AccessKind::Write => {
                    self.history.assign(start, end, History { write: Some(place), reads: Vec::new() });
                }
                AccessKind::Read => self.history.update(start, end, History::default(), |history| {
                    history.reads.retain(|read| !clock.covers(read));
                    history.reads.push(place);
                }),
            }
            self.uses.update(extent.ptr, extent.ptr + extent.size, Vec::new(), |uses| {
                uses.retain(|used| !clock.covers(used));
                uses.push(place);
            });
        }
    }

    // ---- what the harness says ----------------------------------------------------------------------------------------

    /// A block was handed out: nobody else may own it, and its owner may write it at once.
    pub(super) fn alloc(&mut self, ptr: DevicePtr, size: u64, stream: StreamId, extents: &[Extent]) {
        let op = self.next_op(stream);
        let place = Place { stream, op, what: OpKind::Alloc, access: AccessKind::Write, ptr, size };
        let live = self.owners_of(extents).find_map(|owner| match owner {
            Owner::Live(first) => Some(*first),
            Owner::Freed(_) => None,
        });
        if let Some(first) = live {
            self.report(Report::Overlap { first, second: place });
        }
        for extent in extents {
            self.owners.assign(extent.phys, extent.phys + extent.size, Owner::Live(place));
        }
        self.check_order(place, extents);
        self.remember(place, extents);
    }

    /// Nobody owns anything, as far as is known from now on.
    pub(super) fn forget_owners(&mut self) {
        self.owners = IntervalMap::default();
        self.moving.clear();
    }

    /// A block is freed on its home stream. Work of other streams may still be running on it, so this is checked against
    /// nothing; it stands for the last use by the home stream.
    pub(super) fn free(&mut self, ptr: DevicePtr, size: u64, extents: &[Extent]) {
        let Some(owner) = self.owners_of(extents).next().cloned() else { return };
        let stream = match owner {
            Owner::Live(home) | Owner::Freed(home) => home.stream,
        };
        let op = self.next_op(stream);
        let place = Place { stream, op, what: OpKind::Free, access: AccessKind::Read, ptr, size };
        if let Owner::Freed(freed) = owner {
            self.report(Report::UseAfterFree { access: place, freed });
        }
        for extent in extents {
            self.owners.assign(extent.phys, extent.phys + extent.size, Owner::Freed(place));
        }
        self.remember(place, extents);
    }

    // ---- the end of addresses and bytes -------------------------------------------------------------------------------

    /// Addresses are unmapped: all who used them must have finished, as far as the host knows.
    pub(super) fn unmapped(&mut self, ptr: DevicePtr, size: u64) {
        let end = ptr.0 + size;
        let mut found: Vec<Place> = Vec::new();
        for (_, _, uses) in self.uses.overlapping(ptr.0, end) {
            for last in uses.iter().filter(|last| !self.host.covers(last)) {
                if found.len() < REPORTS_PER_UNMAP && !found.contains(last) {
                    found.push(*last);
                }
            }
        }
        found.into_iter().for_each(|last| self.report(Report::UnmapInUse { ptr, size, last }));
        self.uses.remove(ptr.0, end);
    }

    /// Physical bytes are gone. They never come back.
    pub(super) fn forget(&mut self, extent: Extent) {
        self.history.remove(extent.phys, extent.phys + extent.size);
        self.owners.remove(extent.phys, extent.phys + extent.size);
    }
}
