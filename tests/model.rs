//! Random programs of several streams against a model of what is in use, under the eyes of the happens-before checker.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, check, check_empties, pattern, probes, soft};
use parking_lot::Mutex;
use proptest::prelude::*;
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, Backing, SoftDevice};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, ByteSize, DevicePtr, Error, Lifetime, Limit, OomAction, PoolId, Rung, StreamId,
};

const STREAMS: usize = 4;
const KERNEL_NS: u64 = 4_000;

/// A block in use.
#[derive(Debug, Clone)]
struct Block {
    size: u64,
    usable: u64,
    home: usize,
    tag: usize,
    /// Where its last writer ran: whoever uses it next waits for that.
    last: usize,
    /// Of its bytes, where the device has any.
    seed: u64,
}

/// What a program runs on.
#[derive(Debug, Clone)]
struct Settings {
    seed: u64,
    capacity_mib: u64,
    text: &'static str,
    vmm: bool,
    data: bool,
    event_lag_ns: u64,
}

struct Program {
    rng: Rng,
    device: Arc<SoftDevice>,
    allocator: Allocator,
    streams: Vec<StreamId>,
    tags: [stratalloc::Tag; 2],
    capacity: u64,
    data: bool,
    blocks: BTreeMap<u64, Block>,
    filling: Option<PoolId>,
    capturing: bool,
    pools: Vec<PoolId>,
    /// Blocks that an observer may give up.
    spare: Arc<Mutex<Vec<DevicePtr>>>,
    allocs: u64,
}

impl Program {
    fn new(settings: &Settings) -> Program {
        let capacity = settings.capacity_mib * MIB;
        let backing = if settings.data { Backing::Memfd } else { Backing::AddressesOnly };
        let builder = SoftDevice::builder(capacity).backing(backing).seed(settings.seed).checker(true);
        let (device, allocator) = soft(builder.vmm(settings.vmm).event_lag_ns(settings.event_lag_ns), settings.text);
        let streams = (0..STREAMS).map(|_| device.create_stream().unwrap()).collect();
        let tags = ["one", "two"].map(|name| allocator.tag(name).unwrap());
        let spare: Arc<Mutex<Vec<DevicePtr>>> = Arc::default();
        let (given, again, checker) = (spare.clone(), allocator.clone(), device.clone());
        allocator.add_oom_observer(move |_| match given.lock().pop() {
            Some(ptr) => {
                checker.note_free(ptr, MIB);
                again.raw_free(ptr).unwrap();
                OomAction::Retry
            }
            None => OomAction::Fail,
        });
        Program {
            rng: Rng(settings.seed),
            device,
            allocator,
            streams,
            tags,
            capacity,
            data: settings.data,
            blocks: BTreeMap::new(),
            filling: None,
            capturing: false,
            pools: Vec::new(),
            spare,
            allocs: 0,
        }
    }

    fn pick(&mut self) -> Option<(DevicePtr, Block)> {
        let index = self.rng.index(self.blocks.len());
        self.blocks.iter().nth(index).map(|(&at, block)| (DevicePtr(at), block.clone()))
    }

    fn request(&mut self) -> (AllocRequest, usize, usize) {
        let home = self.rng.index(STREAMS);
        let size = match self.rng.below(4) {
            0 => self.rng.pick(&[1, 512, 513, 9 * KIB, 64 * KIB, 64 * KIB + 1, MIB, 2 * MIB, 6 * MIB]),
            _ => self.rng.size(self.capacity / 5),
        };
        let tag = self.rng.index(8);
        let mut request = AllocRequest::new(size).stream(self.streams[home]);
        if let Some(&tag) = self.tags.get(tag) {
            request = request.tag(tag);
        }
        if self.rng.percent(10) {
            request = request.alignment(512 << self.rng.below(13));
        }
        if self.rng.percent(20) {
            request = request.lifetime(self.rng.pick(&[Lifetime::Persistent, Lifetime::Transient]));
        }
        if self.rng.percent(5) {
            request = request.flags(AllocFlags::NO_GROW);
        }
        if self.rng.percent(5) {
            request = request.alignment(512).flags(request.flags | AllocFlags::DEDICATED);
        }
        (request, home, tag)
    }

