//! What threads do with pieces: submit their copies, ask whether those are done, check and encode, read and write.
//!
//! Locks, in the order in which they are taken: a stream's, the queues', a job's progress. Driver calls are made under a stream's lock at most,
//! so that the order of its batches is that of the stream; tiers are called under none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Condvar;

use super::EngineConfig;
use super::job::{Ended, Job, Kind, Outcome, Piece, UNIT, Way};
use super::place::{Place, Stored};
use super::queues::{Batch, Queues, Step};
use super::sums::SumSlots;
use crate::driver::{Driver, DriverError, DriverErrorKind, DriverResult, EventId, EventStatus};
use crate::stream::EventPool;
use crate::sync::Mutex;
use crate::tier::{Direction, Io, Tier, TierError};
use crate::units::StreamId;

/// How often an event may fail to say whether it has passed before it is waited for.
const STRIKES: u32 = 3;

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
    streams: [Mutex<Option<StreamId>>; 2],
    events: Mutex<EventPool>,
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
            Some(Step::Submit(way, pieces)) => self.submit(way, pieces),
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
    fn copied(&self, piece: Piece, failed: Option<TierError>) {
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

    /// The device cannot say when these copies end: what they touch is not used again.
    fn abandon(&self, pieces: Vec<(Piece, Option<TierError>)>, error: &DriverError) {
        for (piece, failed) in pieces {
            piece.job.progress.lock().abandoned = true;
            self.finish(piece, Err(failed.unwrap_or_else(|| error.clone().into())));
        }
    }

    // ---- what is under way --------------------------------------------------------------------------------------------

    /// Takes over copies of a way that are done. Whether there were any.
    pub(super) fn poll_line(&self, way: Way) -> bool {
        let Some(events) = self.claim(way) else { return false };
        let mut done = 0;
        let mut silent = false;
        match events.last() {
            // One stream, one order: the last stands for all.
            Some(&last) if events.len() > 1 && matches!(self.has_passed(last), Ok(true)) => done = events.len(),
            _ => {
                while done < events.len() {
                    match self.has_passed(events[done]) {
                        Ok(true) => done += 1,
                        Ok(false) => break,
                        Err(_) => {
                            silent = true;
                            break;
                        }
                    }
                }
            }
        }
        if done == 0 && silent && self.strike(way) >= STRIKES {
            return self.wait_for(way, events[0]).unwrap_or(false);
        }
        self.unclaim(way, done);
        done > 0
    }

    /// Waits for the first copies of a way that are under way: whether there were any that nobody else asks about.
    pub(super) fn wait_line(&self, way: Way) -> DriverResult<bool> {
        let Some(events) = self.claim(way) else { return Ok(false) };
        self.wait_for(way, events[0])
    }

    /// Waits for a claimed batch, and gives the claim up.
    fn wait_for(&self, way: Way, event: EventId) -> DriverResult<bool> {
        let passed = self.driver.synchronize_event(event).or_else(|error| {
            let stream = self.streams[way as usize].lock().unwrap_or(StreamId::DEFAULT);
            if error.kind == DriverErrorKind::Capturing {
                return Err(error);
            }
            self.driver.synchronize_stream(stream).map_err(|_| error)
        });
        match passed {
            Ok(()) => {
                self.unclaim(way, 1);
                Ok(true)
            }
            Err(error) if error.kind == DriverErrorKind::Capturing => {
                self.unclaim(way, 0);
                Err(error)
            }
            Err(error) => {
                let batch = self.take_first(way);
                self.unclaim(way, 0);
                if let Some(batch) = batch {
                    self.forget_event(&batch);
                    self.abandon(batch.pieces, &error);
                }
                Ok(true)
            }
        }
    }

    /// Whether an event has passed. While any stream is captured, nobody can say.
    fn has_passed(&self, event: EventId) -> DriverResult<bool> {
        match self.driver.query_event(event) {
            Ok(status) => Ok(status == EventStatus::Complete),
            Err(error) if error.kind == DriverErrorKind::Capturing => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The events of a way's batches, which nobody else asks about until [`Shared::unclaim`].
    fn claim(&self, way: Way) -> Option<Vec<EventId>> {
        let mut queues = self.queues.lock();
        let line = queues.line(way);
        if line.polling || line.flying.is_empty() {
            return None;
        }
        line.polling = true;
        Some(line.flying.iter().map(|batch| batch.event).collect())
    }

    fn strike(&self, way: Way) -> u32 {
        let mut queues = self.queues.lock();
        queues.line(way).flying.front_mut().map_or(0, |batch| {
            batch.strikes += 1;
            batch.strikes
        })
    }

    fn take_first(&self, way: Way) -> Option<Batch> {
        let mut queues = self.queues.lock();
        let line = queues.line(way);
        let batch = line.flying.pop_front()?;
        line.flying_pieces -= batch.pieces.len();
        Some(batch)
    }

    /// The first `done` batches are done, and others may ask again.
    fn unclaim(&self, way: Way, done: usize) {
        let batches: Vec<Batch> = (0..done).filter_map(|_| self.take_first(way)).collect();
        self.queues.lock().line(way).polling = false;
        for batch in batches {
            self.forget_event(&batch);
            self.events.lock().put(batch.event);
            batch.pieces.into_iter().for_each(|(piece, failed)| self.copied(piece, failed));
        }
    }

    fn forget_event(&self, batch: &Batch) {
        for (piece, _) in &batch.pieces {
            let mut progress = piece.job.progress.lock();
            if progress.event == Some(batch.event) {
                progress.event = None;
            }
        }
    }

    // ---- reads and writes of tiers --------------------------------------------------------------------------------------

    /// Starts the read or write that comes next for a piece.
    pub(super) fn start(&self, piece: Piece) {
        let (direction, tier, slot, stored, buffer) = {
            let job = &*piece.job;
            let own = |index: u32| job.progress.lock().stored.get(index as usize).copied();
            match (piece.reading, job.source()) {
                (true, Some(place)) => {
                    let stored = piece.stored_in_source().unwrap_or_default();
                    let encoded = matches!(job.kind, Kind::Load { .. }) && u64::from(stored.bytes) < piece.size();
                    let buffer = if encoded { &piece.coded } else { &piece.raw };
                    (Direction::Read, place.tier.clone(), place.slot, stored, buffer)
                }
                _ => {
                    let stored = own(piece.index).unwrap_or_default();
                    // A save gives the raw buffer back when it has encoded.
                    let buffer = if piece.raw.is_some() { &piece.raw } else { &piece.coded };
                    (Direction::Write, job.tier.clone(), job.slot, stored, buffer)
                }
            }
        };
        let address = match (buffer, piece.job.direct) {
            (Some(buffer), _) => buffer.address(),
            (None, Some(direct)) => direct.0 as usize + stored.at as usize * UNIT as usize,
            (None, None) => {
                let reason = "a piece has no buffer".to_owned();
                return self.finish(piece, Err(TierError::Unusable { tier: tier.name().to_owned(), reason }));
            }
        };
        let offset = u64::from(stored.at) * UNIT;
        // Up to the next unit, which the buffer has, but not beyond the slot.
        let size = u64::from(stored.bytes).next_multiple_of(UNIT).min(slot.size - offset);
        let io = Io { direction, slot, offset, buffer: address as *mut u8, size };
        // SAFETY: the buffer is the piece's own, is a whole number of units long and no shorter than what is stored; the piece stays in
        // `io`, and the buffer with it, until `finish` has said that this ended. Without a buffer it is whole units of the place that is
        // spilled, which the job holds, and which nobody writes.
        match unsafe { tier.start(io) } {
            Ok(ticket) => self.queues.lock().io.push_back((ticket, piece)),
            Err(TierError::Busy { .. }) => self.queues.lock().stalled.push_back(piece),
            Err(error) => self.finish(piece, Err(error)),
        }
    }

    /// Takes over reads and writes that have ended, and starts one that had to wait. Whether there were any.
    fn poll_io(&self) -> bool {
        let mut any = false;
        let count = self.queues.lock().io.len();
        for _ in 0..count {
            let Some((ticket, piece)) = self.queues.lock().io.pop_front() else { break };
            any |= self.finish_io(ticket, piece, false);
        }
        let stalled = self.queues.lock().stalled.pop_front();
        if let Some(piece) = stalled {
            let before = Arc::as_ptr(&piece.job);
            self.start(piece);
            // It is where it was where the tier is still busy.
            any |= self.queues.lock().stalled.back().is_none_or(|piece| Arc::as_ptr(&piece.job) != before);
        }
        any
    }

    /// Waits for a read or write: whether there was any.
    pub(super) fn wait_io(&self) -> bool {
        let Some((ticket, piece)) = self.queues.lock().io.pop_front() else { return false };
        self.finish_io(ticket, piece, true)
    }

    fn finish_io(&self, ticket: crate::tier::Ticket, piece: Piece, wait: bool) -> bool {
        let tier = match (piece.reading, piece.job.source()) {
            (true, Some(place)) => place.tier.clone(),
            _ => piece.job.tier.clone(),
        };
        match tier.finish(ticket, wait) {
            None => {
                self.queues.lock().io.push_back((ticket, piece));
                false
            }
            Some(Ok(())) if piece.reading => {
                self.queues.lock().compute(piece);
                self.wake();
                true
            }
            Some(result) => {
                self.finish(piece, result);
                true
            }
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
            job.tier.release(job.slot);
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
        job.progress.lock().outcome = Some(match outcome {
            Err(error) => Ended::Failed(error),
            Ok(None) => Ended::Loaded,
            Ok(Some(place)) => Ended::Saved(place),
        });
        self.queues.lock().under_way -= 1;
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
        let slot = if end > 0 { job.tier.shrink(job.slot, u64::from(end) * UNIT) } else { job.slot };
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
