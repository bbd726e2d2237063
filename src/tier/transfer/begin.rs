//! How transfers begin: what is refused, what is taken, and in which order, so that one that does not begin leaves nothing.

use std::sync::Arc;

use super::guarded;
use super::job::{Job, Kind, Progress, UNIT, Way};
use super::place::{Place, Stored};
use super::staging::Staging;
use super::{ENGINE, Engine, Save, Transfer, unusable};
use crate::driver::{CaptureStatus, DriverError, DriverErrorKind};
use crate::sync::Mutex;
use crate::tier::{Slot, Tier, TierError};
use crate::units::{DevicePtr, StreamId};

impl Engine {
    pub(super) fn begin_saves(
        &self,
        saves: &[Save],
        tier: &Arc<dyn Tier>,
        after: &[StreamId],
    ) -> Result<Vec<Transfer>, TierError> {
        self.check_own()?;
        check_tier(tier)?;
        self.check_capture(after)?;
        let mut jobs = Reserved { engine: self, jobs: Vec::with_capacity(saves.len()), summing: false };
        for save in saves {
            let job = self.save_job(save, tier)?;
            jobs.jobs.push(job);
        }
        self.come_after(Way::Out, after)?;
        for at in 0..jobs.jobs.len() {
            let job = &jobs.jobs[at];
            if let Some(sum) = job.source_sum {
                jobs.summing = true;
                self.shared.driver.checksum(job.device_ptr(), job.size, sum.ptr(), self.shared.stream(Way::Out)?)?;
            }
        }
        let jobs = std::mem::take(&mut jobs.jobs).into_iter().map(Arc::new).collect();
        Ok(self.begin(jobs))
    }

    fn save_job(&self, save: &Save, tier: &Arc<dyn Tier>) -> Result<Job, TierError> {
        let Save { from, size, ref codec } = *save;
        check_size(size)?;
        let piece = self.shared.config.piece_bytes;
        let whole =
            size.checked_next_multiple_of(UNIT).ok_or_else(|| unusable(format!("{size} bytes are too many")))?;
        let host = tier.is_host_memory();
        let probe = guarded::reserve(&**tier, if codec.is_some() { whole } else { size })?;
        let mut job = Job {
            kind: Kind::Save { from },
            source: Mutex::new(None),
            tier: tier.clone(),
            slot: probe,
            direct: tier.address(probe),
            host,
            size,
            piece,
            count: 0,
            codec: codec.clone(),
            source_sum: None,
            copy_sum: None,
            progress: Mutex::new(Progress::default()),
        };
        let device_only = job.direct.is_some() && !host;
        match &job.codec {
            Some(_) if device_only => job.codec = None,
            // What is encoded passes through staging memory.
            Some(_) => job.direct = None,
            None => {}
        }
        // What comes back from a lossy codec has another sum.
        let check_device = self.shared.config.check_device && job.codec.as_ref().is_none_or(|codec| codec.lossless());
        let prepared = self.prepare(&mut job, device_only || check_device, device_only);
        if let Err(error) = prepared {
            self.give_up(&job, false);
            return Err(error);
        }
        if !device_only {
            job.progress.get_mut().stored = vec![Stored::default(); job.count as usize];
        }
        Ok(job)
    }

    /// Cuts a job into pieces, and takes what it needs: staging memory, numbers for sums.
    fn prepare(&self, job: &mut Job, source_sum: bool, copy_sum: bool) -> Result<(), TierError> {
        let count = job.size.div_ceil(job.piece);
        job.count = u32::try_from(count).map_err(|_| unusable(format!("{count} pieces are too many")))?;
        if let Some(codec) = &job.codec {
            let bound = guarded::bound(&**codec, job.piece.min(job.size) as usize)? as u64;
            let buffer = self.shared.config.buffer_bytes();
            if bound > buffer {
                let name = codec.name();
                return Err(unusable(format!("codec {name} may make {bound} bytes of a piece, a buffer has {buffer}")));
            }
        }
        if job.direct.is_none() {
            self.ensure_staging(&job.tier)?;
        }
        let driver = &*self.shared.driver;
        if source_sum {
            job.source_sum = Some(self.shared.sums.lock().take(driver)?);
        }
        if copy_sum {
            job.copy_sum = Some(self.shared.sums.lock().take(driver)?);
        }
        Ok(())
    }

