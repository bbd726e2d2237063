//! What holds for every [`Driver`]: call [`check_all`] with one.
//!
//! Nothing here knows which driver it is. Where `data` is false, bytes are not compared: there are none.

use stratalloc::driver::kernels::{self, Element, Finding, Quant};
use stratalloc::driver::{
    CaptureStatus, ChunkHandle, CopyOp, Driver, DriverErrorKind, DriverResult, EventStatus, HostPtr, Location,
};
use stratalloc::units::{DevicePtr, StreamId};

/// Runs the whole suite.
pub fn check_all(driver: &dyn Driver, data: bool) {
    properties_are_sound(driver);
    plain_memory(driver, data);
    host_memory(driver, data);
    own_memory_can_be_pinned(driver, data);
    streams_and_events(driver);
    events_order_streams(driver, data);
    kernels_copy_anything(driver, data);
    patterns_are_written_and_checked(driver, data);
    checksums_are_those_of_the_host(driver, data);
    codes_are_those_of_the_host(driver, data);
    kernels_refuse_what_is_not_there(driver);
    unknown_handles_are_refused(driver);
    if driver.properties().vmm {
        accounting(driver);
        mapping_lifecycle(driver, data);
        aliases_show_the_same_bytes(driver, data);
        remapping_changes_the_bytes(driver, data);
        one_access_call_spans_mappings(driver, data);
        bad_arguments_are_refused(driver);
        too_much_memory_is_refused(driver);
    } else {
        virtual_memory_is_not_supported(driver);
    }
    // A run leaves nothing behind that a second would notice.
    plain_memory(driver, data);
}

/// Asserts that a call failed, and how.
#[track_caller]
pub fn assert_fails<T: std::fmt::Debug>(result: DriverResult<T>, kind: DriverErrorKind) {
    match result {
        Ok(value) => panic!("succeeded with {value:?} and should have failed with {kind:?}"),
        Err(error) => assert_eq!(error.kind, kind, "{error}"),
    }
}

/// A reservation of `chunks` units with one chunk of one unit mapped in each, open to access.
pub struct Mapped {
    pub ptr: DevicePtr,
    pub size: u64,
    pub chunks: Vec<ChunkHandle>,
}

impl Mapped {
    pub fn new(driver: &dyn Driver, chunks: u64) -> Mapped {
        let unit = driver.properties().granularity;
        let size = chunks * unit;
        let ptr = driver.reserve(size, unit).unwrap();
        let chunks: Vec<_> = (0..chunks).map(|_| driver.create(unit, Location::Device).unwrap()).collect();
        for (at, &chunk) in chunks.iter().enumerate() {
            driver.map(ptr.add(at as u64 * unit), unit, chunk, 0).unwrap();
        }
        driver.set_access(ptr, size).unwrap();
        Mapped { ptr, size, chunks }
    }

    pub fn free(self, driver: &dyn Driver) {
        driver.synchronize_device().unwrap();
        driver.unmap(self.ptr, self.size).unwrap();
        driver.unreserve(self.ptr, self.size).unwrap();
        self.chunks.into_iter().for_each(|chunk| driver.release(chunk).unwrap());
    }
}

/// The bytes of a range.
pub fn bytes_at(driver: &dyn Driver, ptr: DevicePtr, size: u64, stream: StreamId) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    driver.read(&mut bytes, ptr, stream).unwrap();
    bytes
}

fn properties_are_sound(driver: &dyn Driver) {
    let properties = driver.properties();
    assert!(properties.granularity.is_power_of_two());
    assert!(!properties.name.is_empty());
    let info = driver.memory_info().unwrap();
    assert!(info.free <= info.total);
    assert!(driver.clock_ns() <= driver.clock_ns());
}

fn plain_memory(driver: &dyn Driver, data: bool) {
    let stream = driver.create_stream().unwrap();
    let a = driver.alloc_plain(100_000).unwrap();
    let b = driver.alloc_plain(100_000).unwrap();
    assert!(a.0.is_multiple_of(512) && b.0.is_multiple_of(512));
    assert!(a.0.abs_diff(b.0) >= 100_000);
    driver.fill(a, 100_000, 7, stream).unwrap();
    driver.write(a.add(10), b"stratum", stream).unwrap();
    driver.copy(&[CopyOp { dst: b, src: a, size: 100_000 }], stream).unwrap();
    let bytes = bytes_at(driver, b, 100_000, stream);
    if data {
        assert_eq!(&bytes[9..18], b"\x07stratum\x07");
        assert_eq!(bytes[99_999], 7);
    }
    driver.free_plain(a).unwrap();
    driver.free_plain(b).unwrap();
    assert_fails(driver.alloc_plain(0), DriverErrorKind::InvalidValue);
    driver.destroy_stream(stream).unwrap();
}

