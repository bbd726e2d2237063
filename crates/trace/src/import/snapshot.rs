//! PyTorch's snapshots: what `torch.cuda.memory._snapshot()` returns, as `_dump_snapshot` and `stratalloc::snapshot::write_pickle` write
//! it. The history of events is followed; the state at the end tells what was there before the history begins.

use std::collections::HashSet;

use super::build::Builder;
use super::pickle::{Pickle, Value};
use super::{ImportFault, Imported, Notes};

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Alloc,
    FreeRequested,
    FreeCompleted,
    /// Memory came from the driver.
    SegmentTaken,
    /// Memory went back to the driver.
    SegmentGiven,
    OutOfMemory,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    action: Action,
    address: u64,
    size: u64,
    stream: u64,
    private: bool,
}

pub(super) fn import(bytes: &[u8], name: &str, device: Option<usize>) -> Result<Imported, ImportFault> {
    let pickle = Pickle::read(bytes)?;
    let wrong = |what: &str| ImportFault::NotASnapshot { what: what.to_owned() };
    let root = pickle.root();
    let list = |key: &str| {
        let value = pickle.get(root, key).ok_or_else(|| wrong(&format!("there is no '{key}'")))?;
        pickle.items(value).ok_or_else(|| wrong(&format!("'{key}' is no list")))
    };
    let (segments, traces) = (list("segments")?, list("device_traces")?);
    let mut notes = Notes { source: Some("a PyTorch snapshot"), ..Notes::default() };
    let device = choose(&pickle, traces, device, &mut notes)?;
    let events = events(&pickle, traces[device])?;
    let before = before(&pickle, segments, device, &events)?;
    notes.from_before = before.len() as u64;

    let mut follow = Follow { builder: Builder::new(name, "a PyTorch snapshot"), notes, pending: HashSet::new() };
    // The default stream, by far the commonest, keeps its number whoever comes first.
    follow.builder.stream(0);
    for (address, size, stream) in before {
        follow.builder.alloc(address, size, stream)?;
    }
    // Ours gives chunks back to have them elsewhere: that says nothing about the program.
    let settings = pickle.get(root, "allocator_settings").and_then(|settings| pickle.get(settings, "allocator"));
    let moves_memory = settings.and_then(|name| pickle.text(name)) == Some("stratalloc");
    follow.all(&events, moves_memory)?;
    Ok(Imported { trace: follow.builder.finish(), notes: follow.notes })
}

/// The device that is asked for, or that with the most events.
fn choose(
    pickle: &Pickle<'_>,
    traces: &[Value],
    device: Option<usize>,
    notes: &mut Notes,
) -> Result<usize, ImportFault> {
    let count = |trace: Value| pickle.items(trace).map_or(0, <[Value]>::len);
    let there: Vec<usize> = (0..traces.len()).filter(|&device| count(traces[device]) > 0).collect();
    let most = there.iter().copied().max_by_key(|&device| (count(traces[device]), usize::MAX - device));
    let most = most.ok_or(ImportFault::NoHistory)?;
    let chosen = device.unwrap_or(most);
    if !there.contains(&chosen) {
        let there = there.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(ImportFault::NoSuchDevice { device: chosen, there });
    }
    notes.device = (there.len() > 1).then_some((chosen, there.len()));
    Ok(chosen)
}

fn events(pickle: &Pickle<'_>, trace: Value) -> Result<Vec<Event>, ImportFault> {
    let mut events = Vec::new();
    for (index, &entry) in pickle.items(trace).unwrap_or_default().iter().enumerate() {
        pickle.step()?;
        let wrong = |what: String| ImportFault::NotASnapshot { what: format!("event {index} {what}") };
        let action = pickle.get(entry, "action").and_then(|action| pickle.text(action));
        let action = match action.ok_or_else(|| wrong("has no action".to_owned()))? {
            "alloc" => Action::Alloc,
            "free" | "free_requested" => Action::FreeRequested,
            "free_completed" => Action::FreeCompleted,
            "segment_alloc" | "segment_map" => Action::SegmentTaken,
            "segment_free" | "segment_unmap" => Action::SegmentGiven,
            "oom" => Action::OutOfMemory,
            "snapshot" | "workspace_snapshot" => continue,
            other => {
                return Err(wrong(format!("is a '{}'", other.chars().take(40).collect::<String>().escape_debug())));
            }
        };
        let number = |key: &str| match pickle.get(entry, key) {
            Some(Value::Int(number)) => u64::try_from(number).ok(),
            _ => None,
        };
        let wanted = |key: &str| number(key).ok_or_else(|| wrong(format!("has no {key}")));
        let address = if action == Action::OutOfMemory { 0 } else { wanted("addr")? };
        let pool = pickle.get(entry, "pool_id").and_then(|pool| pickle.items(pool));
        let private = pool.is_some_and(|pool| pool.iter().any(|part| !matches!(part, Value::Int(0))));
        events.push(Event { action, address, size: wanted("size")?, stream: number("stream").unwrap_or(0), private });
    }
    Ok(events)
}

