//! The decoder: one pass over the lines, holding of the text no more than the line it is on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{FIRST_LINE, MAX_BYTES, MAX_OPS, MAX_STREAMS, Op, Trace};

/// A zstd frame begins with this.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A longer line is not read to its end.
const MAX_LINE: usize = 64 << 10;

/// The largest window, as a power of two, that a compressed trace may ask the decoder to hold: 128 MiB.
#[cfg(feature = "zstd")]
const MAX_WINDOW_LOG: u32 = 27;

/// Why a trace was refused, and on which line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{fault}", match path { Some(path) => format!("{}: ", path.display()), None => String::new() }, match line { 0 => String::new(), _ => format!("line {line}: ") })]
pub struct TraceError {
    /// The file, where it is one.
    pub path: Option<PathBuf>,
    /// The line, from 1; 0 if nothing was read.
    pub line: usize,
    /// What is wrong there.
    pub fault: Fault,
}

impl TraceError {
    pub(super) fn in_file(self, path: &Path) -> TraceError {
        TraceError { path: Some(path.to_owned()), ..self }
    }
}

/// What is wrong with a line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Fault {
    #[error("cannot be read: {0}")]
    Read(String),
    #[error("not a trace: the first line must be '{FIRST_LINE}', not '{found}'")]
    FirstLine { found: String },
    #[error("not a header line: '{found}'; write '# key: value'")]
    Header { found: String },
    #[error("the header gives '{key}' twice")]
    HeaderTwice { key: String },
    #[error("a header line after the first operation")]
    HeaderTooLate,
    #[error("'streams: {value}' is not a number from 1 to {MAX_STREAMS}")]
    HeaderStreams { value: String },
    #[error("unknown operation '{found}'; there are a, f, r, e and m")]
    UnknownOp { found: String },
    #[error("an empty line")]
    Empty,
    #[error("'{found}' is not of the form '{form}'")]
    Form { form: &'static str, found: String },
    #[error("{what} '{found}' is not a number, or too large for one")]
    Number { what: &'static str, found: String },
    #[error("a size of 0 bytes")]
    SizeZero,
    #[error("{bytes} bytes cannot be; at most {MAX_BYTES} may be live at one time")]
    Absurd { bytes: u64 },
    #[error("allocation {found} where {expected} is next: ids count up from 0")]
    NotDense { expected: u32, found: u64 },
    #[error("{what} of {id}, which was never allocated")]
    UnknownId { what: &'static str, id: u64 },
    #[error("{what} of {id}, which was freed on line {line}")]
    DeadId { what: &'static str, id: u64, line: usize },
    #[error("stream {found}: the trace has {streams}, numbered from 0")]
    Stream { found: u64, streams: u16 },
    #[error("a line of more than {MAX_LINE} bytes")]
    LongLine,
    #[error("a text that is not UTF-8")]
    NotText,
    #[error("more than {MAX_OPS} operations")]
    TooManyOps,
    #[error(
        "the last line has no end: the file was cut off; take that line off, `sed -i '$d' FILE`, and the rest can be read"
    )]
    NoNewline,
}

/// Reads a trace. `name` is used if the header has none.
pub(super) fn read(mut from: impl Read, name: &str) -> Result<Trace, TraceError> {
    let unreadable = |error: std::io::Error| TraceError { path: None, line: 0, fault: Fault::Read(error.to_string()) };
    let mut start = Vec::new();
    from.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut start).map_err(unreadable)?;
    let compressed = start == ZSTD_MAGIC;
    let whole = start.as_slice().chain(from);
    if !compressed {
        return Decoder::new(name).run(BufReader::new(whole));
    }
    #[cfg(feature = "zstd")]
    {
        let mut plain = zstd::Decoder::new(whole).map_err(unreadable)?;
        plain.window_log_max(MAX_WINDOW_LOG).map_err(unreadable)?;
        Decoder::new(name).run(BufReader::new(plain))
    }
    #[cfg(not(feature = "zstd"))]
    Err(unreadable(std::io::Error::other("it is zstd-compressed, which this build cannot read")))
}

/// What is known of an id.
#[derive(Clone, Copy)]
enum Life {
    Live { bytes: u64 },
    Freed { line: usize },
}

/// The state of a decoder between two lines.
struct Decoder {
    trace: Trace,
    line: usize,
    /// Whether the header said how many streams there are.
    streams_given: bool,
    lives: Vec<Life>,
    live_bytes: u64,
}

