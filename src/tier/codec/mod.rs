//! What happens to bytes on their way to a tier: nothing, or something that makes them fewer.
//!
//! A codec is chosen by name ([`by_name`]), for a tag or an allocation:
//!
//! | name | what |
//! |---|---|
//! | `none` | bytes are stored as they are |
//! | `lossless16`, `lossless32` | numbers of 2 or 4 bytes, byte by byte of their places, compressed with zstd; `lossless8` for bytes. Wants the feature `codecs` |
//! | `int8-bf16`, `int8-f16`, `int8-f32` | codes of 8 bits, a scale for 128 numbers; see [`Quant`] for what comes back |
//! | `int4-bf16`, `int4-f16`, `int4-f32` | codes of 4 bits, a scale for 64 numbers |
//!
//! `-g32`, `-g64`, `-g128` or `-g256` behind a name says how many numbers share a scale.

#[cfg(feature = "codecs")]
mod lossless;
mod quantized;
#[cfg(test)]
mod tests;

use std::sync::Arc;

#[cfg(feature = "codecs")]
pub use lossless::Lossless;
pub use quantized::Quantized;

use super::TierError;
use crate::driver::kernels::{Element, Quant};
pub use crate::error::CodecError;
use crate::sync::Mutex;

/// A way to store bytes in fewer. It knows nothing of where they come from: what it is given at a time is one piece of an object.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// What reports call it.
    fn name(&self) -> &str;

    /// The most bytes that `size` of them can become.
    fn bound(&self, size: usize) -> usize;

    /// Encodes `src` into `dst`, which holds [`Codec::bound`] bytes. Returns how many it takes.
    ///
    /// # Errors
    /// [`TierError::Codec`] where `dst` is too short.
    fn encode(&self, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError>;

    /// Decodes `src`, all that [`Codec::encode`] made of a piece, into `dst`, which is as long as the piece was.
    ///
    /// # Errors
    /// [`TierError::Codec`] where `src` is nothing that was encoded; what is in `dst` is then of no use.
    fn decode(&self, src: &[u8], dst: &mut [u8]) -> Result<(), TierError>;

    /// Whether what comes back is what went.
    fn lossless(&self) -> bool;

    /// The most by which a finite number changes, as a part of the largest magnitude of the numbers that share its scale: 0 where the codec is
    /// lossless. See [`Quant::error_bound`].
    fn error_bound(&self) -> f64 {
        0.0
    }

    /// How a device makes the same bytes by itself ([`Driver::quantize`](crate::driver::Driver::quantize)), where it can.
    fn on_device(&self) -> Option<Quant> {
        None
    }
}

/// The names that [`by_name`] knows, without those that say how many numbers share a scale.
pub const NAMES: [&str; 10] = [
    "none",
    "lossless8",
    "lossless16",
    "lossless32",
    "int8-bf16",
    "int8-f16",
    "int8-f32",
    "int4-bf16",
    "int4-f16",
    "int4-f32",
];

/// The codec of that name, the same one whoever asks for it; `None` for `none`.
///
/// # Errors
/// [`CodecError::Unknown`], or [`CodecError::NotBuilt`] where the crate was built without the feature `codecs`.
pub fn by_name(name: &str) -> Result<Option<Arc<dyn Codec>>, CodecError> {
    // Blocks share memory where their codec is one and the same. There are few names.
    static MADE: Mutex<Vec<Arc<dyn Codec>>> = Mutex::new(Vec::new());
    let Some(codec) = make(name)? else { return Ok(None) };
    let mut made = MADE.lock();
    if let Some(known) = made.iter().find(|known| known.name() == codec.name()) {
        return Ok(Some(known.clone()));
    }
    made.push(codec.clone());
    Ok(Some(codec))
}

fn make(name: &str) -> Result<Option<Arc<dyn Codec>>, CodecError> {
    if name == "none" {
        return Ok(None);
    }
    let unknown = || CodecError::Unknown { name: name.to_owned(), known: NAMES.join(", ") };
    if let Some(bits) = name.strip_prefix("lossless") {
        let width = match bits {
            "8" => 1,
            "16" => 2,
            "32" => 4,
            _ => return Err(unknown()),
        };
        return lossless(name, width).map(Some);
    }
    let quant = quant_of(name).ok_or_else(unknown)?;
    Ok(Some(Arc::new(Quantized::new(quant))))
}

#[cfg(feature = "codecs")]
fn lossless(_name: &str, width: usize) -> Result<Arc<dyn Codec>, CodecError> {
    Ok(Arc::new(Lossless::new(width)))
}

#[cfg(not(feature = "codecs"))]
fn lossless(name: &str, _width: usize) -> Result<Arc<dyn Codec>, CodecError> {
    Err(CodecError::NotBuilt { name: name.to_owned() })
}

/// `int8-bf16`, `int4-f16-g128`.
fn quant_of(name: &str) -> Option<Quant> {
    let mut parts = name.split('-');
    let (bits, usual) = match parts.next()? {
        "int8" => (8, 128),
        "int4" => (4, 64),
        _ => return None,
    };
    let element = parts.next()?;
    let element = Element::ALL.into_iter().find(|known| known.to_string() == element)?;
    let group = match parts.next() {
        None => usual,
        Some(group) => {
            ["32", "64", "128", "256"].into_iter().find(|known| group.strip_prefix('g') == Some(known))?.parse().ok()?
        }
    };
    if parts.next().is_some() { None } else { Quant::new(element, bits, group) }
}
