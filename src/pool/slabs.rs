//! The slabs of a device, by lane and size class, and groups of those that share a page's memory.

use super::lanes::LaneId;
use crate::block::{ClassId, NodeId, Slab, set_bits};
use crate::units::PAGE;

/// A slab and where it is.
#[derive(Debug)]
struct Entry {
    slab: Slab,
    lane: LaneId,
    node: NodeId,
    /// The group of slabs that its page's memory is shared with.
    group: Option<u32>,
    /// Of a group's slab that is empty and to leave: when its lane used it last. It serves nobody any more.
    leaving: Option<u64>,
    /// Whether a copy that nobody has seen the end of may still touch its page, or the page has lost its memory: nothing of it is handed out
    /// or given up until that is over.
    frozen: bool,
}

impl Entry {
    /// Whether it is listed as one with free slots.
    fn is_partial(&self) -> bool {
        !self.slab.is_full() && self.leaving.is_none() && !self.frozen
    }

    /// Whether its memory can go.
    fn is_idle(&self) -> bool {
        self.slab.is_empty() && self.group.is_none() && !self.frozen
    }
}

/// A slab that has gone: its memory can go back to the arena.
#[derive(Debug, Clone, Copy)]
pub(super) struct FreedSlab {
    pub(super) node: NodeId,
    pub(super) lane: LaneId,
}

/// A slab that leaves its group, now that nothing touches its page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaver {
    pub(super) number: u32,
    pub(super) addr: u64,
    /// The page of a slab that stays. `None` for the last slab, which has the memory to itself.
    pub(super) heir: Option<u64>,
}

/// Numbers of slabs: a bit each.
#[derive(Debug, Default)]
struct Idle {
    bits: Vec<u64>,
    count: usize,
}

impl Idle {
    /// Adds a number that is not there, or takes out one that is.
    fn set(&mut self, number: u32, is_idle: bool) {
        let (word, bit) = ((number / 64) as usize, number % 64);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        debug_assert!((self.bits[word] >> bit & 1 != 0) != is_idle);
        self.bits[word] ^= 1 << bit;
        self.count = if is_idle { self.count + 1 } else { self.count - 1 };
    }

    /// The numbers, in ascending order.
    fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        set_bits(self.bits.iter().copied())
    }
}

/// A lane's slabs of one class.
#[derive(Debug, Default)]
struct OfClass {
    /// Those with free slots.
    partial: Vec<u32>,
    /// Bytes of all.
    bytes: u64,
}

impl OfClass {
    const NONE: OfClass = OfClass { partial: Vec::new(), bytes: 0 };
}

/// The slabs of a pool. A slab with free slots is listed once, under its lane and class.
///
/// Slabs whose pages share memory form a group: slabs of one class, each slot of the page owned by exactly one of them.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    list: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    lanes: Vec<[OfClass; ClassId::COUNT]>,
    groups: Vec<Vec<u32>>,
    vacant_groups: Vec<u32>,
    /// Whether any slab is frozen.
    frozen: bool,
    /// Slabs that are empty and whose memory is theirs alone.
    idle: Idle,
    /// Slabs that are parts of a page.
    parts: u32,
    /// How many there may be.
    parts_max: u32,
}

impl Slabs {
    /// None yet; at most so many are to be parts of a page.
    pub(super) fn new(parts_max: u32) -> Slabs {
        Slabs { parts_max, ..Slabs::default() }
    }

    /// The number that the next slab gets.
    pub(super) fn next_number(&self) -> u32 {
        self.vacant.last().copied().unwrap_or(self.list.len() as u32)
    }

    /// The bytes of the next slab of a lane and class: as many as those that there are have together, so that what is not used of them is in
    /// proportion to what is, from a few slots to a page. Pages only, once there are very many parts.
    #[inline]
    pub(super) fn next_size(&self, lane: LaneId, class: ClassId) -> u64 {
        if self.parts >= self.parts_max {
            return PAGE;
        }
        let bytes = self.lanes.get(lane as usize).map_or(0, |classes| classes[class.index()].bytes);
        bytes.clamp(Slab::least(class), PAGE).next_power_of_two()
    }

    /// Adds the slab with the number [`Slabs::next_number`].
    pub(super) fn add(&mut self, addr: u64, size: u64, class: ClassId, lane: LaneId, node: NodeId) -> u32 {
        let number = self.next_number();
        let slab = Slab::new(addr, size, class);
        self.parts += u32::from(!slab.is_whole());
        let entry = Entry { slab, lane, node, group: None, leaving: None, frozen: false };
        if self.vacant.pop().is_some() {
            self.list[number as usize] = Some(entry);
        } else {
            self.list.push(Some(entry));
        }
        self.idle.set(number, true);
        while self.lanes.len() <= lane as usize {
            self.lanes.push([OfClass::NONE; ClassId::COUNT]);
        }
        let of_class = self.of_class(lane, class);
        of_class.bytes += size;
        of_class.partial.push(number);
        number
    }