impl Decoder {
    fn new(name: &str) -> Decoder {
        let trace = Trace { name: name.to_owned(), ..Trace::default() };
        Decoder { trace, line: 0, streams_given: false, lives: Vec::new(), live_bytes: 0 }
    }

    fn run(mut self, mut from: impl BufRead) -> Result<Trace, TraceError> {
        let mut line = Vec::new();
        loop {
            line.clear();
            self.line += 1;
            let read = from.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
            let outcome = match read {
                Err(error) => Err(Fault::Read(error.to_string())),
                Ok(0) if self.line == 1 => Err(Fault::FirstLine { found: String::new() }),
                Ok(0) => return Ok(self.finish()),
                Ok(_) => match line.split_last() {
                    Some((b'\n', text)) => self.line(text),
                    _ if line.len() > MAX_LINE => Err(Fault::LongLine),
                    _ if self.line == 1 => Err(Fault::FirstLine { found: shown(&line) }),
                    _ => Err(Fault::NoNewline),
                },
            };
            outcome.map_err(|fault| TraceError { path: None, line: self.line, fault })?;
        }
    }

    fn finish(mut self) -> Trace {
        let live = |(id, life): (usize, &Life)| matches!(life, Life::Live { .. }).then_some(id as u32);
        self.trace.live_at_end = self.lives.iter().enumerate().filter_map(live).collect();
        self.trace
    }

    fn line(&mut self, text: &[u8]) -> Result<(), Fault> {
        if self.line == 1 {
            return if text == FIRST_LINE.as_bytes() { Ok(()) } else { Err(Fault::FirstLine { found: shown(text) }) };
        }
        if text.first() == Some(&b'#') {
            return self.header_line(text);
        }
        if self.trace.ops.len() == MAX_OPS {
            return Err(Fault::TooManyOps);
        }
        let mut words = text.splitn(2, |byte| *byte == b' ');
        let (letter, rest) = (words.next().unwrap_or_default(), words.next());
        let op = match (letter, rest) {
            (b"a", rest) => self.alloc(fields(text, rest, "a <id> <bytes> <stream>")?)?,
            (b"f", rest) => self.free(fields(text, rest, "f <id>")?)?,
            (b"r", rest) => self.record(fields(text, rest, "r <id> <stream>")?)?,
            (b"m", rest) => self.marker(text, rest)?,
            (b"e", None) => {
                self.trace.empty_caches += 1;
                Op::EmptyCache
            }
            (b"e", Some(_)) => return Err(Fault::Form { form: "e", found: shown(text) }),
            _ if text.is_empty() => return Err(Fault::Empty),
            _ => return Err(Fault::UnknownOp { found: shown(letter) }),
        };
        self.trace.ops.push(op);
        Ok(())
    }

    fn header_line(&mut self, text: &[u8]) -> Result<(), Fault> {
        if !self.trace.ops.is_empty() {
            return Err(Fault::HeaderTooLate);
        }
        let bad = || Fault::Header { found: shown(text) };
        let text = std::str::from_utf8(text).map_err(|_| Fault::NotText)?;
        let (key, value) = text.strip_prefix("# ").and_then(|text| text.split_once(':')).ok_or_else(bad)?;
        let (key, value) = (key.trim(), value.trim());
        match key {
            "" => return Err(bad()),
            "streams" => {
                let streams = number("streams", value.as_bytes()).ok().filter(|n| (1..=MAX_STREAMS.into()).contains(n));
                let streams = streams.ok_or_else(|| Fault::HeaderStreams { value: shown(value.as_bytes()) })?;
                self.trace.streams = streams as u16;
                self.streams_given = true;
            }
            "workload" if !value.is_empty() => self.trace.name = value.to_owned(),
            _ => {}
        }
        insert_new(&mut self.trace.header, key, value)
    }

