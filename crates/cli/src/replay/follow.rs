//! Following a trace: its operations become calls.

use std::time::Instant;

use stratalloc::error::{Error, Result};
use stratalloc::units::{DevicePtr, StreamId};

use super::bandwidth::Bandwidth;
use super::passes::Plan;
use super::percentiles::{Percentiles, Samples};
use crate::engine::{Engine, Use};
use crate::trace::{Op, Trace};

/// Where a replay stopped, and why.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// Index of the operation; none if it was none of them.
    pub(super) op: Option<usize>,
    /// What the allocator said.
    pub(super) error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { op: None, error }
    }
}

/// How a trace is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Calls of the allocator and nothing else: what is timed.
    Plain,
    /// The same, with a look at the time before and after each allocation in steady state.
    Sampled,
    /// Virtual time passes with each operation, so that what lags behind catches up.
    Paced,
    /// The same, and on each block's stream a kernel goes over all of it: the device lags the host.
    Busy,
    /// As a program that also uses its memory, under the eyes of the checker.
    Checked,
}

/// Virtual time of a paced operation: about what PyTorch's own allocator takes.
const PACED_OP_NS: u64 = 300;

/// Virtual time of a checked operation, and of each kernel, where no bandwidth says otherwise. Fewer than two operations in three launch a kernel, so streams
/// fall behind the host in bursts and catch up again.
const CHECKED_OP_NS: u64 = 2_000;
const KERNEL_NS: u64 = 3_000;

/// One program's run through a trace: its streams and the addresses it was given.
pub(super) struct Follower<'a> {
    engine: &'a Engine,
    trace: &'a Trace,
    manner: Manner,
    bandwidth: Option<Bandwidth>,
    streams: Vec<StreamId>,
    /// By id, and since the ids of a trace are dense, simply one after the other.
    ptrs: Vec<DevicePtr>,
    skip_empty_cache: bool,
    steps: bool,
    /// By id, if its memory is used: who used the block last.
    uses: Vec<LastUse>,
    /// If sampled: what the allocations of this pass take, and took in earlier ones.
    samples: Samples,
    percentiles: Vec<Percentiles>,
}

/// The last use of a block.
#[derive(Clone, Copy)]
struct LastUse {
    bytes: u64,
    stream: u16,
}

impl<'a> Follower<'a> {
    pub(super) fn new(engine: &'a Engine, trace: &'a Trace, plan: &Plan) -> Result<Self> {
        Ok(Follower {
            engine,
            trace,
            manner: plan.manner,
            bandwidth: plan.bandwidth,
            streams: (0..trace.streams).map(|_| engine.create_stream()).collect::<Result<_>>()?,
            ptrs: Vec::with_capacity(trace.allocs as usize),
            skip_empty_cache: plan.skip_empty_cache,
            steps: plan.steps,
            uses: Vec::new(),
            samples: Samples::default(),
            percentiles: Vec::new(),
        })
    }

    /// The addresses given out since the pass began.
    pub(super) fn ptrs(&self) -> &[DevicePtr] {
        &self.ptrs
    }

    /// Gets ready for a pass.
    pub(super) fn begin(&mut self) {
        self.ptrs.clear();
        self.uses.clear();
        self.percentiles.extend(self.samples.take());
    }

    /// What the allocations of each pass took, if they were sampled.
    pub(super) fn take_percentiles(&mut self) -> Vec<Percentiles> {
        self.percentiles.extend(self.samples.take());
        std::mem::take(&mut self.percentiles)
    }

    /// Follows the operations from index `from` to `to`.
    pub(super) fn follow(&mut self, from: usize, to: usize) -> std::result::Result<(), Failure> {
        let ops = &self.trace.ops[from..to];
        let outcome = match self.manner {
            Manner::Plain => each(ops, |op| self.call(op)),
            Manner::Sampled if from < self.trace.first_third() => each(ops, |op| self.call(op)),
            Manner::Sampled => each(ops, |op| self.sampled_call(op)),
            Manner::Paced => each(ops, |op| {
                self.pass_time(op, PACED_OP_NS);
                self.call(op)
            }),
            Manner::Busy => each(ops, |op| self.busy_call(op)),
            Manner::Checked => each(ops, |op| self.checked_call(op)),
        };
        outcome.map_err(|(index, error)| Failure { op: Some(from + index), error })
    }

    /// Frees what the trace leaves live, so that the next pass can begin.
    pub(super) fn free_rest(&mut self) -> Result<()> {
        self.trace.live_at_end.iter().try_for_each(|id| {
            self.note_free(*id);
            self.engine.free(self.ptrs[*id as usize])
        })
    }

