//! Layouts: where each block of a step lies.
//!
//! The problem is to cut rectangles of time and addresses into the least height (dynamic storage allocation), on a circle, since what is
//! in use when a step ends is so when the next one begins. It is hard in the strict sense, and easy in practice: blocks are placed one after
//! the other at the lowest address where nothing that lives at the same time lies, in three orders, of which the best is taken. What then sticks out
//! above the bound is placed earlier, and all is tried again, for as long as that pays and within a bound on the work.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::step::{Span, Step};
use crate::units::GRANULE;

/// Addresses that a layout may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The first, a multiple of the granule.
    pub from: u64,
    /// One past the last.
    pub to: u64,
}

/// A block of the step that is in use already, and so has its address: it keeps that in the next steps, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Its address.
    pub at: u64,
    /// Whose block it is: a request of the step, each of which has at most one guest.
    pub request: u32,
}

/// Where each block of a step lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// By request: the address, or [`Layout::NOWHERE`].
    pub at: Vec<u64>,
    /// Bytes of the blocks for which there was no room.
    pub left_out: u64,
    /// One past the highest address used.
    pub top: u64,
    /// Bytes of the addresses that any block has at any time.
    pub footprint: u64,
}

impl Layout {
    /// The place of a block that has none.
    pub const NOWHERE: u64 = u64::MAX;

    /// The planned address of a request's block.
    pub fn place(&self, request: usize) -> Option<u64> {
        self.at.get(request).copied().filter(|&at| at != Layout::NOWHERE)
    }

    /// Smaller is better.
    fn cost(&self) -> (u64, u64) {
        (self.left_out, self.top)
    }
}

/// Blocks looked at and sorted in all rounds together: a second or two, and enough for all rounds over a few thousand requests. The first
/// order is always tried to its end.
const WORK_MAX: u64 = 300_000_000;
/// Rounds in which what sticks out is placed earlier.
const ROUNDS: u32 = 24;

/// Finds a layout in `rooms`, which are ascending and do not overlap, around `guests`.
pub fn solve(step: &Step, rooms: &[Room], guests: &[Guest]) -> Layout {
    solve_until(step, rooms, guests, &AtomicBool::new(false))
}

/// [`solve`], which ends soon with whatever it has once `enough` is set.
pub(super) fn solve_until(step: &Step, rooms: &[Room], guests: &[Guest], enough: &AtomicBool) -> Layout {
    let mut work = 0;
    let place = |order: &[u32], work: &mut u64| {
        let mut board = Board::new(step, rooms, guests);
        let layout = board.place_all(order, guests, enough);
        *work += if enough.load(Relaxed) { 2 * WORK_MAX } else { board.work };
        layout
    };
    let blocks = step.blocks();
    let placed: HashSet<u32> = guests.iter().map(|guest| guest.request).collect();
    let planned = (0..blocks.len() as u32).filter(|id| blocks[*id as usize].life > 0 && !placed.contains(id));
    let planned: Vec<u32> = planned.collect();
    let by = |key: &dyn Fn(u32) -> (u64, u64)| {
        let mut order = planned.clone();
        order.sort_by_key(|&id| (Reverse(key(id)), id));
        order
    };
    let size = |id: u32| u64::from(blocks[id as usize].granules);
    let life = |id: u32| u64::from(blocks[id as usize].life);
    let orders =
        [by(&|id| (size(id), life(id))), by(&|id| (size(id) * life(id), size(id))), by(&|id| (life(id), size(id)))];
    let mut best: Option<(Layout, Vec<u32>)> = None;
    for order in orders {
        if work > WORK_MAX / 2 && best.is_some() {
            break;
        }
        let layout = place(&order, &mut work);
        if best.as_ref().is_none_or(|(best, _)| layout.cost() < best.cost()) {
            best = Some((layout, order));
        }
    }
    let (mut layout, mut order) = best.expect("one order was tried");
    let base = rooms.first().map_or(0, |room| room.from);
    let bound = step.bound() * GRANULE;
    // Where it was best, and from where the next try starts: not always the same.
    let mut tried = layout.clone();
    for _ in 0..ROUNDS {
        let sticks_out = |id: u32| match tried.place(id as usize) {
            Some(at) => at + size(id) * GRANULE - base > bound,
            None => true,
        };
        if layout.cost() == (0, base + bound) || work > WORK_MAX || !order.iter().any(|&id| sticks_out(id)) {
            break;
        }
        let (mut first, rest): (Vec<u32>, Vec<u32>) = order.iter().partition(|&&id| sticks_out(id));
        first.extend(rest);
        order = first;
        tried = place(&order, &mut work);
        if tried.cost() < layout.cost() {
            layout = tried.clone();
        }
    }
    layout.footprint = footprint(step, &layout);
    let end = |guest: &Guest| guest.at + size(guest.request) * GRANULE;
    layout.top = guests.iter().map(end).fold(layout.top, u64::max);
    layout
}

