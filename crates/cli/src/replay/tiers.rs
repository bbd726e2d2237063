//! A trace on a device that is too small for it: all its blocks are evictable, and what has no room goes to tiers.
//!
//! Traces do not say when memory is used. The model: a kernel writes all of a block when it has been allocated, uses it where the
//! trace records a stream for it, and reads all of it before it is freed. Each pins the block for that.

use std::collections::BTreeMap;
use std::io::Write;
use std::str::FromStr;

use serde::Serialize;
use stratalloc::config::{TierList, TierSpec};
use stratalloc::error::{Error, Result};
use stratalloc::tier::TierStats;
use stratalloc::units::{ByteSize, DevicePtr, PAGE, StreamId};

use super::Options;
use crate::engine::{Call, Engine, Setup, Spent, Use};
use crate::target::Target;
use crate::trace::{Op, Trace};
use crate::{Failed, Finish};

/// Virtual time of an operation of the host.
const OP_NS: u64 = 300;
/// Bytes of a block's beginning and end that are written and compared.
const PROBE: u64 = 64;

/// Tiers as a command line has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers(pub TierList);

impl FromStr for Tiers {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Tiers, String> {
        let specs =
            text.split(',').map(|spec| one(spec.trim())).collect::<std::result::Result<Vec<TierSpec>, String>>();
        let specs =
            specs.map_err(|why| format!("{why}; write host:SIZE, nvme:/FOLDER:SIZE, with commas between them"))?;
        if specs.iter().filter(|spec| matches!(spec, TierSpec::Host(_))).count() > 1 {
            return Err("host is named twice: there is one".to_owned());
        }
        Ok(Tiers(TierList { specs }))
    }
}

/// One tier, or what is wrong with it.
fn one(spec: &str) -> std::result::Result<TierSpec, String> {
    let (kind, rest) = spec.split_once([':', '=']).unwrap_or((spec, ""));
    let (folder, size) = rest.rsplit_once([':', '=']).unwrap_or(("", rest));
    match kind {
        "" => return Err("no tier is named".to_owned()),
        "host" if !folder.is_empty() => return Err(format!("'{spec}': host has a size only")),
        "host" => {}
        "nvme" if rest.contains([':', '=']) && !folder.starts_with('/') => {
            return Err(format!("'{spec}': the folder must begin with /"));
        }
        "nvme" if folder.is_empty() => return Err(format!("'{spec}': nvme has a folder and a size")),
        "nvme" => {}
        "peer" => return Err(format!("'{spec}': a replay has one device, so there is no peer")),
        _ => return Err(format!("'{kind}' is no kind of tier: there are host and nvme")),
    }
    if size.is_empty() {
        return Err(format!("'{spec}' has no size"));
    }
    let bytes = size.parse::<ByteSize>().map_err(|_| format!("'{spec}': '{size}' is not a size"))?;
    if bytes.0 < PAGE {
        return Err(format!("'{spec}': {bytes} is too small, nothing below {} leaves a device", ByteSize(PAGE)));
    }
    Ok(if kind == "host" { TierSpec::Host(bytes) } else { TierSpec::Nvme { folder: folder.into(), bytes } })
}

/// Where virtual time went. All of it together is the row's `tiered_ns`.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Time {
    /// The program's own.
    program_ns: u64,
    /// What calls of the driver cost, but for pinning.
    driver_ns: u64,
    /// Pinning memory of the host, which a program does once.
    pinning_ns: u64,
    /// Waits for copies, reads and writes of tiers.
    transfer_wait_ns: u64,
    /// Waits for what the program has given the device to do.
    other_wait_ns: u64,
}

impl Time {
    fn of(spent: &Spent, stats: &TierStats) -> Time {
        let pinning_ns = spent.calls.0.get("cuMemHostRegister").map_or(0, |call| call.time_ns);
        let transfer_wait_ns = stats.transfer_wait_ns.min(spent.stall_ns);
        Time {
            program_ns: spent.clock_ns.saturating_sub(spent.driver_ns + spent.stall_ns),
            driver_ns: spent.driver_ns.saturating_sub(pinning_ns),
            pinning_ns,
            transfer_wait_ns,
            other_wait_ns: spent.stall_ns - transfer_wait_ns,
        }
    }
}

/// How often a driver call was made, and how long all of them took, waits included.
#[derive(Debug, Clone, Copy, Serialize)]
struct Asked {
    count: u64,
    time_ns: u64,
}

