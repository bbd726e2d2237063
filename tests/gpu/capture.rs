//! A graph that is captured into a private pool, and replayed while others use what is not the pool's.

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use stratalloc::driver::{CaptureStatus, CopyOp, Driver};
use stratalloc::interop::stream_id;
use stratalloc::{AllocRequest, Error, PoolId};

use crate::kit::{Bench, Checks, GIB, MIB, Rng, drag, ends_empty, fill, sound};

pub fn a_graph_is_captured_and_replayed(bench: &Bench<'_>) {
    let driver = bench.driver;
    let context = CudaContext::new(0).unwrap();
    for (number, mode) in [
        CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL,
        CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
    ]
    .into_iter()
    .enumerate()
    {
        let captured = context.new_stream().unwrap();
        let beside = context.new_stream().unwrap();
        let (stream, other) = (stream_id(&captured), stream_id(&beside));
        let mut checks = Checks::new(driver);
        let allocator = bench.limited(4 * GIB, "");
        let pool = PoolId(0, 1 + number as u64);
        let size = bench.bytes(96 * MIB);
        let request = AllocRequest::new(size).stream(stream);
        // Some memory is there before, and must not get into the pool while others may have it.
        let outside = allocator.raw_alloc(request).unwrap();
        // Kernels are loaded when they are first launched, which a capture would not like.
        let half = size / 2;
        driver.copy_blocks(&[CopyOp { dst: outside.add(half), src: outside, size: half }], stream).unwrap();
        fill(driver, outside, size, 5, stream);
        checks.check(outside, size, 5, stream, "before the capture");

        allocator.begin_private_pool(0, pool, move |asking| asking == stream).unwrap();
        captured.begin_capture(mode).unwrap();
        assert!(matches!(driver.capture_status(stream), Ok(CaptureStatus::Active(_))));
        // Grows, splits, frees and uses again under the capture.
        let first = allocator.raw_alloc(request).unwrap();
        fill(driver, first, size, 11, stream);
        let kept = allocator.raw_alloc(request).unwrap();
        driver.copy_blocks(&[CopyOp { dst: kept, src: first, size }], stream).unwrap();
        allocator.raw_free(first).unwrap();
        let again = allocator.raw_alloc(request).unwrap();
        assert_eq!(again, first, "what was freed in the capture serves again in it");
        fill(driver, again, size, 12, stream);
        let small: Vec<_> =
            (0..64).map(|_| allocator.raw_alloc(AllocRequest::new(5000).stream(stream)).unwrap()).collect();
        for (index, &ptr) in (20..).zip(&small) {
            fill(driver, ptr, 5000, index, stream);
        }
        // Other streams go on as ever.
        let during = allocator.raw_alloc(AllocRequest::new(size).stream(other)).unwrap();
        assert!(matches!(allocator.quiesce(0), Err(Error::Capturing { .. })));
        let graph = captured.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        allocator.end_private_pool(0, pool).unwrap();
        assert_eq!(driver.capture_status(stream), Ok(CaptureStatus::None));
        // Freed by the program, kept by the graph.
        allocator.raw_free(again).unwrap();

        let mut rng = Rng(9);
        for _ in 0..20 {
            drag(driver, kept, size, 2, stream);
            graph.launch().unwrap();
            checks.check(kept, size, 11, stream, "copied by the graph");
            checks.check(again, size, 12, stream, "written by the graph");
            for (index, &ptr) in (20..).zip(&small) {
                checks.check(ptr, 5000, index, stream, "small, written by the graph");
            }
            // Blocks of other streams and of the same one come and go: none is in the pool.
            for asking in [other, stream] {
                let size = rng.size(MIB / 4, size);
                let ptr = allocator.raw_alloc(AllocRequest::new(size).stream(asking)).unwrap();
                drag(driver, ptr, size, 3, asking);
                allocator.raw_free(ptr).unwrap();
            }
        }
        checks.check(outside, size, 5, stream, "outside of the pool");
        checks.settle();
        sound(&allocator);
        drop(graph);
        small.into_iter().chain([outside, kept, during]).for_each(|ptr| allocator.raw_free(ptr).unwrap());
        allocator.release_private_pool(0, pool).unwrap();
        captured.synchronize().unwrap();
        beside.synchronize().unwrap();
        ends_empty(&allocator);
    }
}
