//! Recorded traces: what a program asked of its allocator, call by call.
//!
//! The format is text, plain or zstd-compressed, one operation a line:
//!
//! ```text
//! # stratalloc-trace 1
//! # key: value            any number of these
//! a <id> <bytes> <stream> allocate; ids count up from 0, streams are numbered from 0
//! f <id>                  free
//! r <id> <stream>         record_stream
//! e                       empty_cache
//! m <label>               marker, a step boundary for instance
//! ```
//!
//! A [`Recorder`] writes it while a program runs. [`Trace::decode`] reads it strictly: whatever is not exactly this is a [`TraceError`] that names the line. A [`Trace`] can
//! therefore be replayed without checking anything: the n-th allocation has id n, and every id that is freed or recorded is live.

mod decode;
mod encode;
pub mod import;
mod record;

pub use decode::{Fault, TraceError};
pub use record::{Recorded, Recorder};

use std::collections::BTreeMap;
use std::path::Path;

/// The first line of every trace.
pub const FIRST_LINE: &str = "# stratalloc-trace 1";

/// The largest size that is believed, and the most live bytes: 128 TiB, the address space of a process.
pub const MAX_BYTES: u64 = 1 << 47;

/// The most streams that a trace may name.
pub const MAX_STREAMS: u16 = 1024;

/// The most operations that a trace may have; they take 16 bytes each.
pub const MAX_OPS: usize = 1 << 26;

/// One operation of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Allocate. The n-th of these has id n, from 0.
    Alloc {
        /// The size requested, 1 to [`MAX_BYTES`].
        bytes: u64,
        /// The home stream.
        stream: u16,
    },
    /// Free a live allocation.
    Free {
        /// Which one.
        id: u32,
    },
    /// A live allocation is used on a stream other than its own from here on.
    Record {
        /// Which one.
        id: u32,
        /// The stream.
        stream: u16,
    },
    /// Give cached memory back to the driver.
    EmptyCache,
    /// A point in the program's run.
    Marker {
        /// Index into [`Trace::labels`].
        label: u32,
    },
}

/// A whole trace, decoded and checked, with its totals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Trace {
    /// The header's `workload`, or else the name of the file.
    pub name: String,
    /// The `# key: value` lines.
    pub header: BTreeMap<String, String>,
    /// The operations, in order. Operation `i` stands on line [`Trace::line_of`]`(i)`.
    pub ops: Vec<Op>,
    /// The labels of the markers, in order.
    pub labels: Vec<String>,
    /// How many streams there are: the header's `streams`, or else one more than the highest that is used.
    pub streams: u16,
    /// Number of allocations.
    pub allocs: u32,
    /// Number of frees.
    pub frees: u32,
    /// Number of `record_stream` calls.
    pub records: u32,
    /// Number of `empty_cache` calls.
    pub empty_caches: u32,
    /// The most requested bytes that were live at one time.
    pub peak_live_bytes: u64,
    /// The ids that are never freed, ascending.
    pub live_at_end: Vec<u32>,
}

impl Trace {
    /// Decodes a trace from memory, compressed or not. Never panics, whatever the bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Trace, TraceError> {
        decode::read(bytes, "unnamed")
    }

    /// Reads a trace from a stream, compressed or not. `name` is what it is called if its header does not say.
    pub fn read(from: impl std::io::Read, name: &str) -> Result<Trace, TraceError> {
        decode::read(from, name)
    }

    /// Reads a trace from a file, compressed or not.
    pub fn load(path: &Path) -> Result<Trace, TraceError> {
        let file = std::fs::File::open(path)
            .map_err(|error| TraceError { path: None, line: 0, fault: Fault::Read(error.to_string()) })
            .map_err(|error| error.in_file(path))?;
        decode::read(file, &name_of(path)).map_err(|error| error.in_file(path))
    }

    /// Writes the trace as text, such that decoding gives an equal trace if the header names the workload.
    pub fn write(&self, to: &mut impl std::io::Write) -> std::io::Result<()> {
        encode::write(self, to)
    }

    /// Writes the trace as text, zstd-compressed.
    #[cfg(feature = "zstd")]
    pub fn write_zst(&self, to: impl std::io::Write) -> std::io::Result<()> {
        let mut encoder = zstd::Encoder::new(to, 9)?;
        encoder.include_checksum(true)?;
        encode::write(self, &mut encoder)?;
        encoder.finish().map(drop)
    }

    /// The line, from 1, on which operation `index` stands.
    pub fn line_of(&self, index: usize) -> usize {
        1 + self.header.len() + 1 + index
    }

    /// How many operations ask something of the allocator: all but the markers.
    pub fn calls(&self) -> usize {
        self.ops.len() - self.labels.len()
    }

    /// Where the first third of the trace ends, as an index into `ops`: at a marker if there are three, else by operations.
    pub fn first_third(&self) -> usize {
        let third = self.labels.len() / 3;
        if third == 0 {
            return self.ops.len() / 3;
        }
        let is_marker = |op: &Op| *op == Op::Marker { label: third as u32 };
        self.ops.iter().position(is_marker).unwrap_or(self.ops.len())
    }
}

/// What a trace is called whose header does not say.
fn name_of(path: &Path) -> String {
    let file_name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    file_name.trim_end_matches(".zst").trim_end_matches(".trace").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const SMALL: &str = "# stratalloc-trace 1\n# workload: small\n# streams: 2\n\
        a 0 1000 0\na 1 24 1\nm one\nr 0 1\nf 0\ne\nm two words\na 2 3000 0\nf 1\n";

    #[test]
    fn totals_of_a_small_trace() {
        let trace = Trace::decode(SMALL.as_bytes()).unwrap();
        assert_eq!((trace.name.as_str(), trace.streams), ("small", 2));
        assert_eq!((trace.allocs, trace.frees, trace.records, trace.empty_caches), (3, 2, 1, 1));
        assert_eq!((trace.ops.len(), trace.calls()), (9, 7));
        assert_eq!(trace.peak_live_bytes, 3024);
        assert_eq!(trace.live_at_end, [2]);
        assert_eq!(trace.labels, ["one", "two words"]);
        assert_eq!(trace.ops[0], Op::Alloc { bytes: 1000, stream: 0 });
        let line = SMALL.lines().nth(trace.line_of(3) - 1);
        assert_eq!((trace.ops[3], line), (Op::Record { id: 0, stream: 1 }, Some("r 0 1")));
        assert_eq!(trace.first_third(), 3, "two markers have no third, so it goes by operations");
    }

    #[test]
    fn an_operation_takes_16_bytes() {
        assert_eq!(size_of::<Op>(), 16);
    }

    #[test]
    fn what_is_written_decodes_to_the_same() {
        let trace = Trace::decode(SMALL.as_bytes()).unwrap();
        let mut plain = Vec::new();
        trace.write(&mut plain).unwrap();
        assert_eq!(Trace::decode(&plain).unwrap(), trace);
        #[cfg(feature = "zstd")]
        {
            let mut compressed = Vec::new();
            trace.write_zst(&mut compressed).unwrap();
            assert_eq!(Trace::decode(&compressed).unwrap(), trace);
        }
    }
}
