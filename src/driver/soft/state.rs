//! All state of a software device behind its lock: what every call does first, and how work is submitted.

use super::builder::Settings;
use super::capture::Captures;
use super::checker::Checker;
use super::latency::{LatencyModel, STALL_NS, STALL_PROBABILITY};
use super::memory::{Extent, Memory, invalid};
use super::report::{AccessKind, OpKind, Place};
use super::schedule::{Action, Schedule};
use crate::driver::call::CallKind;
use crate::driver::kernels;
use crate::driver::rng::Rng;
use crate::driver::{CopyOp, DriverError, DriverErrorKind, DriverResult};
use crate::units::{DevicePtr, StreamId};

/// A call as it comes in: what the state hash and the latency model see of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) kind: CallKind,
    pub(super) ptr: DevicePtr,
    pub(super) size: u64,
    pub(super) args: [u64; 2],
    /// Whether pinned host memory is meant.
    pub(super) host: bool,
    /// How many mappings there are in the range.
    pub(super) mappings: u64,
}

impl Call {
    pub(super) fn new(kind: CallKind) -> Call {
        Call { kind, ptr: DevicePtr::NULL, size: 0, args: [0; 2], host: false, mappings: 1 }
    }

    pub(super) fn range(self, ptr: DevicePtr, size: u64) -> Call {
        Call { ptr, size, ..self }
    }

    pub(super) fn args(self, first: u64, second: u64) -> Call {
        Call { args: [first, second], ..self }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) memory: Memory,
    pub(super) schedule: Schedule,
    pub(super) captures: Captures,
    pub(super) checker: Option<Checker>,
    tails: Rng,
    hash: u64,
    /// What calls have cost so far, in virtual time; waiting is not in it.
    pub(super) charged_ns: u64,
}

/// A range that an action touches.
pub(super) type Touch = (OpKind, AccessKind, DevicePtr, u64);

