//! The transfer engine: bytes between a device and tiers, and from tier to tier.
//!
//! A transfer is cut into pieces. What a piece needs next says which queue it is in (`queues.rs`), and any thread that has time takes the next
//! one (`shared.rs`; `lines.rs` and `io.rs` for what is under way): workers, where there are any, and whoever waits for a transfer.
//!
//! | from, to | what a piece goes through |
//! |---|---|
//! | device, pinned host memory | copy; CRC-32C |
//! | pinned host memory, device | CRC-32C; copy |
//! | device, a tier read and written by the host | copy to a staging buffer; codec, by the device where it can; CRC-32C; write |
//! | such a tier, device | read into a staging buffer; CRC-32C; codec; copy |
//! | tier, tier | read, where the host does not see it already; CRC-32C; write |
//! | device, peer device | copy; the device's own sums of both |
//!
//! So no byte that fails its checksum is ever copied to a device, and [`Engine::order`] lets a stream come after nothing else. Copies go to two
//! streams, one a direction. Each batch has an event, on which alone anybody waits: nothing here synchronises a device. Everything is
//! bounded: transfers by [`EngineConfig::depth`], staging memory by [`EngineConfig::staging_bytes`], copies under way by their number.
//!
//! **What a failure leaves.** The source of a transfer is only read, and the destination becomes a [`Place`] when all of it is complete, so
//! an error at any time leaves the bytes where they were. Where the driver cannot say any more whether a copy is done, the memory that it may
//! still write is not used again ([`EngineStats::abandoned`]).

mod begin;
mod coded;
mod compute;
mod guarded;
mod io;
mod job;
mod lines;
mod place;
mod queues;
mod shared;
mod staging;
mod sums;
mod workers;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

pub(crate) use self::guarded::words_of;
pub use self::job::Outcome;
use self::job::{Ended, Job, UNIT, Way};
pub use self::place::Place;
use self::shared::Shared;
use self::staging::LEAST;
use super::codec::Codec;
use super::{Tier, TierError};
use crate::driver::{Driver, EventId};
use crate::sync::Mutex;
use crate::units::{ByteSize, DevicePtr, StreamId};

/// The name by which errors call the engine.
const ENGINE: &str = "transfer";

/// How an [`Engine`] is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Pinned memory for what passes through the host, in bytes. Taken when it is first needed.
    pub staging_bytes: u64,
    /// Bytes that are copied, checked and stored at a time: a multiple of 4 KiB.
    pub piece_bytes: u64,
    /// How many transfers may be under way. More are [`TierError::Busy`], or wait.
    pub depth: usize,
    /// Threads that get transfers on. Without any, the callers' [`Engine::pump`] does, and nothing depends on time.
    pub workers: usize,
    /// Whether the device sums up every object before it goes and after it came back. A difference is found when the load has ended, which
    /// may be after work that [`Engine::order`] let go on.
    pub check_device: bool,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig { staging_bytes: 64 << 20, piece_bytes: 2 << 20, depth: 256, workers: 0, check_device: false }
    }
}

impl EngineConfig {
    /// Bytes of a staging buffer: a piece, and what a codec may add to it.
    fn buffer_bytes(&self) -> u64 {
        (self.piece_bytes + self.piece_bytes / 64 + UNIT).next_multiple_of(UNIT)
    }

    fn buffers(&self) -> usize {
        (self.staging_bytes / self.buffer_bytes()) as usize
    }

    fn check(&self) -> Result<(), TierError> {
        if !self.piece_bytes.is_multiple_of(UNIT) || !(UNIT..=256 << 20).contains(&self.piece_bytes) {
            return Err(unusable(format!(
                "pieces of {} bytes are not multiples of 4 KiB up to 256 MiB",
                self.piece_bytes
            )));
        }
        if self.buffers() < LEAST {
            let least = ByteSize(self.buffer_bytes() * LEAST as u64);
            let given = ByteSize(self.staging_bytes);
            return Err(unusable(format!("{given} of staging memory are less than {least}, {LEAST} buffers")));
        }
        if self.depth == 0 {
            return Err(unusable("no transfer may be under way: the depth is 0".to_owned()));
        }
        Ok(())
    }
}

/// What [`Engine::save_many`] saves.
#[derive(Debug, Clone)]
pub struct Save {
    /// The bytes.
    pub from: DevicePtr,
    /// How many.
    pub size: u64,
    /// How they are stored; as they are, where there is none. A tier that only the device reaches stores bytes as they are.
    pub codec: Option<Arc<dyn Codec>>,
}

