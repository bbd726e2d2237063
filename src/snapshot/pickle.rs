//! Snapshots as `pytorch.org/memory_viz` opens them: a Python pickle of protocol 2, made of plain containers, numbers and strings only, so that
//! nothing has to be executed to read it.
//!
//! The page works addresses out by adding sizes up, and so wants blocks that tile their segments; it plays events backwards, and so wants
//! every block to lie in a segment that is there or that an event has mapped.

use std::collections::HashMap;
use std::io::{Result, Write};

use super::Snapshot;
use crate::telemetry::{BlockInfo, BlockState, Event, EventKind, SegmentInfo};
use crate::units::PoolId;

/// How many items go into one APPENDS, as Python's own pickler has it and the page expects.
const BATCH: usize = 1000;

/// Writes devices for `pytorch.org/memory_viz`, and for whatever else reads `torch.cuda.memory._snapshot()`. Give one snapshot a device, in
/// the order of their ordinals.
///
/// ```
/// use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec, snapshot};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(1))).build()?;
/// let _block = allocator.alloc(AllocRequest::new(1 << 20))?;
/// let mut file = Vec::new();
/// snapshot::write_pickle(&[allocator.snapshot(0)?], &mut file)?;
/// # Ok(())
/// # }
/// ```
pub fn write_pickle(snapshots: &[Snapshot], to: &mut impl Write) -> Result<()> {
    let mut pickle = Pickle { to, memo: HashMap::new() };
    pickle.op(&[PROTO, 2])?;
    pickle.dict(|top| {
        let segments = snapshots.iter().flat_map(|s| s.segments.iter().map(move |segment| (s.device, segment)));
        top.key("segments")?;
        top.list(segments, |pickle, (device, segment)| write_segment(pickle, device, segment))?;
        top.key("device_traces")?;
        top.list(snapshots, |pickle, snapshot| pickle.list(entries(&snapshot.events), write_entry))?;
        top.key("allocator_settings")?;
        top.dict(|settings| {
            settings.key("allocator")?;
            settings.text("stratalloc")
        })?;
        top.key("external_annotations")?;
        top.list([(); 0], |_, ()| Ok(()))
    })?;
    pickle.op(&[STOP])
}

fn write_segment<W: Write>(pickle: &mut Pickle<'_, W>, device: usize, segment: &SegmentInfo) -> Result<()> {
    let live = segment.bytes_in(BlockState::Live);
    pickle.dict(|dict| {
        dict.number("device", device as u64)?;
        dict.number("address", segment.ptr.0)?;
        dict.number("total_size", segment.size)?;
        dict.number("allocated_size", live)?;
        dict.number("active_size", live + segment.bytes_in(BlockState::Pending))?;
        dict.number("requested_size", segment.requested())?;
        dict.number("stream", segment.stream.0)?;
        dict.key("segment_type")?;
        dict.text(if segment.large { "large" } else { "small" })?;
        dict.key("segment_pool_id")?;
        dict.pool(segment.pool)?;
        dict.key("is_expandable")?;
        dict.op(&[if segment.expandable { NEWTRUE } else { NEWFALSE }])?;
        dict.no_frames()?;
        dict.key("blocks")?;
        dict.list(&segment.blocks, write_block)
    })
}

fn write_block<W: Write>(pickle: &mut Pickle<'_, W>, block: &BlockInfo) -> Result<()> {
    pickle.dict(|dict| {
        dict.number("address", block.ptr.0)?;
        dict.number("size", block.size)?;
        dict.number("requested_size", block.requested)?;
        dict.key("state")?;
        dict.text(match block.state {
            BlockState::Live => "active_allocated",
            BlockState::Pending => "active_pending_free",
            BlockState::Free => "inactive",
        })?;
        dict.no_frames()
    })
}

/// Events under the names that the page has for them. An ordinary free is requested and completed at once.
fn entries(events: &[Event]) -> impl Iterator<Item = (&'static str, &Event)> {
    events.iter().flat_map(|event| {
        let names: &[&str] = match event.kind {
            EventKind::Alloc => &["alloc"],
            EventKind::Free => &["free_requested", "free_completed"],
            EventKind::FreeDeferred => &["free_requested"],
            EventKind::FreeCompleted => &["free_completed"],
            EventKind::Map => &["segment_map"],
            EventKind::Unmap => &["segment_unmap"],
            EventKind::OutOfMemory => &["oom"],
            EventKind::RecordStream
            | EventKind::EmptyCache
            | EventKind::Evicted
            | EventKind::Spilled
            | EventKind::Restored => &[],
        };
        names.iter().map(move |&name| (name, event))
    })
}

