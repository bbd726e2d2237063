//! What the rows of `replay` and of `replay --policy` share: fields of their JSON.

use serde::Serialize;
use stratalloc::units::ByteSize;

use super::MinCapacity;
use crate::trace::Trace;

/// The smallest device on which a trace completes.
#[derive(Debug, Clone, Serialize)]
pub struct Smallest {
    /// Its memory.
    pub min_capacity_bytes: u64,
    /// That, over the peak of live bytes.
    pub min_capacity_ratio: f64,
    /// The smallest ratio from which on every larger capacity that was tried completes; `null` if the largest failed.
    pub robust_capacity_ratio: f64,
}

impl From<&MinCapacity> for Smallest {
    fn from(found: &MinCapacity) -> Smallest {
        Smallest {
            min_capacity_bytes: found.bytes,
            min_capacity_ratio: found.ratio,
            robust_capacity_ratio: found.robust_ratio,
        }
    }
}

impl Smallest {
    /// Its three columns, for a row that may have none.
    pub(crate) fn cells(found: Option<&Smallest>) -> [String; 3] {
        let dash = || "-".to_owned();
        found.map_or([dash(), dash(), dash()], |found| {
            // None of those that were tried was robust.
            let robust = found.robust_capacity_ratio;
            let robust = if robust.is_finite() { format!("{robust:.4}") } else { dash() };
            [ByteSize(found.min_capacity_bytes).to_string(), format!("{:.4}", found.min_capacity_ratio), robust]
        })
    }
}

/// Where a replay stopped, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Stop {
    /// Why.
    pub error: String,
    /// The number of the operation, from 0, markers counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<usize>,
    /// The line of the trace on which that operation stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

impl Stop {
    pub(crate) fn new(trace: &Trace, op: Option<usize>, error: String) -> Stop {
        Stop { error, op, line: op.map(|op| trace.line_of(op)) }
    }

    /// ` at operation 3 (line 7)`, or nothing.
    pub(crate) fn place(&self) -> String {
        match (self.op, self.line) {
            (Some(op), Some(line)) => format!(" at operation {op} (line {line})"),
            _ => String::new(),
        }
    }
}