/// What became of a trace.
#[derive(Debug, Clone, Serialize)]
struct Row {
    trace: String,
    operations: u64,
    /// After sizes have been divided.
    peak_live_bytes: u64,
    device_bytes: u64,
    completed: bool,
    error: Option<String>,
    evictions: u64,
    evicted_bytes: u64,
    restored_bytes: u64,
    spills: u64,
    /// `software`, whose times are virtual, or a GPU.
    device: String,
    /// Time on a device on which all has room, if there is one, and on this one.
    roomy_ns: Option<u64>,
    tiered_ns: u64,
    /// Of that, in calls that waited for tiers, with what they asked of the driver meanwhile.
    tier_stall_ns: u64,
    /// Where the virtual time went; of a GPU, the driver's part is that of all threads.
    time: Time,
    /// What the driver was asked for, with tiers.
    driver_calls: BTreeMap<&'static str, Asked>,
    /// Blocks whose bytes were compared; none where the device has no bytes.
    verified_blocks: u64,
    checker_reports: u64,
    first_report: Option<String>,
}

/// Replays all traces twice: with room for all, and with tiers.
pub(super) fn run(
    options: &Options,
    tiers: &Tiers,
    setup: &Setup,
    traces: &[Trace],
    out: &mut impl Write,
) -> std::result::Result<Finish, Failed> {
    let rows = traces.iter().map(|trace| replay(options, tiers, setup, trace));
    let rows = rows.collect::<std::result::Result<Vec<Row>, Failed>>()?;
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        for_people(&rows, setup.target, out)?;
    }
    let good = |row: &Row| row.completed && row.checker_reports == 0;
    Ok(if rows.iter().all(good) { Finish::Good } else { Finish::Bad })
}

fn replay(options: &Options, tiers: &Tiers, setup: &Setup, trace: &Trace) -> std::result::Result<Row, Failed> {
    let divisor = u64::from(options.shrink);
    let size_of = |bytes: u64| (bytes / divisor).max(1);
    let peak = peak_live(trace, &size_of);
    let device_bytes = match options.pressure {
        Some(factor) => ((peak as f64 * factor).ceil() as u64).next_multiple_of(stratalloc::units::PAGE),
        None => setup.capacity,
    };
    let mut row = Row {
        trace: trace.name.clone(),
        operations: trace.ops.len() as u64,
        peak_live_bytes: peak,
        device_bytes,
        device: setup.target.to_string(),
        completed: false,
        error: None,
        evictions: 0,
        evicted_bytes: 0,
        restored_bytes: 0,
        spills: 0,
        roomy_ns: None,
        tiered_ns: 0,
        tier_stall_ns: 0,
        time: Time::default(),
        driver_calls: BTreeMap::new(),
        verified_blocks: 0,
        checker_reports: 0,
        first_report: None,
    };
    // With room to spare: what the program takes by itself.
    let room = match setup.target {
        Target::Software => peak.saturating_mul(2).max(1 << 30),
        Target::Cuda(_) => 0,
    };
    let roomy = Setup { capacity: room, checker: false, ..setup.clone() };
    let outcome = Follower::new(&roomy, trace, None, false).and_then(|mut follower| {
        let begin = follower.engine.spent();
        follower.follow(trace, &size_of)?;
        Ok((&follower.engine.spent() - &begin).clock_ns)
    });
    // A GPU may well have no room for all.
    row.roomy_ns = outcome.ok();
    let tight = Setup { capacity: device_bytes, checker: true, ..setup.clone() };
    // Tiers that cannot be had are no result of a replay.
    let refused = |error| Failed::from(format!("--tiers {}: {error}", tiers.0));
    let mut follower = Follower::new(&tight, trace, Some(tiers), options.contents).map_err(refused)?;
    let begin = follower.engine.spent();
    let followed = follower.follow(trace, &size_of);
    row.completed = followed.is_ok();
    row.error = followed.err().map(|error| error.to_string());
    let spent = &follower.engine.spent() - &begin;
    row.tiered_ns = spent.clock_ns;
    row.verified_blocks = follower.verified;
    let reports = follower.engine.reports();
    row.checker_reports = reports.len() as u64;
    row.first_report = reports.into_iter().next();
    let stats: TierStats = follower.engine.tier_stats().unwrap_or_default();
    row.evictions = stats.evictions;
    row.evicted_bytes = stats.evicted_bytes;
    row.restored_bytes = stats.restored_bytes;
    row.spills = stats.spills;
    row.tier_stall_ns = stats.stall_ns;
    row.time = Time::of(&spent, &stats);
    let asked = |(name, call): (_, Call)| (name, Asked { count: call.count, time_ns: call.time_ns });
    row.driver_calls = spent.calls.0.into_iter().map(asked).collect();
    Ok(row)
}

