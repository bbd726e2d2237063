//! Fetches the peers, builds the programs that run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::roster::{Family, Peer};
use crate::torch::{self, venv};
use crate::{install, softcuda};

/// The last RMM whose pools are headers. In later ones they are in a library that has CUDA's runtime inside, and that one wants
/// NVIDIA's driver.
pub(super) const RMM: &str = "librmm-cu12==25.6.0";
const RMM_LOGGER: &str = "rapids-logger==0.1.19";
const CUDA_12_HEADERS: &str = "nvidia-cuda-runtime-cu12==12.8.90";

/// Where everything lies.
pub(super) struct Place {
    /// The programs.
    pub(super) bin: PathBuf,
    /// The command `stratalloc`.
    pub(super) stratalloc: PathBuf,
    /// Traces in the form that the programs read.
    pub(super) ops: PathBuf,
    /// Folders of shared libraries, in order.
    pub(super) libraries: Vec<PathBuf>,
}

impl Place {
    /// The program of a family.
    pub(super) fn program(&self, family: Family) -> PathBuf {
        self.bin.join(match family {
            Family::Stratalloc => "peer-stratalloc",
            Family::Torch => "peer-c10",
            Family::Rmm => "peer-rmm",
            Family::Floor => "peer-floor",
        })
    }
}

/// Builds what these peers need.
pub(super) fn set_up(root: &Path, peers: &[Peer]) -> Result<Place, String> {
    let cache = torch::cache_folder(root);
    let work = softcuda::target_folder(root).join("peers-work");
    let (bin, ops) = (work.join("bin"), work.join("ops"));
    for folder in [&bin, &ops] {
        fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    }
    let needs = |family: Family| peers.iter().any(|peer| peer.family == family);
    // PyTorch's libraries, and everybody's headers, come through pip: all families but the floor need the environment.
    let venv = venv::prepare(&cache.join("torch-venv"), venv::TORCH)?;
    let libraries = softcuda::lay_out(root, &softcuda::Options::plain(&work.join("softcuda")))?;
    let stratalloc = bin.join("stratalloc");
    let mut place = Place { bin, stratalloc, ops, libraries: vec![libraries] };
    build(root, "stratalloc-benches", &place.program(Family::Floor))?;

    let cuda_13 = venv::cuda_headers(&venv, &cache.join("cuda-headers"))?;
    if needs(Family::Torch) {
        let torch = venv::site_packages(&venv)?.join("torch");
        let libraries = torch.join("lib");
        let mut build = Build::new(root, &place, "c10.cpp", "-std=c++20");
        build.system(&torch.join("include")).system(&cuda_13).library(&libraries, &["c10", "c10_cuda"]);
        build.run(&place, Family::Torch, 13)?;
        place.libraries.push(libraries);
    }
    if needs(Family::Stratalloc) {
        let prefix = work.join("stratalloc");
        install::library(root, &prefix)?;
        build(root, "stratalloc-cli", &place.stratalloc)?;
        let mut build = Build::new(root, &place, "stratalloc.cpp", "-std=c++20");
        build.system(&prefix.join("include")).system(&cuda_13).library(&prefix.join("lib"), &["stratalloc"]);
        build.run(&place, Family::Stratalloc, 13)?;
        place.libraries.push(prefix.join("lib"));
    }
    if needs(Family::Rmm) {
        let runtime = "nvidia/cuda_runtime/include";
        let header = format!("{runtime}/cuda_runtime_api.h");
        let cuda_12 = venv::unpacked(&venv, CUDA_12_HEADERS, &cache.join("peers/cuda12"), &header)?.join(runtime);
        let rmm = venv::unpacked(&venv, RMM, &cache.join("peers/rmm"), "librmm/lib64/librmm.so")?.join("librmm");
        let logger = "rapids_logger/lib64/librapids_logger.so";
        let logger = venv::unpacked(&venv, RMM_LOGGER, &cache.join("peers/logger"), logger)?.join("rapids_logger");
        let mut build = Build::new(root, &place, "rmm.cpp", "-std=c++17");
        build
            .define("LIBCUDACXX_ENABLE_EXPERIMENTAL_MEMORY_RESOURCE")
            .define("RMM_LOG_ACTIVE_LEVEL=RAPIDS_LOGGER_LOG_LEVEL_OFF");
        for folder in ["include", "include/rapids", "include/rapids/libcudacxx"] {
            build.system(&rmm.join(folder));
        }
        build.system(&logger.join("include")).system(&cuda_12);
        build.library(&rmm.join("lib64"), &["rmm"]).library(&logger.join("lib64"), &["rapids_logger"]);
        build.run(&place, Family::Rmm, 12)?;
        place.libraries.extend([rmm.join("lib64"), logger.join("lib64")]);
    }
    Ok(place)
}

/// A program of one of our packages.
fn build(root: &Path, package: &str, to: &Path) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let name = to.file_name().unwrap_or_default();
    let arguments = ["build", "--release", "--quiet", "-p", package, "--bin"];
    succeed(Command::new(cargo).args(arguments).arg(name).current_dir(root))?;
    let built = softcuda::target_folder(root).join("release").join(name);
    fs::copy(&built, to).map(drop).map_err(|error| format!("cannot copy {}: {error}", built.display()))
}

/// A compiler's command line.
struct Build {
    command: Command,
    /// After the headers that are sought.
    last: Vec<String>,
}

impl Build {
    fn new(root: &Path, place: &Place, source: &str, standard: &str) -> Build {
        let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
        command.args([standard, "-O2", "-Wall", "-Wextra"]).arg(root.join("benches/peers/harness").join(source));
        command.arg("-I").arg(root.join("crates/softcuda/include"));
        let softcuda = place.libraries.iter().map(|folder| format!("-L{}", folder.display())).collect();
        let mut build = Build { command, last: softcuda };
        // They serve only where nvidia-cuda-crt is absent.
        build.last.extend(["-isystem".to_string(), root.join("python/stratalloc/csrc/stubs").display().to_string()]);
        build
    }

    fn define(&mut self, name: &str) -> &mut Build {
        self.command.arg(format!("-D{name}"));
        self
    }

    fn system(&mut self, folder: &Path) -> &mut Build {
        self.command.arg("-isystem").arg(folder);
        self
    }

    fn library(&mut self, folder: &Path, names: &[&str]) -> &mut Build {
        self.last.push(format!("-L{}", folder.display()));
        self.last.extend(names.iter().map(|name| format!("-l{name}")));
        self
    }

    /// Compiles the family's program against the CUDA runtime of that version.
    fn run(mut self, place: &Place, family: Family, cuda: u32) -> Result<(), String> {
        let runtime = format!("-l:libcudart.so.{cuda}");
        self.command.args(&self.last).args([&runtime, "-ldl", "-pthread"]).arg("-o").arg(place.program(family));
        succeed(&mut self.command)
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}, see above")),
        Err(error) => Err(format!("cannot run {command:?}: {error}")),
    }
}
