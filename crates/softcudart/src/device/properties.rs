//! `cudaDeviceProp`, whose layout differs between CUDA 12 and 13: one list of fields in C's order, written field by field.

use std::ffi::{c_char, c_int, c_void};

use super::{check_device, count};
use crate::driver::Table;
use crate::driver::types::Uuid;
use crate::entry::{driver_only_api, write};
use crate::error::{Error, Outcome};

/// A field, by where its value comes from.
enum Field {
    /// An `int`: a device attribute.
    Int(c_int),
    /// A `size_t`: a device attribute.
    Size(c_int),
    /// An `int` that CUDA 13 has dropped.
    Int12(c_int),
    /// An `int` that CUDA 13 has added.
    Int13(c_int),
    /// An `int` of CUDA 12 that no attribute has any more.
    Zero12,
    /// The device's memory, a `size_t`.
    TotalMemory,
}

use Field::{Int, Int12, Int13, Size, TotalMemory, Zero12};

const NAME_BYTES: usize = 256;
const SIZE_12: usize = 1032;
const SIZE_13: usize = 1008;
/// `cudaGetDeviceProperties` of CUDA 12, without a suffix, is that of CUDA 11, whose structure ends with
/// `reservedSharedMemPerBlock`.
const SIZE_11: usize = 728;

/// What comes after the name, the UUID, the LUID and its mask. The numbers are those of `cudaDeviceAttr`.
#[rustfmt::skip]
const FIELDS: &[Field] = &[
    TotalMemory, Size(8), Int(12), Int(10), Size(11), Int(1), // memory per block, registers, warp, pitch, threads
    Int(2), Int(3), Int(4), Int(5), Int(6), Int(7),           // block and grid dimensions
    Int12(13), Size(9), Int(75), Int(76),                     // clock, constant memory, compute capability
    Size(14), Size(51), Int12(15), Int(16), Int12(17), Int(18), Int(19), Int12(20),
    Int(21), Int(77), Int12(69), Int(22), Int(23), Int(73), Int(74), Int(70), Int(71), Int(72),
    Int(45), Int(46), Int(24), Int(25), Int(26), Int(47), Int(48), Int(49), Int(52),
    Int(42), Int(43), Int(27), Int(28), Int(29), Int(53), Int(54), // textures
    Int(55), Int(56), Int(57), Int(58), Int(59), Int(60), Int(61), Int(62), Int(63), Int(64), Int(65),
    Int(66), Int(67), Int(68), Size(30),                      // surfaces
    Int(31), Int(32), Int(33), Int(34), Int(50), Int(35), Int(40), Int(41), Int12(36), Int(37), Int(38), Int(108),
    Int(39), Int(78), Int(79), Int(80), Size(81), Int(82), Int(83), Int(84), Int(85), Int(86), Int12(87),
    Int(88), Int(89), Int(90), Int(91), Int(95), Zero12, Size(97), Int(100), Int(101), Int(106), Int(109), Size(111),
    Int(99), Int(112), Int(113), Int(114), Int(115), Int(116), Int(117), Int(118), Int(119), Int(121), Int(125),
    Int(120), Int(129),
    Int13(130), Int13(131), Int13(133), Int13(134), Int13(139), Int13(140), Int13(143),
];

/// Fills a structure as C would lay it out.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, value: &[u8]) {
        let start = self.at.next_multiple_of(value.len());
        self.at = start + value.len();
        if let Some(place) = self.bytes.get_mut(start..self.at) {
            place.copy_from_slice(value);
        }
    }
}

fn attribute(table: &Table, attribute: c_int, device: c_int) -> c_int {
    let mut value = 0;
    // SAFETY: `value` is a local. An attribute that the driver does not know leaves the field at 0.
    let known = unsafe { table.cuDeviceGetAttribute(&raw mut value, attribute, device) };
    if known.is_ok() { value } else { 0 }
}

