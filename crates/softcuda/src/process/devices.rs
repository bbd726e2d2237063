//! Devices.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use stratalloc::driver::soft::SoftDevice;
use stratalloc::driver::{Driver, DriverError, DriverErrorKind};
use stratalloc::units::StreamId;

use super::attributes;
use super::contexts::Primary;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::abi::structs::{DevProp, OutText, Text, Uuid};
use crate::memory::account::Account;
use crate::memory::pools::Pools;
use crate::options::Options;
use crate::stream::streams::Stream;

/// A device, and everything of this process that belongs to it.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    pub(crate) soft: Arc<SoftDevice>,
    pub(crate) primary: Mutex<Primary>,
    /// The default stream.
    pub(crate) legacy: OnceLock<Arc<Stream>>,
    pub(crate) pools: Mutex<Pools>,
    pub(crate) account: Account,
    /// Captures under way on streams of this device, and those of them on streams that are ordered with the default one.
    pub(crate) captures: AtomicUsize,
    pub(crate) blocking_captures: AtomicUsize,
    /// Bytes of memory nodes in use by graphs, now and at most.
    pub(crate) graph_used: AtomicU64,
    pub(crate) graph_used_high: AtomicU64,
}

impl Device {
    pub(crate) fn new(ordinal: usize, options: &Options) -> Result<Device, DriverError> {
        let soft = SoftDevice::builder(options.memory)
            .ordinal(ordinal as u32)
            .backing(options.backing)
            .seed(options.seed)
            .latency(options.latency)
            .tails(options.tails)
            .vmm(options.vmm)
            .partial_mapping(options.partial_mapping)
            .max_mappings(options.max_mappings)
            .checker(options.checker)
            .event_lag_ns(options.event_lag_us * 1000)
            .host_clock(options.host_clock)
            .build()?;
        Ok(Device {
            ordinal,
            soft,
            primary: Mutex::default(),
            legacy: OnceLock::new(),
            pools: Mutex::default(),
            account: Account::default(),
            captures: AtomicUsize::new(0),
            blocking_captures: AtomicUsize::new(0),
            graph_used: AtomicU64::new(0),
            graph_used_high: AtomicU64::new(0),
        })
    }

    /// Waits for all work, without a look at captures.
    pub(crate) fn wait_idle(&self) -> Res {
        self.soft.synchronize_device().map_err(code_of)
    }

    /// Waits for a stream's work, without a look at captures.
    pub(crate) fn wait_stream(&self, stream: StreamId) -> Res {
        self.soft.synchronize_stream(stream).map_err(code_of)
    }
}

/// What the software device's errors are called by CUDA.
#[allow(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(crate) fn code_of(error: DriverError) -> Code {
    match error.kind {
        DriverErrorKind::OutOfMemory => Code::OUT_OF_MEMORY,
        DriverErrorKind::InvalidValue => Code::INVALID_VALUE,
        DriverErrorKind::InvalidHandle => Code::INVALID_HANDLE,
        DriverErrorKind::Capturing => Code::STREAM_CAPTURE_UNSUPPORTED,
        DriverErrorKind::NotSupported => Code::NOT_SUPPORTED,
        DriverErrorKind::Sticky => Code::ILLEGAL_ADDRESS,
        DriverErrorKind::NoDevice => Code::NO_DEVICE,
        _ => Code::UNKNOWN,
    }
}

/// The device with this ordinal, which is its handle as well.
pub(crate) fn by_ordinal(ordinal: i32) -> Res<&'static Device> {
    let devices = &super::get()?.devices;
    usize::try_from(ordinal).ok().and_then(|at| devices.get(at).copied()).ok_or(Code::INVALID_DEVICE)
}

pub(crate) fn count(count: Out<i32>) -> Res {
    count.set(super::get()?.devices.len() as i32)
}

pub(crate) fn get(device: Out<i32>, ordinal: i32) -> Res {
    device.check()?;
    by_ordinal(ordinal)?;
    device.set(ordinal)
}

pub(crate) fn name(name: OutText, length: i32, device: i32) -> Res {
    name.check()?;
    by_ordinal(device)?;
    name.set_text("stratalloc software device", length)
}

