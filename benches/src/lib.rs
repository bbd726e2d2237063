//! What the benchmarks share: an allocator that is warm for one size.

use std::hint::black_box;

use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::{AllocRequest, Allocator, ByteSize, DevicePtr, DeviceSpec, Result, StreamId};

/// An allocator over a software device that keeps addresses only, and a stream of that device.
#[derive(Debug)]
pub struct Bench {
    allocator: Allocator,
    stream: StreamId,
}

impl Bench {
    /// A device of 80 GiB that costs no virtual time.
    pub fn open() -> Result<Bench> {
        let device = SoftDevice::builder(ByteSize::gib(80).0).backing(Backing::AddressesOnly).build()?;
        let stream = device.create_stream()?;
        let allocator = Allocator::builder().device(DeviceSpec::Driver(device)).build()?;
        Ok(Bench { allocator, stream })
    }

    /// The same, after a few pairs of `size` bytes: the next is served from the thread's magazine.
    pub fn warm(size: u64) -> Result<Bench> {
        let bench = Bench::open()?;
        (0..4).try_for_each(|_| bench.pair(size))?;
        Ok(bench)
    }

    /// Allocates.
    #[inline]
    pub fn alloc(&self, size: u64) -> Result<DevicePtr> {
        self.allocator.raw_alloc(AllocRequest::new(black_box(size)).stream(black_box(self.stream)))
    }

    /// Frees.
    #[inline]
    pub fn free(&self, ptr: DevicePtr) -> Result<()> {
        self.allocator.raw_free(black_box(ptr))
    }

    /// Allocates, then frees.
    #[inline]
    pub fn pair(&self, size: u64) -> Result<()> {
        self.free(self.alloc(size)?)
    }
}
