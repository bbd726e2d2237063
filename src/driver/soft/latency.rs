//! What calls and copies cost in virtual time.
//!
//! The figures are medians that others measured on their GPUs. Where the A100 column has none, study A's is taken.

use crate::driver::call::CallKind;

/// Whose figures the virtual time of calls follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LatencyModel {
    /// Calls and copies take no time. The clock moves with [`SoftDevice::advance_clock`](super::SoftDevice::advance_clock)
    /// and with waiting for kernels that have a duration.
    #[default]
    Off,
    /// An A100 with 2 MiB chunks: creating costs much (193 us), setting access less (36 us).
    A100,
    /// Spaced medians over chunks of 2 MiB to 4 GiB: creating 71 us, setting access 91 us and 36 ns per MiB.
    StudyA,
}

/// How often `cuMemSetAccess` and `cuMemUnmap` stall, where tails are switched on, and for how long.
pub(super) const STALL_PROBABILITY: f64 = 28.0 / 160.0;
pub(super) const STALL_NS: u64 = 2_000_000;

/// Bytes a nanosecond between host and device (PCIe 4.0 x16) and inside a device (a copy reads and writes).
const LINK_BYTES_PER_NS: u64 = 25;
const COPY_BYTES_PER_NS: u64 = 600;
const FILL_BYTES_PER_NS: u64 = 1200;

impl LatencyModel {
    /// Host time of one call, in nanoseconds. `host` says that the memory lies in pinned host memory.
    pub fn call_ns(self, call: CallKind, size: u64, host: bool) -> u64 {
        use CallKind::*;
        if self == LatencyModel::Off {
            return 0;
        }
        let a100 = self == LatencyModel::A100;
        // A fixed cost, and one for each MiB.
        let (fixed, per_mib) = match call {
            Create if host => (101_000, 115_000),
            Create if a100 => (193_000, 0),
            Create => (71_000, 0),
            Map => (if a100 { 1_450 } else { 3_400 }, 0),
            SetAccess if host => (98_000, 8_800),
            SetAccess if a100 => (36_000, 0),
            SetAccess => (91_000, 36),
            Unmap => (if a100 { 26_000 } else { 37_000 }, 0),
            Release if host => (0, 23_000),
            Release => (26_000, 370),
            Reserve => (if a100 { 19_000 } else { 10_000 }, 0),
            // Not measured by anyone we read; taken to cost as much as the reservation.
            Unreserve => (if a100 { 19_000 } else { 10_000 }, 0),
            AllocHost | PinHost => (101_000, 115_000),
            FreeHost | UnpinHost => (0, 23_000),
            AllocPlain => (59_000, 0),
            FreePlain => (1_100_000, 0),
            MemoryInfo | Export => (6_000, 0),
            QueryEvent | CaptureStatus => (780, 0),
            // Submitting anything to a stream costs as much as recording an event.
            CreateStream | DestroyStream | SynchronizeStream | SynchronizeDevice | CreateEvent | DestroyEvent
            | RecordEvent | WaitEvent | SynchronizeEvent | Copy | Fill | CopyBlocks | FillWords | CheckWords
            | Checksum | Quantize | Dequantize | Write | Read => (1_340, 0),
        };
        fixed + ((u128::from(size) * per_mib) >> 20) as u64
    }

    /// How long a stream is busy copying, in nanoseconds. `link` says that one side is host memory.
    pub(super) fn copy_ns(self, size: u64, link: bool) -> u64 {
        match self {
            LatencyModel::Off => 0,
            _ if link => size / LINK_BYTES_PER_NS,
            _ => size / COPY_BYTES_PER_NS,
        }
    }

    /// How long a stream is busy filling, in nanoseconds.
    pub(super) fn fill_ns(self, size: u64) -> u64 {
        if self == LatencyModel::Off { 0 } else { size / FILL_BYTES_PER_NS }
    }
}
