//! Following a trace: its operations become calls.

use stratalloc::error::{Error, Result};
use stratalloc::units::{DevicePtr, StreamId};

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

/// One program's run through a trace: its streams and the addresses it was given.
pub(super) struct Follower<'a> {
    engine: &'a Engine,
    trace: &'a Trace,
    streams: Vec<StreamId>,
    /// By id, and since the ids of a trace are dense, simply one after the other.
    ptrs: Vec<DevicePtr>,
    skip_empty_cache: bool,
    /// By id, with the checker: who used the block last. Without it: nothing.
    uses: Option<Vec<LastUse>>,
}

/// The last use of a block.
#[derive(Clone, Copy)]
struct LastUse {
    bytes: u64,
    stream: u16,
}

impl<'a> Follower<'a> {
    pub(super) fn new(engine: &'a Engine, trace: &'a Trace, skip_empty_cache: bool, checker: bool) -> Result<Self> {
        Ok(Follower {
            engine,
            trace,
            streams: (0..trace.streams).map(|_| engine.create_stream()).collect::<Result<_>>()?,
            ptrs: Vec::with_capacity(trace.allocs as usize),
            skip_empty_cache,
            uses: checker.then(|| Vec::with_capacity(trace.allocs as usize)),
        })
    }

    /// The addresses given out since the pass began.
    pub(super) fn ptrs(&self) -> &[DevicePtr] {
        &self.ptrs
    }

    /// Gets ready for a pass.
    pub(super) fn begin(&mut self) {
        self.ptrs.clear();
        if let Some(uses) = &mut self.uses {
            uses.clear();
        }
    }

    /// Follows the operations from index `from` to `to`.
    pub(super) fn follow(&mut self, from: usize, to: usize) -> std::result::Result<(), Failure> {
        let Follower { engine, trace, streams, ptrs, skip_empty_cache, uses } = self;
        let (ops, skip) = (&trace.ops[from..to], *skip_empty_cache);
        let outcome = match uses {
            None => each(ops, |op| call(engine, op, streams, ptrs, skip)),
            Some(uses) => each(ops, |op| checked_call(engine, op, streams, ptrs, skip, uses)),
        };
        outcome.map_err(|(index, error)| Failure { op: Some(from + index), error })
    }

    /// Frees what the trace leaves live, so that the next pass can begin.
    pub(super) fn free_rest(&mut self) -> Result<()> {
        for id in &self.trace.live_at_end {
            let ptr = self.ptrs[*id as usize];
            if self.uses.is_some() {
                self.engine.note_free(ptr);
            }
            self.engine.free(ptr)?;
        }
        Ok(())
    }
}

/// Does something with each operation until one fails; tells which.
#[inline(always)]
fn each(ops: &[Op], mut act: impl FnMut(Op) -> Result<()>) -> std::result::Result<(), (usize, Error)> {
    ops.iter().enumerate().try_for_each(|(index, op)| act(*op).map_err(|error| (index, error)))
}

/// One operation: one call of the allocator and one store or load of an address.
#[inline(always)]
fn call(
    engine: &Engine,
    op: Op,
    streams: &[StreamId],
    ptrs: &mut Vec<DevicePtr>,
    skip_empty_cache: bool,
) -> Result<()> {
    match op {
        Op::Alloc { bytes, stream } => ptrs.push(engine.alloc(bytes, streams[usize::from(stream)])?),
        Op::Free { id } => engine.free(ptrs[id as usize])?,
        Op::Record { id, stream } => engine.record_stream(ptrs[id as usize], streams[usize::from(stream)])?,
        Op::EmptyCache if !skip_empty_cache => engine.empty_cache()?,
        Op::EmptyCache | Op::Marker { .. } => {}
    }
    Ok(())
}

/// One operation of a correct program that also uses its memory: each new block is written on its home stream; a stream that
/// a block is recorded on waits for the block's last user, then reads and writes it. Nothing waits before a free: that the
/// memory is not reused too early is the allocator's part, and what the checker checks.
fn checked_call(
    engine: &Engine,
    op: Op,
    streams: &[StreamId],
    ptrs: &mut Vec<DevicePtr>,
    skip_empty_cache: bool,
    uses: &mut Vec<LastUse>,
) -> Result<()> {
    match op {
        Op::Free { id } => engine.note_free(ptrs[id as usize]),
        Op::Record { id, stream } => {
            let last = &mut uses[id as usize];
            let user = streams[usize::from(stream)];
            if last.stream != stream {
                engine.wait_for(user, streams[usize::from(last.stream)])?;
                last.stream = stream;
            }
            engine.launch(user, ptrs[id as usize], last.bytes, Use::ReadWrite)?;
        }
        _ => {}
    }
    call(engine, op, streams, ptrs, skip_empty_cache)?;
    if let (Op::Alloc { bytes, stream }, Some(ptr)) = (op, ptrs.last()) {
        let home = streams[usize::from(stream)];
        engine.note_alloc(*ptr, bytes, home);
        engine.launch(home, *ptr, bytes, Use::Write)?;
        uses.push(LastUse { bytes, stream });
    }
    Ok(())
}
