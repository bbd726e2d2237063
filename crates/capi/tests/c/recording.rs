//! Recordings that end in other ways than by `stratalloc_trace_stop`: `recording.c` has one case a test.

use std::path::PathBuf;
use std::sync::OnceLock;

use stratalloc_trace::Trace;

use super::toolchain::{Linked, PLAIN, compile, missing, program, root, run, scratch};

/// Runs a case. What it printed, and its trace.
fn recorded(case: &str) -> (String, Trace) {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let source = root().join("crates/capi/tests/c/recording.c");
    let compiled = PROGRAM.get_or_init(|| compile(&source, PLAIN, Linked::Shared));
    let path = scratch().join(format!("recording-{case}.trace"));
    let output = run(case, program(compiled).arg(case).arg(&path));
    (String::from_utf8(output.stdout).expect("text"), Trace::load(&path).expect("a whole trace"))
}

/// The file is whole lines, as many as the program was told, whether the disk fills up while it runs or when it stops.
#[test]
fn a_full_disk_is_told_and_leaves_a_trace() {
    if missing() {
        return;
    }
    for case in ["disk_full", "disk_full_at_the_end"] {
        let (told, trace) = recorded(case);
        assert_eq!(told.trim(), trace.ops.len().to_string(), "{case}");
        assert!(trace.ops.len() > 400, "{case}: {} calls", trace.ops.len());
    }
}

#[test]
fn a_process_that_exits_has_told_all_calls() {
    if !missing() {
        assert_eq!(recorded("exits").1.ops.len(), 6);
    }
}
