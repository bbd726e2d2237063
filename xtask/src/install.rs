//! `cargo xtask install`: the C library, its header, pkg-config files, the command and the preload library, in the places where other programs
//! look for them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use crate::validate::{command, target};

/// What is put where.
#[derive(Debug)]
pub(crate) struct Options {
    prefix: PathBuf,
    library_only: bool,
    dev: bool,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Options, String> {
        let (mut prefix, mut library_only, mut dev) = (None, false, false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--prefix" => prefix = words.next().filter(|prefix| !prefix.is_empty()),
                "--library-only" => library_only = true,
                "--dev" => dev = true,
                other => match other.strip_prefix("--prefix=") {
                    Some(_) => return Err("write `--prefix DIR`, in two words".to_string()),
                    None => return Err(format!("unknown option '{other}'")),
                },
            }
        }
        let prefix = PathBuf::from(prefix.ok_or("install wants --prefix DIR")?);
        Ok(Options { prefix, library_only, dev })
    }
}

/// What a program needs besides the static library: the C library's parts, and the unwinder.
const PRIVATE_LIBRARIES: &str = "-lgcc_s -lpthread -ldl -lm -lc";

/// Builds and copies. Whether all went well.
pub(crate) fn run(root: &Path, options: &Options) -> bool {
    match install(root, options) {
        Ok(files) => {
            files.iter().for_each(|file| println!("{}", file.display()));
            true
        }
        Err(message) => {
            eprintln!("install: {message}");
            false
        }
    }
}

fn install(root: &Path, options: &Options) -> Result<Vec<PathBuf>, String> {
    build(root, options)?;
    let manifest = fs::read_to_string(root.join("Cargo.toml")).map_err(|error| format!("Cargo.toml: {error}"))?;
    let version = value(&manifest, "version = \"", "\"").ok_or("Cargo.toml has no version")?;
    let source = fs::read_to_string(root.join("crates/capi/src/version.rs"));
    let source = source.map_err(|error| format!("version.rs: {error}"))?;
    let abi = value(&source, "STRATALLOC_ABI_VERSION: u32 = ", ";").ok_or("version.rs has no ABI version")?;
    // Where cargo runs is where a relative prefix counts from, not the root.
    let here = env::current_dir().map_err(|error| format!("no current folder: {error}"))?;
    let to = here.join(&options.prefix);
    let built = target(root).join(if options.dev { "debug" } else { "dist" });
    let built_command = target(root).join(if options.dev { "debug" } else { "release" });

    let mut files = Vec::new();
    let mut put = |from: &Path, to: PathBuf| -> Result<(), String> {
        copy(from, &to).map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))?;
        files.push(to);
        Ok(())
    };
    let lib = to.join("lib");
    let full = format!("libstratalloc.so.{version}");
    put(&built.join("libstratalloc_c.so"), lib.join(&full))?;
    put(&built.join("libstratalloc_c.a"), lib.join("libstratalloc.a"))?;
    for header in ["stratalloc.h", "stratalloc.hpp"] {
        put(&root.join("include").join(header), to.join("include").join(header))?;
    }
    if !options.library_only {
        put(&built_command.join("stratalloc"), to.join("bin/stratalloc"))?;
        if has_preload(root) {
            put(&built.join("libstratalloc_preload.so"), lib.join("libstratalloc_preload.so"))?;
        }
    }
    let soname = format!("libstratalloc.so.{abi}");
    let mut text_files = Vec::new();
    for (name, target) in [(soname.as_str(), full.as_str()), ("libstratalloc.so", soname.as_str())] {
        link(target, &lib.join(name)).map_err(|error| format!("{name}: {error}"))?;
        text_files.push(lib.join(name));
    }
    for (name, text) in package_files(version) {
        let path = lib.join("pkgconfig").join(name);
        let folder = path.parent().unwrap_or(&lib);
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
        text_files.push(path);
    }
    files.extend(text_files);
    Ok(files)
}

/// The C library alone, as it is installed, in `prefix`.
pub(crate) fn library(root: &Path, prefix: &Path) -> Result<(), String> {
    install(root, &Options { prefix: prefix.to_path_buf(), library_only: true, dev: false }).map(drop)
}

fn has_preload(root: &Path) -> bool {
    root.join("crates/preload/Cargo.toml").exists()
}

fn build(root: &Path, options: &Options) -> Result<(), String> {
    let mut builds = Vec::new();
    if options.dev {
        builds.push("build -p stratalloc-capi".to_string());
    } else {
        // Without the Rust library beside it, which would keep the linker from optimising across crates.
        builds.push("rustc --profile dist -p stratalloc-capi --lib --crate-type cdylib,staticlib".to_string());
    }
    if !options.library_only {
        let [fast, whole] = if options.dev { ["", ""] } else { ["--release ", "--profile dist "] };
        builds.push(format!("build {fast}-p stratalloc-cli"));
        if has_preload(root) {
            builds.push(format!("build {whole}-p stratalloc-preload"));
        }
    }
    for arguments in builds {
        let status = command("cargo", &arguments).current_dir(root).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(format!("`cargo {arguments}` fails"));
        }
    }
    Ok(())
}

/// The text of `text` between `before` and `after`.
fn value<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

/// Puts a file there in one step, so that a program that runs keeps the one it has.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let new = beside(to);
    fs::copy(from, &new)?;
    fs::rename(&new, to)
}

/// Makes a link there in one step.
fn link(target: &str, at: &Path) -> io::Result<()> {
    let new = beside(at);
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(&new, at)
}

/// A name beside a path, for what is not whole yet.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("file"));
    path.with_file_name(format!(".{}.new", name.display()))
}

/// The pkg-config files. They find the prefix from where they lie, so that it can be moved, and have spaces.
fn package_files(version: &str) -> [(&'static str, String); 2] {
    let file = |name: &str, what: &str, libs: &str| {
        format!(
            "prefix=${{pcfiledir}}/../..\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\n\
             Name: {name}\nDescription: One allocator for GPU memory{what}\nVersion: {version}\n\
             Cflags: -I${{includedir}}\n{libs}\n"
        )
    };
    let shared = format!("Libs: -L${{libdir}} -lstratalloc\nLibs.private: {PRIVATE_LIBRARIES}");
    let fixed = format!("Libs: -L${{libdir}} -l:libstratalloc.a {PRIVATE_LIBRARIES}");
    [
        ("stratalloc.pc", file("stratalloc", "", &shared)),
        ("stratalloc-static.pc", file("stratalloc-static", ", linked statically", &fixed)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--dev", "--prefix", "a b", "--library-only"]).unwrap();
        assert!(options.dev && options.library_only && options.prefix == Path::new("a b"));
        for words in [&[][..], &["--prefix"], &["--prefix", ""], &["--prefix=x"], &["x"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }
}
