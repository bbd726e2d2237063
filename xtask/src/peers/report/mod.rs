//! The answers, for people and for programs.

mod json;
mod markdown;
mod plot;
pub(super) mod readme;
pub(super) mod state;
pub(super) mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::options::Options;
use super::questions::{Answers, Trace};
use super::roster::Peer;
use super::setup;
use crate::torch::venv;

/// What was run, where, and of which versions.
pub(super) struct About {
    pub(super) command: String,
    pub(super) machine: String,
    pub(super) versions: String,
    pub(super) rounds: usize,
}

impl About {
    pub(super) fn new(root: &Path, options: &Options) -> About {
        let said = |program: &str, words: &[&str]| {
            let output = Command::new(program).args(words).current_dir(root).output().ok();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            text.lines().next().unwrap_or("unknown").trim().to_string()
        };
        // What this command writes changes nothing of what it measures.
        let changed =
            ["diff", "--name-only", "HEAD", "--", ".", ":!benches/peers/RESULTS.md", ":!benches/peers/results.json"];
        let changed =
            Command::new("git").args(changed).args([":!benches/peers/*.svg", ":!README.md"]).current_dir(root).output();
        let changed = changed.is_ok_and(|output| !output.stdout.is_empty());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": a processor without a name");
        let model = model.trim_start_matches([' ', '\t', ':']);
        let versions = [
            format!(
                "stratalloc {}{}",
                said("git", &["rev-parse", "--short", "HEAD"]),
                if changed { " with changes" } else { "" }
            ),
            venv::TORCH.replace("==", " "),
            setup::RMM.replace("==", " "),
            said("rustc", &["--version"]),
            said(&std::env::var("CXX").unwrap_or_else(|_| "c++".to_string()), &["--version"]),
        ];
        About {
            command: format!("cargo xtask peers {}", options.words).trim().to_string(),
            machine: format!("{cores} cores ({model}), no GPU"),
            versions: versions.join(", "),
            rounds: options.rounds(),
        }
    }
}

/// Writes all answers there are.
pub(super) fn write(
    folder: &Path,
    about: &About,
    traces: &[Trace],
    peers: &[Peer],
    answers: &Answers,
) -> Result<Vec<PathBuf>, String> {
    let written = [
        ("RESULTS.md", markdown::page(about, traces, peers, answers)),
        (state::FILE, json::all(about, traces, answers)),
        ("ratios.svg", plot::ratios(traces, peers, answers)),
        ("pareto.svg", plot::pareto(traces, peers, answers)),
    ];
    let mut paths = Vec::new();
    for (name, text) in written {
        // A plot of a question that was not asked has nothing to show.
        if text.is_empty() {
            continue;
        }
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}
