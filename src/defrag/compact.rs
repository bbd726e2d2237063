//! Which blocks to move so that chunks become free: those of the chunks that are emptied with the least copying, into gaps of the fullest ones.
//!
//! A chunk can be emptied if nothing in it stays. Its blocks go into gaps of chunks that hold something which is not emptied: to fill one free
//! chunk in order to free another gains nothing. This is greedy, with a bound on the gaps that are tried for a block: what it finds is good,
//! not the best there is.

use crate::pool::{CompactView, MovableBlock, MoveTo};
use crate::units::align_up;

/// Gaps that are tried for one block, at most.
const PROBES: usize = 512;

/// A range of free bytes in chunks that hold something.
struct Piece {
    addr: u64,
    end: u64,
    zone: usize,
    lane: Option<u16>,
}

/// A chunk, and what is planned for it.
#[derive(Default)]
struct Unit {
    start: u64,
    end: u64,
    /// Something in it stays where it is.
    fixed: bool,
    live: u64,
    blocks: Vec<usize>,
    /// It is being emptied.
    leaves: bool,
    /// Something moves into it.
    target: bool,
}

/// The moves of one chunk's blocks, while it is not certain that all find a place.
#[derive(Default)]
struct Trial {
    moves: Vec<MoveTo>,
    /// Pieces with the address at which each began before.
    cut: Vec<(usize, u64)>,
    /// Slots taken: slab, word, bit.
    slots: Vec<(usize, usize, u64)>,
    bytes: u64,
}

/// Moves that empty chunks, at most `bytes_max` bytes of them.
pub(crate) fn compact(view: &CompactView, bytes_max: u64) -> Vec<MoveTo> {
    let mut plan = Plan::new(view);
    let mut order: Vec<usize> = (0..plan.units.len()).collect();
    order.retain(|&unit| !plan.units[unit].fixed && !plan.units[unit].blocks.is_empty());
    // Cheap ones first; of these the upper ones, so that low addresses stay in use.
    order.sort_unstable_by_key(|&unit| (plan.units[unit].live, std::cmp::Reverse(unit)));
    let (mut moves, mut bytes) = (Vec::new(), 0);
    let mut moved = vec![false; view.blocks.len()];
    for unit in order {
        if plan.units[unit].target {
            continue;
        }
        let left: Vec<usize> = plan.units[unit].blocks.iter().copied().filter(|&block| !moved[block]).collect();
        plan.units[unit].leaves = true;
        match plan.place_all(left, bytes_max - bytes) {
            Some(trial) => {
                bytes += trial.bytes;
                for to in &trial.moves {
                    moved[to.block] = true;
                    let end = to.addr + view.blocks[to.block].size;
                    plan.units_at(to.addr, end).for_each(|unit| plan.units[unit].target = true);
                }
                moves.extend(trial.moves);
            }
            None => plan.units[unit].leaves = false,
        }
    }
    moves
}

