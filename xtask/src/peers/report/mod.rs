//! The answers, for people and for programs.

pub(super) mod json;
pub(super) mod markdown;
pub(super) mod plot;

use std::fs;
use std::path::Path;
use std::process::Command;

use super::options::Options;
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
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": a processor without a name");
        let model = model.trim_start_matches([' ', '\t', ':']);
        let versions = [
            format!("stratalloc {}", said("git", &["describe", "--always", "--dirty"])),
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
