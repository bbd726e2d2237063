//! Other programs' records as traces: PyTorch's snapshots (`torch.cuda.memory._dump_snapshot`), and the logs of RMM's logging adaptor.
//!
//! A snapshot is a Python pickle, and a pickle is a program. The one here (`pickle`) is read by a machine of our own that has no way to
//! run anything: what would call a function is refused, but for a few names that make plain containers.

mod build;
mod pickle;
mod rmm;
mod snapshot;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{MAX_OPS, Trace, TraceError};
pub use pickle::PickleFault;

/// A larger file is refused: places in it are kept in 32 bits.
const MAX_FILE: u64 = u32::MAX as u64;

/// A trace, and what had to be supposed to make one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The trace.
    pub trace: Trace,
    /// What it does not say by itself.
    pub notes: Notes,
}

/// What an import had to suppose. All counts are zero for a file that is a trace already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notes {
    /// What kind of file it was, where it was no trace.
    pub source: Option<&'static str>,
    /// Of several devices with events, which one was taken, and how many there are.
    pub device: Option<(usize, usize)>,
    /// Allocations made before the record begins. They are at the trace's start, by address.
    pub from_before: u64,
    /// Requests that failed. Each is in the trace, and freed at once, so that a replay asks whether it would have been served.
    pub failed: u64,
    /// Frees that took effect later: the block was used on another stream, which the record may not name.
    pub deferred: u64,
    /// Times at which the allocator gave memory back for want of it. These are not in the trace: a replay decides by itself.
    pub pressed: u64,
    /// Allocations that belong to private pools, such as those of graphs. The trace has them as ordinary ones.
    pub private: u64,
    /// Events that fit nothing: frees of what was never there, sizes of 0, allocations at an address that was never freed.
    pub left_out: u64,
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.source.iter().map(|source| format!("from {source}")).collect();
        if let Some((device, devices)) = self.device {
            parts.push(format!("device {device} of {devices} with events"));
        }
        for (count, what) in [
            (self.from_before, "allocated before the record begins, put at its start"),
            (self.failed, "requests that failed, freed at once"),
            (self.deferred, "frees that waited for another stream"),
            (self.pressed, "releases for want of memory, left to the replay"),
            (self.private, "in private pools, taken as ordinary"),
            (self.left_out, "events that fit nothing, left out"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        f.write_str(&parts.join("; "))
    }
}

/// Why a file was not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{fault}", match path { Some(path) => format!("{}: ", path.display()), None => String::new() })]
pub struct ImportError {
    /// The file, where it is one.
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    pub fault: ImportFault,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImportFault {
    #[error("cannot be read: {0}")]
    Read(String),
    #[error("{bytes} bytes are too many: at most {MAX_FILE} are read")]
    TooLarge { bytes: u64 },
    #[error(
        "neither a trace ('{}'), nor a PyTorch snapshot (a pickle of protocol 2 to 5), nor an RMM log ('{}')",
        crate::FIRST_LINE,
        rmm::HEADER
    )]
    Unknown,
    #[error("{0}")]
    Trace(TraceError),
    #[error("at byte {at} of the pickle: {fault}")]
    Pickle { at: usize, fault: PickleFault },
    #[error("not a snapshot of torch.cuda.memory: {what}")]
    NotASnapshot { what: String },
    #[error("nothing was recorded: call torch.cuda.memory._record_memory_history() before what is to be seen")]
    NoHistory,
    #[error("the snapshot has no events of device {device}; there are some of {there}")]
    NoSuchDevice { device: usize, there: String },
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("more than {MAX_OPS} operations")]
    TooManyOps,
    #[error("more than 128 TiB are live at one time")]
    Absurd,
}

impl From<ImportFault> for ImportError {
    fn from(fault: ImportFault) -> ImportError {
        ImportError { path: None, fault }
    }
}

/// Reads a trace, a snapshot or a log, whichever it is. Of a snapshot with several devices, the one with the most events, unless
/// `device` says which.
pub fn load(path: &Path, device: Option<usize>) -> Result<Imported, ImportError> {
    let in_file = |fault: ImportFault| ImportError { path: Some(path.to_owned()), fault };
    let unreadable = |error: std::io::Error| in_file(ImportFault::Read(error.to_string()));
    let mut file = File::open(path).map_err(unreadable)?;
    let mut start = Vec::new();
    file.by_ref().take(SNIFFED as u64).read_to_end(&mut start).map_err(unreadable)?;
    if let Kind::Trace = kind_of(&start) {
        // Read on as a stream: it may be compressed, and far larger than the file; or a pipe, which cannot be opened twice.
        return match crate::decode::read(start.as_slice().chain(file), &crate::name_of(path)) {
            Ok(trace) => Ok(Imported { trace, notes: Notes::default() }),
            Err(error) => Err(ImportError { path: None, fault: ImportFault::Trace(error.in_file(path)) }),
        };
    }
    let length = file.metadata().map_err(unreadable)?.len();
    if length > MAX_FILE {
        return Err(in_file(ImportFault::TooLarge { bytes: length }));
    }
    let mut bytes = start;
    // A pipe has no length: bounded again.
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(unreadable)?;
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
    decode(&bytes, &name, device).map_err(|error| in_file(error.fault))
}

/// The same from memory. Never panics, whatever the bytes are. `name` is what the trace is called if it does not say.
pub fn decode(bytes: &[u8], name: &str, device: Option<usize>) -> Result<Imported, ImportError> {
    // The name becomes a line of the trace's header.
    let name: String = name.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if bytes.len() as u64 > MAX_FILE {
        return Err(ImportFault::TooLarge { bytes: bytes.len() as u64 }.into());
    }
    Ok(match kind_of(bytes) {
        Kind::Trace => {
            let trace = crate::decode::read(bytes, &name).map_err(ImportFault::Trace)?;
            Imported { trace, notes: Notes::default() }
        }
        Kind::Pickle => snapshot::import(bytes, &name, device)?,
        Kind::RmmLog => rmm::import(bytes, &name)?,
        Kind::Unknown => return Err(ImportFault::Unknown.into()),
    })
}

/// So many bytes tell what kind of file it is.
const SNIFFED: usize = 256;

enum Kind {
    Trace,
    Pickle,
    RmmLog,
    Unknown,
}

fn kind_of(bytes: &[u8]) -> Kind {
    match bytes {
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'#', b' ', ..] => Kind::Trace,
        [0x80, 2..=5, ..] => Kind::Pickle,
        _ if rmm::is_header(bytes) => Kind::RmmLog,
        _ => Kind::Unknown,
    }
}
