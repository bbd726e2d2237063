//! Following a trace: its operations become calls.

use stratalloc::error::{Error, Result};
use stratalloc::units::{DevicePtr, StreamId};

use super::passes::Plan;
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
    /// Virtual time passes with each operation, so that what lags behind catches up.
    Paced,
    /// As a program that also uses its memory, under the eyes of the checker.
    Checked,
}

/// Virtual time of a paced operation: about what PyTorch's own allocator takes.
const PACED_OP_NS: u64 = 300;

/// Virtual time of a checked operation, and of each kernel. Fewer than two operations in three launch a kernel, so streams
/// fall behind the host in bursts and catch up again.
const CHECKED_OP_NS: u64 = 2_000;
const KERNEL_NS: u64 = 3_000;

/// One program's run through a trace: its streams and the addresses it was given.
pub(super) struct Follower<'a> {
    engine: &'a Engine,
    trace: &'a Trace,
    manner: Manner,
    streams: Vec<StreamId>,
    /// By id, and since the ids of a trace are dense, simply one after the other.
    ptrs: Vec<DevicePtr>,
    skip_empty_cache: bool,
    steps: bool,
    /// By id, if checked: who used the block last.
    uses: Vec<LastUse>,
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
            streams: (0..trace.streams).map(|_| engine.create_stream()).collect::<Result<_>>()?,
            ptrs: Vec::with_capacity(trace.allocs as usize),
            skip_empty_cache: plan.skip_empty_cache,
            steps: plan.steps,
            uses: Vec::new(),
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
    }

    /// Follows the operations from index `from` to `to`.
    pub(super) fn follow(&mut self, from: usize, to: usize) -> std::result::Result<(), Failure> {
        let ops = &self.trace.ops[from..to];
        let outcome = match self.manner {
            Manner::Plain => each(ops, |op| self.call(op)),
            Manner::Paced => each(ops, |op| {
                self.engine.advance_clock(PACED_OP_NS);
                self.call(op)
            }),
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

    /// One operation of a correct program that also uses its memory: each new block is written on its home stream; a stream
    /// that a block is recorded on waits for the block's last user, then reads and writes it. Nothing waits before a free:
    /// that the memory is not reused too early is the allocator's part, and what the checker checks.
    fn checked_call(&mut self, op: Op) -> Result<()> {
        self.engine.advance_clock(CHECKED_OP_NS);
        match op {
            Op::Free { id } => self.note_free(id),
            Op::Record { id, stream } => {
                let last = &mut self.uses[id as usize];
                let user = self.streams[usize::from(stream)];
                if last.stream != stream {
                    self.engine.wait_for(user, self.streams[usize::from(last.stream)])?;
                    last.stream = stream;
                }
                self.engine.launch(user, self.ptrs[id as usize], last.bytes, Use::ReadWrite, KERNEL_NS)?;
            }
            _ => {}
        }
        self.call(op)?;
        if let (Op::Alloc { bytes, stream }, Some(ptr)) = (op, self.ptrs.last()) {
            let home = self.streams[usize::from(stream)];
            self.engine.note_alloc(*ptr, bytes, home);
            self.engine.launch(home, *ptr, bytes, Use::Write, KERNEL_NS)?;
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