    /// Of a lane that has had a slab.
    #[inline]
    fn of_class(&mut self, lane: LaneId, class: ClassId) -> &mut OfClass {
        &mut self.lanes[lane as usize][class.index()]
    }

    fn entry(&mut self, number: u32) -> &mut Entry {
        self.list[number as usize].as_mut().expect("a block's slab exists")
    }

    /// Takes a free slot: the slab's number, the slot's, and its address.
    #[inline]
    pub(super) fn take(&mut self, lane: LaneId, class: ClassId) -> Option<(u32, u32, u64)> {
        let number = *self.lanes.get(lane as usize)?[class.index()].partial.last()?;
        let entry = self.list[number as usize].as_mut()?;
        if entry.is_idle() {
            self.idle.set(number, false);
        }
        let slot = entry.slab.take()?;
        let addr = entry.slab.slot_addr(slot);
        if entry.slab.is_full() {
            self.of_class(lane, class).partial.pop();
        }
        Some((number, slot, addr))
    }

    /// Frees a slot. One empty slab of a kind is kept; a further one is retired. One whose page shares memory stays: see [`Slabs::empty_leave`].
    #[inline]
    pub(super) fn release(&mut self, number: u32, slot: u32) -> Option<FreedSlab> {
        let entry = self.entry(number);
        let (lane, class, was_full) = (entry.lane, entry.slab.class, entry.slab.is_full());
        entry.slab.release(slot);
        let (is_idle, joins) = (entry.is_idle(), was_full && entry.is_partial());
        if is_idle {
            self.idle.set(number, true);
        }
        let partial = &mut self.of_class(lane, class).partial;
        if joins {
            partial.push(number);
        }
        if is_idle && partial.len() > 1 { self.retire(number) } else { None }
    }

    fn retire(&mut self, number: u32) -> Option<FreedSlab> {
        let entry = self.list[number as usize].take()?;
        debug_assert!(entry.is_idle());
        self.idle.set(number, false);
        self.vacant.push(number);
        self.parts -= u32::from(!entry.slab.is_whole());
        let of_class = self.of_class(entry.lane, entry.slab.class);
        of_class.bytes -= entry.slab.size;
        of_class.partial.retain(|&other| other != number);
        Some(FreedSlab { node: entry.node, lane: entry.lane })
    }

    /// Retires every empty slab whose page is its own.
    pub(super) fn retire_empty(&mut self) -> Vec<FreedSlab> {
        if self.idle.count == 0 {
            return Vec::new();
        }
        let empty: Vec<u32> = self.idle.numbers().collect();
        empty.into_iter().filter_map(|number| self.retire(number)).collect()
    }

    /// Whether [`Slabs::retire_empty`] would find any.
    #[inline]
    pub(super) fn any_idle(&self) -> bool {
        self.idle.count > 0
    }