struct Plan<'a> {
    view: &'a CompactView,
    units: Vec<Unit>,
    /// Those in the fullest chunks first.
    pieces: Vec<Piece>,
    /// Free slots by slab, and the order in which slabs are tried.
    slots: Vec<Box<[u64]>>,
    slab_order: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(view: &'a CompactView) -> Plan<'a> {
        let units = view.chunks.iter().map(|&(start, end)| Unit { start, end, ..Unit::default() });
        let mut plan =
            Plan { view, units: units.collect(), pieces: Vec::new(), slots: Vec::new(), slab_order: Vec::new() };
        for &(start, end) in &view.fixed {
            for unit in plan.units_at(start, end) {
                let unit = &mut plan.units[unit];
                unit.fixed = true;
                unit.live += end.min(unit.end) - start.max(unit.start);
            }
        }
        for (index, block) in view.blocks.iter().enumerate() {
            let (start, end) = (block.addr, block.addr + block.size);
            for unit in plan.units_at(start, end) {
                let unit = &mut plan.units[unit];
                unit.live += end.min(unit.end) - start.max(unit.start);
                unit.blocks.push(index);
            }
        }
        plan.pieces = plan.find_pieces();
        plan.slots = view.slabs.iter().map(|slab| slab.free.clone()).collect();
        plan.slab_order = (0..view.slabs.len()).collect();
        let free = |slab: usize| view.slabs[slab].free.iter().map(|word| word.count_ones()).sum::<u32>();
        plan.slab_order.sort_by_cached_key(|&slab| (free(slab), view.slabs[slab].begin));
        plan
    }

    /// The chunks that a range touches.
    fn units_at(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let first = self.units.partition_point(|unit| unit.end <= start);
        first..first.max(self.units.partition_point(|unit| unit.start < end))
    }

    /// The parts of gaps that lie in chunks which hold something.
    fn find_pieces(&self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for gap in &self.view.gaps {
            let mut open: Option<Piece> = None;
            for unit in &self.units[self.units_at(gap.addr, gap.end)] {
                let (addr, end) = (unit.start.max(gap.addr), unit.end.min(gap.end));
                if unit.live == 0 {
                    pieces.extend(open.take());
                } else if let Some(piece) = open.as_mut().filter(|piece| piece.end == addr) {
                    piece.end = end;
                } else {
                    pieces.extend(open.replace(Piece { addr, end, zone: gap.zone, lane: gap.lane }));
                }
            }
            pieces.extend(open);
        }
        let rank = |piece: &Piece| {
            let unit = &self.units[self.units_at(piece.addr, piece.end).start];
            (std::cmp::Reverse((unit.fixed, unit.live)), piece.addr)
        };
        pieces.sort_by_cached_key(rank);
        pieces
    }

    fn leaves(&self, start: u64, end: u64) -> bool {
        self.units[self.units_at(start, end)].iter().any(|unit| unit.leaves)
    }

    /// Places for all of these blocks, or none for any.
    fn place_all(&mut self, mut blocks: Vec<usize>, bytes_max: u64) -> Option<Trial> {
        // The large ones first, which fit in few places.
        blocks.sort_by_key(|&block| (std::cmp::Reverse(self.view.blocks[block].size), block));
        let mut trial = Trial::default();
        for index in blocks {
            let block = self.view.blocks[index];
            trial.bytes += block.size;
            let place = if trial.bytes > bytes_max {
                None
            } else if block.slot {
                self.place_slot(&block, &mut trial)
            } else {
                self.place_range(&block, &mut trial)
            };
            let Some(addr) = place else {
                self.undo(trial);
                return None;
            };
            trial.moves.push(MoveTo { block: index, addr });
        }
        Some(trial)
    }

    fn place_range(&mut self, block: &MovableBlock, trial: &mut Trial) -> Option<u64> {
        let at = |piece: &Piece| {
            let usable = piece.zone == block.zone && piece.lane.is_none_or(|lane| lane == block.lane);
            let addr = align_up(piece.addr, block.alignment).filter(|_| usable)?;
            let end = addr.checked_add(block.size).filter(|&end| end <= piece.end)?;
            (!self.leaves(addr, end)).then_some(addr)
        };
        let tried = self.pieces.iter().enumerate().filter(|(_, piece)| piece.end - piece.addr >= block.size);
        let (index, addr) = tried.take(PROBES).find_map(|(index, piece)| Some((index, at(piece)?)))?;
        trial.cut.push((index, self.pieces[index].addr));
        // What is skipped for alignment is lost to this pass.
        self.pieces[index].addr = addr + block.size;
        Some(addr)
    }

    fn place_slot(&mut self, block: &MovableBlock, trial: &mut Trial) -> Option<u64> {
        let fits = |&&slab: &&usize| {
            let info = &self.view.slabs[slab];
            info.size == block.size
                && info.lane == block.lane
                && self.slots[slab].iter().any(|&word| word != 0)
                && !self.leaves(info.begin, info.begin + 1)
        };
        let &slab = self.slab_order.iter().find(fits)?;
        let word = self.slots[slab].iter().position(|&word| word != 0)?;
        let bit = self.slots[slab][word] & self.slots[slab][word].wrapping_neg();
        self.slots[slab][word] &= !bit;
        trial.slots.push((slab, word, bit));
        let slot = word as u64 * 64 + u64::from(bit.trailing_zeros());
        Some(self.view.slabs[slab].begin + slot * block.size)
    }

    fn undo(&mut self, trial: Trial) {
        for (piece, addr) in trial.cut.into_iter().rev() {
            self.pieces[piece].addr = addr;
        }
        for (slab, word, bit) in trial.slots {
            self.slots[slab][word] |= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Gap, SlabGaps};
    use crate::units::{GRANULE, PAGE};

    const CHUNK: u64 = PAGE;

    fn random(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        }
    }

    /// Chunks side by side, filled at random. Blocks and gaps tile them.
    fn scene(seed: u64, chunks: u64, fixed_percent: u64) -> CompactView {
        let mut random = random(seed);
        let mut view = CompactView {
            chunks: (0..chunks).map(|n| (n * CHUNK, (n + 1) * CHUNK)).collect(),
            ..CompactView::default()
        };
        let mut at = 0;
        while at < chunks * CHUNK {
            let size = ((1 + random(2400)) * GRANULE).min(chunks * CHUNK - at);
            if random(100) < 60 {
                let after_gap = view.gaps.last().filter(|gap| gap.end == at);
                if after_gap.is_none() {
                    let lane = [None, Some(1), Some(2)][random(3) as usize];
                    view.gaps.push(Gap { addr: at, end: at + size, zone: 1, lane });
                }
            } else if random(100) < fixed_percent {
                view.fixed.push((at, at + size));
            } else {
                let alignment = GRANULE << random(4);
                view.blocks.push(MovableBlock {
                    addr: at,
                    size,
                    lane: 1 + random(2) as u16,
                    zone: 1,
                    alignment,
                    slot: false,
                });
            }
            at += size;
        }
        view
    }

    fn empty_chunks(view: &CompactView, moves: &[MoveTo]) -> usize {
        let mut ranges = view.fixed.clone();
        for (index, block) in view.blocks.iter().enumerate() {
            let addr = moves.iter().find(|to| to.block == index).map_or(block.addr, |to| to.addr);
            ranges.push((addr, addr + block.size));
        }
        let is_empty = |&&(start, end): &&(u64, u64)| !ranges.iter().any(|&(a, b)| a < end && start < b);
        view.chunks.iter().filter(is_empty).count()
    }

    #[test]
    fn moves_go_into_gaps_and_never_onto_anything() {
        let mut gained = 0;
        for seed in 0..300 {
            let view = scene(seed, 2 + seed % 20, [0, 2, 10, 40][seed as usize % 4]);
            let limit = if seed % 3 == 0 { 3 << 20 } else { u64::MAX };
            let moves = compact(&view, limit);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for to in &moves {
                let block = view.blocks[to.block];
                let (start, end) = (to.addr, to.addr + block.size);
                assert!(start.is_multiple_of(block.alignment));
                let inside =
                    |gap: &&Gap| gap.addr <= start && end <= gap.end && gap.lane.is_none_or(|lane| lane == block.lane);
                assert!(view.gaps.iter().any(|gap| inside(&gap)), "seed {seed}: {to:?}");
                assert!(taken.iter().all(|&(a, b)| b <= start || end <= a), "seed {seed}: {to:?} lies on another");
                taken.push((start, end));
            }
            let mut blocks: Vec<usize> = moves.iter().map(|to| to.block).collect();
            blocks.sort_unstable();
            blocks.dedup();
            assert_eq!(blocks.len(), moves.len(), "no block moves twice");
            assert!(moves.iter().map(|to| view.blocks[to.block].size).sum::<u64>() <= limit);
            let (before, after) = (empty_chunks(&view, &[]), empty_chunks(&view, &moves));
            assert!(
                moves.is_empty() && after == before || after > before,
                "seed {seed}: {before} to {after} in {moves:?}"
            );
            gained += after - before;
        }
        assert!(gained > 300, "{gained} chunks of some 3,000");
    }

    #[test]
    fn slots_move_into_the_fullest_slabs_of_their_lane() {
        let size = 1 << 16;
        let page = |n: u64| (n * CHUNK, (n + 1) * CHUNK);
        let slots = |n: u64, live: std::ops::Range<u64>, lane| {
            live.map(move |slot| MovableBlock {
                addr: n * CHUNK + slot * size,
                size,
                lane,
                zone: 0,
                alignment: GRANULE,
                slot: true,
            })
        };
        let free = |n: u64, live: u64, lane| SlabGaps {
            begin: n * CHUNK,
            size,
            lane,
            free: Box::new([u64::from(u32::MAX << live)]),
        };
        let view = CompactView {
            chunks: (0..4).map(page).collect(),
            blocks: slots(0, 0..3, 1)
                .chain(slots(1, 0..20, 1))
                .chain(slots(2, 0..30, 2))
                .chain(slots(3, 0..10, 1))
                .collect(),
            slabs: vec![free(0, 3, 1), free(1, 20, 1), free(2, 30, 2), free(3, 10, 1)],
            ..CompactView::default()
        };
        let moves = compact(&view, u64::MAX);
        // Three and ten slots go onto the page with twenty: twelve fit, so the ten have to stay.
        assert_eq!(moves.len(), 3, "{moves:?}");
        assert!(moves.iter().all(|to| to.addr / CHUNK == 1 && view.blocks[to.block].addr / CHUNK == 0), "{moves:?}");
        assert_eq!(empty_chunks(&view, &moves), 1);
    }

    #[test]
    fn nothing_moves_where_nothing_is_gained() {
        assert_eq!(compact(&CompactView::default(), u64::MAX), []);
        // One block a chunk, and all else free: each would have to go into a free chunk.
        let block =
            |n: u64| MovableBlock { addr: n * CHUNK, size: CHUNK, lane: 1, zone: 1, alignment: GRANULE, slot: false };
        let view = CompactView {
            chunks: (0..4).map(|n| (n * CHUNK, (n + 1) * CHUNK)).collect(),
            blocks: vec![block(0), block(2)],
            gaps: vec![
                Gap { addr: CHUNK, end: 2 * CHUNK, zone: 1, lane: None },
                Gap { addr: 3 * CHUNK, end: 4 * CHUNK, zone: 1, lane: None },
            ],
            ..CompactView::default()
        };
        assert_eq!(compact(&view, u64::MAX), []);
    }
}
