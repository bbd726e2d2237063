//! What happens to bytes on their way to a tier: nothing, or something that makes them fewer.

use super::TierError;

/// A way to store bytes in fewer. It knows nothing of where they come from: what it is given at a time is one piece of an object.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// What reports call it.
    fn name(&self) -> &str;

    /// The most bytes that `size` of them can become.
    fn bound(&self, size: usize) -> usize;

    /// Encodes `src` into `dst`, which holds [`Codec::bound`] bytes. Returns how many it takes.
    ///
    /// # Errors
    /// [`TierError::Unusable`] where these bytes cannot be encoded.
    fn encode(&self, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError>;

    /// Decodes `src`, all that [`Codec::encode`] made of a piece, into `dst`, which is as long as the piece was.
    ///
    /// # Errors
    /// [`TierError::Unusable`] where `src` is nothing that was encoded.
    fn decode(&self, src: &[u8], dst: &mut [u8]) -> Result<(), TierError>;

    /// Whether what comes back is what went.
    fn lossless(&self) -> bool;
}
