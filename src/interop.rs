//! Memory shared with programs that use [`cudarc`], both ways, without a copy.
//!
//! A [`Buffer`] becomes a [`CudarcBuffer`], which is a `CudaSlice` wherever one is wanted and never frees anything: the buffer does. A `CudaSlice`
//! becomes a [`CudarcSlice`]: its address and length, for calls that take a [`DevicePtr`].
//!
//! Both allocators work in the device's primary context, so that addresses and streams mean the same to either.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _};

use crate::allocator::{Buffer, Plain};
use crate::error::Result;
use crate::units::{DevicePtr, StreamId};

/// The stream as this library knows it.
pub fn stream_id(stream: &CudaStream) -> StreamId {
    StreamId(stream.cu_stream() as u64)
}

/// A [`Buffer`] as cudarc's `CudaSlice`, for as long as the buffer is borrowed.
#[derive(Debug)]
pub struct CudarcBuffer<'b, T: Plain> {
    /// Taken in `drop` only.
    slice: ManuallyDrop<CudaSlice<T>>,
    buffer: PhantomData<&'b mut [T]>,
}

impl<'b, T: Plain> CudarcBuffer<'b, T> {
    /// Lends `buffer` to work on `stream`. Where that is not the buffer's home stream, it is recorded, so that the buffer's free waits for it; that
    /// the work comes after what the home stream has done to the buffer is the caller's part.
    ///
    /// # Safety
    /// The buffer is on the device of the stream's context, which is the primary one; and its values have been written, or are written before they
    /// are read.
    pub unsafe fn new(buffer: &'b mut Buffer<'_, T>, stream: &Arc<CudaStream>) -> Result<CudarcBuffer<'b, T>> {
        let id = stream_id(stream);
        if id != buffer.stream() {
            buffer.record_stream(id)?;
        }
        // SAFETY: the buffer holds `len` values of `T` and is borrowed for as long as the slice lives; `drop` leaks the slice, so that cudarc does
        // not free what is not its own. That the address is good in the stream's context is the caller's promise.
        let slice = unsafe { stream.upgrade_device_ptr::<T>(buffer.ptr().0, buffer.len()) };
        Ok(CudarcBuffer { slice: ManuallyDrop::new(slice), buffer: PhantomData })
    }
}

impl<T: Plain> Deref for CudarcBuffer<'_, T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T: Plain> DerefMut for CudarcBuffer<'_, T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.slice
    }
}

impl<T: Plain> Drop for CudarcBuffer<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the slice is taken here only, and not used after.
        let slice = unsafe { ManuallyDrop::take(&mut self.slice) };
        // Drops its events; the memory stays.
        let _ = slice.leak();
    }
}

/// Memory that cudarc owns, as an address and a length.
#[derive(Debug, Clone, Copy)]
pub struct CudarcSlice<'s, T> {
    ptr: DevicePtr,
    len: usize,
    slice: PhantomData<&'s [T]>,
}

impl<'s, T> CudarcSlice<'s, T> {
    /// A view of `slice` for work on `stream`, which cudarc makes wait for what was written to the slice before, if it keeps track.
    pub fn new(slice: &'s CudaSlice<T>, stream: &CudaStream) -> CudarcSlice<'s, T> {
        let (ptr, _tracked) = slice.device_ptr(stream);
        CudarcSlice { ptr: DevicePtr(ptr), len: slice.len(), slice: PhantomData }
    }

    /// The first value's address.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }
}
