//! Links the archive of `crates/softcudart` into `libcudart.so.12` and `libcudart.so.13`.

use std::path::Path;

use super::{elf, install};

/// Entry points that one of the libraries has in a form of its own begin so.
fn own_prefix(major: u32) -> String {
    format!("softcudart{major}_")
}

/// What the version script is named. A folder has one for each library, in files that start with a dot.
pub(super) fn link(archive: &Path, major: u32, out: &Path) -> Result<(), String> {
    let name = format!("libcudart.so.{major}");
    let prefix = own_prefix(major);
    let own: Vec<String> =
        elf::archive_symbols(archive)?.into_iter().filter(|name| name.starts_with(&prefix)).collect();
    if own.is_empty() {
        return Err(format!("{} has no entry points of CUDA {major}", archive.display()));
    }
    // The node has the library's name, as NVIDIA's has: programs are linked against it.
    let script = out.join(format!(".{name}.version"));
    let text = format!("{name} {{\n  global:\n    cuda*;\n    __cuda*;\n  local:\n    *;\n}};\n");
    install::write(&script, text.as_bytes())?;

    let mut arguments = vec![
        "-Wl,--whole-archive".to_string(),
        archive.display().to_string(),
        "-Wl,--no-whole-archive".to_string(),
        "-Wl,--gc-sections".to_string(),
        "-Wl,-Bsymbolic".to_string(),
        format!("-Wl,--version-script={}", script.display()),
    ];
    let names = out.join(format!(".{name}.S"));
    let assembly = jumps(&own, &prefix);
    install::write(&names, assembly.as_bytes())?;
    arguments.push(names.display().to_string());
    arguments.extend(["-lgcc_s", "-lpthread", "-ldl", "-lc"].map(str::to_string));
    let stamp = format!("{}\n{}\n{text}{assembly}", install::fingerprint(archive)?, arguments.join("\n"));
    install::shared_library(&out.join(&name), &stamp, &arguments)
}

/// Gives each function its plain name in this library, by a jump. The linker's own means, `--defsym`, makes symbols that a
/// version script does not export.
fn jumps(own: &[String], prefix: &str) -> String {
    let mut text = String::from(
        "#if defined(__x86_64__)\n#define JUMP jmp\n#elif defined(__aarch64__)\n#define JUMP b\n#else\n\
         #error no jump known for this machine\n#endif\n.text\n",
    );
    for symbol in own {
        let plain = symbol.strip_prefix(prefix).unwrap_or(symbol);
        text.push_str(&format!(
            ".hidden {symbol}\n.globl {plain}\n.type {plain}, %function\n{plain}:\n    JUMP {symbol}\n\
             .size {plain}, . - {plain}\n"
        ));
    }
    text.push_str(".section .note.GNU-stack, \"\", %progbits\n");
    text
}