fn host_memory(driver: &dyn Driver, data: bool) {
    let stream = driver.create_stream().unwrap();
    let host = driver.alloc_host(8192).unwrap();
    let device = driver.alloc_plain(8192).unwrap();
    let pinned = DevicePtr(host.0 as u64);
    driver.fill(device, 8192, 3, stream).unwrap();
    driver.copy(&[CopyOp { dst: pinned, src: device, size: 8192 }], stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    if data {
        // SAFETY: the driver gave 8192 bytes at `host`, all of them written by the copy, which is done.
        let bytes = unsafe { std::slice::from_raw_parts(host.0 as *const u8, 8192) };
        assert!(bytes.iter().all(|&byte| byte == 3));
    }
    driver.copy(&[CopyOp { dst: device, src: pinned, size: 4096 }], stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    driver.free_host(host).unwrap();
    driver.free_plain(device).unwrap();
    driver.destroy_stream(stream).unwrap();
}

fn own_memory_can_be_pinned(driver: &dyn Driver, data: bool) {
    #[repr(align(4096))]
    struct Pages([u8; 8192]);
    let mut pages = Box::new(Pages([0; 8192]));
    let host = HostPtr((&raw mut *pages) as usize);
    let pinned = DevicePtr(host.0 as u64);
    let stream = driver.create_stream().unwrap();
    let device = driver.alloc_plain(8192).unwrap();
    driver.pin_host(host, 8192).unwrap();
    assert!(driver.pin_host(host, 8192).is_err(), "it is pinned already");
    driver.fill(device, 8192, 5, stream).unwrap();
    driver.copy(&[CopyOp { dst: pinned, src: device, size: 8192 }], stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    if data {
        assert!(pages.0.iter().all(|&byte| byte == 5));
    }
    driver.unpin_host(host).unwrap();
    assert!(driver.unpin_host(host).is_err(), "it is not pinned any more");
    driver.free_plain(device).unwrap();
    driver.destroy_stream(stream).unwrap();
}

fn streams_and_events(driver: &dyn Driver) {
    let (a, b) = (driver.create_stream().unwrap(), driver.create_stream().unwrap());
    assert_ne!(a, b);
    assert_ne!(a, StreamId::DEFAULT);
    let event = driver.create_event().unwrap();
    assert_eq!(driver.query_event(event).unwrap(), EventStatus::Complete, "never recorded");
    driver.synchronize_event(event).unwrap();
    driver.record_event(event, a).unwrap();
    driver.wait_event(b, event).unwrap();
    driver.synchronize_stream(b).unwrap();
    assert_eq!(driver.query_event(event).unwrap(), EventStatus::Complete, "b waited for it");
    driver.record_event(event, a).unwrap();
    driver.synchronize_event(event).unwrap();
    assert_eq!(driver.query_event(event).unwrap(), EventStatus::Complete);
    driver.record_event(event, StreamId::DEFAULT).unwrap();
    driver.synchronize_device().unwrap();
    assert_eq!(driver.query_event(event).unwrap(), EventStatus::Complete);
    assert_eq!(driver.capture_status(a).unwrap(), CaptureStatus::None);
    // Polling gets there.
    driver.record_event(event, a).unwrap();
    while driver.query_event(event).unwrap() == EventStatus::Pending {}
    driver.destroy_event(event).unwrap();
    driver.destroy_stream(a).unwrap();
    driver.destroy_stream(b).unwrap();
}

/// Each round hands the bytes from one stream to the next by an event; a late or early step changes the sum.
fn events_order_streams(driver: &dyn Driver, data: bool) {
    const SIZE: u64 = 4096;
    let streams: Vec<_> = (0..3).map(|_| driver.create_stream().unwrap()).collect();
    let event = driver.create_event().unwrap();
    let buffers: Vec<_> = (0..3).map(|_| driver.alloc_plain(SIZE).unwrap()).collect();
    for round in 0..30u8 {
        let (from, to) = (usize::from(round) % 3, usize::from(round + 1) % 3);
        driver.fill(buffers[from], SIZE, round, streams[from]).unwrap();
        driver.record_event(event, streams[from]).unwrap();
        driver.wait_event(streams[to], event).unwrap();
        driver.copy(&[CopyOp { dst: buffers[to], src: buffers[from], size: SIZE }], streams[to]).unwrap();
        if round % 7 == 0 {
            let bytes = bytes_at(driver, buffers[to], SIZE, streams[to]);
            assert!(!data || bytes.iter().all(|&byte| byte == round), "round {round}");
        }
        // The event was re-recorded meanwhile; the wait above keeps what it saw.
        driver.record_event(event, streams[to]).unwrap();
        driver.wait_event(streams[from], event).unwrap();
    }
    driver.synchronize_device().unwrap();
    for &stream in &streams {
        driver.destroy_stream(stream).unwrap();
    }
    driver.destroy_event(event).unwrap();
    buffers.into_iter().for_each(|buffer| driver.free_plain(buffer).unwrap());
}

/// Only what is safe to try on a real driver, which may crash on a wild handle.
fn unknown_handles_are_refused(driver: &dyn Driver) {
    if !driver.properties().software {
        return;
    }
    let (stream, event) = (driver.create_stream().unwrap(), driver.create_event().unwrap());
    driver.destroy_stream(stream).unwrap();
    driver.destroy_event(event).unwrap();
    let kind = DriverErrorKind::InvalidHandle;
    assert_fails(driver.destroy_stream(stream), kind);
    assert_fails(driver.synchronize_stream(stream), kind);
    assert_fails(driver.capture_status(StreamId(u64::MAX)), kind);
    assert_fails(driver.record_event(event, StreamId::DEFAULT), kind);
    assert_fails(driver.query_event(event), kind);
    assert_fails(driver.wait_event(StreamId::DEFAULT, event), kind);
    assert_fails(driver.synchronize_event(event), kind);
    assert_fails(driver.destroy_event(event), kind);
    assert_fails(driver.free_plain(DevicePtr(0x1234)), DriverErrorKind::InvalidValue);
}

fn accounting(driver: &dyn Driver) {
    let unit = driver.properties().granularity;
    let before = driver.memory_info().unwrap().free;
    let chunk = driver.create(unit, Location::Device).unwrap();
    let ptr = driver.reserve(unit, unit).unwrap();
    driver.map(ptr, unit, chunk, 0).unwrap();
    driver.release(chunk).unwrap();
    assert!(driver.memory_info().unwrap().free < before, "the mapping holds the memory");
    driver.unmap(ptr, unit).unwrap();
    // Other processes may use a real device meanwhile.
    if driver.properties().software {
        assert_eq!(driver.memory_info().unwrap().free, before);
    }
    driver.unreserve(ptr, unit).unwrap();
}

fn mapping_lifecycle(driver: &dyn Driver, data: bool) {
    let unit = driver.properties().granularity;
    let stream = driver.create_stream().unwrap();
    let aligned = driver.reserve(unit, 16 * unit).unwrap();
    assert!(aligned.0.is_multiple_of(16 * unit));
    driver.unreserve(aligned, unit).unwrap();
    for round in 0..3 {
        let mapped = Mapped::new(driver, 3);
        driver.fill(mapped.ptr, mapped.size, round, stream).unwrap();
        let bytes = bytes_at(driver, mapped.ptr.add(unit - 8), 16, stream);
        assert!(!data || bytes == [round; 16]);
        mapped.free(driver);
    }
    driver.destroy_stream(stream).unwrap();
}

fn aliases_show_the_same_bytes(driver: &dyn Driver, data: bool) {
    let unit = driver.properties().granularity;
    let stream = driver.create_stream().unwrap();
    let mapped = Mapped::new(driver, 2);
    let alias = driver.reserve(2 * unit, unit).unwrap();
    // The other way round.
    driver.map(alias, unit, mapped.chunks[1], 0).unwrap();
    driver.map(alias.add(unit), unit, mapped.chunks[0], 0).unwrap();
    driver.set_access(alias, 2 * unit).unwrap();
    driver.fill(mapped.ptr, unit, 1, stream).unwrap();
    driver.fill(alias, unit, 2, stream).unwrap();
    if data {
        assert_eq!(bytes_at(driver, alias.add(unit), 4, stream), [1; 4]);
        assert_eq!(bytes_at(driver, mapped.ptr.add(unit), 4, stream), [2; 4]);
    }
    driver.synchronize_stream(stream).unwrap();
    driver.unmap(alias, 2 * unit).unwrap();
    driver.unreserve(alias, 2 * unit).unwrap();
    mapped.free(driver);
    driver.destroy_stream(stream).unwrap();
}

fn remapping_changes_the_bytes(driver: &dyn Driver, data: bool) {
    let unit = driver.properties().granularity;
    let stream = driver.create_stream().unwrap();
    let mapped = Mapped::new(driver, 2);
    driver.fill(mapped.ptr, unit, 1, stream).unwrap();
    driver.fill(mapped.ptr.add(unit), unit, 2, stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    driver.unmap(mapped.ptr, unit).unwrap();
    driver.map(mapped.ptr, unit, mapped.chunks[1], 0).unwrap();
    driver.set_access(mapped.ptr, unit).unwrap();
    assert!(!data || bytes_at(driver, mapped.ptr, 4, stream) == [2; 4]);
    mapped.free(driver);
    driver.destroy_stream(stream).unwrap();
}

fn one_access_call_spans_mappings(driver: &dyn Driver, data: bool) {
    let unit = driver.properties().granularity;
    let stream = driver.create_stream().unwrap();
    let mapped = Mapped::new(driver, 4);
    let other = Mapped::new(driver, 4);
    driver.fill(mapped.ptr, mapped.size, 9, stream).unwrap();
    let halves = [0, 2 * unit].map(|at| CopyOp { dst: other.ptr.add(at), src: mapped.ptr.add(at), size: 2 * unit });
    driver.copy(&halves, stream).unwrap();
    assert!(!data || bytes_at(driver, other.ptr, other.size, stream).iter().all(|&byte| byte == 9));
    mapped.free(driver);
    other.free(driver);
    driver.destroy_stream(stream).unwrap();
}

fn bad_arguments_are_refused(driver: &dyn Driver) {
    let unit = driver.properties().granularity;
    let kind = DriverErrorKind::InvalidValue;
    assert_fails(driver.create(0, Location::Device), kind);
    assert_fails(driver.create(unit + 1, Location::Device), kind);
    assert_fails(driver.reserve(unit / 2, unit), kind);
    let mapped = Mapped::new(driver, 2);
    let (ptr, first) = (mapped.ptr, mapped.chunks[0]);
    assert_fails(driver.map(ptr, unit, first, 0), kind);
    assert_fails(driver.map(ptr.add(1), unit, first, 0), kind);
    driver.unmap(ptr, unit).unwrap();
    assert_fails(driver.set_access(ptr, unit), kind);
    driver.map(ptr, unit, first, 0).unwrap();
    driver.set_access(ptr, unit).unwrap();
    mapped.free(driver);
}

fn too_much_memory_is_refused(driver: &dyn Driver) {
    let unit = driver.properties().granularity;
    let total = driver.memory_info().unwrap().total / unit * unit;
    assert_fails(driver.create(total + unit, Location::Device), DriverErrorKind::OutOfMemory);
    assert_fails(driver.alloc_plain(total + unit), DriverErrorKind::OutOfMemory);
}

fn virtual_memory_is_not_supported(driver: &dyn Driver) {
    let unit = driver.properties().granularity;
    let kind = DriverErrorKind::NotSupported;
    assert_fails(driver.reserve(unit, unit), kind);
    assert_fails(driver.create(unit, Location::Device), kind);
    assert_fails(driver.map(DevicePtr(unit), unit, ChunkHandle(1), 0), kind);
    assert_fails(driver.unmap(DevicePtr(unit), unit), kind);
    assert_fails(driver.set_access(DevicePtr(unit), unit), kind);
    assert_fails(driver.release(ChunkHandle(1)), kind);
    assert_fails(driver.unreserve(DevicePtr(unit), unit), kind);
}

/// Bytes in which no two neighbouring ranges are alike.
fn noise(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// Sizes and offsets around what kernels move at once.
const AROUND: [u64; 12] = [0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 63, 4097];
const STARTS: [u64; 4] = [0, 1, 4, 15];

fn kernels_copy_anything(driver: &dyn Driver, data: bool) {
    const SIZE: usize = 1 << 20;
    let stream = driver.create_stream().unwrap();
    let (from, to) = (driver.alloc_plain(SIZE as u64).unwrap(), driver.alloc_plain(SIZE as u64).unwrap());
    let bytes = noise(SIZE, 1);
    driver.write(from, &bytes, stream).unwrap();
    driver.fill(to, SIZE as u64, 0xee, stream).unwrap();
    // More than a launch takes; pieces at all distances from boundaries, with a byte between them that stays.
    let mut expected = vec![0xee; SIZE];
    let (mut ops, mut at) = (Vec::new(), 0u64);
    for (skip, &size) in (0..16u64).flat_map(|skip| AROUND.iter().map(move |size| (skip, size))) {
        let source = at + skip % 5 * 3;
        ops.push(CopyOp { dst: to.add(at), src: from.add(source), size });
        let (at_index, source, length) = (at as usize, source as usize, size as usize);
        expected[at_index..at_index + length].copy_from_slice(&bytes[source..source + length]);
        at += size + 1;
    }
    assert!(ops.len() > kernels::COPIES_A_LAUNCH && at < SIZE as u64);
    driver.copy_blocks(&ops, stream).unwrap();
    driver.copy_blocks(&[], stream).unwrap();
    let found = bytes_at(driver, to, SIZE as u64, stream);
    if data {
        assert!(
            found == expected,
            "the first byte that differs: {:?}",
            found.iter().zip(&expected).position(|(a, b)| a != b)
        );
    }
    driver.copy_blocks(&[CopyOp { dst: to, src: from, size: SIZE as u64 }], stream).unwrap();
    if data {
        assert!(bytes_at(driver, to, SIZE as u64, stream) == bytes);
    }
    driver.free_plain(from).unwrap();
    driver.free_plain(to).unwrap();
    driver.destroy_stream(stream).unwrap();
}

/// A value of pinned memory: `T` is plain numbers.
fn pinned<T: Copy>(host: HostPtr) -> T {
    // SAFETY: the driver gave at least so many bytes at `host`, aligned to a page; the stream that wrote them has been waited for.
    unsafe { (host.0 as *const T).read() }
}

fn set_pinned<T: Copy>(host: HostPtr, value: T) {
    // SAFETY: as above; nothing under way uses the memory.
    unsafe { (host.0 as *mut T).write(value) }
}

fn patterns_are_written_and_checked(driver: &dyn Driver, data: bool) {
    const PATTERN: u32 = 0xdead_beef;
    let stream = driver.create_stream().unwrap();
    let ptr = driver.alloc_plain(1 << 20).unwrap();
    let host = driver.alloc_host(4096).unwrap();
    let check = |at: u64, size: u64, pattern: u32| -> Finding {
        set_pinned(host, Finding::NONE);
        driver.check_words(ptr.add(at), size, pattern, host, stream).unwrap();
        driver.synchronize_stream(stream).unwrap();
        pinned(host)
    };
    for (at, size) in STARTS.iter().flat_map(|&at| AROUND.iter().map(move |&size| (at, size))).chain([(5, 90_001)]) {
        driver.fill(ptr, at + size + 1, 0, stream).unwrap();
        driver.fill_words(ptr.add(at), size, PATTERN, stream).unwrap();
        assert_eq!(check(at, size, PATTERN), Finding::NONE, "{size} bytes from {at} on");
        if data && size > 0 {
            let bytes = bytes_at(driver, ptr, at + size + 1, stream);
            let is_right = |(k, byte): (usize, &u8)| *byte == PATTERN.to_le_bytes()[k % 4];
            assert!(bytes[at as usize..(at + size) as usize].iter().enumerate().all(is_right), "{size} from {at} on");
            assert!(at == 0 || bytes[at as usize - 1] == 0);
            assert_eq!(bytes[(at + size) as usize], 0);
            // A byte of each end and of the middle is changed.
            for wrong in [0, size / 2, size - 1] {
                driver.write(ptr.add(at + wrong), &[0x11], stream).unwrap();
                let found = check(at, size, PATTERN);
                assert_eq!((found.count, found.first()), (1, Some((wrong, 0x11))), "{size} bytes from {at} on");
                driver.fill_words(ptr.add(at), size, PATTERN, stream).unwrap();
            }
            let found = check(at, size, !PATTERN);
            assert_eq!((found.count, found.first()), (size, Some((0, 0xef))));
        }
    }
    driver.free_host(host).unwrap();
    driver.free_plain(ptr).unwrap();
    driver.destroy_stream(stream).unwrap();
}

fn checksums_are_those_of_the_host(driver: &dyn Driver, data: bool) {
    let stream = driver.create_stream().unwrap();
    let ptr = driver.alloc_plain(1 << 20).unwrap();
    let host = driver.alloc_host(4096).unwrap();
    let bytes = noise(1 << 20, 9);
    driver.write(ptr, &bytes, stream).unwrap();
    for (at, size) in STARTS.iter().flat_map(|&at| AROUND.iter().map(move |&size| (at, size))).chain([(3, 100_001)]) {
        set_pinned(host, 0u64);
        driver.checksum(ptr.add(at), size, host, stream).unwrap();
        driver.synchronize_stream(stream).unwrap();
        if data {
            let expected = kernels::checksum(&bytes[at as usize..(at + size) as usize]);
            assert_eq!(pinned::<u64>(host), expected, "{size} bytes from {at} on");
        }
    }
    driver.free_host(host).unwrap();
    driver.free_plain(ptr).unwrap();
    driver.destroy_stream(stream).unwrap();
}

/// Bytes that are numbers of all kinds: what is none, infinities, zeros, whole groups of the like.
fn numbers(size: u64, seed: u32) -> Vec<u8> {
    let mut bytes = noise(size as usize, seed);
    for (at, chunk) in bytes.chunks_mut(64).enumerate() {
        match at % 7 {
            0 => chunk.fill(0),
            1 => chunk.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = 0x3c),
            2 => chunk.iter_mut().for_each(|byte| *byte = 0x7f),
            3 => chunk.iter_mut().skip(3).step_by(4).for_each(|byte| *byte &= 0x80),
            _ => {}
        }
    }
    bytes
}

fn codes_are_those_of_the_host(driver: &dyn Driver, data: bool) {
    let stream = driver.create_stream().unwrap();
    let [src, dst, back] = [(); 3].map(|()| driver.alloc_plain(1 << 20).unwrap());
    let quants = Element::ALL.into_iter().flat_map(|element| {
        [(8, 128), (8, 32), (4, 64), (4, 256)].map(|(bits, group)| Quant::new(element, bits, group).unwrap())
    });
    for (seed, quant) in quants.enumerate() {
        for size in AROUND.iter().copied().chain([8190, 65_536, 100_001]) {
            let bytes = numbers(size, seed as u32);
            let mut codes = vec![0; quant.encoded_size(size) as usize];
            kernels::quantize(&bytes, &mut codes, quant).unwrap();
            driver.write(src, &bytes, stream).unwrap();
            driver.fill(dst, codes.len() as u64 + 1, 0x5a, stream).unwrap();
            driver.fill(back, size + 1, 0x5a, stream).unwrap();
            driver.quantize(src, dst, size, quant, stream).unwrap();
            driver.dequantize(dst, back, size, quant, stream).unwrap();
            driver.synchronize_stream(stream).unwrap();
            if data {
                let made = bytes_at(driver, dst, codes.len() as u64 + 1, stream);
                assert!(made[..codes.len()] == codes, "{quant:?} of {size} bytes");
                assert_eq!(made[codes.len()], 0x5a);
                let mut numbers = bytes;
                kernels::dequantize(&codes, &mut numbers, quant).unwrap();
                numbers.push(0x5a);
                assert!(bytes_at(driver, back, size + 1, stream) == numbers, "{quant:?} of {size} bytes, back");
            }
        }
    }
    let quant = Quant::new(Element::Bf16, 8, 64).unwrap();
    assert_fails(driver.quantize(src.add(8), dst, 64, quant, stream), DriverErrorKind::InvalidValue);
    assert_fails(driver.dequantize(src, dst.add(2), 64, quant, stream), DriverErrorKind::InvalidValue);
    for ptr in [src, dst, back] {
        driver.free_plain(ptr).unwrap();
    }
    driver.destroy_stream(stream).unwrap();
}

fn kernels_refuse_what_is_not_there(driver: &dyn Driver) {
    let host = driver.alloc_host(4096).unwrap();
    let ptr = driver.alloc_plain(4096).unwrap();
    let askew = HostPtr(host.0 + 4);
    assert_fails(driver.check_words(ptr, 16, 0, askew, StreamId::DEFAULT), DriverErrorKind::InvalidValue);
    assert_fails(driver.checksum(ptr, 16, askew, StreamId::DEFAULT), DriverErrorKind::InvalidValue);
    driver.free_plain(ptr).unwrap();
    driver.free_host(host).unwrap();
}
