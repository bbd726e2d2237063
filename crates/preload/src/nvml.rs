//! NVML's memory figures, for monitoring inside the process: they agree with what the driver hooks say.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::abi::{CUdevice, Opaque, SUCCESS, Status, nvmlMemory_t, nvmlMemory_v2_t};
use crate::guard;
use crate::hooks::{info, learn_total};
use crate::resolve;
use crate::state::Shim;

/// Every interposed function of NVML.
pub(crate) const NAMES: [&str; 2] = ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"];

/// `NVML_ERROR_FUNCTION_NOT_FOUND`.
const MISSING: Status = 13;

type Info = unsafe extern "C" fn(Opaque, *mut c_void) -> Status;
type Text = unsafe extern "C" fn(Opaque, *mut u8, c_uint) -> Status;
type Index = unsafe extern "C" fn(Opaque, *mut c_uint) -> Status;

/// A function of the NVML that the program has loaded, or 0. Kept in `kept`.
fn real(kept: &AtomicUsize, name: &str) -> usize {
    let known = kept.load(Relaxed);
    if known != 0 {
        return known;
    }
    let names = [c"libnvidia-ml.so.1", c"libnvidia-ml.so"];
    let found = names.into_iter().find_map(resolve::loaded_library).map_or(0, |l| resolve::find_in(l, name) as usize);
    kept.store(found, Relaxed);
    found
}

static INFO: AtomicUsize = AtomicUsize::new(0);
static INFO_V2: AtomicUsize = AtomicUsize::new(0);
static UUID: AtomicUsize = AtomicUsize::new(0);
static INDEX: AtomicUsize = AtomicUsize::new(0);

/// The hook in place of a function of NVML, or the function itself where it is none.
pub(crate) fn hook_of(found: *mut c_void) -> usize {
    let found = found as usize;
    if found == 0 {
        return 0;
    }
    if found == real(&INFO, NAMES[0]) {
        return nvmlDeviceGetMemoryInfo as *const () as usize;
    }
    if found == real(&INFO_V2, NAMES[1]) { nvmlDeviceGetMemoryInfo_v2 as *const () as usize } else { found }
}

/// What a device's memory looks like, from NVML's figures: free and total.
fn seen(device: Opaque, free: u64, total: u64) -> (u64, u64) {
    let Some(shim) = resolve::driver().map(Shim::get).filter(|_| !guard::is_orphan()) else {
        return (free, total);
    };
    match ordinal_of(shim, device) {
        Some(ordinal) if shim.ledger.is_limited() => {
            // A part of what CUDA says there is, which is a little less than NVML's figure: both are to name one limit.
            learn_total(shim, ordinal);
            let known = shim.ledger.total(ordinal);
            info::seen(shim, ordinal, free, if known > 0 { known } else { total })
        }
        Some(ordinal) => info::seen(shim, ordinal, free, total),
        None => {
            let limit = shim.ledger.limit_of(total).min(total);
            (free.min(limit), limit)
        }
    }
}

/// CUDA's ordinal of NVML's device, told by its UUID. Where that cannot be had, by its index.
fn ordinal_of(shim: &Shim, device: Opaque) -> Option<usize> {
    let mut count: c_int = 0;
    // SAFETY: the pointer is to a local.
    if unsafe { shim.driver.cuDeviceGetCount(&mut count) } != SUCCESS {
        return None;
    }
    let count = usize::try_from(count).ok()?;
    match uuid_of(device) {
        Some(uuid) => (0..count).find(|&ordinal| {
            let mut own = [0u8; 16];
            // SAFETY: the pointer is to a local of 16 bytes.
            let code = unsafe { shim.driver.cuDeviceGetUuid_v2(&mut own, ordinal as CUdevice) };
            code == SUCCESS && own == uuid
        }),
        None => {
            let found = real(&INDEX, "nvmlDeviceGetIndex");
            if found == 0 {
                return None;
            }
            let mut index: c_uint = 0;
            // SAFETY: the function is NVML's of that name, the pointer is to a local.
            let code = unsafe { std::mem::transmute::<usize, Index>(found)(device, &mut index) };
            (code == 0 && (index as usize) < count).then_some(index as usize)
        }
    }
}

/// A device's UUID in bytes, from its text: `GPU-` and 32 digits in five groups.
fn uuid_of(device: Opaque) -> Option<[u8; 16]> {
    let found = real(&UUID, "nvmlDeviceGetUUID");
    if found == 0 {
        return None;
    }
    let mut text = [0u8; 96];
    // SAFETY: the function is NVML's of that name; the buffer is valid for the length that is given.
    let code = unsafe { std::mem::transmute::<usize, Text>(found)(device, text.as_mut_ptr(), text.len() as c_uint) };
    if code != 0 {
        return None;
    }
    parse_uuid(CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?)
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.strip_prefix("GPU-")?.bytes().filter(|byte| *byte != b'-').collect();
    if digits.len() != 32 {
        return None;
    }
    let mut uuid = [0u8; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

/// # Safety
/// As for the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(non_snake_case, reason = "C's name")]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device: Opaque, memory: *mut nvmlMemory_t) -> Status {
    guard::caught(|| {
        let found = real(&INFO, NAMES[0]);
        if found == 0 {
            return MISSING;
        }
        // SAFETY: the function is NVML's of that name, the arguments are the program's own.
        let code = unsafe { std::mem::transmute::<usize, Info>(found)(device, memory.cast()) };
        if code == 0
            // SAFETY: NVML has written there.
            && let Some(memory) = unsafe { memory.as_mut() }
        {
            (memory.free, memory.total) = seen(device, memory.free, memory.total);
            memory.used = memory.total.saturating_sub(memory.free);
        }
        code
    })
}

/// # Safety
/// As for the C function.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(non_snake_case, reason = "C's name")]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Opaque, memory: *mut nvmlMemory_v2_t) -> Status {
    guard::caught(|| {
        let found = real(&INFO_V2, NAMES[1]);
        if found == 0 {
            return MISSING;
        }
        // SAFETY: the function is NVML's of that name, the arguments are the program's own.
        let code = unsafe { std::mem::transmute::<usize, Info>(found)(device, memory.cast()) };
        if code == 0
            // SAFETY: NVML has written there.
            && let Some(memory) = unsafe { memory.as_mut() }
        {
            (memory.free, memory.total) = seen(device, memory.free, memory.total);
            memory.reserved = memory.reserved.min(memory.total.saturating_sub(memory.free));
            memory.used = memory.total.saturating_sub(memory.free).saturating_sub(memory.reserved);
        }
        code
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_from_its_text() {
        let uuid = parse_uuid("GPU-00010203-0405-0607-0809-0a0b0c0d0e0f").unwrap();
        assert_eq!(uuid, std::array::from_fn(|index| index as u8));
        for bad in ["", "GPU-", "00010203-0405-0607-0809-0a0b0c0d0e0f", "GPU-0001020z-0405-0607-0809-0a0b0c0d0e0f"] {
            assert!(parse_uuid(bad).is_none(), "{bad}");
        }
    }
}
