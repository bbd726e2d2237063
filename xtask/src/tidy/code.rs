//! Rules on single files: length, SAFETY comments, leftovers, paths of somebody's machine.

use super::mask::is_word;
use super::{File, Violation};

/// The most lines of a Rust file, code and tests.
const MAX_LINES: usize = 600;

/// Where a machine's own folders begin. In two parts, so that this file does not break the rule.
const MACHINE_FOLDERS: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];

const LEFTOVER_MACROS: [&str; 3] = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("db", "g!")];
const LEFTOVER_WORDS: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

pub(super) fn check(files: &[File]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in files {
        check_text(file, &mut violations);
        if let Some(masked) = &file.masked {
            let lines = file.text.lines().count();
            if lines > MAX_LINES {
                let message = format!("{lines} lines, of at most {MAX_LINES}: split the file");
                violations.push(file.violation(0, message));
            }
            for (line, code) in masked.code.lines().enumerate() {
                for name in LEFTOVER_MACROS {
                    if starts_of(code, name).next().is_some() {
                        violations.push(file.violation(line + 1, format!("`{name}` is left over")));
                    }
                }
            }
            check_unsafe(file, &masked.code, &masked.comments, &mut violations);
        }
    }
    violations
}

fn check_text(file: &File, violations: &mut Vec<Violation>) {
    for (line, text) in file.text.lines().enumerate() {
        for folder in MACHINE_FOLDERS {
            // `a/work/b` is a relative path, and `https://host/work/` is no path at all.
            let absolute = |at: &usize| !text[..*at].ends_with(|c: char| is_word(c) || "-./:*}>".contains(c));
            if text.match_indices(folder).map(|(at, _)| at).any(|at| absolute(&at)) {
                violations.push(file.violation(line + 1, format!("`{folder}` is a folder of one machine")));
            }
        }
        for word in LEFTOVER_WORDS {
            if starts_of(text, word).any(|at| !text[at + word.len()..].starts_with(is_word)) {
                violations.push(file.violation(line + 1, format!("`{word}` is left over")));
            }
        }
    }
}

/// Where `name` occurs in `text` without being the end of a longer word.
fn starts_of<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(name).map(|(at, _)| at).filter(|&at| !text[..at].ends_with(is_word))
}

fn check_unsafe(file: &File, code: &str, comments: &str, violations: &mut Vec<Violation>) {
    let code_lines: Vec<&str> = code.lines().collect();
    let comment_lines: Vec<&str> = comments.lines().collect();
    for at in starts_of(code, "unsafe") {
        let what = code[at + "unsafe".len()..].trim_start();
        if needs_reason(what) {
            let line = code[..at].matches('\n').count();
            if !has_reason(&code_lines, &comment_lines, line) {
                violations.push(file.violation(line + 1, "`unsafe` without a SAFETY comment or a `# Safety` section"));
            }
        }
    }
}

/// Whether what follows `unsafe` is a block, an implementation, a trait or a function, and not a function's type.
fn needs_reason(what: &str) -> bool {
    let what = match what.strip_prefix("extern") {
        // Strings are blanked: `extern "C"` reads `extern ""`.
        Some(abi) => abi.trim_start().trim_start_matches("\"\"").trim_start(),
        None => what,
    };
    let word: String = what.chars().take_while(|c| is_word(*c)).collect();
    match word.as_str() {
        "" => what.starts_with('{'),
        "fn" => !what["fn".len()..].trim_start().starts_with('('),
        word => matches!(word, "impl" | "trait"),
    }
}

/// Whether a reason stands on this line or right above the statement that it belongs to.
fn has_reason(code: &[&str], comments: &[&str], line: usize) -> bool {
    let is_reason = |line: usize| {
        let comment = comments.get(line).copied().unwrap_or("");
        comment.contains("SAFETY:") || comment.contains("# Safety")
    };
    if is_reason(line) {
        return true;
    }
    for above in (0..line).rev() {
        let code = code.get(above).copied().unwrap_or("").trim();
        let comment = comments.get(above).copied().unwrap_or("").trim();
        if is_reason(above) && code.is_empty() {
            return true;
        }
        let blank = code.is_empty() && comment.is_empty();
        let attribute = code.starts_with("#[") || code.starts_with(')') && code.ends_with(']');
        if blank || (code.ends_with([';', '{', '}', ',']) && !attribute) {
            return false;
        }
    }
    false
}
