//! The software device's own promises: strict arguments, virtual time, capture, seeds.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use common::contract::{Mapped, assert_fails, bytes_at};
use stratalloc::driver::DriverErrorKind::{Capturing, InvalidHandle, InvalidValue, NotSupported, OutOfMemory, Sticky};
use stratalloc::driver::soft::{Access, Backing, LatencyModel, Report, SoftDevice, SoftDeviceBuilder};
use stratalloc::driver::{CaptureStatus, ChunkHandle, CopyOp, Driver, EventStatus, Location};
use stratalloc::units::{DevicePtr, PAGE, StreamId};

fn small() -> SoftDeviceBuilder {
    SoftDevice::builder(64 * PAGE)
}

fn both_backings() -> [Arc<SoftDevice>; 2] {
    [Backing::Memfd, Backing::AddressesOnly].map(|backing| small().backing(backing).build().unwrap())
}

// ---- strict arguments -------------------------------------------------------------------------------------------------

#[test]
fn builder_refuses_nonsense() {
    assert_fails(SoftDevice::builder(0).build(), InvalidValue);
    assert_fails(SoftDevice::builder(u64::MAX).build(), InvalidValue);
    assert_fails(small().granularity(0).build(), InvalidValue);
    assert_fails(small().granularity(3 << 20).build(), InvalidValue);
    assert_fails(small().granularity(512).build(), InvalidValue);
}

#[test]
fn reservations_are_strict() {
    for device in both_backings() {
        assert_fails(device.reserve(0, PAGE), InvalidValue);
        assert_fails(device.reserve(PAGE + 1, PAGE), InvalidValue);
        assert_fails(device.reserve(PAGE, 3 * PAGE), InvalidValue);
        assert_fails(device.reserve(PAGE, 4096), InvalidValue);
        assert_fails(device.reserve(u64::MAX / PAGE * PAGE, PAGE), OutOfMemory);
        assert_fails(device.reserve(PAGE, 1 << 63), OutOfMemory);
        let ptr = device.reserve(2 * PAGE, 0).unwrap();
        assert_fails(device.unreserve(ptr, PAGE), InvalidValue);
        assert_fails(device.unreserve(ptr.add(PAGE), PAGE), InvalidValue);
        assert_fails(device.unreserve(DevicePtr(u64::MAX / PAGE * PAGE), PAGE), InvalidValue);
        let chunk = device.create(PAGE, Location::Device).unwrap();
        device.map(ptr.add(PAGE), PAGE, chunk, 0).unwrap();
        assert_fails(device.unreserve(ptr, 2 * PAGE), InvalidValue);
        device.unmap(ptr.add(PAGE), PAGE).unwrap();
        device.unreserve(ptr, 2 * PAGE).unwrap();
        assert_fails(device.unreserve(ptr, 2 * PAGE), InvalidValue);
        device.release(chunk).unwrap();
        assert!(device.leaks().is_empty());
    }
}

#[test]
fn chunks_are_strict() {
    for device in both_backings() {
        assert_fails(device.create(0, Location::Device), InvalidValue);
        assert_fails(device.create(PAGE / 2, Location::Device), InvalidValue);
        assert_fails(device.create(65 * PAGE, Location::Device), OutOfMemory);
        assert_fails(device.create(u64::MAX / PAGE * PAGE, Location::Host), InvalidValue);
        assert_fails(device.release(ChunkHandle(99)), InvalidHandle);
        let host = device.create(100 * PAGE, Location::Host).unwrap();
        assert_eq!(device.memory_info().unwrap().free, 64 * PAGE, "host memory does not count");
        let chunk = device.create(64 * PAGE, Location::Device).unwrap();
        assert_fails(device.create(PAGE, Location::Device), OutOfMemory);
        assert_fails(device.alloc_plain(1), OutOfMemory);
        device.release(chunk).unwrap();
        assert_fails(device.release(chunk), InvalidHandle);
        device.release(host).unwrap();
        assert_eq!(device.memory_info().unwrap().free, 64 * PAGE);
    }
}

