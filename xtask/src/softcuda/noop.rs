//! Libraries that do nothing, for all that a PyTorch wheel names beside the driver and the runtime.
//!
//! Which functions there are, and in which version nodes, is read from the wheel. Nearly all of them return 0, which is
//! success everywhere; the others are in `noop.c` beside this file, under the names that they have there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::elf::{self, Wanted};
use super::install;

/// Bodies that are not "return 0".
const SPECIAL: &str = include_str!("noop.c");

/// The wheel names functions of these libraries without a version, which tells the library by how a name begins.
const PREFIXES: &[(&str, &str)] = &[
    ("cublasLt", "libcublasLt.so"),
    ("cublas", "libcublas.so"),
    ("cudnn", "libcudnn.so"),
    ("cufft", "libcufft.so"),
    ("cuFile", "libcufile.so"),
    ("cupti", "libcupti.so"),
    ("curand", "libcurand.so"),
    ("cusolver", "libcusolver.so"),
    ("cusparseLt", "libcusparseLt.so"),
    ("cusparse", "libcusparse.so"),
    ("nccl", "libnccl.so"),
    ("pnccl", "libnccl.so"),
    ("nvJitLink", "libnvJitLink.so"),
    ("nvrtc", "libnvrtc.so"),
    ("nvshmem", "libnvshmem_host.so"),
    ("nvtx", "libnvToolsExt.so"),
];

/// Libraries of this project's own.
const OWN: &[&str] = &["libcuda.so", "libcudart.so", "libnvidia-ml.so"];

/// A library to be made: its functions, by version node; the empty node is none.
type Library = BTreeMap<String, BTreeSet<String>>;

/// Generates and links the libraries into `out`.
pub(super) fn generate(site_packages: &Path, out: &Path) -> Result<(), String> {
    let files = shared_objects(site_packages)?;
    let mut stamp = format!("{SPECIAL}\n{PREFIXES:?}\n");
    for file in &files {
        stamp.push_str(&install::fingerprint(file)?);
        stamp.push('\n');
    }
    let stamp_file = out.join(".noop.stamp");
    if fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    let libraries = libraries(&files)?;
    let mut functions = 0;
    for (name, library) in &libraries {
        functions += library.values().map(BTreeSet::len).sum::<usize>();
        link(name, library, out)?;
    }
    println!("{} libraries that do nothing, with {functions} functions", libraries.len());
    install::write(&stamp_file, stamp.as_bytes())
}

