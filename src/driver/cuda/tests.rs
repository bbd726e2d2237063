//! Loading, contexts and error codes, with stand-in libraries written in C. What needs a GPU is in `tests/gpu/`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::table::{Table, library_names};
use super::*;
use crate::driver::{CaptureStatus, CopyOp, Driver, EventId};
use crate::units::{DevicePtr, StreamId};

/// A compiled stand-in, removed when dropped.
struct Stub {
    path: PathBuf,
}

impl Stub {
    /// Compiles `stub.c` with these macros. `None`, and a line that says so, where there is no C compiler.
    fn compile(macros: &[&str]) -> Option<Stub> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stratalloc-stub-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name).with_extension("so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/driver/cuda/stub.c");
        let defines = macros.iter().map(|define| format!("-D{define}"));
        let result = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&path).args(defines).arg(source).status();
        match result {
            Ok(status) => {
                assert!(status.success(), "cc failed on {source}");
                Some(Stub { path })
            }
            Err(error) => {
                #[allow(clippy::print_stdout, reason = "a skipped test says so")]
                {
                    println!("skipped: no C compiler ({error})");
                }
                None
            }
        }
    }

    fn open(&self) -> DriverResult<Arc<CudaDriver>> {
        CudaDriver::open_in(Table::load(&[self.path.clone().into()])?, 0)
    }

    /// What one of the stand-in's `stub_` functions returns.
    fn ask(&self, function: &str) -> i32 {
        // SAFETY: the library is the one that the driver loaded already; it has no initialisers.
        let library = unsafe { libloading::Library::new(&self.path) }.unwrap();
        // SAFETY: all `stub_` functions take nothing and return an `int`.
        let function = unsafe { library.get::<unsafe extern "C" fn() -> i32>(function) }.unwrap();
        // SAFETY: they only read an `int`.
        unsafe { function() }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn the_variable_names_the_library() {
    assert_eq!(library_names(None), ["libcuda.so.1", "libcuda.so"]);
    assert_eq!(library_names(Some("".into())), ["libcuda.so.1", "libcuda.so"]);
    assert_eq!(library_names(Some("/nonexistent".into())), ["/nonexistent"]);
}

#[test]
fn a_missing_library_is_a_typed_error() {
    let error = Table::load(&library_names(Some(OsString::from("/nonexistent")))).err().unwrap();
    assert_eq!((error.kind, error.call), (DriverErrorKind::LibraryMissing, "dlopen"));
    assert!(error.detail.contains("/nonexistent"), "{error}");
}

#[test]
fn a_missing_function_is_named() {
    let Some(stub) = Stub::compile(&["NO_MEM_ALLOC"]) else { return };
    let error = stub.open().err().unwrap();
    assert_eq!((error.kind, error.call), (DriverErrorKind::SymbolMissing, "cuMemAlloc_v2"));
    assert!(error.detail.contains("cuMemAlloc_v2") && error.detail.contains("stratalloc-stub"), "{error}");
}

#[test]
fn no_device_is_a_typed_error() {
    let Some(stub) = Stub::compile(&["NO_DEVICE"]) else { return };
    let error = stub.open().err().unwrap();
    assert_eq!((error.kind, error.call), (DriverErrorKind::NoDevice, "cuInit"));
    let Some(stub) = Stub::compile(&[]) else { return };
    let table = Table::load(&[stub.path.clone().into()]).unwrap();
    for ordinal in [1, u32::MAX] {
        let error = CudaDriver::open_in(table, ordinal).err().unwrap();
        assert_eq!(error.kind, DriverErrorKind::NoDevice, "{error}");
    }
}

#[test]
fn an_old_driver_has_no_virtual_memory() {
    let Some(stub) = Stub::compile(&["NO_VMM"]) else { return };
    let driver = stub.open().unwrap();
    let properties = driver.properties();
    assert!(!properties.vmm && !properties.partial_mapping && !properties.software);
    let error = driver.reserve(PAGE, PAGE).err().unwrap();
    assert_eq!((error.kind, error.call), (DriverErrorKind::NotSupported, "cuMemAddressReserve"));
    assert_eq!(driver.alloc_plain(512), Ok(DevicePtr(0x1000)));
}

#[test]
fn a_whole_driver_opens_and_closes() {
    let Some(stub) = Stub::compile(&[]) else { return };
    let driver = stub.open().unwrap();
    let expected = DeviceProperties {
        name: "Stub".to_string(),
        ordinal: 0,
        total_memory: 1 << 30,
        driver_version: 12080,
        vmm: true,
        granularity: 2 << 20,
        partial_mapping: true,
        host_node: Some(0),
        software: false,
    };
    assert_eq!(*driver.properties(), expected);
    assert_eq!(stub.ask("stub_retained"), 1);
    drop(driver);
    assert_eq!(stub.ask("stub_retained"), 0);
}

#[test]
fn a_lazy_driver_takes_its_context_at_the_first_call_that_needs_one() {
    let Some(stub) = Stub::compile(&[]) else { return };
    let lazy = || CudaDriver::describe(Table::load(&[stub.path.clone().into()]).unwrap(), 0).unwrap();
    let driver = lazy();
    let properties = driver.properties();
    assert_eq!((properties.total_memory, properties.granularity), (1 << 30, 2 << 20));
    assert!(properties.vmm && !properties.partial_mapping);
    assert_eq!(driver.synchronize_device(), Ok(()));
    assert_eq!((stub.ask("stub_retained"), driver.context()), (0, 0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(driver.retained().is_ok()));
        }
    });
    assert_eq!(stub.ask("stub_retained"), 1);
    assert_ne!(driver.context(), 0);
    drop(driver);
    assert_eq!(stub.ask("stub_retained"), 0);
    drop(lazy());
    assert_eq!(stub.ask("stub_retained"), 0);
}

