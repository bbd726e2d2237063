//! The allocator as this command uses it: everything that touches the `stratalloc` API stands here.

use std::collections::BTreeMap;
use std::env::VarError;
use std::ops::Sub;
use std::sync::Arc;

use crate::bare::BareDriver;
use crate::target::Target;
use stratalloc::block::CLASS_SIZE_MAX;
use stratalloc::config::{Config, Limit};
use stratalloc::driver::cuda::CudaDriver;
use stratalloc::driver::metered::{CallKind, Tally};
use stratalloc::driver::soft::{Access, Backing, LatencyModel, SoftDevice};
use stratalloc::driver::{DeviceProperties, Driver, EventId, HostPtr};
use stratalloc::error::{ConfigError, DriverError, Result};
use stratalloc::tier::{Evictable, PinGuard, TierStats};
use stratalloc::units::{ByteSize, DevicePtr, StreamId};
use stratalloc::{AllocRequest, Allocator, BlockState, DefragReport, DeviceSpec, PassLimits, PlanStats};

/// Every engine has one device.
const DEVICE: usize = 0;

/// The environment variable that configures the allocator.
pub const CONF_VARIABLE: &str = "STRATALLOC_CONF";

/// What the software device's driver calls cost, in virtual time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Latency {
    /// As measured on A100s with 2 MiB pages.
    #[default]
    A100,
    /// As measured by this project on an H100: each mapping costs when access to it is set, and when it ends.
    H100,
    /// As in a study that spaced the calls: dear to create, cheap to map.
    #[value(name = "studyA")]
    StudyA,
    /// Nothing.
    Off,
}

/// The device and the configuration of an [`Engine`].
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Which device. What only the software device has (latency, lag, checker, seed) is nothing on another.
    pub target: Target,
    /// The memory of the software device, in bytes; of another, the most to hold, or 0 for all of it.
    pub capacity: u64,
    /// The cost of its driver calls.
    pub latency: Latency,
    /// How long after its work is done an event is seen to complete, in virtual nanoseconds.
    pub event_lag_ns: u64,
    /// Whether it checks the order of accesses.
    pub checker: bool,
    /// The seed of all that it chooses.
    pub seed: u64,
    /// Whether the calls that the allocator makes do nothing, so that its own time can be taken.
    pub bare: bool,
    /// Whether its memory has contents, which takes memory of the host.
    pub contents: bool,
    /// The allocator's configuration, as from [`configuration`].
    pub config: String,
    /// A plan from an earlier run.
    pub plan: Option<Vec<u8>>,
}

/// How often each driver call was made and how long it took, by its CUDA name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls(pub BTreeMap<&'static str, Call>);

/// The uses of one driver call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Call {
    /// How often.
    pub count: u64,
    /// How long altogether, on the driver's own clock, waits included.
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

    /// What those took that wait for work of the device and do nothing else.
    fn wait_ns(&self) -> u64 {
        let waits = ["cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize"];
        waits.map(|name| self.0.get(name).map_or(0, |call| call.time_ns)).iter().sum()
    }

    /// Those that wait for all work of the device. The real driver's frees do as well.
    pub fn device_waits(&self) -> u64 {
        ["cuCtxSynchronize", "cuMemFree", "cuMemFreeHost"].map(|name| self.count(name)).iter().sum()
    }

    /// Those that wait for one stream or event.
    pub fn stream_waits(&self) -> u64 {
        ["cuStreamSynchronize", "cuEventSynchronize"].map(|name| self.count(name)).iter().sum()
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

/// What an allocator has spent on its device. Times are the device's: virtual on the software device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spent {
    /// Driver calls.
    pub calls: Calls,
    /// What they cost, without waits.
    pub driver_ns: u64,
    /// How long the host was blocked in waits.
    pub stall_ns: u64,
    /// The device's clock.
    pub clock_ns: u64,
}

