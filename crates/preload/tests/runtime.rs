//! A program that is linked with the CUDA runtime as a shared library, and with NVML.

mod common;

use common::{command, compile, passes, program, runtime_libraries, shim};

#[test]
fn a_program_on_the_runtime_is_served_and_limited_and_monitoring_agrees() {
    let libraries = runtime_libraries();
    let link = format!("-L{}", libraries.display());
    // With the libraries behind the program, as the linker wants them.
    let path = compile("runtime.c", "runtime", &[&link, "-l:libcudart.so.13", "-l:libnvidia-ml.so.1"]);
    let small = ("SOFTCUDA_MEMORY", "1GiB");

    let mut without = program(&path, libraries);
    let (expected, _) = passes(without.arg("0").env(small.0, small.1));

    let mut with = program(&path, libraries);
    let (found, err) = passes(with.arg("0").env(small.0, small.1).env("LD_PRELOAD", shim()));
    assert_eq!((found.as_str(), err.as_str()), (expected.as_str(), ""), "the program has the same, step by step");

    let mut limited = program(command(), libraries);
    limited.env("STRATALLOC_PRELOAD_LIB", shim()).args(["run", "--limit", "0.5", "--"]).arg(&path);
    passes(limited.arg("1").env(small.0, small.1));
}
