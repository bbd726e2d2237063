//! Binds the library's references to its own functions to itself: another preloaded library may export the same names.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");
    println!("cargo:rerun-if-changed=build.rs");
}
