//! How a software device is set up.

use std::sync::Arc;

use super::SoftDevice;
use super::latency::LatencyModel;
use super::memory::{Memory, Rules};
use super::ranges::Window;
use super::store::{HOST_PAGE, Store};
use crate::driver::{DeviceProperties, DriverError, DriverErrorKind, DriverResult};
use crate::units::{ByteSize, PAGE};

/// What lies behind a device's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// A sparse memory file, mapped as chunks are: addresses are host addresses, copies move bytes, aliases are real.
    /// Takes only the memory that is written. Linux limits a process to 65,530 mappings.
    #[default]
    Memfd,
    /// Nothing: addresses are numbers, and copies feed only the checker and the clock. For replays.
    AddressesOnly,
}

/// What calls need to know of the set-up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) latency: LatencyModel,
    pub(super) tails: bool,
    pub(super) checker: bool,
    pub(super) real_time: bool,
    pub(super) event_lag_ns: u64,
    pub(super) host_clock: bool,
}

/// Sets a [`SoftDevice`] up. See [`SoftDevice::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct SoftDeviceBuilder {
    ordinal: u32,
    host_node: Option<u32>,
    backing: Backing,
    rules: Rules,
    settings: Settings,
}

impl SoftDeviceBuilder {
    pub(super) fn new(capacity: u64) -> SoftDeviceBuilder {
        SoftDeviceBuilder {
            ordinal: 0,
            host_node: None,
            backing: Backing::default(),
            rules: Rules {
                capacity,
                granularity: PAGE,
                vmm: true,
                partial_mapping: false,
                max_mappings: u64::MAX,
                peer_access: true,
            },
            settings: Settings {
                seed: 0,
                latency: LatencyModel::Off,
                tails: false,
                checker: false,
                real_time: false,
                event_lag_ns: 0,
                host_clock: false,
            },
        }
    }

    /// The ordinal that the properties give. 0 by default.
    pub fn ordinal(mut self, ordinal: u32) -> Self {
        self.ordinal = ordinal;
        self
    }

    /// What lies behind the addresses. [`Backing::Memfd`] by default.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// The seed by which queued work gets on. 0, the default, is eager: all runs as soon as it may.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// What calls cost in virtual time. Nothing by default.
    pub fn latency(mut self, latency: LatencyModel) -> Self {
        self.settings.latency = latency;
        self
    }

    /// Whether `cuMemSetAccess` and `cuMemUnmap` sometimes stall for 2 ms of virtual time: 28 of 160 calls, by seed. Off by
    /// default, so that modelled time is that of the medians.
    pub fn tails(mut self, tails: bool) -> Self {
        self.settings.tails = tails;
        self
    }

    /// Whether there is virtual memory management. On by default; where off, its calls are not supported.
    pub fn vmm(mut self, vmm: bool) -> Self {
        self.rules.vmm = vmm;
        self
    }

    /// Whether a part of a chunk may be mapped. Off by default, as on devices with older drivers.
    pub fn partial_mapping(mut self, partial: bool) -> Self {
        self.rules.partial_mapping = partial;
        self
    }

    /// How many mappings may have access at a time; `set_access` fails beyond. No limit by default.
    pub fn max_mappings(mut self, max: Option<u64>) -> Self {
        self.rules.max_mappings = max.unwrap_or(u64::MAX);
        self
    }

    /// Whether memory of other devices can be reached. On by default; where off, `set_access` refuses it, as without P2P.
    pub fn peer_access(mut self, peer_access: bool) -> Self {
        self.rules.peer_access = peer_access;
        self
    }

    /// The host's NUMA node that the properties give. None by default.
    pub fn host_node(mut self, node: Option<u32>) -> Self {
        self.host_node = node;
        self
    }

    /// Whether the happens-before checker looks on. Off by default.
    pub fn checker(mut self, checker: bool) -> Self {
        self.settings.checker = checker;
        self
    }

    /// The unit of chunk sizes and mapping addresses. 2 MiB by default; tests that want many chunks take less.
    pub fn granularity(mut self, bytes: u64) -> Self {
        self.rules.granularity = bytes;
        self
    }

    /// Makes the clock the real one and lets all work run at once, at its real speed, for measurements of throughput. Seed,
    /// latency model, durations and event lag then have no effect. Off by default.
    pub fn real_time(mut self, real_time: bool) -> Self {
        self.settings.real_time = real_time;
        self
    }

    /// How long after its work is done the host sees an event complete, in virtual time. 0 by default.
    pub fn event_lag_ns(mut self, ns: u64) -> Self {
        self.settings.event_lag_ns = ns;
        self
    }

    /// Lets virtual time move with the host's clock as well: what a program computes between calls takes its time, and waiting
    /// still jumps to the end of the work. Order by seed then depends on how fast the host is. Off by default.
    pub fn host_clock(mut self, host_clock: bool) -> Self {
        self.settings.host_clock = host_clock;
        self
    }

    /// Builds the device.
    pub fn build(self) -> DriverResult<Arc<SoftDevice>> {
        const CALL: &str = "SoftDevice::build";
        let refuse = |detail: String| Err(DriverError::new(DriverErrorKind::InvalidValue, CALL, detail));
        let Rules { capacity, granularity, vmm, partial_mapping, .. } = self.rules;
        if capacity == 0 || capacity > 1 << 50 {
            return refuse(format!("a capacity of {capacity} bytes is not between 1 byte and 1024 TiB"));
        }
        if !granularity.is_power_of_two() || !(HOST_PAGE..=1 << 40).contains(&granularity) {
            return refuse(format!("granularity {granularity} is not a power of two of at least {HOST_PAGE}"));
        }
        let store = match self.backing {
            Backing::Memfd => Store::file()?,
            Backing::AddressesOnly => Store::Addresses(Window::new(capacity).ok_or_else(|| {
                let detail = format!("no addresses are left for a device of {}", ByteSize(capacity));
                DriverError::new(DriverErrorKind::OutOfMemory, CALL, detail)
            })?),
        };
        let properties = DeviceProperties {
            name: format!("stratalloc software device, {}", ByteSize(capacity)),
            ordinal: self.ordinal,
            total_memory: capacity,
            driver_version: 0,
            vmm,
            granularity,
            partial_mapping,
            host_node: self.host_node,
            software: true,
        };
        Ok(Arc::new(SoftDevice::new(properties, self.settings, Memory::new(self.rules, store))))
    }
}
