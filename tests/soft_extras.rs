//! What the software device does beyond the driver trait, as a whole CUDA driver needs it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use stratalloc::driver::soft::{Comparison, SoftDevice};
use stratalloc::driver::{Driver, DriverErrorKind, EventStatus, Location};
use stratalloc::units::{PAGE, StreamId};

fn device(seed: u64) -> Arc<SoftDevice> {
    SoftDevice::builder(64 << 20).seed(seed).checker(true).build().unwrap()
}

#[test]
fn functions_of_the_host_hold_their_stream_up() {
    for seed in 0..20 {
        let device = device(seed);
        let (stream, event) = (device.create_stream().unwrap(), device.create_event().unwrap());
        let ptr = device.alloc_plain(4096).unwrap();
        let called = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&called);
        device.launch_host(stream, Box::new(move || _ = counter.fetch_add(1, SeqCst))).unwrap();
        device.fill(ptr, 4096, 3, stream).unwrap();
        device.record_event(event, stream).unwrap();
        assert_eq!(device.query_event(event).unwrap(), EventStatus::Pending);
        assert_eq!((device.is_idle(stream).unwrap(), called.load(SeqCst)), (false, 0));
        device.synchronize_event(event).unwrap();
        assert_eq!(called.load(SeqCst), 1);
        let mut byte = [0];
        device.read(&mut byte, ptr, stream).unwrap();
        assert_eq!(byte, [3]);
        assert!(!device.run_host_work());
    }
}

#[test]
fn a_value_holds_a_stream_up() {
    let device = device(0);
    let (waiter, writer) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let ptr = device.alloc_plain(512).unwrap();
    device.fill(ptr, 512, 0, StreamId::DEFAULT).unwrap();
    device.synchronize_device().unwrap();
    device.wait_value(waiter, ptr, 8, 5, Comparison::Equal).unwrap();
    assert!(!device.is_idle(waiter).unwrap());
    device.write(ptr, &5u64.to_le_bytes(), writer).unwrap();
    device.synchronize_stream(waiter).unwrap();
    let refused = device.wait_value(waiter, ptr, 3, 5, Comparison::Equal).unwrap_err();
    assert_eq!(refused.kind, DriverErrorKind::InvalidValue);
}

#[test]
fn blocking_streams_are_ordered_with_the_default_stream() {
    for seed in 0..50 {
        let device = device(seed);
        let stream = device.create_blocking_stream().unwrap();
        let ptr = device.alloc_plain(4096).unwrap();
        for round in 0..8 {
            device.fill(ptr, 4096, round, stream).unwrap();
            device.fill(ptr, 2048, 0x80 | round, StreamId::DEFAULT).unwrap();
        }
        let mut bytes = [0; 4096];
        device.read(&mut bytes, ptr, stream).unwrap();
        assert_eq!((bytes[0], bytes[4095]), (0x87, 7));
        assert_eq!(device.report_count(), 0, "{}", device.reports()[0]);
    }
}

#[test]
fn a_chunk_lives_by_handles_and_is_imported_by_another_device() {
    let (owner, guest) = (device(0), device(0));
    let chunk = owner.create(PAGE, Location::Device).unwrap();
    owner.retain_chunk(chunk).unwrap();
    owner.release(chunk).unwrap();
    assert_eq!(owner.chunk_info(chunk).unwrap().handles, 1);
    let descriptor = owner.export(chunk).unwrap();
    let imported = guest.import_chunk(descriptor.as_fd(), Location::Device).unwrap();
    for (device, chunk) in [(&owner, chunk), (&guest, imported)] {
        let ptr = device.reserve(PAGE, PAGE).unwrap();
        device.map(ptr, PAGE, chunk, 0).unwrap();
        device.set_access(ptr, PAGE).unwrap();
        assert_eq!(device.chunk_at(ptr), Some((chunk, 0)));
        let mut bytes = [0; 8];
        device.read(&mut bytes, ptr, StreamId::DEFAULT).unwrap();
        assert_eq!(bytes, if Arc::ptr_eq(device, &owner) { [0; 8] } else { [0x5a; 8] });
        device.fill(ptr, PAGE, 0x5a, StreamId::DEFAULT).unwrap();
    }
    assert_eq!((owner.usage().chunk_bytes, guest.usage().chunk_bytes), (PAGE, 0));
    assert_eq!(guest.memory_info().unwrap().free, 64 << 20, "another device's memory counts there");
}
