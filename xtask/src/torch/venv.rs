//! The virtual environment with the PyTorch wheel, and what is fetched beside it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Without its dependencies, so that no real CUDA library is found before the stand-ins.
pub(crate) const TORCH: &str = "torch==2.15.0";

/// What `import torch` wants of its dependencies, and what the tests want, each with its own dependencies: torch is none of them.
const REST: [&str; 8] = ["numpy", "typing_extensions", "filelock", "sympy", "networkx", "jinja2", "fsspec", "pytest"];

/// Only its headers are used: the extension compiles against them.
const CUDA_HEADERS: &str = "nvidia-cuda-runtime==13.2.*";

/// The environment at `folder` with `torch`, such as [`TORCH`], made unless it is there and complete.
pub(crate) fn prepare(folder: &Path, torch: &str) -> Result<PathBuf, String> {
    let python = folder.join("bin/python");
    let wanted = format!("{torch}\n{}\n", REST.join("\n"));
    // Written last: an interrupted installation is done again.
    let marker = folder.join("stratalloc-complete");
    if python.exists() && fs::read_to_string(&marker).is_ok_and(|found| found == wanted) {
        return absolute(folder);
    }
    println!("installing {torch} into {} (once; some 540 MB)", folder.display());
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    pip(&python, ["--no-deps", torch])?;
    pip(&python, REST)?;
    fs::write(&marker, wanted).map_err(|error| format!("cannot write {}: {error}", marker.display()))?;
    absolute(folder)
}

/// The CUDA runtime's headers, unpacked outside of the environment: inside, torch would find the real runtime beside them.
pub(crate) fn cuda_headers(venv: &Path, folder: &Path) -> Result<PathBuf, String> {
    Ok(unpacked(venv, CUDA_HEADERS, folder, "nvidia/cu13/include/cuda_runtime_api.h")?.join("nvidia/cu13/include"))
}

/// A wheel, unpacked into a folder of its own rather than installed, unless its file `sign` is there already.
pub(crate) fn unpacked(venv: &Path, wheel: &str, folder: &Path, sign: &str) -> Result<PathBuf, String> {
    if folder.join(sign).exists() {
        return absolute(folder);
    }
    let wheels = folder.join("wheels");
    let python = venv.join("bin/python");
    let download = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"];
    run(Command::new(&python).args(download).arg(&wheels).arg(wheel))?;
    let found = fs::read_dir(&wheels).map_err(|error| format!("cannot read {}: {error}", wheels.display()))?;
    let file = found.flatten().map(|entry| entry.path()).find(|path| path.extension() == Some(OsStr::new("whl")));
    let file = file.ok_or_else(|| format!("pip left no wheel in {}", wheels.display()))?;
    run(Command::new(&python).args(["-m", "zipfile", "-e"]).arg(&file).arg(folder))?;
    if !folder.join(sign).exists() {
        return Err(format!("{wheel} has no {sign}"));
    }
    absolute(folder)
}

/// The environment's `site-packages`.
pub(crate) fn site_packages(venv: &Path) -> Result<PathBuf, String> {
    let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(venv.join("bin/python")).args(["-c", code]).output();
    let output = output.map_err(|error| format!("cannot run python: {error}"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Builds the wheel of `python/` and installs it, as a user would.
pub(super) fn install_package(venv: &Path, root: &Path) -> Result<(), String> {
    let package = root.join("python");
    let package = package.to_str().ok_or("the repository's path is not UTF-8")?;
    pip(&venv.join("bin/python"), ["--no-deps", "--no-index", "--force-reinstall", package])
}

fn pip<'a>(python: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(python).args(install).args(arguments))
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}, see above")),
        Err(error) => Err(format!("cannot run {command:?}: {error}")),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("cannot find {}: {error}", path.display()))
}
