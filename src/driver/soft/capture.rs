//! Stream capture: work of a capturing stream is recorded and not executed.

use std::collections::BTreeMap;

use super::schedule::Action;
use super::{SoftDevice, state::Call, state::State};
use crate::driver::call::CallKind;
use crate::driver::{DriverError, DriverErrorKind, DriverResult};
use crate::units::StreamId;

/// Recorded work, ready to be launched any number of times. The work of all streams of the capture is kept in the order of
/// submission, which is one of its legal orders, and runs in that order.
#[derive(Debug, Clone, Default)]
pub struct CapturedGraph {
    id: u64,
    actions: Vec<(Action, u64)>,
}

impl CapturedGraph {
    /// The id that [`capture_status`](crate::driver::Driver::capture_status) gave during the capture.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many copies, fills, writes and kernels were recorded.
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

#[derive(Debug)]
struct Capture {
    origin: StreamId,
    graph: CapturedGraph,
    invalidated: bool,
}

/// The captures under way, by id.
#[derive(Debug, Default)]
pub(super) struct Captures {
    open: BTreeMap<u64, Capture>,
    last_id: u64,
}

fn refused(call: &'static str, detail: &str) -> DriverError {
    DriverError::new(DriverErrorKind::Capturing, call, detail)
}

impl Captures {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Records work.
    pub(super) fn push(&mut self, id: u64, action: Action, duration_ns: u64, call: &'static str) -> DriverResult<()> {
        match self.open.get_mut(&id) {
            Some(capture) if !capture.invalidated => {
                capture.graph.actions.push((action, duration_ns));
                Ok(())
            }
            _ => Err(refused(call, "the capture was invalidated")),
        }
    }

    pub(super) fn is_invalidated(&self, id: u64) -> bool {
        self.open.get(&id).is_none_or(|capture| capture.invalidated)
    }
}

impl State {
    fn begin_capture(&mut self, stream: StreamId, call: &'static str) -> DriverResult<u64> {
        let index = self.schedule.stream(stream, call)?;
        if stream == StreamId::DEFAULT {
            return Err(refused(call, "the default stream cannot be captured"));
        }
        if self.schedule.streams[index].capture.is_some() {
            return Err(refused(call, "the stream is being captured already"));
        }
        self.captures.last_id += 1;
        let id = self.captures.last_id;
        let graph = CapturedGraph { id, actions: Vec::new() };
        self.captures.open.insert(id, Capture { origin: stream, graph, invalidated: false });
        self.schedule.streams[index].capture = Some(id);
        Ok(id)
    }

    fn end_capture(&mut self, stream: StreamId, call: &'static str) -> DriverResult<CapturedGraph> {
        let index = self.schedule.stream(stream, call)?;
        let id =
            self.schedule.streams[index].capture.ok_or_else(|| refused(call, "the stream is not being captured"))?;
        if self.captures.open.get(&id).is_some_and(|capture| capture.origin != stream) {
            return Err(refused(call, "a capture ends on the stream on which it began"));
        }
        let capture = self.captures.open.remove(&id);
        for stream in &mut self.schedule.streams {
            stream.capture = stream.capture.filter(|&other| other != id);
        }
        self.schedule.forget_captured(id);
        match capture {
            Some(capture) if !capture.invalidated => Ok(capture.graph),
            _ => Err(refused(call, "the capture was invalidated")),
        }
    }
}

impl SoftDevice {
    /// Begins to record the work of `stream` (`cuStreamBeginCapture`). Gives the capture's id. A stream that waits for an
    /// event recorded in a capture joins it. Until all captures have ended, waiting for the device or an event, and asking
    /// for an event's status, are refused.
    pub fn begin_capture(&self, stream: StreamId) -> DriverResult<u64> {
        let mut state = self.enter(Call::new(CallKind::CaptureStatus).args(stream.0, 1))?;
        state.begin_capture(stream, "cuStreamBeginCapture")
    }

    /// Ends the capture that began on `stream`, for all streams that have joined it (`cuStreamEndCapture`).
    pub fn end_capture(&self, stream: StreamId) -> DriverResult<CapturedGraph> {
        let mut state = self.enter(Call::new(CallKind::CaptureStatus).args(stream.0, 2))?;
        state.end_capture(stream, "cuStreamEndCapture")
    }

    /// Spoils the capture that `stream` is in, as an unsafe call does on a real device: no more work is recorded, and
    /// [`SoftDevice::end_capture`] fails.
    pub fn invalidate_capture(&self, stream: StreamId) -> DriverResult<()> {
        let mut state = self.enter(Call::new(CallKind::CaptureStatus).args(stream.0, 3))?;
        let index = state.schedule.stream(stream, "cuStreamBeginCapture")?;
        let id = state.schedule.streams[index].capture;
        if let Some(capture) = id.and_then(|id| state.captures.open.get_mut(&id)) {
            capture.invalidated = true;
        }
        Ok(())
    }

    /// Submits all work of a graph to `stream` (`cuGraphLaunch`).
    pub fn launch_graph(&self, graph: &CapturedGraph, stream: StreamId) -> DriverResult<()> {
        let mut state = self.enter(Call::new(CallKind::Copy).args(stream.0, graph.id))?;
        for (action, duration_ns) in &graph.actions {
            state.submit(stream, action.clone(), *duration_ns, "cuGraphLaunch")?;
        }
        Ok(())
    }
}