    fn alloc(&mut self, [id, bytes, stream]: [&[u8]; 3]) -> Result<Op, Fault> {
        let (id, bytes) = (number("id", id)?, number("size", bytes)?);
        // MAX_OPS keeps the number of allocations far below 2^32.
        let expected = self.lives.len() as u32;
        if id != u64::from(expected) {
            return Err(Fault::NotDense { expected, found: id });
        }
        if bytes == 0 {
            return Err(Fault::SizeZero);
        }
        if bytes > MAX_BYTES - self.live_bytes {
            return Err(Fault::Absurd { bytes: bytes.saturating_add(self.live_bytes) });
        }
        let stream = self.stream(stream)?;
        self.lives.push(Life::Live { bytes });
        self.live_bytes += bytes;
        self.trace.allocs += 1;
        self.trace.peak_live_bytes = self.trace.peak_live_bytes.max(self.live_bytes);
        Ok(Op::Alloc { bytes, stream })
    }

    fn free(&mut self, [id]: [&[u8]; 1]) -> Result<Op, Fault> {
        let (id, bytes) = self.live("free", id)?;
        self.lives[id as usize] = Life::Freed { line: self.line };
        self.live_bytes -= bytes;
        self.trace.frees += 1;
        Ok(Op::Free { id })
    }

    fn record(&mut self, [id, stream]: [&[u8]; 2]) -> Result<Op, Fault> {
        let (id, _) = self.live("record_stream", id)?;
        let stream = self.stream(stream)?;
        self.trace.records += 1;
        Ok(Op::Record { id, stream })
    }

    fn marker(&mut self, text: &[u8], label: Option<&[u8]>) -> Result<Op, Fault> {
        let form = || Fault::Form { form: "m <label>", found: shown(text) };
        let label = label.filter(|label| !label.is_empty()).ok_or_else(form)?;
        let label = std::str::from_utf8(label).map_err(|_| Fault::NotText)?;
        let index = self.trace.labels.len() as u32;
        self.trace.labels.push(label.to_owned());
        Ok(Op::Marker { label: index })
    }

    /// The live allocation that `text` names, and its size.
    fn live(&self, what: &'static str, text: &[u8]) -> Result<(u32, u64), Fault> {
        let id = number("id", text)?;
        match usize::try_from(id).ok().and_then(|index| self.lives.get(index)) {
            Some(Life::Live { bytes }) => Ok((id as u32, *bytes)),
            Some(Life::Freed { line }) => Err(Fault::DeadId { what, id, line: *line }),
            None => Err(Fault::UnknownId { what, id }),
        }
    }

    /// The stream that `text` names. Without a number in the header, there are as many as are used.
    fn stream(&mut self, text: &[u8]) -> Result<u16, Fault> {
        let found = number("stream", text)?;
        let streams = if self.streams_given { self.trace.streams } else { MAX_STREAMS };
        if found >= u64::from(streams) {
            return Err(Fault::Stream { found, streams });
        }
        let stream = found as u16;
        self.trace.streams = self.trace.streams.max(stream + 1);
        Ok(stream)
    }
}

/// Exactly `N` words, each after exactly one space.
fn fields<'a, const N: usize>(line: &[u8], rest: Option<&'a [u8]>, form: &'static str) -> Result<[&'a [u8]; N], Fault> {
    let bad = || Fault::Form { form, found: shown(line) };
    let mut found = [&[][..]; N];
    let mut words = rest.ok_or_else(bad)?.split(|byte| *byte == b' ');
    for field in &mut found {
        *field = words.next().filter(|word| !word.is_empty()).ok_or_else(bad)?;
    }
    if words.next().is_some() { Err(bad()) } else { Ok(found) }
}

/// A number in decimal digits and nothing else.
fn number(what: &'static str, digits: &[u8]) -> Result<u64, Fault> {
    let bad = || Fault::Number { what, found: shown(digits) };
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0')).ok_or_else(bad)?;
        number.checked_mul(10).and_then(|number| number.checked_add(digit)).ok_or_else(bad)
    })
}

fn insert_new(header: &mut BTreeMap<String, String>, key: &str, value: &str) -> Result<(), Fault> {
    match header.insert(key.to_owned(), value.to_owned()) {
        Some(_) => Err(Fault::HeaderTwice { key: key.to_owned() }),
        None => Ok(()),
    }
}

