//! One transfer, cut into pieces.

use std::fmt;
use std::sync::{Arc, Weak};

use super::place::{Place, Stored};
use super::staging::Buffer;
use super::sums::SumAt;
use crate::driver::{CopyOp, EventId};
use crate::sync::Mutex;
use crate::tier::codec::Codec;
use crate::tier::{Slot, Tier, TierError};
use crate::units::DevicePtr;

/// Where pieces begin in a slot: at multiples of it, which is what unbuffered file I/O wants.
pub(super) const UNIT: u64 = 4096;

/// How a transfer ended: where the bytes are now, for those that save or spill. The old place is as it was.
pub type Outcome = Result<Option<Arc<Place>>, TierError>;

/// [`Outcome`], as the job keeps it: no longer the place's owner once somebody else is.
#[derive(Debug)]
pub(super) enum Ended {
    Failed(TierError),
    Loaded,
    Saved(Arc<Place>),
    Given(Weak<Place>),
}

/// Which stream copies go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

/// What is moved.
#[derive(Debug)]
pub(super) enum Kind {
    /// From the device to the job's tier.
    Save { from: DevicePtr },
    /// From the source to the device.
    Load { to: DevicePtr },
    /// From the source to the job's tier, by the host.
    Spill,
}

/// See the module's documentation. What does not change is here, all else in [`Progress`].
pub(super) struct Job {
    pub(super) kind: Kind,
    /// The place that is read, until the job has ended: whoever then drops the last reference gives its slot back at once.
    pub(super) source: Mutex<Option<Arc<Place>>>,
    /// The tier that is written, or read by a load.
    pub(super) tier: Arc<dyn Tier>,
    pub(super) slot: Slot,
    /// Where the device's copies reach the slot, for saves and loads that go straight there. For a spill: where the host has the source.
    pub(super) direct: Option<DevicePtr>,
    /// Whether the host can read the slot there.
    pub(super) host: bool,
    /// Bytes of the object.
    pub(super) size: u64,
    /// Bytes of all its pieces but the last, a multiple of [`UNIT`].
    pub(super) piece: u64,
    pub(super) count: u32,
    pub(super) codec: Option<Arc<dyn Codec>>,
    /// The device's sums: of the source, before it is copied, and of the copy.
    pub(super) source_sum: Option<SumAt>,
    pub(super) copy_sum: Option<SumAt>,
    pub(super) progress: Mutex<Progress>,
}

/// How far a job is. Conservation: pieces with the engine == `next` - `finished` - those that failed == `under_way`.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Pieces begun, submitted to a stream, with the engine, and complete.
    pub(super) next: u32,
    pub(super) submitted: u32,
    pub(super) under_way: u32,
    pub(super) finished: u32,
    pub(super) moved: u64,
    /// What a save has stored so far, by piece.
    pub(super) stored: Vec<Stored>,
    /// How many [`UNIT`]s of the slot are taken, where a codec decides how long pieces are.
    pub(super) end: u32,
    /// Stands for all copies, once the last is submitted and until it is known to be done.
    pub(super) event: Option<EventId>,
    pub(super) failed: Option<TierError>,
    pub(super) cancelled: bool,
    /// Something may still write what this job took: it is given back to nobody.
    pub(super) abandoned: bool,
    /// Whether `event` stands for all copies, or they are done.
    pub(super) all_submitted: bool,
    pub(super) ended: bool,
    pub(super) outcome: Option<Ended>,
}

impl Progress {
    /// Whether nothing more of it is to be begun.
    pub(super) fn is_stopped(&self) -> bool {
        self.cancelled || self.failed.is_some()
    }
}

impl Job {
    pub(super) fn way(&self) -> Way {
        if matches!(self.kind, Kind::Load { .. }) { Way::In } else { Way::Out }
    }

    /// The place that is read.
    pub(super) fn source(&self) -> Option<Arc<Place>> {
        self.source.lock().clone()
    }

