//! The `stratalloc` command. All of it is in the library beside this file.

fn main() -> std::process::ExitCode {
    stratalloc_cli::main(std::env::args_os())
}
