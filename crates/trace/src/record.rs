//! Recording: a running program's calls, written as a trace while it runs.
//!
//! Lines leave the buffer whole, so the file of a program that was killed decodes: its last operations are missing. Nothing here
//! ends or disturbs the program: a file that stops taking lines is one line on stderr and the end of the recording.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::{FIRST_LINE, MAX_BYTES, MAX_OPS, MAX_STREAMS};

/// So much text is gathered before it is written.
const BUFFER: usize = 64 << 10;

/// Writes what a program asks of its allocator as a trace. All methods may be called from any thread; the order of the calls is the
/// order of the lines, so a free is to be told before the memory goes back to the allocator, and an allocation after it came from there.
///
/// Pointers and streams are given as numbers. Several devices share one trace: their addresses differ, and the caller tells their streams
/// apart by `stream`. What cannot be part of a trace is left out and counted: frees of what was never told, sizes of 0.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    /// Whether lines are still taken. Read without the lock, so that a recording that has ended costs nothing.
    open: AtomicBool,
    /// The process that opened the file. A child after `fork` writes nothing.
    process: u32,
    state: Mutex<State>,
}

/// What a recording came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Recorded {
    /// Operations written.
    pub ops: usize,
    /// Calls that are not in the trace: of unknown pointers, with a size that no trace can hold, or after it was full.
    pub left_out: u64,
    /// Streams told of. Those beyond the format's bound share the last number.
    pub streams: usize,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    text: Vec<u8>,
    ids: HashMap<u64, (u32, u64)>,
    streams: HashMap<u64, u16>,
    next_id: u32,
    live_bytes: u64,
    recorded: Recorded,
}

