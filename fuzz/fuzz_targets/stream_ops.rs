//! Operations of several programs on one software device with the checker on, against a model of intervals: no two live blocks
//! overlap, nothing is reused before stream order permits, counts add up. Several allocators share the device, each program has several
//! streams, and work takes time, so that one input stands for one interleaving of as many threads.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, Backing, SoftDevice};
use stratalloc::{
    AllocFlags, AllocRequest, Allocator, Checkpoint, Config, DevicePtr, DeviceSpec, Error, Lifetime, PoolId, StreamId,
};

/// Small, so that slow paths run: 24 chunks.
const CAPACITY: u64 = 48 << 20;
const STREAMS: usize = 4;
const ALLOCATORS: usize = 2;
const LIVE_MAX: usize = 512;

#[derive(Debug, Arbitrary)]
enum Size {
    Small(u16),
    Medium(u16),
    Large(u8),
}

impl Size {
    fn bytes(&self) -> u64 {
        match *self {
            Size::Small(bytes) => u64::from(bytes) + 1,
            Size::Medium(granules) => u64::from(granules % 4096 + 1) * 512 - 1,
            Size::Large(half_mib) => u64::from(half_mib % 32 + 1) << 19,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Op {
    Alloc {
        allocator: bool,
        stream: u8,
        size: Size,
        alignment: u8,
        persistent: bool,
        no_grow: bool,
        dedicated: bool,
    },
    Free {
        which: u16,
    },
    /// Another stream waits for the block's last user, then uses the block, and is recorded for it.
    Record {
        which: u16,
        stream: u8,
    },
    /// The home stream uses the block.
    Use {
        which: u16,
        ns: u16,
    },
    Advance {
        ns: u16,
    },
    EmptyCache {
        allocator: bool,
    },
    BeginPrivate {
        allocator: bool,
        pool: u8,
        stream: u8,
        capture: bool,
        lends: bool,
    },
    EndPrivate {
        allocator: bool,
    },
    ReleasePrivate {
        allocator: bool,
        pool: u8,
    },
    EmptyPrivate {
        allocator: bool,
        pool: u8,
    },
    Checkpoint {
        allocator: bool,
        pool: u8,
    },
    /// To the last checkpoint of an allocator.
    Restore {
        allocator: bool,
    },
    /// Frees what is not there to be freed.
    BadFree {
        allocator: bool,
        which: u16,
        offset: u16,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    seed: u8,
    lag_us: u8,
    magazines_off: bool,
    cross_stream_wait: bool,
    gc: bool,
    ops: Vec<Op>,
}

#[derive(Clone)]
struct Block {
    allocator: usize,
    size: u64,
    home: StreamId,
    last: StreamId,
    recorded: bool,
}

struct Program {
    device: Arc<SoftDevice>,
    allocators: Vec<Allocator>,
    streams: Vec<StreamId>,
    /// By address.
    live: BTreeMap<u64, Block>,
    /// By allocator: the private pool being filled, whether as by a capture, and how often each pool was begun.
    open: [Option<(PoolId, bool)>; ALLOCATORS],
    begun: [BTreeMap<PoolId, u32>; ALLOCATORS],
    /// By allocator: a checkpoint, and the blocks of its pool then.
    checkpoints: [Option<(Checkpoint, BTreeMap<u64, Block>)>; ALLOCATORS],
}

impl Program {
    fn new(input: &Input) -> Program {
        let builder = SoftDevice::builder(CAPACITY).backing(Backing::AddressesOnly).checker(true);
        let device = builder.seed(u64::from(input.seed)).event_lag_ns(u64::from(input.lag_us) * 100).build().unwrap();
        let magazine = if input.magazines_off { "0" } else { "0.25" };
        let gc = if input.gc { "0.5" } else { "1" };
        let text = format!("magazine:{magazine},cross_stream_wait:{},gc_threshold:{gc}", input.cross_stream_wait);
        let open = || {
            let builder = Allocator::builder().device(DeviceSpec::Driver(device.clone()));
            builder.config(Config::parse(&text).unwrap()).build().unwrap()
        };
        let allocators = (0..ALLOCATORS).map(|_| open()).collect();
        let streams = (0..STREAMS).map(|_| device.create_stream().unwrap()).collect();
        let (open, begun, checkpoints) = Default::default();
        Program { device, allocators, streams, live: BTreeMap::new(), open, begun, checkpoints }
    }

    fn nth(&self, which: u16) -> Option<u64> {
        let count = self.live.len();
        (count > 0).then(|| *self.live.keys().nth(usize::from(which) % count).expect("below the count"))
    }

    fn stream(&self, number: u8) -> StreamId {
        self.streams[usize::from(number) % STREAMS]
    }

    fn order(&self, from: StreamId, to: StreamId) {
        let event = self.device.create_event().unwrap();
        self.device.record_event(event, from).unwrap();
        self.device.wait_event(to, event).unwrap();
        self.device.destroy_event(event).unwrap();
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Alloc { allocator, stream, ref size, alignment, persistent, no_grow, dedicated } => {
                if self.live.len() < LIVE_MAX {
                    let mut flags = AllocFlags::empty();
                    flags.set(AllocFlags::NO_GROW, no_grow);
                    flags.set(AllocFlags::DEDICATED, dedicated);
                    let request = AllocRequest::new(size.bytes())
                        .stream(self.stream(stream))
                        .alignment(if dedicated { 1 } else { 1 << (alignment % 22) })
                        .lifetime(if persistent { Lifetime::Persistent } else { Lifetime::Unknown })
                        .flags(flags);
                    self.alloc(usize::from(allocator), request);
                }
            }
            Op::Free { which } => {
                if let Some(addr) = self.nth(which) {
                    self.free(addr);
                }
            }
            Op::Record { which, stream } => {
                let (Some(addr), user) = (self.nth(which), self.stream(stream)) else { return };
                let last = self.live[&addr].last;
                if last != user {
                    self.order(last, user);
                }
                let block = self.live.get_mut(&addr).expect("it is live");
                block.last = user;
                block.recorded = true;
                self.device.launch(user, &[Access::write(DevicePtr(addr), block.size)], 3_000).unwrap();
                self.allocators[block.allocator].record_stream(DevicePtr(addr), user).unwrap();
            }
            Op::Use { which, ns } => {
                let Some(addr) = self.nth(which) else { return };
                let (home, last) = (self.live[&addr].home, self.live[&addr].last);
                if last != home {
                    self.order(last, home);
                }
                let block = self.live.get_mut(&addr).expect("it is live");
                block.last = home;
                self.device.launch(home, &[Access::write(DevicePtr(addr), block.size)], u64::from(ns)).unwrap();
            }
            Op::Advance { ns } => self.device.advance_clock(u64::from(ns)),
            Op::EmptyCache { allocator } => {
                let emptied = self.allocators[usize::from(allocator)].empty_cache(0);
                let capturing = self.open[usize::from(allocator)].is_some_and(|(_, capture)| capture);
                assert_eq!(emptied.is_err(), capturing, "{emptied:?}");
            }
            Op::BeginPrivate { allocator, pool, stream, capture, lends } => {
                let (index, pool, only) = (usize::from(allocator), PoolId(0, u64::from(pool % 2)), self.stream(stream));
                if self.open[index].is_none() {
                    let filter = move |stream| stream == only;
                    if capture {
                        self.allocators[index].begin_private_pool(0, pool, filter).unwrap();
                    } else {
                        self.allocators[index].route_private_pool(0, pool, filter).unwrap();
                    }
                    self.allocators[index].lend_private_pool(0, pool, lends).unwrap();
                    self.open[index] = Some((pool, capture));
                    *self.begun[index].entry(pool).or_default() += 1;
                }
            }
            Op::EndPrivate { allocator } => {
                if let Some((pool, _)) = self.open[usize::from(allocator)].take() {
                    self.allocators[usize::from(allocator)].end_private_pool(0, pool).unwrap();
                }
            }
            Op::ReleasePrivate { allocator, pool } => {
                let (index, pool) = (usize::from(allocator), PoolId(0, u64::from(pool % 2)));
                let begun = self.begun[index].entry(pool).or_default();
                let expected = *begun > 0 && self.open[index].is_none_or(|(open, _)| open != pool);
                let released = self.allocators[index].release_private_pool(0, pool);
                assert_eq!(released.is_ok(), expected, "{released:?}");
                *begun -= u32::from(expected);
            }
            Op::EmptyPrivate { allocator, pool } => {
                let (index, pool) = (usize::from(allocator), PoolId(0, u64::from(pool % 2)));
                let capturing = self.open[index].is_some_and(|(_, capture)| capture);
                let emptied = self.allocators[index].empty_private_pool(0, pool);
                assert_eq!(emptied.is_err(), capturing, "{emptied:?}");
            }
            Op::Checkpoint { allocator, pool } => {
                let (index, pool) = (usize::from(allocator), PoolId(0, u64::from(pool % 2)));
                let exists = self.begun[index].get(&pool).is_some_and(|&begun| begun > 0);
                let checkpoint = self.allocators[index].checkpoint(0, pool);
                assert_eq!(checkpoint.is_ok(), exists);
                if let Ok(checkpoint) = checkpoint {
                    let then = self.of_pool(index, pool);
                    assert_eq!(checkpoint.blocks().map(|(ptr, _)| ptr.0).collect::<Vec<_>>(), keys(&then));
                    self.checkpoints[index] = Some((checkpoint, then));
                }
            }
            Op::Restore { allocator } => self.restore(usize::from(allocator)),
            Op::BadFree { allocator, which, offset } => {
                let addr = self.nth(which).unwrap_or(0).wrapping_add(u64::from(offset));
                let own = self.live.get(&addr).is_some_and(|block| block.allocator == usize::from(allocator));
                if !own {
                    let freed = self.allocators[usize::from(allocator)].raw_free(DevicePtr(addr));
                    assert!(matches!(freed, Err(Error::InvalidPointer { .. } | Error::DoubleFree { .. })), "{freed:?}");
                }
            }
        }
    }

    /// The live blocks of a private pool.
    fn of_pool(&self, index: usize, pool: PoolId) -> BTreeMap<u64, Block> {
        let allocator = &self.allocators[index];
        let is_in_pool = |addr: u64| allocator.block_at(DevicePtr(addr)).is_some_and(|(_, b)| b.pool == Some(pool));
        let blocks = self.live.iter().filter(|&(&addr, block)| block.allocator == index && is_in_pool(addr));
        blocks.map(|(&addr, block)| (addr, block.clone())).collect()
    }

    fn restore(&mut self, index: usize) {
        let Some((checkpoint, then)) = &self.checkpoints[index] else { return };
        let pool = checkpoint.pool();
        let now = self.of_pool(index, pool);
        let exists = self.begun[index].get(&pool).is_some_and(|&begun| begun > 0);
        let restored = match self.allocators[index].restore(0, checkpoint) {
            Ok(restored) => restored,
            Err(error) => {
                // The pool has gone, or has gone and come again, or has frees that wait for streams.
                return assert!(matches!(error, Error::UnknownPool { .. }), "{error}");
            }
        };
        assert!(exists);
        let mut freed: Vec<u64> = restored.freed.iter().map(|ptr| ptr.0).collect();
        freed.sort_unstable();
        assert_eq!(freed, keys(&now));
        assert_eq!(restored.allocated.iter().map(|(ptr, _)| ptr.0).collect::<Vec<_>>(), keys(then));
        for (&addr, block) in &now {
            if !then.contains_key(&addr) {
                // Its users are the caller's business: they wait before the memory is anybody else's.
                self.device.synchronize_stream(block.last).unwrap();
                self.device.note_free(DevicePtr(addr), block.size);
                self.live.remove(&addr);
            }
        }
        for (&addr, block) in then {
            if !now.contains_key(&addr) {
                self.device.note_alloc(DevicePtr(addr), block.size, block.home);
                self.live.insert(addr, Block { last: block.home, recorded: false, ..block.clone() });
            }
        }
    }

    fn alloc(&mut self, allocator: usize, request: AllocRequest) {
        let (size, stream) = (request.size, request.stream);
        match self.allocators[allocator].raw_alloc(request) {
            Ok(ptr) => {
                assert_eq!(ptr.0 % request.alignment.max(512), 0);
                let usable = self.allocators[allocator].usable_size(ptr).unwrap();
                assert!(usable >= size);
                let below = self.live.range(..ptr.0 + usable).next_back();
                if let Some((addr, block)) = below {
                    assert!(addr + block.size <= ptr.0, "{ptr} overlaps a block at {addr:#x}");
                }
                self.device.note_alloc(ptr, size, stream);
                self.device.launch(stream, &[Access::write(ptr, size)], 3_000).unwrap();
                self.live.insert(ptr.0, Block { allocator, size, home: stream, last: stream, recorded: false });
            }
            Err(Error::OutOfMemory(_) | Error::NeverFits { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn free(&mut self, addr: u64) {
        let block = self.live.remove(&addr).expect("it is live");
        self.device.note_free(DevicePtr(addr), block.size);
        self.allocators[block.allocator].raw_free(DevicePtr(addr)).unwrap();
    }

    fn check(&self) {
        for (index, allocator) in self.allocators.iter().enumerate() {
            allocator.validate(0).unwrap().unwrap();
            let live: u64 = self.live.values().filter(|block| block.allocator == index).map(|block| block.size).sum();
            assert_eq!(allocator.stats(0).unwrap().live.current, live);
        }
        if let Some(report) = self.device.reports().first() {
            panic!("{report}");
        }
    }
}

fn keys(blocks: &BTreeMap<u64, Block>) -> Vec<u64> {
    blocks.keys().copied().collect()
}

fuzz_target!(|input: Input| {
    let mut program = Program::new(&input);
    for op in &input.ops {
        program.apply(op);
        program.check();
    }
    while let Some((&addr, _)) = program.live.first_key_value() {
        program.free(addr);
    }
    for index in 0..ALLOCATORS {
        if let Some((pool, _)) = program.open[index].take() {
            program.allocators[index].end_private_pool(0, pool).unwrap();
        }
    }
    program.check();
    // Everything goes back to the device, but what the streams, events and leftover checks of the program itself hold.
    program.allocators.clear();
    let leaks = program.device.leaks();
    assert_eq!((leaks.reservations, leaks.chunks, leaks.mappings, leaks.events), (0, 0, 0, 0), "{leaks}");
});