/// Fills `bytes` with the properties of `device`, laid out for CUDA 12 or 13.
fn fill(table: &Table, device: c_int, is_13: bool, bytes: &mut [u8]) -> Outcome {
    check_device(table, device)?;
    let mut uuid = Uuid::default();
    let mut total = 0_usize;
    let name = bytes.get_mut(..NAME_BYTES).ok_or(Error::UNKNOWN)?;
    // SAFETY: the name has the length that is said, the others are locals.
    unsafe {
        table.cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), NAME_BYTES as c_int, device)?;
        table.cuDeviceGetUuid(&raw mut uuid, device)?;
        table.cuDeviceTotalMem(&raw mut total, device)?;
    }
    let mut writer = Writer { bytes, at: NAME_BYTES };
    writer.put(&uuid.bytes);
    // The LUID and its mask are Windows'.
    writer.put(&[0; 8]);
    writer.put(&[0; 4]);
    for field in FIELDS {
        match *field {
            Int(number) => writer.put(&attribute(table, number, device).to_ne_bytes()),
            Size(number) => {
                let value = usize::try_from(attribute(table, number, device)).unwrap_or(0);
                writer.put(&value.to_ne_bytes());
            }
            Int12(number) if !is_13 => writer.put(&attribute(table, number, device).to_ne_bytes()),
            Int13(number) if is_13 => writer.put(&attribute(table, number, device).to_ne_bytes()),
            Zero12 if !is_13 => writer.put(&0_i32.to_ne_bytes()),
            Int12(_) | Int13(_) | Zero12 => {}
            TotalMemory => writer.put(&total.to_ne_bytes()),
        }
    }
    Ok(())
}

/// Fills the caller's structure of `size` bytes.
///
/// # Safety
/// `out` is null or valid for writes of `size` bytes.
unsafe fn properties(table: &Table, out: *mut c_void, device: c_int, is_13: bool, size: usize) -> Outcome {
    if out.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    let mut bytes = [0_u8; SIZE_12];
    fill(table, device, is_13, &mut bytes)?;
    // SAFETY: valid for `size` bytes, as the caller promises, and no version's size is above that of the array.
    unsafe { out.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), size.min(SIZE_12)) };
    Ok(())
}

driver_only_api! {
    fn softcudart13_cudaGetDeviceProperties(out: *mut c_void, device: c_int) |table| {
        properties(table, out, device, true, SIZE_13)
    }

    fn softcudart12_cudaGetDeviceProperties_v2(out: *mut c_void, device: c_int) |table| {
        properties(table, out, device, false, SIZE_12)
    }

    fn softcudart12_cudaGetDeviceProperties(out: *mut c_void, device: c_int) |table| {
        properties(table, out, device, false, SIZE_11)
    }

    // All devices of a machine are alike here: any of them fits what is asked for.
    fn cudaChooseDevice(device: *mut c_int, wanted: *const c_void) |table| {
        if wanted.is_null() || count(table)? == 0 {
            return Err(Error::INVALID_VALUE);
        }
        write(device, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the last field ends, and where some others begin, by CUDA's headers.
    fn offsets(is_13: bool) -> (Vec<(c_int, usize)>, usize) {
        let mut bytes = [0; SIZE_12];
        let mut writer = Writer { bytes: &mut bytes, at: NAME_BYTES + 16 + 8 + 4 };
        let mut starts = Vec::new();
        for field in FIELDS {
            match *field {
                Int(number) => {
                    writer.put(&[0; 4]);
                    starts.push((number, writer.at - 4));
                }
                Size(number) => {
                    writer.put(&[0; 8]);
                    starts.push((number, writer.at - 8));
                }
                TotalMemory => {
                    writer.put(&[0; 8]);
                    starts.push((-1, writer.at - 8));
                }
                Int12(_) | Zero12 if !is_13 => writer.put(&[0; 4]),
                Int13(_) if is_13 => writer.put(&[0; 4]),
                Int12(_) | Int13(_) | Zero12 => {}
            }
        }
        (starts, writer.at)
    }

    #[test]
    fn fields_are_where_cudas_headers_put_them() {
        // totalGlobalMem, major, multiProcessorCount, pciBusID, l2CacheSize, maxThreadsPerMultiProcessor,
        // sharedMemPerBlockOptin, reservedSharedMemPerBlock, hostRegisterSupported, clusterLaunch
        let numbers = [-1, 75, 16, 33, 38, 39, 97, 111, 99, 120];
        let of_13 = [288, 360, 384, 568, 596, 604, 672, 696, 704, 748];
        let of_12 = [288, 360, 388, 584, 616, 624, 696, 720, 728, 772];
        for (is_13, expected) in [(true, of_13), (false, of_12)] {
            let (starts, end) = offsets(is_13);
            for (number, offset) in numbers.into_iter().zip(expected) {
                let found = starts.iter().find(|(known, _)| *known == number).map(|(_, at)| *at);
                assert_eq!(found, Some(offset), "attribute {number}, CUDA 13: {is_13}");
            }
            let reserved = if is_13 { 56 } else { 63 };
            let size = if is_13 { SIZE_13 } else { SIZE_12 };
            assert_eq!((end + reserved * 4).next_multiple_of(8), size, "CUDA 13: {is_13}");
        }
    }
}
