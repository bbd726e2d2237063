//! Documents do not drift: what they name between backticks exists.

use std::collections::HashSet;
use std::path::Path;

use super::mask::is_word;
use super::{File, Violation};

const DOCUMENTS: [&str; 5] = ["README.md", "ARCHITECTURE.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// Names that belong to others: NVIDIA's and PyTorch's by their beginnings, and single ones.
const FOREIGN_PREFIXES: [&str; 12] =
    ["cuda", "CUDA", "CU_", "CUmem", "nccl", "NCCL", "PYTORCH_", "TORCH_", "torch", "aten", "rmm", "io_uring"];
const FOREIGN_CRATES: [&str; 12] =
    ["std", "core", "alloc", "libc", "loom", "cudarc", "libloading", "parking_lot", "candle", "burn", "c10", "at"];
const FOREIGN: [&str; 9] = [
    "CUDAPluggableAllocator",
    "CUDACachingAllocator",
    "ExpandableSegment",
    "MemPool",
    "OffsetAllocator",
    "PyTorch",
    "GMLake",
    "DeviceMemoryResource",
    "malloc",
];

/// A file of the project is recognised by its ending.
const ENDINGS: [&str; 9] = [".rs", ".toml", ".md", ".sh", ".py", ".yml", ".cu", ".ptx", ".lock"];

pub(super) fn check(root: &Path, files: &[File]) -> Vec<Violation> {
    let known = identifiers(files);
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| DOCUMENTS.contains(&file.path.as_str())) {
        let mut fenced = false;
        for (line, text) in file.text.lines().enumerate() {
            if text.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                // The odd pieces between backticks are code.
                for name in text.split('`').skip(1).step_by(2) {
                    if let Some(problem) = problem_of(name, root, files, &known) {
                        violations.push(file.violation(line + 1, problem));
                    }
                }
            }
        }
    }
    violations
}

/// Every identifier of the project's code.
fn identifiers(files: &[File]) -> HashSet<&str> {
    let texts = files.iter().filter(|file| !file.path.ends_with(".md"));
    texts
        .flat_map(|file| match &file.masked {
            Some(masked) => masked.code.as_str().split(not_word as fn(char) -> bool),
            None => file.text.as_str().split(not_word as fn(char) -> bool),
        })
        .collect()
}

fn not_word(c: char) -> bool {
    !is_word(c)
}

fn problem_of(name: &str, root: &Path, files: &[File], known: &HashSet<&str>) -> Option<String> {
    if is_path(name, root) {
        // `pool/mod.rs` is understood as well as `src/pool/mod.rs`.
        let ending = format!("/{name}");
        let partly = files.iter().any(|file| file.path.ends_with(&ending));
        return (!partly && !root.join(name).exists()).then(|| format!("`{name}` does not exist"));
    }
    if name.starts_with("STRATALLOC_") && name.chars().all(is_word) {
        let read = files.iter().any(|file| !file.path.ends_with(".md") && file.text.contains(name));
        return (!read).then(|| format!("nothing reads `{name}`"));
    }
    let segments = identifier_path(name)?;
    let missing = segments.iter().find(|segment| !known.contains(**segment))?;
    Some(format!("`{name}`: there is no `{missing}`"))
}

/// Whether `name` means a file or folder of the project.
fn is_path(name: &str, root: &Path) -> bool {
    let plain = |c: char| is_word(c) || "./-+".contains(c);
    if !name.chars().all(plain) || name.starts_with(['/', '.']) && !name.starts_with(".c") {
        return false;
    }
    if ENDINGS.iter().any(|ending| name.ends_with(ending) && name.len() > ending.len()) {
        return true;
    }
    match name.split_once('/') {
        Some((first, rest)) => rest.is_empty() || root.join(first).is_dir(),
        None => false,
    }
}

/// The segments of a Rust path of ours that can be checked: `A::b`, `CamelCase`, `function()`, `macro!`.
fn identifier_path(name: &str) -> Option<Vec<&str>> {
    let called = name.strip_suffix("()").or_else(|| name.strip_suffix('!'));
    let path = called.unwrap_or(name);
    let segments: Vec<&str> = path.split("::").collect();
    let valid =
        |segment: &&str| segment.starts_with(|c: char| c.is_alphabetic() || c == '_') && !segment.contains(not_word);
    if !segments.iter().all(valid) {
        return None;
    }
    let first = segments[0];
    let is_type = first.starts_with(char::is_uppercase) && first.contains(char::is_lowercase);
    if segments.len() == 1 && called.is_none() && !is_type {
        return None;
    }
    let cuda_call = |name: &str| name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(char::is_uppercase));
    let foreign = FOREIGN_PREFIXES.iter().any(|prefix| first.starts_with(prefix))
        || segments.len() > 1 && FOREIGN_CRATES.contains(&first)
        || segments.iter().any(|segment| FOREIGN.contains(segment) || cuda_call(segment));
    let segments =
        segments.into_iter().filter(|segment| !matches!(*segment, "crate" | "self" | "stratalloc")).collect();
    (!foreign).then_some(segments)
}