    pub(super) fn begin_loads(
        &self,
        loads: &[(Arc<Place>, DevicePtr)],
        after: &[StreamId],
    ) -> Result<Vec<Transfer>, TierError> {
        self.check_own()?;
        self.check_capture(after)?;
        let mut jobs = Reserved { engine: self, jobs: Vec::with_capacity(loads.len()), summing: false };
        for (place, to) in loads {
            let host = place.tier.is_host_memory();
            let direct = place.tier.address(place.slot).filter(|_| place.codec.is_none());
            if direct.is_none() {
                self.check_piece(place)?;
            }
            let mut job = Job {
                kind: Kind::Load { to: *to },
                source: Mutex::new(Some(place.clone())),
                tier: place.tier.clone(),
                slot: place.slot,
                direct,
                host,
                size: place.size,
                piece: place.piece,
                count: 0,
                codec: place.codec.clone(),
                source_sum: None,
                copy_sum: None,
                progress: Mutex::new(Progress::default()),
            };
            self.prepare(&mut job, false, place.device_sum.is_some())?;
            jobs.jobs.push(job);
        }
        self.come_after(Way::In, after)?;
        let jobs = std::mem::take(&mut jobs.jobs).into_iter().map(Arc::new).collect();
        Ok(self.begin(jobs))
    }

    fn begin(&self, jobs: Vec<Arc<Job>>) -> Vec<Transfer> {
        {
            let mut queues = self.shared.queues.lock();
            jobs.iter().for_each(|job| queues.begin(job.clone()));
        }
        let workers = self.shared.config.workers > 0;
        // Copies are submitted at once; what takes the processor's time is the workers', where there are any.
        self.shared.pump(!workers);
        if workers {
            self.shared.changed.notify_all();
        }
        jobs.into_iter().map(|job| Transfer { shared: self.shared.clone(), job }).collect()
    }

    /// A job that was never begun gives back what it has. A sum that the device may be adding to already is lost: eight bytes.
    fn give_up(&self, job: &Job, summing: bool) {
        if !summing {
            let mut sums = self.shared.sums.lock();
            [job.source_sum, job.copy_sum].into_iter().flatten().for_each(|sum| sums.give(sum));
        }
        if !matches!(job.kind, Kind::Load { .. }) {
            guarded::release(&*job.tier, job.slot);
        }
    }

    fn come_after(&self, way: Way, after: &[StreamId]) -> Result<(), TierError> {
        self.shared.stream(way)?;
        Ok(self.shared.come_after(way, after)?)
    }

    /// Staging memory, of which the tier knows.
    fn ensure_staging(&self, tier: &Arc<dyn Tier>) -> Result<(), TierError> {
        let shared = &*self.shared;
        let _making = shared.making.lock();
        if !shared.queues.lock().staging.is_made() {
            let bytes = shared.config.buffer_bytes();
            let (memory, count) = Staging::pin(&*shared.driver, bytes, shared.config.buffers())?;
            shared.queues.lock().staging.fill(memory, bytes, count);
        }
        shared.attach(tier);
        Ok(())
    }

    // ---- what is refused ----------------------------------------------------------------------------------------------

    pub(super) fn check_own(&self) -> Result<(), TierError> {
        self.shared.check_own()
    }

    pub(super) fn check_room(&self, count: usize) -> Result<(), TierError> {
        if self.shared.has_room(count) {
            return Ok(());
        }
        Err(TierError::Busy { tier: ENGINE.to_owned(), depth: self.shared.config.depth })
    }

