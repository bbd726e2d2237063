//! Functions for replays, beside CUDA's: work that takes virtual time, the host's own time, and what of it was spent on what.
//! `include/softcuda.h` declares them.

use std::ffi::c_char;

use stratalloc::driver::Driver;
use stratalloc::driver::soft::SoftDevice;

use crate::abi::codes::{Code, Res};
use crate::abi::pointers::In;
use crate::export::all;
use crate::process;
use crate::process::devices::{self, code_of};
use crate::stream::streams;

/// Submits work that takes `ns` of virtual time to a stream. 0, or a `CUresult`.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_busy(stream: usize, ns: u64) -> i32 {
    result(|| {
        process::check_ready()?;
        let stream = streams::for_work(stream)?;
        if stream.is_capturing() {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        stream.device.soft.keep_busy(stream.soft, &[], ns).map_err(code_of)
    })
}

/// Lets `ns` of the host's own virtual time pass, on all devices. 0, or a `CUresult`.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_advance(ns: u64) -> i32 {
    result(|| {
        process::get()?.devices.iter().for_each(|device| device.soft.advance_clock(ns));
        Ok(())
    })
}

/// A device's virtual time, in nanoseconds. 0 for a device that is not there, as the functions below.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_clock_ns(device: i32) -> u64 {
    of_device(device, |soft| soft.clock_ns())
}

/// Virtual time that the host was blocked in waits.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_stall_ns(device: i32) -> u64 {
    of_device(device, SoftDevice::stall_ns)
}

/// Virtual time that calls have cost by the latency model, without waits.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_driver_ns(device: i32) -> u64 {
    of_device(device, SoftDevice::charged_ns)
}

/// How often a function was called: all versions of it, with either default stream.
#[unsafe(no_mangle)]
pub extern "C" fn softcuda_calls(device: i32, name: *const c_char) -> u64 {
    let Ok(name) = In(name).text() else { return 0 };
    of_device(device, |_| all().iter().filter(|entry| means(&name, entry.name)).map(|entry| entry.calls.get()).sum())
}

/// Whether a name without version means this function, or one with its version does.
fn means(name: &str, function: &str) -> bool {
    let function = function.trim_end_matches("_ptsz").trim_end_matches("_ptds");
    let base = match function.rsplit_once("_v") {
        Some((base, version)) if version.parse::<u8>().is_ok() => base,
        _ => function,
    };
    name == function || name == base
}

fn of_device(ordinal: i32, ask: impl FnOnce(&SoftDevice) -> u64) -> u64 {
    devices::by_ordinal(ordinal).map_or(0, |device| ask(&device.soft))
}

fn result(body: impl FnOnce() -> Res) -> i32 {
    match body() {
        Ok(()) => 0,
        Err(Code(code)) => code as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::means;

    #[test]
    fn a_name_means_all_versions_of_a_function() {
        for function in ["cuMemFree", "cuMemFree_v2"] {
            assert!(means("cuMemFree", function), "{function}");
        }
        assert!(means("cuStreamSynchronize", "cuStreamSynchronize_ptsz"));
        assert!(means("cuMemcpyHtoDAsync", "cuMemcpyHtoDAsync_v2_ptsz"));
        assert!(means("cuMemFree_v2", "cuMemFree_v2") && !means("cuMemFree_v2", "cuMemFree"));
        assert!(!means("cuMemFree", "cuMemFreeAsync") && !means("cuMem", "cuMemFree"));
    }
}
