//! Links between devices. The software device has none, and says so as a board without NVLink does.

use std::ffi::{c_int, c_uint, c_void};

use crate::device::{Device, PciInfo, index};
use crate::{Error, nvml, write};

/// `nvmlGpuP2PStatus_t`.
const P2P_OK: c_int = 0;

nvml! {
    fn nvmlDeviceGetP2PStatus(device: Device, other: Device, _which: c_int, status: *mut c_int) {
        index(device)?;
        index(other)?;
        write(status, P2P_OK)
    }

    fn nvmlDeviceGetNvLinkState(device: Device, _link: c_uint, _state: *mut c_int) { without_links(device) }

    fn nvmlDeviceGetNvLinkVersion(device: Device, _link: c_uint, _version: *mut c_uint) { without_links(device) }

    fn nvmlDeviceGetNvLinkCapability(device: Device, _link: c_uint, _which: c_int, _has: *mut c_uint) {
        without_links(device)
    }

    fn nvmlDeviceGetNvLinkRemoteDeviceType(device: Device, _link: c_uint, _kind: *mut c_int) { without_links(device) }

    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Device, _link: c_uint, _info: *mut PciInfo) { without_links(device) }

    fn nvmlDeviceGetGpuFabricInfo(device: Device, _info: *mut c_void) { without_links(device) }

    fn nvmlDeviceGetGpuFabricInfoV(device: Device, _info: *mut c_void) { without_links(device) }

    fn nvmlDeviceGetTemperature(device: Device, _sensor: c_int, _degrees: *mut c_uint) { without_sensor(device) }

    fn nvmlDeviceGetPowerUsage(device: Device, _milliwatts: *mut c_uint) { without_sensor(device) }

    fn nvmlDeviceGetClockInfo(device: Device, _kind: c_int, _mhz: *mut c_uint) { without_sensor(device) }
}

fn without_links(device: Device) -> Result<(), Error> {
    index(device)?;
    Err(Error::NOT_SUPPORTED)
}

fn without_sensor(device: Device) -> Result<(), Error> {
    index(device)?;
    Err(Error::NOT_SUPPORTED)
}
