//! The CUDA driver: [`CudaDriver`], over `libcuda` loaded at run time. No CUDA toolkit is needed to build it.
//!
//! | file | what it does |
//! |---|---|
//! | `table.rs` | finds the library and its functions; one C call is one method with a `Result` |
//! | `result.rs` | gives result codes their [`DriverErrorKind`] |
//! | `context.rs` | makes the context current, relaxes the capture mode, and puts both back |
//! | `mod.rs` | opens a device and asks what it can do |
//! | `kernels.rs` | loads the library's own kernels, once, and launches them |
//! | `calls.rs` | implements [`Driver`](super::Driver) |
//!
//! **Which library**: `libcuda.so.1`, then `libcuda.so`; the environment variable `STRATALLOC_LIBCUDA` names another.
//!
//! **Which context**: the device's primary context, which the CUDA runtime and PyTorch use as well. It is retained from
//! [`CudaDriver::open`], or from the first call that needs it after [`CudaDriver::open_lazily`], until the last reference to
//! the driver is dropped. Every call works on any thread and leaves the
//! thread's current context and stream-capture mode as it found them.
//!
//! **Handles** of streams, events and chunks go to the driver as they are. `libcuda` checks most, but a stream or event id
//! that it never gave out may crash it, as in C.

mod calls;
mod context;
mod kernels;
mod result;
mod table;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemAllocationType, CUmemLocation, CUmemLocationType,
};

use self::context::{Current, Relaxed, count_failure, failed_cleanups};
use self::kernels::Kernels;
use self::table::{LIBRARY_VARIABLE, Table, library_names};
use super::{DeviceProperties, DriverError, DriverErrorKind, DriverResult, Location};
use crate::sync::Mutex;
use crate::units::PAGE;

/// One CUDA device, through its primary context. See the [module](self) for what it does to a thread's state.
pub struct CudaDriver {
    table: Table,
    device: CUdevice,
    /// Empty until the context has been retained.
    context: OnceLock<CUcontext>,
    properties: DeviceProperties,
    /// Device chunks are created such that they can be exported as file descriptors.
    exportable: bool,
    /// Device chunks are created such that GPUDirect RDMA can reach them.
    rdma: bool,
    /// The NUMA node of the host nearest to the device.
    host_node: c_int,
    opened: Instant,
    /// Empty until the first launch.
    kernels: OnceLock<Kernels>,
    /// Held while kernels are loaded.
    loading: Mutex<()>,
}

// SAFETY: the fields that are neither are `context` and `kernels`, handles that are never dereferenced here; the driver allows their
// use from any thread, and each call makes the context current for its own thread.
unsafe impl Send for CudaDriver {}
// SAFETY: as above; nothing is mutated after `open`.
unsafe impl Sync for CudaDriver {}

impl CudaDriver {
    /// How many devices there are. Fails where there is no CUDA driver, or it finds no device.
    pub fn count() -> DriverResult<u32> {
        count_in(&load_chosen()?)
    }

    /// Opens the device with this ordinal and retains its primary context.
    pub fn open(ordinal: u32) -> DriverResult<Arc<CudaDriver>> {
        CudaDriver::open_in(load_chosen()?, ordinal)
    }

    /// Opens the device with this ordinal, and retains its primary context only when something is asked of it that needs one: a
    /// context takes some hundred megabytes of the device, so a process that sees many devices should have none on those that it
    /// does not use. What [`CudaDriver::open`] would refuse for want of a context is then refused by that call. Partial mapping,
    /// which takes a context to find out, counts as not there.
    pub fn open_lazily(ordinal: u32) -> DriverResult<Arc<CudaDriver>> {
        Ok(Arc::new(CudaDriver::describe(load_chosen()?, ordinal)?))
    }

    /// Opens a device through functions that the caller finds, for a program in which looking `libcuda` up by name would find
    /// something else: an interposed library, which wants the driver's own. `find` is asked for C names such as
    /// `cuMemAlloc_v2`, and returns null for what there is not.
    ///
    /// # Safety
    /// What `find` returns is callable to the end of the process, with the type that `cuda.h` declares for the name.
    pub unsafe fn open_with(find: &dyn Fn(&str) -> *const c_void, ordinal: u32) -> DriverResult<Arc<CudaDriver>> {
        // SAFETY: the caller keeps the same contract.
        let table = unsafe { Table::resolve(find, OsStr::new("the driver")) }?;
        CudaDriver::open_in(table, ordinal)
    }

