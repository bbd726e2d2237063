//! A device in host memory: as strict as the real driver, asynchronous by seed, and with a happens-before checker.
//!
//! * **Memory.** One sparse memory file a device; reservations and mappings are those of the host, so aliases, remapping
//!   and stable addresses are real. Or no memory at all, for replays ([`Backing`]).
//! * **Streams** run asynchronously, in an order chosen by a seed among the legal ones; work may take virtual time. A copy
//!   moves its bytes when it runs, so memory that is reused too early is really corrupted. Work that finds its addresses
//!   unmapped breaks the device: every later call fails, as after an illegal address on a real one. The default stream is
//!   one more stream, without the implicit ordering of CUDA's legacy stream.
//! * **Time** is virtual: calls cost what the [`LatencyModel`] says, waiting moves the clock to the end of the work.
//! * **Checker.** With [`SoftDeviceBuilder::checker`], every access is checked against the last ones, and
//!   [`SoftDevice::reports`] names both places. Host threads count as one: a lock orders all calls. A harness says who owns
//!   what by [`SoftDevice::note_alloc`] and [`SoftDevice::note_free`].
//!
//! Memory in host or peer location is kept by this device as well and does not count against its capacity.

mod builder;
mod capture;
mod checker;
mod driver;
mod extras;
mod host;
mod intervals;
mod latency;
mod memory;
mod ranges;
mod report;
mod schedule;
mod state;
mod store;
mod streaming;
mod vmm;

use std::fmt;

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::call::CallKind;
use super::{DeviceProperties, DriverResult};
use crate::units::{DevicePtr, StreamId};
pub use builder::{Backing, SoftDeviceBuilder};
pub use capture::CapturedGraph;
pub use extras::{ChunkInfo, Comparison, SharedMemory, Usage};
pub use latency::LatencyModel;
use memory::{Memory, RegionKind};
pub use report::{Access, AccessKind, OpKind, Place, Report};
use schedule::Action;
use state::{Call, State};

/// A software device. See the [module](self).
pub struct SoftDevice {
    properties: DeviceProperties,
    state: Mutex<State>,
    /// Told when a function of the host has ended.
    host_ended: Condvar,
}

impl fmt::Debug for SoftDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftDevice").field("properties", &self.properties).finish_non_exhaustive()
    }
}

/// What a device still holds: all that a user has to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leaks {
    /// Address reservations.
    pub reservations: usize,
    /// Chunks whose handle was not released.
    pub chunks: usize,
    /// Mappings.
    pub mappings: usize,
    /// Plain allocations.
    pub plain: usize,
    /// Pinned host allocations.
    pub host: usize,
    /// Events.
    pub events: usize,
    /// Streams, not counting the default stream.
    pub streams: usize,
}

impl Leaks {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Leaks::default()
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leaks { reservations, chunks, mappings, plain, host, events, streams } = self;
        write!(f, "{reservations} reservations, {chunks} chunks, {mappings} mappings, {plain} plain allocations, ")?;
        write!(f, "{host} host allocations, {events} events, {streams} streams")
    }
}

impl SoftDevice {
    /// A device with so much memory. It is set up by the builder's methods, then built.
    ///
    /// ```
    /// use stratalloc::driver::{Driver, soft::SoftDevice};
    ///
    /// let device = SoftDevice::builder(1 << 30).checker(true).build()?;
    /// assert_eq!(device.memory_info()?.free, 1 << 30);
    /// # Ok::<(), stratalloc::driver::DriverError>(())
    /// ```
    pub fn builder(capacity_bytes: u64) -> SoftDeviceBuilder {
        SoftDeviceBuilder::new(capacity_bytes)
    }

    fn new(properties: DeviceProperties, settings: builder::Settings, memory: Memory) -> SoftDevice {
        SoftDevice { properties, state: Mutex::new(State::new(settings, memory)), host_ended: Condvar::new() }
    }

