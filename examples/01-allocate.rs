//! Allocating: `cargo run --example 01-allocate`. On the first GPU, or on the software device where there is none.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec, Result, Rung};

fn main() -> Result<()> {
    let allocator = Allocator::builder().device(DeviceSpec::Auto).build()?;

    // A typed buffer. It is freed when it goes out of scope.
    let mut numbers = allocator.alloc_buffer::<f32>(4, AllocRequest::new(1))?;
    numbers.write(&[1.0, 2.0, 3.0, 4.0])?;
    let mut back = [0.0; 4];
    numbers.read(&mut back)?;
    println!("4 floats at {}, read back: {back:?}", numbers.ptr());
    drop(numbers);

    // Plain bytes, for kernels of your own: aligned to 512 bytes, or to what is asked for.
    let block = allocator.alloc(AllocRequest::new(10 << 20).alignment(4096))?;
    println!("{} at {}", ByteSize(block.size()), block.ptr());

    // The same by address, as a C library wants it.
    let ptr = allocator.raw_alloc(AllocRequest::new(3 << 20))?;
    allocator.raw_free(ptr)?;
    // A second request of that size is served from this thread's magazine: no lock, no driver call.
    let again = allocator.raw_alloc(AllocRequest::new(3 << 20))?;
    println!("3 MiB at {ptr}, freed, and again at {again}");
    allocator.raw_free(again)?;
    // A mistake is a typed error that changes nothing.
    println!("freed twice: {}", allocator.raw_free(again).unwrap_err());

    let stats = allocator.stats(0)?;
    println!(
        "{} live, {} held, {} of {} requests from magazines",
        ByteSize(stats.live.current),
        ByteSize(stats.reserved.current),
        stats.rung(Rung::Magazine),
        stats.allocs
    );
    drop(block);
    println!("{} given back to the device", ByteSize(allocator.empty_cache(0)?));
    Ok(())
}
