//! The allocator as this command uses it: everything that touches the `stratalloc` API stands here.

use std::collections::BTreeMap;
use std::env::VarError;
use std::ops::Sub;

use stratalloc::driver::DeviceProperties;
use stratalloc::error::{ConfigError, DriverError, DriverErrorKind, Error, Result};
use stratalloc::units::{DevicePtr, StreamId};

/// The environment variable that configures the allocator.
pub const CONF_VARIABLE: &str = "STRATALLOC_CONF";

/// What the software device's driver calls cost, in virtual time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Latency {
    /// As measured on A100s with 2 MiB pages.
    #[default]
    A100,
    /// As in a study that spaced the calls: dear to create, cheap to map.
    #[value(name = "studyA")]
    StudyA,
    /// Nothing.
    Off,
}

/// The device and the configuration of an [`Engine`].
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The memory of the software device, in bytes.
    pub capacity: u64,
    /// The cost of its driver calls.
    pub latency: Latency,
    /// How long after its work is done an event is seen to complete, in virtual nanoseconds.
    pub event_lag_ns: u64,
    /// Whether it checks the order of accesses.
    pub checker: bool,
    /// The seed of all that it chooses.
    pub seed: u64,
    /// The allocator's configuration, as from [`configuration`].
    pub config: String,
}

/// How often each driver call was made and how long it took, by its CUDA name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls(pub BTreeMap<&'static str, Call>);

/// The uses of one driver call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Call {
    /// How often.
    pub count: u64,
    /// How long altogether, on the driver's own clock.
    pub time_ns: u64,
}

impl Calls {
    /// How often `name` was called.
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |call| call.count)
    }

    /// The number and time of all calls.
    pub fn total(&self) -> Call {
        self.0.values().fold(Call::default(), |sum, call| Call {
            count: sum.count + call.count,
            time_ns: sum.time_ns + call.time_ns,
        })
    }
}

impl Sub<&Calls> for &Calls {
    type Output = Calls;

    /// What was called since `earlier`.
    fn sub(self, earlier: &Calls) -> Calls {
        let since = |(name, now): (&&'static str, &Call)| {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            let call = Call {
                count: now.count.saturating_sub(before.count),
                time_ns: now.time_ns.saturating_sub(before.time_ns),
            };
            (call.count > 0).then_some((*name, call))
        };
        Calls(self.0.iter().filter_map(since).collect())
    }
}

/// Whether a trace's program reads or also writes the memory that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Writes only, as the first use of new memory does.
    Write,
    /// Reads, then writes.
    ReadWrite,
}

/// One allocator over one software device that keeps addresses only.
#[derive(Debug)]
pub struct Engine {
    stub: stub::Stub,
}

impl Engine {
    /// A fresh device and an allocator on it.
    pub fn open(setup: &Setup) -> Result<Engine> {
        config_in_force(&setup.config)?;
        Ok(Engine { stub: stub::Stub::new(setup.capacity) })
    }

    /// A new stream of the device.
    pub fn create_stream(&self) -> Result<StreamId> {
        Ok(self.stub.create_stream())
    }

    /// Allocates.
    #[inline]
    pub fn alloc(&self, bytes: u64, stream: StreamId) -> Result<DevicePtr> {
        self.stub.alloc(bytes, stream)
    }

    /// Frees.
    #[inline]
    pub fn free(&self, ptr: DevicePtr) -> Result<()> {
        self.stub.free(ptr)
    }

    /// Says that a block is used on another stream than its own.
    #[inline]
    pub fn record_stream(&self, _ptr: DevicePtr, _stream: StreamId) -> Result<()> {
        Ok(())
    }

    /// Gives cached memory back to the driver.
    pub fn empty_cache(&self) -> Result<()> {
        Ok(())
    }

    /// The most physical memory held so far.
    pub fn peak_reserved_bytes(&self) -> Result<u64> {
        Ok(self.stub.peak())
    }

    /// The most requested bytes that were live at one time so far.
    pub fn peak_live_bytes(&self) -> Result<u64> {
        Ok(self.stub.peak())
    }

    /// All driver calls so far.
    pub fn driver_calls(&self) -> Calls {
        self.stub.calls()
    }

    /// Lets virtual time pass, as if the host were busy.
    pub fn advance_clock(&self, _ns: u64) {}

    // ---- for the checker -----------------------------------------------------------------------------------------

    /// Tells the checker that the program was given this block: after the fact.
    pub fn note_alloc(&self, _ptr: DevicePtr, _bytes: u64, _stream: StreamId) {}

    /// Tells the checker that the program gives this block up: before the fact.
    pub fn note_free(&self, _ptr: DevicePtr, _bytes: u64) {}

