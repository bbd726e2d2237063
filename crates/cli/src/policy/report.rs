//! What the policies needed, as JSON and as a table.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use stratalloc::units::ByteSize;
use stratalloc_models::OutOfMemory;

use super::Policy;
use crate::replay::MinCapacity;
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
    /// The smallest device on which the trace completes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_capacity_bytes: Option<u64>,
    /// That, over the peak of live bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_capacity_ratio: Option<f64>,
    /// The smallest ratio from which on every larger capacity that was tried completes; `null` if the largest failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robust_capacity_ratio: Option<f64>,
    /// Why the trace does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The number of the operation at which it failed, from 0, markers counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<usize>,
    /// The line of the trace on which that operation stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
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
            min_capacity_bytes: None,
            min_capacity_ratio: None,
            robust_capacity_ratio: None,
            error: None,
            op: None,
            line: None,
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
        self.error = Some(error);
        self.op = op;
        self.line = op.map(|op| trace.line_of(op));
    }

    pub(super) fn set_min_capacity(&mut self, found: &MinCapacity) {
        self.min_capacity_bytes = Some(found.bytes);
        self.min_capacity_ratio = Some(found.ratio);
        self.robust_capacity_ratio = Some(found.robust_ratio);
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
            cells.extend([
                bytes(row.min_capacity_bytes),
                ratio(row.min_capacity_ratio),
                ratio(row.robust_capacity_ratio),
            ]);
        }
        table.row(cells);
    }
    writeln!(out, "{table}")?;
    let failed: Vec<&Row> = rows.iter().filter(|row| !row.fits).collect();
    if failed.is_empty() {
        return writeln!(out, "Everything fits on {device}.");
    }
    writeln!(out, "Does not fit on {device}:")?;
    for row in failed {
        let at = match (row.op, row.line) {
            (Some(op), Some(line)) => format!(" at operation {op} (line {line})"),
            _ => String::new(),
        };
        writeln!(out, "  {} under {}{at}: {}", row.trace, row.policy, row.error.as_deref().unwrap_or_default())?;
    }
    Ok(())
}
