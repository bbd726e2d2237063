//! The examples of `examples/c` and `examples/cpp`, under the sanitizers, with both libraries.

use std::fs;
use std::path::PathBuf;

use super::toolchain::{Linked, SANITIZED, compile, missing, prefix, program, root, run, scratch};

fn example(name: &str) -> PathBuf {
    root().join("examples").join(name)
}

#[test]
fn basic() {
    if missing() {
        return;
    }
    for linked in [Linked::Shared, Linked::Static] {
        let path = compile(&example("c/basic.c"), SANITIZED, linked);
        let output = run("basic", &mut program(&path));
        let text = String::from_utf8_lossy(&output.stdout);
        for words in
            ["OUT_OF_MEMORY: out of memory on device 0: no room for 1000 MiB", "was freed already", "can never fit"]
        {
            assert!(text.contains(words), "{words} is not in:\n{text}");
        }
    }
}

#[test]
fn observers() {
    if missing() {
        return;
    }
    let path = compile(&example("c/observers.c"), SANITIZED, Linked::Shared);
    let (snapshot, trace) = (scratch().join("observers.pickle"), scratch().join("observers.trace"));
    run("observers", program(&path).args([&snapshot, &trace]));
    let pickle = fs::read(&snapshot).unwrap();
    assert!(pickle.starts_with(&[0x80, 2]) && pickle.ends_with(b"."), "a pickle of protocol 2");
    let trace = stratalloc_trace::Trace::load(&trace).unwrap();
    assert_eq!((trace.allocs, trace.frees, trace.empty_caches, trace.live_at_end.len()), (7, 7, 1, 0));
    assert_eq!(trace.header["device-bytes"], (256 << 20).to_string());
}

#[test]
fn cpp() {
    if missing() {
        return;
    }
    for name in ["memory_resource", "tiers"] {
        for linked in [Linked::Shared, Linked::Static] {
            let path = compile(&example(&format!("cpp/{name}.cpp")), SANITIZED, linked);
            run(name, &mut program(&path));
        }
    }
}

/// A program linked with `-lstratalloc` asks for the library of its ABI, whatever newer one may be installed beside it.
#[test]
fn programs_ask_for_the_library_by_its_abi() {
    if missing() {
        return;
    }
    let path = compile(&example("c/basic.c"), "", Linked::Shared);
    let soname = format!("libstratalloc.so.{}", stratalloc_c::version::STRATALLOC_ABI_VERSION);
    let bytes = fs::read(&path).unwrap();
    assert!(
        bytes
            .windows(soname.len() + 1)
            .any(|part| &part[..soname.len()] == soname.as_bytes() && part[soname.len()] == 0)
    );
    let installed = fs::canonicalize(prefix().join("lib").join(&soname)).unwrap();
    assert!(installed.ends_with(concat!("libstratalloc.so.", env!("CARGO_PKG_VERSION"))), "{}", installed.display());
}
