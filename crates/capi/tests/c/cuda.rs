//! Over CUDA's driver, two devices of softcuda: the process's own allocator, several devices, streams, what torch's pluggable allocator calls. What
//! the library says it holds is compared with the driver's own account.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::toolchain::{Linked, PLAIN, compile, missing, program, root, run};

/// softcuda, built once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "softcuda"]);
        run("cargo build", build.current_dir(root()));
        // Tests run from the target folder's `debug/deps`.
        let test = std::env::current_exe().expect("a running program has a path");
        let debug = test.ancestors().nth(2).expect("in debug/deps");
        debug.join("libsoftcuda.so")
    })
}

fn case(name: &str) -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let compiled = || {
        let flags = format!("{PLAIN} -I{}", root().join("crates/softcuda/include").display());
        compile(&root().join("crates/capi/tests/c/cuda.c"), &flags, Linked::Shared)
    };
    let mut command = program(PROGRAM.get_or_init(compiled));
    command.arg(name).env("STRATALLOC_LIBCUDA", library());
    command.env("SOFTCUDA_DEVICES", "2").env("SOFTCUDA_MEMORY", "256MiB").env("SOFTCUDA_CHECKER", "1");
    command
}

macro_rules! cases {
    ($($case:ident)*) => {$(
        #[test]
        fn $case() {
            if !missing() {
                run(stringify!($case), &mut case(stringify!($case)));
            }
        }
    )*};
}

cases! { the_default chosen_devices streams torch others_have_the_memory children unused_devices }

#[test]
fn a_wrong_configuration_is_said_once_and_the_process_goes_on() {
    if missing() {
        return;
    }
    let output = run("defaults", case("defaults_after_an_error").env("STRATALLOC_CONF", "limit:0"));
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("stratalloc:")).collect();
    assert!(matches!(lines.as_slice(), [one] if one.contains("limit: '0' is not allowed")), "{errors}");
}
