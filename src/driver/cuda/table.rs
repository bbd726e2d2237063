//! The functions of `libcuda` that this library calls, resolved by us: one C call is one Rust method with a `Result`.
//!
//! cudarc's own loader panics when the library or a symbol is missing, so only its types are used. The functions return
//! their `CUresult` as a number: a driver newer than the bindings may return a code that the Rust enum does not have,
//! and such an enum value would be undefined behaviour. Enums that the driver writes are received as numbers as well.
//!
//! A function whose name ends in `_v2` is the current C function of that name without the suffix: `cuda.h` renames them.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::ptr::NonNull;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphNode, CUmemAccessDesc, CUmemAllocationProp,
    CUmemGenericAllocationHandle, CUmemcpyAttributes, CUmodule, CUresult, CUstream,
};

use super::result::kind_of;
use crate::error::{DriverError, DriverErrorKind};

/// Names another library in place of `libcuda.so.1`.
pub(super) const LIBRARY_VARIABLE: &str = "STRATALLOC_LIBCUDA";

/// A `CUresult` as the driver returns it.
type Status = c_uint;

const NOT_READY: Status = CUresult::CUDA_ERROR_NOT_READY as Status;

/// The libraries to try, in order.
pub(super) fn library_names(chosen: Option<OsString>) -> Vec<OsString> {
    match chosen.filter(|name| !name.is_empty()) {
        Some(name) => vec![name],
        None => vec!["libcuda.so.1".into(), "libcuda.so".into()],
    }
}

/// Writes [`Table`]: a field, a look-up and a method for each function.
macro_rules! table {
    (
        required { $( fn $req:ident ( $( $ra:ident : $rt:ty ),* ); )* }
        optional { $( fn $opt:ident ( $( $oa:ident : $ot:ty ),* ); )* }
    ) => {
        /// `libcuda`'s functions. The library stays loaded to the end of the process, so the pointers are always valid.
        #[derive(Clone, Copy)]
        #[allow(non_snake_case, reason = "the names are C's, so that they can be searched for")]
        pub(super) struct Table {
            $( $req: unsafe extern "C" fn($( $rt ),*) -> Status, )*
            $( $opt: Option<unsafe extern "C" fn($( $ot ),*) -> Status>, )*
        }

        impl Table {
            /// Fills the table. `find` returns null, or the function of the driver with this name.
            ///
            /// # Safety
            /// What `find` returns is callable to the end of the process, with the type that cuda.h declares.
            pub(super) unsafe fn resolve(
                find: &dyn Fn(&str) -> *const c_void,
                library: &OsStr,
            ) -> Result<Table, DriverError> {
                Ok(Table {
                    $( $req: {
                        let found = NonNull::new(find(stringify!($req)).cast_mut());
                        let found = found.ok_or_else(|| missing_symbol(stringify!($req), library))?;
                        // SAFETY: as the caller says, the symbol has the type of cuda.h, which the table below repeats.
                        unsafe { std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($( $rt ),*) -> Status>(found) }
                    }, )*
                    $( $opt: NonNull::new(find(stringify!($opt)).cast_mut()).map(|found| {
                        // SAFETY: as above.
                        unsafe { std::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($( $ot ),*) -> Status>(found) }
                    }), )*
                })
            }
        }

        #[allow(non_snake_case, clippy::too_many_arguments, reason = "C's names and parameters")]
        #[allow(dead_code, reason = "three functions are called through their pointers: not 0 is no failure there")]
        impl Table {
            $(
                /// # Safety
                /// As for the C function: pointers are valid for what it reads and writes, handles are the driver's.
                pub(super) unsafe fn $req(&self, $( $ra: $rt ),*) -> Result<(), DriverError> {
                    // SAFETY: the caller keeps the C function's contract.
                    self.check(stringify!($req), unsafe { (self.$req)($( $ra ),*) })
                }
            )*
            $(
                /// # Safety
                /// As for the C function: pointers are valid for what it reads and writes, handles are the driver's.
                pub(super) unsafe fn $opt(&self, $( $oa: $ot ),*) -> Result<(), DriverError> {
                    match self.$opt {
                        // SAFETY: the caller keeps the C function's contract.
                        Some(function) => self.check(stringify!($opt), unsafe { function($( $oa ),*) }),
                        None => Err(not_in_this_driver(stringify!($opt))),
                    }
                }
            )*
        }
    };
}

