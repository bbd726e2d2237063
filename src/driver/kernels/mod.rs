//! The library's own kernels: what they are called with, on any device.
//!
//! Their sources are in `kernels/`, in the part that CUDA C++ and C have in common. `CudaDriver` launches the code in
//! [`IMAGES`]; the software device calls the same sources, compiled for the CPU by `build.rs`. [`Call`] is a launch as a value,
//! and knows how its parameters lie in memory.

mod host;
mod quant;

use std::ffi::c_void;

pub use quant::{Element, NotQuantized, Quant, dequantize, quantize};

use super::{CopyOp, DriverError, DriverErrorKind};
use crate::units::DevicePtr;

/// Copies that one launch takes: as many as fit into a kernel's parameters.
pub const COPIES_A_LAUNCH: usize = 128;
/// Code for a device, as [`IMAGES`] has it.
#[derive(Debug)]
pub struct Image {
    /// The compute capability for which this is machine code; `None` for PTX, which every later device's driver compiles.
    pub capability: Option<(u32, u32)>,
    /// A cubin, or PTX without its final NUL.
    pub bytes: &'static [u8],
}

/// The kernels, compiled: machine code first. `cargo xtask kernels` proves that the sources give just this.
pub const IMAGES: [Image; 3] = [
    Image { capability: Some((8, 0)), bytes: include_bytes!("../../../kernels/built/stratalloc.sm_80.cubin") },
    Image { capability: Some((9, 0)), bytes: include_bytes!("../../../kernels/built/stratalloc.sm_90.cubin") },
    Image { capability: None, bytes: include_bytes!("../../../kernels/built/stratalloc.ptx") },
];

impl Image {
    /// Whether the code at `image` is this one.
    ///
    /// # Safety
    /// `image` is what CUDA takes for a module: a cubin, a fat binary, or PTX that ends with a NUL.
    pub unsafe fn is_at(&self, image: *const c_void) -> bool {
        let image = image.cast::<u8>();
        // SAFETY: bytes are read as long as they are the same. So far the module is this one, which goes on, as every proper beginning
        // of a cubin is none, and of PTX lacks the NUL.
        (0..self.bytes.len()).all(|at| unsafe { image.add(at).read() } == self.bytes[at])
    }
}

/// What a check has found, as kernels write it to pinned memory: [`Finding::NONE`] to begin with, and several checks may add to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Finding {
    /// Bytes that differ.
    pub count: u64,
    /// The lowest of them: its offset in the upper 56 bits, what is there in the lower 8.
    first: u64,
}

impl Finding {
    /// Nothing was found.
    pub const NONE: Finding = Finding { count: 0, first: u64::MAX };

    /// The offset of the first byte that differs, and what is there.
    pub fn first(&self) -> Option<(u64, u8)> {
        (self.count > 0).then_some((self.first >> 8, self.first as u8))
    }
}

/// The sum that [`Driver::checksum`](super::Driver::checksum) adds, of bytes in host memory: of the range's words of 8 bytes, the lowest byte first, the last
/// padded with zeros, each mixed with its place, and of its size. Damage within one word is always seen, other damage but for
/// one case in 2^64; it does not withstand somebody who wants a collision.
pub fn checksum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let sum = (1..).zip(words).fold(0u64, |sum, (place, word)| sum.wrapping_add(mixed(word, place)));
    sum.wrapping_add(mixed(bytes.len() as u64, 0))
}

/// The finaliser of splitmix64 over a word and its place.
fn mixed(word: u64, place: u64) -> u64 {
    let x = word.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The name under which each kernel is found in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// `stratalloc_copy_blocks`.
    CopyBlocks,
    /// `stratalloc_fill_words`.
    FillWords,
    /// `stratalloc_check_words`.
    CheckWords,
    /// `stratalloc_checksum`.
    Checksum,
    /// `stratalloc_quantize`.
    Quantize,
    /// `stratalloc_dequantize`.
    Dequantize,
}

impl Kernel {
    /// Every kernel, in the order of their numbers.
    pub const ALL: [Kernel; 6] = [
        Kernel::CopyBlocks,
        Kernel::FillWords,
        Kernel::CheckWords,
        Kernel::Checksum,
        Kernel::Quantize,
        Kernel::Dequantize,
    ];