    /// Where the device's bytes are.
    pub(super) fn device_ptr(&self) -> DevicePtr {
        match self.kind {
            Kind::Save { from } => from,
            Kind::Load { to } => to,
            Kind::Spill => DevicePtr::NULL,
        }
    }

    /// Where the device's copies leave the object: what [`Job::copy_sum`] is of.
    pub(super) fn copy_ptr(&self) -> DevicePtr {
        match self.kind {
            Kind::Load { to } => to,
            Kind::Save { .. } | Kind::Spill => self.direct.unwrap_or_default(),
        }
    }

    /// Buffers that a piece needs.
    pub(super) fn buffers(&self) -> usize {
        match &self.kind {
            _ if self.direct.is_some() => 0,
            Kind::Spill => 1,
            _ => 1 + usize::from(self.codec.is_some()),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.progress.lock().outcome.is_some()
    }

    /// How it ended. The first to ask gets the place that it made; later, who asks gets it as long as somebody has it.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        let outcome = &mut self.progress.lock().outcome;
        Some(match outcome.as_mut()? {
            Ended::Failed(error) => Err(error.clone()),
            Ended::Loaded => Ok(None),
            Ended::Saved(place) => {
                let place = place.clone();
                *outcome = Some(Ended::Given(Arc::downgrade(&place)));
                Ok(Some(place))
            }
            Ended::Given(place) => match place.upgrade() {
                Some(place) => Ok(Some(place)),
                None => {
                    let reason = "what was saved was given up".to_owned();
                    Err(TierError::Unusable { tier: self.tier.name().to_owned(), reason })
                }
            },
        })
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("kind", &self.kind).field("tier", &self.tier.name()).finish_non_exhaustive()
    }
}

/// A piece with the engine. Which queue it is in says what is next.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) job: Arc<Job>,
    pub(super) index: u32,
    /// Bytes as the device has them.
    pub(super) raw: Option<Buffer>,
    /// Bytes as they are stored, where that differs.
    pub(super) coded: Option<Buffer>,
    /// Whether the device has encoded or decoded it.
    pub(super) on_device: bool,
    /// Whether a read from the tier comes next, or is under way, rather than a write.
    pub(super) reading: bool,
}

impl Piece {
    /// Where the piece begins in the object.
    pub(super) fn offset(&self) -> u64 {
        u64::from(self.index) * self.job.piece
    }

    /// Bytes of the object.
    pub(super) fn size(&self) -> u64 {
        self.job.piece.min(self.job.size - self.offset())
    }

    /// How it is stored in the place that is read.
    pub(super) fn stored_in_source(&self) -> Option<Stored> {
        self.job.source()?.pieces.get(self.index as usize).copied()
    }

    /// Adds the copies that move it between the device and its buffer or slot.
    pub(super) fn add_ops(&self, ops: &mut Vec<CopyOp>) {
        let job = &*self.job;
        let device = job.device_ptr().add(self.offset());
        let Some(direct) = job.direct else {
            let host = DevicePtr(self.raw.as_ref().map_or(0, Buffer::address) as u64);
            return ops.push(copy_op(job.way(), device, host, self.size()));
        };
        // Pinned memory that was pinned in steps: no copy crosses from one to the next.
        let seam = job.tier.seam();
        let (mut at, end) = (self.offset(), self.offset() + self.size());
        while at < end {
            let in_tier = job.slot.offset + at;
            let here = if seam == 0 { end - at } else { (end - at).min(seam - in_tier % seam) };
            ops.push(copy_op(job.way(), job.device_ptr().add(at), direct.add(at), here));
            at += here;
        }
    }
}

fn copy_op(way: Way, device: DevicePtr, host: DevicePtr, size: u64) -> CopyOp {
    match way {
        Way::Out => CopyOp { dst: host, src: device, size },
        Way::In => CopyOp { dst: device, src: host, size },
    }
}
