//! Logs of `rmm::mr::logging_resource_adaptor`: a line a call, comma-separated, the columns named by the first line.

use super::build::Builder;
use super::{ImportFault, Imported, Notes};

/// The first line as RMM writes it. The columns may stand in any order; `Thread` and `Time` are not read.
pub(super) const HEADER: &str = "Thread,Time,Action,Pointer,Size,Stream";

const WANTED: [&str; 4] = ["Action", "Pointer", "Size", "Stream"];

pub(super) fn is_header(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    str::from_utf8(line).is_ok_and(|line| columns(line).is_some())
}

/// Where the wanted columns stand.
fn columns(header: &str) -> Option<[usize; 4]> {
    let names: Vec<&str> = header.trim_end_matches('\r').split(',').map(str::trim).collect();
    let mut found = [0; 4];
    for (place, wanted) in found.iter_mut().zip(WANTED) {
        *place = names.iter().position(|name| *name == wanted)?;
    }
    Some(found)
}

/// A call of the log.
struct Call<'a> {
    action: &'a str,
    pointer: u64,
    bytes: u64,
    stream: u64,
}

fn call<'a>(line: &'a str, columns: &[usize; 4], number: usize) -> Result<Call<'a>, ImportFault> {
    let bad = |what: String| ImportFault::Line { line: number, what };
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let cell = |column: usize| {
        let cell = cells.get(columns[column]).copied();
        cell.ok_or_else(|| bad(format!("there is no {}: the line was cut off", WANTED[column])))
    };
    let read = |column: usize, read: fn(&str) -> Option<u64>| {
        let text = cell(column)?;
        read(text).ok_or_else(|| bad(format!("'{}' is no {}", text.escape_debug(), WANTED[column])))
    };
    let size = |text: &str| text.parse().ok();
    Ok(Call { action: cell(0)?, pointer: read(1, handle)?, bytes: read(2, size)?, stream: read(3, handle)? })
}

/// A pointer or a stream: hexadecimal, or as C prints a null pointer.
fn handle(text: &str) -> Option<u64> {
    match text {
        "(nil)" | "nullptr" | "" => Some(0),
        _ => u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok(),
    }
}

pub(super) fn import(bytes: &[u8], name: &str) -> Result<Imported, ImportFault> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        ImportFault::Line { line, what: "a text that is not UTF-8".to_owned() }
    })?;
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let columns = lines.next().and_then(|(_, header)| columns(header)).ok_or(ImportFault::Unknown)?;
    let calls = lines.filter(|(_, line)| !line.trim().is_empty());

    // Frees of what the log did not see allocated: it was there before.
    let mut before: Vec<(u64, u64, u64)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (number, line) in calls.clone() {
        let call = call(line, &columns, number)?;
        match call.action {
            "allocate" => {
                seen.insert(call.pointer);
            }
            "free" if !seen.remove(&call.pointer) && call.bytes > 0 => {
                before.push((call.pointer, call.bytes, call.stream));
            }
            _ => {}
        }
    }
    before.sort_unstable();
    before.dedup_by_key(|entry| entry.0);

    let mut notes = Notes { source: Some("an RMM log"), from_before: before.len() as u64, ..Notes::default() };
    let mut builder = Builder::new(name, "an RMM log");
    for (pointer, bytes, stream) in before {
        builder.alloc(pointer, bytes, stream)?;
    }
    for (number, line) in calls {
        let call = call(line, &columns, number)?;
        match call.action {
            "allocate" | "allocate failure" if call.bytes == 0 => notes.left_out += 1,
            "allocate" => {
                if builder.is_live(call.pointer) {
                    notes.left_out += 1;
                    builder.free(call.pointer)?;
                }
                builder.alloc(call.pointer, call.bytes, call.stream)?;
            }
            "free" => {
                let stream = builder.stream(call.stream);
                if builder.home(call.pointer).is_some_and(|home| home != stream) {
                    // Its next user comes after this stream's work.
                    builder.record(call.pointer, stream)?;
                }
                notes.left_out += u64::from(!builder.free(call.pointer)?);
            }
            "allocate failure" => {
                notes.failed += 1;
                builder.failed(call.bytes, call.stream)?;
            }
            other => {
                let what =
                    format!("'{}' is no action; there are allocate, allocate failure and free", other.escape_debug());
                return Err(ImportFault::Line { line: number, what });
            }
        }
    }
    Ok(Imported { trace: builder.finish(), notes })
}