#[test]
fn mappings_are_strict() {
    for device in both_backings() {
        let ptr = device.reserve(4 * PAGE, PAGE).unwrap();
        let chunk = device.create(2 * PAGE, Location::Device).unwrap();
        assert_fails(device.map(ptr, PAGE, chunk, 0), InvalidValue);
        assert_fails(device.map(ptr, PAGE, chunk, PAGE), InvalidValue);
        assert_fails(device.map(ptr, 2 * PAGE, chunk, u64::MAX / PAGE * PAGE), InvalidValue);
        assert_fails(device.map(ptr.add(1), 2 * PAGE, chunk, 0), InvalidValue);
        assert_fails(device.map(ptr.add(3 * PAGE), 2 * PAGE, chunk, 0), InvalidValue);
        assert_fails(device.map(ptr, 2 * PAGE, ChunkHandle(77), 0), InvalidHandle);
        device.map(ptr.add(PAGE), 2 * PAGE, chunk, 0).unwrap();
        assert_fails(device.map(ptr, 2 * PAGE, chunk, 0), InvalidValue);
        assert_fails(device.map(ptr.add(2 * PAGE), 2 * PAGE, chunk, 0), InvalidValue);
        // Not whole mappings.
        assert_fails(device.unmap(ptr.add(PAGE), PAGE), InvalidValue);
        assert_fails(device.unmap(ptr, 4 * PAGE), InvalidValue);
        assert_fails(device.set_access(ptr, 4 * PAGE), InvalidValue);
        assert_fails(device.set_access(ptr.add(PAGE), PAGE), InvalidValue);
        // No access yet, then access, then nothing.
        let (inside, stream) = (ptr.add(PAGE), StreamId::DEFAULT);
        assert_fails(device.fill(inside, 16, 0, stream), InvalidValue);
        device.set_access(inside, 2 * PAGE).unwrap();
        device.fill(inside, 2 * PAGE, 0, stream).unwrap();
        assert_fails(device.fill(inside, 2 * PAGE + 1, 0, stream), InvalidValue);
        assert_fails(device.fill(ptr, 16, 0, stream), InvalidValue);
        assert_fails(device.fill(inside, u64::MAX, 0, stream), InvalidValue);
        assert_fails(device.launch(stream, &[Access::read(ptr, 1)], 0), InvalidValue);
        let overlapping = [CopyOp { dst: inside.add(8), src: inside, size: 16 }];
        assert_fails(device.copy(&overlapping, stream), InvalidValue);
        device.unmap(inside, 2 * PAGE).unwrap();
        assert_fails(device.fill(inside, 16, 0, stream), InvalidValue);
        assert_fails(device.unmap(inside, 2 * PAGE), InvalidValue);
    }
}

#[test]
fn plain_memory_is_no_mapping() {
    for device in both_backings() {
        let ptr = device.alloc_plain(2 * PAGE).unwrap();
        let inside = DevicePtr(ptr.0.next_multiple_of(PAGE));
        for result in [device.unmap(inside, PAGE), device.set_access(inside, PAGE), device.free_plain(ptr.add(512))] {
            assert_fails(result, InvalidValue);
        }
        assert_fails(device.fill(ptr, 2 * PAGE + 1, 0, StreamId::DEFAULT), InvalidValue);
        device.free_plain(ptr).unwrap();
        assert_fails(device.free_plain(ptr), InvalidValue);
    }
}

#[test]
fn parts_of_chunks_map_where_the_device_can() {
    let device = small().partial_mapping(true).build().unwrap();
    let ptr = device.reserve(4 * PAGE, PAGE).unwrap();
    let chunk = device.create(4 * PAGE, Location::Device).unwrap();
    for page in 0..4 {
        device.map(ptr.add(page * PAGE), PAGE, chunk, (3 - page) * PAGE).unwrap();
    }
    assert_fails(device.map(ptr, PAGE, chunk, 4 * PAGE), InvalidValue);
    device.set_access(ptr, 4 * PAGE).unwrap();
    device.fill(ptr.add(PAGE), PAGE, 5, StreamId::DEFAULT).unwrap();
    let alias = device.reserve(4 * PAGE, PAGE).unwrap();
    device.map(alias, 4 * PAGE, chunk, 0).unwrap();
    device.set_access(alias, 4 * PAGE).unwrap();
    assert_eq!(bytes_at(&*device, alias.add(2 * PAGE), 2, StreamId::DEFAULT), [5, 5]);
    device.unmap(ptr.add(PAGE), 2 * PAGE).unwrap();
}

