//! Debug aids: `aids.c` makes four mistakes, and hears of all.

use super::toolchain::{Linked, PLAIN, compile, missing, program, root, run};

#[test]
fn debug_aids_tell_a_program_in_c() {
    if missing() {
        return;
    }
    let compiled = compile(&root().join("crates/capi/tests/c/aids.c"), PLAIN, Linked::Shared);
    let conf = "poison:check,redzone:16,quarantine:1MiB,leaks:true";
    let output = run("aids", program(&compiled).env("STRATALLOC_CONF", conf));
    let text = String::from_utf8(output.stderr).expect("text");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("stratalloc: ")).collect();
    assert_eq!(said.len(), 4, "{text}");
    assert!(said[0].contains("overflow: 1 byte(s)"), "{text}");
    assert!(said[1].contains("write after free: 1 byte(s)") && said[1].contains("offset 10"), "{text}");
    assert!(
        said[2].contains("overflow: 1 byte(s)") && said[2].contains("the first 1 byte(s) behind its end"),
        "{text}"
    );
    assert!(said[3].contains("1 block(s) of 68.36 KiB still in use on device 0"), "{text}");
    assert_eq!(run("aids", &mut program(&compiled)).stderr, b"", "off by default");
}