/// The most live bytes at one time, by sizes as they are replayed.
fn peak_live(trace: &Trace, size_of: &dyn Fn(u64) -> u64) -> u64 {
    let (mut live, mut peak, mut sizes) = (0, 0, Vec::new());
    for op in &trace.ops {
        match *op {
            Op::Alloc { bytes, .. } => {
                sizes.push(size_of(bytes));
                live += size_of(bytes);
                peak = peak.max(live);
            }
            Op::Free { id } => live -= sizes[id as usize],
            _ => {}
        }
    }
    peak
}

/// One block of the program.
#[derive(Clone, Copy)]
struct Block {
    ptr: DevicePtr,
    bytes: u64,
    home: StreamId,
}

struct Follower {
    engine: Engine,
    streams: Vec<StreamId>,
    blocks: Vec<Block>,
    /// Whether blocks are evictable, or there is room for all.
    evictable: bool,
    contents: bool,
    verified: u64,
}

impl Follower {
    fn new(setup: &Setup, trace: &Trace, tiers: Option<&Tiers>, contents: bool) -> Result<Follower> {
        let mut setup = setup.clone();
        if let Some(Tiers(list)) = tiers {
            // On the software device nothing depends on time, so that equal replays are equal.
            let workers = if setup.target == Target::Software { ",tier_workers:0" } else { "" };
            let comma = if setup.config.is_empty() { "" } else { "," };
            setup.config = format!("{}{comma}tiers:{list}{workers}", setup.config);
        }
        setup.contents = contents;
        let engine = Engine::open(&setup)?;
        let streams = (0..trace.streams).map(|_| engine.create_stream()).collect::<Result<_>>()?;
        Ok(Follower { engine, streams, blocks: Vec::new(), evictable: tiers.is_some(), contents, verified: 0 })
    }

    fn follow(&mut self, trace: &Trace, size_of: &dyn Fn(u64) -> u64) -> Result<()> {
        for op in &trace.ops {
            if !matches!(op, Op::Marker { .. }) {
                self.engine.advance_clock(OP_NS);
            }
            self.step(*op, size_of)?;
        }
        for &id in &trace.live_at_end {
            self.free(id)?;
        }
        self.engine.finish()
    }

    fn step(&mut self, op: Op, size_of: &dyn Fn(u64) -> u64) -> Result<()> {
        match op {
            Op::Alloc { bytes, stream } => {
                let (bytes, home) = (size_of(bytes), self.streams[usize::from(stream)]);
                let ptr = if self.evictable {
                    self.engine.alloc_evictable(bytes, home)?
                } else {
                    self.engine.alloc(bytes, home)?
                };
                let block = Block { ptr, bytes, home };
                self.blocks.push(block);
                self.touch(block, home, Use::Write)?;
                if self.contents {
                    self.write(self.blocks.len() as u64 - 1, block)?;
                }
                Ok(())
            }
            Op::Free { id } => self.free(id),
            Op::Record { id, stream } => {
                let (block, user) = (self.blocks[id as usize], self.streams[usize::from(stream)]);
                self.engine.wait_for(user, block.home)?;
                self.touch(block, user, Use::ReadWrite)?;
                self.engine.record_stream(block.ptr, user)?;
                // What comes next on the home stream comes after this.
                self.engine.wait_for(block.home, user)
            }
            Op::EmptyCache => self.engine.empty_cache(),
            Op::Marker { .. } => Ok(()),
        }
    }

    /// A kernel goes over a block, which is there for it.
    fn touch(&self, block: Block, stream: StreamId, how: Use) -> Result<()> {
        let _pin = if self.evictable { Some(self.engine.pin(block.ptr, stream)?) } else { None };
        let ns = block.bytes / 1000 + 1000;
        self.engine.launch(stream, block.ptr, block.bytes, how, ns)
    }

    /// Bytes that no other block has, at its beginning and its end.
    fn pattern(number: u64, len: u64) -> Vec<u8> {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |state: &mut u64| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            (*state >> 32) as u8
        };
        (0..len).map(|_| next(&mut state)).collect()
    }

    fn probes(block: Block) -> [(DevicePtr, u64); 2] {
        let len = block.bytes.min(PROBE);
        [(block.ptr, len), (block.ptr.add(block.bytes - len), len)]
    }

    fn write(&self, number: u64, block: Block) -> Result<()> {
        let _pin = self.engine.pin(block.ptr, block.home)?;
        for (at, len) in Follower::probes(block) {
            self.engine.write(at, &Follower::pattern(number, len), block.home)?;
        }
        Ok(())
    }

    fn free(&mut self, id: u32) -> Result<()> {
        let block = self.blocks[id as usize];
        self.touch(block, block.home, Use::ReadWrite)?;
        if self.contents {
            let _pin = self.engine.pin(block.ptr, block.home)?;
            // The last probe was written last, and may lie over the first.
            for (at, len) in Follower::probes(block).into_iter().skip(1) {
                self.compare(u64::from(id), at, len, block)?;
            }
            if block.bytes >= 2 * PROBE {
                self.compare(u64::from(id), block.ptr, PROBE, block)?;
            }
            self.verified += 1;
        }
        self.engine.free(block.ptr)
    }

    fn compare(&self, number: u64, at: DevicePtr, len: u64, block: Block) -> Result<()> {
        let found = self.engine.read(at, len, block.home)?;
        if found == Follower::pattern(number, len) {
            return Ok(());
        }
        let (what, expected, found) = (format!("block {number}, {} bytes, at {at}", block.bytes), 0, 0);
        Err(Error::Tier(stratalloc::TierError::Corrupt { tier: "replay".to_owned(), what, expected, found }))
    }
}