    /// Submits a kernel to `stream` that uses the block and takes `_ns` of virtual time.
    pub fn launch(&self, _stream: StreamId, _ptr: DevicePtr, _bytes: u64, _how: Use, _ns: u64) -> Result<()> {
        Ok(())
    }

    /// Makes later work of `stream` wait for all work so far of `other`.
    pub fn wait_for(&self, _stream: StreamId, _other: StreamId) -> Result<()> {
        Ok(())
    }

    /// What the checker found.
    pub fn reports(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The configuration that is given, or else the environment's; checked.
pub fn configuration(given: Option<&str>) -> std::result::Result<String, ConfigError> {
    let text = match (given, std::env::var(CONF_VARIABLE)) {
        (Some(given), _) => given.to_owned(),
        (None, Ok(text)) => text,
        (None, Err(VarError::NotPresent)) => String::new(),
        (None, Err(VarError::NotUnicode(text))) => {
            return Err(ConfigError::Syntax { text: text.to_string_lossy().into_owned() });
        }
    };
    config_in_force(&text).map(|_| text)
}

/// Every setting in force under the configuration `text`, in one line.
pub fn config_in_force(text: &str) -> std::result::Result<String, ConfigError> {
    for setting in text.split(',').filter(|setting| !setting.trim().is_empty()) {
        if !setting.contains(':') {
            return Err(ConfigError::Syntax { text: setting.to_owned() });
        }
    }
    Ok(if text.is_empty() { "all defaults".to_owned() } else { text.to_owned() })
}

/// A CUDA device and its free memory in bytes, by its ordinal.
pub fn cuda_device(_ordinal: u32) -> std::result::Result<(DeviceProperties, u64), DriverError> {
    Err(DriverError::new(DriverErrorKind::LibraryMissing, "dlopen", "libcuda.so.1 was not found"))
}

/// STUB, to be replaced by the allocator: addresses only ever go up, memory is as large as what is live.
mod stub {
    use std::collections::HashMap;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::{Call, Calls, DevicePtr, Error, Result, StreamId};
    use stratalloc::error::OutOfMemory;
    use stratalloc::units::{GRANULE, PAGE};

    #[derive(Debug, Default)]
    struct State {
        next: u64,
        streams: u64,
        live: HashMap<DevicePtr, u64>,
        live_bytes: u64,
        peak: u64,
    }

    #[derive(Debug)]
    pub(super) struct Stub {
        capacity: u64,
        state: Mutex<State>,
    }

    impl Stub {
        pub(super) fn new(capacity: u64) -> Stub {
            Stub { capacity, state: Mutex::new(State { next: 1 << 40, ..State::default() }) }
        }

        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(super) fn create_stream(&self) -> StreamId {
            let mut state = self.state();
            state.streams += 1;
            StreamId(state.streams)
        }

        pub(super) fn alloc(&self, bytes: u64, _stream: StreamId) -> Result<DevicePtr> {
            let bytes = bytes.next_multiple_of(GRANULE);
            let mut state = self.state();
            if state.live_bytes + bytes > self.capacity {
                let mut oom = OutOfMemory::default();
                (oom.size, oom.capacity, oom.reserved) = (bytes, self.capacity, state.live_bytes);
                return Err(Error::OutOfMemory(Box::new(oom)));
            }
            let ptr = DevicePtr(state.next);
            state.next += bytes;
            state.live.insert(ptr, bytes);
            state.live_bytes += bytes;
            state.peak = state.peak.max(state.live_bytes);
            Ok(ptr)
        }

        pub(super) fn free(&self, ptr: DevicePtr) -> Result<()> {
            let mut state = self.state();
            let bytes = state.live.remove(&ptr).ok_or(Error::InvalidPointer { ptr })?;
            state.live_bytes -= bytes;
            Ok(())
        }

        pub(super) fn peak(&self) -> u64 {
            self.state().peak.next_multiple_of(PAGE)
        }

        pub(super) fn calls(&self) -> Calls {
            let count = self.peak() / PAGE;
            let call = |name, ns| (name, Call { count, time_ns: count * ns });
            Calls(
                [call("cuMemCreate", 193_000), call("cuMemMap", 1_450)]
                    .into_iter()
                    .filter(|(_, c)| c.count > 0)
                    .collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_snapshots_subtract() {
        let call = |count, time_ns| Call { count, time_ns };
        let before = Calls([("cuMemCreate", call(2, 20)), ("cuMemMap", call(1, 5))].into());
        let after = Calls([("cuMemCreate", call(5, 60)), ("cuMemMap", call(1, 5)), ("cuMemUnmap", call(1, 7))].into());
        let since = &after - &before;
        assert_eq!(since, Calls([("cuMemCreate", call(3, 40)), ("cuMemUnmap", call(1, 7))].into()));
        assert_eq!((since.total(), since.count("cuMemMap")), (call(4, 47), 0));
    }
}