impl Sub<&Spent> for &Spent {
    type Output = Spent;

    /// What was spent since `earlier`.
    fn sub(self, earlier: &Spent) -> Spent {
        Spent {
            calls: &self.calls - &earlier.calls,
            driver_ns: self.driver_ns - earlier.driver_ns,
            stall_ns: self.stall_ns - earlier.stall_ns,
            clock_ns: self.clock_ns - earlier.clock_ns,
        }
    }
}

/// What [`Engine::defragment`] found and did.
#[derive(Debug, Clone, Copy)]
pub struct Defragmented {
    /// Requested bytes.
    pub live: u64,
    /// Physical memory held before, without what lay free in whole chunks.
    pub reserved: u64,
    /// Bytes of live blocks of up to 64 KiB.
    pub small_live: u64,
    /// What was done.
    pub report: DefragReport,
}

/// Whether a trace's program reads or also writes the memory that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Writes only, as the first use of new memory does.
    Write,
    /// Reads, then writes.
    ReadWrite,
}

/// One allocator over one device: a software device, which keeps addresses only unless contents are wanted, or a GPU.
#[derive(Debug)]
pub struct Engine {
    allocator: Allocator,
    driver: Arc<dyn Driver>,
    /// The same device, if it is a software device.
    soft: Option<Arc<SoftDevice>>,
    /// What kernels of a GPU work with.
    gpu: Option<Gpu>,
}

/// An event that orders streams, and a sum that nobody looks at.
#[derive(Debug)]
struct Gpu {
    event: EventId,
    sum: HostPtr,
}

/// What a GPU's kernels write.
const FILL: u32 = 0x5a5a_5a5a;

impl Engine {
    /// An allocator on a device, which is fresh if it is a software device.
    pub fn open(setup: &Setup) -> Result<Engine> {
        let mut config = Config::parse(&setup.config)?;
        let (driver, soft): (Arc<dyn Driver>, _) = match setup.target {
            Target::Software => {
                let soft = software(setup)?;
                (soft.clone(), Some(soft))
            }
            Target::Cuda(ordinal) => {
                let driver = CudaDriver::open(ordinal)?;
                if setup.capacity > 0 {
                    // A limit among the settings holds as well, as it does on a software device.
                    let total = driver.properties().total_memory;
                    let limit = config.limit.map_or(total, |limit| limit.bytes(total)).min(setup.capacity);
                    config.limit = Some(Limit::Bytes(ByteSize(limit)));
                }
                (driver, None)
            }
        };
        let used: Arc<dyn Driver> = if setup.bare { Arc::new(BareDriver::new(driver.clone())) } else { driver.clone() };
        let allocator = Allocator::builder().device(DeviceSpec::Driver(used)).config(config).build()?;
        if let Some(plan) = &setup.plan {
            allocator.import_plan(DEVICE, plan)?;
        }
        let gpu = match soft {
            Some(_) => None,
            None => Some(Gpu { event: driver.create_event()?, sum: driver.alloc_host(size_of::<u64>() as u64)? }),
        };
        Ok(Engine { allocator, driver, soft, gpu })
    }

    /// Says that a step begins.
    pub fn step(&self) {
        self.allocator.step();
    }

    /// What plans have done.
    pub fn plan_stats(&self) -> Result<PlanStats> {
        self.allocator.plan_stats(DEVICE)
    }

    /// The plan, for a later run; none where plans are off.
    pub fn export_plan(&self) -> Option<Vec<u8>> {
        self.allocator.export_plan(DEVICE).ok()
    }

    /// A new stream of the device.
    pub fn create_stream(&self) -> Result<StreamId> {
        Ok(self.driver.create_stream()?)
    }

    /// Allocates.
    #[inline]
    pub fn alloc(&self, bytes: u64, stream: StreamId) -> Result<DevicePtr> {
        self.allocator.raw_alloc(AllocRequest::new(bytes).stream(stream))
    }

