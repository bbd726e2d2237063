//! What stands between the triple angle brackets of a launch: pushed by the caller, popped by the kernel's stub.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};

use super::Dim3;
use crate::driver::types::Handle;
use crate::entry::{self, write};
use crate::error::Error;

struct Configuration {
    grid: Dim3,
    block: Dim3,
    shared_bytes: usize,
    stream: Handle,
}

thread_local! {
    static PUSHED: RefCell<Vec<Configuration>> = const { RefCell::new(Vec::new()) };
}

#[unsafe(no_mangle)]
pub extern "C" fn __cudaPushCallConfiguration(grid: Dim3, block: Dim3, shared_bytes: usize, stream: Handle) -> c_uint {
    let code = entry::plain(|| {
        let configuration = Configuration { grid, block, shared_bytes, stream };
        PUSHED.try_with(|pushed| pushed.borrow_mut().push(configuration)).map_err(|_| Error::UNKNOWN)
    });
    code.unsigned_abs()
}

/// # Safety
/// The pointers are valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __cudaPopCallConfiguration(
    grid: *mut Dim3,
    block: *mut Dim3,
    shared_bytes: *mut usize,
    stream: *mut c_void,
) -> c_int {
    entry::plain(|| {
        let popped = PUSHED.try_with(|pushed| pushed.borrow_mut().pop()).ok().flatten();
        let popped = popped.ok_or(Error::MISSING_CONFIGURATION)?;
        // SAFETY: valid, as the caller promises; the last is a pointer to a stream.
        unsafe {
            write(grid, popped.grid)?;
            write(block, popped.block)?;
            write(shared_bytes, popped.shared_bytes)?;
            write(stream.cast::<Handle>(), popped.stream)
        }
    })
}
