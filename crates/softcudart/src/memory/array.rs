//! Arrays, which textures read from.

use std::ffi::{c_int, c_uint};

use super::Extent;
use crate::driver::Table;
use crate::driver::types::{ArrayDescriptor, Handle};
use crate::entry::{api, read, write};
use crate::error::{Error, Outcome};

/// `cudaChannelFormatDesc`: the bits of up to four channels, and how to read them.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct ChannelFormat {
    bits: [c_int; 4],
    kind: c_int,
}

/// `cudaChannelFormatKind`.
const SIGNED: c_int = 0;
const UNSIGNED: c_int = 1;
const FLOAT: c_int = 2;

impl ChannelFormat {
    /// The driver's format, and the number of channels.
    fn to_driver(self) -> Result<(u32, c_uint), Error> {
        let channels = self.bits.iter().take_while(|bits| **bits != 0).count();
        let bits = self.bits[0];
        let alike = self.bits[..channels].iter().all(|other| *other == bits);
        let rest_empty = self.bits[channels..].iter().all(|other| *other == 0);
        if !alike || !rest_empty || !matches!(channels, 1 | 2 | 4) {
            return Err(Error::INVALID_CHANNEL_DESCRIPTOR);
        }
        let format = match (self.kind, bits) {
            (UNSIGNED, 8) => 0x01,
            (UNSIGNED, 16) => 0x02,
            (UNSIGNED, 32) => 0x03,
            (SIGNED, 8) => 0x08,
            (SIGNED, 16) => 0x09,
            (SIGNED, 32) => 0x0a,
            (FLOAT, 16) => 0x10,
            (FLOAT, 32) => 0x20,
            _ => return Err(Error::INVALID_CHANNEL_DESCRIPTOR),
        };
        Ok((format, channels as c_uint))
    }

    fn from_driver(format: u32, channels: c_uint) -> Result<Self, Error> {
        let (kind, bits) = match format {
            0x01 => (UNSIGNED, 8),
            0x02 => (UNSIGNED, 16),
            0x03 => (UNSIGNED, 32),
            0x08 => (SIGNED, 8),
            0x09 => (SIGNED, 16),
            0x0a => (SIGNED, 32),
            0x10 => (FLOAT, 16),
            0x20 => (FLOAT, 32),
            _ => return Err(Error::INVALID_CHANNEL_DESCRIPTOR),
        };
        let mut all = [0; 4];
        all.iter_mut().take(channels as usize).for_each(|channel| *channel = bits);
        Ok(ChannelFormat { bits: all, kind })
    }
}

/// # Safety
/// `format` is null or valid for reads.
unsafe fn descriptor(format: *const ChannelFormat, extent: Extent, flags: c_uint) -> Result<ArrayDescriptor, Error> {
    // SAFETY: as the caller promises.
    let (format, channels) = unsafe { read(format)? }.to_driver()?;
    let Extent { width, height, depth } = extent;
    Ok(ArrayDescriptor { width, height, depth, format, channels, flags })
}

fn describe(table: &Table, array: Handle) -> Result<(ChannelFormat, ArrayDescriptor), Error> {
    let mut descriptor = ArrayDescriptor::default();
    // SAFETY: `descriptor` is a local; the driver checks the handle.
    unsafe { table.cuArray3DGetDescriptor(&raw mut descriptor, array)? };
    Ok((ChannelFormat::from_driver(descriptor.format, descriptor.channels)?, descriptor))
}

/// Writes through an out-parameter that may be left out.
///
/// # Safety
/// `out` is null or valid for a write.
unsafe fn write_if_wanted<T>(out: *mut T, value: T) -> Outcome {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: not null, and so valid.
    unsafe { write(out, value) }
}

api! {
    fn cudaMallocArray(
        array: *mut Handle, format: *const ChannelFormat, width: usize, height: usize, flags: c_uint
    ) |table| {
        let descriptor = descriptor(format, Extent { width, height, depth: 0 }, flags)?;
        table.cuArray3DCreate(array, &raw const descriptor)
    }

    fn cudaMalloc3DArray(array: *mut Handle, format: *const ChannelFormat, extent: Extent, flags: c_uint) |table| {
        let descriptor = descriptor(format, extent, flags)?;
        table.cuArray3DCreate(array, &raw const descriptor)
    }

    fn cudaMallocMipmappedArray(
        array: *mut Handle, format: *const ChannelFormat, extent: Extent, levels: c_uint, flags: c_uint
    ) |table| {
        let descriptor = descriptor(format, extent, flags)?;
        table.cuMipmappedArrayCreate(array, &raw const descriptor, levels)
    }

    fn cudaGetMipmappedArrayLevel(level_array: *mut Handle, array: Handle, level: c_uint) |table| {
        table.cuMipmappedArrayGetLevel(level_array, array, level)
    }

    fn cudaFreeArray(array: Handle) |table| {
        if array.is_null() { Ok(()) } else { table.cuArrayDestroy(array) }
    }

    fn cudaFreeMipmappedArray(array: Handle) |table| {
        if array.is_null() { Ok(()) } else { table.cuMipmappedArrayDestroy(array) }
    }

    fn cudaGetChannelDesc(format: *mut ChannelFormat, array: Handle) |table| { write(format, describe(table, array)?.0) }

    fn cudaArrayGetInfo(format: *mut ChannelFormat, extent: *mut Extent, flags: *mut c_uint, array: Handle) |table| {
        let (channels, descriptor) = describe(table, array)?;
        let ArrayDescriptor { width, height, depth, .. } = descriptor;
        write_if_wanted(format, channels)?;
        write_if_wanted(extent, Extent { width, height, depth })?;
        write_if_wanted(flags, descriptor.flags)
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cudaCreateChannelDesc(x: c_int, y: c_int, z: c_int, w: c_int, kind: c_int) -> ChannelFormat {
    ChannelFormat { bits: [x, y, z, w], kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_survive_the_way_to_the_driver_and_back() {
        for kind in [SIGNED, UNSIGNED, FLOAT] {
            for bits in [8, 16, 32] {
                for channels in [1, 2, 4] {
                    let mut format = ChannelFormat { bits: [0; 4], kind };
                    format.bits.iter_mut().take(channels).for_each(|channel| *channel = bits);
                    if kind == FLOAT && bits == 8 {
                        assert!(format.to_driver().is_err(), "there are no floats of a byte");
                        continue;
                    }
                    let (number, count) = format.to_driver().expect("a format that exists");
                    let back = ChannelFormat::from_driver(number, count).expect("the same format");
                    assert_eq!(back, format);
                }
            }
        }
        let uneven = ChannelFormat { bits: [8, 16, 0, 0], kind: SIGNED };
        assert!(uneven.to_driver().is_err(), "channels have one width");
    }
}
