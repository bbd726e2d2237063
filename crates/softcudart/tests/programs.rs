//! C programs on the libraries as they are laid out: compiled and linked as any CUDA program, run with `LD_LIBRARY_PATH`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The folder of the libraries, laid out by the command that users give.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("softcuda");
        let done = Command::new(env!("CARGO"))
            .args(["xtask", "softcuda", "--profile", "dev", "--out"])
            .arg(&folder)
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(done.status.success(), "cargo xtask softcuda: {}", String::from_utf8_lossy(&done.stderr));
        folder
    })
}

/// Compiles `name`.c against `library` and runs it.
fn run(name: &str, link: &[&str], environment: &[(&str, &str)]) -> Output {
    let source = root().join("crates/softcudart/tests/programs").join(format!("{name}.c"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", environment.len()));
    let folder = libraries();
    let compiled = Command::new("cc")
        .args(["-O1", "-Wall", "-Wno-unused-function", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .args(link.iter().map(|library| folder.join(library)))
        // The libraries name each other by soname.
        .arg(format!("-Wl,-rpath-link,{}", folder.display()))
        .arg("-ldl")
        .output()
        .expect("there is a C compiler");
    assert!(compiled.status.success(), "{name}.c: {}", String::from_utf8_lossy(&compiled.stderr));
    let mut command = Command::new(&program);
    command.env("LD_LIBRARY_PATH", folder).envs(environment.iter().copied());
    command.output().expect("the program starts")
}

fn must_hold(name: &str, link: &[&str], environment: &[(&str, &str)]) -> String {
    let output = run(name, link, environment);
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("all held"), "{name}: {}\n{out}{error}", output.status);
    out.into_owned()
}

#[test]
fn a_program_of_the_runtime_does_what_it_should() {
    must_hold("runtime", &["libcudart.so.13"], &[]);
}

#[test]
fn with_two_devices_the_second_is_another() {
    let out = must_hold("runtime", &["libcudart.so.13"], &[("SOFTCUDA_DEVICES", "2")]);
    assert!(out.contains("two devices"), "{out}");
}

#[test]
fn the_driver_is_found_as_the_runtime_finds_it() {
    must_hold("driver", &[], &[]);
}

#[test]
fn nvml_and_the_runtime_agree() {
    must_hold("nvml", &["libcudart.so.13", "libnvidia-ml.so.1"], &[]);
}

/// What `nm -D` says that a library defines.
fn exports(library: &str) -> Vec<String> {
    let listed = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(libraries().join(library))
        .output()
        .expect("binutils are there");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().last().map(str::to_string)).collect()
}

#[test]
fn the_two_runtimes_have_their_own_names_and_version_nodes() {
    for major in [12, 13] {
        let node = format!("libcudart.so.{major}");
        let exports = exports(&node);
        let has = |name: &str| exports.contains(&format!("{name}@@{node}"));
        for name in ["cudaMalloc", "cudaMemcpyAsync_ptsz", "__cudaRegisterFatBinary", "cudaStreamGetCaptureInfo"] {
            assert!(has(name), "{name} is in {node}");
        }
        assert_eq!(has("cudaGetDeviceProperties_v2"), major == 12, "the second form is CUDA 12's");
        assert_eq!(has("cudaMemGetDefaultMemPool"), major == 13, "new in CUDA 13");
        let others: Vec<_> = exports
            .iter()
            .filter(|name| !name.starts_with("cuda") && !name.starts_with("__cuda") && !name.starts_with(&node))
            .collect();
        assert!(others.is_empty(), "{node} exports {others:?}");
    }
}

/// Without a driver nothing works, and nothing falls over.
#[test]
fn without_a_driver_the_runtime_says_so() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-driver");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::copy(libraries().join("libcudart.so.13"), folder.join("libcudart.so.13")).expect("a copy");
    let source = folder.join("none.c");
    let text = "int cudaMalloc(void **, unsigned long), cudaDriverGetVersion(int *), cudaGetDeviceCount(int *);\n\
                int main(void) { void *p; int v = 7, n = 7;\n\
                return cudaMalloc(&p, 8) == 35 && cudaDriverGetVersion(&v) == 0 && v == 0 && cudaGetDeviceCount(&n) == 35 ? 0 : 1; }\n";
    std::fs::write(&source, text).expect("a file");
    let program = folder.join("none");
    let mut compiler = Command::new("cc");
    compiler.arg(&source).arg(folder.join("libcudart.so.13")).arg("-o").arg(&program);
    assert!(compiler.status().expect("there is a C compiler").success(), "it compiles");
    let mut command = Command::new(&program);
    let status = command.env("LD_LIBRARY_PATH", &folder).status().expect("the program starts");
    assert!(status.success(), "35 is cudaErrorInsufficientDriver: {status}");
}
