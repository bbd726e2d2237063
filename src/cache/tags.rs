//! Limits on what the blocks of a tag may be together.

use std::sync::atomic::Ordering::Relaxed;

use super::{DeviceCache, Request, TAGS};
use crate::error::{Error, Result};
use crate::pool::PoolState;

impl DeviceCache {
    /// Whether a tag has a limit.
    #[inline]
    pub(super) fn tag_is_limited(&self, tag: u8) -> bool {
        tag != 0 && self.limited_tags.load(Relaxed) >> (tag as u32 % 64) & 1 != 0
    }

    /// Bounds the live bytes of a tag, or no longer.
    pub(crate) fn set_tag_limit(&self, tag: u8, limit: Option<u64>) -> Result<()> {
        if tag == 0 || tag as usize >= TAGS {
            return Err(Error::InvalidTag { tag, max: TAGS as u8 - 1 });
        }
        let _state = self.pool.lock();
        let caches = self.threads.lock().clone();
        // While no thread is on the hot path, which looks at the bits but does not count what is in use.
        self.with_closed(&caches, |_| {
            let in_use = self.tag_bytes(tag);
            if let Some(limit) = limit.filter(|&limit| in_use > limit) {
                return Err(Error::LimitBelowUse { limit, in_use });
            }
            self.tag_limits.lock()[tag as usize] = limit.unwrap_or(u64::MAX);
            let bit = 1 << tag;
            match limit {
                Some(_) => self.limited_tags.fetch_or(bit, Relaxed),
                None => self.limited_tags.fetch_and(!bit, Relaxed),
            };
            Ok(())
        })
    }

    /// Under the pool's lock, so that two requests of one tag cannot both get its last bytes.
    pub(super) fn check_tag_limit(&self, state: &PoolState, request: Request) -> Result<()> {
        let Request { size, tag, .. } = request;
        let (in_use, limit) = (self.tag_bytes(tag), self.tag_limits.lock()[tag as usize]);
        if in_use.saturating_add(size) > limit {
            self.keep(self.pool.explain_tag_limit(state, self.asked(request), in_use, limit));
            return Err(Error::OverLimit { size, tag, in_use, limit });
        }
        Ok(())
    }
}
