//! Lanes: who may reuse a block at once. A lane is a stream, or a stream inside a private pool; its number is its
//! [`Owner`] in the block core. Lane 0 stands for [`Owner::SHARED`].

use std::collections::HashMap;

use crate::block::Owner;
use crate::stream::Clock;
use crate::units::{PoolId, StreamId};

/// A lane's number.
pub(crate) type LaneId = u16;

/// One lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    /// Index of the stream's clock.
    pub(super) clock: u16,
    /// The private pool, for as long as it keeps its memory to itself.
    pub(super) private: Option<PoolId>,
    /// The private pool that the lane was of, and that has no users any more. Requests do not find such a lane.
    pub(super) dissolved: Option<PoolId>,
}

impl Lane {
    const SHARED: Lane = Lane { clock: 0, private: None, dissolved: None };
}

/// All lanes and clocks of a device.
#[derive(Debug)]
pub(super) struct Lanes {
    list: Vec<Lane>,
    /// Numbers to be used again.
    vacant: Vec<LaneId>,
    by_key: HashMap<(StreamId, Option<PoolId>), LaneId>,
    pub(super) clocks: Vec<Clock>,
    clock_of: HashMap<StreamId, u16>,
}

impl Lanes {
    pub(super) fn new() -> Lanes {
        let mut lanes = Lanes {
            list: vec![Lane::SHARED],
            vacant: Vec::new(),
            by_key: HashMap::new(),
            clocks: Vec::new(),
            clock_of: HashMap::new(),
        };
        // Lane 0 never asks its clock, but every lane has one.
        lanes.clock_index(StreamId::DEFAULT);
        lanes
    }

    /// The lane of a stream in a private pool, or in none. `None` when the numbers are used up.
    pub(super) fn intern(&mut self, stream: StreamId, private: Option<PoolId>) -> Option<LaneId> {
        if let Some(&lane) = self.by_key.get(&(stream, private)) {
            return Some(lane);
        }
        let clock = self.clock_index(stream)?;
        let id = match self.vacant.pop() {
            Some(id) => id,
            None => {
                let id = LaneId::try_from(self.list.len()).ok()?;
                self.list.push(Lane::SHARED);
                id
            }
        };
        self.list[id as usize] = Lane { clock, private, dissolved: None };
        self.by_key.insert((stream, private), id);
        Some(id)
    }

    /// The index of a stream's clock. `None` when the numbers are used up.
    pub(super) fn clock_index(&mut self, stream: StreamId) -> Option<u16> {
        // Few streams are in use, mostly.
        if let Some(clock) = self.clocks.iter().take(8).position(|clock| clock.stream() == stream) {
            return Some(clock as u16);
        }
        if let Some(&clock) = self.clock_of.get(&stream) {
            return Some(clock);
        }
        let clock = u16::try_from(self.clocks.len()).ok()?;
        self.clocks.push(Clock::new(stream));
        self.clock_of.insert(stream, clock);
        Some(clock)
    }

    #[inline]
    pub(super) fn get(&self, lane: LaneId) -> Lane {
        self.list[lane as usize]
    }

    /// Whether the lane keeps its memory to itself.
    #[inline]
    pub(super) fn is_private(&self, lane: LaneId) -> bool {
        self.list[lane as usize].private.is_some()
    }

    /// Whose free memory requests of a lane may use.
    pub(super) fn usable(&self, lane: LaneId) -> impl Fn(Owner) -> bool + Copy + use<> {
        let private = self.is_private(lane);
        move |owner| owner == Owner(lane) || (owner == Owner::SHARED && !private)
    }

    #[inline]
    pub(super) fn clock(&mut self, lane: LaneId) -> &mut Clock {
        &mut self.clocks[self.list[lane as usize].clock as usize]
    }

    /// The lane's stream.
    pub(super) fn stream(&self, lane: LaneId) -> StreamId {
        self.clocks[self.list[lane as usize].clock as usize].stream()
    }

    /// The stamp of a block that the lane frees now.
    #[inline]
    pub(super) fn stamp(&mut self, lane: LaneId) -> u64 {
        // A graph's replays run on streams unknown here: what belongs to a private pool never passes by a clock.
        if self.is_private(lane) { u64::MAX } else { self.clock(lane).stamp() }
    }

    /// The number of the lane's open epoch, in which something has been freed.
    pub(super) fn open_epoch(&self, lane: LaneId) -> u64 {
        self.clocks[self.get(lane).clock as usize].open_epoch()
    }

    /// Every lane but the shared one.
    pub(super) fn ids(&self) -> impl Iterator<Item = LaneId> + use<> {
        1..=(self.list.len() - 1) as LaneId
    }

    /// The lane of a stream in a private pool, if it has been used there.
    pub(super) fn existing(&self, stream: StreamId, pool: PoolId) -> Option<LaneId> {
        self.by_key.get(&(stream, Some(pool))).copied()
    }

    fn which(&self, wanted: impl Fn(&Lane) -> bool) -> Vec<LaneId> {
        (0..=LaneId::MAX).zip(&self.list).filter(|(_, lane)| wanted(lane)).map(|(id, _)| id).collect()
    }

    /// The lanes of a private pool that has users.
    pub(super) fn of_pool(&self, pool: PoolId) -> Vec<LaneId> {
        self.which(|lane| lane.private == Some(pool) && lane.dissolved.is_none())
    }

    /// What lanes are left of private pools of this number that have no users any more.
    pub(super) fn left_of(&self, pool: PoolId) -> Vec<LaneId> {
        self.which(|lane| lane.dissolved == Some(pool))
    }

    /// Dissolved lanes whose memory has become everyone's.
    pub(super) fn opened(&self) -> Vec<LaneId> {
        self.which(|lane| lane.dissolved.is_some() && lane.private.is_none())
    }

    /// A dissolved lane whose memory is everyone's, and that no segment or block names, goes. Its number is used again.
    pub(super) fn recycle(&mut self, lane: LaneId) {
        self.list[lane as usize] = Lane::SHARED;
        self.vacant.push(lane);
    }

    /// Takes the lanes of a private pool from it: requests find them no more. They stay private, which is to say that their blocks
    /// are for nobody, until the device has been waited for and [`Lanes::open`] says so.
    pub(super) fn dissolve(&mut self, pool: PoolId) -> Vec<LaneId> {
        self.by_key.retain(|&(_, private), _| private != Some(pool));
        let lanes = self.of_pool(pool);
        lanes.iter().for_each(|&lane| self.list[lane as usize].dissolved = Some(pool));
        lanes
    }

    /// Makes a dissolved lane an ordinary one.
    pub(super) fn open(&mut self, lane: LaneId) {
        self.list[lane as usize].private = None;
    }

    /// Whether a lane's clock has passed a stamp.
    pub(super) fn has_passed(&self, lane: LaneId, stamp: u64) -> bool {
        lane == Owner::SHARED.0 || self.clocks[self.list[lane as usize].clock as usize].has_passed(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_lane() {
        let mut lanes = Lanes::new();
        let pool = Some(PoolId(0, 1));
        let interned = (0..).map_while(|stream| lanes.intern(StreamId(stream), pool)).count();
        assert_eq!(interned, LaneId::MAX as usize);
        assert_eq!(lanes.ids().count(), interned);
        assert_eq!(lanes.dissolve(PoolId(0, 1)).last(), Some(&LaneId::MAX));
    }
}
