//! The GPU suite: what the real driver does, what its calls cost, and that the allocator keeps its promises on it, with slow kernels in
//! flight. Without a device it says so and passes, unless `STRATALLOC_REQUIRE_GPU=1` is set. A plain `main`, so that its lines are seen
//! in the output of `cargo test`. Arguments choose tests by parts of their names.
#![allow(clippy::print_stdout, reason = "the output is the point")]

mod capture;
mod driver;
mod kit;
mod latency;
mod limits;
mod moves;
mod programs;
mod tiers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use kit::{Bench, MIB};
use stratalloc::driver::Driver;
use stratalloc::driver::cuda::CudaDriver;
use stratalloc::units::ByteSize;

/// What a test is given.
#[derive(Clone, Copy)]
enum Run {
    /// The driver.
    Driver(fn(&CudaDriver)),
    /// A device on which kernels run, with virtual memory management.
    Bench(fn(&Bench<'_>)),
}

/// A test, and whether it needs virtual memory management.
struct Test {
    name: &'static str,
    needs_vmm: bool,
    run: Run,
}

const fn plain(name: &'static str, run: fn(&CudaDriver)) -> Test {
    Test { name, needs_vmm: false, run: Run::Driver(run) }
}

const fn virtual_memory(name: &'static str, run: fn(&CudaDriver)) -> Test {
    Test { name, needs_vmm: true, run: Run::Driver(run) }
}

const fn allocator(name: &'static str, run: fn(&Bench<'_>)) -> Test {
    Test { name, needs_vmm: true, run: Run::Bench(run) }
}

const TESTS: &[Test] = &[
    plain("properties_are_plausible", driver::properties_are_plausible),
    virtual_memory("virtual_memory_round_trip", driver::virtual_memory_round_trip),
    virtual_memory("host_memory_is_reachable_by_address", driver::host_memory_is_reachable_by_address),
    virtual_memory("two_addresses_one_chunk", driver::two_addresses_one_chunk),
    virtual_memory("a_chunk_becomes_a_file_descriptor", driver::a_chunk_becomes_a_file_descriptor),
    plain("plain_memory_round_trip", driver::plain_memory_round_trip),
    plain("streams_wait_for_events", driver::streams_wait_for_events),
    plain("batches_copy_everything", driver::batches_copy_everything),
    plain("own_kernels_run", driver::own_kernels_run),
    plain("transfers_come_back", driver::transfers_come_back),
    plain("any_thread_may_call", driver::any_thread_may_call),
    virtual_memory("wrong_arguments_are_typed_errors", driver::wrong_arguments_are_typed_errors),
    plain("buffers_go_to_cudarc_and_back", driver::buffers_go_to_cudarc_and_back),
    allocator("stitched_while_kernels_run", programs::stitched_while_kernels_run),
    allocator("one_thread_at_random", programs::one_thread_at_random),
    allocator("small_chunks_at_random", programs::small_chunks_at_random),
    allocator("threads_at_random", programs::threads_at_random),
    allocator("a_limit_is_kept_and_its_remedy_works", limits::a_limit_is_kept_and_its_remedy_works),
    allocator("the_device_runs_out", limits::the_device_runs_out),
    allocator("allocators_come_and_go", limits::allocators_come_and_go),
    allocator("sparse_pages_share_memory", moves::sparse_pages_share_memory),
    allocator("movable_blocks_move", moves::movable_blocks_move),
    allocator("a_graph_is_captured_and_replayed", capture::a_graph_is_captured_and_replayed),
    allocator("blocks_go_to_pinned_memory_and_come_back", tiers::blocks_go_to_pinned_memory_and_come_back),
    #[cfg(feature = "nvme")]
    allocator("blocks_go_to_files_and_come_back", tiers::blocks_go_to_files_and_come_back),
    allocator("more_than_the_limit_is_used_in_turn", tiers::more_than_the_limit_is_used_in_turn),
    #[cfg(feature = "nvme")]
    allocator(
        "what_pinned_memory_cannot_hold_spills_into_files",
        tiers::what_pinned_memory_cannot_hold_spills_into_files,
    ),
    allocator("the_device_sleeps_and_wakes", tiers::the_device_sleeps_and_wakes),
    virtual_memory("driver_latency", latency::driver_latency),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        // For cargo-nextest, to which the suite is one test.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("gpu: test");
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> =
        arguments.into_iter().filter(|argument| !argument.starts_with('-') && argument != "gpu").collect();
    let tests: Vec<&Test> =
        TESTS.iter().filter(|test| wanted.is_empty() || wanted.iter().any(|part| test.name.contains(part))).collect();
    if tests.is_empty() {
        println!("no test's name has any of {wanted:?} in it: 0 of {} run", TESTS.len());
        return ExitCode::FAILURE;
    }
    let driver = match kit::open() {
        Ok(driver) => driver,
        Err(reason) => return no_device(&reason, &tests),
    };
    let properties = driver.properties();
    println!(
        "GPU suite on {}, {}, CUDA {}",
        properties.name,
        ByteSize(properties.total_memory),
        properties.driver_version
    );
    let bench = Bench::new(&driver);
    let failed = tests.iter().filter(|test| !run(test, &bench)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a test passed, or could not be run.
fn run(test: &Test, bench: &Bench<'_>) -> bool {
    let skip = |reason| {
        println!("test {} ... skipped: {reason}", test.name);
        true
    };
    if test.needs_vmm && !bench.driver.properties().vmm {
        return skip("the device has no virtual memory management");
    }
    let free = bench.free();
    let start = Instant::now();
    let done = match test.run {
        Run::Driver(work) => catch_unwind(AssertUnwindSafe(|| work(bench.driver))),
        Run::Bench(_) if !bench.kernels => return skip("kernels do nothing here"),
        Run::Bench(work) => catch_unwind(AssertUnwindSafe(|| {
            work(bench);
            let left = free.saturating_sub(bench.free());
            assert!(left < 64 * MIB, "{} of device memory did not come back", ByteSize(left));
        })),
    };
    let passed = done.is_ok();
    let seconds = start.elapsed().as_secs_f64();
    println!("test {} ... {} ({seconds:.2} s)", test.name, if passed { "ok" } else { "FAILED" });
    passed
}

fn no_device(reason: &str, tests: &[&Test]) -> ExitCode {
    println!("skipped: no CUDA device ({reason})");
    for test in tests {
        println!("test {} ... skipped: no CUDA device", test.name);
    }
    let required = std::env::var_os("STRATALLOC_REQUIRE_GPU").is_some_and(|value| value == "1");
    if required { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
