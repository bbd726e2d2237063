//! Memory in use, and who uses it.

use std::ffi::{c_uint, c_ulonglong};

use crate::device::{Device, index};
use crate::system::started;
use crate::{Error, Outcome, nvml, write};

/// `nvmlMemory_t`.
#[repr(C)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlUtilization_t`.
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
struct ProcessV1 {
    pid: c_uint,
    used: c_ulonglong,
}

/// `nvmlProcessInfo_v2_t` and `_v3`.
#[repr(C)]
struct Process {
    pid: c_uint,
    used: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// No instance of a divided device.
const NO_INSTANCE: c_uint = u32::MAX;

/// Bytes free and in all.
fn memory(device: Device) -> Result<(u64, u64), Error> {
    let device = index(device)?;
    started()?.memory(device)
}

/// Bytes that this process uses: a software device lives in one process, so it is the only one.
fn used(device: Device) -> Result<u64, Error> {
    let (free, total) = memory(device)?;
    Ok(total.saturating_sub(free))
}

/// The list of processes: this one if it uses memory. `count` holds the room, and then the length.
///
/// # Safety
/// `count` is null or valid for reads and writes, `out` is null or has the room that `count` says.
unsafe fn processes<T>(
    device: Device,
    count: *mut c_uint,
    out: *mut T,
    make: impl FnOnce(c_uint, u64) -> T,
) -> Outcome {
    if count.is_null() {
        return Err(Error::INVALID_ARGUMENT);
    }
    let used = used(device)?;
    let needed = c_uint::from(used > 0);
    // SAFETY: not null, and so valid.
    let room = unsafe { count.replace(needed) };
    if needed > room {
        return Err(Error::INSUFFICIENT_SIZE);
    }
    if needed == 0 {
        return Ok(());
    }
    // SAFETY: there is room for one.
    unsafe { write(out, make(std::process::id(), used)) }
}

nvml! {
    fn nvmlDeviceGetMemoryInfo(device: Device, out: *mut Memory) {
        let (free, total) = memory(device)?;
        write(out, Memory { total, free, used: total.saturating_sub(free) })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: Device, out: *mut MemoryV2) {
        const VERSION: c_uint = size_of::<MemoryV2>() as c_uint | (2 << 24);
        let Some(info) = out.as_mut() else { return Err(Error::INVALID_ARGUMENT) };
        if info.version != VERSION {
            return Err(Error::VERSION_MISMATCH);
        }
        let (free, total) = memory(device)?;
        *info = MemoryV2 { version: VERSION, total, reserved: 0, free, used: total.saturating_sub(free) };
        Ok(())
    }

    fn nvmlDeviceGetComputeRunningProcesses(device: Device, count: *mut c_uint, out: *mut ProcessV1) {
        processes(device, count, out, |pid, used| ProcessV1 { pid, used })
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(device: Device, count: *mut c_uint, out: *mut Process) {
        processes(device, count, out, process)
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(device: Device, count: *mut c_uint, out: *mut Process) {
        processes(device, count, out, process)
    }

    // No program draws on a software device.
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: Device, count: *mut c_uint, _out: *mut Process) {
        index(device)?;
        write(count, 0)
    }

    // Kernels take no time here.
    fn nvmlDeviceGetUtilizationRates(device: Device, out: *mut Utilization) {
        index(device)?;
        write(out, Utilization { gpu: 0, memory: 0 })
    }
}

fn process(pid: c_uint, used: u64) -> Process {
    Process { pid, used, gpu_instance: NO_INSTANCE, compute_instance: NO_INSTANCE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_nvmls_sizes() {
        assert_eq!(size_of::<Memory>(), 24);
        assert_eq!(size_of::<MemoryV2>(), 40);
        assert_eq!(size_of::<ProcessV1>(), 16);
        assert_eq!(size_of::<Process>(), 24);
    }
}