    fn alloc(&mut self) {
        let (request, home, tag) = self.request();
        let ptr = match self.allocator.raw_alloc(request) {
            Ok(ptr) => ptr,
            Err(Error::OutOfMemory(shortage)) => return assert_eq!(shortage.size, request.size),
            Err(Error::NeverFits { size, limit, .. }) => {
                return assert!(size > limit.unwrap_or(self.capacity) / 512 * 512);
            }
            Err(error) => panic!("{error}"),
        };
        self.allocs += 1;
        let usable = self.allocator.usable_size(ptr).unwrap();
        assert!(ptr.0.is_multiple_of(request.alignment) && usable >= request.size);
        if let Some((start, other)) = self.blocks.range(..ptr.0 + usable).next_back() {
            assert!(start + other.usable <= ptr.0, "{ptr} overlaps {start:#x}: {other:?}");
        }
        self.device.note_alloc(ptr, request.size, request.stream);
        let block = Block { size: request.size, usable, home, tag, last: home, seed: self.rng.bits() };
        self.device.launch(request.stream, &[Access::write(ptr, request.size)], KERNEL_NS).unwrap();
        if self.data {
            for (at, len) in probes(ptr, block.size) {
                self.device.write(at, &pattern(block.seed ^ at.0, len), request.stream).unwrap();
            }
        }
        self.blocks.insert(ptr.0, block);
    }

    /// Later work of one stream comes after that of another.
    fn order(&self, before: usize, after: usize) {
        if before != after {
            let event = self.device.create_event().unwrap();
            self.device.record_event(event, self.streams[before]).unwrap();
            self.device.wait_event(self.streams[after], event).unwrap();
            self.device.destroy_event(event).unwrap();
        }
    }

    /// Another stream uses a block, and says so.
    fn use_elsewhere(&mut self) {
        let Some((ptr, block)) = self.pick() else { return };
        let user = self.rng.index(STREAMS);
        self.order(block.last, user);
        self.allocator.record_stream(ptr, self.streams[user]).unwrap();
        let access = if self.data { Access::read } else { Access::write };
        self.device.launch(self.streams[user], &[access(ptr, block.size)], KERNEL_NS).unwrap();
        if let Some(block) = self.blocks.get_mut(&ptr.0) {
            block.last = user;
        }
    }

    fn free(&mut self) {
        let Some((ptr, block)) = self.pick() else { return };
        if self.data && block.last == block.home {
            for (at, len) in probes(ptr, block.size) {
                let mut found = vec![0; len];
                self.device.read(&mut found, at, self.streams[block.home]).unwrap();
                // The second probe of a block of up to 64 bytes is the first one again.
                assert!(found == pattern(block.seed ^ at.0, len) || block.size < 128, "{at} has changed: {block:?}");
            }
        }
        self.device.note_free(ptr, block.size);
        self.allocator.raw_free(ptr).unwrap();
        self.blocks.remove(&ptr.0);
    }

    fn pools(&mut self) {
        match self.filling {
            Some(pool) => {
                self.allocator.end_private_pool(0, pool).unwrap();
                (self.filling, self.capturing) = (None, false);
            }
            None if self.rng.percent(50) && !self.pools.is_empty() => {
                let pool = self.pools.swap_remove(self.rng.index(self.pools.len()));
                self.allocator.release_private_pool(0, pool).unwrap();
                if self.rng.percent(50) {
                    self.allocator.empty_private_pool(0, pool).unwrap();
                }
            }
            None => {
                let (pool, stream) = (PoolId(0, 1 + self.rng.below(3)), self.rng.pick(&self.streams));
                let filter = move |other| other == stream;
                self.capturing = self.rng.percent(50);
                if self.capturing {
                    self.allocator.begin_private_pool(0, pool, filter).unwrap();
                } else {
                    self.allocator.route_private_pool(0, pool, filter).unwrap();
                }
                self.allocator.lend_private_pool(0, pool, self.rng.percent(50)).unwrap();
                self.filling = Some(pool);
                self.pools.push(pool);
                if self.rng.percent(20) {
                    self.allocator.retain_private_pool(0, pool).unwrap();
                    self.pools.push(pool);
                }
                let users = self.pools.iter().filter(|&&other| other == pool).count();
                assert_eq!(self.allocator.private_pool_users(0, pool), Ok(users));
            }
        }
    }

    fn set_limit(&mut self) {
        let limit = self.rng.pick(&[0.3, 0.6, 0.9, 1.0]);
        match self.allocator.set_limit(0, Limit::Fraction(limit)) {
            Ok(()) | Err(Error::LimitBelowUse { .. }) => {}
            Err(Error::Capturing { .. }) => assert!(self.capturing),
            Err(error) => panic!("{error}"),
        }
    }

    /// Keeps a block for an observer to give up.
    fn spare(&mut self) {
        if let Ok(ptr) = self.allocator.raw_alloc(AllocRequest::new(MIB).stream(self.streams[0])) {
            self.device.note_alloc(ptr, MIB, self.streams[0]);
            self.allocs += 1;
            self.spare.lock().push(ptr);
        }
    }

