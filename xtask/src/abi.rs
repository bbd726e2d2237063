//! The C interface does not change unseen: the header is generated, the symbols are listed, and both are committed.

use std::fs;
use std::path::Path;

use crate::validate::{command, output, succeeds, target};

const HEADER: &str = "include/stratalloc.h";
const SYMBOLS: &str = "crates/capi/symbols.txt";

/// Other versions lay headers out in other ways.
const CBINDGEN: &str = "0.29.4";

/// Compares header and symbols with the code, or rewrites them. Whether all is well.
pub(crate) fn run(root: &Path, bless: bool) -> bool {
    match check(root, bless) {
        Ok(same) => same,
        Err(message) => {
            eprintln!("abi: {message}");
            false
        }
    }
}

fn check(root: &Path, bless: bool) -> Result<bool, String> {
    let header = header(root)?;
    let symbols = symbols(root)?;
    check_consistency(&header, &symbols)?;
    // Both, so that one run shows all that has changed.
    let same_header = settle(root, HEADER, &header, bless)?;
    let same_symbols = settle(root, SYMBOLS, &symbols, bless)?;
    let count = symbols.lines().count();
    println!("abi: {count} symbols, {} lines of header", header.lines().count());
    Ok(same_header && same_symbols)
}

fn header(root: &Path) -> Result<String, String> {
    let version = output(root, "cbindgen", "--version").unwrap_or_default();
    if version.split_whitespace().nth(1) != Some(CBINDGEN) {
        println!("$ cargo install cbindgen --version ={CBINDGEN} --locked");
        let mut install = command("cargo", &format!("install cbindgen --version ={CBINDGEN} --locked --force"));
        // The project's own target folder would make it part of what is cached.
        let installed = install.env_remove("CARGO_TARGET_DIR").current_dir(root).status();
        if !installed.is_ok_and(|status| status.success()) {
            return Err(format!("cbindgen {CBINDGEN} cannot be installed: is there a network?"));
        }
    }
    let generated = output(root, "cbindgen", "--quiet --config crates/capi/cbindgen.toml crates/capi");
    let generated = generated.ok_or("cbindgen fails: run `cbindgen --config crates/capi/cbindgen.toml crates/capi`")?;
    Ok(reworded(&generated))
}

/// Rust's words for what callers promise are not C's.
fn reworded(header: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut promised = false;
    for line in header.lines() {
        let (indent, text) = line.split_at(line.len() - line.trim_start().len());
        if text == "// # Safety" {
            promised = true;
        } else if promised {
            promised = false;
            lines.push(format!("{indent}// Required: {}", text.trim_start_matches("// ")));
        } else {
            lines.push(line.to_string());
        }
    }
    lines.join("\n") + "\n"
}

/// What the shared library defines for others, one name a line.
fn symbols(root: &Path) -> Result<String, String> {
    if !succeeds(root, "cargo", "build --quiet -p stratalloc-capi") {
        return Err("`cargo build -p stratalloc-capi` fails".to_string());
    }
    let library = target(root).join("debug/libstratalloc_c.so");
    let listed = command("nm", "-D --defined-only --format=posix").arg(&library).output();
    let listed = listed.map_err(|error| format!("nm does not start: {error}; install binutils"))?;
    if !listed.status.success() {
        return Err(format!("nm cannot read {}", library.display()));
    }
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_unstable();
    Ok(names.join("\n") + "\n")
}

/// Every symbol is declared, every function that is declared is there, and all bear our name.
fn check_consistency(header: &str, symbols: &str) -> Result<(), String> {
    if let Some(stranger) = symbols.lines().find(|name| !name.starts_with("stratalloc_")) {
        return Err(format!("the library exports `{stranger}`: no program expects it there"));
    }
    let code: Vec<&str> = header.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let declared = |name: &str| code.contains(&format!("{name}("));
    if let Some(name) = symbols.lines().find(|name| !declared(name)) {
        return Err(format!("`{name}` is exported, but not in {HEADER}"));
    }
    for (at, _) in code.match_indices("stratalloc_") {
        let name: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if code[at + name.len()..].starts_with('(') && !symbols.lines().any(|symbol| symbol == name) {
            return Err(format!("`{name}` is in {HEADER}, but not exported"));
        }
    }
    Ok(())
}

/// Compares a committed file with what it should be, or writes it. Whether it was, or is now, the same.
fn settle(root: &Path, path: &str, wanted: &str, bless: bool) -> Result<bool, String> {
    let committed = root.join(path);
    if fs::read_to_string(&committed).is_ok_and(|text| text == wanted) {
        return Ok(true);
    }
    let written = if bless { committed.clone() } else { target(root).join("abi").join(path) };
    let folder = written.parent().unwrap_or(root);
    let write = fs::create_dir_all(folder).and_then(|()| fs::write(&written, wanted));
    write.map_err(|error| format!("{}: {error}", written.display()))?;
    if bless {
        println!("abi: {path} is rewritten");
        return Ok(true);
    }
    println!("abi: {path} is not what the code says:");
    let shown = command("diff", "-u").arg(&committed).arg(&written).status();
    if shown.is_err() {
        println!("compare it with {}", written.display());
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "// calls stratalloc_x(\nint stratalloc_a(int);\ntypedef bool (*stratalloc_f)(int);\n";

    #[test]
    fn header_and_library_agree() {
        assert_eq!(check_consistency(HEADER, "stratalloc_a\n"), Ok(()));
        for (symbols, words) in [
            ("memcpy\nstratalloc_a\n", "exports `memcpy`"),
            ("stratalloc_a\nstratalloc_b\n", "`stratalloc_b` is exported, but"),
            ("stratalloc_a\nstratalloc_x\n", "`stratalloc_x` is exported, but"),
            ("\n", "no program expects it"),
        ] {
            let problem = check_consistency(HEADER, symbols).unwrap_err();
            assert!(problem.contains(words), "{symbols:?}: {problem}");
        }
        let problem = check_consistency("int stratalloc_a(int), stratalloc_b(int);", "stratalloc_a\n").unwrap_err();
        assert!(problem.contains("`stratalloc_b` is in"), "{problem}");
    }

    #[test]
    fn promises_are_reworded() {
        let header = "// Does it.\n//\n// # Safety\n// `a` is null\n// or not.\nint f(int *a);\n";
        assert_eq!(reworded(header), "// Does it.\n//\n// Required: `a` is null\n// or not.\nint f(int *a);\n");
    }
}
