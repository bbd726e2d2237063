//! Gives the shared library its soname, which holds the number of the ABI: a program linked with one refuses another.

fn main() {
    println!("cargo:rerun-if-changed=src/version.rs");
    let source = std::fs::read_to_string("src/version.rs").unwrap_or_default();
    let number = source.lines().find_map(|line| line.strip_prefix("pub const STRATALLOC_ABI_VERSION: u32 = "));
    let number = number.and_then(|rest| rest.strip_suffix(';')).unwrap_or("0");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libstratalloc.so.{number}");
}