/// What an engine has done, and has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Bytes that left the device.
    pub saved_bytes: u64,
    /// Bytes that came back.
    pub loaded_bytes: u64,
    /// Bytes that went from tier to tier.
    pub spilled_bytes: u64,
    /// Transfers that have ended, with those that failed.
    pub ended: u64,
    /// Transfers that failed or were cancelled.
    pub failed: u64,
    /// Transfers under way.
    pub under_way: u64,
    /// How long callers have waited, on the driver's clock.
    pub stall_ns: u64,
    /// Transfers that failed such that nobody can say whether the device still writes what they took: staging buffers, and what was
    /// reserved in a tier, are then not used again.
    pub abandoned: u64,
    /// Staging buffers.
    pub buffers: u64,
}

/// Moves bytes. Dropping it ends its workers; what is under way goes on if somebody waits for it.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A transfer under way. Dropping it ends nothing: what it saves is given up when it is complete. Who first asks how it ended owns the
/// place that it made; the transfer itself does not keep it.
#[derive(Debug, Clone)]
pub struct Transfer {
    shared: Arc<Shared>,
    job: Arc<Job>,
}

#[cold]
fn unusable(reason: String) -> TierError {
    TierError::Unusable { tier: ENGINE.to_owned(), reason }
}

/// Whether as many transfers are under way as may be.
pub(crate) fn is_busy(error: &TierError) -> bool {
    matches!(error, TierError::Busy { tier, .. } if tier == ENGINE)
}

impl Engine {
    /// An engine for a device. Streams, events and staging memory are taken when they are needed.
    ///
    /// # Errors
    /// [`TierError::Unusable`] for a configuration that cannot be, or where no thread can be had.
    pub fn new(driver: Arc<dyn Driver>, config: EngineConfig) -> Result<Engine, TierError> {
        config.check()?;
        let shared = Arc::new(Shared::new(driver, config));
        let threads = Mutex::new(workers::start(&shared)?);
        Ok(Engine { shared, threads })
    }

    /// How it is set up.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Copies `size` bytes at `from` to a tier, once the device has done what is submitted to the streams of `after`. Waits while
    /// [`EngineConfig::depth`] transfers are under way. The bytes must stay as they are until the transfer has ended.
    ///
    /// # Errors
    /// Why nothing was begun.
    pub fn save(
        &self,
        from: DevicePtr,
        size: u64,
        tier: &Arc<dyn Tier>,
        codec: Option<&Arc<dyn Codec>>,
        after: &[StreamId],
    ) -> Result<Transfer, TierError> {
        self.wait_for_room(1)?;
        self.try_save(from, size, tier, codec, after)
    }

    /// [`Engine::save`], which does not wait.
    ///
    /// # Errors
    /// [`TierError::Busy`] too.
    pub fn try_save(
        &self,
        from: DevicePtr,
        size: u64,
        tier: &Arc<dyn Tier>,
        codec: Option<&Arc<dyn Codec>>,
        after: &[StreamId],
    ) -> Result<Transfer, TierError> {
        self.check_room(1)?;
        let save = Save { from, size, codec: codec.cloned() };
        let transfers = self.begin_saves(std::slice::from_ref(&save), tier, after)?;
        transfers.into_iter().next().ok_or_else(|| unusable("nothing was begun".to_owned()))
    }

    /// Saves several objects: small ones go in one copy call. All are begun, or none.
    ///
    /// # Errors
    /// As [`Engine::save`].
    pub fn save_many(
        &self,
        saves: &[Save],
        tier: &Arc<dyn Tier>,
        after: &[StreamId],
    ) -> Result<Vec<Transfer>, TierError> {
        self.wait_for_room(saves.len())?;
        self.begin_saves(saves, tier, after)
    }

    /// Copies the bytes of a place to `to`, once the device has done what is submitted to the streams of `after`. Waits as [`Engine::save`]
    /// does. The place stays.
    ///
    /// # Errors
    /// Why nothing was begun.
    pub fn load(&self, place: &Arc<Place>, to: DevicePtr, after: &[StreamId]) -> Result<Transfer, TierError> {
        self.wait_for_room(1)?;
        self.try_load(place, to, after)
    }

    /// [`Engine::load`], which does not wait.
    ///
    /// # Errors
    /// [`TierError::Busy`] too.
    pub fn try_load(&self, place: &Arc<Place>, to: DevicePtr, after: &[StreamId]) -> Result<Transfer, TierError> {
        self.check_room(1)?;
        let transfers = self.begin_loads(&[(place.clone(), to)], after)?;
        transfers.into_iter().next().ok_or_else(|| unusable("nothing was begun".to_owned()))
    }

