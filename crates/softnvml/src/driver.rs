//! The driver's few functions that this library needs, found by name in `libcuda.so.1`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::Error;

type GetCount = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetText = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type GetUuid = unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int;
type TotalMem = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type Account = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;

/// What was found. All but the account are in every driver.
pub(crate) struct Driver {
    count: GetCount,
    name: GetText,
    pci: GetText,
    uuid: GetUuid,
    total: TotalMem,
    attribute: GetAttribute,
    version: GetCount,
    /// softcuda's own account of a device's memory.
    account: Option<Account>,
}

/// The driver's numbers of attributes.
pub(crate) mod attribute {
    pub(crate) const MAJOR: i32 = 75;
    pub(crate) const MINOR: i32 = 76;
    pub(crate) const BUS_WIDTH: i32 = 37;
    pub(crate) const MULTIPROCESSORS: i32 = 16;
}

/// `struct softcuda_account`: its size, then bytes and counts of twelve kinds, then what is free and what there is.
#[repr(C)]
struct AccountOf {
    size: usize,
    kinds: [u64; 24],
    free: u64,
    total: u64,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, loaded and initialised at the first call that finds it.
pub(crate) fn driver() -> Result<&'static Driver, Error> {
    if let Some(driver) = DRIVER.get() {
        return Ok(driver);
    }
    let found = Driver::find().ok_or(Error::DRIVER_NOT_LOADED)?;
    Ok(DRIVER.get_or_init(|| found))
}

fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: `library` is an open handle, and the name is a C string.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

impl Driver {
    fn find() -> Option<Self> {
        // SAFETY: a plain load of a library by name; it stays loaded for good.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        // SAFETY: these names have these signatures in cuda.h, the last in softcuda.h.
        let (driver, init) = unsafe {
            let init: unsafe extern "C" fn(c_uint) -> c_int = std::mem::transmute(symbol(library, c"cuInit")?);
            let driver = Driver {
                count: std::mem::transmute::<*mut c_void, GetCount>(symbol(library, c"cuDeviceGetCount")?),
                name: std::mem::transmute::<*mut c_void, GetText>(symbol(library, c"cuDeviceGetName")?),
                pci: std::mem::transmute::<*mut c_void, GetText>(symbol(library, c"cuDeviceGetPCIBusId")?),
                uuid: std::mem::transmute::<*mut c_void, GetUuid>(symbol(library, c"cuDeviceGetUuid_v2")?),
                total: std::mem::transmute::<*mut c_void, TotalMem>(symbol(library, c"cuDeviceTotalMem_v2")?),
                attribute: std::mem::transmute::<*mut c_void, GetAttribute>(symbol(library, c"cuDeviceGetAttribute")?),
                version: std::mem::transmute::<*mut c_void, GetCount>(symbol(library, c"cuDriverGetVersion")?),
                account: symbol(library, c"softcudaAccount")
                    .map(|found| std::mem::transmute::<*mut c_void, Account>(found)),
            };
            (driver, init)
        };
        // SAFETY: 0 is the one value that `cuInit` takes.
        (unsafe { init(0) } == 0).then_some(driver)
    }

    pub(crate) fn count(&self) -> Result<u32, Error> {
        let mut count = 0;
        // SAFETY: `count` is a local.
        check(unsafe { (self.count)(&raw mut count) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(crate) fn cuda_version(&self) -> Result<c_int, Error> {
        let mut version = 0;
        // SAFETY: `version` is a local.
        check(unsafe { (self.version)(&raw mut version) })?;
        Ok(version)
    }

    pub(crate) fn name(&self, device: u32) -> Result<String, Error> {
        text(self.name, device)
    }

    /// Domain, bus, device and function, as `00000000:01:00.0`.
    pub(crate) fn pci_bus_id(&self, device: u32) -> Result<String, Error> {
        text(self.pci, device)
    }

    pub(crate) fn uuid(&self, device: u32) -> Result<String, Error> {
        let mut bytes = [0; 16];
        // SAFETY: `bytes` is a local.
        check(unsafe { (self.uuid)(&raw mut bytes, number(device)) })?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        Ok(format!("GPU-{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
    }

    pub(crate) fn attribute(&self, attribute: c_int, device: u32) -> Result<c_int, Error> {
        let mut value = 0;
        // SAFETY: `value` is a local.
        check(unsafe { (self.attribute)(&raw mut value, attribute, number(device)) })?;
        Ok(value)
    }

    /// Bytes free and in all.
    pub(crate) fn memory(&self, device: u32) -> Result<(u64, u64), Error> {
        let mut total = 0_usize;
        // SAFETY: `total` is a local.
        check(unsafe { (self.total)(&raw mut total, number(device)) })?;
        let Some(account) = self.account else { return Ok((total as u64, total as u64)) };
        let mut known = AccountOf { size: size_of::<AccountOf>(), kinds: [0; 24], free: 0, total: 0 };
        // SAFETY: a local whose first field says how much of the structure it holds.
        check(unsafe { account(number(device), (&raw mut known).cast()) })?;
        // The total of `cuDeviceTotalMem` counts: whoever stands between may have lowered it.
        let (used, total) = (known.total.saturating_sub(known.free), total as u64);
        Ok((total.saturating_sub(used), total))
    }
}

fn number(device: u32) -> c_int {
    c_int::try_from(device).unwrap_or(c_int::MAX)
}

fn check(code: c_int) -> Result<(), Error> {
    const NO_DEVICE: c_int = 100;
    const INVALID_DEVICE: c_int = 101;
    match code {
        0 => Ok(()),
        NO_DEVICE => Err(Error::NOT_FOUND),
        1 | INVALID_DEVICE => Err(Error::INVALID_ARGUMENT),
        _ => Err(Error::UNKNOWN),
    }
}

fn text(get: GetText, device: u32) -> Result<String, Error> {
    let mut buffer = [0 as c_char; 128];
    // SAFETY: a local buffer of the length that is said.
    check(unsafe { get(buffer.as_mut_ptr(), buffer.len() as c_int, number(device)) })?;
    // SAFETY: the driver has ended the text inside the buffer.
    Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned())
}