/// Bytes of a bad line as a message can show them: printable, and not many.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 60;
    let text = bytes[..bytes.len().min(MOST)].escape_ascii().to_string();
    if bytes.len() > MOST { text + "..." } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::tests::SMALL;
    use super::*;

    fn fails(bytes: &[u8]) -> (usize, String) {
        let error = Trace::decode(bytes).unwrap_err();
        (error.line, error.to_string())
    }

    #[test]
    fn every_error_names_the_line_and_what_is_wrong() {
        const START: &str = "# stratalloc-trace 1\n# streams: 2\na 0 512 0\n";
        for (added, words) in [
            ("x 1\n", "unknown operation 'x'"),
            ("alloc 1 2 3\n", "unknown operation 'alloc'"),
            ("\n", "an empty line"),
            ("a 1 512 0 9\n", "not of the form 'a <id> <bytes> <stream>'"),
            ("a 1 512\n", "not of the form"),
            ("a  1 512 0\n", "not of the form"),
            ("f\n", "not of the form 'f <id>'"),
            ("e now\n", "not of the form 'e'"),
            ("m\n", "not of the form 'm <label>'"),
            ("a 1 5l2 0\n", "size '5l2' is not a number"),
            ("a 1 -1 0\n", "size '-1' is not a number"),
            ("a 1 +1 0\n", "size '+1' is not a number"),
            ("a 1 99999999999999999999 0\n", "too large"),
            ("f 0\r\n", "id '0\\r' is not a number"),
            ("a 1 0 0\n", "a size of 0"),
            ("a 1 140737488355328 0\n", "cannot be"),
            ("a 1 18446744073709551615 0\n", "cannot be"),
            ("a 2 512 0\n", "allocation 2 where 1 is next"),
            ("a 0 512 0\n", "allocation 0 where 1 is next"),
            ("f 7\n", "free of 7, which was never allocated"),
            ("r 18446744073709551615 0\n", "which was never allocated"),
            ("a 1 512 2\n", "stream 2: the trace has 2"),
            ("r 0 65536\n", "stream 65536"),
            ("# late: yes\n", "after the first operation"),
            ("m \u{fffd}\n", ""),
            ("f 0", "no end"),
        ] {
            let text = format!("{START}{added}");
            if words.is_empty() {
                assert!(Trace::decode(text.as_bytes()).is_ok(), "{added}");
                continue;
            }
            let (line, message) = fails(text.as_bytes());
            assert_eq!(line, 4, "{added}: {message}");
            assert!(message.starts_with("line 4: ") && message.contains(words), "{added}: {message}");
        }
        let (line, message) = fails(format!("{START}f 0\nf 0\n").as_bytes());
        assert_eq!((line, message.as_str()), (5, "line 5: free of 0, which was freed on line 4"));
        let (line, message) = fails(format!("{START}f 0\nr 0 1\n").as_bytes());
        assert_eq!((line, message.as_str()), (5, "line 5: record_stream of 0, which was freed on line 4"));
    }

    #[test]
    fn bad_beginnings() {
        for (text, words) in [
            ("", "not a trace"),
            ("a 0 1 0\n", "not a trace"),
            ("# stratalloc-trace 2\n", "not a trace"),
            ("# stratalloc-trace 1", "not a trace"),
            ("# stratalloc-trace 1\n#key: value\n", "not a header line"),
            ("# stratalloc-trace 1\n# key\n", "not a header line"),
            ("# stratalloc-trace 1\n# streams: 0\n", "not a number from 1"),
            ("# stratalloc-trace 1\n# streams: 9999\n", "not a number from 1"),
            ("# stratalloc-trace 1\n# key: 1\n# key: 1\n", "twice"),
        ] {
            assert!(fails(text.as_bytes()).1.contains(words), "{text}");
        }
        let long = format!("# stratalloc-trace 1\nm {}\n", "x".repeat(MAX_LINE));
        assert_eq!(fails(long.as_bytes()), (2, format!("line 2: {}", Fault::LongLine)));
        assert!(fails(b"# stratalloc-trace 1\nm \xff\n").1.contains("not UTF-8"));
        assert_eq!(Trace::decode(b"# stratalloc-trace 1\n").unwrap().ops, []);
    }

    #[test]
    #[cfg(feature = "zstd")]
    fn a_frame_cut_anywhere_is_an_error() {
        let mut whole = Vec::new();
        Trace::decode(SMALL.as_bytes()).unwrap().write_zst(&mut whole).unwrap();
        for end in 0..whole.len() {
            let (line, message) = fails(&whole[..end]);
            assert!(line > 0, "cut at {end}: {message}");
        }
        whole[20] ^= 1;
        assert!(Trace::decode(&whole).is_err(), "the checksum is verified");
    }
}
