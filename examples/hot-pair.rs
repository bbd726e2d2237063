//! A warm pair in a loop, for counting instructions.
use std::hint::black_box;
use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec, StreamId};
fn main() {
    let size: u64 = std::env::args().nth(1).map_or(512, |s| s.parse().unwrap());
    let n: u64 = std::env::args().nth(2).map_or(1_000_000, |s| s.parse().unwrap());
    let a = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(8))).build().unwrap();
    let t = std::time::Instant::now();
    for _ in 0..n {
        let p = a.raw_alloc(AllocRequest::new(black_box(size)).stream(black_box(StreamId(1)))).unwrap();
        a.raw_free(black_box(p)).unwrap();
    }
    println!("{:.2} ns", t.elapsed().as_nanos() as f64 / n as f64);
}