    /// The name in the images.
    pub const fn name(self) -> &'static std::ffi::CStr {
        match self {
            Kernel::CopyBlocks => c"stratalloc_copy_blocks",
            Kernel::FillWords => c"stratalloc_fill_words",
            Kernel::CheckWords => c"stratalloc_check_words",
            Kernel::Checksum => c"stratalloc_checksum",
            Kernel::Quantize => c"stratalloc_quantize",
            Kernel::Dequantize => c"stratalloc_dequantize",
        }
    }
}

/// The parameter of a launch of [`Kernel::CopyBlocks`].
#[derive(Debug)]
#[repr(C)]
struct CopyTable {
    count: u64,
    ops: [RawCopy; COPIES_A_LAUNCH],
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RawCopy {
    dst: u64,
    src: u64,
    size: u64,
}

impl RawCopy {
    fn new(op: &CopyOp) -> RawCopy {
        RawCopy { dst: op.dst.0, src: op.src.0, size: op.size }
    }
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// At most [`COPIES_A_LAUNCH`] copies.
    CopyBlocks(Vec<CopyOp>),
    /// Fills a range with a pattern.
    FillWords {
        /// Where the range begins.
        ptr: DevicePtr,
        /// Its size in bytes.
        size: u64,
        /// The pattern, its lowest byte first.
        pattern: u32,
    },
    /// Checks that a range is filled with a pattern.
    CheckWords {
        /// Where the range begins.
        ptr: DevicePtr,
        /// Its size in bytes.
        size: u64,
        /// The pattern, its lowest byte first.
        pattern: u32,
        /// A [`Finding`].
        result: DevicePtr,
    },
    /// Adds the sum of a range.
    Checksum {
        /// Where the range begins.
        ptr: DevicePtr,
        /// Its size in bytes.
        size: u64,
        /// A `u64`.
        result: DevicePtr,
    },
    /// Makes codes of numbers.
    Quantize(Requant),
    /// Makes numbers of codes.
    Dequantize(Requant),
}

/// The parameters of [`Call::Quantize`] and [`Call::Dequantize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requant {
    /// What is read.
    pub src: DevicePtr,
    /// What is written.
    pub dst: DevicePtr,
    /// Bytes of the numbers.
    pub size: u64,
    /// [`Quant::format`].
    pub format: u32,
}

impl Requant {
    /// How numbers become codes, or `None` where the format is none.
    pub(super) fn quant(&self) -> Option<Quant> {
        Quant::from_format(self.format)
    }

    /// Refuses what the kernels cannot be called with.
    pub(super) fn check(&self, call: &'static str) -> Result<(), DriverError> {
        let refuse = |detail: String| Err(DriverError::new(DriverErrorKind::InvalidValue, call, detail));
        if self.quant().is_none() {
            return refuse(format!("{:#010x} is no format of codes", self.format));
        }
        match [self.src, self.dst].into_iter().find(|ptr| !ptr.0.is_multiple_of(16)) {
            Some(askew) => refuse(format!("{askew} is no multiple of 16")),
            None => Ok(()),
        }
    }
}

impl Call {
    /// The kernel.
    pub fn kernel(&self) -> Kernel {
        match self {
            Call::CopyBlocks(_) => Kernel::CopyBlocks,
            Call::FillWords { .. } => Kernel::FillWords,
            Call::CheckWords { .. } => Kernel::CheckWords,
            Call::Checksum { .. } => Kernel::Checksum,
            Call::Quantize(_) => Kernel::Quantize,
            Call::Dequantize(_) => Kernel::Dequantize,
        }
    }

