//! Libraries and their kernels.

use std::ffi::c_void;

use super::functions;
use super::modules::{self, Image};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::abi::structs::Text;
use crate::handles::{Kind, Table};

#[derive(Debug)]
struct Library {
    handle: usize,
    /// The module that it is in a context.
    module: usize,
    image: Image,
}

static LIBRARIES: Table<Library> = Table::new(Kind::Library);

fn loaded(library: Out<usize>, image: Image) -> Res {
    let module = modules::make()?;
    library.set(LIBRARIES.insert(|handle| Library { handle, module, image })?.handle)
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn load(
    library: Out<usize>,
    code: *const c_void,
    _jit: usize,
    _jit_values: usize,
    _jit_count: u32,
    _options: usize,
    _values: usize,
    _count: u32,
) -> Res {
    library.check()?;
    if code.is_null() { Err(Code::INVALID_VALUE) } else { loaded(library, Image::at(code)) }
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn load_file(
    library: Out<usize>,
    path: Text,
    _jit: usize,
    _jit_values: usize,
    _jit_count: u32,
    _options: usize,
    _values: usize,
    _count: u32,
) -> Res {
    library.check()?;
    if std::fs::metadata(path.text()?).is_err() { Err(Code::FILE_NOT_FOUND) } else { loaded(library, Image::default()) }
}

pub(crate) fn unload(library: usize) -> Res {
    let library = LIBRARIES.remove(library)?;
    library.image.clear();
    // A program may have unloaded the module itself.
    let _ = modules::unload(library.module);
    Ok(())
}

pub(crate) fn kernel(kernel: Out<usize>, library: usize, name: Text) -> Res {
    kernel.check()?;
    let library = LIBRARIES.get(library)?;
    kernel.set(library.image.function(library.handle, &name.text()?)?)
}

pub(crate) fn kernel_count(count: Out<u32>, library: usize) -> Res {
    count.check()?;
    count.set(LIBRARIES.get(library)?.image.functions().len() as u32)
}

pub(crate) fn enumerate(kernels: Out<usize>, count: u32, library: usize) -> Res {
    kernels.check()?;
    kernels.set_all(LIBRARIES.get(library)?.image.functions().into_iter().take(count as usize))
}

pub(crate) fn module(module: Out<usize>, library: usize) -> Res {
    module.check()?;
    module.set(LIBRARIES.get(library)?.module)
}

pub(crate) fn global(ptr: Out<u64>, size: Out<usize>, library: usize, name: Text) -> Res {
    let library = LIBRARIES.get(library)?;
    let (found, bytes) = library.image.global(&name.text()?)?;
    ptr.set_if(found);
    size.set_if(bytes as usize);
    Ok(())
}

pub(crate) fn unified_function(function: Out<*const c_void>, library: usize, name: Text) -> Res {
    function.check()?;
    LIBRARIES.get(library)?;
    name.text()?;
    Err(Code::NOT_FOUND)
}

pub(crate) fn kernel_function(function: Out<usize>, kernel: usize) -> Res {
    function.check()?;
    function.set(functions::get(kernel)?.handle)
}

pub(crate) fn kernel_library(library: Out<usize>, kernel: usize) -> Res {
    library.check()?;
    library.set(functions::get(kernel)?.owner)
}