    /// One operation: one call of the allocator and one store or load of an address.
    #[inline(always)]
    fn call(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Alloc { bytes, stream } => {
                self.ptrs.push(self.engine.alloc(bytes, self.streams[usize::from(stream)])?);
                Ok(())
            }
            Op::Free { id } => self.engine.free(self.ptrs[id as usize]),
            Op::Record { id, stream } => {
                self.engine.record_stream(self.ptrs[id as usize], self.streams[usize::from(stream)])
            }
            Op::EmptyCache if !self.skip_empty_cache => self.engine.empty_cache(),
            Op::Marker { .. } if self.steps => {
                self.engine.step();
                Ok(())
            }
            Op::EmptyCache | Op::Marker { .. } => Ok(()),
        }
    }

    /// One operation, timed if it is an allocation.
    fn sampled_call(&mut self, op: Op) -> Result<()> {
        let Op::Alloc { .. } = op else { return self.call(op) };
        let start = Instant::now();
        self.call(op)?;
        self.samples.add(start.elapsed());
        Ok(())
    }

    /// One operation of a program that keeps its device busy: a new block is written on its home stream, one that is recorded
    /// is used on that stream. Streams run side by side and wait for nobody. A kernel that finds its memory unmapped breaks
    /// the device, which ends the replay.
    fn busy_call(&mut self, op: Op) -> Result<()> {
        self.pass_time(op, PACED_OP_NS);
        if let Op::Record { id, stream } = op {
            let bytes = self.uses[id as usize].bytes;
            let user = self.streams[usize::from(stream)];
            self.engine.launch(user, self.ptrs[id as usize], bytes, Use::ReadWrite, self.kernel_ns(bytes))?;
        }
        self.call(op)?;
        if let (Op::Alloc { bytes, stream }, Some(ptr)) = (op, self.ptrs.last()) {
            let home = self.streams[usize::from(stream)];
            self.engine.launch(home, *ptr, bytes, Use::Write, self.kernel_ns(bytes))?;
            self.uses.push(LastUse { bytes, stream });
        }
        Ok(())
    }

    /// The host takes its time for an operation. Markers are none.
    fn pass_time(&self, op: Op, ns: u64) {
        if !matches!(op, Op::Marker { .. }) {
            self.engine.advance_clock(ns);
        }
    }

    /// How long a kernel over so many bytes takes.
    fn kernel_ns(&self, bytes: u64) -> u64 {
        self.bandwidth.map_or(KERNEL_NS, |bandwidth| bandwidth.ns(bytes))
    }

    /// One operation of a correct program that also uses its memory: each new block is written on its home stream; a stream
    /// that a block is recorded on waits for the block's last user, then reads and writes it. Nothing waits before a free:
    /// that the memory is not reused too early is the allocator's part, and what the checker checks.
    fn checked_call(&mut self, op: Op) -> Result<()> {
        self.pass_time(op, if self.bandwidth.is_some() { PACED_OP_NS } else { CHECKED_OP_NS });
        match op {
            Op::Free { id } => self.note_free(id),
            Op::Record { id, stream } => {
                let LastUse { bytes, stream: last } = self.uses[id as usize];
                let user = self.streams[usize::from(stream)];
                if last != stream {
                    self.engine.wait_for(user, self.streams[usize::from(last)])?;
                    self.uses[id as usize].stream = stream;
                }
                self.engine.launch(user, self.ptrs[id as usize], bytes, Use::ReadWrite, self.kernel_ns(bytes))?;
            }
            _ => {}
        }
        self.call(op)?;
        if let (Op::Alloc { bytes, stream }, Some(ptr)) = (op, self.ptrs.last()) {
            let home = self.streams[usize::from(stream)];
            self.engine.note_alloc(*ptr, bytes, home);
            self.engine.launch(home, *ptr, bytes, Use::Write, self.kernel_ns(bytes))?;
            self.uses.push(LastUse { bytes, stream });
        }
        Ok(())
    }

    /// Tells the checker, if there is one, that the block is given up.
    fn note_free(&self, id: u32) {
        if let Some(last) = self.uses.get(id as usize) {
            self.engine.note_free(self.ptrs[id as usize], last.bytes);
        }
    }
}

/// Does something with each operation until one fails; tells which.
#[inline(always)]
fn each(ops: &[Op], mut act: impl FnMut(Op) -> Result<()>) -> std::result::Result<(), (usize, Error)> {
    ops.iter().enumerate().try_for_each(|(index, op)| act(*op).map_err(|error| (index, error)))
}
