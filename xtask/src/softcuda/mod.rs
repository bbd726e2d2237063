//! `cargo xtask softcuda`: the software device as CUDA's libraries, laid out in one folder for `LD_LIBRARY_PATH`.

mod cudart;
mod elf;
mod install;
mod noop;

use std::path::{Path, PathBuf};
use std::process::Command;

/// What to build, and where it goes.
pub(crate) struct Options {
    out: Option<PathBuf>,
    torch: Option<PathBuf>,
    /// Cargo's profile. Tests take `dev`, which they have built anyway.
    profile: String,
}

impl Options {
    /// Into `out`, with what the PyTorch wheel in `site_packages` names.
    pub(crate) fn for_torch(out: &Path, site_packages: &Path) -> Options {
        let profile = "release".to_string();
        Options { out: Some(out.to_path_buf()), torch: Some(site_packages.to_path_buf()), profile }
    }

    /// Into `out`, with CUDA's libraries alone.
    pub(crate) fn plain(out: &Path) -> Options {
        Options { out: Some(out.to_path_buf()), torch: None, profile: "release".to_string() }
    }

    pub(crate) fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options { out: None, torch: None, profile: "release".to_string() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| format!("{word} wants a value"));
            match *word {
                "--out" => options.out = Some(PathBuf::from(value?)),
                "--torch" => options.torch = Some(PathBuf::from(value?)),
                "--profile" => options.profile = (*value?).to_string(),
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        Ok(options)
    }
}

/// Builds and lays out. Whether all went well.
pub(crate) fn run(root: &Path, options: &Options) -> bool {
    match lay_out(root, options) {
        Ok(out) => {
            println!("LD_LIBRARY_PATH={}", out.display());
            true
        }
        Err(message) => {
            eprintln!("softcuda: {message}");
            false
        }
    }
}

/// The folder of the libraries, once they are there.
pub(crate) fn lay_out(root: &Path, options: &Options) -> Result<PathBuf, String> {
    let target = target_folder(root);
    build(root, &options.profile)?;
    // Cargo calls the folder of its profile `dev` otherwise.
    let built = target.join(if options.profile == "dev" { "debug" } else { &options.profile });
    let out = options.out.clone().unwrap_or_else(|| target.join("softcuda"));
    std::fs::create_dir_all(&out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
    let out = out.canonicalize().map_err(|error| format!("cannot find {}: {error}", out.display()))?;

    install::copy(&built.join("libsoftcuda.so"), &out.join("libcuda.so.1"))?;
    install::copy(&built.join("libsoftnvml.so"), &out.join("libnvidia-ml.so.1"))?;
    let archive = built.join("libsoftcudart.a");
    for major in [12, 13] {
        cudart::link(&archive, major, &out)?;
    }
    // Links, not copies: a process that asks for both names gets one library.
    install::link("libcuda.so.1", &out.join("libcuda.so"))?;
    install::link("libcudart.so.13", &out.join("libcudart.so"))?;
    if let Some(torch) = &options.torch {
        noop::generate(torch, &out)?;
    }
    Ok(out)
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder(root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root.join(folder),
        None => root.join("target"),
    }
}

fn build(root: &Path, profile: &str) -> Result<(), String> {
    let arguments = ["build", "--profile", profile, "--quiet", "-p", "softcuda", "-p", "softcudart", "-p", "softnvml"];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(arguments).current_dir(root).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the build failed, see above".to_string()),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}