    /// Frees.
    #[inline]
    pub fn free(&self, ptr: DevicePtr) -> Result<()> {
        self.allocator.raw_free(ptr)
    }

    /// Says that a block is used on another stream than its own.
    #[inline]
    pub fn record_stream(&self, ptr: DevicePtr, stream: StreamId) -> Result<()> {
        self.allocator.record_stream(ptr, stream)
    }

    /// Allocates a block that may leave the device.
    pub fn alloc_evictable(&self, bytes: u64, stream: StreamId) -> Result<DevicePtr> {
        self.allocator.alloc_evictable(AllocRequest::new(bytes).stream(stream), Evictable::default())
    }

    /// Has such a block there for a stream, and keeps it there.
    pub fn pin(&self, ptr: DevicePtr, stream: StreamId) -> Result<PinGuard> {
        self.allocator.pin(ptr, stream)
    }

    /// What tiers have done.
    pub fn tier_stats(&self) -> Result<TierStats> {
        self.allocator.tier_stats(DEVICE)
    }

    /// Writes contents, in the order of a stream.
    pub fn write(&self, ptr: DevicePtr, bytes: &[u8], stream: StreamId) -> Result<()> {
        Ok(self.driver.write(ptr, bytes, stream)?)
    }

    /// Reads contents, in the order of a stream.
    pub fn read(&self, ptr: DevicePtr, len: u64, stream: StreamId) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.driver.read(&mut bytes, ptr, stream)?;
        Ok(bytes)
    }

    /// Gives cached memory back to the driver.
    pub fn empty_cache(&self) -> Result<()> {
        self.allocator.empty_cache(DEVICE).map(drop)
    }

    /// Waits for the device, gives cached memory back, and lets pages of small blocks share memory.
    pub fn defragment(&self) -> Result<Defragmented> {
        self.empty_cache()?;
        let stats = self.allocator.stats(DEVICE)?;
        let snapshot = self.allocator.snapshot(DEVICE)?;
        let blocks = snapshot.segments.iter().flat_map(|segment| &segment.blocks);
        let small = blocks.filter(|block| block.state == BlockState::Live && block.size <= CLASS_SIZE_MAX);
        let small_live = small.map(|block| block.size).sum();
        let report = self.allocator.quiesce(DEVICE)?.defragment(PassLimits::default())?;
        Ok(Defragmented { live: stats.live.current, reserved: stats.reserved.current, small_live, report })
    }

    /// The most physical memory held so far.
    pub fn peak_reserved_bytes(&self) -> Result<u64> {
        Ok(self.allocator.stats(DEVICE)?.reserved.peak)
    }

    /// The most requested bytes that were live at one time so far.
    pub fn peak_live_bytes(&self) -> Result<u64> {
        Ok(self.allocator.stats(DEVICE)?.live.peak)
    }

    /// Host memory that the allocator knows to have touched for its own book-keeping.
    pub fn metadata_bytes(&self) -> Result<u64> {
        Ok(self.allocator.stats(DEVICE)?.metadata)
    }

    /// All driver calls so far.
    pub fn driver_calls(&self) -> Calls {
        let calls = self.allocator.driver(DEVICE).expect("opened with this device").calls();
        let call = |tally: Tally| Call { count: tally.count, time_ns: tally.time_ns };
        let called = CallKind::ALL.iter().map(|&kind| (kind.name(), calls.of(kind)));
        Calls(called.filter(|(_, tally)| tally.count > 0).map(|(name, tally)| (name, call(tally))).collect())
    }

    /// What has been spent so far.
    pub fn spent(&self) -> Spent {
        let calls = self.driver_calls();
        let clock_ns = self.driver.clock_ns();
        match &self.soft {
            Some(soft) => Spent { calls, driver_ns: soft.charged_ns(), stall_ns: soft.stall_ns(), clock_ns },
            None => {
                let stall_ns = calls.wait_ns();
                Spent { driver_ns: calls.total().time_ns - stall_ns, stall_ns, calls, clock_ns }
            }
        }
    }

    /// Lets virtual time pass, as if the host were busy.
    pub fn advance_clock(&self, ns: u64) {
        if let Some(soft) = &self.soft {
            soft.advance_clock(ns);
        }
    }

    // ---- for the checker -----------------------------------------------------------------------------------------

    /// Tells the checker that the program was given this block: after the fact.
    pub fn note_alloc(&self, ptr: DevicePtr, bytes: u64, stream: StreamId) {
        if let Some(soft) = &self.soft {
            soft.note_alloc(ptr, bytes, stream);
        }
    }

    /// Tells the checker that the program gives this block up: before the fact.
    pub fn note_free(&self, ptr: DevicePtr, bytes: u64) {
        if let Some(soft) = &self.soft {
            soft.note_free(ptr, bytes);
        }
    }

    /// Submits a kernel to `stream` that uses the block. On the software device that costs the host nothing, and the kernel takes `ns` of
    /// virtual time; on a GPU it writes the whole block, or reads it, and both take what they take.
    pub fn launch(&self, stream: StreamId, ptr: DevicePtr, bytes: u64, how: Use, ns: u64) -> Result<()> {
        let (read, write) = (Access::read(ptr, bytes), Access::write(ptr, bytes));
        match (&self.soft, &self.gpu, how) {
            (Some(soft), _, Use::Write) => soft.keep_busy(stream, &[write], ns)?,
            (Some(soft), _, Use::ReadWrite) => soft.keep_busy(stream, &[read, write], ns)?,
            (None, Some(gpu), Use::ReadWrite) => self.driver.checksum(ptr, bytes, gpu.sum, stream)?,
            (None, ..) => self.driver.fill_words(ptr, bytes, FILL, stream)?,
        }
        Ok(())
    }

    /// Makes later work of `stream` wait for all work so far of `other`. For one thread: all share an event.
    pub fn wait_for(&self, stream: StreamId, other: StreamId) -> Result<()> {
        match (&self.soft, &self.gpu) {
            (Some(soft), _) => soft.order_after(stream, other)?,
            (None, Some(gpu)) => {
                self.driver.record_event(gpu.event, other)?;
                self.driver.wait_event(stream, gpu.event)?;
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Waits until the device has done all that it was given.
    pub fn finish(&self) -> Result<()> {
        Ok(self.driver.synchronize_device()?)
    }

    /// What the checker found.
    pub fn reports(&self) -> Vec<String> {
        self.soft.iter().flat_map(|soft| soft.reports()).map(|report| report.to_string()).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(gpu) = &self.gpu else { return };
        // A device that fails now has failed before, and said so.
        let _ = self.driver.synchronize_device();
        let _ = self.driver.free_host(gpu.sum);
        let _ = self.driver.destroy_event(gpu.event);
    }
}

fn software(setup: &Setup) -> Result<Arc<SoftDevice>> {
    let soft = SoftDevice::builder(setup.capacity)
        .backing(if setup.contents { Backing::Memfd } else { Backing::AddressesOnly })
        .latency(match setup.latency {
            Latency::A100 => LatencyModel::A100,
            Latency::H100 => LatencyModel::H100,
            Latency::StudyA => LatencyModel::StudyA,
            Latency::Off => LatencyModel::Off,
        })
        .event_lag_ns(setup.event_lag_ns)
        .checker(setup.checker)
        .seed(setup.seed)
        .build()?;
    Ok(soft)
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
    Config::parse(text).map(|config| config.to_string())
}

/// A CUDA device and its free memory in bytes, by its ordinal.
pub fn cuda_device(ordinal: u32) -> std::result::Result<(DeviceProperties, u64), DriverError> {
    let device = CudaDriver::open(ordinal)?;
    Ok((device.properties().clone(), device.memory_info()?.free))
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
