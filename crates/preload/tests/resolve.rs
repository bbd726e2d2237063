//! Which function a program gets, by every way to look one up. The driver is a stand-in of a few functions: none of it is called but
//! to tell which function it is.

mod common;

use std::process::Command;

use common::{compile, passes, program, scratch, shim};

fn set_up(name: &str) -> Command {
    // Each test has a folder of its own: they run at once.
    let folder = format!("resolve-{name}");
    std::fs::create_dir_all(scratch().join(&folder)).unwrap();
    let shared = ["-shared", "-fPIC"];
    // As the driver is linked: its own names are its own, whatever is preloaded.
    let as_driver = ["-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic"];
    compile("fake_cuda.c", &format!("{folder}/libcuda.so.1"), &[&shared[..], &as_driver].concat());
    let behind = ["-DBEHIND", "-Wl,-soname,libbehind.so"];
    let behind = compile("next.c", &format!("{folder}/libbehind.so"), &[&shared[..], &behind].concat());
    let with_behind = ["-Wl,--no-as-needed", behind.to_str().unwrap()];
    compile("next.c", &format!("{folder}/libnext.so"), &[&shared[..], &with_behind].concat());
    let path = compile("resolve.c", &format!("{folder}/resolve"), &[]);
    program(&path, path.parent().unwrap())
}

#[test]
fn without_the_shim_the_program_finds_the_drivers_functions() {
    passes(set_up("without").arg("0"));
}

#[test]
fn with_the_shim_it_finds_the_hooks() {
    let (_, err) = passes(set_up("with").arg("1").env("LD_PRELOAD", shim()));
    assert_eq!(err, "stratalloc: the driver has a cuMemFree that this version does not know: it passes unseen\n");
}

#[test]
fn a_program_without_cuda_is_left_alone() {
    for program in ["/bin/true", "/bin/ls"] {
        let (_, err) = passes(Command::new(program).env("LD_PRELOAD", shim()).env("STRATALLOC_CONF", "nonsense"));
        assert_eq!(err, "", "nothing is read before the first call");
    }
}