#[test]
fn mappings_are_limited() {
    let device = small().max_mappings(Some(3)).build().unwrap();
    let mapped = Mapped::new(&*device, 3);
    let chunk = device.create(PAGE, Location::Device).unwrap();
    let ptr = device.reserve(PAGE, PAGE).unwrap();
    device.map(ptr, PAGE, chunk, 0).unwrap();
    assert_fails(device.set_access(ptr, PAGE), OutOfMemory);
    mapped.free(&*device);
    device.set_access(ptr, PAGE).unwrap();
}

#[test]
fn released_memory_comes_back_empty() {
    let device = small().build().unwrap();
    for _ in 0..3 {
        let mapped = Mapped::new(&*device, 2);
        assert_eq!(bytes_at(&*device, mapped.ptr, 16, StreamId::DEFAULT), [0; 16]);
        device.fill(mapped.ptr, mapped.size, 1, StreamId::DEFAULT).unwrap();
        mapped.free(&*device);
    }
}

#[test]
fn leaks_are_counted() {
    let device = small().build().unwrap();
    Mapped::new(&*device, 2);
    device.create_stream().unwrap();
    device.create_event().unwrap();
    device.alloc_plain(1).unwrap();
    device.alloc_host(1).unwrap();
    let leaks = device.leaks();
    let text = "1 reservations, 2 chunks, 2 mappings, 1 plain allocations, 1 host allocations, 1 events, 1 streams";
    assert_eq!(leaks.to_string(), text);
}

#[test]
fn exported_chunks_are_their_bytes() {
    let device = small().build().unwrap();
    let mapped = Mapped::new(&*device, 2);
    device.fill(mapped.ptr.add(PAGE), PAGE, 8, StreamId::DEFAULT).unwrap();
    let mut file = std::fs::File::from(device.export(mapped.chunks[1]).unwrap());
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut file, &mut bytes).unwrap();
    assert_eq!(bytes, [8; 4]);
    assert!(file.write_at(&[9], 0).is_ok());
    let empty = small().backing(Backing::AddressesOnly).build().unwrap();
    let chunk = empty.create(PAGE, Location::Device).unwrap();
    assert_fails(empty.export(chunk), NotSupported);
}

// ---- virtual time -----------------------------------------------------------------------------------------------------

#[test]
fn calls_cost_what_the_model_says() {
    let times = [(LatencyModel::Off, 0), (LatencyModel::A100, 193_000), (LatencyModel::StudyA, 71_000)];
    for (model, create_ns) in times {
        let device = small().latency(model).build().unwrap();
        let chunk = device.create(PAGE, Location::Device).unwrap();
        assert_eq!(device.clock_ns(), create_ns);
        device.release(chunk).unwrap();
        let release_ns = if create_ns == 0 { 0 } else { 26_000 + 2 * 370 };
        assert_eq!(device.clock_ns(), create_ns + release_ns);
        assert_eq!(device.stall_ns(), 0);
    }
}

#[test]
fn mappings_cost_one_by_one_on_an_h100() {
    let device = small().latency(LatencyModel::H100).build().unwrap();
    let at = device.reserve(4 * PAGE, PAGE).unwrap();
    let map = |page: u64| {
        let chunk = device.create(PAGE, Location::Device).unwrap();
        device.map(at.add(page * PAGE), PAGE, chunk, 0).unwrap();
    };
    (0..4).for_each(map);
    let time = |call: &dyn Fn()| {
        let before = device.clock_ns();
        call();
        device.clock_ns() - before
    };
    let one = time(&|| device.set_access(at, PAGE).unwrap());
    assert_eq!(time(&|| device.set_access(at.add(PAGE), 3 * PAGE).unwrap()), 3 * one);
    let one = time(&|| device.unmap(at, PAGE).unwrap());
    assert_eq!(time(&|| device.unmap(at.add(PAGE), 3 * PAGE).unwrap()), 3 * one);
}

#[test]
fn tails_stall_some_calls() {
    let time = |tails| {
        let device = small().latency(LatencyModel::A100).tails(tails).build().unwrap();
        let mapped = Mapped::new(&*device, 1);
        let begin = device.clock_ns();
        (0..160).for_each(|_| device.set_access(mapped.ptr, PAGE).unwrap());
        device.clock_ns() - begin
    };
    assert_eq!(time(false), 160 * 36_000);
    let stalls = (time(true) - time(false)) / 2_000_000;
    assert!((15..45).contains(&stalls), "{stalls}");
}

