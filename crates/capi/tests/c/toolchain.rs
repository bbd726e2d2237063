//! The library as programs find it: installed, compiled against and linked with.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// How a program is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// With `libstratalloc.so`.
    Shared,
    /// With `libstratalloc.a`.
    Static,
}

/// Undefined behaviour, leaks and stray accesses end the program.
pub const SANITIZED: &str = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer";

/// As an uninterrupted process: no sanitizer, whose own threads and fork handlers would be in the way.
pub const PLAIN: &str = "-O1";

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A folder for what tests write.
pub fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Whether a tool is missing here. Says so, so that a test which does nothing does not pass in silence.
pub fn missing() -> bool {
    static MISSING: OnceLock<Vec<&str>> = OnceLock::new();
    let lacks = |tool: &&str| !Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    let missing = MISSING.get_or_init(|| ["cc", "c++", "pkg-config"].into_iter().filter(lacks).collect());
    if !missing.is_empty() {
        // Past the test harness, which keeps what passing tests print to itself.
        let line = format!("skipped: {} not found; apt-get install gcc g++ pkg-config\n", missing.join(", "));
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    !missing.is_empty()
}

/// The library, installed once for all tests, in a folder whose name has spaces.
pub fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = scratch().join("an installed library");
        let mut install = Command::new(env!("CARGO"));
        install.args(["run", "--quiet", "--package", "xtask", "--", "install", "--dev", "--library-only", "--prefix"]);
        run("cargo xtask install", install.arg(&prefix).current_dir(root()));
        prefix
    })
}

/// Runs a command that is to succeed.
#[track_caller]
pub fn run(what: &str, command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{what} does not start: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}\n{err}", output.status);
    output
}

/// What pkg-config says, by a shell's rules, since the prefix has spaces.
fn package_flags(linked: Linked) -> Vec<String> {
    let package = if linked == Linked::Shared { "stratalloc" } else { "stratalloc-static" };
    let mut ask = Command::new("sh");
    ask.arg("-c").arg("eval \"set -- $(pkg-config --cflags --libs \"$0\")\"; printf '%s\\n' \"$@\"").arg(package);
    let told = run("pkg-config", ask.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")));
    let told = String::from_utf8(told.stdout).expect("the prefix is UTF-8");
    told.lines().map(str::to_string).collect()
}

/// Compiles one file, C by its ending or else C++, with all warnings as errors.
#[track_caller]
pub fn compile(source: &Path, flags: &str, linked: Linked) -> PathBuf {
    let (compiler, standard) =
        if source.extension() == Some(OsStr::new("c")) { ("cc", "-std=c11") } else { ("c++", "-std=c++17") };
    let stem = source.file_stem().expect("a file").display();
    let program = scratch().join(format!("{stem}-{linked:?}-{}", std::process::id()));
    let mut compile = Command::new(compiler);
    compile.args([standard, "-g", "-Wall", "-Wextra", "-pedantic", "-Werror", "-D_DEFAULT_SOURCE", "-pthread"]);
    compile.args(flags.split_whitespace()).arg(source).args(package_flags(linked)).arg("-o").arg(&program);
    run(&format!("{compiler} {}", source.display()), &mut compile);
    program
}

/// A program that finds the installed library, without a configuration of the user's.
pub fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("LD_LIBRARY_PATH", prefix().join("lib")).env_remove("STRATALLOC_CONF");
    // A library that is not there: tests mean the same with and without a GPU.
    command.env("STRATALLOC_LIBCUDA", scratch().join("no-libcuda.so"));
    command
}
