//! Random programs over evictable blocks whose bytes go to files, to another device, and through codecs: what comes back is what went, or what a
//! lossy codec promises of it.
//!
//! `STRATALLOC_TEST_SCHEDULES` is how many programs are run, as for `tier_faults`.

#![allow(clippy::print_stdout, reason = "the program that failed is to be known")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::rig::{KIB, MIB, Rng, config, request};
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, Backing, SoftDevice};
use stratalloc::tier::codec::{Codec, by_name};
use stratalloc::tier::{Evictable, Select, SleepAction, SleepPlan};
use stratalloc::{AllocRequest, Allocator, DevicePtr, DeviceSpec, Error, ResidencyError, StreamId, Tag};

const STEPS: usize = 60;
const DEVICE: u64 = 16 * MIB;
const SIZES: [u64; 6] = [1000, 64 * KIB, 700 * KIB, 2 * MIB, 2 * MIB + 4, 3 * MIB - 400];
/// What is stored by itself, and how.
const CODECS: [&str; 6] = ["none", "none", "lossless16", "lossless32", "int8-f32", "int4-f32"];
/// How often a program is looked at as a whole.
const LOOK: usize = 20;

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Places {
    Files,
    HostThenFiles,
    SealedFiles,
    Peer,
    HostThenPeer,
}

const PLACES: [Places; 5] =
    [Places::Files, Places::HostThenFiles, Places::SealedFiles, Places::Peer, Places::HostThenPeer];

impl Places {
    fn text(self) -> String {
        let folder = folder();
        let folder = folder.display();
        match self {
            Places::Files => format!("tiers:nvme={folder}=160MiB"),
            Places::HostThenFiles => format!("tiers:host=6MiB+nvme={folder}=160MiB"),
            Places::SealedFiles => format!("tiers:nvme={folder}=160MiB,tier_encrypt:true"),
            Places::Peer => "tiers:peer=1=160MiB".to_owned(),
            Places::HostThenPeer => "tiers:host=6MiB+peer=1=160MiB".to_owned(),
        }
    }

    fn can_be(self) -> bool {
        matches!(self, Places::Peer | Places::HostThenPeer) || cfg!(all(feature = "nvme", target_os = "linux"))
    }
}