    /// Loads several places, small ones in one copy call. All are begun, or none.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_many(&self, loads: &[(Arc<Place>, DevicePtr)], after: &[StreamId]) -> Result<Vec<Transfer>, TierError> {
        self.wait_for_room(loads.len())?;
        self.begin_loads(loads, after)
    }

    /// Copies the bytes of a place to another tier, as they are stored, by the host. The old place stays.
    ///
    /// # Errors
    /// Why nothing was begun.
    pub fn spill(&self, place: &Arc<Place>, tier: &Arc<dyn Tier>) -> Result<Transfer, TierError> {
        self.wait_for_room(1)?;
        self.try_spill(place, tier)
    }

    /// [`Engine::spill`], which does not wait.
    ///
    /// # Errors
    /// [`TierError::Busy`] too.
    pub fn try_spill(&self, place: &Arc<Place>, tier: &Arc<dyn Tier>) -> Result<Transfer, TierError> {
        self.check_room(1)?;
        self.begin_spill(place, tier)
    }

    /// Lets later work of `stream` come after the copies of a save or load, on the device. Waits on the host until the last piece has been
    /// checked and submitted, so a stream that was ordered uses no bytes that fail their checksum.
    ///
    /// # Errors
    /// How the transfer failed.
    pub fn order(&self, transfer: &Transfer, stream: StreamId) -> Result<(), TierError> {
        match self.last_event(transfer)? {
            Some(event) => {
                self.check_capture(&[stream])?;
                Ok(self.shared.driver.wait_event(stream, event)?)
            }
            // All are done already, as the host knows.
            None => Ok(()),
        }
    }

    /// Waits on the host until all copies of a transfer that touch device memory are submitted.
    ///
    /// # Errors
    /// How the transfer failed.
    pub fn submitted(&self, transfer: &Transfer) -> Result<(), TierError> {
        self.last_event(transfer).map(|_| ())
    }

    /// Waits until all copies are submitted, and says which event stands for them, unless they are done.
    fn last_event(&self, transfer: &Transfer) -> Result<Option<EventId>, TierError> {
        loop {
            {
                let progress = transfer.job.progress.lock();
                match &progress.outcome {
                    Some(Ended::Failed(error)) => return Err(error.clone()),
                    Some(_) => return Ok(None),
                    None if progress.all_submitted && !progress.is_stopped() => return Ok(progress.event),
                    None => {}
                }
            }
            self.shared.advance(Some(&transfer.job))?;
        }
    }

    /// The stream on which bytes leave the device or, `inwards`, come to it (for `record_stream`).
    ///
    /// # Errors
    /// Where it cannot be created.
    pub fn stream(&self, inwards: bool) -> Result<StreamId, TierError> {
        Ok(self.shared.stream(if inwards { Way::In } else { Way::Out })?)
    }

    /// Gets everything on that can get on without waiting. Whether anything did.
    pub fn pump(&self) -> bool {
        self.shared.is_own() && self.shared.pump(true)
    }

    /// What it has done, and has under way.
    pub fn stats(&self) -> EngineStats {
        let counters = &self.shared.counters;
        let queues = self.shared.queues.lock();
        EngineStats {
            saved_bytes: counters.saved_bytes.load(Relaxed),
            loaded_bytes: counters.loaded_bytes.load(Relaxed),
            spilled_bytes: counters.spilled_bytes.load(Relaxed),
            ended: counters.ended.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            under_way: queues.under_way as u64,
            stall_ns: counters.stall_ns.load(Relaxed),
            buffers: queues.staging.total() as u64,
            abandoned: counters.abandoned.load(Relaxed),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.shared.is_own() {
            workers::stop(&self.shared, self.threads.get_mut());
        }
    }
}

impl Transfer {
    /// How it ended, or `None` while it is under way. Gets transfers on, where there are no workers.
    pub fn poll(&self) -> Option<Outcome> {
        if self.shared.config.workers == 0 && self.shared.is_own() && !self.job.is_done() {
            self.shared.pump(true);
        }
        self.job.outcome()
    }

    /// Waits until it has ended, on nothing but what transfers have submitted.
    ///
    /// # Errors
    /// How it failed. While a stream is captured nobody may wait: then it is a driver error of the kind
    /// [`Capturing`](crate::driver::DriverErrorKind::Capturing), and the transfer is still under way.
    pub fn wait(&self) -> Outcome {
        loop {
            if let Some(outcome) = self.job.outcome() {
                return outcome;
            }
            self.shared.check_own()?;
            self.shared.advance(Some(&self.job))?;
        }
    }

    /// Whether nobody can say any more whether the device is done with it: its copies may read their source still, or write where they go.
    pub fn is_abandoned(&self) -> bool {
        let progress = self.job.progress.lock();
        // The sum of the source is taken before the first copy: nothing that came after it is known to be done.
        progress.abandoned || (self.job.source_sum.is_some() && progress.submitted == 0)
    }

    /// Begins nothing more of it, and submits no more of its copies to the device: what the engine's stream is given afterwards comes after all
    /// of them. What is submitted ends first, then it is [`TierError::Cancelled`], unless that was all.
    pub fn cancel(&self) {
        if self.shared.is_own() {
            self.shared.stop(&self.job);
            self.shared.pump(false);
        }
    }

    /// Bytes of the object that have arrived, and all.
    pub fn progress(&self) -> (u64, u64) {
        (self.job.progress.lock().moved, self.job.size)
    }
}
