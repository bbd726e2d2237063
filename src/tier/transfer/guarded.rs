//! Calls of what users provide, tiers and codecs: one that panics is a transfer that fails, whoever happened to call it. No worker dies of it,
//! and nobody waits for ever.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::tier::codec::Codec;
use crate::tier::{Io, Slot, Ticket, Tier, TierError};

/// A panic, in words.
pub(crate) fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "it panicked".to_string(), |text| format!("it panicked: {text}"))
}

fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // What the call leaves half done is its owner's: of ours it has only buffers, which hold nothing until it has returned.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| words_of(&*panic))
}

fn failed(tier: &dyn Tier, what: &str, reason: String) -> TierError {
    let tier = guarded(|| tier.name().to_owned()).unwrap_or_else(|_| "custom".to_owned());
    TierError::Io { tier, what: what.to_owned(), reason, errno: 0 }
}

/// [`Tier::reserve`].
pub(super) fn reserve(tier: &dyn Tier, size: u64) -> Result<Slot, TierError> {
    guarded(|| tier.reserve(size)).unwrap_or_else(|reason| Err(failed(tier, "reserve", reason)))
}

/// [`Tier::release`]. Where it panics, the slot is the tier's loss.
pub(super) fn release(tier: &dyn Tier, slot: Slot) {
    let _ = guarded(|| tier.release(slot));
}

/// [`Tier::shrink`]. Where it panics, the slot is as long as it was.
pub(super) fn shrink(tier: &dyn Tier, slot: Slot, size: u64) -> Slot {
    guarded(|| tier.shrink(slot, size)).unwrap_or(slot)
}

/// How a read or write did not begin.
pub(super) enum NotBegun {
    /// As the tier says.
    Error(TierError),
    /// It panicked: nobody can say whether it touches the buffer still.
    Panic(TierError),
}

/// [`Tier::start`].
///
/// # Safety
/// As [`Tier::start`]. After [`NotBegun::Panic`] the buffer is not used again.
pub(super) unsafe fn start(tier: &dyn Tier, io: Io) -> Result<Ticket, NotBegun> {
    // SAFETY: the caller's promise.
    match guarded(|| unsafe { tier.start(io) }) {
        Ok(begun) => begun.map_err(NotBegun::Error),
        Err(reason) => Err(NotBegun::Panic(failed(tier, "begin a read or write", reason))),
    }
}

/// [`Tier::finish`]; with an error of its own where that panicked, after which nobody can say whether the buffer is touched still.
pub(super) fn finish(tier: &dyn Tier, ticket: Ticket, wait: bool) -> Result<Option<Result<(), TierError>>, TierError> {
    guarded(|| tier.finish(ticket, wait)).map_err(|reason| failed(tier, "end a read or write", reason))
}

/// [`Codec::encode`].
pub(super) fn encode(codec: &dyn Codec, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError> {
    let bound = dst.len();
    match guarded(|| codec.encode(src, dst)) {
        Ok(Ok(length)) if length > bound => Err(broken(format!("it made {length} bytes of at most {bound}"))),
        Ok(encoded) => encoded,
        Err(reason) => Err(broken(reason)),
    }
}

/// [`Codec::decode`].
pub(super) fn decode(codec: &dyn Codec, src: &[u8], dst: &mut [u8]) -> Result<(), TierError> {
    guarded(|| codec.decode(src, dst)).unwrap_or_else(|reason| Err(broken(reason)))
}

/// [`Codec::bound`].
pub(super) fn bound(codec: &dyn Codec, size: usize) -> Result<usize, TierError> {
    guarded(|| codec.bound(size)).map_err(broken)
}

fn broken(reason: String) -> TierError {
    TierError::Unusable { tier: "codec".to_owned(), reason }
}
