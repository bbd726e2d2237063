//! Streams, events, captures and graphs through the C interface.

mod common;

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Cuda, INVALID_VALUE, NOT_READY, at, of, pattern};

static CALLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn add(data: *mut c_void) {
    CALLED.fetch_add(data as usize, Ordering::SeqCst);
}

extern "C" fn slow(_: *mut c_void) {
    std::thread::sleep(Duration::from_millis(20));
    CALLED.fetch_add(1, Ordering::SeqCst);
}

/// Waits for something that another thread does.
fn soon(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(10), "it never happened");
        std::thread::yield_now();
    }
}

fn status(cuda: &Cuda, stream: usize) -> usize {
    let mut status = 0usize;
    cuda.ok("cuStreamIsCapturing", &[stream, at(&mut status)]);
    status
}

/// The value where a function writes it second.
fn second(cuda: &Cuda, name: &str, first: usize) -> usize {
    let mut value = 0usize;
    cuda.ok(name, &[first, at(&mut value)]);
    value
}

scenarios! {
    functions_of_the_host_are_in_order, [], {
        let cuda = Cuda::start();
        let (stream, other) = (cuda.stream(), cuda.stream());
        let ptr = cuda.alloc(4096);
        let event = cuda.get("cuEventCreate", &[2]);
        cuda.ok("cuLaunchHostFunc", &[stream, slow as *const () as usize, 0]);
        cuda.ok("cuMemsetD8Async", &[ptr, 5, 4096, stream]);
        cuda.ok("cuEventRecord", &[event, stream]);
        cuda.fails("cuStreamQuery", &[stream], NOT_READY);
        cuda.fails("cuEventQuery", &[event], NOT_READY);
        cuda.ok("cuStreamQuery", &[other]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(CALLED.load(Ordering::SeqCst), 1);
        assert_eq!(cuda.read(ptr, 16), [5; 16]);
        cuda.ok("cuEventQuery", &[event]);
        // Without anybody who waits, it runs as well.
        cuda.ok("cuLaunchHostFunc", &[stream, add as *const () as usize, 10]);
        soon(|| CALLED.load(Ordering::SeqCst) == 11);
        // The device waits for it too.
        cuda.ok("cuLaunchHostFunc", &[stream, slow as *const () as usize, 0]);
        cuda.ok("cuMemFree_v2", &[ptr]);
        assert_eq!(CALLED.load(Ordering::SeqCst), 12);
        cuda.fails("cuLaunchHostFunc", &[stream, 0, 0], INVALID_VALUE);
    }

    the_default_stream_orders_blocking_ones, [("SOFTCUDA_SEED", "3"), ("SOFTCUDA_CHECKER", "1")], {
        let cuda = Cuda::start();
        let ptr = cuda.alloc(4096);
        let blocking = cuda.get("cuStreamCreate", &[0]);
        for round in 0..50u8 {
            cuda.ok("cuMemsetD8Async", &[ptr, round as usize, 4096, blocking]);
            // The null stream comes after it, and the blocking stream after that.
            cuda.ok("cuMemcpyDtoDAsync_v2", &[ptr + 2048, ptr, 2048, 0]);
            cuda.ok("cuMemsetD8Async", &[ptr, 0xff, 1024, blocking]);
            cuda.ok("cuCtxSynchronize", &[]);
            assert_eq!(cuda.read(ptr + 2048, 2048), vec![round; 2048]);
        }
        // The thread's own stream is a blocking one.
        cuda.ok("cuMemsetD8Async_ptsz", &[ptr, 1, 4096, 0]);
        cuda.ok("cuMemsetD8Async", &[ptr, 2, 4096, 0]);
        cuda.ok("cuMemcpyDtoDAsync_v2", &[ptr, ptr + 2048, 2048, 2]);
        assert_eq!(cuda.read(ptr, 4096), [2; 4096]);
        assert_eq!(cuda.report_count(), 0);
        // Streams that are not ordered race, and the checker sees it.
        cuda.ok("cuMemsetD8Async", &[ptr, 1, 4096, cuda.stream()]);
        cuda.ok("cuMemsetD8Async", &[ptr, 2, 4096, blocking]);
        assert_eq!(cuda.report_count(), 1);
    }

    events_have_times_and_lag, [("SOFTCUDA_EVENT_LAG_US", "20000")], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (start, end) = (cuda.get("cuEventCreate", &[0]), cuda.get("cuEventCreate", &[0]));
        let mut ms = 0f32;
        cuda.fails("cuEventElapsedTime", &[at(&mut ms), start, end], 400);
        cuda.ok("cuEventRecord", &[start, stream]);
        cuda.fails("cuEventQuery", &[start], NOT_READY);
        std::thread::sleep(Duration::from_millis(30));
        cuda.ok("cuEventQuery", &[start]);
        cuda.ok("cuEventRecord", &[end, stream]);
        cuda.fails("cuEventElapsedTime", &[at(&mut ms), start, end], NOT_READY);
        let before = Instant::now();
        cuda.ok("cuEventSynchronize", &[end]);
        assert!(before.elapsed() < Duration::from_millis(15), "a wait does not sleep");
        cuda.ok("cuEventElapsedTime", &[at(&mut ms), start, end]);
        assert!((30.0..1000.0).contains(&ms), "{ms}");
        let untimed = cuda.get("cuEventCreate", &[2]);
        cuda.ok("cuEventRecord", &[untimed, stream]);
        cuda.fails("cuEventElapsedTime", &[at(&mut ms), start, untimed], 400);
    }

    streams_wait_for_values, [], {
        let cuda = Cuda::start();
        let (stream, writer) = (cuda.stream(), cuda.stream());
        let ptr = cuda.alloc(64);
        cuda.ok("cuMemsetD8_v2", &[ptr, 0, 64]);
        cuda.ok("cuStreamWaitValue32_v2", &[stream, ptr, 3, 0]);
        cuda.ok("cuMemsetD8Async", &[ptr + 32, 1, 8, stream]);
        cuda.fails("cuStreamQuery", &[stream], NOT_READY);
        cuda.ok("cuStreamWriteValue32_v2", &[writer, ptr, 2, 0]);
        cuda.fails("cuStreamQuery", &[stream], NOT_READY);
        cuda.ok("cuStreamWriteValue32_v2", &[writer, ptr, 4, 0]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(cuda.read(ptr + 32, 8), [1; 8]);
        cuda.fails("cuStreamWaitValue32_v2", &[stream, ptr + 2, 3, 0], INVALID_VALUE);
    }

    captures_become_graphs_that_replay, [("SOFTCUDA_CHECKER", "1")], {
        let cuda = Cuda::start();
        let (a, b) = (cuda.stream(), cuda.stream());
        let (src, dst) = (cuda.alloc(4096), cuda.alloc(4096));
        let event = cuda.get("cuEventCreate", &[2]);
        cuda.write(src, &pattern(4096, 1));
        cuda.ok("cuMemsetD8_v2", &[dst, 0, 4096]);
        cuda.ok("cuCtxSynchronize", &[]);
        cuda.ok("cuStreamBeginCapture_v2", &[a, 0]);
        assert_eq!((status(&cuda, a), status(&cuda, b)), (1, 0));
        cuda.ok("cuMemcpyAsync", &[dst, src, 2048, a]);
        // The other stream joins by an event, and comes back by one.
        cuda.ok("cuEventRecord", &[event, a]);
        cuda.ok("cuStreamWaitEvent", &[b, event, 0]);
        assert_eq!(status(&cuda, b), 1);
        cuda.ok("cuMemsetD8Async", &[dst + 2048, 7, 2048, b]);
        cuda.ok("cuLaunchHostFunc", &[b, add as *const () as usize, 1]);
        cuda.ok("cuEventRecord", &[event, b]);
        cuda.ok("cuStreamWaitEvent", &[a, event, 0]);
        let (mut state, mut id, mut graph, mut nodes, mut edges, mut count) = (0usize, 0u64, 0usize, 0usize, 0usize, 0usize);
        let places = [a, at(&mut state), at(&mut id), at(&mut graph), at(&mut nodes), at(&mut edges), at(&mut count)];
        cuda.ok("cuStreamGetCaptureInfo_v3", &places);
        assert_eq!((state, count), (1, 2));
        let ended = second(&cuda, "cuStreamEndCapture", a);
        assert_eq!((ended, status(&cuda, a), status(&cuda, b)), (graph, 0, 0));
        assert_eq!(cuda.read(dst, 4096), [0; 4096], "captured work has not run");
        let mut nodes = [0usize; 8];
        let mut count = 8usize;
        cuda.ok("cuGraphGetNodes", &[graph, at(&mut nodes), at(&mut count)]);
        assert_eq!(count, 3);
        let kinds: Vec<usize> = nodes[..3].iter().map(|&node| second(&cuda, "cuGraphNodeGetType", node)).collect();
        assert_eq!(kinds, [1, 2, 3]);
        let mut edges = 0usize;
        cuda.ok("cuGraphGetEdges", &[graph, 0, 0, at(&mut edges)]);
        assert_eq!(edges, 2);
        let exec = cuda.get("cuGraphInstantiateWithFlags", &[graph, 0]);
        cuda.ok("cuGraphDestroy", &[graph]);
        for seed in 1..4 {
            cuda.write(src, &pattern(4096, seed));
            cuda.ok("cuGraphLaunch", &[exec, a]);
            cuda.ok("cuStreamSynchronize", &[a]);
            assert_eq!(cuda.read(dst, 2048), pattern(4096, seed)[..2048]);
            assert_eq!(cuda.read(dst + 2048, 2048), [7; 2048]);
        }
        assert_eq!(CALLED.load(Ordering::SeqCst), 3);
        cuda.ok("cuGraphExecDestroy", &[exec]);
        cuda.fails("cuGraphLaunch", &[exec, a], INVALID_VALUE);
        assert_eq!(cuda.report_count(), 0);
    }

    captures_forbid_what_would_disturb_them, [], {
        let cuda = Cuda::start();
        let (a, b) = (cuda.stream(), cuda.stream());
        let event = cuda.get("cuEventCreate", &[2]);
        let mut out = 0usize;
        // Global mode: nobody may allocate, unless relaxed.
        cuda.ok("cuStreamBeginCapture_v2", &[a, 0]);
        let mut mode = 2u32;
        cuda.ok("cuThreadExchangeStreamCaptureMode", &[at(&mut mode)]);
        let ptr = cuda.alloc(512);
        cuda.ok("cuMemFree_v2", &[ptr]);
        cuda.ok("cuThreadExchangeStreamCaptureMode", &[at(&mut mode)]);
        assert_eq!((mode, status(&cuda, a)), (2, 1));
        cuda.fails("cuMemAlloc_v2", &[at(&mut out), 512], 900);
        assert_eq!(status(&cuda, a), 2);
        cuda.fails("cuMemsetD8Async", &[ptr, 0, 1, a], 901);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 901);
        assert_eq!((out, status(&cuda, a)), (0, 0));
        // Thread-local mode: other threads may.
        cuda.ok("cuStreamBeginCapture_v2", &[a, 1]);
        let mut context = 0usize;
        cuda.ok("cuCtxGetCurrent", &[at(&mut context)]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                cuda.ok("cuCtxSetCurrent", &[context]);
                let ptr = cuda.alloc(512);
                cuda.ok("cuMemFree_v2", &[ptr]);
            });
        });
        assert_eq!(status(&cuda, a), 1);
        cuda.fails("cuStreamSynchronize", &[a], 900);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 901);
        // The device is never waited for; a captured event has no status; another stream must come back.
        cuda.ok("cuStreamBeginCapture_v2", &[a, 2]);
        cuda.fails("cuCtxSynchronize", &[], 900);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 901);
        cuda.ok("cuStreamBeginCapture_v2", &[a, 2]);
        cuda.ok("cuEventRecord", &[event, a]);
        cuda.fails("cuEventQuery", &[event], 907);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 901);
        cuda.ok("cuStreamBeginCapture_v2", &[a, 2]);
        cuda.ok("cuEventRecord", &[event, a]);
        cuda.ok("cuStreamWaitEvent", &[b, event, 0]);
        cuda.ok("cuLaunchHostFunc", &[b, add as *const () as usize, 1]);
        cuda.fails("cuStreamEndCapture", &[b, at(&mut out)], 903);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 901);
        cuda.ok("cuStreamBeginCapture_v2", &[a, 2]);
        cuda.ok("cuEventRecord", &[event, a]);
        cuda.ok("cuStreamWaitEvent", &[b, event, 0]);
        cuda.ok("cuLaunchHostFunc", &[b, add as *const () as usize, 1]);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 904);
        cuda.fails("cuStreamEndCapture", &[a, at(&mut out)], 401);
        cuda.fails("cuStreamBeginCapture_v2", &[0, 2], 900);
        // Work of the default stream, while a stream that it is ordered with is captured.
        let blocking = cuda.get("cuStreamCreate", &[0]);
        let ptr = cuda.alloc(512);
        cuda.ok("cuStreamBeginCapture_v2", &[blocking, 2]);
        cuda.fails("cuMemsetD8Async", &[ptr, 0, 1, 0], 906);
        cuda.fails("cuStreamEndCapture", &[blocking, at(&mut out)], 901);
        cuda.ok("cuMemsetD8Async", &[ptr, 0, 1, 0]);
    }

    graphs_are_built_by_hand, [], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let ptr = cuda.alloc(4096);
        let graph = cuda.get("cuGraphCreate", &[0]);
        // CUDA_MEMSET_NODE_PARAMS: address, pitch, value and element size, width, height.
        let fill = |value: usize| [ptr, 0, value | 4 << 32, 1024, 1];
        let mut first = 0usize;
        cuda.ok("cuGraphAddMemsetNode", &[at(&mut first), graph, 0, 0, of(&fill(0x0101_0101)), 0]);
        let mut last = 0usize;
        cuda.ok("cuGraphAddMemsetNode", &[at(&mut last), graph, of(&first), 1, of(&fill(0x0202_0202)), 0]);
        let mut host = 0usize;
        let call = [add as *const () as usize, 5];
        cuda.ok("cuGraphAddHostNode", &[at(&mut host), graph, of(&[first, last]), 2, of(&call)]);
        let mut other = 0usize;
        cuda.fails("cuGraphAddEmptyNode", &[at(&mut other), graph, of(&0xdeadusize), 1], INVALID_VALUE);
        let mut count = 0usize;
        cuda.ok("cuGraphNodeGetDependencies", &[host, 0, at(&mut count)]);
        assert_eq!(count, 2);
        let exec = cuda.get("cuGraphInstantiate_v2", &[graph, 0, 0, 0]);
        cuda.ok("cuGraphLaunch", &[exec, stream]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(cuda.read(ptr, 4096), [2; 4096]);
        assert_eq!(CALLED.load(Ordering::SeqCst), 5);
        // A circle is no graph.
        cuda.ok("cuGraphAddDependencies", &[graph, of(&host), of(&first), 1]);
        cuda.fails("cuGraphInstantiateWithFlags", &[at(&mut other), graph, 0], INVALID_VALUE);
        cuda.ok("cuGraphRemoveDependencies", &[graph, of(&host), of(&first), 1]);
        // A child, other parameters, a node left out.
        let outer = cuda.get("cuGraphCreate", &[0]);
        let mut child = 0usize;
        cuda.ok("cuGraphAddChildGraphNode", &[at(&mut child), outer, 0, 0, graph]);
        cuda.ok("cuGraphMemsetNodeSetParams", &[last, of(&fill(0x0303_0303))]);
        let mut info = [0usize; 3];
        cuda.ok("cuGraphExecUpdate_v2", &[exec, graph, at(&mut info)]);
        cuda.ok("cuGraphLaunch", &[exec, stream]);
        assert_eq!(cuda.read(ptr, 4096), [3; 4096]);
        cuda.ok("cuGraphNodeSetEnabled", &[exec, last, 0]);
        cuda.ok("cuGraphLaunch", &[exec, stream]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(cuda.read(ptr, 4096), [1; 4096]);
        let whole = cuda.get("cuGraphInstantiateWithFlags", &[outer, 0]);
        cuda.ok("cuGraphLaunch", &[whole, stream]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(cuda.read(ptr, 4096), [2; 4096]);
        assert_eq!(CALLED.load(Ordering::SeqCst), 20);
        cuda.fails("cuGraphExecUpdate_v2", &[exec, outer, at(&mut info)], 910);
    }

    graphs_keep_memory_and_objects, [], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        cuda.ok("cuStreamBeginCapture_v2", &[stream, 2]);
        let ptr = cuda.get("cuMemAllocAsync", &[4096, stream]);
        cuda.ok("cuMemsetD8Async", &[ptr, 9, 4096, stream]);
        cuda.ok("cuMemFreeAsync", &[ptr, stream]);
        let graph = second(&cuda, "cuStreamEndCapture", stream);
        let object = cuda.get("cuUserObjectCreate", &[100, add as *const () as usize, 1, 1]);
        cuda.ok("cuGraphRetainUserObject", &[graph, object, 1, 1]);
        assert_eq!(cuda.account(0)[common::GRAPH], 4096);
        let exec = cuda.get("cuGraphInstantiateWithFlags", &[graph, 0]);
        cuda.ok("cuGraphDestroy", &[graph]);
        cuda.ok("cuGraphLaunch", &[exec, stream]);
        assert_eq!(cuda.read(ptr, 16), [9; 16]);
        assert_eq!((cuda.account(0)[common::GRAPH], CALLED.load(Ordering::SeqCst)), (4096, 0));
        cuda.ok("cuGraphExecDestroy", &[exec]);
        assert_eq!((cuda.account(0)[common::GRAPH], CALLED.load(Ordering::SeqCst)), (0, 100));
    }

    kernels_are_places_in_order, [], {
        let cuda = Cuda::start();
        let image = [1u8; 64];
        let module = cuda.get("cuModuleLoadData", &[of(&image)]);
        let function = cuda.get("cuModuleGetFunction", &[module, c"kernel".as_ptr() as usize]);
        cuda.ok("cuLaunchKernel", &[function, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0]);
        cuda.fails("cuLaunchKernel", &[function, 1, 1, 1, 2048, 1, 1, 0, 0, 0, 0], INVALID_VALUE);
        cuda.fails("cuLaunchKernel", &[module, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0], 400);
        let blocks = cuda.get("cuOccupancyMaxActiveBlocksPerMultiprocessor", &[function, 256, 0]);
        assert_eq!(blocks, 8);
        cuda.ok("cuModuleUnload", &[module]);
        cuda.fails("cuLaunchKernel", &[function, 1, 1, 1, 32, 1, 1, 0, 0, 0, 0], 400);
        assert_eq!(cuda.calls("cuLaunchKernel"), 4);
    }
}
