//! Models of PyTorch's caching allocator: the native one with segments of `cudaMalloc`, and its expandable segments. They answer
//! "would this have fitted?" of a recorded trace, without torch and without a device.
//!
//! What is modelled is what decides how much memory is held: rounding, pools, which free block serves, splitting and merging, what is
//! taken from the driver and what goes back, events of recorded streams. `tests/golden.rs` holds the models to recordings of torch 2.15's own
//! allocator, byte by byte after every operation. What is not modelled: private pools of graphs, several devices, time on the device.
//!
//! Where the driver places segments makes no difference: among free blocks of one size, torch 2.15 takes the one in the segment that it has
//! had for longest, and only within a segment the lowest address.

#![forbid(unsafe_code)]

mod allocator;
mod blocks;
mod device;
mod expandable;
mod release;
mod settings;
#[cfg(test)]
mod tests;

pub use device::Calls;
pub use settings::{Settings, SettingsError};

use allocator::Allocator;
use device::Device;
use stratalloc_trace::{Op, Trace};

/// One of PyTorch's two policies, with everything else as it is by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Segments from `cudaMalloc`, as torch does by default.
    Native,
    /// `expandable_segments:True`.
    Expandable,
}

impl Policy {
    /// The settings that stand for it.
    pub fn settings(self) -> Settings {
        Settings { expandable: self == Policy::Expandable, ..Settings::default() }
    }
}

/// The device under a model.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Its memory, in bytes.
    pub capacity: u64,
    /// How long after its record an event is seen to complete, in virtual nanoseconds.
    pub event_lag_ns: u64,
    /// Virtual time that passes with each operation but markers.
    pub op_ns: u64,
    /// Whether the trace's `empty_cache` calls are left out.
    pub skip_empty_cache: bool,
    /// Index of the operation from which on [`Outcome::driver_ns_since`] counts.
    pub since: usize,
    /// Virtual time of a driver call, by its CUDA name and the bytes that it is about.
    pub cost: fn(&'static str, u64) -> u64,
}

impl Machine {
    /// A device with so much memory, whose events complete at once and whose calls take no time.
    pub fn new(capacity: u64) -> Machine {
        Machine { capacity, event_lag_ns: 0, op_ns: 300, skip_empty_cache: false, since: 0, cost: |_, _| 0 }
    }
}

/// Why and where a model ran out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// Index of the operation.
    pub op: usize,
    /// What it asked for.
    pub requested: u64,
    /// What the allocator holds, after it gave back what it could.
    pub reserved: u64,
    /// The part of that in blocks which the program holds, rounded as the allocator rounds.
    pub allocated: u64,
    /// What the device has left.
    pub device_free: u64,
}

/// What a trace came to under a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The most memory held at one time.
    pub peak_reserved: u64,
    /// Memory held at the end, or where it ran out.
    pub reserved: u64,
    /// Calls of the driver.
    pub calls: Calls,
    /// What they took, on the virtual clock.
    pub driver_ns: u64,
    /// What those from the operation [`Machine::since`] on took.
    pub driver_ns_since: u64,
    /// Requests that were tried again after everything cached had been given back.
    pub retries: u64,
    /// How often the allocator waited for all events, and gave back what it had cached; `empty_cache` does so too.
    pub releases: u64,
    /// Set where the trace does not fit.
    pub out_of_memory: Option<OutOfMemory>,
}

impl Outcome {
    /// Whether the trace fits.
    pub fn fits(&self) -> bool {
        self.out_of_memory.is_none()
    }
}

/// Replays a trace on a device with `capacity` bytes under a policy with its defaults.
pub fn replay(trace: &Trace, policy: Policy, capacity: u64) -> Outcome {
    replay_with(trace, &policy.settings(), &Machine::new(capacity), |_, _| {})
}

/// Replays a trace. `after` is told, after every operation, its index and how many bytes are held.
pub fn replay_with(
    trace: &Trace,
    settings: &Settings,
    machine: &Machine,
    mut after: impl FnMut(usize, u64),
) -> Outcome {
    let mut allocator = Allocator::new(settings.clone(), Device::new(machine));
    let mut blocks = Vec::with_capacity(trace.allocs as usize);
    let mut out_of_memory = None;
    let mut driver_ns_before = None;
    for (op, what) in trace.ops.iter().enumerate() {
        if op == machine.since {
            driver_ns_before = Some(allocator.device.driver_ns);
        }
        if !matches!(what, Op::Marker { .. }) {
            allocator.device.advance(machine.op_ns);
        }
        match *what {
            Op::Alloc { bytes, stream } => match allocator.malloc(bytes, stream) {
                Some(block) => blocks.push(block),
                None => {
                    out_of_memory = Some(OutOfMemory {
                        op,
                        requested: bytes,
                        reserved: allocator.reserved(),
                        allocated: allocator.allocated(),
                        device_free: allocator.device.free_bytes(),
                    });
                    break;
                }
            },
            // The ids of a trace are dense, so that they are indices.
            Op::Free { id } => allocator.free(blocks[id as usize]),
            Op::Record { id, stream } => allocator.record_stream(blocks[id as usize], stream),
            Op::EmptyCache if !machine.skip_empty_cache => allocator.empty_cache(),
            Op::EmptyCache | Op::Marker { .. } => {}
        }
        after(op, allocator.reserved());
    }
    Outcome {
        peak_reserved: allocator.peak_reserved(),
        reserved: allocator.reserved(),
        calls: allocator.device.calls,
        driver_ns: allocator.device.driver_ns,
        driver_ns_since: driver_ns_before.map_or(0, |before| allocator.device.driver_ns - before),
        retries: allocator.retries,
        releases: allocator.releases,
        out_of_memory,
    }
}
