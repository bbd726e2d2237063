//! The plans of all lanes of a device, and the blocks in use that they speak of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::codec::Export;
use super::follow::{Known, LanePlan, Reach, waste};
use super::solve::{Guest, Room};
use super::step::Step;
use crate::units::GRANULE;

/// Where a plan accounts for all but so much of what the program needs, nobody else has a part in it: 1/64.
const PART_SHIFT: u32 = 6;

/// Steps that are kept for lanes to be recognised by.
const BOOK_MAX: usize = 64;

/// What plans have done on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PlanStats {
    /// Lanes that follow a plan now.
    pub following: u64,
    /// Requests in the longest step followed now.
    pub step: u64,
    /// Those of them that have a planned place.
    pub planned: u64,
    /// The bytes that these need at least at one time.
    pub bound: u64,
    /// Requests that had a planned place and got it.
    pub hits: u64,
    /// Planned places that were not free: the request was served as if there were no plan.
    pub misses: u64,
    /// Requests that were not the step's next ones.
    pub deviations: u64,
    /// Steps learned.
    pub learned: u64,
    /// Layouts worked out.
    pub layouts: u64,
    /// Plans given up: lost, or not worth it.
    pub dropped: u64,
}

/// A block in use.
#[derive(Debug, Clone, Copy)]
struct Live {
    lane: u16,
    node: u32,
    granules: u32,
    /// The number of its request in its lane.
    number: u64,
    ordinal: Option<u32>,
}

/// A block in use next to an address, as the arena knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) addr: u64,
    pub(crate) node: u32,
}

/// What a device has when a layout is made, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// In use.
    pub(crate) used: u64,
    /// Held, in use or not.
    pub(crate) held: u64,
    /// Where the layout may have places without more being mapped.
    pub(crate) mapped: u64,
}

/// All lanes of a device.
#[derive(Debug)]
pub(crate) struct Plans {
    background: bool,
    lanes: BTreeMap<u16, LanePlan>,
    /// Large blocks in use, by address.
    live: BTreeMap<u64, Live>,
    book: Vec<Arc<Known>>,
    /// The most bytes in use on the device at one time.
    used_max: u64,
    /// The same of the run that steps were taken over from.
    imported: u64,
    /// Whether the program marks its steps.
    marked: bool,
}

impl Plans {
    /// Nothing learned yet. `background`: layouts are worked out on threads of their own.
    pub(crate) fn new(background: bool) -> Plans {
        Plans {
            background,
            lanes: BTreeMap::new(),
            live: BTreeMap::new(),
            book: Vec::new(),
            used_max: 0,
            imported: 0,
            marked: false,
        }
    }

    /// A request comes, with which `idle` bytes are held on the device and used by nobody. Returns whether [`Plans::lay_out`] is to be called
    /// before it is served.
    pub(crate) fn request(&mut self, lane: u16, size: u64, idle: u64) -> bool {
        let marked = self.marked;
        let new = || {
            let mut plan = LanePlan::default();
            if marked {
                // The mark came before the lane's first request.
                plan.mark();
            }
            plan
        };
        self.lanes.entry(lane).or_insert_with(new).request((size / GRANULE) as u32, idle, &self.book)
    }

    /// The place planned for the lane's request in hand.
    pub(crate) fn place(&self, lane: u16) -> Option<u64> {
        self.lanes.get(&lane)?.place()
    }

    /// The request in hand was served.
    pub(crate) fn placed(&mut self, lane: u16, addr: u64, size: u64, node: u32) {
        let Some(plan) = self.lanes.get_mut(&lane) else { return };
        plan.placed(addr);
        let current = plan.current();
        let (number, ordinal) = (current.number, current.ordinal);
        self.live.insert(addr, Live { lane, node, granules: (size / GRANULE) as u32, number, ordinal });
    }

    /// A request was served, with which so many bytes are in use on the device.
    pub(crate) fn needed(&mut self, used: u64) {
        self.used_max = self.used_max.max(used);
    }

    /// The request in hand was not served.
    pub(crate) fn refused(&mut self, lane: u16, size: u64) {
        if let Some(plan) = self.lanes.get_mut(&lane) {
            plan.freed(plan.current().number, (size / GRANULE) as u32);
        }
    }

    /// A block is free for its lane again.
    pub(crate) fn freed(&mut self, addr: u64) {
        if let Some(live) = self.live.remove(&addr)
            && let Some(plan) = self.lanes.get_mut(&live.lane)
        {
            plan.freed(live.number, live.granules);
        }
    }

    /// The program says that a step begins.
    pub(crate) fn mark(&mut self) {
        self.marked = true;
        self.lanes.values_mut().for_each(LanePlan::mark);
    }

