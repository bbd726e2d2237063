//! Recording: a running program's calls, written as a trace while it runs.
//!
//! Lines leave the buffer whole, so the file of a program that was killed decodes: its last operations are missing. A disk that fills up
//! in the middle of a line has that line taken back. Only where the kernel itself was stopped within a write, by a signal that kills or by
//! a power cut, can the file end within a line; the decoder refuses it, with words that say how to take that line off.
//!
//! Nothing here ends or disturbs the program: a file that stops taking lines is one line on stderr and the end of the recording.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::{FIRST_LINE, MAX_BYTES, MAX_OPS, MAX_STREAMS};

/// So much text is gathered before it is written.
const BUFFER: usize = 64 << 10;

/// So long a process that exits waits for a thread that is at work on the recording. That thread may never go on.
const EXIT_WAIT: Duration = Duration::from_millis(200);

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
    /// Operations in the file; those still in the buffer are not.
    pub ops: usize,
    /// Calls that are not in the trace: of unknown pointers, with a size that no trace can hold, or after it or the disk was full.
    pub left_out: u64,
    /// Streams told of. Those beyond the format's bound share the last number.
    pub streams: usize,
}

#[derive(Debug)]
struct State {
    /// Until the end, or an error.
    file: Option<File>,
    /// Bytes in the file: whole lines.
    length: u64,
    /// Whole lines that are to be written.
    text: Vec<u8>,
    /// So much text is gathered before it is written.
    buffer: usize,
    /// Operations in the file and in the text, and how many there may be.
    ops: usize,
    ops_max: usize,
    /// Why nothing is written any more.
    error: Option<io::Error>,
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
        let length = text.len() as u64;
        text.clear();
        let state = State {
            file: Some(file),
            length,
            text,
            buffer: BUFFER,
            ops: 0,
            ops_max: MAX_OPS,
            error: None,
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
            if bytes == 0 || bytes > MAX_BYTES - state.live_bytes || state.is_full() {
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

    /// Writes what is still in the buffer. The recording goes on, unless that fails.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_child() {
            return Ok(());
        }
        let written = self.state.lock().write_out();
        self.note(written)
    }

    /// [`Recorder::flush`] for a process that exits: what is told afterwards, by whatever still runs, is written at once. Never hangs: it
    /// waits for other threads a moment only, and writes nothing if they do not get on. What fails is one line on stderr.
    pub fn flush_at_exit(&self) {
        if self.is_child() {
            return;
        }
        let Some(mut state) = self.state.try_lock_for(EXIT_WAIT) else { return };
        state.buffer = 0;
        let written = state.write_out();
        drop(state);
        self.tell(self.note(written));
    }

    /// Ends the recording: writes what is left and closes the file. Calls after it are ignored; a second one returns the same. If lines could
    /// not be written, now or earlier, that is the error: the file has the lines from before it, see [`Recorder::recorded`].
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

    /// What the recording has come to so far.
    pub fn recorded(&self) -> Recorded {
        if self.is_child() { Recorded::default() } else { self.state.lock().recorded }
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
        if state.is_full() || !step(&mut state) {
            state.recorded.left_out += 1;
        }
        // Not only after a step that is counted: one that is left out may have written a free.
        if state.text.len() <= state.buffer {
            return;
        }
        let written = state.write_out();
        drop(state);
        self.tell(self.note(written));
    }

    /// After an error, nothing more is taken.
    fn note(&self, written: io::Result<()>) -> io::Result<()> {
        if written.is_err() {
            self.open.store(false, Ordering::Relaxed);
        }
        written
    }