pub(crate) fn uuid(uuid: Out<Uuid>, device: i32) -> Res {
    uuid.check()?;
    let mut bytes = *b"stratalloc-soft\0";
    bytes[15] = by_ordinal(device)?.ordinal as u8;
    uuid.set(Uuid(bytes))
}

pub(crate) fn luid(_luid: OutText, _mask: Out<u32>, device: i32) -> Res {
    by_ordinal(device)?;
    // Only Windows has these.
    Err(Code::NOT_SUPPORTED)
}

pub(crate) fn total_memory(bytes: Out<usize>, device: i32) -> Res {
    bytes.check()?;
    bytes.set(by_ordinal(device)?.soft.properties().total_memory as usize)
}

pub(crate) fn total_memory_v1(bytes: Out<u32>, device: i32) -> Res {
    bytes.check()?;
    let total = by_ordinal(device)?.soft.properties().total_memory;
    bytes.set(u32::try_from(total).unwrap_or(u32::MAX))
}

pub(crate) fn attribute(value: Out<i32>, attribute: u32, device: i32) -> Res {
    value.check()?;
    let device = by_ordinal(device)?;
    value.set(attributes::value(attribute, device).ok_or(Code::INVALID_VALUE)?)
}

pub(crate) fn compute_capability(major: Out<i32>, minor: Out<i32>, device: i32) -> Res {
    by_ordinal(device)?;
    major.check()?;
    minor.check()?;
    major.set(9)?;
    minor.set(0)
}

pub(crate) fn properties(properties: Out<DevProp>, device: i32) -> Res {
    properties.check()?;
    let device = by_ordinal(device)?;
    let get = |attribute| attributes::value(attribute, device).unwrap_or(0);
    properties.set(DevProp {
        threads_per_block: get(1),
        block: [get(2), get(3), get(4)],
        grid: [get(5), get(6), get(7)],
        shared_per_block: get(8),
        constant_memory: get(9),
        simd_width: get(10),
        pitch: get(11),
        registers: get(12),
        clock_rate: get(13),
        texture_align: get(14),
    })
}

fn pci_text(device: &Device) -> String {
    format!("0000:{:02X}:00.0", 1 + device.ordinal)
}

pub(crate) fn pci_bus_id(text: OutText, length: i32, device: i32) -> Res {
    text.check()?;
    text.set_text(&pci_text(by_ordinal(device)?), length)
}

pub(crate) fn by_pci_bus_id(device: Out<i32>, text: Text) -> Res {
    device.check()?;
    let wanted = text.text()?;
    let found = super::get()?.devices.iter().find(|found| {
        let own = pci_text(found);
        [own.as_str(), own.trim_end_matches(".0"), own.trim_start_matches("0000:")]
            .iter()
            .any(|form| form.eq_ignore_ascii_case(&wanted))
    });
    device.set(found.ok_or(Code::INVALID_VALUE)?.ordinal as i32)
}

pub(crate) fn can_access_peer(can: Out<i32>, device: i32, peer: i32) -> Res {
    can.check()?;
    let (device, peer) = (by_ordinal(device)?, by_ordinal(peer)?);
    can.set(i32::from(device.ordinal != peer.ordinal))
}

/// Performance rank, access, native atomics, access from arrays: all devices reach each other alike.
pub(crate) fn p2p_attribute(value: Out<i32>, attribute: u32, source: i32, destination: i32) -> Res {
    value.check()?;
    let (source, destination) = (by_ordinal(source)?, by_ordinal(destination)?);
    if source.ordinal == destination.ordinal {
        return Err(Code::INVALID_DEVICE);
    }
    match attribute {
        1 => value.set(0),
        2..=4 => value.set(1),
        _ => Err(Code::INVALID_VALUE),
    }
}

pub(crate) fn texture_width(width: Out<usize>, _format: u32, _channels: u32, device: i32) -> Res {
    width.check()?;
    by_ordinal(device)?;
    width.set(1 << 28)
}

pub(crate) fn exec_affinity_support(value: Out<i32>, _kind: u32, device: i32) -> Res {
    value.check()?;
    by_ordinal(device)?;
    value.set(0)
}
