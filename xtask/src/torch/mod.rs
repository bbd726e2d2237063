//! `cargo xtask torch`: the real PyTorch wheel on the software device, and the Python package's tests in it. One command from
//! nothing; later runs find the virtual environment as it was left.

pub(crate) mod venv;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::softcuda;

/// What to run in the environment.
pub(crate) struct Options {
    task: Task,
    /// Another version of PyTorch than the pinned one.
    version: Option<String>,
    /// Handed on to pytest, or to the task's own program.
    rest: Vec<String>,
}

enum Task {
    Tests,
    Bench,
    Workloads,
    /// Any command, such as `python`.
    Exec,
}

impl Options {
    /// All tests.
    pub(crate) fn tests() -> Options {
        Options { task: Task::Tests, version: None, rest: Vec::new() }
    }

    pub(crate) fn parse(words: &[&str]) -> Result<Options, String> {
        let (version, words) = match words {
            ["--version"] => return Err("--version wants one, such as 2.11.0".to_string()),
            ["--version", version, rest @ ..] => (Some(version.to_string()), rest),
            rest => (None, rest),
        };
        let (task, rest) = match words {
            ["--bench", rest @ ..] => (Task::Bench, rest),
            ["--workloads", rest @ ..] => (Task::Workloads, rest),
            ["--exec"] => return Err("--exec wants a command".to_string()),
            ["--exec", rest @ ..] => (Task::Exec, rest),
            [option, ..] if option.starts_with("--") && *option != "--" => {
                return Err(format!("unknown option '{option}'; what pytest is to have comes after --"));
            }
            ["--", rest @ ..] => (Task::Tests, rest),
            rest => (Task::Tests, rest),
        };
        Ok(Options { task, version, rest: rest.iter().map(|word| word.to_string()).collect() })
    }
}

/// Sets everything up and runs the task. Whether it passed.
pub(crate) fn run(root: &Path, options: &Options) -> bool {
    match set_up(root, options.version.as_deref()).and_then(|place| place.execute(root, options)) {
        Ok(()) => true,
        Err(message) => {
            eprintln!("torch: {message}");
            false
        }
    }
}

/// Where everything lies.
struct Place {
    venv: PathBuf,
    softcuda: PathBuf,
    /// The folder with `cuda_runtime_api.h`.
    headers: PathBuf,
    /// `libstratalloc_preload.so`, for programs with PyTorch untouched.
    preload: PathBuf,
    cache: PathBuf,
}

fn build_preload(root: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--release", "--quiet", "-p", "stratalloc-preload"];
    match Command::new(cargo).args(arguments).current_dir(root).status() {
        Ok(status) if status.success() => Ok(softcuda::target_folder(root).join("release/libstratalloc_preload.so")),
        Ok(status) => Err(format!("the preload library: {status}, see above")),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}

/// Where what is fetched is kept.
pub(crate) fn cache_folder(root: &Path) -> PathBuf {
    match std::env::var_os("STRATALLOC_CACHE") {
        Some(folder) => root.join(folder),
        None => softcuda::target_folder(root),
    }
}

/// Another version than the pinned one has an environment and stand-ins of its own.
fn set_up(root: &Path, version: Option<&str>) -> Result<Place, String> {
    let cache = cache_folder(root);
    let torch = version.map_or(venv::TORCH.to_string(), |version| format!("torch=={version}"));
    let suffix = version.map_or(String::new(), |version| format!("-{version}"));
    let venv = venv::prepare(&cache.join(format!("torch-venv{suffix}")), &torch)?;
    let headers = venv::cuda_headers(&venv, &cache.join("cuda-headers"))?;
    let site = venv::site_packages(&venv)?;
    let out = cache.join(format!("softcuda-torch{suffix}"));
    let softcuda = softcuda::lay_out(root, &softcuda::Options::for_torch(&out, &site))?;
    venv::install_package(&venv, root)?;
    let preload = build_preload(root)?;
    Ok(Place { venv, softcuda, headers, preload, cache })
}

impl Place {
    fn execute(&self, root: &Path, options: &Options) -> Result<(), String> {
        let tests = root.join("python/tests");
        let python = self.venv.join("bin/python");
        let mut command = match options.task {
            Task::Exec => Command::new(&options.rest[0]),
            _ => Command::new(&python),
        };
        match options.task {
            Task::Tests => {
                command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).args(&options.rest).current_dir(&tests)
            }
            Task::Bench => command.arg(tests.join("bench/bench.py")).args(&options.rest),
            Task::Workloads => command.arg(tests.join("workloads.py")).args(&options.rest),
            Task::Exec => command.args(&options.rest[1..]),
        };
        self.environment(&mut command);
        let status = command.status().map_err(|error| format!("cannot run {command:?}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{status}")) }
    }

    fn environment(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.venv.join("bin")).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command
            .env("LD_LIBRARY_PATH", &self.softcuda)
            .env("STRATALLOC_CUDA_INCLUDE", &self.headers)
            .env("STRATALLOC_CACHE", &self.cache)
            .env("STRATALLOC_PRELOAD_LIB", &self.preload)
            // Kernels do nothing here, and clearing memory would only touch pages.
            .env("SOFTCUDA_MEMSET", "skip")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        if std::env::var_os("SOFTCUDA_MEMORY").is_none() {
            command.env("SOFTCUDA_MEMORY", "80GiB");
        }
    }
}
