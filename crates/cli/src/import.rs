//! `stratalloc import`: PyTorch snapshots and RMM logs as traces. Every command that takes traces takes these as well.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use stratalloc::units::ByteSize;

use crate::trace::Trace;
use crate::trace::import::load;
use crate::{Failed, Finish};

/// What `import` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A PyTorch snapshot (torch.cuda.memory._dump_snapshot), or a log of RMM's logging adaptor
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The trace to write; zstd-compressed if its name ends in .zst
    #[arg(short, long, value_name = "TRACE")]
    pub output: PathBuf,

    /// Of a snapshot with several devices, which [default: the one with the most events]
    #[arg(long, value_name = "N")]
    pub device: Option<usize>,
}

/// Imports the file, and says what it came to.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let imported = load(&options.file, options.device)?;
    let trace = &imported.trace;
    write_trace(trace, &options.output)
        .map_err(|error| Failed::from(format!("{}: cannot be written: {error}", options.output.display())))?;
    writeln!(
        out,
        "{}: {} operations, {} allocations, {} live at the peak, {} streams",
        options.output.display(),
        trace.ops.len(),
        trace.allocs,
        ByteSize(trace.peak_live_bytes),
        trace.streams
    )?;
    let notes = imported.notes.to_string();
    if !notes.is_empty() {
        writeln!(out, "{notes}")?;
    }
    Ok(Finish::Good)
}

/// Writes beside the file first, so that a disk that fills up leaves no half of a trace.
fn write_trace(trace: &Trace, path: &Path) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let outcome = File::create(&beside).and_then(|file| {
        let mut file = BufWriter::new(file);
        if path.extension().is_some_and(|extension| extension == "zst") {
            trace.write_zst(&mut file)?;
        } else {
            trace.write(&mut file)?;
        }
        file.flush()?;
        fs::rename(&beside, path)
    });
    if outcome.is_err() {
        // The first error is the one to tell; there may be no such file.
        let _ = fs::remove_file(&beside);
    }
    outcome
}

/// Reads traces and whatever can be imported. What had to be supposed is said on stderr.
pub(crate) fn load_all(paths: &[PathBuf]) -> Result<Vec<Trace>, Failed> {
    paths
        .iter()
        .map(|path| {
            let imported = load(path, None)?;
            let notes = imported.notes.to_string();
            if !notes.is_empty() {
                // Where stderr is closed, nobody is left to tell.
                let _ = writeln!(std::io::stderr(), "{}: {notes}", path.display());
            }
            Ok(imported.trace)
        })
        .collect()
}
