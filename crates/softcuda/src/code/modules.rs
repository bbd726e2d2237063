//! Modules and the linker.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use parking_lot::Mutex;

use super::functions;
use stratalloc::driver::kernels::{IMAGES, Kernel};

use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::abi::structs::Text;
use crate::handles::{Kind, Table};
use crate::memory::plain;
use crate::memory::space::{self, Kind as MemoryKind};
use crate::process::contexts;

/// Global variables have this size, since it is written in code that is not read.
const GLOBAL_SIZE: u64 = 4096;

/// Loaded code: its functions and variables come to be when they are asked for.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// Whether it is the library's own, whose kernels run.
    own: bool,
    functions: Mutex<HashMap<String, usize>>,
    globals: Mutex<HashMap<String, u64>>,
}

impl Image {
    /// What there is at an address that a program gave as code.
    pub(crate) fn at(code: *const c_void) -> Image {
        // SAFETY: it is not null, and so a module, by CUDA's contract.
        let own = IMAGES.iter().any(|image| unsafe { image.is_at(code) });
        Image { own, ..Image::default() }
    }

    pub(crate) fn function(&self, owner: usize, name: &str) -> Res<usize> {
        let mut functions = self.functions.lock();
        if let Some(&function) = functions.get(name) {
            return Ok(function);
        }
        let own = Kernel::ALL.into_iter().find(|kernel| self.own && kernel.name().to_bytes() == name.as_bytes());
        if self.own && own.is_none() {
            return Err(Code::NOT_FOUND);
        }
        let made = functions::make(owner, name, own)?;
        functions.insert(name.to_string(), made);
        Ok(made)
    }

    pub(crate) fn functions(&self) -> Vec<usize> {
        self.functions.lock().values().copied().collect()
    }

    pub(crate) fn global(&self, name: &str) -> Res<(u64, u64)> {
        let mut globals = self.globals.lock();
        if let Some(&ptr) = globals.get(name) {
            return Ok((ptr, GLOBAL_SIZE));
        }
        let ptr = plain::allocate(GLOBAL_SIZE, MemoryKind::Plain)?;
        globals.insert(name.to_string(), ptr);
        Ok((ptr, GLOBAL_SIZE))
    }

    /// Gives functions and variables back.
    pub(crate) fn clear(&self) {
        self.functions.lock().drain().for_each(|(_, function)| functions::remove(function));
        for (_, ptr) in self.globals.lock().drain() {
            // The context may have ended before, and its memory with it.
            let _ = space::take(ptr, |block| block.kind == MemoryKind::Plain).and_then(space::release);
        }
    }
}

#[derive(Debug)]
struct Module {
    handle: usize,
    image: Image,
}

static MODULES: Table<Module> = Table::new(Kind::Module);

/// A module that is a library's, too.
pub(crate) fn make() -> Res<usize> {
    insert(Image::default())
}

fn insert(image: Image) -> Res<usize> {
    Ok(MODULES.insert(|handle| Module { handle, image })?.handle)
}

fn loaded(module: Out<usize>, image: Image) -> Res {
    contexts::current()?;
    module.set(insert(image)?)
}

pub(crate) fn load(module: Out<usize>, image: *const c_void) -> Res {
    module.check()?;
    if image.is_null() { Err(Code::INVALID_VALUE) } else { loaded(module, Image::at(image)) }
}

pub(crate) fn load_with_options(module: Out<usize>, image: *const c_void, _: u32, _: usize, _: usize) -> Res {
    load(module, image)
}

pub(crate) fn load_file(module: Out<usize>, path: Text) -> Res {
    module.check()?;
    if std::fs::metadata(path.text()?).is_err() {
        return Err(Code::FILE_NOT_FOUND);
    }
    loaded(module, Image::default())
}

pub(crate) fn unload(module: usize) -> Res {
    contexts::current()?;
    let module: Arc<Module> = MODULES.remove(module)?;
    module.image.clear();
    Ok(())
}

pub(crate) fn function(function: Out<usize>, module: usize, name: Text) -> Res {
    function.check()?;
    let module = MODULES.get(module)?;
    function.set(module.image.function(module.handle, &name.text()?)?)
}

pub(crate) fn function_count(count: Out<u32>, module: usize) -> Res {
    count.check()?;
    count.set(MODULES.get(module)?.image.functions().len() as u32)
}

pub(crate) fn global(ptr: Out<u64>, size: Out<usize>, module: usize, name: Text) -> Res {
    let module = MODULES.get(module)?;
    let (found, bytes) = module.image.global(&name.text()?)?;
    ptr.set_if(found);
    size.set_if(bytes as usize);
    Ok(())
}

pub(crate) fn loading_mode(mode: Out<u32>) -> Res {
    const LAZY: u32 = 2;
    mode.set(LAZY)
}

// ---- the linker ---------------------------------------------------------------------------------------------------------

/// What linking gives: enough of an image to be loaded again.
static LINKED: [u8; 64] = *b"softcuda: no code, since no kernel runs                        \0";

#[derive(Debug)]
struct Link {
    handle: usize,
}

static LINKS: Table<Link> = Table::new(Kind::Link);

pub(crate) fn link_create(_count: u32, _options: usize, _values: usize, state: Out<usize>) -> Res {
    state.check()?;
    contexts::current()?;
    state.set(LINKS.insert(|handle| Link { handle })?.handle)
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn link_add_data(
    state: usize,
    _kind: u32,
    data: *const c_void,
    size: usize,
    _name: Text,
    _count: u32,
    _options: usize,
    _values: usize,
) -> Res {
    LINKS.get(state)?;
    if data.is_null() || size == 0 { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

pub(crate) fn link_add_file(state: usize, _: u32, path: Text, _: u32, _: usize, _: usize) -> Res {
    LINKS.get(state)?;
    if std::fs::metadata(path.text()?).is_err() { Err(Code::FILE_NOT_FOUND) } else { Ok(()) }
}

pub(crate) fn link_complete(state: usize, image: Out<*const c_void>, size: Out<usize>) -> Res {
    LINKS.get(state)?;
    image.set_if(LINKED.as_ptr().cast());
    size.set_if(LINKED.len());
    Ok(())
}

pub(crate) fn link_destroy(state: usize) -> Res {
    LINKS.remove(state).map(drop)
}
