//! Functions and kernels, which are one here.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use stratalloc::driver::kernels::Kernel;

use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::handles::{Kind, Table};
use crate::process::devices;

/// A function of a module, or a kernel of a library.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) handle: usize,
    /// The module or library that it is from.
    pub(crate) owner: usize,
    pub(crate) name: CString,
    /// Which of the library's own kernels it is.
    pub(crate) own: Option<Kernel>,
}

static FUNCTIONS: Table<Function> = Table::new(Kind::Function);

pub(crate) fn get(handle: usize) -> Res<Arc<Function>> {
    FUNCTIONS.get(handle)
}

pub(crate) fn make(owner: usize, name: &str, own: Option<Kernel>) -> Res<usize> {
    let name = CString::new(name).map_err(|_| Code::INVALID_VALUE)?;
    Ok(FUNCTIONS.insert(|handle| Function { handle, owner, name, own })?.handle)
}

pub(crate) fn remove(handle: usize) {
    // It was made with its owner, and ends with it.
    let _ = FUNCTIONS.remove(handle);
}

/// Plausible answers, as of a small kernel compiled for compute capability 9.0.
fn value_of(attribute: u32) -> Res<i32> {
    Ok(match attribute {
        // most threads per block; static shared, constant and local memory; registers
        0 => 1024,
        1..=3 => 0,
        4 => 32,
        // versions of PTX and binary
        5 | 6 => 90,
        // caching, most dynamic shared memory, carve-out, cluster dimensions and policy
        7 => 0,
        8 => 232_448,
        9 => -1,
        10..=15 => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}

pub(crate) fn attribute(value: Out<i32>, attribute: u32, function: usize) -> Res {
    value.check()?;
    get(function)?;
    value.set(value_of(attribute)?)
}

pub(crate) fn set_attribute(function: usize, attribute: u32, _value: i32) -> Res {
    get(function)?;
    // Only what concerns shared memory and clusters can be set.
    if (8..=15).contains(&attribute) { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

pub(crate) fn kernel_attribute(value: Out<i32>, attribute: u32, kernel: usize, device: i32) -> Res {
    devices::by_ordinal(device)?;
    self::attribute(value, attribute, kernel)
}

pub(crate) fn set_kernel_attribute(attribute: u32, value: i32, kernel: usize, device: i32) -> Res {
    devices::by_ordinal(device)?;
    set_attribute(kernel, attribute, value)
}

pub(crate) fn set_config(function: usize, config: u32) -> Res {
    get(function)?;
    if config > 3 { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

pub(crate) fn set_kernel_cache_config(kernel: usize, config: u32, device: i32) -> Res {
    devices::by_ordinal(device)?;
    set_config(kernel, config)
}

/// The text lives as long as the function.
pub(crate) fn name(name: Out<*const c_char>, function: usize) -> Res {
    name.check()?;
    name.set(get(function)?.name.as_ptr())
}

pub(crate) fn module(module: Out<usize>, function: usize) -> Res {
    module.check()?;
    module.set(get(function)?.owner)
}

/// What parameters a kernel has is written in its code, which is not read.
pub(crate) fn param_info(function: usize, _index: usize, offset: Out<usize>, _size: Out<usize>) -> Res {
    offset.check()?;
    get(function)?;
    Err(Code::INVALID_VALUE)
}

pub(crate) fn is_loaded(state: Out<u32>, function: usize) -> Res {
    state.check()?;
    get(function)?;
    state.set(1)
}

pub(crate) fn load(function: usize) -> Res {
    get(function).map(|_| ())
}
