//! Starting, stopping, versions, errors.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::driver::{Driver, driver};
use crate::{Error, nvml, write, write_text};

/// How often `nvmlInit` was called more than `nvmlShutdown`.
static USERS: AtomicU32 = AtomicU32::new(0);

const DRIVER_VERSION: &str = "580.65.06";
const NVML_VERSION: &str = "13.580.65.06";

/// The driver, if the program has started NVML.
pub(crate) fn started() -> Result<&'static Driver, Error> {
    if USERS.load(Ordering::Acquire) == 0 {
        return Err(Error::UNINITIALIZED);
    }
    driver()
}

fn start() -> Result<(), Error> {
    driver()?;
    USERS.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

nvml! {
    fn nvmlInit() { start() }

    fn nvmlInit_v2() { start() }

    fn nvmlInitWithFlags(_flags: c_uint) { start() }

    fn nvmlShutdown() {
        let fewer = |users: u32| users.checked_sub(1);
        USERS.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).map(drop).map_err(|_| Error::UNINITIALIZED)
    }

    fn nvmlSystemGetDriverVersion(version: *mut c_char, len: c_uint) {
        started()?;
        write_text(version, len, DRIVER_VERSION)
    }

    fn nvmlSystemGetNVMLVersion(version: *mut c_char, len: c_uint) {
        started()?;
        write_text(version, len, NVML_VERSION)
    }

    // These two are answered before the start as well.
    fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) { write(version, driver()?.cuda_version()?) }

    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) { write(version, driver()?.cuda_version()?) }

    fn nvmlSystemGetProcessName(pid: c_uint, name: *mut c_char, len: c_uint) {
        started()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).map_err(|_| Error::NOT_FOUND)?;
        write_text(name, len, command.trim_end())
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: c_int) -> *const c_char {
    match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    }
    .as_ptr()
}
