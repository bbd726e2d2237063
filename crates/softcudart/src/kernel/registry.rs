//! What programs register before `main`: images of device code, and in them kernels and variables.
//!
//! Registering only writes down; an image is handed to the driver when one of its kernels or variables is first asked
//! for. A program like PyTorch registers a hundred thousand kernels and launches some hundred.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use parking_lot::{Mutex, RwLock};

use crate::context;
use crate::driver::Table;
use crate::driver::types::{DevicePtr, Handle};
use crate::entry;
use crate::error::Error;

/// An image of device code. The address of the record is the handle that the program keeps.
pub(super) struct Image {
    /// `fatCubinHandle`'s data: what the driver loads.
    data: usize,
    /// The driver's library, once loaded.
    library: Mutex<usize>,
}

/// A kernel, by its name in its image.
struct Kernel {
    image: &'static Image,
    /// The name is a string of the program, which outlives its registration.
    name: usize,
    /// The driver's handle, once asked for.
    handle: usize,
}

/// A variable, by its name in its image.
struct Registered {
    image: &'static Image,
    name: CString,
    bytes: usize,
    is_managed: bool,
    /// Where it is, by device: with the number of resets when it was put there.
    places: HashMap<c_int, (u32, DevicePtr)>,
}

/// Where a variable of device code is.
#[derive(Clone, Copy)]
pub(crate) struct Variable {
    pub(crate) address: DevicePtr,
    pub(crate) bytes: usize,
}

static KERNELS: RwLock<Option<HashMap<usize, Kernel>>> = RwLock::new(None);
static VARIABLES: Mutex<Option<HashMap<usize, Registered>>> = Mutex::new(None);

/// `__fatBinC_Wrapper_t`: a magic number, a version, the data.
#[repr(C)]
pub(crate) struct FatBinary {
    magic: c_int,
    version: c_int,
    data: *const c_void,
    unused: *mut c_void,
}

/// Loads the image, if it is not.
fn library(table: &Table, image: &Image) -> Result<Handle, Error> {
    let mut loaded = image.library.lock();
    if *loaded == 0 {
        let mut handle = null_mut();
        // SAFETY: the data is what the program registered, in static memory of the program; there are no options.
        unsafe {
            table.cuLibraryLoadData(
                &raw mut handle,
                image.data as *const c_void,
                null_mut(),
                null_mut(),
                0,
                null_mut(),
                null_mut(),
                0,
            )?;
        }
        *loaded = handle as usize;
    }
    Ok(*loaded as Handle)
}

/// The driver's kernel behind a host function. It serves on every device.
pub(super) fn kernel(table: &Table, host: *const c_void) -> Result<Handle, Error> {
    let (image, name) = {
        let kernels = KERNELS.read();
        let known = kernels.as_ref().and_then(|kernels| kernels.get(&(host as usize)));
        let Some(known) = known else {
            drop(kernels);
            return library_kernel(table, host);
        };
        if known.handle != 0 {
            return Ok(known.handle as Handle);
        }
        (known.image, known.name)
    };
    let mut handle = null_mut();
    // SAFETY: `handle` is a local, and the name is a C string of the program.
    unsafe { table.cuLibraryGetKernel(&raw mut handle, library(table, image)?, name as *const c_char)? };
    if let Some(known) = KERNELS.write().as_mut().and_then(|kernels| kernels.get_mut(&(host as usize))) {
        known.handle = handle as usize;
    }
    Ok(handle)
}

/// A `cudaKernel_t` may stand where a host function does: those are known by having been handed out.
fn library_kernel(_table: &Table, host: *const c_void) -> Result<Handle, Error> {
    if super::library::is_handed_out(host as usize) { Ok(host.cast_mut()) } else { Err(Error::INVALID_DEVICE_FUNCTION) }
}

/// The variable behind a host symbol, put on the thread's device if it is not there yet.
pub(crate) fn variable(table: &Table, symbol: *const c_void) -> Result<Variable, Error> {
    let device = context::device(table)?;
    let resets = context::resets();
    let mut variables = VARIABLES.lock();
    let known = variables.as_mut().and_then(|variables| variables.get_mut(&(symbol as usize)));
    let known = known.ok_or(Error::INVALID_SYMBOL)?;
    let place = if known.is_managed { -1 } else { device };
    if let Some((_, address)) = known.places.get(&place).filter(|(then, _)| *then == resets) {
        return Ok(Variable { address: *address, bytes: known.bytes });
    }
    let address = locate(table, known)?;
    known.places.insert(place, (resets, address));
    Ok(Variable { address, bytes: known.bytes })
}

