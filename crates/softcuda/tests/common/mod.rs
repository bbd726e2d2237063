//! The library as C sees it, and processes of their own to run it in: what is set by the environment holds for a process.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::process::Command;

/// The shared library, which cargo puts beside the tests.
pub fn library() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().join("libsoftcuda.so")
}

/// Runs one ignored test of this file in a process of its own.
pub fn in_a_process(test: &str, environment: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("STRATALLOC_LIBCUDA", library()).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} with {environment:?}: {}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{test} did not run:\n{text}");
}

/// Writes tests that run in processes of their own: what `in_a_process` runs is the ignored test in the module `child`.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident, [$($environment:expr),*], $body:block)*) => {
        $(
            #[test]
            fn $name() {
                common::in_a_process(concat!("child::", stringify!($name)), &[$($environment),*]);
            }
        )*

        mod child {
            #[allow(unused_imports, reason = "what the tests name")]
            use super::*;

            $(
                #[test]
                #[ignore = "the test of this name runs it in a process of its own"]
                fn $name() $body
            )*
        }
    };
}

/// The library's functions by name, called with numbers. All arguments of CUDA's that are used here are integers and pointers.
pub struct Cuda(libloading::Library);

impl Cuda {
    pub fn load() -> Cuda {
        // SAFETY: the library's initialisers do nothing.
        Cuda(unsafe { libloading::Library::new(library()) }.unwrap())
    }

    /// Loads, initialises, and makes the first device's primary context current.
    pub fn start() -> Cuda {
        let cuda = Cuda::load();
        cuda.ok("cuInit", &[0]);
        let mut context = 0usize;
        cuda.ok("cuDevicePrimaryCtxRetain", &[at(&mut context), 0]);
        cuda.ok("cuCtxSetCurrent", &[context]);
        cuda
    }

    pub fn has(&self, name: &str) -> bool {
        // SAFETY: only the address is looked at.
        unsafe { self.0.get::<*const ()>(name) }.is_ok()
    }

    /// Calls a function. Pointers among the arguments must be what it takes.
    pub fn call(&self, name: &str, arguments: &[usize]) -> u32 {
        type Function =
            extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize, usize, usize, usize, usize) -> u32;
        // SAFETY: every function takes integers and pointers, at most twelve, which a C caller passes like this; one that takes
        // fewer ignores the rest.
        let function = unsafe { self.0.get::<Function>(name) }.unwrap_or_else(|_| panic!("no {name}"));
        let mut a = [0; 12];
        a[..arguments.len()].copy_from_slice(arguments);
        function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11])
    }

    /// A function of softcuda's own, of the type that the header gives it.
    pub fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the tests write the header's types.
        *unsafe { self.0.get::<F>(name) }.unwrap_or_else(|_| panic!("no {name}"))
    }

    #[track_caller]
    pub fn ok(&self, name: &str, arguments: &[usize]) {
        assert_eq!(self.call(name, arguments), 0, "{name}({arguments:x?})");
    }

    #[track_caller]
    pub fn fails(&self, name: &str, arguments: &[usize], code: u32) {
        assert_eq!(self.call(name, arguments), code, "{name}({arguments:x?})");
    }

    /// Calls a function whose first argument is where its result goes.
    #[track_caller]
    pub fn get(&self, name: &str, arguments: &[usize]) -> usize {
        let mut result = 0usize;
        self.ok(name, &[&[at(&mut result)], arguments].concat());
        result
    }

    #[track_caller]
    pub fn alloc(&self, size: usize) -> usize {
        self.get("cuMemAlloc_v2", &[size])
    }

    pub fn stream(&self) -> usize {
        self.get("cuStreamCreate", &[1])
    }

    #[track_caller]
    pub fn write(&self, dst: usize, bytes: &[u8]) {
        self.ok("cuMemcpyHtoD_v2", &[dst, bytes.as_ptr() as usize, bytes.len()]);
    }

    #[track_caller]
    pub fn read(&self, src: usize, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.ok("cuMemcpyDtoH_v2", &[at(&mut bytes[0]), src, size]);
        bytes
    }

    /// A device's account: pairs of bytes and counts, then free and total.
    pub fn account(&self, device: usize) -> [u64; 26] {
        let mut account = [0u64; 27];
        account[0] = 27 * 8;
        self.ok("softcudaAccount", &[device, at(&mut account[0])]);
        account[1..].try_into().unwrap()
    }

    pub fn calls(&self, name: &str) -> u64 {
        // SAFETY: the header declares it so.
        let count = unsafe { self.0.get::<extern "C" fn(*const c_char) -> u64>("softcudaCallCount") }.unwrap();
        let name = CString::new(name).unwrap();
        count(name.as_ptr())
    }

    /// Opens memory of another process.
    pub fn open_handle(&self, handle: [u8; 64]) -> usize {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct Handle([u8; 64]);
        type Open = extern "C" fn(*mut usize, Handle, u32) -> u32;
        // SAFETY: cuda.h declares it so; the handle goes by value.
        let open = unsafe { self.0.get::<Open>("cuIpcOpenMemHandle_v2") }.unwrap();
        let mut ptr = 0;
        assert_eq!(open(&mut ptr, Handle(handle), 1), 0);
        ptr
    }

    /// What the checker has found.
    pub fn report_count(&self) -> u64 {
        // SAFETY: the header declares it so.
        unsafe { self.0.get::<extern "C" fn() -> u64>("softcudaReportCount") }.unwrap()()
    }

    /// The names of all functions.
    pub fn names(&self) -> Vec<String> {
        type Name = extern "C" fn(u64, *mut c_char, usize) -> usize;
        // SAFETY: the header declares it so.
        let name = unsafe { self.0.get::<Name>("softcudaFunctionName") }.unwrap();
        let mut names = Vec::new();
        let mut text = [0u8; 256];
        while let length @ 1.. = name(names.len() as u64, text.as_mut_ptr().cast(), text.len()) {
            names.push(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        names
    }
}

/// Kinds in an account, as places of their bytes.
pub const PLAIN: usize = 0;
pub const CHUNKS: usize = 2;
pub const MAPPED: usize = 4;
pub const RESERVED: usize = 6;
pub const POOL_USED: usize = 8;
pub const POOL_RESERVED: usize = 10;
pub const MANAGED: usize = 12;
pub const ARRAYS: usize = 14;
pub const HOST: usize = 16;
pub const REGISTERED: usize = 18;
pub const GRAPH: usize = 20;
pub const SHARED: usize = 22;

/// An address as an argument.
pub fn at<T>(place: &mut T) -> usize {
    std::ptr::from_mut(place) as usize
}

/// The address of something that is read.
pub fn of<T>(place: &T) -> usize {
    std::ptr::from_ref(place) as usize
}

/// Bytes in which no two neighbours of a kind are alike.
pub fn pattern(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

pub const INVALID_VALUE: u32 = 1;
pub const OUT_OF_MEMORY: u32 = 2;
pub const NOT_INITIALIZED: u32 = 3;
pub const INVALID_HANDLE: u32 = 400;
pub const NOT_READY: u32 = 600;
pub const NOT_SUPPORTED: u32 = 801;
