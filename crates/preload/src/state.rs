//! All state, made at the first call that needs it and never dropped: programs call while they exit.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use stratalloc_trace::Recorder;

use crate::device::Devices;
use crate::entries::Driver;
use crate::guard::say;
use crate::hooks::stream::Captures;
use crate::ledger::{DEVICES, Ledger};
use crate::report;
use crate::resolve::Loaded;
use crate::settings::{Settings, with_process};

/// Everything that this library knows.
pub(crate) struct Shim {
    /// The driver's own functions.
    pub(crate) driver: &'static Driver,
    pub(crate) settings: Settings,
    pub(crate) ledger: Ledger,
    pub(crate) devices: Devices,
    pub(crate) blocks: Blocks,
    pub(crate) captures: Captures,
    /// How often the program has retained each primary context.
    pub(crate) retained: [AtomicU64; DEVICES],
    /// Devices for which the program has chosen a pool.
    own_pools: [AtomicBool; DEVICES],
    recorder: OnceLock<Option<Recorder>>,
}

static SHIM: OnceLock<Shim> = OnceLock::new();

impl Shim {
    /// The state, made if there is none yet.
    #[inline]
    pub(crate) fn get(loaded: &'static Loaded) -> &'static Shim {
        match SHIM.get() {
            Some(shim) => shim,
            None => Shim::make(loaded),
        }
    }

    /// The state, if there is any.
    pub(crate) fn existing() -> Option<&'static Shim> {
        SHIM.get()
    }

    #[cold]
    fn make(loaded: &'static Loaded) -> &'static Shim {
        SHIM.get_or_init(|| {
            let settings = Settings::from_env();
            if settings.report.is_some() {
                report::at_exit();
            }
            Shim {
                driver: &loaded.driver,
                ledger: Ledger::new(settings.config.limit),
                settings,
                devices: Devices::default(),
                blocks: Blocks::default(),
                captures: Captures::default(),
                retained: [const { AtomicU64::new(0) }; DEVICES],
                own_pools: [const { AtomicBool::new(false) }; DEVICES],
                recorder: OnceLock::new(),
            }
        })
    }

    /// Whether the program has chosen a pool for a device.
    pub(crate) fn has_own_pool(&self, ordinal: usize) -> bool {
        self.own_pools.get(ordinal).is_some_and(|own| own.load(Relaxed))
    }

    /// Notes which pool `cuMemAllocAsync` takes from.
    pub(crate) fn set_own_pool(&self, ordinal: usize, own: bool) {
        if let Some(slot) = self.own_pools.get(ordinal) {
            slot.store(own, Relaxed);
        }
        if let Some(device) = self.devices.of_ordinal(ordinal) {
            device.has_own_pool.store(own, Relaxed);
        }
    }

    /// The recorder, where calls are recorded.
    #[inline]
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.settings.trace.as_ref()?;
        self.recorder.get_or_init(|| self.start_recording()).as_ref()
    }

    #[cold]
    fn start_recording(&self) -> Option<Recorder> {
        let path = PathBuf::from(with_process(self.settings.trace.clone()?.into()));
        let program = std::env::current_exe().ok();
        let program =
            program.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        let program = program.unwrap_or_else(|| "unknown".to_string()).replace('\n', " ");
        match Recorder::create(&path, &[("workload", &program), ("recorded-by", "libstratalloc_preload")]) {
            Ok(recorder) => {
                report::at_exit();
                Some(recorder)
            }
            Err(error) => {
                say(format_args!("{}: {error}; nothing is recorded", path.display()));
                None
            }
        }
    }

    /// Ends the recording, if there is one.
    pub(crate) fn finish_recording(&self) {
        if let Some(Some(recorder)) = self.recorder.get()
            && let Err(error) = recorder.finish()
        {
            say(format_args!("{}: {error}; the trace is cut short", recorder.path().display()));
        }
    }
}

/// The stream that blocks from `cuMemAlloc` are recorded on in traces: no driver hands out such a handle.
const PLAIN_STREAM: u64 = u64::MAX;

/// A number for a stream that is unlike those of other devices.
pub(crate) fn trace_stream(device: usize, home: Home) -> u64 {
    let stream = match home {
        Home::Plain => PLAIN_STREAM,
        Home::Stream(stream) => stream,
    };
    stream ^ (device as u64) << 56
}

/// Where a block came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// `cuMemAlloc`: usable on every stream at once.
    Plain,
    /// `cuMemAllocAsync` on this stream.
    Stream(u64),
}

/// A block that the program has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    /// What was asked for, in bytes.
    pub(crate) size: u64,
    /// The device's ordinal.
    pub(crate) device: usize,
    pub(crate) home: Home,
    /// A number that no other block has.
    pub(crate) id: u64,
}

/// The blocks that the program has, by address: what a pointer into the middle of one belongs to, and whether a pointer is one of ours.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    state: Mutex<BlocksState>,
}

/// What the program has on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Live {
    /// Blocks.
    pub(crate) count: u64,
    /// Their bytes, as asked for.
    pub(crate) bytes: u64,
    /// Bytes of those from `cuMemAllocAsync`, and the most that they have been.
    pub(crate) ordered: u64,
    pub(crate) ordered_peak: u64,
}