    /// The primary context (`CUcontext`) that every call makes current, as a number. 0 where it has not been retained yet.
    pub fn context(&self) -> usize {
        self.context.get().map_or(0, |&context| context as usize)
    }

    /// How many cleanup calls have failed in this process, where no error could be returned: giving a context back, or
    /// restoring a thread's state. Not zero means that CUDA was shut down before this library was, or is broken.
    pub fn failed_cleanups() -> u64 {
        failed_cleanups()
    }

    fn open_in(table: Table, ordinal: u32) -> DriverResult<Arc<CudaDriver>> {
        let mut driver = CudaDriver::describe(table, ordinal)?;
        driver.retained()?;
        driver.properties.partial_mapping = driver.properties.vmm && driver.maps_partially();
        Ok(Arc::new(driver))
    }

    /// All that can be known of a device without a context.
    fn describe(table: Table, ordinal: u32) -> DriverResult<CudaDriver> {
        let count = count_in(&table)?;
        if ordinal >= count {
            let detail = format!("no device {ordinal}: there are {count}");
            return Err(DriverError::new(DriverErrorKind::NoDevice, "cuDeviceGet", detail));
        }
        let mut device: CUdevice = 0;
        // SAFETY: `device` is valid for the one handle that is written; `ordinal` is below a positive `c_int`.
        unsafe { table.cuDeviceGet(&mut device, ordinal as c_int) }?;
        let mut driver = CudaDriver {
            table,
            device,
            context: OnceLock::new(),
            properties: DeviceProperties {
                name: String::new(),
                ordinal,
                total_memory: 0,
                driver_version: 0,
                vmm: false,
                granularity: PAGE,
                partial_mapping: false,
                host_node: None,
                software: false,
            },
            exportable: false,
            rdma: false,
            host_node: 0,
            opened: Instant::now(),
            kernels: OnceLock::new(),
            loading: Mutex::new(()),
        };
        driver.read_properties()?;
        Ok(driver)
    }

    /// The context, retained at the first call. From then on, dropping the driver gives it back.
    fn retained(&self) -> DriverResult<CUcontext> {
        if let Some(&context) = self.context.get() {
            return Ok(context);
        }
        let mut context: CUcontext = ptr::null_mut();
        // SAFETY: `context` is valid for the one handle that is written, `device` is the driver's.
        unsafe { self.table.cuDevicePrimaryCtxRetain(&mut context, self.device) }?;
        if self.context.set(context).is_err() {
            // Another thread was first, and its reference keeps the context, which is the same.
            self.give_context_back();
        }
        Ok(context)
    }

    fn give_context_back(&self) {
        // SAFETY: `retained` has retained the context of this device once for each call of this function.
        count_failure(unsafe { self.table.cuDevicePrimaryCtxRelease_v2(self.device) });
    }