#[test]
fn work_takes_its_time_on_its_stream() {
    let device = small().build().unwrap();
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let (after_a, after_b) = (device.create_event().unwrap(), device.create_event().unwrap());
    device.launch(a, &[], 1000).unwrap();
    device.record_event(after_a, a).unwrap();
    device.wait_event(b, after_a).unwrap();
    device.launch(b, &[], 500).unwrap();
    device.record_event(after_b, b).unwrap();
    assert_eq!(device.query_event(after_a).unwrap(), EventStatus::Pending);
    device.advance_clock(999);
    assert_eq!(device.query_event(after_a).unwrap(), EventStatus::Pending);
    device.advance_clock(1);
    assert_eq!(device.query_event(after_a).unwrap(), EventStatus::Complete);
    assert_eq!(device.query_event(after_b).unwrap(), EventStatus::Pending);
    device.synchronize_event(after_b).unwrap();
    assert_eq!((device.clock_ns(), device.stall_ns()), (1500, 500));
    device.launch(a, &[], 100).unwrap();
    device.launch(b, &[], 300).unwrap();
    device.synchronize_stream(a).unwrap();
    assert_eq!(device.clock_ns(), 1600);
    device.synchronize_device().unwrap();
    assert_eq!((device.clock_ns(), device.stall_ns()), (1800, 800));
}

#[test]
fn the_clock_is_what_was_told_charged_and_waited_for() {
    let device = small().latency(LatencyModel::A100).checker(true).build().unwrap();
    let mapped = Mapped::new(&*device, 1);
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let plain = device.alloc_plain(512).unwrap();
    let (begin, charged) = (device.clock_ns(), device.charged_ns());
    assert_eq!((begin, device.stall_ns()), (charged, 0));
    let whole = [Access::write(mapped.ptr, PAGE)];
    // One after another on a, and on b after that, as nothing races: 4 ms. A kernel of 5 ms runs beside.
    device.keep_busy(a, &whole, 1_000_000).unwrap();
    device.keep_busy(a, &whole, 2_000_000).unwrap();
    device.order_after(b, a).unwrap();
    device.keep_busy(b, &whole, 1_000_000).unwrap();
    device.keep_busy(a, &[], 2_000_000).unwrap();
    assert_eq!((device.clock_ns(), device.charged_ns()), (begin, charged), "submitting is free");
    device.advance_clock(500_000);
    device.synchronize_stream(b).unwrap();
    assert_eq!(device.clock_ns(), begin + 4_000_000);
    assert_eq!((device.stall_ns(), device.charged_ns()), (4_000_000 - 500_000 - 1_340, charged + 1_340));
    // A free takes 1.1 ms itself; a is done before that.
    device.free_plain(plain).unwrap();
    let (stall, charged) = (device.stall_ns(), device.charged_ns());
    assert_eq!(stall, 4_000_000 - 500_000 - 1_340);
    assert_eq!(device.clock_ns(), 500_000 + stall + charged);
    assert_eq!(device.reports(), []);
}

#[test]
fn kernels_that_keep_busy_are_checked_and_find_unmapped_memory() {
    let device = small().checker(true).build().unwrap();
    let mapped = Mapped::new(&*device, 1);
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let whole = [Access::write(mapped.ptr, PAGE)];
    device.keep_busy(a, &whole, 100).unwrap();
    device.keep_busy(b, &whole, 100).unwrap();
    assert!(matches!(device.reports()[..], [Report::Race { .. }]), "{:?}", device.reports());
    device.unmap(mapped.ptr, PAGE).unwrap();
    assert!(device.reports().iter().any(|report| matches!(report, Report::UnmapInUse { .. })));
    assert_fails(device.synchronize_device(), Sticky);
    assert_fails(device.keep_busy(a, &[], 1), Sticky);
    assert_fails(device.order_after(a, StreamId(99)), InvalidHandle);
}

