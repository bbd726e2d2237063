//! The driver's own calls: that they do what [`Driver`] says.

use std::sync::Arc;

use stratalloc::driver::cuda::CudaDriver;
use stratalloc::driver::kernels::{Finding, checksum};
use stratalloc::driver::{CaptureStatus, CopyOp, Driver, DriverErrorKind, EventId, EventStatus, Location};
use stratalloc::interop::{CudarcBuffer, CudarcSlice, stream_id};
use stratalloc::tier::transfer::{Engine, EngineConfig};
use stratalloc::tier::{HostConfig, HostTier, Tier};
use stratalloc::units::{DevicePtr, StreamId};
use stratalloc::{AllocRequest, Allocator, DeviceSpec};

use crate::kit::{Mapping, kind, open, pattern, read};

pub fn properties_are_plausible(driver: &CudaDriver) {
    let properties = driver.properties();
    assert!(!properties.name.is_empty() && !properties.software);
    assert!(properties.granularity.is_power_of_two() && properties.driver_version >= 10_000);
    let info = driver.memory_info().unwrap();
    assert!(info.free <= info.total && info.total <= properties.total_memory);
    println!("  {properties:?}");
}

pub fn virtual_memory_round_trip(driver: &CudaDriver) {
    let size = 2 * driver.properties().granularity;
    let free = driver.memory_info().unwrap().free;
    {
        let mapping = Mapping::new(driver, size, Location::Device);
        let bytes = pattern(size as usize, 1);
        driver.write(mapping.ptr, &bytes, StreamId::DEFAULT).unwrap();
        assert_eq!(read(driver, mapping.ptr, size as usize), bytes);
        driver.fill(mapping.ptr.add(512), 512, 0xab, StreamId::DEFAULT).unwrap();
        assert_eq!(read(driver, mapping.ptr.add(512), 512), [0xab; 512]);
        assert_eq!(read(driver, mapping.ptr, 512), bytes[..512]);
    }
    assert!(driver.memory_info().unwrap().free + (64 << 20) >= free, "memory was not given back");
}

pub fn host_memory_is_reachable_by_address(driver: &CudaDriver) {
    let size = driver.properties().granularity;
    match driver.create(size, Location::Host) {
        Ok(chunk) => driver.release(chunk).unwrap(),
        Err(error) => return println!("  no host chunks here: {error}"),
    }
    let mapping = Mapping::new(driver, size, Location::Host);
    let bytes = pattern(4096, 2);
    driver.write(mapping.ptr, &bytes, StreamId::DEFAULT).unwrap();
    assert_eq!(read(driver, mapping.ptr, 4096), bytes);
}

pub fn two_addresses_one_chunk(driver: &CudaDriver) {
    let size = driver.properties().granularity;
    let mapping = Mapping::new(driver, size, Location::Device);
    let alias = driver.reserve(size, size).unwrap();
    driver.map(alias, size, mapping.chunk, 0).unwrap();
    driver.set_access(alias, size).unwrap();
    let bytes = pattern(4096, 3);
    driver.write(mapping.ptr, &bytes, StreamId::DEFAULT).unwrap();
    assert_eq!(read(driver, alias, 4096), bytes);
    driver.fill(alias, 4096, 0x5a, StreamId::DEFAULT).unwrap();
    assert_eq!(read(driver, mapping.ptr, 4096), [0x5a; 4096]);
    driver.synchronize_device().unwrap();
    driver.unmap(alias, size).unwrap();
    driver.unreserve(alias, size).unwrap();
    // The first address is not touched by the end of the second.
    assert_eq!(read(driver, mapping.ptr, 4096), [0x5a; 4096]);
}

pub fn a_chunk_becomes_a_file_descriptor(driver: &CudaDriver) {
    let chunk = driver.create(driver.properties().granularity, Location::Device).unwrap();
    match driver.export(chunk) {
        Ok(_descriptor) => {}
        Err(error) => println!("  not exportable here: {error}"),
    }
    driver.release(chunk).unwrap();
}

pub fn plain_memory_round_trip(driver: &CudaDriver) {
    let ptr = driver.alloc_plain(1 << 20).unwrap();
    assert_eq!(ptr.0 % 512, 0);
    let bytes = pattern(1 << 20, 4);
    driver.write(ptr, &bytes, StreamId::DEFAULT).unwrap();
    assert_eq!(read(driver, ptr, 1 << 20), bytes);

    let host = driver.alloc_host(4096).unwrap();
    let pinned = DevicePtr(host.0 as u64);
    driver.copy(&[CopyOp { dst: pinned, src: ptr, size: 4096 }], StreamId::DEFAULT).unwrap();
    driver.synchronize_stream(StreamId::DEFAULT).unwrap();
    assert_eq!(read(driver, pinned, 4096), bytes[..4096]);
    driver.free_host(host).unwrap();
    driver.free_plain(ptr).unwrap();
}

