//! A device, tiers to be tested with, and bytes that are known again.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use stratalloc::driver::soft::{SoftDevice, SoftDeviceBuilder};
use stratalloc::driver::{Driver, Location};
use stratalloc::tier::codec::Codec;
use stratalloc::tier::transfer::EngineConfig;
use stratalloc::tier::{Direction, Io, Slot, Ticket, Tier, TierError};
use stratalloc::{DevicePtr, StreamId};

pub const UNIT: u64 = 4096;

/// Small pieces and little staging memory, so that few bytes go everywhere.
pub fn small(workers: usize) -> EngineConfig {
    EngineConfig { staging_bytes: 96 << 10, piece_bytes: 16 << 10, depth: 8, workers, check_device: false }
}

pub fn builder() -> SoftDeviceBuilder {
    SoftDevice::builder(64 << 20).granularity(64 << 10).checker(true)
}

/// Device memory of its own, with access.
pub fn device_memory(driver: &dyn Driver, size: u64) -> DevicePtr {
    let unit = driver.properties().granularity;
    let size = size.next_multiple_of(unit);
    let at = driver.reserve(size, unit).unwrap();
    let chunk = driver.create(size, Location::Device).unwrap();
    driver.map(at, size, chunk, 0).unwrap();
    driver.set_access(at, size).unwrap();
    driver.release(chunk).unwrap();
    at
}

/// Bytes that depend on `seed` and on where they are.
pub fn pattern(seed: u64, size: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

pub fn read(driver: &dyn Driver, at: DevicePtr, size: u64, stream: StreamId) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    driver.read(&mut bytes, at, stream).unwrap();
    bytes
}

/// What goes wrong in a [`RamTier`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// The n-th read or write fails, from 1.
    pub fail: u64,
    /// The n-th read brings a changed byte.
    pub alter: u64,
    /// Nothing ends before so many others have been asked about.
    pub late: u64,
}

/// A tier in ordinary memory, which only the host reads and writes: a file without a disk.
#[derive(Debug)]
pub struct RamTier {
    state: Mutex<Ram>,
    capacity: u64,
    depth: usize,
}

#[derive(Debug, Default)]
struct Ram {
    memory: Vec<u8>,
    slots: BTreeMap<u64, u64>,
    tickets: BTreeMap<u64, (u64, Result<(), TierError>)>,
    next: u64,
    reads: u64,
    trouble: Trouble,
}

impl RamTier {
    pub fn new(capacity: u64, depth: usize) -> Arc<RamTier> {
        let state = Ram { memory: vec![0; capacity as usize], ..Ram::default() };
        Arc::new(RamTier { state: Mutex::new(state), capacity, depth })
    }

    pub fn trouble(&self, trouble: Trouble) {
        let mut state = self.state.lock();
        (state.next, state.reads, state.trouble) = (0, 0, trouble);
    }

    fn error(what: &str) -> TierError {
        TierError::Io { tier: "ram".into(), what: what.into(), reason: "planted".into(), errno: 5 }
    }
}

impl Tier for RamTier {
    fn name(&self) -> &str {
        "ram"
    }
    fn capacity(&self) -> u64 {
        self.capacity
    }
    fn used(&self) -> u64 {
        self.state.lock().slots.values().map(|size| size.next_multiple_of(UNIT)).sum()
    }
    fn alignment(&self) -> u64 {
        UNIT
    }
    fn reserve(&self, size: u64) -> Result<Slot, TierError> {
        let used = self.used();
        let mut state = self.state.lock();
        let mut offset = 0;
        for (&at, &taken) in &state.slots {
            if at - offset >= size {
                break;
            }
            offset = (at + taken).next_multiple_of(UNIT);
        }
        if offset + size > self.capacity {
            return Err(TierError::Full { tier: "ram".into(), size, used, capacity: self.capacity });
        }
        state.slots.insert(offset, size);
        Ok(Slot { offset, size })
    }
    fn release(&self, slot: Slot) {
        assert!(self.state.lock().slots.remove(&slot.offset).is_some(), "{slot:?} was not out");
    }
    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        self.state.lock().slots.insert(slot.offset, size);
        Slot { size, ..slot }
    }
    /// # Safety
    /// As [`Tier::start`] says.
    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError> {
        let Io { direction, slot, offset, buffer, size } = io;
        assert!(offset.is_multiple_of(UNIT) && (buffer as usize).is_multiple_of(UNIT as usize), "{io:?}");
        assert!(size.is_multiple_of(UNIT) || offset + size == slot.size, "{io:?}");
        assert!(offset + size <= slot.size, "{io:?}");
        let state = &mut *self.state.lock();
        if state.tickets.len() >= self.depth {
            return Err(TierError::Busy { tier: "ram".into(), depth: self.depth });
        }
        state.next += 1;
        let mut result = Ok(());
        let at = (slot.offset + offset) as usize;
        // SAFETY: the caller's promise.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, size as usize) };
        let memory = &mut state.memory[at..at + size as usize];
        match direction {
            _ if state.next == state.trouble.fail => result = Err(RamTier::error("planted failure")),
            Direction::Write => memory.copy_from_slice(buffer),
            Direction::Read => {
                state.reads += 1;
                buffer.copy_from_slice(memory);
                if state.reads == state.trouble.alter {
                    buffer[size as usize / 2] ^= 0x10;
                }
            }
        }
        state.tickets.insert(state.next, (state.trouble.late, result));
        Ok(Ticket(state.next))
    }
    fn finish(&self, ticket: Ticket, wait: bool) -> Option<Result<(), TierError>> {
        let mut state = self.state.lock();
        let (late, _) = state.tickets.get_mut(&ticket.0).expect("a ticket ends once");
        if *late > 0 && !wait {
            *late -= 1;
            return None;
        }
        state.tickets.remove(&ticket.0).map(|(_, result)| result)
    }
}

/// Runs of equal bytes as two bytes each.
#[derive(Debug)]
pub struct Runs;

impl Codec for Runs {
    fn name(&self) -> &str {
        "runs"
    }
    fn bound(&self, size: usize) -> usize {
        size + 64
    }
    fn encode(&self, src: &[u8], dst: &mut [u8]) -> Result<usize, TierError> {
        let mut length = 0;
        for run in src.chunk_by(|a, b| a == b).flat_map(|run| run.chunks(255)) {
            if length + 2 > src.len() {
                // As long as it was: the engine stores it as it is.
                return Ok(src.len());
            }
            dst[length..length + 2].copy_from_slice(&[run.len() as u8, run[0]]);
            length += 2;
        }
        Ok(length)
    }
    fn decode(&self, src: &[u8], dst: &mut [u8]) -> Result<(), TierError> {
        let mut at = 0;
        for run in src.chunks(2) {
            dst[at..at + run[0] as usize].fill(run[1]);
            at += run[0] as usize;
        }
        assert_eq!(at, dst.len());
        Ok(())
    }
    fn lossless(&self) -> bool {
        true
    }
}
