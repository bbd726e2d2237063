//! Which rows there are. Every part of the tiers adds its own to [`all`].

use std::time::Duration;

use super::{BenchOptions, device};
use crate::Failed;

/// Does a row's work once, and says how long it took.
pub(super) type Work = Box<dyn FnMut() -> Result<Duration, Failed>>;

/// A row that is set up: what is measured.
pub(super) struct Row {
    /// Bytes that the work moves.
    pub(super) bytes: u64,
    pub(super) work: Work,
    pub(super) beside: Beside,
}

/// What a row's ratio is to.
pub(super) enum Beside {
    /// Something plain that moves as many bytes.
    Peer { name: String, work: Work },
    /// A codec: how many times smaller the bytes became.
    #[allow(dead_code, reason = "for rows of codecs")]
    Smaller(f64),
    /// There is nothing to compare with: why.
    #[allow(dead_code, reason = "for rows whose peer may be missing")]
    Nothing(String),
}

/// A row by its name. Only those that are wanted are set up.
pub(super) struct Maker {
    pub(super) name: String,
    pub(super) make: Box<dyn FnOnce() -> Result<Row, Failed>>,
}

impl Maker {
    pub(super) fn new(name: String, make: impl FnOnce() -> Result<Row, Failed> + 'static) -> Maker {
        Maker { name, make: Box::new(make) }
    }
}

/// All rows, in the order of the table.
pub(super) fn all(options: &BenchOptions) -> Vec<Maker> {
    let mut makers = Vec::new();
    makers.extend(device::rows(options));
    makers
}