#[test]
fn bytes_move_when_the_work_is_done() {
    let device = small().build().unwrap();
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let ptr = device.alloc_plain(512).unwrap();
    device.launch(a, &[], 1000).unwrap();
    device.fill(ptr, 512, 1, a).unwrap();
    // Reused too early, on b: a's fill comes later and spoils it.
    device.fill(ptr, 512, 2, b).unwrap();
    assert_eq!(bytes_at(&*device, ptr, 1, b), [2]);
    device.synchronize_stream(a).unwrap();
    assert_eq!(bytes_at(&*device, ptr, 1, b), [1]);
}

#[test]
fn destroyed_streams_finish_their_work() {
    let device = small().build().unwrap();
    let (stream, event) = (device.create_stream().unwrap(), device.create_event().unwrap());
    let ptr = device.alloc_plain(512).unwrap();
    device.launch(stream, &[], 1000).unwrap();
    device.fill(ptr, 512, 4, stream).unwrap();
    device.record_event(event, stream).unwrap();
    device.destroy_stream(stream).unwrap();
    assert_fails(device.fill(ptr, 512, 5, stream), InvalidHandle);
    device.synchronize_event(event).unwrap();
    assert_eq!(bytes_at(&*device, ptr, 1, StreamId::DEFAULT), [4]);
}

#[test]
fn events_lag_for_the_host_only() {
    let device = small().event_lag_ns(100_000).build().unwrap();
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let event = device.create_event().unwrap();
    device.record_event(event, a).unwrap();
    assert_eq!(device.query_event(event).unwrap(), EventStatus::Pending);
    let ptr = device.alloc_plain(512).unwrap();
    device.wait_event(b, event).unwrap();
    device.fill(ptr, 512, 1, b).unwrap();
    device.advance_clock(100_000);
    assert_eq!(device.query_event(event).unwrap(), EventStatus::Complete);
    device.record_event(event, a).unwrap();
    device.synchronize_stream(a).unwrap();
    assert_eq!(device.query_event(event).unwrap(), EventStatus::Complete, "the host has waited for the stream");
}

#[test]
fn work_on_unmapped_addresses_breaks_the_device() {
    let device = small().build().unwrap();
    let mapped = Mapped::new(&*device, 1);
    let stream = device.create_stream().unwrap();
    device.launch(stream, &[], 1000).unwrap();
    device.fill(mapped.ptr, 512, 1, stream).unwrap();
    device.unmap(mapped.ptr, PAGE).unwrap();
    assert_fails(device.synchronize_device(), Sticky);
    assert_fails(device.memory_info(), Sticky);
}

// ---- capture ------------------------------------------------------------------------------------------------------------

#[test]
fn captured_work_runs_when_its_graph_is_launched() {
    let device = small().build().unwrap();
    let (a, b, other) =
        (device.create_stream().unwrap(), device.create_stream().unwrap(), device.create_stream().unwrap());
    let (fork, join, outside) =
        (device.create_event().unwrap(), device.create_event().unwrap(), device.create_event().unwrap());
    let ptr = device.alloc_plain(512).unwrap();
    device.record_event(outside, other).unwrap();
    assert_eq!(device.capture_status(a).unwrap(), CaptureStatus::None);
    let id = device.begin_capture(a).unwrap();
    assert_fails(device.begin_capture(a), Capturing);
    assert_fails(device.begin_capture(StreamId::DEFAULT), Capturing);
    device.fill(ptr, 512, 1, a).unwrap();
    device.record_event(fork, a).unwrap();
    device.wait_event(b, fork).unwrap();
    device.fill(ptr, 256, 2, b).unwrap();
    device.record_event(join, b).unwrap();
    device.wait_event(a, join).unwrap();
    for stream in [a, b] {
        assert_eq!(device.capture_status(stream).unwrap(), CaptureStatus::Active(id));
        assert_fails(device.synchronize_stream(stream), Capturing);
        assert_fails(device.destroy_stream(stream), Capturing);
        assert_fails(device.wait_event(stream, outside), Capturing);
    }
    assert_eq!(device.capture_status(other).unwrap(), CaptureStatus::None);
    assert_fails(device.query_event(outside), Capturing);
    assert_fails(device.query_event(fork), Capturing);
    assert_fails(device.synchronize_event(outside), Capturing);
    assert_fails(device.synchronize_device(), Capturing);
    assert_fails(device.free_plain(ptr), Capturing);
    device.synchronize_stream(other).unwrap();
    assert_fails(device.end_capture(b), Capturing);
    let graph = device.end_capture(a).unwrap();
    assert_eq!((graph.id(), graph.len(), graph.is_empty()), (id, 2, false));
    assert_fails(device.end_capture(a), Capturing);
    assert_eq!(device.capture_status(b).unwrap(), CaptureStatus::None);
    assert_eq!(bytes_at(&*device, ptr, 1, a), [0], "nothing was executed");
    device.launch_graph(&graph, other).unwrap();
    assert_eq!(bytes_at(&*device, ptr.add(255), 2, other), [2, 1]);
    assert_eq!(device.query_event(fork).unwrap(), EventStatus::Complete);
}