    /// The state, with a call begun.
    fn enter(&self, call: Call) -> DriverResult<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        state.begin(call)?;
        Ok(state)
    }

    /// Repeats an attempt to wait for work until it succeeds. Between attempts the lock is given up, and what the work waits
    /// for is done: functions of the host run here, unless another thread runs them.
    fn wait(
        &self,
        state: &mut MutexGuard<'_, State>,
        mut attempt: impl FnMut(&mut State) -> DriverResult<bool>,
    ) -> DriverResult<()> {
        while !attempt(state)? {
            match state.schedule.take_ready() {
                Some(work) => {
                    MutexGuard::unlocked(state, || work.run());
                    self.host_ended.notify_all();
                }
                None => {
                    // A value in memory is written by anybody, who does not tell.
                    self.host_ended.wait_for(state, Duration::from_micros(200));
                }
            }
            let state = &mut **state;
            state.schedule.tick();
            state.schedule.run_some(&state.memory);
        }
        Ok(())
    }

    // ---- work and time ----------------------------------------------------------------------------------------------

    /// Submits a kernel that touches `accesses` and takes `duration_ns` of virtual time. It moves no bytes.
    pub fn launch(&self, stream: StreamId, accesses: &[Access], duration_ns: u64) -> DriverResult<()> {
        let mut state = self.enter(Call::new(CallKind::Copy).args(stream.0, duration_ns))?;
        state.submit(stream, Action::Kernel(accesses.to_vec()), duration_ns, "cuLaunchKernel")
    }

    /// As [`SoftDevice::launch`], but costs the host nothing and is no call: for a program whose own time is told by
    /// [`SoftDevice::advance_clock`]. Work of one stream runs one after another; streams run side by side, each at full speed.
    pub fn keep_busy(&self, stream: StreamId, accesses: &[Access], duration_ns: u64) -> DriverResult<()> {
        let call = "cuLaunchKernel";
        let state = &mut *self.state.lock();
        state.schedule.tick();
        state.schedule.run_some(&state.memory);
        state.intact(call)?;
        state.submit(stream, Action::Kernel(accesses.to_vec()), duration_ns, call)
    }

    /// Lets later work of a stream wait for all work so far of another. As [`SoftDevice::keep_busy`], no call.
    pub fn order_after(&self, later: StreamId, earlier: StreamId) -> DriverResult<()> {
        let call = "cuStreamWaitEvent";
        let state = &mut *self.state.lock();
        state.no_capture(call)?;
        let (later, earlier) = (state.schedule.stream(later, call)?, state.schedule.stream(earlier, call)?);
        state.order_after(later, earlier);
        Ok(())
    }

    /// Lets the host be busy for `ns` of virtual time.
    pub fn advance_clock(&self, ns: u64) {
        let state = &mut *self.state.lock();
        state.schedule.advance(ns);
        state.schedule.tick();
        state.schedule.run_some(&state.memory);
    }

    /// How long the host has waited in `synchronize_*` and other calls that wait, in nanoseconds of virtual time.
    pub fn stall_ns(&self) -> u64 {
        self.state.lock().schedule.stall_ns
    }

    /// What the calls so far have cost by the [`LatencyModel`], in nanoseconds of virtual time. Waiting is not in it: that is
    /// [`SoftDevice::stall_ns`].
    pub fn charged_ns(&self) -> u64 {
        self.state.lock().charged_ns
    }

    /// A number over all calls so far and their arguments. Two runs that made the same calls have the same.
    pub fn state_hash(&self) -> u64 {
        self.state.lock().hash()
    }

    /// What has not been given back.
    pub fn leaks(&self) -> Leaks {
        let state = &*self.state.lock();
        let memory = &state.memory;
        let regions = |kind| memory.regions.values().filter(|region| region.kind == kind).count();
        Leaks {
            reservations: memory.reservations.len(),
            chunks: memory.chunks.values().filter(|chunk| chunk.handles > 0).count(),
            mappings: memory.mapped as usize,
            plain: regions(RegionKind::Plain),
            host: regions(RegionKind::Host),
            events: state.schedule.live_events(),
            streams: state.schedule.live_streams(),
        }
    }

    // ---- the checker ------------------------------------------------------------------------------------------------

    /// Tells the checker that `size` bytes at `ptr` now belong to a user who works on `stream`. Call it after the
    /// allocator has handed the block out. It counts as a write on `stream`, so a block that is handed out before its last
    /// users are done is reported even when nobody touches it.
    pub fn note_alloc(&self, ptr: DevicePtr, size: u64, stream: StreamId) {
        let state = &mut *self.state.lock();
        let known = stream.0 < state.schedule.streams.len() as u64;
        if let Some(checker) = state.checker.as_mut().filter(|_| known) {
            checker.alloc(ptr, size, stream, &state.memory.present(ptr.0, size));
        }
    }

    /// Tells the checker that the owner gives `size` bytes at `ptr` up. Call it before the allocator is told. It counts as
    /// the last use on the home stream.
    pub fn note_free(&self, ptr: DevicePtr, size: u64) {
        let state = &mut *self.state.lock();
        if let Some(checker) = &mut state.checker {
            checker.free(ptr, size, &state.memory.present(ptr.0, size));
        }
    }

    /// Tells the checker that copies and fills, until this is switched off, are the allocator's own: they may touch bytes
    /// that nobody owns, and who owned the bytes that are read owns those that are written. For meshing and compaction. Races are still
    /// reported.
    pub fn allocator_copies(&self, on: bool) {
        if let Some(checker) = &mut self.state.lock().checker {
            checker.allocator_copies = on;
        }
    }

    /// Tells the checker that what it was told about owners no longer holds: the allocator's own copies were made, and then not used.
    pub fn forget_owners(&self) {
        if let Some(checker) = &mut self.state.lock().checker {
            checker.forget_owners();
        }
    }

    /// What the checker has found: the first thousand reports.
    pub fn reports(&self) -> Vec<Report> {
        self.state.lock().checker.as_ref().map_or_else(Vec::new, |checker| checker.reports().to_vec())
    }

    /// How many reports there were.
    pub fn report_count(&self) -> u64 {
        self.state.lock().checker.as_ref().map_or(0, |checker| checker.report_count())
    }
}