impl State {
    pub(super) fn new(settings: Settings, memory: Memory) -> State {
        State {
            settings,
            memory,
            schedule: Schedule::new(settings.seed, settings.event_lag_ns, settings.real_time, settings.host_clock),
            captures: Captures::default(),
            checker: settings.checker.then(Checker::default),
            // A generator of its own, so that tails do not change the order in which work runs.
            tails: Rng::new(!settings.seed),
            hash: 0,
            charged_ns: 0,
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// What every call begins with: it takes its time, and meanwhile the device gets on.
    pub(super) fn begin(&mut self, call: Call) -> DriverResult<()> {
        let label = self.memory.label(call.ptr);
        for word in [call.kind as u64 + 1, label, call.size, call.args[0], call.args[1]] {
            self.mix(word);
        }
        let mut ns = self.settings.latency.call_ns(call.kind, call.size, call.host, call.mappings);
        if self.settings.tails
            && matches!(call.kind, CallKind::SetAccess | CallKind::Unmap)
            && self.tails.chance(STALL_PROBABILITY)
        {
            ns += STALL_NS;
        }
        self.schedule.advance(ns);
        self.charged_ns = self.charged_ns.saturating_add(ns);
        if self.settings.event_lag_ns > 0 || self.settings.latency != LatencyModel::Off || self.schedule.takes_time {
            // Otherwise nothing that the device does depends on the time.
            self.schedule.tick();
        }
        self.schedule.run_some(&self.memory);
        match &self.schedule.broken {
            None => Ok(()),
            Some(fault) => Err(DriverError::new(DriverErrorKind::Sticky, call.kind.name(), fault.clone())),
        }
    }

    /// Fails while a capture is under way.
    pub(super) fn no_capture(&self, call: &'static str) -> DriverResult<()> {
        if self.captures.is_empty() {
            return Ok(());
        }
        Err(DriverError::new(DriverErrorKind::Capturing, call, "not permitted while a stream is being captured"))
    }

    /// Checks an action, then queues it, or records it where the stream is being captured.
    pub(super) fn submit(
        &mut self,
        stream: StreamId,
        action: Action,
        duration_ns: u64,
        call: &'static str,
    ) -> DriverResult<()> {
        let index = self.schedule.stream(stream, call)?;
        let touched = self.touched(&action, call)?;
        if let Some(capture) = self.schedule.streams[index].capture {
            return self.captures.push(capture, action, duration_ns, call);
        }
        self.join_default(index);
        if let Some(checker) = &mut self.checker {
            let op = checker.next_op(stream);
            for ((what, access, ptr, size), extents) in &touched {
                let place = Place { stream, op, what: *what, access: *access, ptr: *ptr, size: *size };
                checker.access(place, extents);
            }
        }
        self.schedule.submit(index, action, duration_ns, &self.memory);
        Ok(())
    }

    /// Orders what comes next on a stream after the default stream's work, and what comes next on the default stream after
    /// that of all blocking streams, as CUDA's legacy stream is.
    pub(super) fn join_default(&mut self, index: usize) {
        if self.schedule.blocking == 0 {
            return;
        }
        if self.schedule.streams[index].blocking {
            let submitted = self.schedule.streams[0].submitted;
            if self.schedule.streams[index].waits_default < submitted {
                self.order_after(index, 0);
                self.schedule.streams[index].waits_default = self.schedule.streams[0].submitted;
            }
        } else if index == 0 {
            for other in 1..self.schedule.streams.len() {
                let stream = &self.schedule.streams[other];
                if stream.blocking && stream.default_waits < stream.submitted {
                    self.order_after(0, other);
                    let stream = &mut self.schedule.streams[other];
                    stream.default_waits = stream.submitted;
                }
            }
        }
    }

    /// Lets later work of one stream wait for what another has so far.
    pub(super) fn order_after(&mut self, later: usize, earlier: usize) {
        let clock = self.checker.as_mut().map(|c| c.recorded(StreamId(earlier as u64))).unwrap_or_default();
        let record = self.schedule.mark(earlier, clock);
        self.schedule.submit(earlier, Action::Record(record.clone()), 0, &self.memory);
        if let Some(checker) = &mut self.checker {
            checker.waits(StreamId(later as u64), &record.clock);
        }
        self.schedule.submit(later, Action::Wait(record), 0, &self.memory);
    }

    /// What an action touches. Fails where it may not.
    fn touched(&self, action: &Action, call: &'static str) -> DriverResult<Vec<(Touch, Vec<Extent>)>> {
        use AccessKind::{Read, Write};
        let mut touches: Vec<Touch> = Vec::new();
        match action {
            Action::Copy(ops) => {
                refuse_overlap(ops, call)?;
                touches.extend(touches_of_copies(ops));
            }
            Action::Fill { ptr, size, .. } => touches.push((OpKind::Fill, Write, *ptr, *size)),
            Action::Write { dst, size, .. } => touches.push((OpKind::HostWrite, Write, *dst, *size)),
            Action::Kernel(accesses) => {
                touches.extend(accesses.iter().map(|a| (OpKind::Kernel, a.kind, a.ptr, a.size)));
            }
            Action::Own(kernel) => {
                if let kernels::Call::CopyBlocks(ops) = kernel {
                    refuse_overlap(ops, call)?;
                }
                touches.extend(touches_of(kernel));
            }
            Action::Host(_) | Action::Record(_) | Action::Wait(_) => {}
            Action::Until(until) => touches.push((OpKind::Kernel, Read, until.ptr, until.width)),
        }
        let resolve = |touch: Touch| Ok((touch, self.memory.resolve(touch.2, touch.3, call)?));
        touches.into_iter().map(resolve).collect()
    }

    /// Waits for a stream, on the host. `false` where the stream itself waits for the host; so does the next.
    pub(super) fn synchronize_stream(&mut self, stream: StreamId, call: &'static str) -> DriverResult<bool> {
        let index = self.schedule.stream(stream, call)?;
        if self.schedule.streams[index].capture.is_some() {
            self.no_capture(call)?;
        }
        if index == 0 {
            self.join_default(0);
        }
        if !self.schedule.synchronize_stream(index, &self.memory) {
            return Ok(false);
        }
        if let Some(checker) = &mut self.checker {
            checker.host_saw_stream(stream);
        }
        self.intact(call).map(|()| true)
    }

    /// Waits for everything, on the host.
    pub(super) fn synchronize_device(&mut self, call: &'static str) -> DriverResult<bool> {
        self.no_capture(call)?;
        if !self.schedule.synchronize_all(&self.memory) {
            return Ok(false);
        }
        if let Some(checker) = &mut self.checker {
            checker.host_saw_all();
        }
        self.intact(call).map(|()| true)
    }

    /// Fails if the work just waited for has broken the device.
    pub(super) fn intact(&self, call: &'static str) -> DriverResult<()> {
        match &self.schedule.broken {
            None => Ok(()),
            Some(fault) => Err(DriverError::new(DriverErrorKind::Sticky, call, fault.clone())),
        }
    }

    /// Tells the checker that physical bytes are gone.
    pub(super) fn forget(&mut self, extents: impl IntoIterator<Item = Extent>) {
        if let Some(checker) = &mut self.checker {
            extents.into_iter().for_each(|extent| checker.forget(extent));
        }
    }
}

fn refuse_overlap(ops: &[CopyOp], call: &'static str) -> DriverResult<()> {
    match ops.iter().find(|op| op.dst.0.abs_diff(op.src.0) < op.size) {
        None => Ok(()),
        Some(op) => Err(invalid(call, format!("{} and {} overlap over {} bytes", op.src, op.dst, op.size))),
    }
}

fn touches_of_copies(ops: &[CopyOp]) -> impl Iterator<Item = Touch> {
    ops.iter().flat_map(|op| {
        let read = (OpKind::Copy, AccessKind::Read, op.src, op.size);
        [read, (OpKind::Copy, AccessKind::Write, op.dst, op.size)]
    })
}

/// What a kernel of the library's own touches.
pub(super) fn touches_of(call: &kernels::Call) -> Vec<Touch> {
    use AccessKind::{Read, Write};
    use kernels::{Call, Finding};
    match call {
        Call::CopyBlocks(ops) => touches_of_copies(ops).collect(),
        Call::FillWords { ptr, size, .. } => vec![(OpKind::Watch, Write, *ptr, *size)],
        Call::CheckWords { ptr, size, result, .. } => {
            let found = (OpKind::Watch, Write, *result, size_of::<Finding>() as u64);
            vec![(OpKind::Watch, Read, *ptr, *size), found]
        }
        Call::Quantize(requant) | Call::Dequantize(requant) => {
            let codes = requant.quant().map_or(0, |quant| quant.encoded_size(requant.size));
            let is_quantize = matches!(call, Call::Quantize(_));
            let [reads, writes] = if is_quantize { [requant.size, codes] } else { [codes, requant.size] };
            vec![(OpKind::Watch, Read, requant.src, reads), (OpKind::Watch, Write, requant.dst, writes)]
        }
        Call::Checksum { ptr, size, result } => {
            vec![(OpKind::Watch, Read, *ptr, *size), (OpKind::Watch, Write, *result, size_of::<u64>() as u64)]
        }
    }
}
