//! Codecs that a device carries out by itself: its kernels read or write the staging buffer, so that fewer bytes cross the link, and the
//! processor has nothing to do with it.

use super::guarded;
use super::job::{Piece, Way};
use super::shared::Shared;
use crate::driver::DriverErrorKind;
use crate::driver::kernels::Quant;
use crate::tier::TierError;
use crate::units::{DevicePtr, StreamId};

/// A piece, and how it failed.
pub(super) type Tried = (Piece, Option<TierError>);

impl Piece {
    /// How the device encodes or decodes the piece, where it can and there is something to gain.
    pub(super) fn quant(&self) -> Option<Quant> {
        let job = &*self.job;
        let quant = job.codec.as_ref()?.on_device()?;
        let reachable = job.direct.is_none() && job.device_ptr().0.is_multiple_of(16);
        (reachable && quant.encoded_size(self.size()) < self.size()).then_some(quant)
    }

    /// What was read, as it was before it was encoded, in the other buffer.
    pub(super) fn decode(&mut self) -> Result<(), TierError> {
        let (Some(stored), size) = (self.stored_in_source(), self.size() as usize) else { return Ok(()) };
        if let (Some(codec), Some(coded), Some(raw)) = (&self.job.codec, &self.coded, &mut self.raw) {
            // SAFETY: both buffers are the piece's and long enough; nothing is under way in either.
            let (from, into) = unsafe { (coded.bytes(stored.bytes as usize), raw.bytes_mut(size)) };
            guarded::decode(&**codec, from, into)?;
        }
        Ok(())
    }
}

impl Shared {
    /// Has the device encode or decode what it can. Gives those pieces, and those that are to be copied.
    pub(super) fn requantize(&self, pieces: Vec<Piece>, stream: StreamId) -> (Vec<Tried>, Vec<Piece>) {
        let (mut tried, mut others) = (Vec::new(), Vec::new());
        for mut piece in pieces {
            match self.requantize_one(&mut piece, stream) {
                Ok(true) => tried.push((piece, None)),
                Ok(false) => others.push(piece),
                Err(error) => tried.push((piece, Some(error))),
            }
        }
        (tried, others)
    }

    fn requantize_one(&self, piece: &mut Piece, stream: StreamId) -> Result<bool, TierError> {
        let (Some(quant), Some(coded)) = (piece.quant(), &piece.coded) else { return Ok(false) };
        let (device, coded) = (piece.job.device_ptr().add(piece.offset()), DevicePtr(coded.address() as u64));
        let is_load = piece.job.way() == Way::In;
        let launched = if is_load {
            self.driver.dequantize(coded, device, piece.size(), quant, stream)
        } else {
            self.driver.quantize(device, coded, piece.size(), quant, stream)
        };
        match launched {
            Ok(()) => {
                piece.on_device = true;
                Ok(true)
            }
            // A device without kernels: the host does it.
            Err(error) if error.kind == DriverErrorKind::NotSupported => {
                if is_load {
                    piece.decode()?;
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}
