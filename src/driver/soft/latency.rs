//! What calls and copies cost in virtual time.
//!
//! The figures are medians: those of the A100 and of study A others measured on their GPUs, and where the A100's column has none, study A's is
//! taken; those of the H100 this project took, on an H100 80GB HBM3 with driver 580 (`cargo test --release --test gpu driver_latency`).

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
    /// An H100: creating 12.5 us. Setting access and unmapping cost 25 and 22 us for each mapping in the range, so that a range of many chunks
    /// costs as much as many ranges.
    H100,
}

/// How often `cuMemSetAccess` and `cuMemUnmap` stall, where tails are switched on, and for how long.
pub(super) const STALL_PROBABILITY: f64 = 28.0 / 160.0;
pub(super) const STALL_NS: u64 = 2_000_000;

/// What one call costs, in nanoseconds: fixed, for each MiB, and for each mapping in its range.
type Cost = (u64, u64, u64);

/// Bytes a nanosecond between host and device (PCIe 4.0 and 5.0 x16), and inside a device (a copy reads and writes).
struct Rates {
    link: u64,
    copy: u64,
    fill: u64,
}

const A100_RATES: Rates = Rates { link: 25, copy: 600, fill: 1200 };
const H100_RATES: Rates = Rates { link: 55, copy: 1500, fill: 3200 };

impl LatencyModel {
    /// Host time of one call, in nanoseconds. `host` says that the memory lies in pinned host memory; `mappings` are those in the range of a
    /// call that takes one.
    pub fn call_ns(self, call: CallKind, size: u64, host: bool, mappings: u64) -> u64 {
        let (fixed, per_mib, per_mapping) = match self {
            LatencyModel::Off => return 0,
            LatencyModel::H100 => h100(call, host),
            LatencyModel::A100 => others(call, host, true),
            LatencyModel::StudyA => others(call, host, false),
        };
        fixed + ((u128::from(size) * u128::from(per_mib)) >> 20) as u64 + per_mapping * mappings
    }

    fn rates(self) -> Option<Rates> {
        match self {
            LatencyModel::Off => None,
            LatencyModel::H100 => Some(H100_RATES),
            LatencyModel::A100 | LatencyModel::StudyA => Some(A100_RATES),
        }
    }

    /// How long a stream is busy copying, in nanoseconds. `link` says that one side is host memory.
    pub(super) fn copy_ns(self, size: u64, link: bool) -> u64 {
        self.rates().map_or(0, |rates| size / if link { rates.link } else { rates.copy })
    }

    /// How long a stream is busy filling, in nanoseconds.
    pub(super) fn fill_ns(self, size: u64) -> u64 {
        self.rates().map_or(0, |rates| size / rates.fill)
    }
}

/// The A100's figures, or study A's.
fn others(call: CallKind, host: bool, a100: bool) -> Cost {
    use CallKind::*;
    match call {
        Create if host => (101_000, 115_000, 0),
        Create => (if a100 { 193_000 } else { 71_000 }, 0, 0),
        Map => (if a100 { 1_450 } else { 3_400 }, 0, 0),
        SetAccess if host => (98_000, 8_800, 0),
        SetAccess if a100 => (36_000, 0, 0),
        SetAccess => (91_000, 36, 0),
        Unmap => (if a100 { 26_000 } else { 37_000 }, 0, 0),
        Release if host => (0, 23_000, 0),
        Release => (26_000, 370, 0),
        // Giving address space back was not measured by anyone we read; taken to cost as much as the reservation.
        Reserve | Unreserve => (if a100 { 19_000 } else { 10_000 }, 0, 0),
        AllocHost | PinHost => (101_000, 115_000, 0),
        FreeHost | UnpinHost => (0, 23_000, 0),
        AllocPlain => (59_000, 0, 0),
        FreePlain => (1_100_000, 0, 0),
        MemoryInfo | Export => (6_000, 0, 0),
        QueryEvent | CaptureStatus => (780, 0, 0),
        // Submitting anything to a stream costs as much as recording an event.
        CreateStream | DestroyStream | SynchronizeStream | SynchronizeDevice | CreateEvent | DestroyEvent
        | RecordEvent | WaitEvent | SynchronizeEvent | Copy | Fill | CopyBlocks | FillWords | CheckWords | Checksum
        | Quantize | Dequantize | Write | Read => (1_340, 0, 0),
    }
}

fn h100(call: CallKind, host: bool) -> Cost {
    use CallKind::*;
    match call {
        // Host chunks were not measured: taken to cost what pinning does.
        Create if host => (60_000, 515_000, 0),
        Create => (12_500, 50, 0),
        // Of memory that network cards may reach, which is what is asked for where the device has it; of other memory 0.8 us.
        Map => (6_000, 0, 0),
        SetAccess => (0, 100, 25_000),
        Unmap => (0, 40, 22_000),
        Release if host => (0, 155_000, 0),
        Release => (13_000, 550, 0),
        Reserve | Unreserve => (700, 0, 0),
        AllocHost => (60_000, 515_000, 0),
        FreeHost => (0, 155_000, 0),
        // Of pages that are there.
        PinHost => (60_000, 45_000, 0),
        UnpinHost => (0, 18_000, 0),
        AllocPlain => (46_000, 90, 0),
        FreePlain => (36_000, 550, 0),
        MemoryInfo | Export => (6_300, 0, 0),
        QueryEvent | CaptureStatus => (600, 0, 0),
        CreateStream | DestroyStream | SynchronizeStream | SynchronizeDevice | CreateEvent | DestroyEvent
        | RecordEvent | WaitEvent | SynchronizeEvent => (350, 0, 0),
        Copy | Fill | CopyBlocks | FillWords | CheckWords | Checksum | Quantize | Dequantize | Write | Read => {
            (2_000, 0, 0)
        }
    }
}
