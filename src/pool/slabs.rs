//! The slabs of a device, by lane and size class.

use super::lanes::LaneId;
use crate::block::{ClassId, NodeId, Slab};

/// A slab and where it is.
#[derive(Debug)]
struct Entry {
    slab: Slab,
    lane: LaneId,
    node: NodeId,
}

/// A slab that has gone: its page can go back to the arena.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retired {
    pub(super) node: NodeId,
    pub(super) lane: LaneId,
}

/// All slabs. A slab with free slots is listed once in `partial`, under its lane and class.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    list: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    partial: Vec<[Vec<u32>; ClassId::COUNT]>,
}

impl Slabs {
    /// The number that the next slab gets.
    pub(super) fn next_number(&self) -> u32 {
        self.vacant.last().copied().unwrap_or(self.list.len() as u32)
    }

    /// Adds the slab with the number [`Slabs::next_number`].
    pub(super) fn add(&mut self, addr: u64, class: ClassId, lane: LaneId, node: NodeId) -> u32 {
        let number = self.next_number();
        let entry = Entry { slab: Slab::new(addr, class), lane, node };
        if self.vacant.pop().is_some() {
            self.list[number as usize] = Some(entry);
        } else {
            self.list.push(Some(entry));
        }
        self.partial_mut(lane, class).push(number);
        number
    }

    fn partial_mut(&mut self, lane: LaneId, class: ClassId) -> &mut Vec<u32> {
        while self.partial.len() <= lane as usize {
            self.partial.push([const { Vec::new() }; ClassId::COUNT]);
        }
        &mut self.partial[lane as usize][class.index()]
    }

    fn entry(&mut self, number: u32) -> &mut Entry {
        self.list[number as usize].as_mut().expect("a block's slab exists")
    }

    /// Takes a free slot: the slab's number and the slot's.
    #[inline]
    pub(super) fn take(&mut self, lane: LaneId, class: ClassId) -> Option<(u32, u32)> {
        let number = *self.partial.get(lane as usize)?[class.index()].last()?;
        let entry = self.list[number as usize].as_mut()?;
        let slot = entry.slab.take()?;
        if entry.slab.is_full() {
            self.partial[lane as usize][class.index()].pop();
        }
        Some((number, slot))
    }

    /// Frees a slot. One empty slab of a kind is kept; a further one is retired.
    #[inline]
    pub(super) fn release(&mut self, number: u32, slot: u32) -> Option<Retired> {
        let entry = self.entry(number);
        let (lane, class, was_full) = (entry.lane, entry.slab.class, entry.slab.is_full());
        entry.slab.release(slot);
        let is_empty = entry.slab.is_empty();
        let partial = self.partial_mut(lane, class);
        if was_full {
            partial.push(number);
        }
        if is_empty && self.partial[lane as usize][class.index()].len() > 1 { self.retire(number) } else { None }
    }

    fn retire(&mut self, number: u32) -> Option<Retired> {
        let entry = self.list[number as usize].take()?;
        self.partial_mut(entry.lane, entry.slab.class).retain(|&other| other != number);
        self.vacant.push(number);
        Some(Retired { node: entry.node, lane: entry.lane })
    }

    /// Retires every empty slab.
    pub(super) fn retire_empty(&mut self) -> Vec<Retired> {
        let is_empty = |n: &u32| self.list[*n as usize].as_ref().is_some_and(|entry| entry.slab.is_empty());
        let empty: Vec<u32> = (0..self.list.len() as u32).filter(is_empty).collect();
        empty.into_iter().filter_map(|number| self.retire(number)).collect()
    }

    /// Every slab: its number, and the node that it lies in.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, NodeId, &Slab)> {
        let entries = (0..).zip(&self.list);
        entries.filter_map(|(number, entry)| entry.as_ref().map(|entry| (number, entry.node, &entry.slab)))
    }

    /// The node that each slab lies in, and its lane.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (NodeId, LaneId)> + '_ {
        self.list.iter().flatten().map(|entry| (entry.node, entry.lane))
    }

    /// Takes one particular slot, which is free.
    pub(super) fn take_slot(&mut self, number: u32, slot: u32) -> bool {
        let entry = self.entry(number);
        if !entry.slab.take_slot(slot) {
            return false;
        }
        let (lane, class) = (entry.lane, entry.slab.class);
        if entry.slab.is_full() {
            self.partial_mut(lane, class).retain(|&other| other != number);
        }
        true
    }

    /// How many slabs there are.
    pub(super) fn count(&self) -> u64 {
        (self.list.len() - self.vacant.len()) as u64
    }

    /// Checks every slab, and that exactly those with free slots are listed.
    pub(super) fn validate(&self) -> Result<(), String> {
        let mut partial = 0;
        for (number, entry) in (0u32..).zip(&self.list) {
            let Some(entry) = entry else { continue };
            entry.slab.validate()?;
            let lists = self.partial.get(entry.lane as usize);
            let listed = lists.is_some_and(|classes| classes[entry.slab.class.index()].contains(&number));
            if listed == entry.slab.is_full() {
                return Err(format!("slab {number} has {} free slots, listed: {listed}", entry.slab.free_slots()));
            }
            partial += usize::from(listed);
        }
        let listed: usize = self.partial.iter().flat_map(|classes| classes.iter()).map(Vec::len).sum();
        if listed == partial { Ok(()) } else { Err(format!("{listed} slabs listed, {partial} partial")) }
    }
}
