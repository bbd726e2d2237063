//! Extents, as the tiers use them.

use super::{DeviceCache, Request};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::pool::{Kind, Want};
use crate::telemetry::{Event, Rung};
use crate::units::{DevicePtr, GRANULE, StreamId};

pub(crate) use crate::pool::{NEVER, Stamp};

impl DeviceCache {
    /// A mapped extent of `size` bytes for a stream, and what has to pass before other streams use it; `None` where there is no room. Without
    /// `may_grow`, from what is held and mapped nowhere.
    pub(crate) fn new_extent(
        &self,
        stream: StreamId,
        size: u64,
        tag: u8,
        may_grow: bool,
    ) -> Result<Option<(DevicePtr, Vec<Stamp>)>> {
        let mut state = self.pool.lock();
        if state.capturing() {
            return Err(Error::Capturing { what: "allocating evictable memory" });
        }
        let made = self.pool.new_extent(&mut state, stream, size, tag, may_grow.then_some(self as _));
        self.check_invariants(&state);
        Ok(made?.map(|(addr, after)| (DevicePtr(addr), after)))
    }

    /// Gives an empty extent memory. Returns what has to pass before others than its home stream use it; `None` where there was not enough.
    pub(crate) fn fill_extent(&self, extent: DevicePtr) -> Result<Option<Vec<Stamp>>> {
        let mut state = self.pool.lock();
        if state.capturing() {
            return Err(Error::Capturing { what: "having evicted memory back" });
        }
        let filled = self.pool.fill_extent(&mut state, extent.0, self);
        self.check_invariants(&state);
        filled
    }

    /// Takes the memory of an extent, which no unfinished work touches.
    pub(crate) fn vacate_extent(&self, extent: DevicePtr) -> Result<()> {
        let mut state = self.pool.lock();
        let vacated = self.pool.vacate_extent(&mut state, extent.0);
        self.check_invariants(&state);
        vacated
    }

    /// The extent is not needed any more, in the order of its home stream and of `users`.
    pub(crate) fn give_up_extent(&self, extent: DevicePtr, users: &[StreamId]) {
        let mut state = self.pool.lock();
        self.pool.give_up_extent(&mut state, extent.0, users);
        self.check_invariants(&state);
    }

    /// Counts a block that lies in an extent now, or one that does no longer.
    pub(crate) fn count_in_extent(&self, extent: DevicePtr, requested: i64) {
        self.pool.count_in_extent(&mut self.pool.lock(), extent.0, requested);
    }

    /// Counts bytes of an evictable block for its tag, wherever they are.
    pub(crate) fn count_tag(&self, requested: i64, tag: u8) {
        self.retired.lock().count_tag(requested, tag);
    }

    /// Counts an evictable block that is to come for its tag, unless the request makes no sense, can never fit, or would take the tag over its
    /// limit. Under one lock, so that what others ask for meanwhile is over it.
    pub(crate) fn admit(&self, request: Request) -> Result<()> {
        request.check()?;
        let Request { size, tag, .. } = request;
        let state = self.pool.lock();
        let block = size.next_multiple_of(GRANULE);
        if block > state.limit() {
            return Err(self.never_fits(&state, request, block));
        }
        if self.tag_is_limited(tag) {
            self.check_tag_limit(&state, request)?;
        }
        self.count_tag(size as i64, tag);
        Ok(())
    }

    /// What these streams have been given to do so far, `home` standing for those that there is no clock for.
    pub(crate) fn stamps_of(&self, home: StreamId, streams: &[StreamId]) -> Result<Vec<Stamp>> {
        self.pool.stamps_of(&mut self.pool.lock(), home, streams)
    }

    /// Lets later work of a stream come after what these stamps stand for. Returns the streams whose work so far has to be waited for instead.
    pub(crate) fn order_after_stamps(&self, later: StreamId, stamps: &[Stamp]) -> Result<Vec<StreamId>> {
        self.pool.order_after_stamps(&mut self.pool.lock(), later, stamps)
    }

    /// Whether streams have got that far; with `wait`, once they have.
    pub(crate) fn have_passed(&self, stamps: &[Stamp], wait: bool) -> Result<bool> {
        let mut state = self.pool.lock();
        if wait && state.capturing() {
            return Err(Error::Capturing { what: "waiting for streams" });
        }
        self.pool.have_passed_stamps(&mut state, stamps, wait)
    }

    /// Lets later work of a stream wait for what another one has been given to do so far.
    pub(crate) fn order_streams(&self, later: StreamId, earlier: StreamId) -> Result<()> {
        let mut state = self.pool.lock();
        if state.capturing() {
            return Err(Error::Capturing { what: "ordering streams" });
        }
        self.pool.order_streams(&mut state, later, earlier)
    }

    /// Whether a capture is under way.
    pub(crate) fn is_capturing(&self) -> bool {
        self.pool.lock().capturing()
    }

    /// Why an evictable block found no room.
    pub(crate) fn no_extent(&self, request: Request) -> Error {
        let mut state = self.pool.lock();
        let lane = match state.lane(request.stream) {
            Ok(lane) => lane,
            Err(error) => return error,
        };
        let size = request.size.next_multiple_of(state.unit());
        let kind = Kind::Range { size, alignment: GRANULE, persistent: false };
        self.no_room(&mut state, request, Want { lane, kind, may_grow: request.may_grow }, None)
    }

    /// A request succeeded after something had been evicted.
    pub(crate) fn count_evicted(&self) {
        self.pool.lock().count(Rung::Evict);
    }

    /// Bytes of the smallest chunk.
    pub(crate) fn unit(&self) -> u64 {
        self.pool.lock().unit()
    }

    /// Notes an event.
    pub(crate) fn note(&self, event: Event) {
        self.pool.ring.push(event);
    }

    /// Time on the driver's clock.
    pub(crate) fn clock_ns(&self) -> u64 {
        self.pool.driver.clock_ns()
    }
}
