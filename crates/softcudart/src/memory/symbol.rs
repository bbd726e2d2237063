//! Variables of device code, by the address of their shadow in the host program.

use std::ffi::{c_int, c_void};

use super::copy::{copy, copy_async};
use crate::driver::Table;
use crate::driver::types::Handle;
use crate::entry::{api, stream_api, write};
use crate::error::Error;
use crate::kernel;

/// Where `offset` of a variable is, if `bytes` from there are inside it.
fn place(table: &Table, symbol: *const c_void, bytes: usize, offset: usize) -> Result<*mut c_void, Error> {
    let variable = kernel::variable(table, symbol)?;
    let end = offset.checked_add(bytes).ok_or(Error::INVALID_VALUE)?;
    if end > variable.bytes {
        return Err(Error::INVALID_VALUE);
    }
    Ok(super::pointer(variable.address + offset as u64))
}

api! {
    fn cudaGetSymbolAddress(out: *mut *mut c_void, symbol: *const c_void) |table| {
        write(out, super::pointer(kernel::variable(table, symbol)?.address))
    }

    fn cudaGetSymbolSize(out: *mut usize, symbol: *const c_void) |table| {
        write(out, kernel::variable(table, symbol)?.bytes)
    }
}

stream_api! {
    fn cudaMemcpyToSymbol / cudaMemcpyToSymbol_ptds(
        symbol: *const c_void, src: *const c_void, bytes: usize, offset: usize, kind: c_int
    ) |table| {
        copy(table, place(table, symbol, bytes, offset)?, src, bytes, kind)
    }

    fn cudaMemcpyToSymbolAsync / cudaMemcpyToSymbolAsync_ptsz(
        symbol: *const c_void, src: *const c_void, bytes: usize, offset: usize, kind: c_int, stream: Handle
    ) |table| {
        copy_async(table, place(table, symbol, bytes, offset)?, src, bytes, kind, stream)
    }

    fn cudaMemcpyFromSymbol / cudaMemcpyFromSymbol_ptds(
        dst: *mut c_void, symbol: *const c_void, bytes: usize, offset: usize, kind: c_int
    ) |table| {
        copy(table, dst, place(table, symbol, bytes, offset)?, bytes, kind)
    }

    fn cudaMemcpyFromSymbolAsync / cudaMemcpyFromSymbolAsync_ptsz(
        dst: *mut c_void, symbol: *const c_void, bytes: usize, offset: usize, kind: c_int, stream: Handle
    ) |table| {
        copy_async(table, dst, place(table, symbol, bytes, offset)?, bytes, kind, stream)
    }
}
