//! The library's own kernels on a CUDA device: loaded at the first launch, once a context.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction, CUmodule, CUstream};

use super::CudaDriver;
use super::context::count_failure;
use crate::driver::kernels::{Call, IMAGES, Image, Kernel, THREADS_A_BLOCK};
use crate::driver::{DriverError, DriverErrorKind, DriverResult};

/// The module, and its functions in the order of [`Kernel::ALL`].
#[derive(Debug)]
pub(super) struct Kernels {
    module: CUmodule,
    functions: [CUfunction; Kernel::ALL.len()],
}

impl CudaDriver {
    /// Launches a kernel. Refused with [`DriverErrorKind::NotSupported`] where the driver or the device has none.
    pub(super) fn launch(&self, call: &Call, stream: CUstream) -> DriverResult<()> {
        let is_empty = match call {
            Call::CopyBlocks(ops) => ops.iter().all(|op| op.size == 0),
            Call::FillWords { size, .. } | Call::CheckWords { size, .. } => *size == 0,
            // Its size is part of a sum.
            Call::Checksum { .. } => false,
        };
        if is_empty {
            return Ok(());
        }
        if let Call::CheckWords { result, .. } | Call::Checksum { result, .. } = call
            && !result.0.is_multiple_of(8)
        {
            let detail = format!("no number of 8 bytes can lie at {result}");
            return Err(DriverError::new(DriverErrorKind::InvalidValue, "cuLaunchKernel", detail));
        }
        let function = self.kernels()?.functions[call.kernel() as usize];
        let _current = self.current()?;
        let [x, y] = call.grid();
        call.with_params(|params| {
            // SAFETY: the function is of our own image, whose parameters `with_params` gives; the driver copies them before it returns.
            // The caller of the trait keeps all ranges until the stream has passed the launch.
            unsafe {
                let params = params.as_mut_ptr();
                self.table.cuLaunchKernel(
                    function,
                    x,
                    y,
                    1,
                    THREADS_A_BLOCK,
                    1,
                    1,
                    0,
                    stream,
                    params,
                    ptr::null_mut::<*mut c_void>(),
                )
            }
        })
    }

    fn kernels(&self) -> DriverResult<&Kernels> {
        if let Some(kernels) = self.kernels.get() {
            return Ok(kernels);
        }
        let _loading = self.loading.lock();
        if let Some(kernels) = self.kernels.get() {
            return Ok(kernels);
        }
        let loaded = self.load_kernels()?;
        Ok(self.kernels.get_or_init(|| loaded))
    }

    fn load_kernels(&self) -> DriverResult<Kernels> {
        use CUdevice_attribute as Attribute;
        // While another thread captures, loading would be refused, and spoil the capture.
        let _guards = self.relaxed()?;
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
        let minor = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
        let mut refusal = None;
        for image in IMAGES.iter().filter(|image| fits(image, major, minor)) {
            match self.load_image(image) {
                Ok(kernels) => return Ok(kernels),
                Err(error) => refusal = Some(error),
            }
        }
        let detail = match refusal {
            Some(error) if error.is_out_of_memory() || error.kind == DriverErrorKind::Sticky => return Err(error),
            Some(error) => error.to_string(),
            None => format!("compute capability {major}.{minor} is below 8.0"),
        };
        Err(DriverError::new(DriverErrorKind::NotSupported, "cuModuleLoadData", detail))
    }

    fn load_image(&self, image: &Image) -> DriverResult<Kernels> {
        // PTX is a text, which ends with a NUL.
        let text = match image.capability {
            Some(_) => None,
            None => CString::new(image.bytes).ok(),
        };
        let start = text.as_ref().map_or(image.bytes.as_ptr(), |text| text.as_ptr().cast());
        let mut module: CUmodule = ptr::null_mut();
        // SAFETY: `module` is valid for the one handle that is written; a cubin knows its size, and PTX ends with its NUL.
        unsafe { self.table.cuModuleLoadData(&mut module, start.cast()) }?;
        let mut functions = [ptr::null_mut(); Kernel::ALL.len()];
        for (function, kernel) in functions.iter_mut().zip(Kernel::ALL) {
            // SAFETY: `function` is valid for the one handle that is written, the name is a C string.
            let found = unsafe { self.table.cuModuleGetFunction(function, module, kernel.name().as_ptr()) };
            if let Err(error) = found {
                // SAFETY: the module was loaded just now, and nobody uses it.
                count_failure(unsafe { self.table.cuModuleUnload(module) });
                return Err(error);
            }
        }
        Ok(Kernels { module, functions })
    }

    /// Gives the module back before its context.
    pub(super) fn unload_kernels(&mut self) {
        let Some(kernels) = self.kernels.take() else { return };
        let unloaded = self.current().and_then(|_current| {
            // SAFETY: the module was loaded in this context, and nobody is left to launch anything.
            unsafe { self.table.cuModuleUnload(kernels.module) }
        });
        count_failure(unloaded);
    }
}

/// Machine code is for devices of the same generation, from that minor number on; PTX for all later ones.
fn fits(image: &Image, major: u32, minor: u32) -> bool {
    match image.capability {
        Some((generation, least)) => generation == major && minor >= least,
        None => major >= 8,
    }
}
