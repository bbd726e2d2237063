//! The transfer engine: bytes between a device and tiers, and from tier to tier.
//!
//! Two streams of its own, one a direction. Where the device reaches a tier, copies go straight there; other bytes pass through pinned staging
//! memory in pieces. Every piece that the host can read has a CRC-32C, taken when it is stored and compared before anything uses it.

mod place;

use std::sync::Arc;

pub use self::place::Place;
use super::codec::Codec;
use super::{Tier, TierError};
use crate::driver::Driver;
use crate::units::{DevicePtr, StreamId};

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
    /// Whether the device sums up every object before it goes and after it came back.
    pub check_device: bool,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig { staging_bytes: 64 << 20, piece_bytes: 2 << 20, depth: 256, workers: 0, check_device: false }
    }
}

/// What [`Engine::save_many`] saves.
#[derive(Debug, Clone)]
pub struct Save {
    /// The bytes.
    pub from: DevicePtr,
    /// How many.
    pub size: u64,
    /// How they are stored; as they are, where there is none.
    pub codec: Option<Arc<dyn Codec>>,
}

/// Moves bytes. Transfers go on when the engine is dropped only if somebody waits for them.
#[derive(Debug)]
pub struct Engine {
    driver: Arc<dyn Driver>,
}

/// A transfer under way. Dropping it ends nothing: what it saves is then given up when it is complete.
#[derive(Debug, Clone)]
pub struct Transfer {
    _engine: Arc<()>,
}

/// How a transfer ended: where the bytes are now, for those that save or spill. The old place is as it was.
pub type Outcome = Result<Option<Arc<Place>>, TierError>;

#[cold]
fn unbuilt() -> TierError {
    TierError::Unusable { tier: "transfer".to_owned(), reason: "the engine is not built yet".to_owned() }
}

impl Engine {
    /// An engine for a device. Streams, events and staging memory are taken when they are needed.
    ///
    /// # Errors
    /// [`TierError::Unusable`] for a configuration that cannot be.
    pub fn new(driver: Arc<dyn Driver>, config: EngineConfig) -> Result<Engine, TierError> {
        let _ = config;
        Ok(Engine { driver })
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
        let save = Save { from, size, codec: codec.cloned() };
        self.save_many(&[save], tier, after)?.pop().ok_or_else(unbuilt)
    }

    /// [`Engine::save`], which fails where it would wait.
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
        self.save(from, size, tier, codec, after)
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
        let _ = (saves, tier, after);
        Err(unbuilt())
    }

    /// Copies the bytes of a place to `to`, once the device has done what is submitted to the streams of `after`. Waits as [`Engine::save`]
    /// does. The place stays.
    ///
    /// # Errors
    /// Why nothing was begun.
    pub fn load(&self, place: &Arc<Place>, to: DevicePtr, after: &[StreamId]) -> Result<Transfer, TierError> {
        let _ = (place, to, after);
        Err(unbuilt())
    }

    /// [`Engine::load`], which fails where it would wait.
    ///
    /// # Errors
    /// [`TierError::Busy`] too.
    pub fn try_load(&self, place: &Arc<Place>, to: DevicePtr, after: &[StreamId]) -> Result<Transfer, TierError> {
        self.load(place, to, after)
    }

    /// Loads several places, small ones in one copy call. All are begun, or none.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_many(&self, loads: &[(Arc<Place>, DevicePtr)], after: &[StreamId]) -> Result<Vec<Transfer>, TierError> {
        let _ = (loads, after);
        Err(unbuilt())
    }

    /// Copies the bytes of a place to another tier, as they are stored, by the host. The old place stays.
    ///
    /// # Errors
    /// Why nothing was begun.
    pub fn spill(&self, place: &Arc<Place>, tier: &Arc<dyn Tier>) -> Result<Transfer, TierError> {
        let _ = (place, tier);
        Err(unbuilt())
    }

    /// Lets later work of `stream` come after a load, on the device. Waits on the host until the last piece has been checked and
    /// submitted, so nothing that fails its checksum is ever used.
    ///
    /// # Errors
    /// How the transfer failed.
    pub fn order(&self, transfer: &Transfer, stream: StreamId) -> Result<(), TierError> {
        let _ = (transfer, stream);
        Err(unbuilt())
    }

    /// Waits on the host until all copies of a transfer that touch device memory are submitted.
    ///
    /// # Errors
    /// How the transfer failed.
    pub fn submitted(&self, transfer: &Transfer) -> Result<(), TierError> {
        let _ = transfer;
        Err(unbuilt())
    }

    /// The stream on which bytes leave the device, or come to it (for `record_stream`).
    ///
    /// # Errors
    /// Where it cannot be created.
    pub fn stream(&self, inwards: bool) -> Result<StreamId, TierError> {
        let _ = inwards;
        Ok(self.driver.create_stream()?)
    }

    /// Gets everything on that can get on without waiting. Whether anything did.
    pub fn pump(&self) -> bool {
        false
    }
}

impl Transfer {
    /// How it ended, or `None` while it is under way. Gets it on, where there are no workers.
    pub fn poll(&self) -> Option<Outcome> {
        None
    }

    /// Waits until it has ended, on nothing but what transfers have submitted.
    ///
    /// # Errors
    /// How it failed.
    pub fn wait(&self) -> Outcome {
        Err(unbuilt())
    }

    /// Begins nothing more of it. What is under way ends first, then it is [`TierError::Cancelled`], unless all was under way already.
    pub fn cancel(&self) {}

    /// Bytes of the object that have arrived, and all.
    pub fn progress(&self) -> (u64, u64) {
        (0, 0)
    }
}
