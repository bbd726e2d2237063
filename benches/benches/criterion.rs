//! Time, by criterion: `cargo bench -p stratalloc-benches --bench criterion`.
//!
//! Bias: one thread, a software device that keeps addresses only and whose calls cost nothing. What is timed is the allocator's
//! own work; `stratalloc bench` has its peers beside it, and two threads.
#![allow(missing_docs, reason = "criterion_group makes a function without documentation")]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stratalloc::{ByteSize, DevicePtr, StreamId};
use stratalloc_benches::Bench;
use stratalloc_cli::engine::{Engine, Latency, Setup};
use stratalloc_cli::trace::{Op, Trace};

fn warm_pair(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pair");
    for size in [ByteSize(512), ByteSize::kib(64), ByteSize::mib(2), ByteSize::mib(64)] {
        let bench = Bench::warm(size.0).expect("the device has room");
        group.bench_function(BenchmarkId::from_parameter(size), |b| b.iter(|| bench.pair(size.0)));
    }
    group.finish();
}

/// Frees a random one of 256 blocks and allocates another in its place, of one of 32 sizes from 512 B to 64 MiB.
fn churn(criterion: &mut Criterion) {
    let sizes: [u64; 32] = std::array::from_fn(|step| 512 << (step * 17 / 31));
    let bench = Bench::open().expect("the device opens");
    let mut random = 0x5eed_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 32
    };
    let mut live: Vec<DevicePtr> =
        (0..256).map(|_| bench.alloc(sizes[next() as usize % 32]).expect("the device has room")).collect();
    criterion.bench_function("churn 256", |b| {
        b.iter(|| {
            let bits = next();
            let slot = &mut live[bits as usize % 256];
            bench.free(*slot).expect("it is live");
            *slot = bench.alloc(sizes[(bits >> 8) as usize % 32]).expect("the device has room");
        });
    });
}

/// One recorded trace, warm: the first pass is not timed, nor is freeing what the trace leaves live.
fn replay(criterion: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/traces/gpt2xl-train-ragged.trace.zst");
    let trace = Trace::load(&path).expect("the trace is there");
    let setup = Setup { capacity: ByteSize::gib(80).0, latency: Latency::Off, ..Setup::default() };
    let engine = Engine::open(&setup).expect("the device opens");
    let streams: Vec<StreamId> = (0..trace.streams).map(|_| engine.create_stream().expect("a stream")).collect();
    let mut ptrs: Vec<DevicePtr> = Vec::with_capacity(trace.allocs as usize);
    let mut pass = || -> Duration {
        ptrs.clear();
        let start = Instant::now();
        for op in &trace.ops {
            match *op {
                Op::Alloc { bytes, stream } => {
                    ptrs.push(engine.alloc(bytes, streams[usize::from(stream)]).expect("the device has room"));
                }
                Op::Free { id } => engine.free(ptrs[id as usize]).expect("it is live"),
                Op::Record { id, stream } => {
                    engine.record_stream(ptrs[id as usize], streams[usize::from(stream)]).expect("it is live");
                }
                Op::EmptyCache => engine.empty_cache().expect("nothing is captured"),
                Op::Marker { .. } => {}
            }
        }
        let time = start.elapsed();
        trace.live_at_end.iter().for_each(|id| engine.free(ptrs[*id as usize]).expect("it is live"));
        time
    };
    pass();
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(trace.calls() as u64)).sample_size(10);
    group.bench_function(&trace.name, |b| b.iter_custom(|passes| (0..passes).map(|_| black_box(pass())).sum()));
    group.finish();
}

criterion_group!(benches, warm_pair, churn, replay);
criterion_main!(benches);
