//! Rows between the device and pinned host memory, beside plain copies between the same memory: `memcpy` on the software device, one
//! asynchronous copy an object on a GPU.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stratalloc::config::Config;
use stratalloc::driver::cuda::CudaDriver;
use stratalloc::driver::soft::SoftDevice;
use stratalloc::driver::{CopyOp, Driver, DriverResult, Location};
use stratalloc::tier::transfer::{Engine, EngineConfig, Save};
use stratalloc::tier::{HostConfig, HostTier, Slot, Tier, TierError};
use stratalloc::units::{ByteSize, DevicePtr, StreamId};

use super::bench::{Figure, Options};
use crate::Failed;
use crate::table::median;
use crate::target::Target;

impl From<TierError> for Failed {
    fn from(error: TierError) -> Failed {
        Failed::from(error.to_string())
    }
}

/// Objects of a row for many small ones.
const SMALL: u64 = 64 << 10;

/// Does a row's work once, and says how long it took.
type Work = Box<dyn FnMut() -> Result<Duration, Failed>>;

pub(super) fn rows(options: &Options) -> Result<Vec<Figure>, Failed> {
    let total = options.size.0;
    let mut figures = Vec::new();
    for object in [total, SMALL.min(total)] {
        for out in [true, false] {
            let name = format!("device/{}/{}", if out { "out" } else { "in" }, ByteSize(object));
            figures.push(row(name, total, object, out, options)?);
        }
    }
    Ok(figures)
}

/// A device that works in real time, a tier, and memory of both.
struct Bench {
    driver: Arc<dyn Driver>,
    stream: StreamId,
    /// Whether the processor reaches the device's memory.
    software: bool,
    tier: Arc<dyn Tier>,
    engine: Engine,
    device: DevicePtr,
    /// What the plain copy writes or reads in place of the tier's slots.
    plain: Slot,
}

impl Bench {
    fn new(options: &Options, total: u64) -> Result<Bench, Failed> {
        let driver = open(options.device, total).map_err(|error| Failed::from(error.to_string()))?;
        let stream = driver.create_stream().map_err(TierError::from)?;
        let slots = total.next_multiple_of(2 << 20);
        let config = HostConfig { capacity_bytes: 4 * slots, step_bytes: slots.min(1 << 30), background: false };
        let tier: Arc<dyn Tier> = Arc::new(HostTier::new(driver.clone(), &config)?);
        let device = device_memory(&*driver, total).map_err(TierError::from)?;
        let workers = options.workers.map_or(Config::default().tier_workers, |workers| workers as usize);
        let engine = Engine::new(driver.clone(), EngineConfig { workers, ..EngineConfig::default() })?;
        let plain = tier.reserve(total)?;
        Ok(Bench { driver, stream, software: options.device == Target::Software, tier, engine, device, plain })
    }

    fn plain(&self) -> usize {
        self.tier.address(self.plain).map_or(0, |at| at.0 as usize)
    }
}

fn open(target: Target, total: u64) -> stratalloc::Result<Arc<dyn Driver>> {
    Ok(match target {
        Target::Software => SoftDevice::builder(2 * total + (1 << 30)).real_time(true).build()?,
        Target::Cuda(ordinal) => CudaDriver::open(ordinal)?,
    })
}

/// Memory of the device that is there for as long as the process is.
fn device_memory(driver: &dyn Driver, size: u64) -> DriverResult<DevicePtr> {
    let unit = driver.properties().granularity;
    let size = size.next_multiple_of(unit);
    let at = driver.reserve(size, unit)?;
    let chunk = driver.create(size, Location::Device)?;
    driver.map(at, size, chunk, 0)?;
    driver.set_access(at, size)?;
    driver.release(chunk)?;
    let stream = driver.create_stream()?;
    driver.fill_words(at, size, 0x9e37_79b9, stream)?;
    driver.synchronize_stream(stream)?;
    Ok(at)
}