    fn read_properties(&mut self) -> DriverResult<()> {
        use CUdevice_attribute as Attribute;
        self.properties.name = self.name()?;
        self.properties.total_memory = self.total_memory()?;
        self.properties.driver_version = self.driver_version()?;
        // An attribute that this driver does not know is one that the device does not have.
        let has = |attribute| self.attribute(attribute).is_ok_and(|value| value != 0);
        let vmm = has(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED) && self.table.has_vmm();
        let exportable = has(Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
        let rdma = has(Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);
        // -1 where the host has no NUMA nodes.
        let host_node = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
        self.properties.host_node = host_node.as_ref().ok().and_then(|&node| u32::try_from(node).ok());
        self.host_node = host_node.unwrap_or(0).max(0);
        self.properties.vmm = vmm;
        if vmm {
            self.exportable = exportable;
            self.rdma = rdma;
            self.properties.granularity = self.granularity()?;
        }
        Ok(())
    }

    fn name(&self) -> DriverResult<String> {
        let mut name = [0u8; 256];
        // SAFETY: `name` is valid for the length that is given.
        unsafe { self.table.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, self.device) }?;
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..length]).into_owned())
    }

    fn total_memory(&self) -> DriverResult<u64> {
        let mut bytes = 0usize;
        // SAFETY: `bytes` is valid for the one number that is written.
        unsafe { self.table.cuDeviceTotalMem_v2(&mut bytes, self.device) }?;
        Ok(bytes as u64)
    }

    fn driver_version(&self) -> DriverResult<u32> {
        let mut version = 0;
        // SAFETY: `version` is valid for the one number that is written.
        unsafe { self.table.cuDriverGetVersion(&mut version) }?;
        Ok(u32::try_from(version).unwrap_or(0))
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> DriverResult<c_int> {
        let mut value = 0;
        // SAFETY: `value` is valid for the one number that is written.
        unsafe { self.table.cuDeviceGetAttribute(&mut value, attribute as u32, self.device) }?;
        Ok(value)
    }

    fn granularity(&self) -> DriverResult<u64> {
        let prop = self.allocation_prop(Location::Device)?;
        let mut bytes = 0usize;
        let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM as u32;
        // SAFETY: `bytes` is valid for the one number that is written, `prop` for reading.
        let mut ask = || unsafe { self.table.cuMemGetAllocationGranularity(&mut bytes, &prop, minimum) };
        // No documentation says that this wants a context, and none that it does not.
        if ask().is_err() {
            let _current = self.current()?;
            ask()?;
        }
        if bytes.is_power_of_two() {
            return Ok(bytes as u64);
        }
        let detail = format!("a granularity of {bytes} bytes, which is no power of two");
        Err(DriverError::new(DriverErrorKind::NotSupported, "cuMemGetAllocationGranularity", detail))
    }

    /// Tries to map the second half of a chunk: the documentation of older drivers demands offset 0, that of newer ones
    /// does not. Any failure on the way, such as a full device, means "no", which is always safe.
    fn maps_partially(&self) -> bool {
        use super::Driver;
        let unit = self.properties.granularity;
        let Ok(ptr) = self.reserve(unit, unit) else { return false };
        let mapped = match self.create(2 * unit, Location::Device) {
            Ok(chunk) => {
                let mapped = self.map(ptr, unit, chunk, unit).is_ok();
                if mapped {
                    count_failure(self.unmap(ptr, unit));
                }
                count_failure(self.release(chunk));
                mapped
            }
            Err(_) => false,
        };
        count_failure(self.unreserve(ptr, unit));
        mapped
    }

    /// Makes the context current for as long as the guard lives.
    fn current(&self) -> DriverResult<Current<'_>> {
        Current::enter(&self.table, self.retained()?)
    }

    /// The same, for calls that another thread's capture would otherwise forbid.
    fn relaxed(&self) -> DriverResult<(Relaxed<'_>, Current<'_>)> {
        Ok((Relaxed::enter(&self.table)?, self.current()?))
    }

    fn allocation_prop(&self, location: Location) -> DriverResult<CUmemAllocationProp> {
        // SAFETY: the structure is plain C data, for which all zeros are valid: its enums have a member of value 0.
        let mut prop: CUmemAllocationProp = unsafe { std::mem::zeroed() };
        prop.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        prop.location = match location {
            Location::Device => self.own_location(),
            Location::Host => location_of(CUmemLocationType::CU_MEM_LOCATION_TYPE_HOST_NUMA, self.host_node),
            Location::Peer(ordinal) => {
                let id = c_int::try_from(ordinal).map_err(|_| {
                    DriverError::new(DriverErrorKind::NoDevice, "cuMemCreate", format!("no device {ordinal}"))
                })?;
                location_of(CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id)
            }
        };
        if location == Location::Device {
            if self.exportable {
                prop.requestedHandleTypes = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
            }
            prop.allocFlags.gpuDirectRDMACapable = u8::from(self.rdma);
        }
        Ok(prop)
    }

    fn own_location(&self) -> CUmemLocation {
        location_of(CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, self.properties.ordinal as c_int)
    }

    fn own_access(&self) -> CUmemAccessDesc {
        CUmemAccessDesc { location: self.own_location(), flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE }
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        if self.context.get().is_some() {
            self.unload_kernels();
            self.give_context_back();
        }
    }
}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDriver").field("properties", &self.properties).finish_non_exhaustive()
    }
}

fn location_of(type_: CUmemLocationType, id: c_int) -> CUmemLocation {
    CUmemLocation { type_, id }
}

fn load_chosen() -> DriverResult<Table> {
    let chosen: Option<OsString> = std::env::var_os(LIBRARY_VARIABLE);
    Table::load(&library_names(chosen))
}

fn count_in(table: &Table) -> DriverResult<u32> {
    // SAFETY: 0 is the only flag value that is defined.
    unsafe { table.cuInit(0) }?;
    let mut count = 0;
    // SAFETY: `count` is valid for the one number that is written.
    unsafe { table.cuDeviceGetCount(&mut count) }?;
    Ok(u32::try_from(count).unwrap_or(0))
}
