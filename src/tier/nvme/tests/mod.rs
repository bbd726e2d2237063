//! The tier on files of this machine's disk, and on files that fail.

mod faults;
mod hostile;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::files::memory::Memory;
use super::spec::{PAGE, UNIT};
use super::tier::NvmeTier;
use super::{Means, NvmeSpec};
use crate::tier::{Direction, Io, Slot, Ticket, Tier, TierError};

/// A folder of this test alone, empty, and gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        Folder::within(&std::env::temp_dir())
    }

    fn within(parent: &Path) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("stratalloc-nvme-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that differ from place to place and from seed to seed.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn memory(size: u64) -> Memory {
    Memory::new(size as usize).unwrap()
}

/// Starts a transfer of a part of a slot.
fn begin(
    tier: &NvmeTier,
    direction: Direction,
    slot: Slot,
    offset: u64,
    size: u64,
    bytes: &mut Memory,
) -> Result<Ticket, TierError> {
    assert!(bytes.bytes().len() as u64 >= size.next_multiple_of(tier.alignment()));
    // SAFETY: the tests leave a buffer alone until its transfer has ended.
    unsafe { tier.start(Io { direction, slot, offset, buffer: bytes.start(), size }) }
}

/// A whole transfer.
fn carry(tier: &NvmeTier, direction: Direction, slot: Slot, bytes: &mut Memory) -> Result<(), TierError> {
    let ticket = begin(tier, direction, slot, 0, slot.size, bytes)?;
    tier.finish(ticket, true).unwrap()
}

fn spec(folder: &Folder) -> NvmeSpec {
    NvmeSpec { stripe: UNIT, ..NvmeSpec::new([(&folder.0, 64 << 20)]) }
}

/// The same of every set of means, striped and not, encrypted and not.
fn everywhere(mut test: impl FnMut(&NvmeSpec, &Folder)) {
    let all = Means::all();
    for means in [all, all - Means::RING, all - Means::DIRECT, Means::RING, Means::empty()] {
        for files in [1, 3] {
            let folder = Folder::new();
            let paths = (1..=files).map(|index| (folder.0.clone(), index * (40 << 20)));
            let spec = NvmeSpec { stripe: UNIT, encrypt: files == 3, means, ..NvmeSpec::new(paths) };
            test(&spec, &folder);
        }
    }
}

#[test]
fn what_is_written_is_read_whatever_the_means() {
    everywhere(|spec, folder| {
        let tier = NvmeTier::open(spec).unwrap();
        let text = tier.describe();
        assert_eq!(text.contains("io_uring"), spec.means.contains(Means::RING), "{text}");
        assert_eq!(text.contains("O_DIRECT"), spec.means.contains(Means::DIRECT), "{text}");
        assert_eq!(text.contains("preallocated"), spec.means.contains(Means::PREALLOCATED), "{text}");
        assert_eq!(text.contains("named for a moment"), !spec.means.contains(Means::NAMELESS), "{text}");
        assert_eq!(folder.names(), [] as [&str; 0], "a file can be seen");
        let sizes = [1, 4095, 4096, 4097, UNIT, UNIT + 1, 3 * UNIT - 5, 1 << 20, (5 << 20) + 12345];
        let mut slots = Vec::new();
        for (seed, size) in (0..).zip(sizes) {
            let slot = tier.reserve(size).unwrap();
            assert!(slot.size == size && slot.offset.is_multiple_of(tier.alignment()));
            let mut bytes = memory(size.next_multiple_of(tier.alignment()));
            fill(bytes.bytes_mut(), seed);
            carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
            slots.push((slot, bytes));
        }
        tier.validate().unwrap();
        for (slot, bytes) in slots.iter().rev() {
            let mut back = memory(bytes.bytes().len() as u64);
            carry(&tier, Direction::Read, *slot, &mut back).unwrap();
            assert!(back.bytes()[..slot.size as usize] == bytes.bytes()[..slot.size as usize], "{slot:?} by {text}");
        }
        for (slot, _) in slots {
            tier.release(slot);
        }
        assert_eq!(tier.used(), 0);
        tier.validate().unwrap();
        drop(tier);
        assert_eq!(folder.names(), [] as [&str; 0]);
    });
}