pub fn streams_wait_for_events(driver: &CudaDriver) {
    let size = 64 << 20;
    let ptr = driver.alloc_plain(2 * size).unwrap();
    let (producer, consumer) = (driver.create_stream().unwrap(), driver.create_stream().unwrap());
    let event = driver.create_event().unwrap();
    assert_eq!(driver.query_event(event), Ok(EventStatus::Complete), "an event never recorded is complete");
    assert_eq!(driver.capture_status(producer), Ok(CaptureStatus::None));
    for byte in 1..=16 {
        driver.fill(ptr, size, byte, producer).unwrap();
    }
    driver.record_event(event, producer).unwrap();
    driver.wait_event(consumer, event).unwrap();
    driver.copy(&[CopyOp { dst: ptr.add(size), src: ptr, size }], consumer).unwrap();
    driver.synchronize_stream(consumer).unwrap();
    assert_eq!(driver.query_event(event), Ok(EventStatus::Complete));
    assert_eq!(read(driver, ptr.add(2 * size - 4096), 4096), [16; 4096]);
    driver.synchronize_event(event).unwrap();
    driver.destroy_event(event).unwrap();
    driver.destroy_stream(producer).unwrap();
    driver.destroy_stream(consumer).unwrap();
    driver.free_plain(ptr).unwrap();
}

pub fn batches_copy_everything(driver: &CudaDriver) {
    let (count, size) = (64, 4096);
    let ptr = driver.alloc_plain(2 * count * size).unwrap();
    let bytes = pattern((count * size) as usize, 5);
    driver.write(ptr, &bytes, StreamId::DEFAULT).unwrap();
    let copied = ptr.add(count * size);
    let op = |i: u64| CopyOp { dst: copied.add(i * size), src: ptr.add(i * size), size };
    let mut ops: Vec<CopyOp> = (0..count).map(op).collect();
    ops.push(CopyOp { size: 0, ..op(0) });
    let stream = driver.create_stream().unwrap();
    for stream in [stream, StreamId::DEFAULT] {
        driver.fill(copied, count * size, 0, stream).unwrap();
        driver.copy(&ops, stream).unwrap();
        driver.synchronize_stream(stream).unwrap();
        assert_eq!(read(driver, copied, bytes.len()), bytes);
    }
    driver.destroy_stream(stream).unwrap();
    driver.free_plain(ptr).unwrap();
}

/// Between the device and pinned memory that the library maps and registers itself, over the border of two steps, with the device's own sums.
pub fn transfers_come_back(_: &CudaDriver) {
    let driver: Arc<dyn Driver> = open().unwrap();
    let config = HostConfig { capacity_bytes: 32 << 20, step_bytes: 8 << 20, background: true };
    let tier: Arc<dyn Tier> = Arc::new(HostTier::new(driver.clone(), &config).unwrap());
    let engine =
        Engine::new(driver.clone(), EngineConfig { workers: 1, check_device: true, ..EngineConfig::default() })
            .unwrap();
    let size = (17 << 20) + 12345;
    let ptr = driver.alloc_plain(size).unwrap();
    let stream = driver.create_stream().unwrap();
    let bytes = pattern(size as usize, 6);
    driver.write(ptr, &bytes, stream).unwrap();
    let place = engine.save(ptr, size, &tier, None, &[stream]).unwrap().wait().unwrap().unwrap();
    driver.fill(ptr, size, 0, stream).unwrap();
    let load = engine.load(&place, ptr, &[stream]).unwrap();
    engine.order(&load, stream).unwrap();
    let mut back = vec![0; size as usize];
    driver.read(&mut back, ptr, stream).unwrap();
    assert!(back == bytes);
    load.wait().unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.free_plain(ptr).unwrap();
}

/// What `tests/common/contract.rs` says of kernels is said there; this is that the images load and run on this very device, also from several
/// threads at once.
pub fn own_kernels_run(driver: &CudaDriver) {
    let size = 8 << 20;
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let stream = driver.create_stream().unwrap();
                let (a, b) = (driver.alloc_plain(size).unwrap(), driver.alloc_plain(size).unwrap());
                let host = driver.alloc_host(4096).unwrap();
                let bytes = pattern(size as usize, seed);
                driver.write(a, &bytes, stream).unwrap();
                let piece = |i: u64| CopyOp { dst: b.add(i * 4096), src: a.add(i * 4096), size: 4096 };
                let ops: Vec<CopyOp> = (0..size / 4096).map(piece).collect();
                driver.copy_blocks(&ops, stream).unwrap();
                // SAFETY: the driver gave 4096 bytes at `host`, and nothing under way uses them.
                unsafe { (host.0 as *mut u64).write(0) };
                driver.checksum(b, size, host, stream).unwrap();
                driver.synchronize_stream(stream).unwrap();
                // SAFETY: as above; the stream has been waited for.
                let sum = unsafe { (host.0 as *const u64).read() };
                assert_eq!(sum, checksum(&bytes));
                driver.fill_words(a, size, 0x0bad_cafe, stream).unwrap();
                driver.write(a.add(size - 3), &[7], stream).unwrap();
                // SAFETY: as above.
                unsafe { (host.0 as *mut Finding).write(Finding::NONE) };
                driver.check_words(a, size, 0x0bad_cafe, host, stream).unwrap();
                driver.synchronize_stream(stream).unwrap();
                // SAFETY: as above.
                let found = unsafe { (host.0 as *const Finding).read() };
                assert_eq!((found.count, found.first()), (1, Some((size - 3, 7))));
                driver.free_host(host).unwrap();
                driver.free_plain(a).unwrap();
                driver.free_plain(b).unwrap();
                driver.destroy_stream(stream).unwrap();
            });
        }
    });
}

