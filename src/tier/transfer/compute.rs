//! What takes the processor's time: checksums and codecs.

use super::guarded;
use super::job::{Kind, Piece, UNIT, Way};
use super::place::Stored;
use super::shared::Shared;
use super::staging::Buffer;
use super::sums::crc32c;
use crate::tier::TierError;

impl Shared {
    /// Does what a piece needs of the processor, and passes it on.
    pub(super) fn compute(&self, mut piece: Piece) {
        let result = match piece.job.kind {
            Kind::Save { .. } => self.digest(&mut piece),
            Kind::Load { .. } | Kind::Spill => check(&mut piece),
        };
        let next = match result {
            Err(error) => return self.finish(piece, Err(error)),
            Ok(()) => (&piece.job.kind, piece.job.direct.is_some()),
        };
        match next {
            (Kind::Save { .. }, true) => self.finish(piece, Ok(())),
            (Kind::Load { .. }, _) => {
                self.queues.lock().line(Way::In).push(piece);
                self.wake();
            }
            (Kind::Save { .. } | Kind::Spill, _) => {
                piece.reading = false;
                self.start(piece);
            }
        }
    }

    /// Of a piece that has left the device: its checksum, and its place in the slot.
    fn digest(&self, piece: &mut Piece) -> Result<(), TierError> {
        let job = piece.job.clone();
        let size = piece.size() as usize;
        let mut stored = Stored { at: (piece.offset() / UNIT) as u32, bytes: size as u32, sum: 0 };
        if let Some(direct) = job.direct {
            let at = (direct.0 + piece.offset()) as *const u8;
            // SAFETY: the slot is the job's, in host memory that the tier keeps as long as the slot is out; its copy is done.
            stored.sum = crc32c(unsafe { std::slice::from_raw_parts(at, size) });
        } else if let Some(raw) = &piece.raw {
            // SAFETY: the buffer is the piece's, at least `piece_bytes` long, and the copy into it is done.
            let bytes = unsafe { raw.bytes(size) };
            let mut encoded = None;
            if let (Some(codec), Some(coded)) = (&job.codec, &mut piece.coded) {
                let bound = guarded::bound(&**codec, size)?;
                // SAFETY: as above; that the bound fits was seen when the job began.
                let into = unsafe { coded.bytes_mut(bound) };
                // What a device makes is as long as it can be at most.
                let length = if piece.on_device { bound } else { guarded::encode(&**codec, bytes, into)? };
                if length < size {
                    stored.sum = crc32c(&into[..length]);
                    encoded = Some(length);
                }
            }
            match encoded {
                Some(length) => {
                    stored.bytes = length as u32;
                    self.give_back(piece.raw.take());
                }
                None => {
                    stored.sum = crc32c(bytes);
                    self.give_back(piece.coded.take());
                }
            }
        }
        let mut progress = job.progress.lock();
        if job.codec.is_some() {
            stored.at = progress.end;
            progress.end += stored.bytes.div_ceil(UNIT as u32);
        }
        progress.stored[piece.index as usize] = stored;
        Ok(())
    }

    fn give_back(&self, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            self.queues.lock().staging.give(buffer);
        }
    }
}

/// Of a piece that was read: whether it is what was stored, and what it was before it was encoded.
fn check(piece: &mut Piece) -> Result<(), TierError> {
    let job = piece.job.clone();
    let (Some(place), Some(stored)) = (job.source(), piece.stored_in_source()) else { return Ok(()) };
    let (size, length) = (piece.size() as usize, stored.bytes as usize);
    let load = matches!(job.kind, Kind::Load { .. });
    let encoded = load && length < size;
    let found = match (job.direct, if encoded { &piece.coded } else { &piece.raw }) {
        (Some(direct), _) => {
            let at = (direct.0 + u64::from(stored.at) * UNIT) as *const u8;
            // SAFETY: the slot is the place's, which the job holds, in host memory that the tier keeps as long; nobody writes to it.
            crc32c(unsafe { std::slice::from_raw_parts(at, length) })
        }
        // SAFETY: the buffer is the piece's and long enough for what is stored; the read into it is done.
        (None, Some(buffer)) => crc32c(unsafe { buffer.bytes(length) }),
        (None, None) => stored.sum,
    };
    if found != stored.sum {
        return Err(TierError::Corrupt {
            tier: place.tier.name().to_owned(),
            what: format!("{length} bytes at {} of the slot at {}", u64::from(stored.at) * UNIT, place.slot.offset),
            expected: stored.sum.into(),
            found: found.into(),
        });
    }
    if !load {
        job.progress.lock().stored[piece.index as usize] = stored;
        return Ok(());
    }
    // What the device decodes by itself stays encoded.
    if encoded && piece.quant().is_none() { piece.decode() } else { Ok(()) }
}
