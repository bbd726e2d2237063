//! Mistakes planted into an allocator are seen by the checker, each as what it is; without them, the same program is clean.

mod common;

use std::sync::Arc;

use common::rig::{MIB, allocator_on, request};
use stratalloc::driver::kernels::Quant;
use stratalloc::driver::soft::{Access, Backing, OpKind, Report, SoftDevice};
use stratalloc::driver::{
    CaptureStatus, ChunkHandle, CopyOp, DeviceProperties, Driver, DriverResult, EventId, EventStatus, HostPtr,
    Location, MemoryInfo,
};
use stratalloc::{Allocator, DevicePtr, StreamId};

/// Passes everything on, but says of every event at once that it is complete.
#[derive(Debug)]
struct Liar(Arc<SoftDevice>);

/// Methods that only pass on.
macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $result {
            self.0.$name($($arg),*)
        })*
    };
}

impl Driver for Liar {
    pass_on! {
        properties() -> &DeviceProperties;
        clock_ns() -> u64;
        memory_info() -> DriverResult<MemoryInfo>;
        reserve(size: u64, alignment: u64) -> DriverResult<DevicePtr>;
        unreserve(ptr: DevicePtr, size: u64) -> DriverResult<()>;
        create(size: u64, location: Location) -> DriverResult<ChunkHandle>;
        release(chunk: ChunkHandle) -> DriverResult<()>;
        map(ptr: DevicePtr, size: u64, chunk: ChunkHandle, offset: u64) -> DriverResult<()>;
        unmap(ptr: DevicePtr, size: u64) -> DriverResult<()>;
        set_access(ptr: DevicePtr, size: u64) -> DriverResult<()>;
        export(chunk: ChunkHandle) -> DriverResult<std::os::fd::OwnedFd>;
        alloc_plain(size: u64) -> DriverResult<DevicePtr>;
        free_plain(ptr: DevicePtr) -> DriverResult<()>;
        alloc_host(size: u64) -> DriverResult<HostPtr>;
        free_host(ptr: HostPtr) -> DriverResult<()>;
        pin_host(ptr: HostPtr, size: u64) -> DriverResult<()>;
        unpin_host(ptr: HostPtr) -> DriverResult<()>;
        create_stream() -> DriverResult<StreamId>;
        destroy_stream(stream: StreamId) -> DriverResult<()>;
        synchronize_stream(stream: StreamId) -> DriverResult<()>;
        synchronize_device() -> DriverResult<()>;
        create_event() -> DriverResult<EventId>;
        destroy_event(event: EventId) -> DriverResult<()>;
        record_event(event: EventId, stream: StreamId) -> DriverResult<()>;
        capture_status(stream: StreamId) -> DriverResult<CaptureStatus>;
        copy(ops: &[CopyOp], stream: StreamId) -> DriverResult<()>;
        fill(ptr: DevicePtr, size: u64, byte: u8, stream: StreamId) -> DriverResult<()>;
        copy_blocks(ops: &[CopyOp], stream: StreamId) -> DriverResult<()>;
        fill_words(ptr: DevicePtr, size: u64, pattern: u32, stream: StreamId) -> DriverResult<()>;
        check_words(ptr: DevicePtr, size: u64, pattern: u32, result: HostPtr, stream: StreamId) -> DriverResult<()>;
        checksum(ptr: DevicePtr, size: u64, result: HostPtr, stream: StreamId) -> DriverResult<()>;
        quantize(src: DevicePtr, dst: DevicePtr, size: u64, quant: Quant, stream: StreamId) -> DriverResult<()>;
        dequantize(src: DevicePtr, dst: DevicePtr, size: u64, quant: Quant, stream: StreamId) -> DriverResult<()>;
        write(dst: DevicePtr, src: &[u8], stream: StreamId) -> DriverResult<()>;
        read(dst: &mut [u8], src: DevicePtr, stream: StreamId) -> DriverResult<()>;
    }

    fn query_event(&self, _: EventId) -> DriverResult<EventStatus> {
        Ok(EventStatus::Complete)
    }

    fn synchronize_event(&self, _: EventId) -> DriverResult<()> {
        Ok(())
    }

    fn wait_event(&self, _: StreamId, _: EventId) -> DriverResult<()> {
        Ok(())
    }
}

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    EarlyReuse,
    EarlyReuseUnderWaits,
    DroppedRecordStream,
    UnmapInUse,
    UseAfterFree,
    DoubleFree,
    HandedOutTwice,
}

/// A program of two streams on a device with room for little more than it uses.
struct Program {
    planted: Planted,
    device: Arc<SoftDevice>,
    allocator: Allocator,
    a: StreamId,
    b: StreamId,
}