fn write_entry<W: Write>(pickle: &mut Pickle<'_, W>, (action, event): (&'static str, &Event)) -> Result<()> {
    pickle.dict(|dict| {
        dict.key("action")?;
        dict.text(action)?;
        dict.number(if action == "oom" { "device_free" } else { "addr" }, event.ptr.0)?;
        dict.number("size", event.size)?;
        dict.number("stream", event.stream.0)?;
        dict.number("time_us", event.time_us)?;
        dict.key("pool_id")?;
        dict.pool(event.pool)?;
        dict.no_frames()
    })
}

const PROTO: u8 = 0x80;
const STOP: u8 = b'.';
const MARK: u8 = b'(';
const EMPTY_DICT: u8 = b'}';
const EMPTY_LIST: u8 = b']';
const SETITEMS: u8 = b'u';
const APPENDS: u8 = b'e';
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const BINUNICODE: u8 = b'X';
const LONG_BINPUT: u8 = b'r';
const LONG_BINGET: u8 = b'j';
const TUPLE2: u8 = 0x86;
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;

/// Writes the few opcodes that are needed.
struct Pickle<'a, W> {
    to: &'a mut W,
    /// Strings written already, by their place in the reader's memo.
    memo: HashMap<&'static str, u32>,
}

impl<W: Write> Pickle<'_, W> {
    fn op(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes)
    }

    fn dict(&mut self, items: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.op(&[EMPTY_DICT, MARK])?;
        items(self)?;
        self.op(&[SETITEMS])
    }

    fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        write: impl Fn(&mut Self, T) -> Result<()>,
    ) -> Result<()> {
        self.op(&[EMPTY_LIST])?;
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            self.op(&[MARK])?;
            items.by_ref().take(BATCH).try_for_each(|item| write(self, item))?;
            self.op(&[APPENDS])?;
        }
        Ok(())
    }

    fn text(&mut self, text: &'static str) -> Result<()> {
        if let Some(place) = self.memo.get(text) {
            let place = place.to_le_bytes();
            self.op(&[LONG_BINGET])?;
            return self.op(&place);
        }
        let place = self.memo.len() as u32;
        self.memo.insert(text, place);
        self.op(&[BINUNICODE])?;
        self.op(&(text.len() as u32).to_le_bytes())?;
        self.op(text.as_bytes())?;
        self.op(&[LONG_BINPUT])?;
        self.op(&place.to_le_bytes())
    }

    fn key(&mut self, name: &'static str) -> Result<()> {
        self.text(name)
    }

    fn int(&mut self, value: u64) -> Result<()> {
        let bytes = value.to_le_bytes();
        match value {
            0..=0xff => self.op(&[BININT1, bytes[0]]),
            0x100..=0xffff => self.op(&[BININT2, bytes[0], bytes[1]]),
            0x1_0000..=0x7fff_ffff => {
                self.op(&[BININT])?;
                self.op(&bytes[..4])
            }
            _ => {
                // As a signed number: one byte more where the highest bit would be taken for the sign.
                let length = (u64::BITS - value.leading_zeros()) as usize / 8 + 1;
                self.op(&[LONG1, length as u8])?;
                self.op(&bytes[..length.min(8)])?;
                self.op(&[0][..length - length.min(8)])
            }
        }
    }

    fn number(&mut self, name: &'static str, value: u64) -> Result<()> {
        self.key(name)?;
        self.int(value)
    }

    fn pool(&mut self, pool: Option<PoolId>) -> Result<()> {
        let PoolId(first, second) = pool.unwrap_or_default();
        self.int(first)?;
        self.int(second)?;
        self.op(&[TUPLE2])
    }

    fn no_frames(&mut self) -> Result<()> {
        self.key("frames")?;
        self.op(&[EMPTY_LIST])
    }
}
