//! Memory of other streams by order: the stream of the request is made to wait for them (`cuStreamWaitEvent`), on the device. The host waits
//! for nothing, and what was freed there may be used by all that is submitted to this stream from now on.

use super::grow::Terms;
use super::ladder::{Kind, Want};
use super::lanes::LaneId;
use super::{BlockId, Pool, PoolState};
use crate::block::Owner;
use crate::driver::{Driver, DriverResult};

impl Pool {
    /// Lets the lane's stream wait for all streams that have free memory or that freed blocks of the lane wait for, and serves the request
    /// from what that gives. Nothing is taken from the device.
    pub(super) fn stream_wait(&self, state: &mut PoolState, want: Want) -> DriverResult<Option<BlockId>> {
        if state.lanes.is_private(want.lane) || !self.order_after_others(state, want.lane)? {
            return Ok(None);
        }
        let open = |state: &PoolState, id: LaneId| id != want.lane && !state.lanes.is_private(id);
        if let Some(block) = self.search(state, want)? {
            return Ok(Some(block));
        }
        for id in state.lanes.ids().filter(|&id| open(state, id)).collect::<Vec<_>>() {
            if let Some(block) = self.take(state, want, Owner(id))? {
                return Ok(Some(block));
            }
        }
        // Chunks that are mapped side by side are no memory of its own.
        let dedicated = matches!(want.kind, Kind::Dedicated { .. });
        if !want.may_grow || dedicated || !self.driver.properties().vmm {
            return Ok(None);
        }
        let grown = self.grow_from(state, want, Terms { last: true, waited: true, create: false })?;
        Ok(grown.map(|(block, _)| block))
    }

    /// Lets the lane's stream wait for the others. Returns whether that gave it anything.
    fn order_after_others(&self, state: &mut PoolState, lane: LaneId) -> DriverResult<bool> {
        let pending = state.pending.of(|block| self.directory.header(block).lane() == lane);
        self.order_after(state, lane, pending.iter().flat_map(|(_, clocks)| clocks.iter().copied()).collect())?;
        // What was freed there is done with once this stream has passed what is submitted to it next.
        let stamp = state.lanes.stamp(lane);
        let done: Vec<(BlockId, u64)> = state.pending.take(&pending).into_iter().map(|block| (block, stamp)).collect();
        self.complete(state, &done);
        // Only now: that may have freed blocks of other lanes, which quarantine held.
        let has_free = |state: &PoolState, id: LaneId| state.zones.iter().any(|zone| zone.free_bytes(Owner(id)) > 0);
        let others = state.lanes.ids().filter(|&id| id != lane && !state.lanes.is_private(id));
        let clocks: Vec<u16> = others.filter(|&id| has_free(state, id)).map(|id| state.lanes.get(id).clock).collect();
        let has_any = !clocks.is_empty() || !done.is_empty();
        self.order_after(state, lane, clocks)?;
        state.lanes.stamp(lane);
        Ok(has_any)
    }

    /// Lets the lane's stream wait for the streams of these clocks.
    pub(super) fn order_after(&self, state: &mut PoolState, lane: LaneId, mut clocks: Vec<u16>) -> DriverResult<()> {
        let PoolState { lanes, events, .. } = &mut *state;
        let stream = lanes.stream(lane);
        let own = lanes.get(lane).clock;
        clocks.sort_unstable();
        clocks.dedup();
        for clock in clocks.into_iter().filter(|&clock| clock != own) {
            lanes.clocks[clock as usize].let_wait(stream, &*self.driver, events)?;
        }
        Ok(())
    }
}
