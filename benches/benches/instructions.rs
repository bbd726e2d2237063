//! Instructions, by gungraun under valgrind: `cargo bench -p stratalloc-benches --bench instructions`. Counts repeat where times
//! are noisy, so that a path that grows is noticed: each has a limit.
#![allow(missing_docs, clippy::disallowed_methods, reason = "the macros make items without documentation, and exit")]

use std::hint::black_box;

use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use stratalloc_benches::Bench;

/// Pairs that one benchmark does, so that what is around them does not count.
const PAIRS: u64 = 1000;
/// Instructions that a warm pair may take.
const SMALL_LIMIT: u64 = 180;
/// The same for blocks above 64 KiB, whose stacks are tidied now and then.
const LARGE_LIMIT: u64 = 220;

fn limit(instructions: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, PAIRS * instructions)]));
    config
}

fn warm(size: u64) -> (Bench, u64) {
    (Bench::warm(size).expect("the device has room"), size)
}

// A thousand warm pairs.
#[library_benchmark]
#[bench::of_512_b(args = (512), setup = warm, config = limit(SMALL_LIMIT))]
#[bench::of_64_kib(args = (64 << 10), setup = warm, config = limit(SMALL_LIMIT))]
#[bench::of_2_mib(args = (2 << 20), setup = warm, config = limit(LARGE_LIMIT))]
fn warm_pairs((bench, size): (Bench, u64)) -> Bench {
    for _ in 0..PAIRS {
        bench.pair(size).expect("the device has room");
    }
    // Not dropped here: taking an allocator down is not what is counted.
    black_box(bench)
}

library_benchmark_group!(name = warm_path, benchmarks = [warm_pairs]);
main!(library_benchmark_groups = [warm_path]);
