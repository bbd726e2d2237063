//! Which live blocks to free so that a request is served: few bytes, and few blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::map::{Assume, Freed, Map, Run, SlabInfo, Use, What};
use super::scene::Scene;
use crate::block::{ClassId, Owner};
use crate::pool::directory::{BlockId, life, slot_id};
use crate::pool::{Kind, Want};
use crate::units::{GRANULE, PAGE};

/// Blocks that an advice names at most.
const BLOCKS_MAX: usize = 32;

/// Neighbours of which each is either usable as it is, or would be if its blocks were freed.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Into the map's ranges.
    index: usize,
    usable: bool,
    /// Bytes and blocks to free.
    cost: u64,
    count: usize,
    /// Bytes that can be had elsewhere as it is.
    movable: u64,
    addr: u64,
    end: u64,
}

/// Blocks to free, and their bytes.
pub(super) type Choice = (Vec<BlockId>, u64);

impl Scene<'_> {
    /// The cheapest few blocks that are found: those whose freeing serves the request.
    pub(super) fn blocks_to_free(&self) -> Option<Choice> {
        let stretches = self.stretches();
        let runs = self.map.runs(self.pool, self.state, &self.as_is());
        let mut choices: Vec<Choice> = self.same_slot().into_iter().collect();
        choices.extend(self.neighbours(&stretches, &runs));
        choices.extend(self.scattered(&stretches, &runs));
        choices.sort_by_key(|(blocks, bytes)| (*bytes, blocks.len()));
        choices.into_iter().find(|(blocks, _)| self.would_serve(blocks))
    }

    fn would_serve(&self, blocks: &[BlockId]) -> bool {
        let assume = Assume { freed: Freed::blocks(blocks), ..self.as_is() };
        self.serves(self.want, &assume, self.room())
    }

    /// A slot like the one that is wanted.
    fn same_slot(&self) -> Option<Choice> {
        let Want { kind: Kind::Slot(class, _), lane, .. } = self.want else { return None };
        let same = |slab: &&SlabInfo| slab.class == class && slab.lane == lane && slab.live > 0;
        let slab = self.map.slabs.iter().find(same)?;
        let is_live = |block: &BlockId| self.pool.directory.header(*block).life() == life::LIVE;
        let block = (0..slab.places).map(|slot| slot_id(slab.number, slot)).find(is_live)?;
        Some((vec![block], class.size()))
    }

    /// Memory cut into stretches in which every range is usable, or its blocks can be freed.
    fn stretches(&self) -> Vec<Vec<Entry>> {
        let assume = self.as_is();
        let mut stretches: Vec<Vec<Entry>> = vec![Vec::new()];
        let mut runs = self.map.runs(self.pool, self.state, &assume).into_iter().peekable();
        for (index, range) in self.map.ranges.iter().enumerate() {
            if !range.joined {
                stretches.push(Vec::new());
            }
            let open = stretches.last_mut().expect("there is one from the start");
            if let Some(run) = runs.peek().filter(|run| (run.first..=run.last).contains(&index)) {
                if index == run.first {
                    let Run { addr, end, movable, .. } = *run;
                    open.push(Entry { index, usable: true, cost: 0, count: 0, movable, addr, end });
                }
                if index == run.last {
                    runs.next();
                }
                continue;
            }
            let (cost, count) = self.cost_of(range.what);
            if count == 0 || count > BLOCKS_MAX {
                stretches.push(Vec::new());
                continue;
            }
            open.push(Entry { index, usable: false, cost, count, movable: 0, addr: range.addr, end: range.end() });
        }
        stretches.retain(|stretch| stretch.iter().any(|entry| !entry.usable));
        stretches
    }

    /// Live bytes and blocks, if freeing them would make the range usable; 0 blocks if not.
    fn cost_of(&self, what: What) -> (u64, usize) {
        let none = (0, 0);
        match what {
            What::Free { .. } => none,
            What::Block(block) => {
                let header = self.pool.directory.header(block);
                let is_live = header.life() == life::LIVE;
                let goes = is_live && Map::lane_serves(self.state, &self.as_is(), header.lane()) != Use::No;
                if goes { (header.size(), 1) } else { none }
            }
            What::Slab(index) => {
                let slab = &self.map.slabs[index];
                let serves = Map::lane_serves(self.state, &self.as_is(), slab.lane) != Use::No;
                let goes = serves && !slab.shares && slab.looked && slab.taken == slab.live;
                if goes { (u64::from(slab.live) * slab.class.size(), slab.live as usize) } else { none }
            }
        }
    }

    /// A few neighbours.
    fn neighbours(&self, stretches: &[Vec<Entry>], runs: &[Run]) -> Option<Choice> {
        let needed = self.needed(self.want);
        let supply = self.supply(self.want, runs, false, self.room());
        let mut best: Option<(u64, Vec<usize>)> = None;
        for stretch in stretches {
            for lo in (0..stretch.len()).filter(|&lo| !stretch[lo].usable) {
                let (mut cost, mut count, mut had) = (0, 0, 0);
                let before = lo.checked_sub(1).map(|at| stretch[at]).filter(|entry| entry.usable);
                let start = before.map_or(stretch[lo].addr, |entry| entry.addr);
                had += before.map_or(0, |entry| entry.movable);
                for hi in lo..stretch.len() {
                    let entry = stretch[hi];
                    (cost, count, had) = (cost + entry.cost, count + entry.count, had + entry.movable);
                    if count > BLOCKS_MAX || best.as_ref().is_some_and(|best| best.0 <= cost) {
                        break;
                    }
                    if entry.usable {
                        continue;
                    }
                    let after = stretch.get(hi + 1).filter(|entry| entry.usable);
                    let end = after.map_or(entry.end, |entry| entry.end);
                    let range = &self.map.ranges[entry.index];
                    let had = had + after.map_or(0, |entry| entry.movable);
                    let gained = Map::movable(self.state, range, start, end).saturating_sub(had);
                    let moves = self.want.may_grow && supply + gained >= needed;
                    if moves || Scene::holds(self.want, range.zone, start, end) {
                        let units = stretch[lo..=hi].iter().filter(|entry| !entry.usable);
                        best = Some((cost, units.map(|entry| entry.index).collect()));
                        break;
                    }
                }
            }
        }
        best.map(|(cost, units)| (self.blocks_of(&units), cost))
    }

    /// Chunks, or plain segments, here and there: the cheapest first, until they are enough.
    fn scattered(&self, stretches: &[Vec<Entry>], runs: &[Run]) -> Option<Choice> {
        if !self.want.may_grow {
            return None;
        }
        let chunks: BTreeMap<u64, u64> = self.state.space.fronts(0, u64::MAX).map(|(at, _, size)| (at, size)).collect();
        let cell = |entry: &Entry, at: u64| match self.map.ranges[entry.index].plain {
            Some(plain) => Some(plain),
            None => chunks
                .range(..=at)
                .next_back()
                .map(|(&start, &size)| (start, size))
                .filter(|(start, size)| at < start + size),
        };
        // By first byte: size, bytes that are usable or can be freed, their cost, and whose blocks.
        let mut cells: BTreeMap<u64, (u64, u64, u64, Vec<usize>)> = BTreeMap::new();
        for entry in stretches.iter().flatten() {
            let mut at = entry.addr;
            while at < entry.end
                && let Some((start, size)) = cell(entry, at)
            {
                let slot = cells.entry(start).or_insert((size, 0, 0, Vec::new()));
                slot.1 += entry.end.min(start + size) - at;
                if !entry.usable {
                    slot.2 += entry.cost;
                    slot.3.push(entry.index);
                }
                at = start + size;
            }
        }
        let mut order: Vec<(u64, u64, u64, &Vec<usize>)> = cells
            .iter()
            .filter(|(_, (size, bytes, _, units))| bytes == size && !units.is_empty())
            .map(|(&start, (size, _, cost, units))| (*cost, start, *size, units))
            .collect();
        order.sort_unstable();
        let needed = self.needed(self.want);
        let mut supply = self.supply(self.want, runs, false, self.room());
        let (mut picked, mut blocks, mut cost) = (BTreeSet::new(), Vec::new(), 0);
        for (_, _, bytes, units) in order {
            for &unit in units {
                if picked.insert(unit) {
                    let (bytes, _) = self.cost_of(self.map.ranges[unit].what);
                    cost += bytes;
                    blocks.extend(self.live_blocks(self.map.ranges[unit].what));
                }
            }
            supply += bytes;
            if blocks.len() > BLOCKS_MAX {
                return None;
            }
            if supply >= needed && self.would_serve(&blocks) {
                return Some((blocks, cost));
            }
        }
        None
    }

    fn blocks_of(&self, units: &[usize]) -> Vec<BlockId> {
        units.iter().flat_map(|&unit| self.live_blocks(self.map.ranges[unit].what)).collect()
    }

    /// Whether freeing all blocks of a tag serves the request.
    pub(super) fn tag_serves(&self, tag: u8) -> bool {
        let assume = Assume { freed: Freed::Tag(tag), ..self.as_is() };
        self.serves(self.want, &assume, self.room())
    }

    /// Bytes of pages that are sure to come free if slabs with disjoint live slots share memory. Of each two pairs one may be lost to a third slab
    /// that takes a partner away.
    pub(super) fn meshable(&self) -> u64 {
        const LOOKED_AT: usize = 512;
        let slabs = self.state.slabs.sharable().filter(|&(number, lane, group, slab)| {
            let private = self.state.lanes.is_private(lane);
            !private && group.is_none() && self.state.slabs.is_own(number) && self.state.space.is_front(slab.addr, PAGE)
        });
        let mut left: Vec<(ClassId, Box<[u64]>)> = Vec::new();
        let mut pairs = 0u64;
        for (_, _, _, slab) in slabs.take(LOOKED_AT) {
            let taken = slab.taken();
            let disjoint = |other: &(ClassId, Box<[u64]>)| {
                other.0 == slab.class && other.1.iter().zip(&taken).all(|(a, b)| a & b == 0)
            };
            match left.iter().position(disjoint) {
                Some(partner) => {
                    left.swap_remove(partner);
                    pairs += 1;
                }
                None => left.push((slab.class, taken)),
            }
        }
        pairs.div_ceil(2) * PAGE
    }

    /// Bytes that other streams have and have not passed, in one piece that a stream could be made to wait for.
    pub(super) fn could_wait_for(&self) -> u64 {
        let (zone, size, alignment) = self.want.range();
        let size = size.saturating_add(alignment.saturating_sub(GRANULE));
        let others = self.state.lanes.ids().filter(|&id| id != self.want.lane);
        let ordinary = others.filter(|&id| !self.state.lanes.is_private(id));
        let largest = ordinary.map(|id| self.state.zones[zone].largest_free(Owner(id))).max().unwrap_or(0);
        if largest >= size { largest } else { 0 }
    }
}
