//! Arrays: memory of a shape. It is allocated and accounted; copies to and from arrays are not supported.

use super::plain;
use super::space::{self, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{Array3DDescriptor, ArrayDescriptor};
use crate::handles::{Kind as HandleKind, Table};
use crate::process::contexts;
use crate::process::devices;

#[derive(Debug)]
struct Array {
    handle: usize,
    descriptor: Array3DDescriptor,
    ptr: u64,
    size: u64,
    /// The levels of a mipmapped array; each is an array that owns no memory.
    levels: Vec<usize>,
    /// The mipmapped array that this is a level of.
    parent: bool,
    mipmapped: bool,
}

static ARRAYS: Table<Array> = Table::new(HandleKind::Array);

/// Bytes of one channel, by format.
fn channel_size(format: u32) -> Res<u64> {
    match format {
        0x01 | 0x08 => Ok(1),
        0x02 | 0x09 | 0x10 => Ok(2),
        0x03 | 0x0a | 0x20 => Ok(4),
        _ => Err(Code::INVALID_VALUE),
    }
}

fn size_of(descriptor: &Array3DDescriptor) -> Res<u64> {
    let channels = u64::from(descriptor.channels);
    if descriptor.width == 0 || !matches!(channels, 1 | 2 | 4) {
        return Err(Code::INVALID_VALUE);
    }
    let element = channel_size(descriptor.format)? * channels;
    let rows = (descriptor.height.max(1) as u64).checked_mul(descriptor.depth.max(1) as u64);
    let size = rows.and_then(|rows| (descriptor.width as u64).checked_mul(rows)?.checked_mul(element));
    size.ok_or(Code::INVALID_VALUE)
}

fn make(descriptor: Array3DDescriptor) -> Res<usize> {
    let size = size_of(&descriptor)?;
    let ptr = plain::allocate(size, Kind::Array)?;
    let array = ARRAYS.insert(|handle| Array {
        handle,
        descriptor,
        ptr,
        size,
        levels: Vec::new(),
        parent: false,
        mipmapped: false,
    });
    Ok(array?.handle)
}

pub(crate) fn create(array: Out<usize>, descriptor: In<ArrayDescriptor>) -> Res {
    array.check()?;
    let ArrayDescriptor { width, height, format, channels } = descriptor.get()?;
    array.set(make(Array3DDescriptor { width, height, depth: 0, format, channels, flags: 0 })?)
}

pub(crate) fn create_3d(array: Out<usize>, descriptor: In<Array3DDescriptor>) -> Res {
    array.check()?;
    array.set(make(descriptor.get()?)?)
}

pub(crate) fn descriptor(descriptor: Out<ArrayDescriptor>, array: usize) -> Res {
    descriptor.check()?;
    let Array3DDescriptor { width, height, format, channels, .. } = ARRAYS.get(array)?.descriptor;
    descriptor.set(ArrayDescriptor { width, height, format, channels })
}

pub(crate) fn descriptor_3d(descriptor: Out<Array3DDescriptor>, array: usize) -> Res {
    descriptor.check()?;
    descriptor.set(ARRAYS.get(array)?.descriptor)
}

pub(crate) fn destroy(array: usize) -> Res {
    contexts::current()?;
    let found = ARRAYS.get(array)?;
    if found.mipmapped || found.parent {
        return Err(Code::INVALID_HANDLE);
    }
    ARRAYS.remove(array)?;
    space::take(found.ptr, |block| block.kind == Kind::Array).and_then(space::release)
}

/// Size, alignment, and fields that are reserved.
pub(crate) fn requirements(requirements: Out<[usize; 4]>, array: usize, device: i32) -> Res {
    requirements.check()?;
    devices::by_ordinal(device)?;
    requirements.set([ARRAYS.get(array)?.size as usize, 512, 0, 0])
}

pub(crate) fn create_mipmapped(array: Out<usize>, descriptor: In<Array3DDescriptor>, levels: u32) -> Res {
    array.check()?;
    let descriptor = descriptor.get()?;
    let most = usize::BITS - descriptor.width.max(descriptor.height).max(descriptor.depth).leading_zeros();
    let levels = levels.min(most);
    if levels == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let shape = |level: u32| Array3DDescriptor {
        width: (descriptor.width >> level).max(1),
        height: if descriptor.height == 0 { 0 } else { (descriptor.height >> level).max(1) },
        depth: if descriptor.depth == 0 { 0 } else { (descriptor.depth >> level).max(1) },
        ..descriptor
    };
    let sizes: Vec<u64> = (0..levels).map(|level| size_of(&shape(level))).collect::<Res<_>>()?;
    let size = sizes.iter().try_fold(0u64, |sum, &size| sum.checked_add(size)).ok_or(Code::INVALID_VALUE)?;
    let ptr = plain::allocate(size, Kind::Array)?;
    let mut parts = Vec::new();
    for (level, &size) in (0..levels).zip(&sizes) {
        let part = ARRAYS.insert(|handle| Array {
            handle,
            descriptor: shape(level),
            ptr,
            size,
            levels: Vec::new(),
            parent: true,
            mipmapped: false,
        });
        parts.push(part?.handle);
    }
    let whole =
        ARRAYS.insert(|handle| Array { handle, descriptor, ptr, size, levels: parts, parent: false, mipmapped: true });
    array.set(whole?.handle)
}

fn mipmapped(array: usize) -> Res<std::sync::Arc<Array>> {
    ARRAYS.get(array).and_then(|array| if array.mipmapped { Ok(array) } else { Err(Code::INVALID_HANDLE) })
}

pub(crate) fn level(level_array: Out<usize>, array: usize, level: u32) -> Res {
    level_array.check()?;
    level_array.set(*mipmapped(array)?.levels.get(level as usize).ok_or(Code::INVALID_VALUE)?)
}

pub(crate) fn destroy_mipmapped(array: usize) -> Res {
    contexts::current()?;
    let found = mipmapped(array)?;
    ARRAYS.remove(array)?;
    for &level in &found.levels {
        ARRAYS.remove(level)?;
    }
    space::take(found.ptr, |block| block.kind == Kind::Array).and_then(space::release)
}

pub(crate) fn mipmapped_requirements(requirements: Out<[usize; 4]>, array: usize, device: i32) -> Res {
    requirements.check()?;
    devices::by_ordinal(device)?;
    requirements.set([mipmapped(array)?.size as usize, 512, 0, 0])
}
