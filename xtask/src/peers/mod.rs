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
use std::time::Instant;

pub(crate) use options::Options;
use questions::{Asking, Trace};
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
    if options.pages {
        return pages(root, options);
    }
    let files = options.trace_files(root)?;
    let peers = roster::chosen(options)?;
    let out = options.out_folder(root);
    fs::create_dir_all(&out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
    let (mut traces, mut answers) = match options.keeps_earlier() {
        true => report::state::read(&out)?,
        false => Default::default(),
    };
    let place = setup::set_up(root, &peers)?;
    let runner = Runner::new(&place, options.jobs());
    let mut asked_traces = Vec::new();
    for file in &files {
        let trace = Trace::load(&place, file)?;
        // What an earlier run knew of it may be of another file.
        match traces.iter_mut().find(|earlier| earlier.name == trace.name) {
            Some(earlier) => *earlier = trace.clone(),
            None => traces.push(trace.clone()),
        }
        asked_traces.push(trace);
    }
    let shown = roster::with_earlier(roster::all(options), &answers);
    let since = Instant::now();
    let asking = Asking { runner: &runner, options, traces: &asked_traces, peers: &peers, since };
    let about = report::About::new(root, options);
    let mut paths = Vec::new();
    for question in questions::ALL.iter().filter(|question| options.asks(question.name)) {
        if options.resume && answers.has(question.name) {
            eprintln!("peers: {}: answered before", question.what);
            continue;
        }
        eprintln!("peers: {}", question.what);
        let begun = Instant::now();
        (question.ask)(&asking, &mut answers)?;
        answers.end(question.name, &about.versions, begun.elapsed().as_secs());
        // After each, so that what comes later may fail, and `--resume` goes on from there.
        paths = report::write(&out, &about, &traces, &shown, &answers)?;
    }
    if is_the_whole(root, &out) {
        paths.push(report::readme::write(root, &traces, &answers)?);
    }
    report::verdict::print(&traces, &answers);
    Ok(paths)
}

/// Whether this is where the answers lie that the README shows.
fn is_the_whole(root: &Path, out: &Path) -> bool {
    let whole = fs::canonicalize(root.join("benches/peers")).ok();
    whole.is_some() && fs::canonicalize(out).ok() == whole
}

/// Writes the pages anew from the answers that there are.
fn pages(root: &Path, options: &Options) -> Result<Vec<PathBuf>, String> {
    let out = options.out_folder(root);
    let (traces, answers) = report::state::read(&out)?;
    let about = report::state::about(&out)?;
    let shown = roster::with_earlier(roster::all(options), &answers);
    let mut paths = report::write(&out, &about, &traces, &shown, &answers)?;
    if is_the_whole(root, &out) {
        paths.push(report::readme::write(root, &traces, &answers)?);
    }
    Ok(paths)
}