table! {
    required {
        fn cuInit(flags: c_uint);
        fn cuDriverGetVersion(version: *mut c_int);
        fn cuDeviceGetCount(count: *mut c_int);
        fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
        fn cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
        fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
        fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: CUdevice);
        fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
        fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
        fn cuCtxGetCurrent(context: *mut CUcontext);
        fn cuCtxPushCurrent_v2(context: CUcontext);
        fn cuCtxPopCurrent_v2(context: *mut CUcontext);
        fn cuCtxSynchronize();
        fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        fn cuMemAlloc_v2(ptr: *mut CUdeviceptr, size: usize);
        fn cuMemFree_v2(ptr: CUdeviceptr);
        fn cuMemHostAlloc(ptr: *mut *mut c_void, size: usize, flags: c_uint);
        fn cuMemFreeHost(ptr: *mut c_void);
        fn cuStreamCreate(stream: *mut CUstream, flags: c_uint);
        fn cuStreamDestroy_v2(stream: CUstream);
        fn cuStreamSynchronize(stream: CUstream);
        fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
        fn cuStreamIsCapturing(stream: CUstream, status: *mut c_uint);
        fn cuEventCreate(event: *mut CUevent, flags: c_uint);
        fn cuEventDestroy_v2(event: CUevent);
        fn cuEventRecord(event: CUevent, stream: CUstream);
        fn cuEventSynchronize(event: CUevent);
        fn cuEventQuery(event: CUevent);
        fn cuMemsetD8Async(ptr: CUdeviceptr, byte: c_uchar, size: usize, stream: CUstream);
        fn cuMemcpyAsync(dst: CUdeviceptr, src: CUdeviceptr, size: usize, stream: CUstream);
        fn cuMemcpyHtoDAsync_v2(dst: CUdeviceptr, src: *const c_void, size: usize, stream: CUstream);
        fn cuMemcpyDtoHAsync_v2(dst: *mut c_void, src: CUdeviceptr, size: usize, stream: CUstream);
    }
    optional {
        fn cuGetErrorName(code: Status, name: *mut *const c_char);
        fn cuGetErrorString(code: Status, text: *mut *const c_char);
        fn cuMemGetAllocationGranularity(bytes: *mut usize, prop: *const CUmemAllocationProp, option: c_uint);
        fn cuMemAddressReserve(
            ptr: *mut CUdeviceptr, size: usize, alignment: usize, hint: CUdeviceptr, flags: c_ulonglong
        );
        fn cuMemAddressFree(ptr: CUdeviceptr, size: usize);
        fn cuMemCreate(
            handle: *mut CUmemGenericAllocationHandle, size: usize, prop: *const CUmemAllocationProp, flags: c_ulonglong
        );
        fn cuMemRelease(handle: CUmemGenericAllocationHandle);
        fn cuMemMap(
            ptr: CUdeviceptr, size: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong
        );
        fn cuMemUnmap(ptr: CUdeviceptr, size: usize);
        fn cuMemSetAccess(ptr: CUdeviceptr, size: usize, access: *const CUmemAccessDesc, count: usize);
        fn cuMemExportToShareableHandle(
            shareable: *mut c_void, handle: CUmemGenericAllocationHandle, handle_type: c_uint, flags: c_ulonglong
        );
        fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint);
        fn cuStreamGetCaptureInfo_v2(
            stream: CUstream, status: *mut c_uint, id: *mut u64, graph: *mut CUgraph,
            dependencies: *mut *const CUgraphNode, count: *mut usize
        );
        fn cuMemHostRegister_v2(ptr: *mut c_void, size: usize, flags: c_uint);
        fn cuMemHostUnregister(ptr: *mut c_void);
        fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
        fn cuModuleUnload(module: CUmodule);
        fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
        fn cuLaunchKernel(
            function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
            block_z: c_uint, shared_bytes: c_uint, stream: CUstream, params: *mut *mut c_void, extra: *mut *mut c_void
        );
        fn cuMemcpyBatchAsync(
            dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize,
            attributes: *mut CUmemcpyAttributes, first_of_attribute: *mut usize, attribute_count: usize,
            failed: *mut usize, stream: CUstream
        );
        fn cuMemcpyBatchAsync_v2(
            dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize,
            attributes: *mut CUmemcpyAttributes, first_of_attribute: *mut usize, attribute_count: usize,
            stream: CUstream
        );
    }
}

