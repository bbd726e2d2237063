//! The library's own kernels on a CUDA device: loaded at the first launch, once a context.

use std::ffi::{CString, c_void};
use std::ptr;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction, CUmodule, CUstream};

use super::CudaDriver;
use super::context::count_failure;
use crate::driver::kernels::{COPIES_A_LAUNCH, Call, IMAGES, Image, Kernel};
use crate::driver::{DriverError, DriverErrorKind, DriverResult};

/// Threads a block of every launch.
const THREADS_A_BLOCK: u32 = 256;
/// Bytes that a thread should have to move before another one is worth while, and the most blocks.
const BYTES_A_THREAD: u64 = 64;
const BLOCKS_MAX: u32 = 1024;
/// The most blocks of a sum.
const SUMMING_BLOCKS_MAX: u32 = 256;

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
            Call::Dequantize(requant) => requant.size == 0,
            // Its size is part of a sum, or of a header.
            Call::Checksum { .. } | Call::Quantize(_) => false,
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
        if let Call::Quantize(requant) | Call::Dequantize(requant) = call {
            requant.check("cuLaunchKernel")?;
        }
        let function = self.kernels()?.functions[call.kernel() as usize];
        let _current = self.current()?;
        let [x, y] = grid_of(call);
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

/// Blocks of the grid along x and y: copies have a row each, which together need not be more than a device can have under way.
fn grid_of(call: &Call) -> [u32; 2] {
    let blocks = |size: u64| {
        let blocks = size.div_ceil(BYTES_A_THREAD * u64::from(THREADS_A_BLOCK));
        blocks.clamp(1, u64::from(BLOCKS_MAX)) as u32
    };
    match call {
        Call::CopyBlocks(ops) => {
            let largest = ops.iter().map(|op| op.size).max().unwrap_or(0);
            let rows = ops.len().clamp(1, COPIES_A_LAUNCH) as u32;
            [blocks(largest).min(BLOCKS_MAX / rows).max(1), rows]
        }
        Call::FillWords { size, .. } | Call::CheckWords { size, .. } => [blocks(*size), 1],
        // Each block adds to memory of the host once: 1024 such additions took 0.12 ms on an H100.
        Call::Checksum { size, .. } => [blocks(*size).min(SUMMING_BLOCKS_MAX), 1],
        Call::Quantize(requant) | Call::Dequantize(requant) => [blocks(requant.size), 1],
    }
}

/// Machine code is for devices of the same generation, from that minor number on; PTX for all later ones.
fn fits(image: &Image, major: u32, minor: u32) -> bool {
    match image.capability {
        Some((generation, least)) => generation == major && minor >= least,
        None => major >= 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::CopyOp;
    use crate::units::DevicePtr;

    #[test]
    fn grids_are_what_the_work_needs() {
        let ptr = DevicePtr(0);
        for (size, blocks) in [(0, 1), (1, 1), (16 << 10, 1), (32 << 10, 2), (1 << 40, BLOCKS_MAX)] {
            assert_eq!(grid_of(&Call::FillWords { ptr, size, pattern: 1 }), [blocks, 1]);
            let summing = blocks.min(SUMMING_BLOCKS_MAX);
            assert_eq!(grid_of(&Call::Checksum { ptr, size, result: ptr }), [summing, 1]);
        }
        for (rows, size, grid) in [(1, 64 << 20, [1024, 1]), (128, 64 << 20, [8, 128]), (128, 512, [1, 128])] {
            let op = CopyOp { dst: ptr, src: ptr, size };
            assert_eq!(grid_of(&Call::CopyBlocks(vec![op; rows])), grid);
        }
    }

    #[test]
    fn every_device_from_8_0_on_has_an_image() {
        let first = |major, minor| IMAGES.iter().find(|image| fits(image, major, minor)).map(|image| image.capability);
        assert_eq!(first(7, 5), None);
        for minor in [0, 6, 9] {
            assert_eq!(first(8, minor), Some(Some((8, 0))));
        }
        assert_eq!(first(9, 0), Some(Some((9, 0))));
        assert_eq!((first(10, 0), first(12, 1)), (Some(None), Some(None)));
    }
}
