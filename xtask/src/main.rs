//! Project tasks: `cargo xtask validate` before a change is handed in, `cargo xtask tidy` for the house rules alone.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output is its result")]

mod abi;
mod install;
mod kernels;
mod peers;
mod softcuda;
mod tidy;
mod torch;
mod validate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask validate [--fast] [--fuzz-seconds N]
    Everything that CI runs; --fast leaves out all but formatting, house rules, clippy and one run of the tests.
    Each fuzz target runs for N seconds, 20 unless told.
cargo xtask install --prefix DIR [--library-only] [--dev]
    Builds the C library, the command and the preload library, and puts them into DIR with header and pkg-config files;
    --library-only leaves all but the C library out, --dev takes the unoptimised build.
cargo xtask abi [--bless]
    Compares include/stratalloc.h and the C library's symbols with the code; --bless rewrites both files.
cargo xtask kernels [--bless]
    Builds the kernels' PTX and cubins with pinned compilers and compares them with those of kernels/built; --bless rewrites them.
cargo xtask softcuda [--out DIR] [--torch SITE_PACKAGES] [--profile release]
    Builds the software device as CUDA's libraries and lays them out in DIR, target/softcuda unless told. With --torch,
    libraries that do nothing stand in for the rest of what the PyTorch wheel in SITE_PACKAGES names.
cargo xtask torch [--version VERSION] [--bench | --workloads | --exec COMMAND | --] [ARGUMENTS]
    Installs the PyTorch wheel into a virtual environment, once, puts the package of python/ into it, and runs the package's
    tests on the software device; --bench times torch's entry, --workloads compares allocators on two programs, --exec runs
    any command there. ARGUMENTS go to pytest or the program. VERSION is another PyTorch than the pinned one, such as 2.11.0.
cargo xtask peers [--quick] [--traces FILES | DIR] [--only QUESTIONS] [--peers NAMES] [--settings LIST] [--rounds N]
                  [--jobs N] [--dump DIR] [--out DIR] [--resume] [--pages]
    Replays traces on PyTorch's own allocator, RMM and this one, side by side on the software device, and writes tables, plots
    and JSON: benches/peers/README.md says more.
cargo xtask tidy
    The house rules: layer order, file lengths, SAFETY comments, names in documents, leftovers.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let passed = match words.as_slice() {
        ["tidy"] => tidy::run(&root()),
        ["abi"] => abi::run(&root(), false),
        ["abi", "--bless"] => abi::run(&root(), true),
        ["kernels"] => kernels::run(&root(), false),
        ["kernels", "--bless"] => kernels::run(&root(), true),
        ["install", options @ ..] => match install::Options::parse(options) {
            Ok(options) => install::run(&root(), &options),
            Err(message) => {
                eprintln!("{message}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
        ["torch", options @ ..] => match torch::Options::parse(options) {
            Ok(options) => torch::run(&root(), &options),
            Err(message) => {
                eprintln!("{message}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
        ["peers", options @ ..] => match peers::Options::parse(options) {
            Ok(options) => peers::run(&root(), &options),
            Err(message) => {
                eprintln!("{message}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
        ["validate", options @ ..] => match validate::Options::parse(options) {
            Ok(options) => validate::run(&root(), &options),
            Err(message) => {
                eprintln!("{message}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
        ["softcuda", options @ ..] => match softcuda::Options::parse(options) {
            Ok(options) => softcuda::run(&root(), &options),
            Err(message) => {
                eprintln!("{message}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The repository's root: the folder above this crate.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