    /// Waits until as many more may be under way.
    pub(crate) fn wait_for_room(&self, count: usize) -> Result<(), TierError> {
        self.check_own()?;
        Ok(self.shared.wait_for_room(count)?)
    }

    /// An event recorded on a stream that is being captured is part of the graph, and what waits for it as well.
    pub(super) fn check_capture(&self, streams: &[StreamId]) -> Result<(), TierError> {
        for &stream in streams {
            if self.shared.driver.capture_status(stream)? != CaptureStatus::None {
                let detail = format!("{stream} is being captured, which transfers cannot be");
                return Err(DriverError::new(DriverErrorKind::Capturing, "cuStreamWaitEvent", detail).into());
            }
        }
        Ok(())
    }

    /// A place of another engine may have pieces that fit into no buffer.
    fn check_piece(&self, place: &Place) -> Result<(), TierError> {
        let own = self.shared.config.piece_bytes;
        if place.piece <= own {
            return Ok(());
        }
        Err(unusable(format!("it was stored in pieces of {} bytes, a buffer has {own}", place.piece)))
    }

    pub(super) fn begin_spill(&self, place: &Arc<Place>, tier: &Arc<dyn Tier>) -> Result<Transfer, TierError> {
        self.check_own()?;
        check_tier(tier)?;
        for tier in [&place.tier, tier] {
            if reached_by_device_only(&**tier, place.slot) {
                let reason = "only copies of a device reach it: load the bytes, and save them again".to_owned();
                return Err(TierError::Unusable { tier: tier.name().to_owned(), reason });
            }
        }
        // Whole units of pinned memory are written as they lie there.
        let direct = place.tier.address(place.slot).filter(|at| at.0.is_multiple_of(UNIT));
        let direct = direct.filter(|_| place.slot.size.is_multiple_of(UNIT));
        if direct.is_none() {
            self.check_piece(place)?;
            self.ensure_staging(&place.tier)?;
        }
        self.shared.attach(tier);
        let slot = guarded::reserve(&**tier, place.slot.size)?;
        let count = place.pieces.len() as u32;
        let progress = Progress { stored: vec![Stored::default(); count as usize], ..Progress::default() };
        let job = Job {
            kind: Kind::Spill,
            source: Mutex::new(Some(place.clone())),
            tier: tier.clone(),
            slot,
            direct,
            host: direct.is_some(),
            size: place.size,
            piece: place.piece,
            count,
            codec: place.codec.clone(),
            source_sum: None,
            copy_sum: None,
            progress: Mutex::new(progress),
        };
        let transfers = self.begin(vec![Arc::new(job)]);
        transfers.into_iter().next().ok_or_else(|| unusable("nothing was begun".to_owned()))
    }
}

/// Jobs that were not begun yet: they give back what they have.
struct Reserved<'a> {
    engine: &'a Engine,
    jobs: Vec<Job>,
    /// Whether the device may be adding to their sums.
    summing: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.jobs.iter().for_each(|job| self.engine.give_up(job, self.summing));
    }
}

fn check_size(size: u64) -> Result<(), TierError> {
    if size > 0 { Ok(()) } else { Err(unusable("an object of 0 bytes".to_owned())) }
}

/// Pieces begin at multiples of 4 KiB, which must be places where a tier can be read and written.
fn check_tier(tier: &Arc<dyn Tier>) -> Result<(), TierError> {
    let alignment = tier.alignment();
    if alignment.is_power_of_two() && alignment <= UNIT {
        return Ok(());
    }
    let reason = format!("its alignment of {alignment} bytes is no power of two up to {UNIT}");
    Err(TierError::Unusable { tier: tier.name().to_owned(), reason })
}

fn reached_by_device_only(tier: &dyn Tier, slot: Slot) -> bool {
    !tier.is_host_memory() && tier.address(slot).is_some()
}
