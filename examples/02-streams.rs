//! Streams: `cargo run --example 02-streams`. On the software device, whose checker says whether any work could have seen memory that
//! was no longer its own.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use stratalloc::driver::Driver;
use stratalloc::driver::soft::SoftDevice;
use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec, Result};

fn main() -> Result<()> {
    let device = SoftDevice::builder(ByteSize::gib(1).0).checker(true).seed(1).build()?;
    let allocator = Allocator::builder().device(DeviceSpec::Driver(device.clone())).build()?;
    let (compute, copies) = (device.create_stream()?, device.create_stream()?);
    let request = AllocRequest::new(8 << 20).stream(compute);

    // A free takes effect in the order of the block's home stream, and waits for nothing. The fill may still be on its way when the
    // block is handed out again: to work of the same stream, which comes after it.
    let first = allocator.raw_alloc(request)?;
    device.fill(first, 8 << 20, 1, compute)?;
    allocator.raw_free(first)?;
    let second = allocator.raw_alloc(request)?;
    device.fill(second, 8 << 20, 2, compute)?;
    println!("same stream: {first}, then {second}: the same block, at once");

    // Work of another stream gets other memory, as long as it is not known that the first stream is done.
    let third = allocator.raw_alloc(request.stream(copies))?;
    device.fill(third, 8 << 20, 3, copies)?;
    println!("another stream: {third}");

    // Where a second stream uses a block, say so before freeing it: the free then waits for that stream too.
    let ready = device.create_event()?;
    device.record_event(ready, compute)?;
    device.wait_event(copies, ready)?;
    device.fill(second, 8 << 20, 4, copies)?;
    allocator.record_stream(second, copies)?;
    allocator.raw_free(second)?;
    println!("recorded: {} wait for the second stream", ByteSize(allocator.stats(0)?.pending));
    let fourth = allocator.raw_alloc(request)?;
    device.fill(fourth, 8 << 20, 5, compute)?;

    println!("the checker found {} mistakes", device.report_count());
    assert_eq!(device.report_count(), 0);

    allocator.raw_free(third)?;
    allocator.raw_free(fourth)?;
    device.destroy_event(ready)?;
    Ok(())
}
