//! The kernels on the CPU: the functions of `kernels/cpu.c`.

use super::{Call, Finding, RawCopy, Requant};

// SAFETY: the functions are those of `kernels/cpu.c`, which `build.rs` compiles into this library, with these parameters.
unsafe extern "C" {
    fn stratalloc_kernel_copy_blocks(threads: u64, ops: *const RawCopy, count: u64);
    fn stratalloc_kernel_fill_words(threads: u64, ptr: u64, size: u64, pattern: u32);
    fn stratalloc_kernel_check_words(threads: u64, ptr: u64, size: u64, pattern: u32, result: *mut Finding);
    fn stratalloc_kernel_checksum(threads: u64, ptr: u64, size: u64, result: *mut u64);
    fn stratalloc_kernel_quantize(threads: u64, src: u64, dst: u64, size: u64, format: u32);
    fn stratalloc_kernel_dequantize(threads: u64, src: u64, dst: u64, size: u64, format: u32);
}

/// Threads that a kernel is cut into: enough that they share work, few enough that memory is walked through in order.
const THREADS: u64 = 3;

impl Call {
    /// Runs the kernel on this thread.
    ///
    /// # Safety
    /// All ranges are host memory that is mapped with access, and `result` is 8-byte aligned; nothing else touches them meanwhile. What
    /// `Requant::check` refuses was refused.
    pub(in crate::driver) unsafe fn run(&self) {
        match self {
            Call::CopyBlocks(ops) => {
                let ops: Vec<RawCopy> = ops.iter().map(RawCopy::new).collect();
                // SAFETY: the ranges are the caller's promise; the array has as many members as are announced.
                unsafe { stratalloc_kernel_copy_blocks(THREADS, ops.as_ptr(), ops.len() as u64) }
            }
            // SAFETY: the caller's promise.
            Call::FillWords { ptr, size, pattern } => unsafe {
                stratalloc_kernel_fill_words(THREADS, ptr.0, *size, *pattern)
            },
            // SAFETY: the caller's promise; a finding is two aligned numbers.
            Call::CheckWords { ptr, size, pattern, result } => unsafe {
                stratalloc_kernel_check_words(THREADS, ptr.0, *size, *pattern, result.0 as *mut Finding)
            },
            // SAFETY: the caller's promise.
            Call::Checksum { ptr, size, result } => unsafe {
                stratalloc_kernel_checksum(THREADS, ptr.0, *size, result.0 as *mut u64)
            },
            // SAFETY: the caller's promise.
            Call::Quantize(Requant { src, dst, size, format }) => unsafe {
                stratalloc_kernel_quantize(THREADS, src.0, dst.0, *size, *format)
            },
            // SAFETY: the caller's promise.
            Call::Dequantize(Requant { src, dst, size, format }) => unsafe {
                stratalloc_kernel_dequantize(THREADS, src.0, dst.0, *size, *format)
            },
        }
    }
}
