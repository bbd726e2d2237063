//! Numbers as codes of 8 or 4 bits.

use super::{Codec, CodecError};
use crate::driver::kernels::{Quant, dequantize, quantize};
use crate::tier::TierError;

/// Numbers of one kind as codes that share a scale by groups. Lossy, so somebody must have asked for it: [`Quant`] says what comes back. A device
/// makes the same bytes.
#[derive(Debug)]
pub struct Quantized {
    name: String,
    quant: Quant,
}

impl Quantized {
    /// A codec for such numbers.
    pub fn new(quant: Quant) -> Quantized {
        let usual = if quant.bits() == 8 { 128 } else { 64 };
        let group = if quant.group() == usual { String::new() } else { format!("-g{}", quant.group()) };
        Quantized { name: format!("int{}-{}{group}", quant.bits(), quant.element()), quant }
    }
}

impl Codec for Quantized {
    fn name(&self) -> &str {
        &self.name
    }

    fn bound(&self, size: usize) -> usize {
        self.quant.encoded_size(size as u64) as usize
    }

    fn encode(&self, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError> {
        let room = dst.len();
        let refusal = || CodecError::NoRoom { codec: self.name.clone(), needed: self.bound(src.len()), room };
        Ok(quantize(src, dst, self.quant).ok_or_else(refusal)?)
    }

    fn decode(&self, src: &[u8], dst: &mut [u8]) -> Result<(), TierError> {
        let refusal = |what: crate::driver::kernels::NotQuantized| CodecError::Malformed {
            codec: self.name.clone(),
            what: what.to_string(),
        };
        Ok(dequantize(src, dst, self.quant).map_err(refusal)?)
    }

    fn lossless(&self) -> bool {
        false
    }

    fn grain(&self) -> u64 {
        (self.quant.group() * self.quant.element().width()) as u64
    }

    fn error_bound(&self) -> f64 {
        self.quant.error_bound()
    }

    fn on_device(&self) -> Option<Quant> {
        Some(self.quant)
    }
}