/// What was allocated before the history begins, by address: what is freed without having been allocated, and what lives at the end
/// without having been. With sizes and streams.
fn before(
    pickle: &Pickle<'_>,
    segments: &[Value],
    device: usize,
    events: &[Event],
) -> Result<Vec<(u64, u64, u64)>, ImportFault> {
    let mut live = HashSet::new();
    let mut seen = HashSet::new();
    let mut before = Vec::new();
    for event in events {
        match event.action {
            Action::Alloc => {
                live.insert(event.address);
                seen.insert(event.address);
            }
            Action::FreeRequested => {
                let was_live = live.remove(&event.address);
                if seen.insert(event.address) && !was_live && event.size > 0 {
                    before.push((event.address, event.size, event.stream));
                }
            }
            _ => {}
        }
    }
    for &segment in segments {
        pickle.step()?;
        let number = |dict: Value, key: &str| match pickle.get(dict, key) {
            Some(Value::Int(number)) => u64::try_from(number).ok(),
            _ => None,
        };
        if number(segment, "device").unwrap_or(0) != device as u64 {
            continue;
        }
        let stream = number(segment, "stream").unwrap_or(0);
        let wrong = |what: &str| ImportFault::NotASnapshot { what: format!("a {what}") };
        let mut address = number(segment, "address").ok_or_else(|| wrong("segment has no address"))?;
        let blocks = pickle.get(segment, "blocks").and_then(|blocks| pickle.items(blocks));
        for &block in blocks.ok_or_else(|| wrong("segment has no blocks"))? {
            pickle.step()?;
            let size = number(block, "size").ok_or_else(|| wrong("block has no size"))?;
            let at = number(block, "address").unwrap_or(address);
            let state = pickle.get(block, "state").and_then(|state| pickle.text(state));
            if state == Some("active_allocated") && !seen.contains(&at) {
                let requested = number(block, "requested_size").filter(|&bytes| bytes > 0).unwrap_or(size);
                if requested > 0 && seen.insert(at) {
                    before.push((at, requested, stream));
                }
            }
            address = at.checked_add(size).ok_or_else(|| wrong("block ends beyond all addresses"))?;
        }
    }
    before.sort_unstable();
    Ok(before)
}

/// The history on its way into a trace.
struct Follow {
    builder: Builder,
    notes: Notes,
    /// Addresses whose free was requested and has yet to complete.
    pending: HashSet<u64>,
}

impl Follow {
    fn all(&mut self, events: &[Event], moves_memory: bool) -> Result<(), ImportFault> {
        let streams = streams(events);
        let mut index = 0;
        while let Some(event) = events.get(index) {
            if matches!(event.action, Action::Alloc) {
                self.notes.private += u64::from(event.private);
            }
            match event.action {
                Action::Alloc if event.size == 0 => self.notes.left_out += 1,
                Action::Alloc => {
                    if self.builder.is_live(event.address) {
                        self.notes.left_out += 1;
                        self.builder.free(event.address)?;
                    }
                    self.pending.remove(&event.address);
                    self.builder.alloc(event.address, event.size, event.stream)?;
                }
                Action::FreeRequested => {
                    let completes =
                        |next: &Event| next.action == Action::FreeCompleted && next.address == event.address;
                    let at_once = events.get(index + 1).is_some_and(completes);
                    if self.builder.is_live(event.address) && !at_once {
                        self.notes.deferred += 1;
                        self.record(event.address, &streams)?;
                    }
                    self.pending.insert(event.address);
                    self.notes.left_out += u64::from(!self.builder.free(event.address)?);
                }
                Action::FreeCompleted => {
                    // A history may leave requests out. What was pending when it began is no request of the program's.
                    if !self.pending.remove(&event.address) && !self.builder.free(event.address)? {
                        self.notes.left_out += 1;
                    }
                }
                Action::SegmentTaken => {}
                Action::SegmentGiven if moves_memory => {}
                Action::SegmentGiven => {
                    index = self.given_back(events, index)?;
                    continue;
                }
                Action::OutOfMemory if event.size == 0 => self.notes.left_out += 1,
                Action::OutOfMemory => {
                    self.notes.failed += 1;
                    self.builder.failed(event.size, event.stream)?;
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// Memory goes back to the driver: on `empty_cache`, or for a request that found none. Then memory is taken right after. Returns the
    /// index of what follows.
    fn given_back(&mut self, events: &[Event], from: usize) -> Result<usize, ImportFault> {
        let given = events[from..].iter().take_while(|event| event.action == Action::SegmentGiven).count();
        let next = events.get(from + given).map(|event| event.action);
        if matches!(next, Some(Action::SegmentTaken | Action::OutOfMemory)) {
            self.notes.pressed += 1;
        } else {
            self.builder.empty_cache()?;
        }
        Ok(from + given)
    }

    /// A use on another stream: the program's only other one, or the first of the others.
    fn record(&mut self, address: u64, streams: &[u64]) -> Result<(), ImportFault> {
        let Some(home) = self.builder.home(address) else { return Ok(()) };
        // At most one of the first two is the home stream. A program of which one stream is known has another one.
        for &key in streams.iter().take(2).chain([&u64::MAX]) {
            let stream = self.builder.stream(key);
            if stream != home {
                return self.builder.record(address, stream);
            }
        }
        Ok(())
    }
}

/// The streams of a history, by first use.
fn streams(events: &[Event]) -> Vec<u64> {
    let mut seen = HashSet::new();
    events.iter().map(|event| event.stream).filter(|&stream| seen.insert(stream)).collect()
}