fn for_people(rows: &[Row], target: Target, out: &mut impl Write) -> std::io::Result<()> {
    let times = if target == Target::Software { "virtual" } else { "real" };
    writeln!(
        out,
        "blocks are used when they are allocated, recorded and freed; times are {times}\n\n{:<34} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}  result",
        "trace", "peak live", "device", "ratio", "evicted", "restored", "roomy ms", "tiers ms", "stall ms", "times"
    )?;
    for row in rows {
        let ms = |ns: u64| ns as f64 / 1e6;
        let size = |bytes: u64| format!("{:.0}M", bytes as f64 / f64::from(1 << 20));
        let contents =
            if row.verified_blocks > 0 { format!("{} blocks compared, ", row.verified_blocks) } else { String::new() };
        let result = match &row.error {
            Some(error) => error.clone(),
            None if target == Target::Software => {
                format!("completed, {contents}checker: {} reports", row.checker_reports)
            }
            None => format!("completed, {contents}on {target}"),
        };
        writeln!(
            out,
            "{:<34} {:>9} {:>9} {:>6.2} {:>9} {:>9} {:>9} {:>9.1} {:>9.1} {:>7}  {result}",
            row.trace,
            size(row.peak_live_bytes),
            size(row.device_bytes),
            row.peak_live_bytes as f64 / row.device_bytes.max(1) as f64,
            size(row.evicted_bytes),
            size(row.restored_bytes),
            row.roomy_ns.map_or("-".to_owned(), |ns| format!("{:.1}", ms(ns))),
            ms(row.tiered_ns),
            ms(row.tier_stall_ns),
            row.roomy_ns.map_or("-".to_owned(), |ns| format!("{:.2}", row.tiered_ns as f64 / ns.max(1) as f64)),
        )?;
        if target != Target::Software {
            // What the program waits for is not told from its own time.
            continue;
        }
        let Time { program_ns, driver_ns, pinning_ns, transfer_wait_ns, other_wait_ns } = row.time;
        writeln!(
            out,
            "  where the time went: transfers {:.1} ms, driver {:.1} ms, pinning host memory {:.1} ms (once), other waits {:.1} ms, the program {:.1} ms",
            ms(transfer_wait_ns),
            ms(driver_ns),
            ms(pinning_ns),
            ms(other_wait_ns),
            ms(program_ns),
        )?;
        if let Some(report) = &row.first_report {
            writeln!(out, "  {report}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_read_as_people_write_them() {
        let tiers: Tiers = "host:32GiB,nvme:/mnt/a:200GiB".parse().unwrap();
        let wanted =
            [TierSpec::Host(ByteSize::gib(32)), TierSpec::Nvme { folder: "/mnt/a".into(), bytes: ByteSize::gib(200) }];
        assert_eq!(tiers.0.specs, wanted);
        for (text, words) in [
            ("", "no tier is named"),
            ("host", "'host' has no size"),
            ("host:", "'host:' has no size"),
            ("host:much", "'much' is not a size"),
            ("host:0", "0 B is too small"),
            ("host:1KiB", "1 KiB is too small, nothing below 2 MiB"),
            ("host:/a:1GiB", "host has a size only"),
            ("nvme:/a", "nvme has a folder and a size"),
            ("nvme:1GiB", "nvme has a folder and a size"),
            ("nvme:a:1GiB", "must begin with /"),
            ("nvme:/a:1KiB", "too small"),
            ("peer:1:1GiB", "one device"),
            ("disk:/a:1GiB", "'disk' is no kind of tier: there are host and nvme"),
            ("host:1GiB,,nvme:/a:1GiB", "no tier is named"),
        ] {
            let error = text.parse::<Tiers>().unwrap_err();
            assert!(error.contains(words) && error.contains("write host:SIZE"), "{text}: {error}");
        }
        assert!("host:1GiB,host:2GiB".parse::<Tiers>().unwrap_err().contains("twice"));
    }
}
