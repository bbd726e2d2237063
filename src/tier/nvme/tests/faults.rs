//! Files in memory that fail, fall short, break off and answer out of order, as a seed says; and a tier on them against a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::super::files::{Done, Files, Op};
use super::*;

/// A small generator, of which each schedule has its own.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Odds {
    /// One in so many reads and writes; 0: none.
    fail: u64,
    short: u64,
    break_off: u64,
    /// Bits of what was written that change afterwards.
    alter: u64,
}

struct State {
    files: Vec<Vec<u8>>,
    random: Random,
    odds: Odds,
    waiting: Vec<Op>,
    done: Vec<Done>,
    /// The disk's size, over all files.
    room: u64,
}

/// Files that do as they are told.
struct Faulty(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    submitted: AtomicU32,
}

impl State {
    fn hits(&mut self, odds: u64) -> bool {
        odds > 0 && self.random.below(odds) == 0
    }

    fn end_one(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let index = self.random.below(self.waiting.len() as u64) as usize;
        let op = self.waiting.swap_remove(index);
        let result = self.carry_out(&op);
        self.done.push(Done { token: op.token, result });
    }

    fn carry_out(&mut self, op: &Op) -> i32 {
        if self.hits(self.odds.break_off) {
            return -[libc::EINTR, libc::EAGAIN, libc::ECANCELED][self.random.below(3) as usize];
        }
        let mut size = op.size as usize;
        if self.hits(self.odds.short) {
            // A read of nothing would be the end of the file.
            let least = usize::from(op.direction == Direction::Read);
            size = least.max(self.random.below(op.size.into()) as usize);
        }
        // What fails may have been done in part.
        let failed = self.hits(self.odds.fail);
        let at = op.offset as usize;
        let file = &mut self.files[op.file];
        match op.direction {
            Direction::Write => {
                assert!(at + size <= file.len(), "a write beyond what was extended: {op:?}");
                // SAFETY: the buffer is ours until the end is told.
                file[at..at + size].copy_from_slice(unsafe { std::slice::from_raw_parts(op.buffer, size) });
            }
            Direction::Read => {
                let at = at.min(file.len());
                size = size.min(file.len() - at);
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(op.buffer, size) }.copy_from_slice(&file[at..at + size]);
            }
        }
        if failed {
            let errors: &[i32] =
                if op.direction == Direction::Write { &[libc::EIO, libc::ENOSPC, libc::EDQUOT] } else { &[libc::EIO] };
            return -errors[self.random.below(errors.len() as u64) as usize];
        }
        if op.direction == Direction::Write && size > 0 && self.hits(self.odds.alter) {
            let byte = at + self.random.below(size as u64) as usize;
            self.files[op.file][byte] ^= 1 << self.random.below(8);
        }
        size as i32
    }
}

impl Files for Faulty {
    fn extend(&self, file: usize, from: u64, to: u64) -> Result<(), i32> {
        let mut state = self.0.state.lock();
        assert_eq!(state.files[file].len() as u64, from);
        let used: u64 = state.files.iter().map(|file| file.len() as u64).sum();
        if used + (to - from) > state.room {
            return Err(libc::ENOSPC);
        }
        state.files[file].resize(to as usize, 0xEE);
        Ok(())
    }

    // SAFETY: as the trait says.
    unsafe fn submit(&self, ops: &[Op]) {
        self.0.submitted.fetch_add(ops.len() as u32, Ordering::Relaxed);
        self.0.state.lock().waiting.extend(ops);
    }

    fn reap(&self, done: &mut Vec<Done>) {
        let mut state = self.0.state.lock();
        if state.random.below(3) == 0 {
            state.end_one();
        }
        done.append(&mut state.done);
    }

    fn wait(&self) {
        let mut state = self.0.state.lock();
        assert!(!state.waiting.is_empty() || !state.done.is_empty(), "waiting for nothing");
        state.end_one();
    }

    fn describe(&self) -> String {
        "files that fail".to_string()
    }
}

const DEPTH: usize = 4;