/// The wheel's shared objects, in order.
fn shared_objects(site_packages: &Path) -> Result<Vec<PathBuf>, String> {
    let torch = site_packages.join("torch");
    if !torch.join("lib").is_dir() {
        return Err(format!(
            "{} has no torch/lib: name the site-packages folder of a PyTorch",
            site_packages.display()
        ));
    }
    let mut files = Vec::new();
    for folder in [torch.clone(), torch.join("lib")] {
        let entries = fs::read_dir(&folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
        for entry in entries {
            let path = entry.map_err(|error| format!("cannot read {}: {error}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && (name.ends_with(".so") || name.contains(".so.")) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a library is one of CUDA's, and none of this project's own.
fn is_wanted(name: &str) -> bool {
    let stem = name.split(".so").next().unwrap_or(name);
    let is = |known: &str| stem == known.trim_end_matches(".so");
    PREFIXES.iter().any(|(_, library)| is(library)) && !OWN.iter().any(|own| is(own))
}

fn libraries(files: &[PathBuf]) -> Result<BTreeMap<String, Library>, String> {
    let mut libraries: BTreeMap<String, Library> = BTreeMap::new();
    let mut loose = BTreeSet::new();
    for file in files {
        let Some(wants) = elf::wants(file)? else { continue };
        for name in wants.libraries.into_iter().filter(|name| is_wanted(name)) {
            libraries.entry(name).or_default();
        }
        for Wanted { name, from } in wants.symbols {
            match from {
                Some((library, node)) if is_wanted(&library) => {
                    libraries.entry(library).or_default().entry(node).or_default().insert(name);
                }
                Some(_) => {}
                None => {
                    loose.insert(name);
                }
            }
        }
    }
    for name in loose {
        let Some((_, stem)) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)) else { continue };
        let is_it = |library: &&String| library.split(".so").next() == stem.split(".so").next();
        let Some(library) = libraries.keys().find(is_it).cloned() else { continue };
        libraries.entry(library).or_default().entry(String::new()).or_default().insert(name);
    }
    Ok(libraries)
}

/// The functions whose bodies are in `noop.c`: each begins a line with its type and its name.
fn special_names() -> BTreeSet<&'static str> {
    let name = |line: &'static str| {
        let head = line.strip_prefix("NOOP ")?.split('(').next()?;
        Some(head.rsplit([' ', '*']).next()?.trim())
    };
    SPECIAL.lines().filter_map(name).collect()
}

/// The C source of a library with these functions.
fn source(functions: &BTreeSet<&String>) -> String {
    let special = special_names();
    let mut text = String::from(SPECIAL);
    for name in functions.iter().filter(|name| !special.contains(name.as_str())) {
        let body = if name.contains("ErrorString") || name.contains("StatusString") || name.contains("ErrorName") {
            format!("const char *{name}(void) {{ return \"the software device computes nothing\"; }}\n")
        } else if makes_handle(name) {
            format!("int {name}(void **first) {{ return make_handle(first); }}\n")
        } else {
            format!("long {name}(void) {{ return 0; }}\n")
        };
        text.push_str(&body);
    }
    text
}

/// Whether a function writes a new handle through its first argument.
fn makes_handle(name: &str) -> bool {
    ["Create", "_create", "CommInit", "CommSplit"].iter().any(|part| name.contains(part))
}

fn link(name: &str, library: &Library, out: &Path) -> Result<(), String> {
    let functions: BTreeSet<&String> = library.values().flatten().collect();
    let source_file = out.join(format!(".{name}.c"));
    install::write(&source_file, source(&functions).as_bytes())?;
    let script_file = out.join(format!(".{name}.version"));
    let script = version_script(library);
    install::write(&script_file, script.as_bytes())?;
    let arguments = [
        "-w".to_string(),
        "-fno-builtin".to_string(),
        "-ffunction-sections".to_string(),
        "-Wl,--gc-sections".to_string(),
        source_file.display().to_string(),
        format!("-Wl,--version-script={}", script_file.display()),
    ];
    let stamp = format!("{}\n{script}", source(&functions));
    install::shared_library(&out.join(name), &stamp, &arguments)
}

/// One node for each that the wheel asks for; functions without a version have a script without a name, which must be
/// the only one.
fn version_script(library: &Library) -> String {
    let list = |functions: &BTreeSet<String>| functions.iter().map(|name| format!("    {name};\n")).collect::<String>();
    let named: Vec<_> = library.iter().filter(|(node, _)| !node.is_empty()).collect();
    let loose = library.get("").cloned().unwrap_or_default();
    if named.is_empty() {
        let global = if loose.is_empty() { String::new() } else { format!("  global:\n{}", list(&loose)) };
        return format!("{{\n{global}  local:\n    *;\n}};\n");
    }
    let mut text = String::new();
    for (index, (node, functions)) in named.iter().enumerate() {
        let mut all = (*functions).clone();
        if index == 0 {
            // Who asks without a version takes any.
            all.extend(loose.iter().cloned());
        }
        let local = if index == 0 { "  local:\n    *;\n" } else { "" };
        text.push_str(&format!("{node} {{\n  global:\n{}{local}}};\n", list(&all)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_with_bodies_of_their_own_are_found() {
        let names = special_names();
        for name in ["cudnnGetVersion", "cublasLtMatmulAlgoGetHeuristic", "cufftCreate", "nvrtcVersion"] {
            assert!(names.contains(name), "{name} is in noop.c");
        }
    }

    #[test]
    fn libraries_are_told_apart() {
        assert!(is_wanted("libcublasLt.so.13"));
        assert!(is_wanted("libnvshmem_host.so.3"));
        for own in ["libcuda.so.1", "libcudart.so.13", "libc.so.6", "libtorch_cuda.so"] {
            assert!(!is_wanted(own), "{own} is not to be generated");
        }
    }

    #[test]
    fn names_without_a_version_join_the_first_node() {
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<BTreeSet<_>>();
        let mut library = Library::from([("libx.so.1".to_string(), of(&["a"])), (String::new(), of(&["b"]))]);
        let script = version_script(&library);
        assert!(script.starts_with("libx.so.1 {\n  global:\n    a;\n    b;\n  local:"), "{script}");
        library.remove("libx.so.1");
        assert!(version_script(&library).starts_with("{\n  global:\n    b;"), "no node, no name");
    }
}