#[test]
fn spoilt_captures_end_in_an_error() {
    let device = small().build().unwrap();
    let stream = device.create_stream().unwrap();
    let ptr = device.alloc_plain(512).unwrap();
    device.begin_capture(stream).unwrap();
    device.invalidate_capture(stream).unwrap();
    assert_eq!(device.capture_status(stream).unwrap(), CaptureStatus::Invalidated);
    assert_fails(device.fill(ptr, 512, 1, stream), Capturing);
    assert_fails(device.end_capture(stream), Capturing);
    assert_eq!(device.capture_status(stream).unwrap(), CaptureStatus::None);
    device.fill(ptr, 512, 1, stream).unwrap();
}

// ---- seeds --------------------------------------------------------------------------------------------------------------

/// Twelve streams with a fill and an event each: the order in which a polling host sees the events, and a racy result.
fn completion_order(seed: u64) -> (Vec<usize>, Vec<u8>, u64) {
    let device = small().seed(seed).build().unwrap();
    let ptr = device.alloc_plain(512).unwrap();
    let lanes: Vec<_> = (0..12).map(|_| (device.create_stream().unwrap(), device.create_event().unwrap())).collect();
    for (lane, &(stream, event)) in lanes.iter().enumerate() {
        device.fill(ptr, 512, lane as u8, stream).unwrap();
        device.record_event(event, stream).unwrap();
    }
    let mut order = Vec::new();
    while order.len() < lanes.len() {
        for (lane, &(_, event)) in lanes.iter().enumerate() {
            if !order.contains(&lane) && device.query_event(event).unwrap() == EventStatus::Complete {
                order.push(lane);
            }
        }
    }
    let bytes = bytes_at(&*device, ptr, 1, StreamId::DEFAULT);
    (order, bytes, device.state_hash())
}

#[test]
fn seeds_choose_the_order_and_repeat_it() {
    let runs: Vec<_> = (0..20).map(completion_order).collect();
    for (seed, run) in runs.iter().enumerate() {
        assert_eq!(*run, completion_order(seed as u64), "seed {seed}");
    }
    assert_eq!(runs[0].0, (0..12).collect::<Vec<_>>(), "eager");
    let mut orders: Vec<_> = runs.iter().map(|run| &run.0).collect();
    orders.sort();
    orders.dedup();
    assert!(orders.len() > 10, "{} orders of 20 seeds", orders.len());
    let mut results: Vec<_> = runs.iter().map(|run| &run.1).collect();
    results.sort();
    results.dedup();
    assert!(results.len() > 1, "a race has several results");
}

#[test]
fn the_hash_sees_arguments() {
    let hash = |byte| {
        let device = small().build().unwrap();
        let mapped = Mapped::new(&*device, 2);
        device.fill(mapped.ptr.add(512), 512, byte, StreamId::DEFAULT).unwrap();
        device.state_hash()
    };
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1), hash(2));
}

#[test]
fn addresses_only_holds_what_linux_could_not() {
    let device = SoftDevice::builder(80 << 30).backing(Backing::AddressesOnly).build().unwrap();
    let mapped = Mapped::new(&*device, 40_960);
    assert_eq!(device.memory_info().unwrap().free, 0);
    mapped.free(&*device);
    let other = SoftDevice::builder(80 << 30).backing(Backing::AddressesOnly).build().unwrap();
    let (a, b) = (device.reserve(PAGE, PAGE).unwrap(), other.reserve(PAGE, PAGE).unwrap());
    assert_ne!(a, b, "devices have addresses of their own");
}
