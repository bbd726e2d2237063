//! All that is under way, by what comes next for it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::job::{Job, Kind, Piece, Way};
use super::staging::Staging;
use crate::driver::EventId;
use crate::tier::{Ticket, TierError};

/// Copies in one call, at most. What CUDA's batched copy takes is not said; vLLM's and our kernels' batches are as long.
pub(super) const BATCH_PIECES: usize = 128;

/// Pieces that go straight between device and tier, submitted to one stream at a time.
const FLYING_PIECES: usize = 256;

/// Pieces that are written from pinned memory at a time, as they lie there.
const SPILLED_PIECES: usize = 64;

/// Buffers that saves and spills leave to loads.
const LEFT_FOR_LOADS: usize = 2;

/// Copies that were submitted together. Once the event has passed, each piece is copied, or has failed.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) event: EventId,
    pub(super) pieces: Vec<(Piece, Option<TierError>)>,
    /// How often the driver failed to say whether the event has passed.
    pub(super) strikes: u32,
}

/// The copies of one way.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// To be submitted.
    pub(super) waiting: VecDeque<Piece>,
    pub(super) waiting_bytes: u64,
    /// Submitted, in the stream's order.
    pub(super) flying: VecDeque<Batch>,
    pub(super) flying_pieces: usize,
    /// Whether somebody asks about the first batches, which stay here meanwhile.
    pub(super) polling: bool,
    /// Whether somebody is submitting copies.
    pub(super) submitting: bool,
}

impl Line {
    pub(super) fn push(&mut self, piece: Piece) {
        self.waiting_bytes += piece.size();
        self.waiting.push_back(piece);
    }

    /// Whether a call is worth while.
    fn is_full(&self, bytes: u64) -> bool {
        self.waiting_bytes >= bytes || self.waiting.len() >= BATCH_PIECES
    }

    /// What one call takes.
    fn take(&mut self, bytes: u64) -> Vec<Piece> {
        let mut taken = Vec::new();
        let mut sum = 0;
        while let Some(piece) = self.waiting.front()
            && taken.len() < BATCH_PIECES
            && (taken.is_empty() || sum + piece.size() <= bytes)
        {
            sum += piece.size();
            taken.extend(self.waiting.pop_front());
        }
        self.waiting_bytes -= sum;
        taken
    }

    fn has_room(&self) -> bool {
        self.flying_pieces + self.waiting.len() < FLYING_PIECES
    }
}

/// Jobs that wait for the same thing to begin their next piece: room on a stream, or buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    DirectIn,
    StagedIn,
    DirectOut,
    StagedOut,
}

impl Class {
    const ALL: [Class; 4] = [Class::DirectIn, Class::StagedIn, Class::DirectOut, Class::StagedOut];

    fn of(job: &Job) -> Class {
        match (job.way(), job.direct.is_some()) {
            (Way::In, true) => Class::DirectIn,
            (Way::In, false) => Class::StagedIn,
            (Way::Out, true) => Class::DirectOut,
            (Way::Out, false) => Class::StagedOut,
        }
    }
}

/// What one thread does next, without the lock.
#[derive(Debug)]
pub(super) enum Step {
    /// Checksums and codecs.
    Compute(Piece),
    /// Copies to be submitted together.
    Submit(Way, Vec<Piece>),
    /// A read or write to be started.
    Start(Piece),
    /// A job that was stopped, of which nothing is under way.
    End(Arc<Job>),
}

/// See the module's documentation. Conservation: every piece under way is in one queue, or with a thread.
#[derive(Debug, Default)]
pub(super) struct Queues {
    begin: [VecDeque<Arc<Job>>; 4],
    lines: [Line; 2],
    compute: VecDeque<Piece>,
    pub(super) io: VecDeque<(Ticket, Piece)>,
    /// Reads and writes that a tier was too busy for.
    pub(super) stalled: VecDeque<Piece>,
    pub(super) staging: Staging,
    /// Transfers that have not ended.
    pub(super) under_way: usize,
    pub(super) stopping: bool,
}

impl Queues {
    pub(super) fn line(&mut self, way: Way) -> &mut Line {
        &mut self.lines[way as usize]
    }

    pub(super) fn begin(&mut self, job: Arc<Job>) {
        self.under_way += 1;
        self.begin[Class::of(&job) as usize].push_back(job);
    }

    pub(super) fn compute(&mut self, piece: Piece) {
        self.compute.push_back(piece);
    }