    /// The blocks in use on either side of an address.
    pub(crate) fn beside(&self, addr: u64) -> [Option<Neighbour>; 2] {
        let neighbour = |(&addr, live): (&u64, &Live)| Neighbour { addr, node: live.node };
        [self.live.range(..=addr).next_back().map(neighbour), self.live.range(addr..).next().map(neighbour)]
    }

    /// The most bytes that the program has in use on the device, as far as is known, where the lane follows a layout; 0 where it does not.
    pub(crate) fn needs(&self, lane: u16) -> u64 {
        let imported = self.lanes.get(&lane).and_then(LanePlan::laid_out);
        imported.map_or(0, |imported| self.used_max.max(if imported { self.imported } else { 0 }))
    }

    /// Up to where memory may be mapped before the lane's layout wants it; 0 for nowhere.
    pub(crate) fn maps_to(&self, lane: u16) -> u64 {
        self.lanes.get(&lane).map_or(0, LanePlan::maps_to)
    }

    /// What a layout for the lane may use that has these guests, and how many bytes will be used by nobody at the step's fullest moment if
    /// nothing is mapped for it.
    pub(crate) fn reach(&self, lane: u16, usage: Usage, guests: &[Guest]) -> (Reach, u64) {
        let Some((step, _)) = self.lanes.get(&lane).and_then(LanePlan::followed) else { return (Reach::Mapped, 0) };
        let bytes = |guest: &Guest| u64::from(step.blocks()[guest.request as usize].granules) * GRANULE;
        let (bound, planned) = (step.bound() * GRANULE, guests.iter().map(bytes).sum::<u64>());
        let Usage { used, held, mapped } = usage;
        let needs = self.used_max.max(self.imported);
        let full = used.saturating_sub(planned) + bound;
        let reach = if mapped >= bound - (bound >> PART_SHIFT)
            || held + (bound - mapped) > needs.saturating_add(waste(needs))
        {
            // There is enough, or no more to be had: free memory of the lane may lie among other lanes' addresses.
            Reach::Mapped
        } else if full >= needs - (needs >> PART_SHIFT) {
            Reach::Ahead
        } else {
            Reach::Holes
        };
        (reach, held.saturating_sub(full))
    }

    /// Whether the lane is expected to free the block soon, and when.
    pub(crate) fn guest(&self, lane: u16, addr: u64) -> Option<Guest> {
        let live = self.live.get(&addr).filter(|live| live.lane == lane)?;
        let plan = self.lanes.get(&lane)?;
        // One from before the plan was made has no name in it yet.
        let ordinal = live.ordinal.or_else(|| plan.ordinal_of(live.number))?;
        plan.guest(addr, live.granules, ordinal, live.number)
    }

    /// Works out a layout for the lane.
    pub(crate) fn lay_out(&mut self, lane: u16, rooms: Vec<Room>, guests: Vec<Guest>, reach: Reach, idle: u64) {
        if let Some(plan) = self.lanes.get_mut(&lane) {
            plan.lay_out(rooms, guests, reach, idle, self.background);
        }
    }

    /// What the next run is told: the steps that are followed, and those known from before.
    pub(crate) fn export(&self) -> Export {
        let followed = self.lanes.values().filter_map(|plan| Some(plan.followed()?.0.clone()));
        let mut steps: Vec<Arc<Step>> = Vec::new();
        for step in followed.chain(self.book.iter().map(|known| known.step.clone())) {
            if steps.len() < BOOK_MAX && !steps.contains(&step) {
                steps.push(step);
            }
        }
        Export { needs: self.used_max.max(self.imported), steps }
    }

    /// What an earlier run tells: steps to look out for.
    pub(crate) fn import(&mut self, export: Export) {
        self.imported = self.imported.max(export.needs);
        for step in export.steps {
            let is_known = self.book.iter().any(|known| known.step == step);
            if !is_known && self.book.len() < BOOK_MAX {
                self.book.push(Arc::new(Known::new(step)));
            }
        }
    }

    /// What plans have done.
    pub(crate) fn stats(&self) -> PlanStats {
        let mut stats = PlanStats::default();
        for plan in self.lanes.values() {
            let tally = plan.tally;
            stats.hits += tally.hits;
            stats.misses += tally.misses;
            stats.deviations += tally.deviations;
            stats.learned += tally.learned;
            stats.layouts += tally.layouts;
            stats.dropped += tally.dropped;
            let Some((step, layout)) = plan.followed() else { continue };
            stats.following += 1;
            if step.len() as u64 > stats.step {
                stats.step = step.len() as u64;
                stats.planned = (0..step.len()).filter_map(|at| layout?.place(at)).count() as u64;
                stats.bound = step.bound() * GRANULE;
            }
        }
        stats
    }
}

impl Drop for Plans {
    fn drop(&mut self) {
        self.lanes.values_mut().for_each(LanePlan::end);
    }
}
