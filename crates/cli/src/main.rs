//! The `stratalloc` command. All of it is in the library beside this file.
fn main() {}