impl Table {
    /// Loads the first library of `names` that there is, and resolves every function.
    pub(super) fn load(names: &[OsString]) -> Result<Table, DriverError> {
        let mut failures = Vec::new();
        for name in names {
            // SAFETY: loading runs the library's initialisers; it is the CUDA driver, or what the user named instead.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => {
                    // SAFETY: only the symbol's address is taken here.
                    let find = |symbol: &str| unsafe { library.get(symbol) }.map_or(std::ptr::null(), |found| *found);
                    // SAFETY: the functions are the driver's, and it stays loaded.
                    let table = unsafe { Table::resolve(&find, name) };
                    // The driver starts threads of its own: it must never be unloaded.
                    std::mem::forget(library);
                    return table;
                }
                Err(error) => failures.push(reason_of(&error, name)),
            }
        }
        Err(DriverError::new(DriverErrorKind::LibraryMissing, "dlopen", failures.join("; ")))
    }

    /// Whether all functions of virtual memory management are there.
    pub(super) fn has_vmm(&self) -> bool {
        self.cuMemGetAllocationGranularity.is_some()
            && self.cuMemAddressReserve.is_some()
            && self.cuMemAddressFree.is_some()
            && self.cuMemCreate.is_some()
            && self.cuMemRelease.is_some()
            && self.cuMemMap.is_some()
            && self.cuMemUnmap.is_some()
            && self.cuMemSetAccess.is_some()
    }

    /// Whether a batch of copies can be one call.
    pub(super) fn has_batch_copy(&self) -> bool {
        self.cuMemcpyBatchAsync.is_some() || self.has_batch_copy_v2()
    }

    /// Whether that is the form of CUDA 13, which reports no failed index.
    pub(super) fn has_batch_copy_v2(&self) -> bool {
        self.cuMemcpyBatchAsync_v2.is_some()
    }

    /// Whether a capture's id can be read.
    pub(super) fn has_capture_info(&self) -> bool {
        self.cuStreamGetCaptureInfo_v2.is_some()
    }

    /// Whether a thread's capture mode can be exchanged.
    pub(super) fn has_capture_mode(&self) -> bool {
        self.cuThreadExchangeStreamCaptureMode.is_some()
    }

    /// Whether the work before `event` is done: the one call that returns a code which is neither success nor failure.
    ///
    /// # Safety
    /// As for `cuEventQuery`: the handle is the driver's.
    pub(super) unsafe fn query_event(&self, event: CUevent) -> Result<bool, DriverError> {
        // SAFETY: the caller keeps the C function's contract.
        match unsafe { (self.cuEventQuery)(event) } {
            NOT_READY => Ok(false),
            status => self.check("cuEventQuery", status).map(|()| true),
        }
    }

    #[inline]
    fn check(&self, call: &'static str, status: Status) -> Result<(), DriverError> {
        if status == 0 { Ok(()) } else { Err(self.failure(call, status)) }
    }

    #[cold]
    fn failure(&self, call: &'static str, status: Status) -> DriverError {
        let name = self.text_of(self.cuGetErrorName, status).unwrap_or_else(|| "CUDA error".to_string());
        let detail = match self.text_of(self.cuGetErrorString, status) {
            Some(words) => format!("{name} ({status}): {words}"),
            None => format!("{name} ({status})"),
        };
        DriverError::new(kind_of(status), call, detail)
    }

    /// What `function`, one of the two that describe errors, says about `status`.
    fn text_of(
        &self,
        function: Option<unsafe extern "C" fn(Status, *mut *const c_char) -> Status>,
        status: Status,
    ) -> Option<String> {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: `text` is valid for the one pointer that the function writes.
        let known = unsafe { function?(status, &mut text) } == 0;
        if !known || text.is_null() {
            return None;
        }
        // SAFETY: the driver returned a static, NUL-terminated string, as both functions are documented to.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

/// `dlerror`'s words, which libloading keeps in the source of its error.
#[cold]
fn reason_of(error: &libloading::Error, name: &OsStr) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => format!("{}: {error}", name.to_string_lossy()),
    }
}

#[cold]
fn missing_symbol(symbol: &'static str, library: &OsStr) -> DriverError {
    let detail = format!("{} has no {symbol}: a newer driver is needed", library.to_string_lossy());
    DriverError::new(DriverErrorKind::SymbolMissing, symbol, detail)
}

#[cold]
fn not_in_this_driver(call: &'static str) -> DriverError {
    DriverError::new(DriverErrorKind::NotSupported, call, "this driver does not have the function")
}
