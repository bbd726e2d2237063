//! The house rules, checked: each rule is a function from the project's files to violations.

mod code;
mod documents;
mod layers;
mod mask;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::Path;

use mask::Masked;

/// A text file of the project.
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
    /// Code and comments apart, for Rust files.
    masked: Option<Masked>,
}

impl File {
    fn new(path: &str, text: String) -> File {
        let masked = path.ends_with(".rs").then(|| Masked::new(&text));
        File { path: path.to_string(), text, masked }
    }

    fn violation(&self, line: usize, message: impl Into<String>) -> Violation {
        Violation { path: self.path.clone(), line, message: message.into() }
    }
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    /// From 1 on; 0 for the whole file.
    line: usize,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Checks the project at `root` and prints what is wrong with it. Whether nothing is.
pub(crate) fn run(root: &Path) -> bool {
    let (count, violations) = check(root);
    for violation in &violations {
        println!("{violation}");
    }
    println!("tidy: {count} files, {} violations", violations.len());
    violations.is_empty()
}

/// How many files there are, and every broken rule in them.
fn check(root: &Path) -> (usize, Vec<Violation>) {
    let mut files = Vec::new();
    collect(root, "", &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut violations = layers::check(&files);
    violations.extend(code::check(&files));
    violations.extend(documents::check(root, &files));
    violations.sort();
    (files.len(), violations)
}

/// Reads the text files below `root/folder`, leaving out what is built, downloaded or recorded.
fn collect(root: &Path, folder: &str, files: &mut Vec<File>) {
    const SKIPPED: [&str; 7] = ["target", "corpus", "artifacts", "node_modules", "__pycache__", "venv", "dist"];
    const HIDDEN: [&str; 3] = [".ci", ".cargo", ".github"];
    const TEXT: [&str; 14] = ["rs", "toml", "md", "sh", "py", "pyi", "c", "cc", "cpp", "h", "hpp", "cu", "yml", "json"];
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            let hidden = name.starts_with('.') && !HIDDEN.contains(&name.as_str());
            if !hidden && !SKIPPED.contains(&name.as_str()) {
                collect(root, &path, files);
            }
        } else if kind.is_file() {
            let extension = Path::new(&name).extension().and_then(|extension| extension.to_str()).unwrap_or("");
            if (TEXT.contains(&extension) || path.starts_with(".ci/"))
                && let Ok(text) = fs::read_to_string(root.join(&path))
            {
                files.push(File::new(&path, text));
            }
        }
    }
}