/// The bytes that blocks lie on.
fn footprint(step: &Step, layout: &Layout) -> u64 {
    let end = |id: usize, at: u64| at + u64::from(step.blocks()[id].granules) * GRANULE;
    let ranges = (0..step.len()).filter_map(|id| layout.place(id).map(|at| (at, end(id, at))));
    let mut ranges: Vec<(u64, u64)> = ranges.collect();
    ranges.sort_unstable();
    let mut covered = 0;
    let bytes = |&(at, end): &(u64, u64)| {
        let new = end.saturating_sub(at.max(covered));
        covered = covered.max(end);
        new
    };
    ranges.iter().map(bytes).sum()
}

/// Something that lies somewhere.
#[derive(Debug, Clone, Copy)]
struct Placed {
    at: u64,
    end: u64,
    span: Span,
}

/// What has been placed so far, found by time: the circle is cut into equal parts, each with a list of what is in use in it.
struct Board<'a> {
    step: &'a Step,
    rooms: &'a [Room],
    width: u32,
    parts: Vec<Vec<u32>>,
    placed: Vec<Placed>,
    /// By number in `placed`: the last search that has seen it.
    seen: Vec<u32>,
    search: u32,
    /// What is in the way of the block in hand, by address.
    around: Vec<(u64, u64)>,
    work: u64,
}

impl<'a> Board<'a> {
    fn new(step: &'a Step, rooms: &'a [Room], guests: &[Guest]) -> Board<'a> {
        let len = step.len() as u32;
        // As many parts as make long lives and short lists cost about the same.
        let count = (2 * len.isqrt()).clamp(1, 512);
        let width = len.div_ceil(count);
        let mut board = Board {
            step,
            rooms,
            width,
            parts: vec![Vec::new(); len.div_ceil(width) as usize],
            placed: Vec::new(),
            seen: Vec::new(),
            search: 0,
            around: Vec::new(),
            work: 0,
        };
        for &Guest { at, request } in guests {
            let block = step.blocks()[request as usize];
            if block.life > 0 {
                let end = at + u64::from(block.granules) * GRANULE;
                board.put(Placed { at, end, span: Span { start: request, life: block.life } });
            }
        }
        board
    }

    fn place_all(&mut self, order: &[u32], guests: &[Guest], enough: &AtomicBool) -> Layout {
        let mut layout = Layout { at: vec![Layout::NOWHERE; self.step.len()], left_out: 0, top: 0, footprint: 0 };
        for &Guest { at, request } in guests {
            layout.at[request as usize] = at;
        }
        for &id in order {
            let block = self.step.blocks()[id as usize];
            let (bytes, span) = (u64::from(block.granules) * GRANULE, Span { start: id, life: block.life });
            let place = if enough.load(Relaxed) { None } else { self.lowest(bytes, span) };
            match place {
                Some(at) => {
                    layout.at[id as usize] = at;
                    layout.top = layout.top.max(at + bytes);
                    self.put(Placed { at, end: at + bytes, span });
                }
                None => layout.left_out += bytes,
            }
        }
        layout
    }

    /// The lowest address that is free for all of the span.
    fn lowest(&mut self, bytes: u64, span: Span) -> Option<u64> {
        self.search += 1;
        self.around.clear();
        let len = self.step.len() as u32;
        for part in parts_of(span, len, self.width) {
            self.work += self.parts[part].len() as u64;
            for &number in &self.parts[part] {
                if self.seen[number as usize] != self.search {
                    self.seen[number as usize] = self.search;
                    let other = self.placed[number as usize];
                    if span.meets(other.span, len) {
                        self.around.push((other.at, other.end));
                    }
                }
            }
        }
        self.work += self.around.len() as u64 * u64::from(self.around.len().max(1).ilog2());
        self.around.sort_unstable();
        let mut around = self.around.iter().copied().peekable();
        for room in self.rooms {
            let mut at = room.from;
            while let Some(&(from, to)) = around.peek() {
                if to <= at {
                    around.next();
                } else if from >= room.to || from >= at.saturating_add(bytes) {
                    break;
                } else {
                    at = at.max(to);
                    // What reaches beyond the room is in the way in the next one, too.
                    if to > room.to {
                        break;
                    }
                    around.next();
                }
            }
            if at.checked_add(bytes).is_some_and(|end| end <= room.to) {
                return Some(at);
            }
        }
        None
    }

    fn put(&mut self, placed: Placed) {
        let number = self.placed.len() as u32;
        self.placed.push(placed);
        self.seen.push(0);
        for part in parts_of(placed.span, self.step.len() as u32, self.width) {
            self.parts[part].push(number);
        }
    }
}

