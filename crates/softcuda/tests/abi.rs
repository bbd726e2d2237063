//! Every exported function, called with nothing and with what means nothing: an error comes back, or success, and never a signal.

mod common;

use common::{Cuda, INVALID_HANDLE, INVALID_VALUE, NOT_INITIALIZED, at};

/// Calls a function with all kinds of nothing, in a child of this process, which has not used the driver yet.
fn survives(cuda: &Cuda, name: &str, buffer: usize) -> i32 {
    // SAFETY: the child of this single-threaded process calls the library, and leaves without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        cuda.call(name, &[]);
        cuda.call("cuInit", &[0]);
        let mut context = 0usize;
        cuda.call("cuDevicePrimaryCtxRetain", &[at(&mut context), 0]);
        cuda.call("cuCtxSetCurrent", &[context]);
        cuda.call(name, &[]);
        cuda.call("cuCtxSetCurrent", &[context]);
        cuda.call(name, &[buffer; 12]);
        // SAFETY: it ends the child only.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the child is this process's own.
    unsafe { libc::waitpid(child, &mut status, 0) };
    status
}

/// 64 KiB of zeros, at an address that as a count is too large for anything and as a number with sign is negative.
fn buffer() -> usize {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let hint = 0x7e00_f000_0000usize as *mut libc::c_void;
    // SAFETY: a new mapping.
    let buffer = unsafe { libc::mmap(hint, 1 << 16, access, flags, -1, 0) };
    assert_eq!(buffer, hint);
    buffer as usize
}

scenarios! {
    no_call_crashes, [("SOFTCUDA_MEMORY", "1GiB")], {
        let cuda = Cuda::load();
        let names = cuda.names();
        assert!(names.len() > 500, "{} functions", names.len());
        let buffer = buffer();
        let mut crashed = Vec::new();
        for name in &names {
            assert!(cuda.has(name), "{name} is listed and not exported");
            let status = survives(&cuda, name, buffer);
            if status != 0 {
                crashed.push(format!("{name}: status {status:#x}"));
            }
        }
        assert!(crashed.is_empty(), "{crashed:#?}");
    }

    unknown_handles_are_errors, [], {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let event = cuda.get("cuEventCreate", &[2]);
        cuda.ok("cuStreamDestroy_v2", &[stream]);
        cuda.ok("cuEventDestroy_v2", &[event]);
        for wild in [3, 0xdead_beef, stream, event, usize::MAX, 1 << 46] {
            for name in ["cuStreamSynchronize", "cuStreamQuery", "cuStreamDestroy_v2", "cuEventQuery", "cuEventDestroy_v2",
                "cuEventSynchronize", "cuModuleUnload", "cuLibraryUnload", "cuMemRelease", "cuArrayDestroy"]
            {
                cuda.fails(name, &[wild], INVALID_HANDLE);
            }
            for name in ["cuGraphDestroy", "cuGraphExecDestroy", "cuMemFree_v2", "cuMemPoolDestroy", "cuMemFreeHost"] {
                cuda.fails(name, &[wild], INVALID_VALUE);
            }
            cuda.fails("cuEventRecord", &[wild, 0], INVALID_HANDLE);
            cuda.fails("cuCtxSetCurrent", &[wild], 201);
        }
        let ptr = cuda.alloc(512);
        cuda.fails("cuMemFree_v2", &[ptr + 256], INVALID_VALUE);
        cuda.ok("cuMemFree_v2", &[ptr]);
        cuda.fails("cuMemFree_v2", &[ptr], INVALID_VALUE);
    }

    nothing_works_before_cuinit, [], {
        let cuda = Cuda::load();
        let mut count = 0usize;
        cuda.fails("cuDeviceGetCount", &[at(&mut count)], NOT_INITIALIZED);
        cuda.fails("cuMemAlloc_v2", &[at(&mut count), 1], NOT_INITIALIZED);
        cuda.ok("cuDriverGetVersion", &[at(&mut count)]);
        assert_eq!(count, 13000);
        cuda.ok("cuInit", &[0]);
        cuda.fails("cuMemAlloc_v2", &[at(&mut count), 1], 201);
    }

    names_mean_versions, [], {
        let cuda = Cuda::start();
        let find = |name: &std::ffi::CStr, version: usize, flags: usize| {
            let (mut function, mut status) = (0usize, 9u32);
            cuda.ok("cuGetProcAddress_v2", &[name.as_ptr() as usize, at(&mut function), version, flags, at(&mut status)]);
            (function, status)
        };
        let (alloc, status) = find(c"cuMemAlloc", 12000, 0);
        assert_eq!(status, 0);
        assert_eq!(find(c"cuMemAlloc_v2", 12000, 0).0, alloc);
        assert_ne!(find(c"cuMemAlloc", 3000, 0).0, alloc);
        assert_ne!(find(c"cuStreamGetCaptureInfo", 11040, 0).0, find(c"cuStreamGetCaptureInfo", 12030, 0).0);
        assert_ne!(find(c"cuMemcpyAsync", 12000, 0).0, find(c"cuMemcpyAsync", 12000, 2).0);
        assert_ne!(find(c"cuMemcpyHtoD", 12000, 0).0, find(c"cuMemcpyHtoD", 12000, 2).0);
        assert_eq!(find(c"cuMemAlloc", 12000, 2).0, alloc);
        assert_eq!(find(c"cuMemcpyBatchAsync", 12000, 0), (0, 2));
        assert_eq!(find(c"cuNoSuchFunction", 13000, 0), (0, 1));
        let mut function = 1usize;
        cuda.fails("cuGetProcAddress", &[c"cuNoSuchFunction".as_ptr() as usize, at(&mut function), 12000, 0], 500);
        assert_eq!(function, 0);
    }

    a_forked_child_is_told, [], {
        let cuda = Cuda::start();
        // SAFETY: the child makes calls that fail at once, and leaves.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut ptr = 0usize;
            let codes = [cuda.call("cuMemAlloc_v2", &[at(&mut ptr), 512]), cuda.call("cuInit", &[0])];
            // SAFETY: it ends the child only.
            unsafe { libc::_exit(i32::from(codes != [NOT_INITIALIZED; 2])) };
        }
        let mut status = 0;
        // SAFETY: the child is this process's own.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        cuda.alloc(512);
    }

    faults_come_as_ordered, [("SOFTCUDA_FAULTS", "cuMemAlloc:2:oom,cuStreamCreate:1+:719")], {
        let cuda = Cuda::start();
        cuda.alloc(512);
        let mut ptr = 0usize;
        cuda.fails("cuMemAlloc_v2", &[at(&mut ptr), 512], common::OUT_OF_MEMORY);
        cuda.alloc(512);
        for _ in 0..3 {
            cuda.fails("cuStreamCreate", &[at(&mut ptr), 0], 719);
        }
        assert_eq!(cuda.calls("cuMemAlloc"), 3);
        assert_eq!(cuda.account(0)[common::PLAIN], 1024);
    }
}

#[test]
fn malformed_options_are_named() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child::unknown_handles_are_errors", "--ignored", "--nocapture"]);
    let output = command.env("SOFTCUDA_MEMORY", "lots").output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SOFTCUDA_MEMORY=lots is not understood"), "{text}");
}
