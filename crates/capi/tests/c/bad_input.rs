//! What a C program can do wrong: `bad_input.c` does it, one case a test, under the sanitizers.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::toolchain::{Linked, PLAIN, SANITIZED, compile, missing, prefix, program, root, run, scratch};

fn source() -> PathBuf {
    root().join("crates/capi/tests/c/bad_input.c")
}

fn sanitized(case: &str) -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let mut command = program(PROGRAM.get_or_init(|| compile(&source(), SANITIZED, Linked::Shared)));
    command.arg(case);
    command
}

macro_rules! cases {
    ($($case:ident)*) => {$(
        #[test]
        fn $case() {
            if !missing() {
                run(stringify!($case), &mut sanitized(stringify!($case)));
            }
        }
    )*};
}

cases! {
    handles pointers sizes_and_alignments struct_sizes requests devices_and_limits pools captures_and_checkpoints
    defragmentation_and_plans configurations out_of_memory errors_by_thread threads observers_removed torch_without_cuda
}

#[test]
fn files_that_cannot_be_written() {
    if !missing() {
        run("files", sanitized("files").arg(scratch()));
    }
}

#[test]
fn a_configuration_that_is_not_understood_is_one_line_or_an_error() {
    if missing() {
        return;
    }
    for (conf, wanted) in
        [("limt:0.5", "LIBRARY_MISSING"), ("limt:0.5,strict:true", "INVALID_CONFIG"), ("", "LIBRARY_MISSING")]
    {
        let output = run(conf, sanitized("default_allocator").arg(wanted).env("STRATALLOC_CONF", conf));
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines = usize::from(conf == "limt:0.5");
        assert_eq!(errors.lines().count(), lines, "{conf}: {errors}");
        assert!(lines == 0 || errors.contains("unknown key 'limt'") && errors.contains("going on"), "{errors}");
    }
}

/// Children are made while other threads hold locks. None may wait for one, whatever it calls and however it ends.
#[test]
fn forks() {
    if missing() {
        return;
    }
    let path = scratch().join("forks");
    std::fs::create_dir_all(&path).unwrap();
    let compiled = compile(&source(), PLAIN, Linked::Static);
    run("forks", program(&compiled).arg("forks"));
}

/// A library that is loaded and unloaded by name, as plug-ins are.
#[test]
fn loaded_by_name() {
    if missing() {
        return;
    }
    let library = prefix().join("lib/libstratalloc.so");
    run("loaded_by_name", sanitized("loaded_by_name").arg(library));
}
