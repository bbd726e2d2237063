//! What the tests of the shim share: the libraries are built, C programs compiled, and run with the shim or without.

#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Where this run's files go.
pub fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("preload")
}

/// The folder that cargo builds into, for the profile of this test.
fn built() -> PathBuf {
    // The test is in `deps` of it.
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_path_buf()
}

/// Builds packages as this test was built. A library for C is no dependency of a test, so cargo does not do it by itself.
fn build(packages: &[&str]) -> PathBuf {
    let folder = built();
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("CARGO_TARGET_DIR", folder.parent().unwrap());
    for package in packages {
        command.args(["--package", package]);
    }
    if folder.ends_with("release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success(), "cargo build of {packages:?} failed");
    folder
}

/// The shim.
pub fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| build(&["stratalloc-preload"]).join("libstratalloc_preload.so"))
}

/// The folder of a driver on the software device.
pub fn libraries() -> &'static Path {
    static LIBRARIES: OnceLock<PathBuf> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let library = build(&["softcuda"]).join("libsoftcuda.so");
        // Of this process, since several tests make one at once.
        let folder = scratch().join(format!("libraries-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let link = folder.join("libcuda.so.1");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(library, link).unwrap();
        folder
    })
}

/// The folder of all of CUDA's libraries on the software device, the runtime and NVML among them.
pub fn runtime_libraries() -> &'static Path {
    static LIBRARIES: OnceLock<PathBuf> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let folder = scratch().join(format!("runtime-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env!("CARGO"));
        command.args(["xtask", "softcuda", "--profile", "dev", "--out"]).arg(&folder);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", built().parent().unwrap());
        let output = command.output().unwrap();
        assert!(output.status.success(), "cargo xtask softcuda: {}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

/// The command.
pub fn command() -> &'static Path {
    static COMMAND: OnceLock<PathBuf> = OnceLock::new();
    COMMAND.get_or_init(|| build(&["stratalloc-cli"]).join("stratalloc"))
}

/// Compiles a program that needs nothing but the driver, and prepares to run it, with the shim or without.
pub fn with_driver(source: &str, test: &str, shimmed: bool) -> Command {
    let path = compile(source, &format!("{test}-{}", source.trim_end_matches(".c")), &[]);
    let mut command = program(&path, libraries());
    if shimmed {
        command.env("LD_PRELOAD", shim());
    }
    command
}

/// Compiles a program of `tests/programs` to `name`, with more arguments for the compiler.
pub fn compile(source: &str, name: &str, arguments: &[&str]) -> PathBuf {
    let folder = scratch();
    std::fs::create_dir_all(&folder).unwrap();
    let to = folder.join(name);
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source);
    let mut command = Command::new("cc");
    command
        .args(["-std=gnu11", "-g", "-O1", "-Wall", "-Wno-unused-parameter", "-Wno-unused-function", "-o"])
        .arg(&to)
        .arg(from);
    let status = command.args(arguments).args(["-ldl", "-lpthread"]).status().expect("a C compiler, as `cc`");
    assert!(status.success(), "cc failed on {source}");
    to
}

/// A program that is to run, with a clean environment.
pub fn program(path: &Path, libraries: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("STRATALLOC_") || name_text.starts_with("SOFTCUDA_") || name_text == "LD_PRELOAD" {
            command.env_remove(&name);
        }
    }
    command.env("LD_LIBRARY_PATH", libraries);
    command
}

/// Runs a command, which must exit with 0. Returns what it printed on stdout and on stderr.
pub fn passes(command: &mut Command) -> (String, String) {
    let output: Output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    (out, err)
}