/// Moves `total` bytes in objects of this size.
fn row(name: String, total: u64, object: u64, out: bool, options: &Options) -> Result<Figure, Failed> {
    let bench = Arc::new(Bench::new(options, total)?);
    let count = total / object;
    let saves: Vec<Save> =
        (0..count).map(|n| Save { from: bench.device.add(n * object), size: object, codec: None }).collect();
    let save = {
        let bench = bench.clone();
        move || {
            let start = Instant::now();
            let transfers = bench.engine.save_many(&saves, &bench.tier, &[])?;
            let places: Result<Vec<_>, TierError> = transfers.iter().map(|save| save.wait()).collect();
            let took = start.elapsed();
            Ok::<_, Failed>((took, places?.into_iter().flatten().collect::<Vec<_>>()))
        }
    };
    let work: Work = if out {
        Box::new(move || save().map(|(took, _)| took))
    } else {
        let (_, places) = save()?;
        let loads: Vec<_> = (0..).zip(places).map(|(n, place)| (place, bench.device.add(n * object))).collect();
        let bench = bench.clone();
        Box::new(move || {
            let start = Instant::now();
            for load in bench.engine.load_many(&loads, &[])? {
                load.wait()?;
            }
            Ok(start.elapsed())
        })
    };
    let (bytes_per_s, ratio) = take_turns(count * object, options.rounds, work, plain(&bench, count, object, out))?;
    let plain = if options.device == Target::Software { "memcpy" } else { "cuMemcpyAsync" };
    Ok(Figure { name, bytes_per_s, ratio: Some(ratio), to: format!("{plain} of {}", ByteSize(object)) })
}

/// Bytes a second of the work, and its speed as a part of the other's: medians of the rounds.
fn take_turns(bytes: u64, rounds: u32, mut work: Work, mut other: Work) -> Result<(f64, f64), Failed> {
    // The first time, memory is touched and pinned.
    work()?;
    other()?;
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Who is first in a round is last in the next.
        let early = if round % 2 == 0 { Some(other()?) } else { None };
        let own = work()?.as_secs_f64().max(1e-9);
        let other = match early {
            Some(early) => early,
            None => other()?,
        };
        rates.push(bytes as f64 / own);
        ratios.push(other.as_secs_f64() / own);
    }
    rates.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    Ok((median(&rates), median(&ratios)))
}

/// The same bytes by plain copies, as many at a time.
fn plain(bench: &Arc<Bench>, count: u64, object: u64, out: bool) -> Work {
    let bench = bench.clone();
    // Memory that was never written reads as one page of zeros, out of the cache.
    // SAFETY: `total` bytes of the slot, which nothing else uses.
    unsafe { std::ptr::write_bytes(bench.plain() as *mut u8, 0x5a, (count * object) as usize) };
    if !bench.software {
        return Box::new(move || {
            let (device, host) = (bench.device, DevicePtr(bench.plain() as u64));
            let (src, dst) = if out { (device, host) } else { (host, device) };
            let start = Instant::now();
            for at in (0..count * object).step_by(object as usize) {
                let copy = CopyOp { dst: dst.add(at), src: src.add(at), size: object };
                bench.driver.copy(&[copy], bench.stream).map_err(TierError::from)?;
            }
            bench.driver.synchronize_stream(bench.stream).map_err(TierError::from)?;
            Ok(start.elapsed())
        });
    }
    Box::new(move || {
        let (device, host) = (bench.device.0 as usize, bench.plain());
        let (from, to) = if out { (device, host) } else { (host, device) };
        let start = Instant::now();
        for at in (0..count * object).step_by(object as usize) {
            let (from, to) = ((from + at as usize) as *const u8, (to + at as usize) as *mut u8);
            // SAFETY: both are ranges of `total` bytes, of the software device's memory, which is the process's own, and of a slot of the
            // tier; nothing else is under way in them, and both live as long as `bench`.
            unsafe { std::ptr::copy_nonoverlapping(from, to, object as usize) };
        }
        Ok(start.elapsed())
    })
}