    /// Hands the parameters to `launch` as `cuLaunchKernel` takes them: a pointer to each.
    pub fn with_params<T>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> T) -> T {
        fn at<P>(parameter: &P) -> *mut c_void {
            std::ptr::from_ref(parameter).cast_mut().cast()
        }
        match self {
            Call::CopyBlocks(ops) => {
                let none = RawCopy { dst: 0, src: 0, size: 0 };
                let mut table = CopyTable { count: 0, ops: [none; COPIES_A_LAUNCH] };
                for (raw, op) in table.ops.iter_mut().zip(ops) {
                    *raw = RawCopy::new(op);
                    table.count += 1;
                }
                launch(&mut [at(&table)])
            }
            Call::FillWords { ptr, size, pattern } => launch(&mut [at(&ptr.0), at(size), at(pattern)]),
            Call::CheckWords { ptr, size, pattern, result } => {
                launch(&mut [at(&ptr.0), at(size), at(pattern), at(&result.0)])
            }
            Call::Checksum { ptr, size, result } => launch(&mut [at(&ptr.0), at(size), at(&result.0)]),
            Call::Quantize(Requant { src, dst, size, format })
            | Call::Dequantize(Requant { src, dst, size, format }) => {
                launch(&mut [at(&src.0), at(&dst.0), at(size), at(format)])
            }
        }
    }

    /// The launch of a kernel with these parameters, which are as `cuLaunchKernel` takes them: a pointer to each.
    ///
    /// # Safety
    /// `params` points to as many pointers as the kernel has parameters, each to a value of the parameter's type.
    pub unsafe fn from_params(kernel: Kernel, params: *const *const c_void) -> Call {
        // SAFETY: the caller says that there is such a value at every index used below.
        let word = |index: usize| unsafe { params.add(index).read().cast::<u64>().read_unaligned() };
        // SAFETY: as above; only the third parameter of two kernels and the fourth of two others is a `u32`.
        let half = |index: usize| unsafe { params.add(index).read().cast::<u32>().read_unaligned() };
        let pattern = || half(2);
        let ptr = |index| DevicePtr(word(index));
        match kernel {
            Kernel::CopyBlocks => {
                // SAFETY: as above; the one parameter is the table, all of whose bytes are numbers.
                let table = unsafe { params.read().cast::<CopyTable>().read_unaligned() };
                let ops = table.ops.iter().take(table.count.min(COPIES_A_LAUNCH as u64) as usize);
                let copy = |op: &RawCopy| CopyOp { dst: DevicePtr(op.dst), src: DevicePtr(op.src), size: op.size };
                Call::CopyBlocks(ops.map(copy).collect())
            }
            Kernel::FillWords => Call::FillWords { ptr: ptr(0), size: word(1), pattern: pattern() },
            Kernel::CheckWords => Call::CheckWords { ptr: ptr(0), size: word(1), pattern: pattern(), result: ptr(3) },
            Kernel::Checksum => Call::Checksum { ptr: ptr(0), size: word(1), result: ptr(2) },
            Kernel::Quantize | Kernel::Dequantize => {
                let requant = Requant { src: ptr(0), dst: ptr(1), size: word(2), format: half(3) };
                if kernel == Kernel::Quantize { Call::Quantize(requant) } else { Call::Dequantize(requant) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls() -> Vec<Call> {
        let (ptr, result) = (DevicePtr(0x7000_0000_1234), DevicePtr(0x10_0008));
        let op = |n: u64| CopyOp { dst: DevicePtr(n << 20), src: DevicePtr(n << 30), size: n };
        vec![
            Call::CopyBlocks(vec![]),
            Call::CopyBlocks((0..COPIES_A_LAUNCH as u64).map(op).collect()),
            Call::FillWords { ptr, size: 1 << 40, pattern: 0xdead_beef },
            Call::CheckWords { ptr, size: 17, pattern: 1, result },
            Call::Checksum { ptr, size: 0, result },
            Call::Quantize(Requant { src: ptr, dst: result, size: 3 << 33, format: 0x0007_0802 }),
            Call::Dequantize(Requant { src: result, dst: ptr, size: 1, format: u32::MAX }),
        ]
    }

    #[test]
    fn parameters_come_back_as_they_went() {
        for call in calls() {
            // SAFETY: the pointers are those of the call's own kernel.
            let back = call.with_params(|params| unsafe { Call::from_params(call.kernel(), params.as_ptr().cast()) });
            assert_eq!(back, call);
        }
    }

    #[test]
    fn images_are_what_they_say() {
        for image in &IMAGES {
            assert_eq!(image.bytes.starts_with(b"\x7fELF"), image.capability.is_some());
            for kernel in Kernel::ALL {
                let name = kernel.name().to_bytes();
                assert!(image.bytes.windows(name.len()).any(|found| found == name), "{kernel:?}");
            }
        }
        let mut ptx = IMAGES[2].bytes.to_vec();
        ptx.push(0);
        let found = IMAGES.iter().position(|image| {
            // SAFETY: PTX with its NUL.
            unsafe { image.is_at(ptx.as_ptr().cast()) }
        });
        assert_eq!(found, Some(2));
        ptx[100] ^= 1;
        // SAFETY: text with its NUL, as PTX is.
        assert!(!unsafe { IMAGES[2].is_at(ptx.as_ptr().cast()) });
    }
}
