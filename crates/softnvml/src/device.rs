//! Devices: their handles, and what they are called.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::driver::attribute;
use crate::system::started;
use crate::{Error, Outcome, nvml, write, write_text};

/// `nvmlDevice_t`: the device's index and one, so that none is null.
pub(crate) type Device = *mut c_void;

/// `nvmlPciInfo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PciInfo {
    legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    id: [c_char; 32],
}

/// PCI's number for an H100, which the software device resembles.
const PCI_DEVICE: c_uint = 0x2330_10de;

fn handle(index: u32) -> Device {
    std::ptr::without_provenance_mut(index as usize + 1)
}

/// The index of a device that a handle stands for.
pub(crate) fn index(device: Device) -> Result<u32, Error> {
    let count = started()?.count()?;
    let index = device.addr().checked_sub(1).and_then(|index| u32::try_from(index).ok());
    index.filter(|index| *index < count).ok_or(Error::INVALID_ARGUMENT)
}

fn by_index(index: u32) -> Result<Device, Error> {
    if index < started()?.count()? { Ok(handle(index)) } else { Err(Error::INVALID_ARGUMENT) }
}

/// The first device of which `is_it` holds.
fn find(is_it: impl Fn(u32) -> Result<bool, Error>) -> Result<Device, Error> {
    for index in 0..started()?.count()? {
        if is_it(index)? {
            return Ok(handle(index));
        }
    }
    Err(Error::NOT_FOUND)
}

/// The numbers of a PCI id, `domain:bus:device.function`; the domain may be short, the function missing.
fn pci_numbers(id: &str) -> Option<(u32, u32, u32)> {
    let id = id.trim();
    let mut parts = id.rsplit(':');
    let device = parts.next()?.split('.').next()?;
    let bus = parts.next()?;
    let domain = parts.next().unwrap_or("0");
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    Some((number(domain)?, number(bus)?, number(device)?))
}

/// # Safety
/// `text` is null or a C string.
unsafe fn argument<'a>(text: *const c_char) -> Result<&'a str, Error> {
    if text.is_null() {
        return Err(Error::INVALID_ARGUMENT);
    }
    // SAFETY: a C string, as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Error::INVALID_ARGUMENT)
}

/// # Safety
/// `id` is null or a C string, `out` null or valid for a write.
unsafe fn by_pci(id: *const c_char, out: *mut Device) -> Outcome {
    // SAFETY: as the caller promises.
    let wanted = pci_numbers(unsafe { argument(id)? }).ok_or(Error::INVALID_ARGUMENT)?;
    let driver = started()?;
    let found = find(|index| Ok(pci_numbers(&driver.pci_bus_id(index)?) == Some(wanted)))?;
    // SAFETY: as the caller promises.
    unsafe { write(out, found) }
}

fn pci_info(device: Device) -> Result<PciInfo, Error> {
    let id = started()?.pci_bus_id(index(device)?)?;
    let (domain, bus, number) = pci_numbers(&id).ok_or(Error::UNKNOWN)?;
    let mut info =
        PciInfo { legacy: [0; 16], domain, bus, device: number, device_id: PCI_DEVICE, subsystem_id: 0, id: [0; 32] };
    let fill = |place: &mut [c_char], text: String| {
        let room = place.len() - 1;
        for (to, from) in place.iter_mut().take(room).zip(text.bytes()) {
            *to = from as c_char;
        }
    };
    fill(&mut info.legacy, format!("{domain:04X}:{bus:02X}:{number:02X}.0"));
    fill(&mut info.id, format!("{domain:08X}:{bus:02X}:{number:02X}.0"));
    Ok(info)
}

nvml! {
    fn nvmlDeviceGetCount(count: *mut c_uint) { write(count, started()?.count()?) }

    fn nvmlDeviceGetCount_v2(count: *mut c_uint) { write(count, started()?.count()?) }

    fn nvmlDeviceGetHandleByIndex(index: c_uint, out: *mut Device) { write(out, by_index(index)?) }

    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut Device) { write(out, by_index(index)?) }

    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, out: *mut Device) {
        let wanted = argument(uuid)?;
        let driver = started()?;
        write(out, find(|index| Ok(driver.uuid(index)?.eq_ignore_ascii_case(wanted)))?)
    }

    fn nvmlDeviceGetHandleByPciBusId(id: *const c_char, out: *mut Device) { by_pci(id, out) }

    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, out: *mut Device) { by_pci(id, out) }

    fn nvmlDeviceGetIndex(device: Device, out: *mut c_uint) { write(out, index(device)?) }

    fn nvmlDeviceGetMinorNumber(device: Device, out: *mut c_uint) { write(out, index(device)?) }

    fn nvmlDeviceGetName(device: Device, name: *mut c_char, len: c_uint) {
        write_text(name, len, &started()?.name(index(device)?)?)
    }

    fn nvmlDeviceGetUUID(device: Device, uuid: *mut c_char, len: c_uint) {
        write_text(uuid, len, &started()?.uuid(index(device)?)?)
    }

    fn nvmlDeviceGetPciInfo(device: Device, info: *mut PciInfo) { write(info, pci_info(device)?) }

    fn nvmlDeviceGetPciInfo_v3(device: Device, info: *mut PciInfo) { write(info, pci_info(device)?) }

    fn nvmlDeviceGetCudaComputeCapability(device: Device, major: *mut c_int, minor: *mut c_int) {
        let index = index(device)?;
        write(major, started()?.attribute(attribute::MAJOR, index)?)?;
        write(minor, started()?.attribute(attribute::MINOR, index)?)
    }

    fn nvmlDeviceGetMemoryBusWidth(device: Device, width: *mut c_uint) {
        let bits = started()?.attribute(attribute::BUS_WIDTH, index(device)?)?;
        write(width, bits.unsigned_abs())
    }

    fn nvmlDeviceGetNumGpuCores(device: Device, cores: *mut c_uint) {
        // 128 to a multiprocessor since Ampere.
        let multiprocessors = started()?.attribute(attribute::MULTIPROCESSORS, index(device)?)?;
        write(cores, multiprocessors.unsigned_abs() * 128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_ids_are_read_in_every_form() {
        assert_eq!(pci_numbers("0000:1A:00.0"), Some((0, 0x1a, 0)));
        assert_eq!(pci_numbers("00000000:1a:00.0"), Some((0, 0x1a, 0)));
        assert_eq!(pci_numbers("1a:02"), Some((0, 0x1a, 2)));
        assert_eq!(pci_numbers("1a"), None);
        assert_eq!(pci_numbers("x:y:z.0"), None);
    }

    #[test]
    fn the_structure_has_nvmls_size() {
        assert_eq!(size_of::<PciInfo>(), 68);
    }
}