fn tier(seed: u64, encrypt: bool, room: u64, odds: Odds) -> (NvmeTier, Arc<Shared>) {
    let spec = NvmeSpec {
        stripe: UNIT,
        depth: DEPTH,
        piece: 8 << 10,
        encrypt,
        ..NvmeSpec::new([("a", 1 << 20), ("b", 1 << 19)])
    };
    let state = State {
        files: vec![Vec::new(), Vec::new()],
        random: Random::new(seed),
        odds,
        waiting: Vec::new(),
        done: Vec::new(),
        room,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), submitted: AtomicU32::new(0) });
    let files = Box::new(Faulty(Arc::clone(&shared)));
    let tier = NvmeTier::over(&spec, files, vec!["/mnt/a".into(), "/mnt/b".into()], None).unwrap();
    (tier, shared)
}

/// What the model knows of a slot.
struct Known {
    slot: Slot,
    /// The seed of its bytes; `None` after a write that failed.
    seed: Option<u64>,
    under_way: Option<(Ticket, Direction, u64, Memory)>,
}

/// One schedule: random calls, each result compared with the model.
fn run(seed: u64, encrypt: bool, odds: Odds) {
    let mut random = Random::new(!seed);
    let room = if random.below(4) == 0 { 512 << 10 } else { u64::MAX };
    let (tier, shared) = tier(seed, encrypt, room, odds);
    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    let mut next_seed = 0;
    let mut corrupt = 0;
    let mut settle = |known: &mut Known, wait: bool| {
        let Some((ticket, direction, written, bytes)) = &known.under_way else { return true };
        let Some(result) = tier.finish(*ticket, wait) else { return !wait };
        match (direction, result) {
            (Direction::Write, result) => {
                known.seed = result.is_ok().then_some(*written);
                if let Err(error) = result {
                    let text = error.to_string();
                    assert!(odds.fail > 0 && text.contains("write") && text.contains("/mnt/"), "{text}");
                }
            }
            (Direction::Read, Ok(())) => {
                let mut expected = memory(bytes.bytes().len() as u64);
                let seed = known.seed.expect("a read of what was never stored whole");
                fill(expected.bytes_mut(), seed);
                let size = known.slot.size as usize;
                let same = bytes.bytes()[..size] == expected.bytes()[..size];
                assert!(same || odds.alter > 0 && !encrypt, "{:?}", known.slot);
            }
            (Direction::Read, Err(TierError::Corrupt { .. })) => {
                assert!(odds.alter > 0 && encrypt);
                corrupt += 1;
            }
            (Direction::Read, Err(error)) => {
                let text = error.to_string();
                assert!(odds.fail > 0 && text.contains("read") && text.contains("/mnt/"), "{text}");
            }
        }
        known.under_way = None;
        true
    };
    for _ in 0..60 {
        let pick = random.below(known.len().max(1) as u64) as usize;
        let picked = known.keys().nth(pick).copied();
        match (random.below(10), picked) {
            (0..=2, _) | (_, None) => match tier.reserve(1 + random.below(200 << 10)) {
                Ok(slot) => {
                    let fresh = Known { slot, seed: None, under_way: None };
                    assert!(known.insert(slot.offset, fresh).is_none(), "a slot twice");
                }
                Err(error) => assert!(error.is_full(), "{error}"),
            },
            (3..=6, Some(offset)) => {
                let one = known.get_mut(&offset).unwrap();
                let read = one.seed.is_some() && random.below(2) == 0;
                if one.under_way.is_none() {
                    let mut bytes = memory(one.slot.size.next_multiple_of(tier.alignment()));
                    next_seed += 1;
                    let direction = if read { Direction::Read } else { Direction::Write };
                    if !read {
                        fill(bytes.bytes_mut(), next_seed);
                        one.seed = None;
                    }
                    match begin(&tier, direction, one.slot, 0, one.slot.size, &mut bytes) {
                        Ok(ticket) => one.under_way = Some((ticket, direction, next_seed, bytes)),
                        Err(error) => assert!(matches!(error, TierError::Busy { depth: DEPTH, .. }), "{error}"),
                    }
                }
            }
            (7..=8, Some(offset)) => {
                settle(known.get_mut(&offset).unwrap(), random.below(2) == 0);
            }
            (_, Some(offset)) => {
                let mut one = known.remove(&offset).unwrap();
                assert!(settle(&mut one, true), "a transfer that never ends");
                tier.release(one.slot);
            }
        }
    }
    for one in known.values_mut() {
        assert!(settle(one, true), "a transfer that never ends");
    }
    tier.validate().unwrap();
    let taken: u64 = known.values().map(|one| one.slot.size.next_multiple_of(tier.alignment())).sum();
    assert_eq!(tier.used(), taken);
    // Without faults from now on, all that was stored whole is there.
    shared.state.lock().odds = Odds::default();
    for one in known.into_values() {
        if let Some(seed) = one.seed {
            let mut bytes = memory(one.slot.size.next_multiple_of(tier.alignment()));
            let result = carry(&tier, Direction::Read, one.slot, &mut bytes);
            let mut expected = memory(bytes.bytes().len() as u64);
            fill(expected.bytes_mut(), seed);
            let size = one.slot.size as usize;
            match result {
                Ok(()) => assert!(bytes.bytes()[..size] == expected.bytes()[..size] || odds.alter > 0 && !encrypt),
                Err(error) => {
                    assert!(odds.alter > 0 && encrypt && matches!(error, TierError::Corrupt { .. }), "{error}")
                }
            }
        }
        tier.release(one.slot);
    }
    assert_eq!(tier.used(), 0);
    tier.validate().unwrap();
}

