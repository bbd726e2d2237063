//! What threads do with pieces: submit their copies, ask whether those are done, check and encode, read and write.
//!
//! Locks, in the order in which they are taken: a stream's, the queues', a job's progress. Driver calls are made under a stream's lock at most,
//! so that the order of its batches is that of the stream; tiers are called under none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Condvar;

use super::guarded;
use super::job::{Ended, Job, Kind, Outcome, Piece, UNIT, Way};
use super::place::{Place, Stored};
use super::queues::{Batch, Queues, Step};
use super::sums::SumSlots;
use super::{EngineConfig, unusable};
use crate::driver::{Driver, DriverError, DriverResult, EventId};
use crate::stream::EventPool;
use crate::sync::Mutex;
use crate::tier::{Tier, TierError};
use crate::units::StreamId;

/// How often the last user of an engine looks in vain whether a transfer has ended.
const PATIENCE: u32 = 50_000;

/// What has happened so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) saved_bytes: AtomicU64,
    pub(super) loaded_bytes: AtomicU64,
    pub(super) spilled_bytes: AtomicU64,
    pub(super) ended: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) abandoned: AtomicU64,
    pub(super) stall_ns: AtomicU64,
}

/// The engine, as its threads and transfers see it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) config: EngineConfig,
    /// By [`Way`]; none until the first copy.
    pub(super) streams: [Mutex<Option<StreamId>>; 2],
    pub(super) events: Mutex<EventPool>,
    pub(super) sums: Mutex<SumSlots>,
    pub(super) queues: Mutex<Queues>,
    /// The tiers that know of the staging memory.
    attached: Mutex<Vec<Weak<dyn Tier>>>,
    /// Held while staging memory is pinned.
    pub(super) making: Mutex<()>,
    /// Told when there is something to do, and when a transfer has ended.
    pub(super) changed: Condvar,
    pub(super) counters: Counters,
    /// The process that all this belongs to.
    process: u32,
}

impl Shared {
    pub(super) fn new(driver: Arc<dyn Driver>, config: EngineConfig) -> Shared {
        Shared {
            driver,
            config,
            streams: Default::default(),
            events: Mutex::new(EventPool::default()),
            sums: Mutex::new(SumSlots::default()),
            queues: Mutex::new(Queues::default()),
            attached: Mutex::default(),
            making: Mutex::new(()),
            changed: Condvar::new(),
            counters: Counters::default(),
            process: std::process::id(),
        }
    }

    /// Whether this is the process that made the engine. A child of `fork` has neither its threads nor its device.
    pub(super) fn is_own(&self) -> bool {
        self.process == std::process::id()
    }

    /// Fails in a child of `fork`.
    pub(super) fn check_own(&self) -> Result<(), TierError> {
        if self.is_own() {
            return Ok(());
        }
        Err(unusable("the engine belongs to the process that forked this one".to_owned()))
    }

    // ---- streams and events -------------------------------------------------------------------------------------------

    /// The stream of a way.
    pub(super) fn stream(&self, way: Way) -> DriverResult<StreamId> {
        let mut stream = self.streams[way as usize].lock();
        match *stream {
            Some(stream) => Ok(stream),
            None => Ok(*stream.insert(self.driver.create_stream()?)),
        }
    }

    /// Lets later copies of a way come after what is submitted to `streams` now.
    pub(super) fn come_after(&self, way: Way, streams: &[StreamId]) -> DriverResult<()> {
        let own = self.stream(way)?;
        for &stream in streams.iter().filter(|&&stream| stream != own) {
            let event = self.events.lock().get(&*self.driver)?;
            let ordered = self.driver.record_event(event, stream).and_then(|()| self.driver.wait_event(own, event));
            // What waits for an event waits for its last recording, so it may be used again at once.
            self.events.lock().put(event);
            ordered?;
        }
        Ok(())
    }