/// Asks the driver where a variable is. A driver that cannot read images does not know: then the variable gets memory of
/// its own, of the size that the program registered.
fn locate(table: &Table, known: &Registered) -> Result<DevicePtr, Error> {
    let library = library(table, known.image)?;
    let mut address = 0;
    let mut bytes = 0;
    // SAFETY: locals, a library of the driver's, a C string.
    let found = unsafe { table.cuLibraryGetGlobal(&raw mut address, &raw mut bytes, library, known.name.as_ptr()) };
    if found.is_ok() && bytes >= known.bytes && address != 0 {
        return Ok(address);
    }
    let bytes = known.bytes.max(1);
    // SAFETY: `address` is a local, and the fill stays inside what was just allocated.
    unsafe {
        if known.is_managed {
            const ATTACH_GLOBAL: c_uint = 1;
            table.cuMemAllocManaged(&raw mut address, bytes, ATTACH_GLOBAL)?;
        } else {
            table.cuMemAlloc(&raw mut address, bytes)?;
        }
        table.cuMemsetD8(address, 0, bytes)?;
    }
    Ok(address)
}

/// # Safety
/// `image` is null or what `__cudaRegisterFatBinary` returned.
unsafe fn image_of(image: *mut *mut c_void) -> Option<&'static Image> {
    // SAFETY: records are leaked, so what was returned stays valid.
    unsafe { image.cast::<Image>().as_ref() }
}

/// # Safety
/// `binary` is null or points to a wrapper that lives as long as the program's code.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFatBinary(binary: *const FatBinary) -> *mut *mut c_void {
    // SAFETY: as the caller promises.
    let data = unsafe { binary.as_ref() }.map_or(null(), |binary| binary.data);
    // Kernels point to their images until the process has ended.
    let image: &'static Image = Box::leak(Box::new(Image { data: data as usize, library: Mutex::new(0) }));
    std::ptr::from_ref(image).cast_mut().cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn __cudaRegisterFatBinaryEnd(_image: *mut *mut c_void) {}

/// Programs unregister while the process ends, when other threads may still launch; what was registered stays.
#[unsafe(no_mangle)]
pub extern "C" fn __cudaUnregisterFatBinary(_image: *mut *mut c_void) {}

#[unsafe(no_mangle)]
pub extern "C" fn __cudaInitModule(_image: *mut *mut c_void) -> c_char {
    super::TRUE as c_char
}

/// # Safety
/// `image` is what `__cudaRegisterFatBinary` returned, `name` a C string that lives as long as the program's code.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterFunction(
    image: *mut *mut c_void,
    host: *const c_void,
    _device_function: *mut c_char,
    name: *const c_char,
    _thread_limit: c_int,
    _thread_ids: *mut c_void,
    _block_ids: *mut c_void,
    _block: *mut c_void,
    _grid: *mut c_void,
    _warp_size: *mut c_int,
) {
    // SAFETY: as the caller promises.
    let Some(image) = (unsafe { image_of(image) }) else { return };
    if name.is_null() {
        return;
    }
    entry::plain(|| {
        let kernel = Kernel { image, name: name as usize, handle: 0 };
        KERNELS.write().get_or_insert_default().insert(host as usize, kernel);
        Ok(())
    });
}

/// # Safety
/// `image` is what `__cudaRegisterFatBinary` returned, `name` null or a C string.
unsafe fn register_variable(
    image: *mut *mut c_void,
    host: *const c_void,
    name: *const c_char,
    bytes: usize,
    is_managed: bool,
) {
    // SAFETY: as the caller promises.
    let Some(image) = (unsafe { image_of(image) }) else { return };
    if name.is_null() {
        return;
    }
    // SAFETY: a C string, as the caller promises.
    let name = unsafe { CStr::from_ptr(name) }.to_owned();
    entry::plain(|| {
        let variable = Registered { image, name, bytes, is_managed, places: HashMap::new() };
        VARIABLES.lock().get_or_insert_default().insert(host as usize, variable);
        Ok(())
    });
}

/// # Safety
/// As for `__cudaRegisterFunction`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterVar(
    image: *mut *mut c_void,
    host: *mut c_char,
    _device_address: *mut c_char,
    name: *const c_char,
    _is_extern: c_int,
    bytes: usize,
    _is_constant: c_int,
    _is_global: c_int,
) {
    // SAFETY: as the caller promises.
    unsafe { register_variable(image, host.cast(), name, bytes, false) };
}

/// # Safety
/// As for `__cudaRegisterFunction`; `host` points to the program's pointer to the variable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterManagedVar(
    image: *mut *mut c_void,
    host: *mut *mut c_void,
    _device_address: *mut c_char,
    name: *const c_char,
    _is_extern: c_int,
    bytes: usize,
    _is_constant: c_int,
    _is_global: c_int,
) {
    // SAFETY: as the caller promises.
    unsafe { register_variable(image, host.cast_const().cast(), name, bytes, true) };
}

/// # Safety
/// As for `__cudaRegisterFunction`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaRegisterHostVar(
    image: *mut *mut c_void,
    name: *const c_char,
    host: *mut c_char,
    bytes: usize,
) {
    // SAFETY: as the caller promises.
    unsafe { register_variable(image, host.cast(), name, bytes, false) };
}