fn schedules(count: u64) {
    for seed in 0..count {
        let mut random = Random::new(seed << 20);
        let mut odds = || [0, 3, 30][random.below(3) as usize];
        let odds = Odds { fail: odds(), short: odds(), break_off: odds(), alter: if seed % 5 == 0 { 10 } else { 0 } };
        run(seed, seed % 4 == 0, odds);
    }
}

#[test]
fn random_faults_lose_nothing_that_was_stored() {
    schedules(400);
}

#[test]
#[ignore = "long: `cargo xtask validate` runs it"]
fn long_ten_thousand_random_faults_lose_nothing_that_was_stored() {
    schedules(10_000);
}

#[test]
fn an_error_names_the_folder_and_the_place_and_the_next_transfer_works() {
    let (tier, shared) = tier(1, false, u64::MAX, Odds { fail: 1, ..Odds::default() });
    let slot = tier.reserve(UNIT + 8192).unwrap();
    let mut bytes = memory(UNIT + 8192);
    fill(bytes.bytes_mut(), 3);
    let error = carry(&tier, Direction::Write, slot, &mut bytes).unwrap_err();
    let TierError::Io { what, errno, .. } = &error else { panic!("{error}") };
    assert!(what.starts_with("write 8 KiB at ") && what.contains("of the file in /mnt/"), "{what}");
    assert!([libc::EIO, libc::ENOSPC, libc::EDQUOT].contains(errno));
    assert_eq!(error.is_full(), *errno != libc::EIO);
    // The first error ends it: the rest was not tried.
    assert!(shared.submitted.load(Ordering::Relaxed) <= DEPTH as u32 + 1);
    shared.state.lock().odds = Odds::default();
    carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
    let mut back = memory(UNIT + 8192);
    carry(&tier, Direction::Read, slot, &mut back).unwrap();
    assert!(back.bytes() == bytes.bytes());
}

#[test]
fn a_disk_that_only_breaks_off_or_writes_nothing_is_given_up() {
    for odds in [Odds { break_off: 1, ..Odds::default() }, Odds { short: 1, ..Odds::default() }] {
        let (tier, _) = tier(1, false, u64::MAX, odds);
        // Of a page, any part is too little.
        let slot = tier.reserve(4096).unwrap();
        let error = carry(&tier, Direction::Write, slot, &mut memory(4096)).unwrap_err();
        assert!(matches!(error, TierError::Io { .. }), "{error}");
    }
}

#[test]
fn a_file_that_ends_too_early_is_no_endless_read() {
    let (tier, shared) = tier(1, false, u64::MAX, Odds::default());
    let slot = tier.reserve(UNIT).unwrap();
    let mut bytes = memory(UNIT);
    carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
    for length in [0, 5000, 8192, 8192 + 17] {
        shared.state.lock().files[0].truncate(length);
        let error = carry(&tier, Direction::Read, slot, &mut bytes).unwrap_err();
        let TierError::Io { reason, errno: 0, .. } = &error else { panic!("{error:?}") };
        assert!(reason.contains("the file ends before it") || reason.contains("does not get on"), "{error}");
        shared.state.lock().files[0].resize(1 << 20, 0);
    }
}
