//! Virtual time through the C interface: every nanosecond is accounted for.

mod common;

use std::ffi::{CString, c_char};

use common::{Cuda, INVALID_HANDLE, INVALID_VALUE, NOT_READY};

const VIRTUAL: (&str, &str) = ("SOFTCUDA_CLOCK", "virtual");

/// A number of a device.
fn number(cuda: &Cuda, name: &str, device: i32) -> u64 {
    cuda.function::<extern "C" fn(i32) -> u64>(name)(device)
}

/// Clock, stall and cost of the first device, in nanoseconds.
fn times(cuda: &Cuda) -> [u64; 3] {
    ["softcuda_clock_ns", "softcuda_stall_ns", "softcuda_driver_ns"].map(|name| number(cuda, name, 0))
}

fn busy(cuda: &Cuda, stream: usize, ns: u64) {
    cuda.ok("softcuda_busy", &[stream, ns as usize]);
}

fn calls(cuda: &Cuda, device: i32, name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    cuda.function::<extern "C" fn(i32, *const c_char) -> u64>("softcuda_calls")(device, name.as_ptr())
}

scenarios! {
    two_streams_an_event_and_a_wait, [VIRTUAL, ("SOFTCUDA_BACKING", "none")], {
        let cuda = Cuda::start();
        let (one, other) = (cuda.stream(), cuda.stream());
        let (early, late) = (cuda.get("cuEventCreate", &[2]), cuda.get("cuEventCreate", &[2]));
        let ptr = cuda.alloc(4096);
        // Without a latency model, calls take no time, and the host's clock does not count.
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(times(&cuda), [0, 0, 0]);
        cuda.ok("softcuda_advance", &[300]);
        busy(&cuda, one, 1_000);
        busy(&cuda, one, 500);
        busy(&cuda, other, 700);
        cuda.ok("cuEventRecord", &[early, other]);
        assert_eq!(times(&cuda), [300, 0, 0]);
        cuda.fails("cuEventQuery", &[early], NOT_READY);
        // The other stream has begun at 300, beside the first.
        cuda.ok("cuEventSynchronize", &[early]);
        assert_eq!(times(&cuda), [1_000, 700, 0]);
        cuda.ok("cuEventQuery", &[early]);
        // One is done at 1800; what comes after a wait for it begins then.
        cuda.ok("cuEventRecord", &[late, one]);
        cuda.ok("cuStreamWaitEvent", &[other, late, 0]);
        busy(&cuda, other, 100);
        cuda.ok("softcuda_advance", &[50]);
        cuda.ok("cuStreamSynchronize", &[other]);
        assert_eq!(times(&cuda), [1_900, 700 + 850, 0]);
        // Nothing is left to wait for.
        cuda.ok("cuCtxSynchronize", &[]);
        assert_eq!(times(&cuda), [1_900, 1_550, 0]);
        // A free waits for all streams.
        busy(&cuda, one, 2_000);
        busy(&cuda, other, 3_000);
        cuda.ok("cuMemFree_v2", &[ptr]);
        assert_eq!(times(&cuda), [4_900, 4_550, 0]);
    }

    events_lag, [VIRTUAL, ("SOFTCUDA_EVENT_LAG_US", "100")], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let event = cuda.get("cuEventCreate", &[2]);
        busy(&cuda, stream, 1_000);
        cuda.ok("cuEventRecord", &[event, stream]);
        cuda.ok("softcuda_advance", &[100_999]);
        cuda.fails("cuEventQuery", &[event], NOT_READY);
        cuda.ok("softcuda_advance", &[1]);
        cuda.ok("cuEventQuery", &[event]);
        busy(&cuda, stream, 1_000);
        cuda.ok("cuEventRecord", &[event, stream]);
        cuda.ok("cuEventSynchronize", &[event]);
        assert_eq!(times(&cuda), [202_000, 101_000, 0]);
    }

    the_clock_is_what_was_told_charged_and_waited_for, [VIRTUAL, ("SOFTCUDA_LATENCY", "a100")], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let ptr = cuda.alloc(2 << 20);
        let [before, _, charged] = times(&cuda);
        assert_eq!(before, charged);
        busy(&cuda, stream, 10_000_000);
        // Submitting has cost nothing, and so does looking.
        assert_eq!(cuda.account(0)[common::PLAIN], 2 << 20);
        assert_eq!(times(&cuda), [before, 0, charged]);
        cuda.ok("softcuda_advance", &[1_000]);
        cuda.ok("cuMemFree_v2", &[ptr]);
        // The work was submitted before the free's own time, during which it gets on.
        assert_eq!(times(&cuda), [before + 10_000_000, 10_000_000 - 1_000 - 1_100_000, charged + 1_100_000]);
        cuda.ok("cuCtxSynchronize", &[]);
        let [clock, stall, driver] = times(&cuda);
        assert_eq!((clock, driver), (1_000 + stall + driver, charged + 1_101_340));
    }

    calls_are_counted_by_name, [VIRTUAL], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        cuda.ok("cuMemFree_v2", &[cuda.alloc(512)]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        cuda.ok("cuStreamSynchronize_ptsz", &[stream]);
        for (name, count) in [("cuMemFree", 1), ("cuMemFree_v2", 1), ("cuStreamSynchronize", 2), ("cuCtxSynchronize", 0)] {
            assert_eq!(calls(&cuda, 0, name), count, "{name}");
        }
        assert_eq!((calls(&cuda, 0, "cuNothing"), calls(&cuda, 1, "cuMemFree")), (0, 0));
    }

    what_is_not_there_is_refused, [VIRTUAL], {
        let cuda = Cuda::start();
        cuda.fails("softcuda_busy", &[0xdead_beef, 1], INVALID_HANDLE);
        for name in ["softcuda_clock_ns", "softcuda_stall_ns", "softcuda_driver_ns"] {
            cuda.ok("softcuda_advance", &[7]);
            assert_eq!((number(&cuda, name, 1), number(&cuda, name, -1)), (0, 0), "{name}");
        }
        assert_eq!(times(&cuda), [21, 0, 0]);
        cuda.fails("cuMemFree_v2", &[12345], INVALID_VALUE);
        let stream = cuda.stream();
        cuda.ok("cuStreamBeginCapture_v2", &[stream, 2]);
        cuda.fails("softcuda_busy", &[stream, 1], 900);
    }

    nothing_is_there_before_cuinit, [VIRTUAL], {
        let cuda = Cuda::load();
        cuda.fails("softcuda_busy", &[0, 1], common::NOT_INITIALIZED);
        cuda.fails("softcuda_advance", &[1], common::NOT_INITIALIZED);
        assert_eq!(times(&cuda), [0, 0, 0]);
    }

    // By the host's clock, work gets on while the host does something else.
    the_hosts_clock_counts_where_it_is_chosen, [("SOFTCUDA_CLOCK", "host")], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        busy(&cuda, stream, 1_000_000);
        std::thread::sleep(std::time::Duration::from_millis(3));
        cuda.ok("cuStreamQuery", &[stream]);
        busy(&cuda, stream, 3_600_000_000_000);
        cuda.fails("cuStreamQuery", &[stream], NOT_READY);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert!(times(&cuda)[1] > 3_000_000_000_000);
    }
}
