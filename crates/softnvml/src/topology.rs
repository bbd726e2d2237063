//! Links between devices. The software device has none, and says so as a board without NVLink does.

use std::ffi::{c_int, c_uint};

use crate::device::{Device, PciInfo, index};
use crate::{Error, nvml, write};

/// `nvmlGpuP2PStatus_t`.
const P2P_OK: c_int = 0;

/// `nvmlGpuFabricInfo_t`; later versions begin with their version and go on.
#[repr(C)]
struct FabricInfo {
    cluster: [u8; 16],
    status: c_int,
    clique: c_uint,
    state: u8,
}

impl FabricInfo {
    /// A board without a fabric.
    const NONE: FabricInfo = FabricInfo { cluster: [0; 16], status: 0, clique: 0, state: 0 };
}

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

    fn nvmlDeviceGetGpuFabricInfo(device: Device, info: *mut FabricInfo) {
        index(device)?;
        write(info, FabricInfo::NONE)
    }

    // The caller says in the first field which version of the structure it has, and how large that is.
    fn nvmlDeviceGetGpuFabricInfoV(device: Device, info: *mut c_uint) {
        index(device)?;
        if info.is_null() {
            return Err(Error::INVALID_ARGUMENT);
        }
        let size = (info.read() & 0x00ff_ffff) as usize;
        if !(size_of::<FabricInfo>()..=64).contains(&size) {
            return Err(Error::VERSION_MISMATCH);
        }
        // All of it 0 is: no cluster, no clique, not supported.
        info.add(1).cast::<u8>().write_bytes(0, size - size_of::<c_uint>());
        Ok(())
    }

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