impl Program {
    fn new(planted: Planted, seed: u64) -> Program {
        let builder = SoftDevice::builder(16 * MIB).backing(Backing::AddressesOnly).seed(seed).event_lag_ns(1000);
        let device = builder.checker(true).build().unwrap();
        let lies = matches!(planted, Planted::EarlyReuse | Planted::EarlyReuseUnderWaits | Planted::UnmapInUse);
        let driver: Arc<dyn Driver> = if lies { Arc::new(Liar(device.clone())) } else { device.clone() };
        let text = if planted == Planted::EarlyReuseUnderWaits { "cross_stream_wait:true" } else { "" };
        let allocator = allocator_on(driver, text);
        let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
        Program { planted, device, allocator, a, b }
    }

    fn alloc(&self, size: u64, stream: StreamId) -> DevicePtr {
        let ptr = self.allocator.raw_alloc(request(size, stream)).unwrap();
        self.device.note_alloc(ptr, size, stream);
        self.launch(ptr, size, stream);
        ptr
    }

    fn launch(&self, ptr: DevicePtr, size: u64, stream: StreamId) {
        self.device.launch(stream, &[Access::write(ptr, size)], 100_000).unwrap();
    }

    fn free(&self, ptr: DevicePtr, size: u64) {
        self.device.note_free(ptr, size);
        self.allocator.raw_free(ptr).unwrap();
    }

    /// Runs the program; gives what the checker found.
    fn run(&self) -> Vec<Report> {
        // A block that two streams use.
        let shared = self.alloc(3 * MIB, self.a);
        let event = self.device.create_event().unwrap();
        self.device.record_event(event, self.a).unwrap();
        self.device.wait_event(self.b, event).unwrap();
        self.launch(shared, 3 * MIB, self.b);
        if self.planted != Planted::DroppedRecordStream {
            self.allocator.record_stream(shared, self.b).unwrap();
        }
        self.free(shared, 3 * MIB);
        if self.planted == Planted::UseAfterFree {
            self.launch(shared, 3 * MIB, self.a);
        }
        if self.planted == Planted::DoubleFree {
            self.device.note_free(shared, 3 * MIB);
            let _ = self.allocator.raw_free(shared);
        }
        let again = self.alloc(3 * MIB, self.a);
        if self.planted == Planted::HandedOutTwice {
            self.device.note_alloc(again.add(MIB), 512, self.a);
        }
        self.free(again, 3 * MIB);
        // Memory that goes from one stream to the other.
        if self.planted == Planted::UnmapInUse {
            self.allocator.empty_cache(0).unwrap();
            return self.device.reports();
        }
        let large = self.alloc(11 * MIB, self.a);
        self.free(large, 11 * MIB);
        let large = self.alloc(12 * MIB, self.b);
        self.free(large, 12 * MIB);
        let large = self.alloc(15 * MIB, self.a);
        self.free(large, 15 * MIB);
        self.allocator.empty_cache(0).unwrap();
        self.device.reports()
    }
}

fn each_seed(planted: Planted, expected: impl Fn(&Report) -> bool) {
    for seed in 0..20 {
        let reports = Program::new(planted, seed).run();
        assert!(reports.iter().any(&expected), "{planted:?}, seed {seed}: {reports:#?}");
    }
}

#[test]
fn a_sound_allocator_and_program_are_clean() {
    for seed in 0..200 {
        let reports = Program::new(Planted::Nothing, seed).run();
        assert!(reports.is_empty(), "seed {seed}: {}", reports[0]);
    }
}

#[test]
fn reuse_across_streams_that_is_too_early() {
    let early = |report: &Report| {
        matches!(report, Report::Race { first, second, .. }
            if second.what == OpKind::Alloc && first.stream != second.stream)
    };
    each_seed(Planted::EarlyReuse, early);
    each_seed(Planted::EarlyReuseUnderWaits, early);
}

#[test]
fn a_recorded_stream_that_is_forgotten() {
    each_seed(Planted::DroppedRecordStream, |report| {
        matches!(report, Report::Race { first, second, .. }
            if first.what == OpKind::Kernel && second.what == OpKind::Alloc && first.stream != second.stream)
    });
}

#[test]
fn memory_that_is_unmapped_in_use() {
    each_seed(Planted::UnmapInUse, |report| matches!(report, Report::UnmapInUse { .. }));
}

#[test]
fn use_after_free_double_free_and_overlap() {
    each_seed(
        Planted::UseAfterFree,
        |report| matches!(report, Report::UseAfterFree { access, freed } if access.what == OpKind::Kernel && freed.what == OpKind::Free),
    );
    each_seed(
        Planted::DoubleFree,
        |report| matches!(report, Report::UseAfterFree { access, .. } if access.what == OpKind::Free),
    );
    each_seed(Planted::HandedOutTwice, |report| matches!(report, Report::Overlap { .. }));
}
