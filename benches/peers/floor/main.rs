//! The least that book-keeping costs, and the decoder of traces for the peers in C++.
//!
//! ```text
//! peer-floor decode TRACE FILE
//! peer-floor --trace FILE --setting mimalloc|offset-allocator --passes N --threads N
//! ```
//!
//! Both allocators know nothing of streams and drivers. mimalloc gets sizes that are 2,048 times smaller, so that 80 GiB are 40 MiB of
//! host memory which it has at hand: what is timed is its book-keeping, not the kernel's. offset-allocator gets the real sizes, in
//! granules of 512 bytes, on a device of SOFTCUDA_MEMORY bytes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output is its result")]

mod decode;
mod replay;

use std::path::Path;
use std::process::ExitCode;

/// As the harness in C++ has it: there was no room.
const NO_ROOM: u8 = 3;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["decode", from, to] => decode::decode(Path::new(from), Path::new(to)).map(|()| true),
        words => replay::Options::parse(words).and_then(|options| replay::run(&options)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO_ROOM),
        Err(message) => {
            eprintln!("peer-floor: {message}");
            ExitCode::FAILURE
        }
    }
}