/// The parts of the circle that a span touches, each once.
fn parts_of(span: Span, len: u32, width: u32) -> impl Iterator<Item = usize> {
    let (first, last) = (span.start / width, span.start + span.life - 1);
    let wraps = last >= len;
    let to = if wraps { (len - 1) / width } else { last / width };
    // What comes round ends before the part it began in, or that part is there already.
    let round = if wraps { ((last - len) / width + 1).min(first) } else { 0 };
    (first..=to).chain(0..round).map(|part| part as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Block;
    use super::*;

    /// Every pair: what lives at one time does not overlap, and all is inside a room.
    fn check(step: &Step, rooms: &[Room], guests: &[Guest], layout: &Layout) {
        let bytes = |id: usize| u64::from(step.blocks()[id].granules) * GRANULE;
        let mut left_out = 0;
        for a in 0..step.len() {
            let Some(at) = layout.place(a) else {
                left_out += if step.blocks()[a].life > 0 { bytes(a) } else { 0 };
                continue;
            };
            assert!(step.blocks()[a].life > 0, "block {a} is not to be planned");
            let end = at + bytes(a);
            assert!(rooms.iter().any(|room| room.from <= at && end <= room.to), "block {a} at {at:#x} is in no room");
            assert!(end <= layout.top);
            for b in (0..a).filter(|&b| step.overlap(a, b)) {
                let Some(other) = layout.place(b) else { continue };
                assert!(end <= other || other + bytes(b) <= at, "blocks {a} and {b} overlap at {at:#x}, {other:#x}");
            }
        }
        assert_eq!(left_out, layout.left_out);
        for guest in guests {
            assert_eq!(layout.place(guest.request as usize), Some(guest.at));
        }
    }

    fn steps() -> impl Strategy<Value = Step> {
        let block = (1_u32..40, any::<prop::sample::Index>(), any::<bool>());
        prop::collection::vec(block, 1..120).prop_map(|blocks| {
            let len = blocks.len();
            let life = |index: prop::sample::Index, long: bool| {
                (if long { index.index(len + 1) } else { index.index(len.min(6) + 1).min(len) }) as u32
            };
            let blocks = blocks.into_iter().map(|(granules, i, long)| Block { granules, life: life(i, long) });
            Step::new(blocks.collect()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn nothing_overlaps_in_time_and_address(step in steps()) {
            let rooms = [Room { from: 1 << 30, to: 1 << 40 }];
            let layout = solve(&step, &rooms, &[]);
            check(&step, &rooms, &[], &layout);
            prop_assert_eq!(layout.left_out, 0);
            prop_assert!(layout.top >= layout.footprint && layout.footprint >= step.bound() * GRANULE);
        }

        #[test]
        fn rooms_and_guests_are_respected(
            step in steps(),
            every in 1_usize..9,
            sizes in prop::collection::vec((1_u64..60, 0_u64..20), 1..8),
        ) {
            // Some of the step's blocks, one behind the other, at the beginning of the first room.
            let mut end = 0;
            let planned = (0..step.len()).filter(|&id| step.blocks()[id].life > 0).step_by(every);
            let guests: Vec<Guest> = planned.map(|id| {
                let at = end;
                end += u64::from(step.blocks()[id].granules) * GRANULE;
                Guest { at, request: id as u32 }
            }).collect();
            let mut rooms = vec![Room { from: 0, to: end + GRANULE }];
            rooms.extend(sizes.iter().map(|&(size, gap)| {
                let from = end + (gap + 1) * GRANULE;
                end = from + size * GRANULE;
                Room { from, to: end }
            }));
            let layout = solve(&step, &rooms, &guests);
            check(&step, &rooms, &guests, &layout);
            prop_assert!(layout.footprint <= layout.top);
        }
    }

    #[test]
    fn a_pyramid_is_packed_to_the_bound() {
        // Forward keeps, backward lets go, and something short beside each.
        let depth = 40;
        let mut blocks = Vec::new();
        for layer in 0..depth {
            blocks.push(Block { granules: 8, life: 4 * (depth - layer) - 2 });
            blocks.push(Block { granules: 24 - layer % 7, life: 1 });
        }
        for layer in 0..depth {
            blocks.push(Block { granules: 16, life: 2 });
            blocks.push(Block { granules: 8 + layer % 5, life: 1 });
        }
        let step = Step::new(blocks).unwrap();
        let rooms = [Room { from: 0, to: 1 << 40 }];
        let layout = solve(&step, &rooms, &[]);
        check(&step, &rooms, &[], &layout);
        let ratio = layout.top as f64 / (step.bound() * GRANULE) as f64;
        assert!(ratio < 1.02, "{ratio}");
    }

    #[test]
    fn no_room_leaves_everything_out() {
        let step = Step::new(vec![Block { granules: 3, life: 1 }; 4]).unwrap();
        assert_eq!(solve(&step, &[], &[]).left_out, 12 * GRANULE);
        let rooms = [Room { from: 0, to: 2 * GRANULE }];
        assert_eq!(solve(&step, &rooms, &[]).left_out, 12 * GRANULE);
    }
}
