//! Bytes without an address of their own: activations between the passes of a step.

use std::fmt;
use std::sync::Arc;

use super::{PinGuard, Place, TierKind, Tiers, Transfer, keep_first};
use crate::error::{ResidencyError, Result, TierError};
use crate::sync::Mutex;
use crate::units::{DevicePtr, StreamId};

/// Bytes of device memory in a tier. They are forgotten when it is dropped.
pub struct Stash {
    size: u64,
    /// Whether copies of the device go straight to the tier: what can fail after they have been submitted is the device.
    is_direct: bool,
    bytes: Mutex<Bytes>,
    /// The fetch that was begun last.
    fetch: Mutex<Option<Transfer>>,
    /// Goes last: with it, the memory that transfers use may go.
    tiers: Arc<Tiers>,
}

#[derive(Debug)]
enum Bytes {
    /// With what keeps an evictable block there while it is read.
    Leaving {
        transfer: Transfer,
        _pin: Option<PinGuard>,
    },
    Stored(Arc<Place>),
}

impl fmt::Debug for Stash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stash").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Tiers {
    /// Copies bytes of device memory to a tier, by its name if one is given, once `stream` has done what it has been given so far. Returns as
    /// soon as the copy is under way.
    pub(crate) fn stash(
        self: &Arc<Self>,
        from: DevicePtr,
        size: u64,
        stream: StreamId,
        tier: Option<&str>,
        pin: Option<PinGuard>,
    ) -> Result<Stash> {
        let mut failure = None;
        for store in &self.stores {
            if tier.is_some_and(|name| name != store.tier.name()) {
                continue;
            }
            match self.engine.save(from, size, &store.tier, None, &[stream]) {
                Ok(transfer) => {
                    let is_direct = matches!(store.kind, TierKind::Host | TierKind::Peer);
                    if is_direct && let Err(error) = self.engine.submitted(&transfer) {
                        transfer.cancel();
                        return Err(error.into());
                    }
                    // Once all copies are submitted, the order of the outward stream says when the bytes have been read.
                    let pin = pin.filter(|_| !is_direct);
                    let bytes = Mutex::new(Bytes::Leaving { transfer, _pin: pin });
                    return Ok(Stash { size, is_direct, bytes, fetch: Mutex::new(None), tiers: self.clone() });
                }
                Err(error) => keep_first(&mut failure, error),
            }
        }
        match (failure, tier) {
            (Some(failure), _) => Err(failure.into()),
            (None, Some(name)) => Err(self.no_such_tier(name).into()),
            (None, None) => Err(ResidencyError::NoTiers.into()),
        }
    }
}

impl Stash {
    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Begins to copy the bytes to `to`, once `stream` has done what it has been given so far. Work that uses them comes after [`Stash::order`].
    /// May be done again.
    pub fn fetch(&self, to: DevicePtr, stream: StreamId) -> Result<()> {
        let place = self.place()?;
        let fetch = self.tiers.engine.load(&place, to, &[stream])?;
        *self.fetch.lock() = Some(fetch);
        Ok(())
    }

    /// Lets later work of `stream` come after the fetch that was begun last. Waits on the host until its bytes have been checked.
    pub fn order(&self, stream: StreamId) -> Result<()> {
        let fetch = self.fetch.lock().clone();
        match fetch {
            Some(fetch) => Ok(self.tiers.engine.order(&fetch, stream)?),
            None => Ok(()),
        }
    }

    /// Whether the memory may be freed, in stream order: whether the bytes are safe without it. They are at once where the device itself copies to
    /// the tier, else when they have arrived; with `wait`, they are when this returns. An error says that they are on the device only.
    pub fn may_free(&self, wait: bool) -> Result<bool> {
        if self.is_direct {
            return Ok(true);
        }
        if wait {
            return self.place().map(|_| true);
        }
        let mut bytes = self.bytes.lock();
        let Bytes::Leaving { transfer, .. } = &*bytes else { return Ok(true) };
        match transfer.poll() {
            None => Ok(false),
            Some(outcome) => {
                *bytes = Bytes::Stored(outcome?.ok_or(TierError::Cancelled)?);
                Ok(true)
            }
        }
    }

    /// Where the bytes are, once they are.
    fn place(&self) -> Result<Arc<Place>> {
        let mut bytes = self.bytes.lock();
        if let Bytes::Leaving { transfer, .. } = &*bytes {
            let place = transfer.wait()?.ok_or(TierError::Cancelled)?;
            *bytes = Bytes::Stored(place);
        }
        match &*bytes {
            Bytes::Stored(place) => Ok(place.clone()),
            Bytes::Leaving { .. } => Err(TierError::Cancelled.into()),
        }
    }
}

impl Drop for Stash {
    fn drop(&mut self) {
        if let Bytes::Leaving { transfer, .. } = self.bytes.get_mut() {
            transfer.cancel();
        }
        // What no stream was told to come after is for nobody.
        if let Some(fetch) = self.fetch.get_mut() {
            fetch.cancel();
        }
    }
}