#[test]
fn a_failed_probe_means_whole_chunks() {
    // The second cannot create the chunk that the probe would map.
    for refusal in ["WHOLE_ONLY", "FAIL=2"] {
        let Some(stub) = Stub::compile(&[refusal]) else { return };
        let driver = stub.open().unwrap();
        assert!(driver.properties().vmm && !driver.properties().partial_mapping, "{refusal}");
    }
}

#[test]
fn calls_leave_the_threads_state_as_it_was() {
    let Some(stub) = Stub::compile(&[]) else { return };
    let driver = stub.open().unwrap();
    assert_eq!(driver.memory_info().map(|info| info.total), Ok(1 << 30));
    // The stand-in refuses both of these in global capture mode, as the real driver does.
    driver.alloc_plain(512).unwrap();
    assert_eq!(driver.query_event(driver.create_event().unwrap()), Ok(crate::driver::EventStatus::Complete));
    assert_eq!(stub.ask("stub_capture_mode"), 0);
    assert_eq!(stub.ask("stub_depth"), 1);
}

#[test]
fn codes_become_kinds() {
    for (code, kind, words) in [
        (2, DriverErrorKind::OutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"),
        (1, DriverErrorKind::InvalidValue, "CUDA error (1)"),
        (400, DriverErrorKind::InvalidHandle, "(400)"),
        (700, DriverErrorKind::Sticky, "CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
        (719, DriverErrorKind::Sticky, "(719)"),
        (801, DriverErrorKind::NotSupported, "(801)"),
        (901, DriverErrorKind::Capturing, "(901)"),
        (4, DriverErrorKind::Sticky, "(4)"),
        // No CUresult of the bindings has this number.
        (54321, DriverErrorKind::Other, "CUDA error (54321)"),
    ] {
        let Some(stub) = Stub::compile(&[&format!("FAIL={code}")]) else { return };
        let driver = stub.open().unwrap();
        let error = driver.alloc_plain(512).err().unwrap();
        assert_eq!((error.kind, error.call), (kind, "cuMemAlloc_v2"), "{error}");
        assert!(error.detail.contains(words), "{error}");
        assert_eq!(driver.query_event(EventId(8)).err().unwrap().kind, kind);
    }
    let Some(stub) = Stub::compile(&["FAIL=600"]) else { return };
    assert_eq!(stub.open().unwrap().query_event(EventId(8)), Ok(crate::driver::EventStatus::Pending));
}

#[test]
fn null_handles_do_not_reach_the_driver() {
    let Some(stub) = Stub::compile(&[]) else { return };
    let driver = stub.open().unwrap();
    for result in [
        driver.query_event(EventId(0)).map(|_| ()),
        driver.destroy_event(EventId(0)),
        driver.record_event(EventId(0), StreamId::DEFAULT),
        driver.wait_event(StreamId::DEFAULT, EventId(0)),
        driver.synchronize_event(EventId(0)),
        driver.destroy_stream(StreamId::DEFAULT),
    ] {
        assert_eq!(result.err().unwrap().kind, DriverErrorKind::InvalidHandle);
    }
}

#[test]
fn batches_go_as_one_call_where_the_driver_takes_them() {
    let Some(stub) = Stub::compile(&[]) else { return };
    let driver = stub.open().unwrap();
    let op = |size| CopyOp { dst: DevicePtr(0x1000), src: DevicePtr(0x2000), size };
    let (own, captured) = (StreamId(8), StreamId(16));
    assert_eq!(driver.capture_status(captured), Ok(CaptureStatus::Active(0)));
    let counts = || (stub.ask("stub_batches"), stub.ask("stub_singles"));
    for (ops, stream, after) in [
        (&[op(1), op(0), op(3)][..], own, (1, 0)),
        (&[op(1)], own, (1, 1)),
        (&[op(1), op(2)], StreamId::DEFAULT, (1, 3)),
        (&[op(1), op(2)], captured, (1, 5)),
        (&[], own, (1, 5)),
    ] {
        driver.copy(ops, stream).unwrap();
        assert_eq!(counts(), after);
    }
    let mut bytes = [0u8; 4];
    driver.read(&mut bytes, DevicePtr(0x1000), own).unwrap();
    assert_eq!(bytes, [7; 4]);
    assert_eq!(driver.read(&mut bytes, DevicePtr(0x1000), captured).err().unwrap().kind, DriverErrorKind::Capturing);
    assert_eq!(driver.write(DevicePtr(0x1000), &bytes, captured).err().unwrap().kind, DriverErrorKind::Capturing);
}

#[test]
fn a_driver_without_modules_has_no_kernels_and_copies_all_the_same() {
    let Some(stub) = Stub::compile(&[]) else { return };
    let driver = stub.open().unwrap();
    let op = CopyOp { dst: DevicePtr(0x1000), src: DevicePtr(0x2000), size: 5 };
    driver.copy_blocks(&[op; 3], StreamId(8)).unwrap();
    assert_eq!((stub.ask("stub_batches"), stub.ask("stub_singles")), (1, 0));
    let error = driver.fill_words(DevicePtr(0x1000), 16, 1, StreamId(8)).err().unwrap();
    assert_eq!((error.kind, error.call), (DriverErrorKind::NotSupported, "cuModuleLoadData"), "{error}");
    assert_eq!(driver.fill_words(DevicePtr(0x1000), 0, 1, StreamId(8)), Ok(()), "nothing to do");
}
