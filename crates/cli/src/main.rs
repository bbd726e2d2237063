//! The `stratalloc` command.
fn main() {}