    /// Tells a tier of the staging memory, where there is any, unless it knows.
    pub(super) fn attach(&self, tier: &Arc<dyn Tier>) {
        let Some((memory, size)) = self.queues.lock().staging.memory(self.config.buffer_bytes()) else { return };
        let mut attached = self.attached.lock();
        attached.retain(|known| known.strong_count() > 0);
        if !attached.iter().any(|known| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(tier))) {
            // SAFETY: the memory is freed when the engine ends, which detaches it first.
            unsafe { tier.attach(memory.0 as *mut u8, size) };
            attached.push(Arc::downgrade(tier));
        }
    }

    // ---- one step -----------------------------------------------------------------------------------------------------

    /// Does one thing that can be done without waiting: whether there was one. Without `compute`, what takes the processor's time is left to
    /// others.
    pub(super) fn run_one(&self, compute: bool) -> bool {
        let step = self.queues.lock().next(compute, self.config.piece_bytes);
        match step {
            Some(Step::Compute(piece)) => self.compute(piece),
            Some(Step::Submit(way, pieces)) => {
                self.submit(way, pieces);
                self.queues.lock().line(way).submitting = false;
                self.wake();
            }
            Some(Step::Start(piece)) => self.start(piece),
            Some(Step::End(job)) => self.end(&job),
            None => {
                let copied = self.poll_line(Way::In) | self.poll_line(Way::Out);
                return copied | self.poll_io();
            }
        }
        true
    }

    /// Does all that can be done without waiting: whether there was anything.
    pub(super) fn pump(&self, compute: bool) -> bool {
        let mut any = false;
        while self.run_one(compute) {
            any = true;
        }
        any
    }

    /// Submits copies as one batch. They are known by their event from then on, whatever fails.
    fn submit(&self, way: Way, pieces: Vec<Piece>) {
        let driver = &*self.driver;
        let guard = self.streams[way as usize].lock();
        // There is a stream since the job began.
        let stream = guard.unwrap_or(StreamId::DEFAULT);
        let stopped = |piece: &Piece| piece.job.progress.lock().is_stopped();
        let (stopped, pieces): (Vec<Piece>, Vec<Piece>) = pieces.into_iter().partition(stopped);
        if pieces.is_empty() {
            drop(guard);
            return self.drop_stopped(stopped);
        }
        let (coded, pieces) = self.requantize(pieces, stream);
        let mut ops = Vec::with_capacity(pieces.len());
        pieces.iter().for_each(|piece| piece.add_ops(&mut ops));
        let copied = if ops.is_empty() { Ok(()) } else { driver.copy(&ops, stream) };
        let mut pieces: Vec<(Piece, Option<TierError>)> = match copied {
            Ok(()) => pieces.into_iter().map(|piece| (piece, None)).collect(),
            Err(error) if pieces.len() == 1 => {
                pieces.into_iter().map(|piece| (piece, Some(error.clone().into()))).collect()
            }
            // One that cannot be copied keeps nothing else from it. What was submitted already is copied twice.
            Err(_) => pieces.into_iter().map(|piece| self.copy_alone(piece, stream)).collect(),
        };
        pieces.extend(coded);
        let mut last_of: Vec<Arc<Job>> = Vec::new();
        for (piece, failed) in &mut pieces {
            let job = &piece.job;
            let mut progress = job.progress.lock();
            progress.submitted += 1;
            if progress.submitted == job.count {
                last_of.push(job.clone());
                if let Some(sum) = job.copy_sum
                    && let Err(error) = driver.checksum(job.copy_ptr(), job.size, sum.ptr(), stream)
                {
                    failed.get_or_insert(error.into());
                }
            }
            if let Some(error) = failed {
                progress.failed.get_or_insert(error.clone());
            }
        }
        let event = self.events.lock().get(driver);
        let recorded = event.and_then(|event| match driver.record_event(event, stream) {
            Ok(()) => Ok(event),
            Err(error) => {
                self.events.lock().put(event);
                Err(error)
            }
        });
        let all_submitted = |event: Option<EventId>| {
            for job in &last_of {
                let mut progress = job.progress.lock();
                (progress.event, progress.all_submitted) = (event, true);
            }
        };
        match recorded {
            Ok(event) => {
                all_submitted(Some(event));
                let mut queues = self.queues.lock();
                let line = queues.line(way);
                line.flying_pieces += pieces.len();
                line.flying.push_back(Batch { event, pieces, strikes: 0 });
                drop(queues);
                drop(guard);
                self.poll_line(way);
            }
            // Nothing says when the copies are done, but that the whole stream is.
            Err(error) => {
                drop(guard);
                match driver.synchronize_stream(stream) {
                    Ok(()) => {
                        all_submitted(None);
                        pieces.into_iter().for_each(|(piece, failed)| self.copied(piece, failed));
                    }
                    Err(_) => self.abandon(pieces, &error),
                }
            }
        }
        self.drop_stopped(stopped);
    }

    /// Pieces of jobs that were stopped before they were submitted.
    fn drop_stopped(&self, pieces: Vec<Piece>) {
        pieces.into_iter().for_each(|piece| self.finish(piece, Err(TierError::Cancelled)));
    }

    /// Stops a job. What it has submitted goes on; nothing more of it is submitted once this has returned, so that what its stream is given
    /// afterwards comes after all that it does.
    pub(super) fn stop(&self, job: &Job) {
        let _submitting = self.streams[job.way() as usize].lock();
        job.progress.lock().cancelled = true;
    }

    fn copy_alone(&self, piece: Piece, stream: StreamId) -> (Piece, Option<TierError>) {
        let mut ops = Vec::new();
        piece.add_ops(&mut ops);
        let failed = self.driver.copy(&ops, stream).err().map(TierError::from);
        (piece, failed)
    }

    /// What a piece needs next, now that it is copied.
    pub(super) fn copied(&self, piece: Piece, failed: Option<TierError>) {
        if let Some(error) = failed {
            return self.finish(piece, Err(error));
        }
        let job = &*piece.job;
        let computes = matches!(job.kind, Kind::Save { .. }) && (job.direct.is_none() || job.host);
        if !computes {
            return self.finish(piece, Ok(()));
        }
        self.queues.lock().compute(piece);
        self.wake();
    }

    /// Nobody can say whether a tier still reads or writes the buffer of a piece.
    pub(super) fn abandon_one(&self, piece: Piece, error: TierError) {
        piece.job.progress.lock().abandoned = true;
        self.finish(piece, Err(error));
    }

    /// The device cannot say when these copies end: what they touch is not used again.
    pub(super) fn abandon(&self, pieces: Vec<(Piece, Option<TierError>)>, error: &DriverError) {
        for (piece, failed) in pieces {
            piece.job.progress.lock().abandoned = true;
            self.finish(piece, Err(failed.unwrap_or_else(|| error.clone().into())));
        }
    }

    // ---- the end ------------------------------------------------------------------------------------------------------

    /// A piece is complete, or has failed.
    pub(super) fn finish(&self, piece: Piece, result: Result<(), TierError>) {
        let size = piece.size();
        let Piece { job, raw, coded, .. } = piece;
        let (ends, abandoned) = {
            let mut progress = job.progress.lock();
            progress.under_way -= 1;
            match result {
                Ok(()) => {
                    progress.finished += 1;
                    progress.moved += size;
                }
                Err(error) => {
                    progress.failed.get_or_insert(error);
                }
            }
            let all = progress.next == job.count || progress.failed.is_some();
            let ends = progress.under_way == 0 && all && !progress.ended;
            progress.ended |= ends;
            (ends, progress.abandoned)
        };
        {
            let mut queues = self.queues.lock();
            for buffer in [raw, coded].into_iter().flatten() {
                if abandoned { queues.staging.lose(buffer) } else { queues.staging.give(buffer) }
            }
        }
        if ends {
            self.end(&job);
        } else {
            self.wake();
        }
    }

    /// All of a job is done, or nothing more of it will be.
    fn end(&self, job: &Arc<Job>) {
        let (failed, abandoned, summing, stored, end) = {
            let mut progress = job.progress.lock();
            let stored = std::mem::take(&mut progress.stored);
            // Nothing came after that kernel that is known to be done.
            let summing = job.source_sum.is_some() && progress.submitted == 0;
            (progress.failed.clone(), progress.abandoned, summing, stored, progress.end)
        };
        let outcome = match failed {
            Some(error) => Err(error),
            None => self.close(job, stored, end),
        };
        if outcome.is_err() && !abandoned && !matches!(job.kind, Kind::Load { .. }) {
            guarded::release(&*job.tier, job.slot);
        }
        if !abandoned && !summing {
            let mut sums = self.sums.lock();
            [job.source_sum, job.copy_sum].into_iter().flatten().for_each(|sum| sums.give(sum));
        }
        let counters = &self.counters;
        let (bytes, of) = match job.kind {
            Kind::Save { .. } => (job.size, &counters.saved_bytes),
            Kind::Load { .. } => (job.size, &counters.loaded_bytes),
            Kind::Spill => (job.size, &counters.spilled_bytes),
        };
        match outcome {
            Ok(_) => of.fetch_add(bytes, Relaxed),
            Err(_) => counters.failed.fetch_add(1, Relaxed),
        };
        counters.ended.fetch_add(1, Relaxed);
        counters.abandoned.fetch_add(u64::from(abandoned), Relaxed);
        drop(job.source.lock().take());
        let outcome = match outcome {
            Err(error) => Ended::Failed(error),
            Ok(None) => Ended::Loaded,
            Ok(Some(place)) => Ended::Saved(place),
        };
        {
            // Together: who has seen the outcome no longer finds the transfer among those under way.
            let mut queues = self.queues.lock();
            job.progress.lock().outcome = Some(outcome);
            queues.under_way -= 1;
        }
        self.changed.notify_all();
    }

    /// Compares the device's sums, and makes the place of what was stored.
    fn close(&self, job: &Job, stored: Vec<Stored>, end: u32) -> Outcome {
        let source_sum = job.source_sum.map(|sum| sum.read());
        let expected = source_sum.or_else(|| job.source().and_then(|place| place.device_sum));
        if let (Some(expected), Some(copy)) = (expected, job.copy_sum) {
            let found = copy.read();
            if found != expected {
                let what = format!("{} bytes at {} of the device", job.size, job.device_ptr());
                return Err(TierError::Corrupt { tier: job.tier.name().to_owned(), what, expected, found });
            }
        }
        if matches!(job.kind, Kind::Load { .. }) {
            return Ok(None);
        }
        let slot = if end > 0 { guarded::shrink(&*job.tier, job.slot, u64::from(end) * UNIT) } else { job.slot };
        Ok(Some(Arc::new(Place {
            tier: job.tier.clone(),
            slot,
            size: job.size,
            piece: job.piece,
            codec: job.codec.clone(),
            pieces: stored.into_boxed_slice(),
            device_sum: expected,
        })))
    }

    pub(super) fn wake(&self) {
        if self.config.workers > 0 {
            self.changed.notify_one();
        }
    }

    // ---- waiting ------------------------------------------------------------------------------------------------------

    /// Gets on whatever can get on, else waits for something of what is under way. For a loop around what the caller waits for.
    ///
    /// # Errors
    /// Where the driver does not let anybody wait: a stream is being captured.
    pub(super) fn advance(&self, job: Option<&Job>) -> DriverResult<()> {
        if self.run_one(true) {
            return Ok(());
        }
        let began = self.driver.clock_ns();
        let ways = match job.map(Job::way) {
            Some(Way::In) => [Way::In, Way::Out],
            _ => [Way::Out, Way::In],
        };
        // Reads and writes of its own first: its copies may stand behind those of others, which wait for a stream of the user's.
        let own_io = job.is_some_and(|job| {
            let is_own = |piece: &Piece| std::ptr::eq(Arc::as_ptr(&piece.job), job);
            self.queues.lock().io.iter().any(|(_, piece)| is_own(piece))
        });
        let waited =
            (own_io && self.wait_io()) || self.wait_line(ways[0])? || self.wait_io() || self.wait_line(ways[1])?;
        if !waited {
            // Another thread has what is next.
            let mut queues = self.queues.lock();
            if !job.is_some_and(Job::is_done) && !queues.has_work() {
                self.changed.wait_for(&mut queues, Duration::from_micros(200));
            }
        }
        self.counters.stall_ns.fetch_add(self.driver.clock_ns().saturating_sub(began), Relaxed);
        Ok(())
    }

    /// Waits until `count` more transfers may begin.
    pub(super) fn wait_for_room(&self, count: usize) -> DriverResult<()> {
        while !self.has_room(count) {
            self.advance(None)?;
        }
        Ok(())
    }

    /// More than may be under way at a time begin when nothing else is.
    pub(super) fn has_room(&self, count: usize) -> bool {
        let under_way = self.queues.lock().under_way;
        under_way == 0 || under_way + count <= self.config.depth
    }

    /// Begins nothing more, and waits for what has begun. Whether that succeeded.
    fn drain(&self) -> bool {
        self.queues.lock().cancel_all();
        let (mut ended, mut idle) = (0, 0);
        while self.queues.lock().under_way > 0 {
            let now = self.counters.ended.load(Relaxed);
            idle = if now == ended { idle + 1 } else { 0 };
            ended = now;
            if idle > PATIENCE || self.advance(None).is_err() {
                return false;
            }
        }
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.is_own() {
            return;
        }
        // Nobody else has it any more. What is under way ends before its memory does.
        let drained = self.drain();
        let driver = &*self.driver;
        for stream in &mut self.streams {
            if let Some(stream) = stream.get_mut().take() {
                // A stream that cannot be waited for belongs to a context that is gone.
                let _ = driver.synchronize_stream(stream);
                let _ = driver.destroy_stream(stream);
            }
        }
        self.events.get_mut().clear(driver);
        self.sums.get_mut().clear(driver);
        if let Some((memory, _)) = self.queues.get_mut().staging.memory(0) {
            for tier in self.attached.get_mut().drain(..).filter_map(|tier| tier.upgrade()) {
                tier.detach(memory.0 as *mut u8);
            }
        }
        if drained {
            self.queues.get_mut().staging.clear(driver);
        }
    }
}