    /// Nothing more of any job is begun.
    pub(super) fn cancel_all(&mut self) {
        for job in self.begin.iter().flatten() {
            job.progress.lock().cancelled = true;
        }
    }

    /// Whether a worker has anything to do at once.
    pub(super) fn has_work(&self) -> bool {
        !self.compute.is_empty()
            || self.lines.iter().any(|line| !line.waiting.is_empty() && !line.submitting)
            || self.begin.iter().any(|queue| !queue.is_empty())
    }

    /// What is next: calls that are worth while, so that the device has something to do; then what frees something before what takes something,
    /// and calls that are worth less.
    pub(super) fn next(&mut self, compute: bool, batch_bytes: u64) -> Option<Step> {
        loop {
            for way in [Way::In, Way::Out] {
                if self.line(way).is_full(batch_bytes) && !self.line(way).submitting {
                    return Some(self.submit(way, batch_bytes));
                }
            }
            if compute && let Some(piece) = self.compute.pop_front() {
                return Some(Step::Compute(piece));
            }
            match self.begin_piece() {
                Begun::Queued => continue,
                Begun::Step(step) => return Some(step),
                Begun::Nothing => {}
            }
            let has_rest = |line: &Line| !line.waiting.is_empty() && !line.submitting;
            return [Way::In, Way::Out]
                .into_iter()
                .find(|&way| has_rest(self.line(way)))
                .map(|way| self.submit(way, batch_bytes));
        }
    }

    /// What one call takes. Until it has returned, other threads do something else: it goes to the same stream.
    fn submit(&mut self, way: Way, batch_bytes: u64) -> Step {
        let line = self.line(way);
        line.submitting = true;
        Step::Submit(way, line.take(batch_bytes))
    }

    /// Begins a piece, if there is one for which there is room.
    fn begin_piece(&mut self) -> Begun {
        for class in Class::ALL {
            let Some(job) = self.begin[class as usize].front().cloned() else { continue };
            let mut progress = job.progress.lock();
            if self.staging.total() < job.buffers() + LEFT_FOR_LOADS && job.buffers() > 0 {
                let reason = "its staging memory was lost to failed copies".to_owned();
                progress.failed.get_or_insert(TierError::Unusable { tier: "transfer".to_owned(), reason });
            }
            if progress.is_stopped() {
                self.begin[class as usize].pop_front();
                if progress.cancelled {
                    progress.failed.get_or_insert(TierError::Cancelled);
                }
                let ends = progress.under_way == 0 && !progress.ended;
                progress.ended |= ends;
                drop(progress);
                if ends {
                    return Begun::Step(Step::End(job));
                }
                return Begun::Queued;
            }
            if !self.has_room_for(&job, class) {
                continue;
            }
            let index = progress.next;
            progress.next += 1;
            progress.under_way += 1;
            if progress.next == job.count {
                self.begin[class as usize].pop_front();
            }
            drop(progress);
            return self.route(job, index);
        }
        Begun::Nothing
    }

    fn has_room_for(&mut self, job: &Job, class: Class) -> bool {
        match class {
            _ if matches!(job.kind, Kind::Spill) && job.direct.is_some() => {
                self.compute.len() + self.io.len() + self.stalled.len() < SPILLED_PIECES
            }
            Class::DirectIn | Class::DirectOut => self.compute.len() < FLYING_PIECES && self.line(job.way()).has_room(),
            Class::StagedIn => self.staging.has(job.buffers(), 0),
            Class::StagedOut => self.staging.has(job.buffers(), LEFT_FOR_LOADS),
        }
    }

    /// Puts a new piece where it begins, with its buffers.
    fn route(&mut self, job: Arc<Job>, index: u32) -> Begun {
        let count = job.buffers();
        let mut piece = Piece { job, index, raw: None, coded: None, on_device: false, reading: false };
        piece.raw = if count > 0 { self.staging.take() } else { None };
        piece.coded = if count > 1 { self.staging.take() } else { None };
        match (&piece.job.kind, piece.job.direct.is_some()) {
            (Kind::Save { .. }, _) => self.line(Way::Out).push(piece),
            // What the host can read is checked first.
            (Kind::Load { .. }, true) if piece.job.host => self.compute(piece),
            (Kind::Load { .. }, true) => self.line(Way::In).push(piece),
            (Kind::Spill, true) => self.compute(piece),
            (Kind::Load { .. } | Kind::Spill, _) => {
                piece.reading = true;
                return Begun::Step(Step::Start(piece));
            }
        }
        Begun::Queued
    }
}

enum Begun {
    Queued,
    Step(Step),
    Nothing,
}