impl Live {
    fn add(&mut self, block: &Block) {
        self.count += 1;
        self.bytes += block.size;
        if block.home != Home::Plain {
            self.ordered += block.size;
            self.ordered_peak = self.ordered_peak.max(self.ordered);
        }
    }

    fn sub(&mut self, block: &Block) {
        self.count -= 1;
        self.bytes -= block.size;
        if block.home != Home::Plain {
            self.ordered -= block.size;
        }
    }
}

#[derive(Debug, Default)]
struct BlocksState {
    blocks: BTreeMap<u64, Block>,
    live: BTreeMap<usize, Live>,
    /// Streams that blocks were allocated for or freed on, by device.
    streams: HashSet<(usize, u64)>,
    next_id: u64,
}

impl Blocks {
    /// Adds a block. Returns whether its stream is a new one here.
    pub(crate) fn insert(&self, ptr: u64, size: u64, device: usize, home: Home) -> bool {
        let mut state = self.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        let block = Block { size, device, home, id };
        state.blocks.insert(ptr, block);
        state.live.entry(device).or_default().add(&block);
        match home {
            Home::Plain => false,
            Home::Stream(stream) => state.streams.insert((device, stream)),
        }
    }

    /// Takes out the block that starts here. Of two threads that free it, one gets it.
    pub(crate) fn remove(&self, ptr: u64) -> Option<Block> {
        let mut state = self.state.lock();
        let block = state.blocks.remove(&ptr)?;
        state.live.entry(block.device).or_default().sub(&block);
        Some(block)
    }

    /// Puts back what [`Blocks::remove`] took.
    pub(crate) fn restore(&self, ptr: u64, block: Block) {
        let mut state = self.state.lock();
        state.live.entry(block.device).or_default().add(&block);
        state.blocks.insert(ptr, block);
    }

    /// The block that an address lies in, and where it starts.
    pub(crate) fn find(&self, ptr: u64) -> Option<(u64, Block)> {
        let state = self.state.lock();
        let (start, block) = state.blocks.range(..=ptr).next_back()?;
        (ptr - start < block.size).then_some((*start, *block))
    }

    /// What the program has on a device.
    pub(crate) fn live_on(&self, device: usize) -> Live {
        self.state.lock().live.get(&device).copied().unwrap_or_default()
    }

    /// Starts a new peak from what the program has now.
    pub(crate) fn reset_peak(&self, device: usize) {
        let mut state = self.state.lock();
        let live = state.live.entry(device).or_default();
        live.ordered_peak = live.ordered;
    }

    /// Notes that a block was freed on a stream. Returns whether it is a new one here.
    pub(crate) fn note_stream(&self, device: usize, stream: u64) -> bool {
        self.state.lock().streams.insert((device, stream))
    }

    /// Forgets a stream. Returns the devices on which it was used.
    pub(crate) fn forget_stream(&self, stream: u64) -> Vec<usize> {
        let mut state = self.state.lock();
        let devices: Vec<usize> =
            state.streams.iter().filter(|(_, s)| *s == stream).map(|(device, _)| *device).collect();
        state.streams.retain(|(_, known)| *known != stream);
        devices
    }

    /// Whether blocks were allocated for or freed on a stream.
    pub(crate) fn knows_stream(&self, stream: u64) -> bool {
        self.state.lock().streams.iter().any(|(_, known)| *known == stream)
    }

    /// Forgets a device's blocks and streams: they have gone with its context. Returns the blocks' addresses.
    pub(crate) fn clear(&self, device: usize) -> Vec<u64> {
        let mut state = self.state.lock();
        let gone: Vec<u64> = state.blocks.iter().filter(|(_, b)| b.device == device).map(|(ptr, _)| *ptr).collect();
        state.blocks.retain(|_, block| block.device != device);
        state.live.remove(&device);
        state.streams.retain(|(on, _)| *on != device);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_inside_a_block_is_found_and_its_end_is_not() {
        let blocks = Blocks::default();
        assert!(!blocks.insert(0x1000, 0x100, 0, Home::Plain));
        assert!(blocks.insert(0x1200, 0x10, 0, Home::Stream(5)));
        assert!(!blocks.insert(0x1300, 0x10, 0, Home::Stream(5)));
        assert_eq!(blocks.find(0x10ff).map(|(start, block)| (start, block.size)), Some((0x1000, 0x100)));
        assert!(blocks.find(0x1100).is_none() && blocks.find(0xfff).is_none());
        let live = |blocks: &Blocks| (blocks.live_on(0).count, blocks.live_on(0).bytes, blocks.live_on(0).ordered);
        assert_eq!(live(&blocks), (3, 0x120, 0x20));
        let block = blocks.remove(0x1000).unwrap();
        assert!(blocks.remove(0x1000).is_none());
        assert_eq!(live(&blocks), (2, 0x20, 0x20));
        blocks.restore(0x1000, block);
        assert_eq!((live(&blocks), blocks.knows_stream(5), blocks.knows_stream(6)), ((3, 0x120, 0x20), true, false));
        assert_eq!(blocks.forget_stream(5), [0]);
        assert_eq!(blocks.clear(0).len(), 3);
        assert_eq!(blocks.live_on(0), Live::default());
    }
}