    fn step(&mut self) {
        match self.rng.below(1000) {
            0..480 => self.alloc(),
            480..800 => self.free(),
            800..880 => self.use_elsewhere(),
            880..930 => {
                let ns = self.rng.below(30_000);
                self.device.advance_clock(ns);
            }
            930..950 => {
                let (before, after) = (self.rng.index(STREAMS), self.rng.index(STREAMS));
                self.order(before, after);
            }
            950..960 => match self.allocator.empty_cache(0) {
                Ok(_) => {}
                Err(Error::Capturing { .. }) => assert!(self.capturing),
                Err(error) => panic!("{error}"),
            },
            960..970 => self.set_limit(),
            970..990 => self.pools(),
            // Next to nothing is in use: a fresh start, where memory is full.
            990..994 => (self.blocks.len().min(3)..self.blocks.len()).for_each(|_| self.free()),
            _ => self.spare(),
        }
    }

    #[track_caller]
    fn compare(&self) {
        let stats = check(&self.allocator, 0);
        let spare = self.spare.lock().len() as u64;
        let live: u64 = self.blocks.values().map(|block| block.size).sum();
        let active: u64 = self.blocks.values().map(|block| block.usable).sum();
        assert_eq!(stats.live.current, live + spare * MIB);
        assert_eq!(stats.active.current, active + spare * MIB + stats.pending);
        assert_eq!((stats.allocs, stats.allocs - stats.frees), (self.allocs, self.blocks.len() as u64 + spare));
        let of =
            |tag: usize| self.blocks.values().filter(|block| block.tag == tag).map(|block| block.size).sum::<u64>();
        let tags = [0, 1].map(|tag| (self.tags[tag].number(), of(tag)));
        assert_eq!(stats.tags, tags.into_iter().filter(|&(_, bytes)| bytes > 0).collect::<Vec<_>>());
        if let Some(report) = self.device.reports().first() {
            panic!("{report}");
        }
    }

    /// Runs the program to its end. Gives the requests that each rung has served.
    fn run(mut self, steps: usize) -> [u64; Rung::ALL.len()] {
        for step in 0..steps {
            self.step();
            if step % 16 == 0 {
                self.compare();
            }
        }
        if self.filling.is_some() {
            self.pools();
        }
        while !self.blocks.is_empty() {
            self.free();
        }
        for ptr in std::mem::take(&mut *self.spare.lock()) {
            self.device.note_free(ptr, MIB);
            self.allocator.raw_free(ptr).unwrap();
        }
        for pool in std::mem::take(&mut self.pools) {
            self.allocator.release_private_pool(0, pool).unwrap();
        }
        self.compare();
        let rungs = self.allocator.stats(0).unwrap().rungs;
        self.allocator.set_limit(0, Limit::Bytes(ByteSize(self.capacity))).unwrap();
        check_empties(&self.allocator, 0);
        assert_eq!(self.device.reports(), []);
        rungs
    }
}

const TEXTS: [&str; 9] = [
    "",
    "cross_stream_wait:true",
    "magazine:0",
    "magazine:0,cross_stream_wait:true",
    "chunk:4MiB",
    "gc_threshold:0.4",
    "plan:inline",
    "address_space:1,magazine:1",
    "trace:64,limit:0.7",
];

fn settings() -> impl Strategy<Value = Settings> {
    let lag = prop::sample::select(vec![0, 1_000, 60_000]);
    let text = prop::sample::select(TEXTS.to_vec());
    let capacity = prop::sample::select(vec![16, 24, 64, 256]);
    (any::<u64>(), capacity, text, prop::bool::weighted(0.85), any::<bool>(), lag).prop_map(
        |(seed, capacity_mib, text, vmm, data, event_lag_ns)| Settings {
            seed,
            capacity_mib,
            text,
            vmm,
            data,
            event_lag_ns,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        rng_seed: prop::test_runner::RngSeed::Fixed(2026),
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_programs_agree_with_the_model(settings in settings(), steps in 50usize..700) {
        Program::new(&settings).run(steps);
    }
}

#[test]
fn fixed_programs_reach_every_rung() {
    let mut reached = [0; Rung::ALL.len()];
    for seed in 0..64 {
        let index = seed as usize;
        let settings = Settings {
            seed: seed + 1,
            capacity_mib: [16, 32, 64][index % 3],
            text: TEXTS[index % TEXTS.len()],
            vmm: seed % 11 != 10,
            data: seed % 4 == 0,
            event_lag_ns: [0, 20_000][index / 2 % 2],
        };
        let rungs = Program::new(&settings).run(500);
        reached.iter_mut().zip(rungs).for_each(|(sum, count)| *sum += count);
    }
    // There are no tiers here.
    for rung in Rung::ALL.into_iter().filter(|&rung| rung != Rung::Evict) {
        assert!(reached[rung as usize] > 0, "no request was served by rung '{}': {reached:?}", rung.name());
    }
}
