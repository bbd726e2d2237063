//! Memory that frees itself.

use std::mem::ManuallyDrop;
use std::ops::Deref;

use super::Allocator;
use crate::error::Result;
use crate::units::{DevicePtr, StreamId};

/// A block of device memory, freed when dropped, in the order of its home stream: work submitted to that stream before the drop may
/// still use it. Dropping never waits for the device.
#[derive(Debug)]
#[must_use = "dropping an allocation frees it"]
pub struct Allocation<'a> {
    allocator: &'a Allocator,
    ptr: DevicePtr,
    size: u64,
    device: usize,
}

impl<'a> Allocation<'a> {
    pub(super) fn new(allocator: &'a Allocator, ptr: DevicePtr, size: u64, device: usize) -> Allocation<'a> {
        Allocation { allocator, ptr, size, device }
    }

    /// The first byte.
    #[inline]
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// Bytes, as requested.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The device's ordinal in the allocator.
    #[inline]
    pub fn device(&self) -> usize {
        self.device
    }

    /// Where the block came from.
    pub fn allocator(&self) -> &'a Allocator {
        self.allocator
    }

    /// Says that work on `stream` uses the block, so that freeing it waits for that work too.
    pub fn record_stream(&self, stream: StreamId) -> Result<()> {
        self.allocator.record_stream(self.ptr, stream)
    }

    /// Gives the block up to the caller, who frees it with [`Allocator::raw_free`].
    pub fn into_raw(self) -> DevicePtr {
        ManuallyDrop::new(self).ptr
    }

    /// The same block, holding on to the allocator: for storing where a borrow is in the way. Costs a reference count.
    pub fn into_owned(self) -> OwnedAllocation {
        let this = ManuallyDrop::new(self);
        OwnedAllocation { ptr: this.ptr, size: this.size, device: this.device, allocator: this.allocator.clone() }
    }

    /// Frees the block, and says if that failed.
    pub fn free(self) -> Result<()> {
        let this = ManuallyDrop::new(self);
        this.allocator.raw_free(this.ptr)
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        self.allocator.free_or_count(self.ptr);
    }
}

/// An [`Allocation`] that keeps its allocator alive instead of borrowing it.
#[derive(Debug)]
#[must_use = "dropping an allocation frees it"]
pub struct OwnedAllocation {
    ptr: DevicePtr,
    size: u64,
    device: usize,
    allocator: Allocator,
}

impl OwnedAllocation {
    /// The first byte.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// Bytes, as requested.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The device's ordinal in the allocator.
    pub fn device(&self) -> usize {
        self.device
    }

    /// Says that work on `stream` uses the block, so that freeing it waits for that work too.
    pub fn record_stream(&self, stream: StreamId) -> Result<()> {
        self.allocator.record_stream(self.ptr, stream)
    }
}

impl Drop for OwnedAllocation {
    fn drop(&mut self) {
        self.allocator.free_or_count(self.ptr);
    }
}

/// Types whose values are nothing but their bytes, so that they can be copied to a device and back.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {
        // SAFETY: numbers have no padding, and every bit pattern is a number.
        $(unsafe impl Plain for $type {})*
    };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, u128, i128, usize, isize, f32, f64);

/// `len` values of `T` in device memory.
#[derive(Debug)]
#[must_use = "dropping a buffer frees it"]
pub struct Buffer<'a, T: Plain> {
    allocation: Allocation<'a>,
    stream: StreamId,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<'a, T: Plain> Buffer<'a, T> {
    pub(super) fn new(allocation: Allocation<'a>, stream: StreamId, len: usize) -> Buffer<'a, T> {
        Buffer { allocation, stream, len, element: std::marker::PhantomData }
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none. There always are.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The home stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Copies values to the device, in the order of the home stream. Returns when `values` has been read.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        assert_eq!(values.len(), self.len, "as many values as the buffer holds");
        // SAFETY: `Plain` has no padding, so that every byte of the slice is initialised.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        Ok(self.driver()?.write(self.ptr(), bytes, self.stream)?)
    }

    /// Copies values from the device, in the order of the home stream. Returns when they are there.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        assert_eq!(values.len(), self.len, "as many values as the buffer holds");
        // SAFETY: `Plain` admits every bit pattern and has no padding; the slice is borrowed mutably for as long as the bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(values)) };
        Ok(self.driver()?.read(bytes, self.ptr(), self.stream)?)
    }

    fn driver(&self) -> Result<&dyn crate::driver::Driver> {
        let driver: &crate::driver::metered::Metered = self.allocation.allocator.driver(self.allocation.device)?;
        Ok(driver)
    }
}

impl<'a, T: Plain> Deref for Buffer<'a, T> {
    type Target = Allocation<'a>;

    fn deref(&self) -> &Allocation<'a> {
        &self.allocation
    }
}
