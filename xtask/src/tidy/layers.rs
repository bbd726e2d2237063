//! The shape of the library: a module names only modules below it.

use super::mask::is_word;
use super::{File, Violation};

/// The rank of every module of `src/`. A module names only modules of lower rank, and itself.
const RANKS: &[(&str, u32)] = &[
    ("interop", 10),
    ("allocator", 9),
    ("snapshot", 8),
    ("report", 8),
    ("kv", 7),
    ("admit", 7),
    ("tier", 6),
    ("defrag", 6),
    ("plan", 3),
    ("cache", 5),
    ("pool", 4),
    ("debug", 3),
    ("stream", 3),
    ("vm", 3),
    ("block", 2),
    ("driver", 2),
    ("config", 2),
    ("telemetry", 1),
    ("error", 1),
    ("units", 0),
    ("sync", 0),
];

/// These meet in `pool` only, whatever their ranks.
const STRANGERS: [&str; 3] = ["block", "vm", "stream"];

pub(super) fn check(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files {
        let Some(masked) = &file.masked else { continue };
        let code = without_test_modules(&masked.code);
        if let Some(path) = file.path.strip_prefix("src/")
            && path != "lib.rs"
            && !path.split('/').any(|part| part == "tests" || part == "tests.rs")
        {
            check_module(file, path, &code, &mut violations);
        }
        check_cudarc(file, &code, &mut violations);
        if file.path == "src/block/mod.rs" && !masked.code.contains("#![forbid(unsafe_code)]") {
            violations.push(file.violation(1, "`block` must say #![forbid(unsafe_code)]"));
        }
    }
    violations
}

fn check_module(file: &File, path: &str, code: &str, violations: &mut Vec<Violation>) {
    let own = path.split(['/', '.']).next().unwrap_or(path);
    let Some(rank) = rank_of(own) else {
        let message = format!("module `{own}` has no rank: give it one in RANKS of xtask/src/tidy/layers.rs");
        return violations.push(file.violation(1, message));
    };
    for (line, name) in named_modules(code, depth_of(path)) {
        if name == own {
            continue;
        }
        match rank_of(&name) {
            None => {
                let message = format!("`crate::{name}` is no module: name the module that defines it");
                violations.push(file.violation(line, message));
            }
            Some(other) if other >= rank => {
                let message =
                    format!("`{own}` (rank {rank}) names `{name}` (rank {other}): only lower ranks may be named");
                violations.push(file.violation(line, message));
            }
            Some(_) if STRANGERS.contains(&own) && STRANGERS.contains(&name.as_str()) => {
                let message = format!("`{own}` names `{name}`: block, vm and stream meet in `pool` only");
                violations.push(file.violation(line, message));
            }
            Some(_) => {}
        }
    }
}

fn check_cudarc(file: &File, code: &str, violations: &mut Vec<Violation>) {
    let ours = file.path.starts_with("src/") || file.path.starts_with("crates/");
    if !ours || file.path.starts_with("src/driver/") || file.path == "src/interop.rs" {
        return;
    }
    for (line, text) in code.lines().enumerate() {
        if words(text).any(|word| word == "cudarc") {
            violations.push(file.violation(line + 1, "only src/driver/ and src/interop.rs may name cudarc"));
        }
    }
}

fn rank_of(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// How many `super::` lead from a file of `src/` to the crate's root.
fn depth_of(path: &str) -> usize {
    path.split('/').count() - usize::from(path.ends_with("/mod.rs"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
}

/// `code` with the bodies of its `#[cfg(test)] mod` blocks blanked.
fn without_test_modules(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let after = &rest[at..];
        let Some(open) = after.find(['{', ';']) else { break };
        let is_module = words(&after["#[cfg(test)]".len()..open]).any(|word| word == "mod");
        if !is_module || after[open..].starts_with(';') {
            out.push_str(&rest[..at + open + 1]);
            rest = &after[open + 1..];
            continue;
        }
        let length = open + braces_length(&after[open..]);
        out.push_str(&rest[..at]);
        out.extend(after[..length].matches('\n'));
        rest = &after[length..];
    }
    out + rest
}

/// The length of the `{...}` that `text` starts with.
fn braces_length(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// The top-level modules that `code` names, by line: after `crate::`, and after as many `super::` as lead to the root.
fn named_modules(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut start = 0;
    while let Some(length) = code[start..].find("::") {
        let at = start + length;
        start = at + 2;
        let head = code[..at].rfind(|c: char| !is_word(c)).map_or(0, |before| before + 1);
        let rest = match &code[head..at] {
            "crate" => &code[start..],
            "super" if !code[..head].ends_with("::") || code[..head].ends_with("self::") => {
                let mut rest = &code[start..];
                let mut levels = 1;
                while let Some(next) = rest.strip_prefix("super::") {
                    rest = next;
                    levels += 1;
                }
                if levels < depth {
                    continue;
                }
                rest
            }
            _ => continue,
        };
        let line = code[..at].matches('\n').count() + 1;
        found.extend(first_names(rest).into_iter().map(|name| (line, name)));
    }
    found
}

/// The first name of each path that `text` starts with: `a::b` gives a, `{a::b, c::{d, e}}` gives a and c.
fn first_names(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        let name: String = text.chars().take_while(|c| is_word(*c)).collect();
        // A macro of this crate, or a glob: neither names a module.
        let is_macro = text[name.len()..].starts_with('!');
        return if name.is_empty() || is_macro { Vec::new() } else { vec![name] };
    };
    let group = &group[..braces_length(text).saturating_sub(2)];
    let (mut names, mut depth, mut item) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(first_names(group[item..at].trim()));
                item = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| name != "self");
    names
}