#[test]
fn many_transfers_at_once_end_each_once_and_no_more_than_the_depth() {
    everywhere(|spec, _| {
        const COUNT: usize = 8;
        let tier = NvmeTier::open(&NvmeSpec { depth: COUNT, piece: 16 << 10, ..spec.clone() }).unwrap();
        let size = 5 * UNIT;
        let mut all: Vec<(Slot, Memory)> = (0..COUNT).map(|_| (tier.reserve(size).unwrap(), memory(size))).collect();
        for direction in [Direction::Write, Direction::Read] {
            let mut tickets = Vec::new();
            for (seed, (slot, bytes)) in (0..).zip(&mut all) {
                match direction {
                    Direction::Write => fill(bytes.bytes_mut(), seed),
                    Direction::Read => bytes.bytes_mut().fill(0),
                }
                tickets.push(begin(&tier, direction, *slot, 0, size, bytes).unwrap());
            }
            let (slot, mut more) = (all[0].0, memory(size));
            let busy = begin(&tier, direction, slot, 0, size, &mut more).unwrap_err();
            assert_eq!(busy, TierError::Busy { tier: "nvme".into(), depth: COUNT });
            // Half of them are asked for in turn, without waiting.
            let mut left: HashSet<Ticket> = tickets.iter().copied().collect();
            assert_eq!(left.len(), COUNT);
            while left.len() > COUNT / 2 {
                left.retain(|&ticket| tier.finish(ticket, false).is_none_or(|result| result.is_err()));
                std::thread::yield_now();
            }
            for ticket in left {
                tier.finish(ticket, true).unwrap().unwrap();
            }
            let told_twice = tier.finish(tickets[0], true).unwrap().unwrap_err();
            assert!(told_twice.to_string().contains("told already"), "{told_twice}");
        }
        let mut expected = memory(size);
        for (seed, (_, bytes)) in (0..).zip(&all) {
            fill(expected.bytes_mut(), seed);
            assert!(bytes.bytes() == expected.bytes());
        }
    });
}

#[test]
fn parts_of_a_slot_are_written_and_read_on_their_own() {
    everywhere(|spec, _| {
        let tier = NvmeTier::open(spec).unwrap();
        let unit = tier.alignment();
        let size = 7 * unit - 100;
        let slot = tier.reserve(size).unwrap();
        let mut whole = memory(7 * unit);
        fill(whole.bytes_mut(), 5);
        for part in [4, 0, 6, 2, 1, 5, 3] {
            let length = unit.min(size - part * unit);
            let mut bytes = memory(unit);
            bytes.bytes_mut().copy_from_slice(&whole.bytes()[(part * unit) as usize..][..unit as usize]);
            let ticket = begin(&tier, Direction::Write, slot, part * unit, length, &mut bytes).unwrap();
            tier.finish(ticket, true).unwrap().unwrap();
        }
        let mut back = memory(5 * unit);
        let ticket = begin(&tier, Direction::Read, slot, 2 * unit, size - 2 * unit, &mut back).unwrap();
        tier.finish(ticket, true).unwrap().unwrap();
        let length = (size - 2 * unit) as usize;
        assert!(back.bytes()[..length] == whole.bytes()[2 * unit as usize..][..length]);
    });
}

/// Threads start, poll and wait across each other, and some end while what they started is under way.
#[test]
fn any_thread_may_finish_what_another_started() {
    for means in [Means::all(), Means::all() - Means::RING, Means::all() - Means::DIRECT] {
        let folder = Folder::new();
        let tier = NvmeTier::open(&NvmeSpec { means, depth: 16, piece: 64 << 10, ..spec(&folder) }).unwrap();
        let size = 1 << 20;
        for round in 0..20 {
            let mut all: Vec<(Slot, Memory)> = (0..12).map(|_| (tier.reserve(size).unwrap(), memory(size))).collect();
            for direction in [Direction::Write, Direction::Read] {
                let tickets: Vec<Ticket> = std::thread::scope(|scope| {
                    let starters = (round..).zip(&mut all).map(|(seed, (slot, bytes))| {
                        let tier = &tier;
                        scope.spawn(move || {
                            match direction {
                                Direction::Write => fill(bytes.bytes_mut(), seed),
                                Direction::Read => bytes.bytes_mut().fill(0),
                            }
                            begin(tier, direction, *slot, 0, size, bytes).unwrap()
                        })
                    });
                    let starters: Vec<_> = starters.collect();
                    starters.into_iter().map(|starter| starter.join().unwrap()).collect()
                });
                std::thread::scope(|scope| {
                    for (index, ticket) in tickets.into_iter().enumerate() {
                        let tier = &tier;
                        scope.spawn(move || match index % 3 {
                            0 => loop {
                                match tier.finish(ticket, false) {
                                    Some(result) => break result.unwrap(),
                                    None => std::thread::yield_now(),
                                }
                            },
                            _ => tier.finish(ticket, true).unwrap().unwrap(),
                        });
                    }
                });
            }
            let mut expected = memory(size);
            for (seed, (slot, bytes)) in (round..).zip(all) {
                fill(expected.bytes_mut(), seed);
                assert!(bytes.bytes() == expected.bytes());
                tier.release(slot);
            }
        }
        tier.validate().unwrap();
    }
}

