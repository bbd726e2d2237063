//! What the policies needed, as JSON and as a table.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use stratalloc::units::ByteSize;
use stratalloc_models::OutOfMemory;

use super::Policy;
use crate::replay::{MinCapacity, Smallest, Stop};
use crate::table::{Table, digits};
use crate::trace::Trace;

/// One trace under one policy. Keys that do not apply are left out.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The trace's name.
    pub trace: String,
    /// The policy.
    pub policy: &'static str,
    /// Whether the trace completes.
    pub fits: bool,
    /// The most requested bytes live at one time.
    pub peak_live_bytes: u64,
    /// The most memory held at one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_reserved_bytes: Option<u64>,
    /// That, over the peak of live bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_ratio: Option<f64>,
    /// Driver calls by kind, those that failed included.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub driver_calls: BTreeMap<&'static str, u64>,
    /// What they took on the virtual clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_time_us: Option<f64>,
    /// The same for a step of the second half of the trace, as its markers tell them apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_time_us_per_step_second_half: Option<f64>,
    /// Requests that PyTorch tried again after it had waited for all events and given back everything cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
    /// The smallest device on which the trace completes, if it was sought.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub smallest: Option<Smallest>,
    /// Why and where the trace does not fit, if it does not.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

impl Row {
    pub(super) fn new(trace: &Trace, policy: Policy) -> Row {
        Row {
            trace: trace.name.clone(),
            policy: policy.name(),
            fits: true,
            peak_live_bytes: trace.peak_live_bytes,
            peak_reserved_bytes: None,
            reserved_ratio: None,
            driver_calls: BTreeMap::new(),
            driver_time_us: None,
            driver_time_us_per_step_second_half: None,
            retries: None,
            smallest: None,
            stop: None,
        }
    }

    pub(super) fn set_needed(&mut self, peak_reserved: u64) {
        self.peak_reserved_bytes = Some(peak_reserved);
        self.reserved_ratio = Some(peak_reserved as f64 / self.peak_live_bytes.max(1) as f64);
    }

    pub(super) fn set_calls(&mut self, calls: BTreeMap<&'static str, u64>, time_ns: u64) {
        self.driver_calls = calls;
        self.driver_time_us = Some(time_ns as f64 / 1e3);
    }

    pub(super) fn set_steady(&mut self, time_ns: u64, steps: usize) {
        self.driver_time_us_per_step_second_half = (steps > 0).then(|| time_ns as f64 / 1e3 / steps as f64);
    }

    pub(super) fn set_retries(&mut self, retries: u64) {
        self.retries = Some(retries);
    }

    pub(super) fn set_failure(&mut self, trace: &Trace, op: Option<usize>, error: String) {
        self.fits = false;
        self.stop = Some(Stop::new(trace, op, error));
    }

    pub(super) fn set_min_capacity(&mut self, found: &MinCapacity) {
        self.smallest = Some(found.into());
    }
}

/// A model's end, in words.
pub(super) fn words(oom: &OutOfMemory) -> String {
    format!(
        "{} asked for; {} held, of which {} is allocated; the device has {} left",
        ByteSize(oom.requested),
        ByteSize(oom.reserved),
        ByteSize(oom.allocated),
        ByteSize(oom.device_free)
    )
}

/// The table, and what did not fit on `device`, in words.
pub(super) fn for_people(rows: &[Row], min_capacity: bool, device: &str, out: &mut impl Write) -> io::Result<()> {
    let mut headings =
        vec!["trace", "policy", "peak live", "reserved", "/ live", "driver calls", "time ms", "ms/step", "retries"];
    if min_capacity {
        headings.extend(["min capacity", "/ live", "robust"]);
    }
    let mut table = Table::new(&headings);
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.4}"));
    let bytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| ByteSize(bytes).to_string());
    let ms = |us: Option<f64>| us.map_or("-".to_owned(), |us| digits(us / 1e3));
    for row in rows {
        let calls: u64 = row.driver_calls.values().sum();
        let mut cells = vec![
            row.trace.clone(),
            row.policy.to_owned(),
            ByteSize(row.peak_live_bytes).to_string(),
            if row.fits { bytes(row.peak_reserved_bytes) } else { "no".to_owned() },
            ratio(row.reserved_ratio),
            if row.fits { calls.to_string() } else { "-".to_owned() },
            ms(row.driver_time_us),
            ms(row.driver_time_us_per_step_second_half),
            row.retries.map_or("-".to_owned(), |retries| retries.to_string()),
        ];
        if min_capacity {
            cells.extend(Smallest::cells(row.smallest.as_ref()));
        }
        table.row(cells);
    }
    writeln!(out, "{table}")?;
    let failed: Vec<&Row> = rows.iter().filter(|row| !row.fits).collect();
    if failed.is_empty() {
        return writeln!(out, "Everything fits on {device}.");
    }
    writeln!(out, "Does not fit on {device}:")?;
    for (row, stop) in failed.iter().filter_map(|row| Some((row, row.stop.as_ref()?))) {
        writeln!(out, "  {} under {}{}: {}", row.trace, row.policy, stop.place(), stop.error)?;
    }
    Ok(())
}