impl Recorder {
    /// Creates the file, or empties it, and writes the header. Keys and values with line breaks, empty keys, keys with a colon and keys
    /// given twice are refused, as a decoder would refuse them.
    pub fn create(path: &Path, header: &[(&str, &str)]) -> io::Result<Recorder> {
        let mut text = Vec::with_capacity(BUFFER + 256);
        writeln!(text, "{FIRST_LINE}")?;
        for (index, (key, value)) in header.iter().enumerate() {
            let twice = header[..index].iter().any(|(other, _)| other.trim() == key.trim());
            let broken = key.trim().is_empty() || key.contains([':', '\n']) || value.contains('\n');
            if twice || broken || key.trim() == "streams" {
                let message = format!("'{key}: {value}' cannot be a line of a trace's header");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            writeln!(text, "# {key}: {value}")?;
        }
        let mut file = File::create(path)?;
        // At once: a file that takes nothing is found here, where somebody can be told.
        file.write_all(&text)?;
        text.clear();
        let state = State {
            file: Some(file),
            text,
            ids: HashMap::new(),
            streams: HashMap::new(),
            next_id: 0,
            live_bytes: 0,
            recorded: Recorded::default(),
        };
        Ok(Recorder {
            path: path.to_owned(),
            open: AtomicBool::new(true),
            process: std::process::id(),
            state: Mutex::new(state),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `bytes` were allocated at `ptr` for `stream`. An address that is live already is taken to have been freed without a word.
    pub fn alloc(&self, ptr: u64, bytes: u64, stream: u64) {
        self.with(|state| {
            if state.ids.contains_key(&ptr) {
                state.free(ptr);
            }
            if bytes == 0 || bytes > MAX_BYTES - state.live_bytes {
                return false;
            }
            let stream = state.stream(stream);
            let id = state.next_id;
            state.next_id += 1;
            state.live_bytes += bytes;
            state.ids.insert(ptr, (id, bytes));
            state.line(format_args!("a {id} {bytes} {stream}"))
        });
    }

    /// The allocation at `ptr` is freed.
    pub fn free(&self, ptr: u64) {
        self.with(|state| state.free(ptr));
    }

    /// The allocation at `ptr` is used on `stream` too.
    pub fn record_stream(&self, ptr: u64, stream: u64) {
        self.with(|state| {
            let Some(&(id, _)) = state.ids.get(&ptr) else { return false };
            let stream = state.stream(stream);
            state.line(format_args!("r {id} {stream}"))
        });
    }

    /// Cached memory is given back to the driver.
    pub fn empty_cache(&self) {
        self.with(|state| state.line(format_args!("e")));
    }

    /// A point in the program's run. Line breaks in `label` become spaces.
    pub fn marker(&self, label: &str) {
        let label: String = label.chars().map(|c| if c == '\n' { ' ' } else { c }).take(4096).collect();
        let label = if label.is_empty() { "-" } else { &label };
        self.with(|state| state.line(format_args!("m {label}")));
    }

    /// Writes what is still in the buffer. The recording goes on.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_child() { Ok(()) } else { self.state.lock().write_out() }
    }

    /// Ends the recording: writes what is left and closes the file. Calls after it are ignored; a second one returns the same numbers.
    pub fn finish(&self) -> io::Result<Recorded> {
        if self.is_child() {
            return Ok(Recorded::default());
        }
        self.open.store(false, Ordering::Relaxed);
        let mut state = self.state.lock();
        let written = state.write_out();
        state.file = None;
        written.map(|()| state.recorded)
    }

    /// Whether this is a child after `fork`. It must not take the lock: another thread of the parent may have held it.
    fn is_child(&self) -> bool {
        std::process::id() != self.process
    }

    /// Does `step` under the lock; `false` from it counts as left out.
    fn with(&self, step: impl FnOnce(&mut State) -> bool) {
        if !self.open.load(Ordering::Relaxed) || self.is_child() {
            return;
        }
        let mut state = self.state.lock();
        if state.file.is_none() {
            return;
        }
        if state.recorded.ops == MAX_OPS || !step(&mut state) {
            state.recorded.left_out += 1;
            return;
        }
        if state.text.len() < BUFFER {
            return;
        }
        if let Err(error) = state.write_out() {
            self.open.store(false, Ordering::Relaxed);
            state.file = None;
            drop(state);
            // Where stderr is closed too, nobody is left to tell.
            let path = self.path.display();
            let _ = writeln!(io::stderr(), "stratalloc: {path}: {error}; the trace ends here");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

impl State {
    fn free(&mut self, ptr: u64) -> bool {
        let Some((id, bytes)) = self.ids.remove(&ptr) else { return false };
        self.live_bytes -= bytes;
        self.line(format_args!("f {id}"))
    }

    /// A stream's number, given at its first use.
    fn stream(&mut self, stream: u64) -> u16 {
        let next = self.streams.len();
        let number = *self.streams.entry(stream).or_insert(next.min(MAX_STREAMS as usize - 1) as u16);
        self.recorded.streams = self.streams.len();
        number
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) -> bool {
        // Into memory: this cannot fail.
        let _ = writeln!(self.text, "{text}");
        self.recorded.ops += 1;
        true
    }

    fn write_out(&mut self) -> io::Result<()> {
        let written = match &mut self.file {
            Some(file) => file.write_all(&self.text),
            None => Ok(()),
        };
        self.text.clear();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Op, Trace};

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("stratalloc-record-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_is_recorded_decodes() {
        let path = scratch("whole");
        let recorder = Recorder::create(&path, &[("workload", "unit"), ("tool", "a b")]).unwrap();
        recorder.alloc(0x1000, 100, 7);
        recorder.alloc(0x2000, 200, 9);
        recorder.record_stream(0x1000, 9);
        recorder.free(0x1000);
        recorder.free(0x1000);
        recorder.free(0x9999);
        recorder.record_stream(0x1000, 7);
        recorder.alloc(0x3000, 0, 7);
        recorder.marker("step\n1");
        recorder.alloc(0x2000, 300, 7);
        recorder.empty_cache();
        let recorded = recorder.finish().unwrap();
        recorder.alloc(0x4000, 1, 1);
        assert_eq!((recorded.ops, recorded.left_out, recorded.streams), (8, 4, 2));
        assert_eq!(recorder.finish().unwrap(), recorded);
        let trace = Trace::load(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        assert_eq!((trace.name.as_str(), trace.header["tool"].as_str()), ("unit", "a b"));
        assert_eq!(
            trace.ops,
            [
                Op::Alloc { bytes: 100, stream: 0 },
                Op::Alloc { bytes: 200, stream: 1 },
                Op::Record { id: 0, stream: 1 },
                Op::Free { id: 0 },
                Op::Marker { label: 0 },
                Op::Free { id: 1 },
                Op::Alloc { bytes: 300, stream: 0 },
                Op::EmptyCache,
            ]
        );
        assert_eq!(trace.labels, ["step 1"]);
        assert_eq!(trace.live_at_end, [2]);
    }

    #[test]
    fn threads_interleave_whole_lines_and_a_killed_program_leaves_a_trace() {
        let path = scratch("threads");
        let recorder = Recorder::create(&path, &[]).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let recorder = &recorder;
                scope.spawn(move || {
                    for index in 0..4000 {
                        let ptr = thread << 40 | (index + 1) << 9;
                        recorder.alloc(ptr, 512, thread);
                        recorder.free(ptr);
                    }
                });
            }
        });
        // As if it were killed here: the buffer's rest is lost, the file still decodes.
        let early = Trace::load(&path).unwrap();
        assert!(early.ops.len() > 1000 && early.ops.len() < 32000, "{}", early.ops.len());
        assert_eq!(recorder.finish().unwrap().ops, 32000);
        let trace = Trace::load(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        assert_eq!((trace.allocs, trace.frees, trace.streams), (16000, 16000, 4));
    }

    #[test]
    fn a_file_that_takes_nothing_is_an_error_at_once() {
        let nowhere = Path::new("/nonexistent/x.trace");
        assert_eq!(Recorder::create(nowhere, &[]).unwrap_err().kind(), io::ErrorKind::NotFound);
        let full = Path::new("/dev/full");
        if full.exists() {
            assert!(Recorder::create(full, &[]).is_err());
        }
        for header in [&[("", "x")][..], &[("a:b", "x")], &[("a", "x\ny")], &[("a", "1"), ("a", "2")]] {
            let error = Recorder::create(&scratch("header"), header).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{header:?}");
        }
    }

    #[test]
    fn streams_beyond_the_bound_share_the_last_number() {
        let path = scratch("streams");
        let recorder = Recorder::create(&path, &[]).unwrap();
        for stream in 0..1100 {
            recorder.alloc(512 * (stream + 1), 512, stream);
        }
        assert_eq!(recorder.finish().unwrap().streams, 1100);
        let trace = Trace::load(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        assert_eq!(trace.streams, MAX_STREAMS);
    }
}