#[test]
fn attached_memory_serves_as_any_other_and_is_forgotten() {
    let folder = Folder::new();
    let tier = NvmeTier::open(&spec(&folder)).unwrap();
    let size = 1 << 20;
    let slot = tier.reserve(size).unwrap();
    // More often than there are numbers for memory.
    for seed in 0..200 {
        let mut bytes = memory(2 * size);
        let (start, length) = (bytes.start(), 2 * size);
        // SAFETY: the memory is there until it is detached below.
        unsafe { tier.attach(start, length) };
        fill(&mut bytes.bytes_mut()[..size as usize], seed);
        carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
        let expected = bytes.bytes()[..size as usize].to_vec();
        bytes.bytes_mut().fill(0);
        carry(&tier, Direction::Read, slot, &mut bytes).unwrap();
        assert!(bytes.bytes()[..size as usize] == expected);
        // Some stay attached until the tier is gone, as do those for which there is no number left.
        if seed % 3 == 0 {
            tier.detach(start);
        } else {
            std::mem::forget(bytes);
        }
    }
}

#[test]
fn a_tier_that_goes_waits_for_what_is_under_way() {
    everywhere(|spec, _| {
        let mut bytes = memory(8 << 20);
        for _ in 0..5 {
            let tier = NvmeTier::open(spec).unwrap();
            let slot = tier.reserve(8 << 20).unwrap();
            carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
            begin(&tier, Direction::Read, slot, 0, 8 << 20, &mut bytes).unwrap();
            drop(tier);
            // Whatever still wrote here would be seen.
            bytes.bytes_mut().fill(0x5A);
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(bytes.bytes().iter().all(|&byte| byte == 0x5A));
        }
    });
}

#[test]
fn what_the_contract_forbids_is_an_error_and_no_access() {
    let folder = Folder::new();
    for encrypt in [false, true] {
        let tier = NvmeTier::open(&NvmeSpec { encrypt, ..spec(&folder) }).unwrap();
        let unit = tier.alignment();
        let slot = tier.reserve(2 * unit).unwrap();
        let mut bytes = memory(4 * unit);
        let mut refused = |slot, offset, size| {
            let error = begin(&tier, Direction::Read, slot, offset, size, &mut bytes).unwrap_err();
            assert!(matches!(error, TierError::Io { .. }), "{error}");
            error.to_string()
        };
        assert!(refused(slot, 0, 3 * unit).contains("within the slot"));
        assert!(refused(slot, u64::MAX - unit + 1, unit).contains("within the slot"));
        assert!(refused(slot, 100, 100).contains("multiple"));
        assert!(refused(Slot { offset: 7 * unit, ..slot }, 0, unit).contains("no such slot"));
        let start = bytes.start().wrapping_add(512);
        // SAFETY: the buffer is large enough; the transfer is refused.
        let error =
            unsafe { tier.start(Io { direction: Direction::Read, slot, offset: 0, buffer: start, size: unit }) };
        assert!(error.unwrap_err().to_string().contains("aligned"));
        // Nothing at all is fine.
        let ticket = begin(&tier, Direction::Write, slot, 0, 0, &mut bytes).unwrap();
        tier.finish(ticket, false).unwrap().unwrap();
        if encrypt {
            let error = carry(&tier, Direction::Read, slot, &mut bytes).unwrap_err();
            assert!(error.to_string().contains("nothing was ever stored"), "{error}");
        }
        tier.release(slot);
        tier.release(slot);
        assert_eq!(tier.used(), 0);
        let stale = begin(&tier, Direction::Read, slot, 0, unit, &mut bytes).unwrap_err();
        assert!(stale.to_string().contains("no such slot"), "{stale}");
        assert!(tier.finish(Ticket(77), true).unwrap().is_err());
    }
}

#[test]
fn a_full_tier_says_so_and_serves_again_when_there_is_room() {
    let folder = Folder::new();
    let tier = NvmeTier::open(&NvmeSpec { stripe: UNIT, ..NvmeSpec::new([(&folder.0, (1 << 20) + 5)]) }).unwrap();
    assert_eq!(tier.capacity(), 1 << 20);
    let first = tier.reserve(1 << 19).unwrap();
    let _second = tier.reserve((1 << 19) - 1).unwrap();
    let full = tier.reserve(1).unwrap_err();
    let expected = TierError::Full { tier: "nvme".into(), size: 1, used: 1 << 20, capacity: 1 << 20 };
    assert_eq!((full.is_full(), full), (true, expected));
    tier.release(first);
    assert_eq!(tier.reserve(PAGE).unwrap().offset, first.offset);
}
