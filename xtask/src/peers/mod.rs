//! `cargo xtask peers`: the allocators that programs use today and this one, on the same traces, in one run.
//!
//! | file | what |
//! |---|---|
//! | `setup.rs` | fetches PyTorch and RMM, builds the programs of `benches/peers/harness` against them |
//! | `roster.rs` | which allocators there are, and with which settings |
//! | `runner.rs` | one replay: a process of its own, and the figures that it prints |
//! | `questions/` | what is asked of each allocator on each trace |
//! | `report/` | the tables, the plots, the JSON |

mod options;
mod questions;
mod report;
mod roster;
mod runner;
mod setup;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use options::Options;
use questions::{Answers, Asking, Trace};
use runner::Runner;

/// Sets everything up, asks all questions and writes the answers. Whether it went well.
pub(crate) fn run(root: &Path, options: &Options) -> bool {
    match measure(root, options) {
        Ok(files) => {
            files.iter().for_each(|file| println!("{}", file.display()));
            true
        }
        Err(message) => {
            eprintln!("peers: {message}");
            false
        }
    }
}

fn measure(root: &Path, options: &Options) -> Result<Vec<PathBuf>, String> {
    let files = options.trace_files(root)?;
    let peers = roster::chosen(options)?;
    let place = setup::set_up(root, &peers)?;
    let runner = Runner::new(&place, options.jobs());
    let mut traces = Vec::new();
    for file in &files {
        traces.push(Trace::load(&place, file)?);
    }
    let asking = Asking { runner: &runner, options, traces: &traces, peers: &peers };
    let mut answers = Answers::default();
    for question in questions::ALL.iter().filter(|question| options.asks(question.name)) {
        eprintln!("peers: {}", question.what);
        (question.ask)(&asking, &mut answers)?;
    }
    let out = options.out_folder(root);
    fs::create_dir_all(&out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
    let about = report::About::new(root, options);
    let written = [
        ("RESULTS.md", report::markdown::page(&about, &traces, &peers, &answers)),
        ("results.json", report::json::all(&about, &traces, &answers)),
        ("ratios.svg", report::plot::ratios(&traces, &peers, &answers)),
        ("pareto.svg", report::plot::pareto(&traces, &peers, &answers)),
    ];
    let mut paths = Vec::new();
    for (name, text) in written {
        // A plot of a question that was not asked has nothing to show.
        if text.is_empty() {
            continue;
        }
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}