fn folder() -> PathBuf {
    let path: PathBuf = [env!("CARGO_TARGET_TMPDIR"), "tier_random"].iter().collect();
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// What is known of a block.
struct Block {
    ptr: DevicePtr,
    stream: StreamId,
    codec: Option<Arc<dyn Codec>>,
    contents: Vec<u8>,
    /// Evictions on the device when that was seen last: it has gone at most as often since.
    evictions: u64,
}

struct Program {
    rng: Rng,
    device: Arc<SoftDevice>,
    allocator: Allocator,
    streams: Vec<StreamId>,
    tag: Tag,
    blocks: Vec<Block>,
    plain: Vec<DevicePtr>,
    compared: u64,
    /// Numbers that came back changed, as they may.
    changed: u64,
}

impl Program {
    fn new(seed: u64, places: Places) -> Program {
        let mut rng = Rng(seed);
        let build = |ordinal: u32, capacity: u64| {
            let builder = SoftDevice::builder(capacity).ordinal(ordinal).backing(Backing::Memfd).checker(true);
            builder.seed(seed % 3 * seed).event_lag_ns(seed % 2 * 5000).build().unwrap()
        };
        let (device, other) = (build(0, DEVICE), build(1, 256 * MIB));
        let policy = rng.pick(&["lru", "s3fifo", "arc", "cost"]);
        let text = format!("tier_workers:0,tier_policy:{policy},{}", places.text());
        let mut builder = Allocator::builder().device(DeviceSpec::Driver(device.clone()));
        if matches!(places, Places::Peer | Places::HostThenPeer) {
            builder = builder.device(DeviceSpec::Driver(other));
        }
        let allocator = builder.config(config(&text)).build().unwrap();
        device.allocator_copies(true);
        let streams = vec![StreamId::DEFAULT, device.create_stream().unwrap()];
        let tag = allocator.tag("tagged").unwrap();
        let (blocks, plain) = (Vec::new(), Vec::new());
        Program { rng, device, allocator, streams, tag, blocks, plain, compared: 0, changed: 0 }
    }

    fn evictions(&self) -> u64 {
        self.allocator.tier_stats(0).unwrap().evictions
    }

    /// Whether it went well; no room is no failure.
    #[track_caller]
    fn accept<T>(result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::OutOfMemory(_)) => None,
            Err(Error::Tier(error)) if error.is_full() => None,
            Err(Error::Residency(ResidencyError::NoRoom { .. } | ResidencyError::Asleep | ResidencyError::Awake)) => {
                None
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Numbers from -1 to 1, or bytes.
    fn contents(&mut self, size: u64, codec: Option<&Arc<dyn Codec>>) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(size as usize + 8);
        let lossy = codec.is_some_and(|codec| !codec.lossless());
        while (bytes.len() as u64) < size {
            let bits = self.rng.bits();
            if lossy {
                bytes.extend((bits as i32 as f32 / 2147483648.0).to_le_bytes());
                bytes.extend(((bits >> 32) as i32 as f32 / 2147483648.0).to_le_bytes());
            } else {
                bytes.extend(bits.to_le_bytes());
            }
        }
        bytes.truncate(size as usize);
        bytes
    }

    fn write(&self, ptr: DevicePtr, contents: &[u8], stream: StreamId) {
        self.device.launch(stream, &[Access::write(ptr, contents.len() as u64)], 1000).unwrap();
        self.device.allocator_copies(false);
        self.device.write(ptr, contents, stream).unwrap();
        self.device.allocator_copies(true);
    }

    fn alloc(&mut self) {
        let (size, stream) = (self.rng.pick(&SIZES), self.rng.pick(&self.streams.clone()));
        // Codecs that were not built are none.
        let codec = by_name(self.rng.pick(&CODECS)).unwrap_or_default();
        let how = codec.iter().fold(Evictable::default(), |how, codec| how.codec(codec.clone()));
        let wanted = request(size, stream);
        let wanted = if self.rng.percent(30) { wanted.tag(self.tag) } else { wanted };
        let Some(ptr) = Program::accept(self.allocator.alloc_evictable(wanted, how)) else { return };
        let Some(pin) = Program::accept(self.allocator.pin(ptr, stream)) else {
            return self.allocator.raw_free(ptr).unwrap();
        };
        let contents = self.contents(size, codec.as_ref());
        self.write(ptr, &contents, stream);
        drop(pin);
        let evictions = self.evictions();
        self.blocks.push(Block { ptr, stream, codec, contents, evictions });
    }

    /// What is in a block is what it should be. Whether it could be had.
    fn verify(&mut self, at: usize) -> bool {
        let Block { ptr, stream, .. } = self.blocks[at];
        let Some(_pin) = Program::accept(self.allocator.pin(ptr, stream)) else { return false };
        let size = self.blocks[at].contents.len();
        self.device.launch(stream, &[Access::read(ptr, size as u64)], 1000).unwrap();
        let mut found = vec![0; size];
        self.device.allocator_copies(false);
        self.device.read(&mut found, ptr, stream).unwrap();
        self.device.allocator_copies(true);
        let evictions = self.evictions();
        let block = &mut self.blocks[at];
        let trips = evictions - block.evictions;
        match &block.codec {
            Some(codec) if !codec.lossless() && trips > 0 => {
                // Values are at most 1, and a bit more with each trip.
                let bound = codec.error_bound() * trips as f64 * 1.1;
                for (now, then) in found.chunks(4).zip(block.contents.chunks(4)) {
                    let [Ok(now), Ok(then)] = [now, then].map(<[u8; 4]>::try_from) else {
                        assert_eq!(now, then, "what is no number is as it was");
                        continue;
                    };
                    let (now, then) = (f32::from_le_bytes(now), f32::from_le_bytes(then));
                    assert!(f64::from((now - then).abs()) <= bound, "{now} was {then}: {trips} trips by {codec:?}");
                    self.changed += u64::from(now != then);
                }
            }
            _ => assert!(found == block.contents, "{ptr} of {size} bytes by {:?} has changed", block.codec),
        }
        (block.contents, block.evictions) = (found, evictions);
        self.compared += 1;
        true
    }

    fn step(&mut self) {
        let any = (!self.blocks.is_empty()).then(|| self.rng.index(self.blocks.len()));
        match (self.rng.below(16), any) {
            (0..=4, _) => self.alloc(),
            (5, Some(at)) => {
                let block = self.blocks.swap_remove(at);
                self.allocator.raw_free(block.ptr).unwrap();
            }
            (6..=8, Some(at)) => _ = self.verify(at),
            (9, Some(at)) => {
                let Block { ptr, stream, .. } = self.blocks[at];
                let codec = self.blocks[at].codec.clone();
                let contents = self.contents(self.blocks[at].contents.len() as u64, codec.as_ref());
                let Some(pin) = Program::accept(self.allocator.pin(ptr, stream)) else { return };
                self.write(ptr, &contents, stream);
                drop(pin);
                let evictions = self.evictions();
                let block = &mut self.blocks[at];
                (block.contents, block.evictions) = (contents, evictions);
            }
            (10, Some(at)) => {
                let ptr = Select::Ptr(self.blocks[at].ptr);
                let select = self.rng.pick(&[ptr, ptr, Select::Tag(self.tag.number()), Select::All]);
                Program::accept(self.allocator.offload(select));
            }
            (11, _) => _ = Program::accept(self.allocator.restore_evicted(Select::All)),
            (12, Some(at)) => {
                let stream = self.rng.pick(&self.streams.clone());
                Program::accept(self.allocator.prefetch(self.blocks[at].ptr, stream));
            }
            (13, _) => {
                let plan = SleepPlan::new(SleepAction::Save).tag(self.tag, SleepAction::Keep);
                if Program::accept(self.allocator.sleep(&plan)).is_some() {
                    Program::accept(self.allocator.wake(None));
                }
            }
            (14, _) => {
                let wanted = AllocRequest::new(self.rng.pick(&SIZES)).stream(self.rng.pick(&self.streams.clone()));
                let got = Program::accept(self.allocator.raw_alloc(wanted));
                self.plain.extend(got);
            }
            _ => {
                if let Some(ptr) = self.plain.pop() {
                    self.allocator.raw_free(ptr).unwrap();
                }
            }
        }
    }

    fn check(&self) {
        self.allocator.validate_tiers().unwrap();
        self.allocator.validate(0).unwrap().unwrap();
        assert_eq!(self.device.report_count(), 0, "{}", self.device.reports()[0]);
    }

    /// Returns how many blocks were compared, bytes that went, and numbers that changed.
    fn run(mut self) -> [u64; 3] {
        for step in 0..STEPS {
            self.step();
            if step % LOOK == 0 {
                self.check();
            }
        }
        self.plain.drain(..).for_each(|ptr| self.allocator.raw_free(ptr).unwrap());
        if self.allocator.tier_stats(0).unwrap().asleep {
            Program::accept(self.allocator.wake(None));
        }
        while !self.blocks.is_empty() {
            let good: Vec<usize> = (0..self.blocks.len()).rev().filter(|&at| self.verify(at)).collect();
            assert!(!good.is_empty(), "nothing comes back");
            for at in good {
                let block = self.blocks.remove(at);
                self.allocator.raw_free(block.ptr).unwrap();
            }
        }
        self.check();
        self.device.synchronize_device().unwrap();
        self.device.advance_clock(1_000_000);
        let stats = self.allocator.tier_stats(0).unwrap();
        assert_eq!((stats.blocks, stats.extents, stats.failures), (0, 0, 0), "{stats:#?}");
        [self.compared, stats.evicted_bytes, self.changed]
    }
}

#[test]
fn what_comes_back_is_what_went() {
    let wanted: u64 = std::env::var("STRATALLOC_TEST_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let possible: Vec<Places> = PLACES.into_iter().filter(|places| places.can_be()).collect();
    let mut sums = [0; 3];
    for seed in 1..=wanted {
        let places = possible[seed as usize % possible.len()];
        let outcome = std::panic::catch_unwind(|| Program::new(seed, places).run());
        let found = outcome.unwrap_or_else(|panic| {
            println!("program {seed} with {places:?} failed");
            std::panic::resume_unwind(panic)
        });
        (0..3).for_each(|at| sums[at] += found[at]);
    }
    let [compared, gone, changed] = sums;
    assert!(compared > wanted * 10 && gone > wanted * DEVICE && changed > wanted, "{sums:?} is hardly a test");
}
