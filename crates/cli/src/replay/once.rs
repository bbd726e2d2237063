//! One pass of one trace, for those who only want to know what it needs.

use stratalloc::error::Error;

use super::follow::{Failure, Manner};
use super::passes::{Plan, measure_once};
use crate::engine::{Setup, Spent};
use crate::trace::Trace;

/// What one pass on a fresh device needed.
#[derive(Debug, Clone)]
pub(crate) struct Once {
    pub(crate) peak_reserved_bytes: u64,
    pub(crate) spent: Spent,
    /// In the steps of the second half.
    pub(crate) second_half: Spent,
}

/// Why one pass did not complete: the operation, if it was one, and the allocator's words.
#[derive(Debug, Clone)]
pub(crate) struct Stopped {
    pub(crate) op: Option<usize>,
    pub(crate) error: Error,
}

impl Stopped {
    /// Whether there was not enough memory, and nothing else.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self.error, Error::OutOfMemory(_) | Error::NeverFits { .. })
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Stopped {
        Stopped { op: None, error }
    }
}

/// Replays `trace` once on a fresh device.
pub(crate) fn once(trace: &Trace, setup: &Setup, skip_empty_cache: bool) -> Result<Once, Stopped> {
    let manner = if setup.event_lag_ns > 0 { Manner::Paced } else { Manner::Plain };
    let plan = Plan { threads: 1, passes: 1, skip_empty_cache, steps: false, manner, bandwidth: None };
    match measure_once(trace, setup, &plan) {
        Ok(measured) => Ok(Once {
            peak_reserved_bytes: measured.peak_reserved_bytes,
            spent: measured.first,
            second_half: measured.second_half,
        }),
        Err(Failure { op, error }) => Err(Stopped { op, error }),
    }
}