    /// Says what went wrong where no caller can be told. Without the lock: stderr may be slow.
    fn tell(&self, written: io::Result<()>) {
        if let Err(error) = written {
            // Where stderr is closed too, nobody is left to tell.
            let path = self.path.display();
            let _ = writeln!(io::stderr(), "stratalloc: {path}: {error}; the trace ends here");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // What has ended with an error has told it.
        if self.open.load(Ordering::Relaxed) {
            self.tell(self.finish().map(drop));
        }
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

    fn is_full(&self) -> bool {
        self.ops >= self.ops_max
    }

    /// The only place that adds an operation: a step may add several.
    fn line(&mut self, text: std::fmt::Arguments<'_>) -> bool {
        if self.is_full() {
            return false;
        }
        // Into memory: this cannot fail.
        let _ = writeln!(self.text, "{text}");
        self.ops += 1;
        true
    }

    /// Writes the text. The first error ends the recording, and is returned from then on: what came later would be of blocks that the file
    /// does not know. Of the text, the file keeps the lines that went in whole.
    fn write_out(&mut self) -> io::Result<()> {
        if let Some(error) = &self.error {
            return Err(same(error));
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let (written, outcome) = write_counted(file, &self.text);
        match outcome {
            Ok(()) => {
                self.length += written as u64;
                self.recorded.ops = self.ops;
            }
            Err(error) => {
                let text = &self.text[..written];
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
                let lines = text[..whole].iter().filter(|byte| **byte == b'\n').count();
                self.length += whole as u64;
                // What cannot be cut is no file on a disk, and nothing can be taken back from it.
                let _ = file.set_len(self.length);
                self.recorded.ops += lines;
                self.recorded.left_out += (self.ops - self.recorded.ops) as u64;
                self.error = Some(error);
                self.file = None;
            }
        }
        self.text.clear();
        self.error.as_ref().map_or(Ok(()), |error| Err(same(error)))
    }
}

/// Writes, and says how many bytes went in before an error.
fn write_counted(to: &mut impl Write, text: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < text.len() {
        match to.write(&text[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// An error once more: it cannot be cloned.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
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

    /// Runs the named test once more, in a process whose files end at some 16 KiB.
    fn run_with_small_files(test: &str) {
        let program = std::env::current_exe().unwrap();
        // Both `ulimit`s there are, in blocks of 512 bytes and of 1024, end within the first buffer.
        let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact \"$1\"";
        let mut shell = std::process::Command::new("sh");
        let child = shell.args(["-c", script]).arg(program).arg(test).env("TRACE_FULL_DISK", "1").output().unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn a_disk_that_fills_up_ends_the_recording_and_leaves_whole_lines() {
        if std::env::var_os("TRACE_FULL_DISK").is_none() {
            run_with_small_files("record::tests::a_disk_that_fills_up_ends_the_recording_and_leaves_whole_lines");
            return;
        }
        for by_finish in [false, true] {
            let path = scratch("full");
            let recorder = Recorder::create(&path, &[("workload", "full")]).unwrap();
            let told = if by_finish { 3000 } else { 20000 };
            (1..=told).for_each(|index| recorder.alloc(index << 9, 512, 0));
            assert_eq!(recorder.open.load(Ordering::Relaxed), by_finish, "the buffer is written when it is full");
            let error = recorder.finish().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(recorder.finish().unwrap_err().raw_os_error(), error.raw_os_error());
            assert_eq!(recorder.flush().unwrap_err().raw_os_error(), error.raw_os_error());
            let recorded = recorder.recorded();
            let trace = Trace::load(&path).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            let _ = std::fs::remove_file(&path);
            assert_eq!(trace.ops.len(), recorded.ops);
            assert!(recorded.ops > 400 && length > 8000 && length <= 16384, "{recorded:?}, {length} bytes");
            assert!(!by_finish || recorded.ops as u64 + recorded.left_out == told, "{recorded:?}");
        }
    }

    /// A step may add two operations, and must not step over the bound.
    #[test]
    fn a_full_trace_decodes() {
        let path = scratch("bound");
        let recorder = Recorder::create(&path, &[]).unwrap();
        recorder.state.lock().ops_max = 4;
        recorder.alloc(0x1000, 1, 0);
        recorder.alloc(0x2000, 2, 0);
        recorder.empty_cache();
        recorder.alloc(0x1000, 3, 0);
        recorder.free(0x2000);
        recorder.alloc(0x2000, 4, 0);
        let recorded = recorder.finish().unwrap();
        let trace = Trace::load(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        assert_eq!((recorded.ops, recorded.left_out, trace.ops.len()), (4, 3, 4));
        assert_eq!(trace.ops[3], Op::Free { id: 0 });
    }

    #[test]
    fn a_process_that_exits_writes_all_and_does_not_hang() {
        let path = scratch("exit");
        let recorder = Recorder::create(&path, &[]).unwrap();
        recorder.alloc(0x1000, 1, 0);
        let held = recorder.state.lock();
        std::thread::scope(|scope| scope.spawn(|| recorder.flush_at_exit()).join().unwrap());
        drop(held);
        assert_eq!(Trace::load(&path).unwrap().ops, [], "another thread was at work on it");
        recorder.flush_at_exit();
        assert_eq!(Trace::load(&path).unwrap().ops.len(), 1);
        recorder.free(0x1000);
        assert_eq!(Trace::load(&path).unwrap().ops.len(), 2, "nobody writes it later");
        let _ = std::fs::remove_file(&path);
    }

    /// What a crash within a write leaves.
    #[test]
    fn a_file_cut_anywhere_decodes_without_its_last_line() {
        let path = scratch("cut");
        let recorder = Recorder::create(&path, &[("tool", "x")]).unwrap();
        recorder.alloc(0x1000, 100, 7);
        recorder.record_stream(0x1000, 9);
        recorder.free(0x1000);
        recorder.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        for end in FIRST_LINE.len() + 1..whole.len() {
            let last = whole[..end].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
            assert!(Trace::decode(&whole[..last]).is_ok());
            if last < end {
                let error = Trace::decode(&whole[..end]).unwrap_err().to_string();
                assert!(error.contains("has no end") && error.contains("sed -i '$d'"), "{error}");
            }
        }
    }
}
