//! How an allocator comes into being.

use std::sync::Arc;

use super::Allocator;
use super::tiers::{self, OwnTier};
use crate::cache::DeviceCache;
use crate::config::{Config, TierList, TierSpec};
use crate::driver::Driver;
use crate::driver::soft::SoftDevice;
use crate::error::Result;
use crate::tier::{Tier, TierKind};
use crate::units::ByteSize;

/// Memory of the software device that [`DeviceSpec::Auto`] makes where there is no GPU.
const AUTO_SOFTWARE: ByteSize = ByteSize::gib(16);

/// A device to allocate on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The first CUDA device, or a software device of 16 GiB where there is none.
    Auto,
    /// The CUDA device with this ordinal.
    Cuda(u32),
    /// A software device with so much memory, which costs only what is touched.
    Software(ByteSize),
    /// Any driver.
    Driver(Arc<dyn Driver>),
}

impl DeviceSpec {
    /// Opens the device.
    pub fn open(&self) -> Result<Arc<dyn Driver>> {
        match self {
            DeviceSpec::Driver(driver) => Ok(driver.clone()),
            DeviceSpec::Software(size) => Ok(SoftDevice::builder(size.0).build()?),
            DeviceSpec::Cuda(ordinal) => open_cuda(*ordinal),
            DeviceSpec::Auto => open_cuda(0).or_else(|_| DeviceSpec::Software(AUTO_SOFTWARE).open()),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: u32) -> Result<Arc<dyn Driver>> {
    Ok(crate::driver::cuda::CudaDriver::open(ordinal)?)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_ordinal: u32) -> Result<Arc<dyn Driver>> {
    use crate::error::{DriverError, DriverErrorKind};
    Err(DriverError::new(DriverErrorKind::LibraryMissing, "cuInit", "built without the feature 'cuda'").into())
}

/// Chooses devices and configuration. Without a device, [`DeviceSpec::Auto`]; without a configuration, the defaults.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Builder {
    devices: Vec<DeviceSpec>,
    config: Config,
    tiers: Vec<OwnTier>,
}

impl Builder {
    /// Adds a device. They are numbered from 0 in the order given.
    pub fn device(mut self, device: DeviceSpec) -> Builder {
        self.devices.push(device);
        self
    }

    /// Sets the configuration, for all devices.
    pub fn config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// Gives each device these tiers, the fastest first, instead of those that the configuration names.
    pub fn tiers(mut self, tiers: impl IntoIterator<Item = TierSpec>) -> Builder {
        self.config.tiers = TierList { specs: tiers.into_iter().collect() };
        self
    }

    /// Gives a device a tier of the user's own, after those that the configuration names.
    pub fn tier(mut self, device: usize, kind: TierKind, tier: Arc<dyn Tier>) -> Builder {
        self.tiers.push(OwnTier { device, tier, kind });
        self
    }

    /// Opens the devices. Takes no memory from them yet.
    pub fn build(self) -> Result<Allocator> {
        // One put together by hand may hold anything: the parser knows what is allowed.
        Config::parse(&self.config.to_string())?;
        let specs = if self.devices.is_empty() { vec![DeviceSpec::Auto] } else { self.devices };
        let open = |(ordinal, spec): (usize, &DeviceSpec)| -> Result<Arc<DeviceCache>> {
            DeviceCache::new(ordinal, spec.open()?, &self.config)
        };
        let devices = specs.iter().enumerate().map(open).collect::<Result<Vec<_>>>()?;
        let tiers = tiers::open(&devices, &self.config, &self.tiers)?;
        Ok(Allocator::new(devices, &self.config, tiers))
    }
}