pub fn any_thread_may_call(driver: &CudaDriver) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let ptr = driver.alloc_plain(4096).unwrap();
                driver.fill(ptr, 4096, 9, StreamId::DEFAULT).unwrap();
                assert_eq!(read(driver, ptr, 4096), [9; 4096]);
                driver.free_plain(ptr).unwrap();
            });
        }
    });
    assert_eq!(CudaDriver::failed_cleanups(), 0);
}

pub fn wrong_arguments_are_typed_errors(driver: &CudaDriver) {
    let unit = driver.properties().granularity;
    assert_eq!(kind(CudaDriver::open(9999)), Some(DriverErrorKind::NoDevice));
    assert_eq!(kind(driver.reserve(unit + 1, unit)), Some(DriverErrorKind::InvalidValue));
    assert_eq!(kind(driver.create(unit + 1, Location::Device)), Some(DriverErrorKind::InvalidValue));
    assert_eq!(kind(driver.create(1 << 46, Location::Device)), Some(DriverErrorKind::OutOfMemory));
    assert!(driver.create(unit, Location::Peer(9999)).is_err());
    assert_eq!(kind(driver.alloc_plain(0)), Some(DriverErrorKind::InvalidValue));
    assert_eq!(kind(driver.alloc_plain(1 << 46)), Some(DriverErrorKind::OutOfMemory));
    assert_eq!(kind(driver.query_event(EventId(0))), Some(DriverErrorKind::InvalidHandle));
    assert_eq!(kind(driver.destroy_stream(StreamId::DEFAULT)), Some(DriverErrorKind::InvalidHandle));
    let ptr = driver.reserve(unit, unit).unwrap();
    let chunk = driver.create(unit, Location::Device).unwrap();
    assert!(driver.map(ptr, unit, chunk, unit).is_err(), "beyond the chunk");
    assert!(driver.set_access(ptr, unit).is_err(), "nothing mapped");
    // The contract leaves it open: drivers of version 13 have nothing against it.
    println!("  unmapping where nothing is mapped: {:?}", driver.unmap(ptr, unit).map_err(|error| error.kind));
    driver.map(ptr, unit, chunk, 0).unwrap();
    assert!(driver.map(ptr, unit, chunk, 0).is_err(), "mapped already");
    driver.unmap(ptr, unit).unwrap();
    driver.release(chunk).unwrap();
    driver.unreserve(ptr, unit).unwrap();
    // None of this may have broken the context.
    driver.synchronize_device().unwrap();
}

pub fn buffers_go_to_cudarc_and_back(_: &CudaDriver) {
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let allocator = Allocator::builder().device(DeviceSpec::Cuda(0)).build().unwrap();
    let request = AllocRequest::new(1).stream(stream_id(&stream));
    let values: Vec<f32> = (0..1000).map(|value| value as f32).collect();

    // Ours, filled by cudarc, read by us; it stays ours when cudarc's view of it goes.
    let mut buffer = allocator.alloc_buffer::<f32>(1000, request).unwrap();
    for _ in 0..2 {
        // SAFETY: the buffer is on device 0, in its primary context, and is written first.
        let mut lent = unsafe { CudarcBuffer::new(&mut buffer, &stream) }.unwrap();
        stream.memcpy_htod(&values, &mut *lent).unwrap();
        assert_eq!(stream.clone_dtoh(&*lent).unwrap(), values);
    }
    let mut back = vec![0.0; 1000];
    buffer.read(&mut back).unwrap();
    assert_eq!(back, values);

    // Lent to a stream that is not its own: the free waits for that stream, too.
    let other = context.new_stream().unwrap();
    stream.synchronize().unwrap();
    // SAFETY: as above; the values are there.
    let lent = unsafe { CudarcBuffer::new(&mut buffer, &other) }.unwrap();
    assert_eq!(other.clone_dtoh(&*lent).unwrap(), values);
    drop(lent);
    drop(buffer);
    assert_eq!(allocator.stats(0).unwrap().pending, 4096);

    // cudarc's, read by us.
    let theirs = stream.clone_htod(&values).unwrap();
    let view = CudarcSlice::new(&theirs, &stream);
    assert_eq!((view.len(), view.bytes()), (1000, 4000));
    let mut bytes = vec![0; 4000];
    allocator.driver(0).unwrap().read(&mut bytes, view.ptr(), stream_id(&stream)).unwrap();
    let read: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(read, values);
}