    /// Counts anew, after groups or frozen slabs have changed.
    fn count_idle(&mut self) {
        self.idle = Idle::default();
        for (number, entry) in (0..).zip(&self.list) {
            if entry.as_ref().is_some_and(Entry::is_idle) {
                self.idle.set(number, true);
            }
        }
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

    /// Every slab that may share its page, which is all of one: its number, lane, group and slots.
    pub(super) fn sharable(&self) -> impl Iterator<Item = (u32, LaneId, Option<u32>, &Slab)> {
        let entries = (0..).zip(&self.list).filter_map(|(number, entry)| Some((number, entry.as_ref()?)));
        let stays = entries.filter(|(_, entry)| entry.leaving.is_none() && entry.slab.is_whole());
        stays.map(|(number, entry)| (number, entry.lane, entry.group, &entry.slab))
    }

    /// A slab.
    pub(super) fn slab(&self, number: u32) -> &Slab {
        &self.list[number as usize].as_ref().expect("the number of a slab").slab
    }

    /// A slab's lane.
    pub(super) fn lane(&self, number: u32) -> LaneId {
        self.list[number as usize].as_ref().expect("the number of a slab").lane
    }

    /// Whether a slab has its page to itself, and nothing unfinished of ours touches it.
    pub(super) fn is_own(&self, number: u32) -> bool {
        self.list[number as usize].as_ref().is_some_and(|entry| entry.group.is_none() && !entry.frozen)
    }

    /// The slabs whose pages share memory with this one's, itself among them.
    pub(super) fn members(&self, number: u32) -> Vec<u32> {
        let group = self.list[number as usize].as_ref().and_then(|entry| entry.group);
        group.map_or_else(|| vec![number], |group| self.groups[group as usize].clone())
    }

    /// Whether any page shares memory.
    pub(super) fn any_shared(&self) -> bool {
        self.groups.len() > self.vacant_groups.len()
    }

    /// How many pages share memory that is counted at another page.
    pub(super) fn shared_pages(&self) -> u64 {
        self.groups.iter().map(|group| group.len().saturating_sub(1) as u64).sum()
    }

    /// The slab `give`, whose page is its own, now shares the memory of `keep`'s group, none of which has a slot taken that it has.
    pub(super) fn join(&mut self, keep: u32, give: u32) {
        let slab = &mut self.entry(give).slab;
        slab.keep_taken();
        let slots = slab.owned();
        let mut members = self.members(keep);
        for &member in &members {
            self.entry(member).slab.cede(&slots);
        }
        let group = match self.entry(keep).group {
            Some(group) => group,
            None => {
                let group = self.vacant_groups.pop().unwrap_or(self.groups.len() as u32);
                self.groups.resize_with(self.groups.len().max(group as usize + 1), Vec::new);
                self.groups[group as usize].push(keep);
                self.entry(keep).group = Some(group);
                group
            }
        };
        self.groups[group as usize].push(give);
        self.entry(give).group = Some(group);
        members.push(give);
        members.into_iter().for_each(|member| self.relist(member));
        self.count_idle();
    }

    /// Lists a slab as partial, or no longer, after its slots have changed.
    fn relist(&mut self, number: u32) {
        let entry = self.entry(number);
        let (lane, class, is_partial) = (entry.lane, entry.slab.class, entry.is_partial());
        let list = &mut self.of_class(lane, class).partial;
        match list.iter().position(|&other| other == number) {
            Some(at) if !is_partial => _ = list.remove(at),
            None if is_partial => list.push(number),
            _ => {}
        }
    }

    /// A copy to or from the pages of these slabs may still run, or a page has no memory.
    pub(super) fn freeze(&mut self, numbers: &[u32]) {
        for &number in numbers {
            self.frozen = true;
            self.entry(number).frozen = true;
            self.relist(number);
        }
        self.count_idle();
    }

    /// Whether any slab is frozen.
    pub(super) fn any_frozen(&self) -> bool {
        self.frozen
    }

    /// No copy runs any more, and all pages have memory.
    pub(super) fn thaw(&mut self) {
        self.frozen = false;
        let is_frozen = |n: &u32| self.list[*n as usize].as_ref().is_some_and(|entry| entry.frozen);
        let frozen: Vec<u32> = (0..self.list.len() as u32).filter(is_frozen).collect();
        for number in frozen {
            self.entry(number).frozen = false;
            self.relist(number);
        }
        self.count_idle();
    }

    /// Empty slabs of groups serve nobody any more, and leave when their lane has passed the stamp that it gives now. Returns whether there
    /// were any.
    pub(super) fn empty_leave(&mut self, mut stamp: impl FnMut(LaneId) -> u64) -> bool {
        let mut any = false;
        for group in 0..self.groups.len() {
            for member in self.groups[group].clone() {
                let entry = self.entry(member);
                if entry.slab.is_empty() && entry.leaving.is_none() {
                    entry.leaving = Some(stamp(entry.lane));
                    self.relist(member);
                    any = true;
                }
            }
        }
        any
    }

    /// A slab that may leave its group.
    pub(super) fn leaver(&self, passed: impl Fn(LaneId, u64) -> bool) -> Option<Leaver> {
        let members = self.groups.iter().flat_map(|group| group.iter().map(move |&member| (group, member)));
        let may_leave = |number: u32| {
            let entry = self.list[number as usize].as_ref()?;
            entry.leaving.filter(|&stamp| !entry.frozen && passed(entry.lane, stamp)).map(|_| entry.slab.addr)
        };
        let (group, number, addr) = members.filter_map(|(group, n)| Some((group, n, may_leave(n)?))).next()?;
        Some(Leaver { number, addr, heir: self.heir(group, number).map(|heir| self.slab(heir).addr) })
    }

    /// Who gets the slots of a slab that leaves: one that goes on serving, if there is one.
    fn heir(&self, group: &[u32], leaver: u32) -> Option<u32> {
        let others = || group.iter().copied().filter(|&other| other != leaver);
        let stays = |&other: &u32| self.list[other as usize].as_ref().is_some_and(|entry| entry.leaving.is_none());
        others().find(stays).or_else(|| others().next())
    }

    /// Takes a slab out of its group and away: [`Slabs::leaver`] has named it. With the last but one, the group is no more.
    pub(super) fn leave(&mut self, number: u32) -> Option<(FreedSlab, u64)> {
        let Entry { slab, lane, node, group, leaving, .. } = self.list[number as usize].take()?;
        self.vacant.push(number);
        self.of_class(lane, slab.class).bytes -= slab.size;
        let members = std::mem::take(&mut self.groups[group? as usize]);
        let heir = self.heir(&members, number);
        let rest: Vec<u32> = members.into_iter().filter(|&other| other != number).collect();
        if let Some(heir) = heir {
            self.entry(heir).slab.gain(&slab.owned());
            self.relist(heir);
        }
        match rest[..] {
            [last] if self.entry(last).leaving.is_none() => {
                self.entry(last).group = None;
                self.vacant_groups.push(group?);
            }
            [] => self.vacant_groups.push(group?),
            _ => self.groups[group? as usize] = rest,
        }
        self.count_idle();
        Some((FreedSlab { node, lane }, leaving?))
    }

    /// Takes one particular slot, which is free.
    pub(super) fn take_slot(&mut self, number: u32, slot: u32) -> bool {
        let entry = self.entry(number);
        let was_idle = entry.is_idle();
        if !entry.slab.take_slot(slot) {
            return false;
        }
        let (lane, class, is_full) = (entry.lane, entry.slab.class, entry.slab.is_full());
        if was_idle {
            self.idle.set(number, false);
        }
        if is_full {
            self.of_class(lane, class).partial.retain(|&other| other != number);
        }
        true
    }

    /// How many slabs there are.
    pub(super) fn count(&self) -> u64 {
        (self.list.len() - self.vacant.len()) as u64
    }

    /// Bytes of their addresses.
    pub(super) fn bytes(&self) -> u64 {
        self.lanes.iter().flatten().map(|of_class| of_class.bytes).sum()
    }

    /// Checks every slab, and that exactly those with free slots are listed.
    pub(super) fn validate(&self) -> Result<(), String> {
        let mut partial = 0;
        for (number, entry) in (0u32..).zip(&self.list) {
            let Some(entry) = entry else { continue };
            entry.slab.validate()?;
            let lists = self.lanes.get(entry.lane as usize);
            let listed = lists.is_some_and(|classes| classes[entry.slab.class.index()].partial.contains(&number));
            if listed != entry.is_partial() {
                return Err(format!("slab {number} has {} free slots, listed: {listed}", entry.slab.free_slots()));
            }
            if entry.group.is_none() && (entry.leaving.is_some() || entry.slab.owned() != entry.slab.all()) {
                return Err(format!("slab {number} has no group: {entry:?}"));
            }
            partial += usize::from(listed);
        }
        let is_idle = |&(_, entry): &(u32, &Option<Entry>)| entry.as_ref().is_some_and(Entry::is_idle);
        let idle: Vec<u32> = (0..).zip(&self.list).filter(is_idle).map(|(number, _)| number).collect();
        if !self.idle.numbers().eq(idle.iter().copied()) || self.idle.count != idle.len() {
            return Err(format!("slabs {idle:?} are empty, {:?} noted", self.idle.numbers().collect::<Vec<_>>()));
        }
        let bytes: u64 = self.list.iter().flatten().map(|entry| entry.slab.size).sum();
        let parts = self.list.iter().flatten().filter(|entry| !entry.slab.is_whole()).count();
        if bytes != self.bytes() || parts != self.parts as usize {
            return Err(format!("slabs of {bytes} bytes, {} counted; {parts} parts, {}", self.bytes(), self.parts));
        }
        let listed: usize = self.lanes.iter().flatten().map(|of_class| of_class.partial.len()).sum();
        if listed != partial {
            return Err(format!("{listed} slabs listed, {partial} partial"));
        }
        self.groups.iter().enumerate().try_for_each(|(group, members)| self.validate_group(group, members))
    }

    /// Checks that each slot of a shared page is owned once.
    fn validate_group(&self, group: usize, members: &[u32]) -> Result<(), String> {
        let fail = |what: &str| Err(format!("group {group}, slabs {members:?}: {what}"));
        let Some(&first) = members.first() else { return Ok(()) };
        let class = self.slab(first).class;
        let mut owned = vec![0u64; self.slab(first).owned().len()].into_boxed_slice();
        for &member in members {
            let Some(entry) = &self.list[member as usize] else { return fail("a slab is gone") };
            if entry.group != Some(group as u32) || entry.slab.class != class {
                return fail("a slab is of another group or class");
            }
            let slots = entry.slab.owned();
            if owned.iter().zip(&slots).any(|(all, slots)| all & slots != 0) {
                return fail("two slabs own one slot");
            }
            owned.iter_mut().zip(&slots).for_each(|(all, slots)| *all |= slots);
        }
        if owned == self.slab(first).all() { Ok(()) } else { fail("nobody owns a slot") }
    }
}
