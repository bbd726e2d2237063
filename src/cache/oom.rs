//! Requests that find no room: the error, and what is kept of it for those who ask later.

use super::{DeviceCache, Request};
use crate::error::{DriverError, Error, OomCause, OomExplanation, OomRequest, OomTiers};
use crate::pool::{Asked, Magazines, PoolState, Want};
use crate::telemetry::{Event, EventKind};
use crate::units::DevicePtr;

impl DeviceCache {
    pub(super) fn asked(&self, request: Request) -> Asked {
        let Request { size, alignment, stream, tag, persistent, may_grow, dedicated, .. } = request;
        let request = OomRequest { size, alignment, stream, pool: None, tag, may_grow, persistent, dedicated };
        Asked { request, live: self.live_bytes(), magazines: self.held() }
    }

    /// Said before anything is moved or taken from the device for it.
    #[cold]
    pub(super) fn never_fits(&self, state: &PoolState, request: Request, block: u64) -> Error {
        let (limit, capacity) = (state.limit(), self.pool.capacity);
        let cause = if block > capacity { OomCause::LargerThanDevice } else { OomCause::LargerThanLimit };
        self.keep(self.pool.explain_refusal(state, self.asked(request), cause, block));
        Error::NeverFits { size: request.size, capacity, limit: (limit < capacity).then_some(limit) }
    }

    /// The climb has ended without a block, for what the driver said if it failed.
    #[cold]
    pub(super) fn no_room(
        &self,
        state: &mut PoolState,
        request: Request,
        want: Want,
        driver: Option<DriverError>,
    ) -> Error {
        let asked = self.asked(request);
        if let Some(error) = driver.as_ref().filter(|error| !error.is_out_of_memory()) {
            self.keep(self.pool.explain(state, asked, want, driver.clone()));
            return error.clone().into();
        }
        self.pool.ring.push(Event::new(EventKind::OutOfMemory, DevicePtr::NULL, request.size));
        let error = self.pool.shortage(state, asked, want, driver);
        if let Error::OutOfMemory(shortage) = &error {
            self.keep(shortage.explanation.clone());
        }
        error
    }

    /// Puts what the tiers did into the explanation of a shortage, and into what is kept of it.
    pub(crate) fn tell_tiers(&self, error: &mut Error, tiers: &OomTiers) {
        if let Error::OutOfMemory(shortage) = error {
            shortage.explanation.tiers = Some(tiers.clone());
        }
        if let Some(kept) = &mut *self.last_oom.lock() {
            kept.tiers = Some(tiers.clone());
        }
    }

    pub(super) fn keep(&self, explanation: OomExplanation) {
        *self.last_oom.lock() = Some(Box::new(explanation));
    }

    /// Why the last request failed that found no room.
    pub(crate) fn last_oom(&self) -> Option<OomExplanation> {
        self.last_oom.lock().as_deref().cloned()
    }
}
