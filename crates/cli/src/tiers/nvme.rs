//! How fast the tier of files writes and reads, beside `fio` on the very same file.
//!
//! Both keep as many pieces of one size under way, unbuffered and from registered buffers, and take turns; what is told are medians. The file has
//! been written once before the first round, so that no run finds it fresh. Disks vary from run to run, twofold and more: only the ratio counts.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use stratalloc::tier::nvme::{NvmeSpec, open};
use stratalloc::tier::{Direction, Io, Slot, Tier, TierError, Ticket};

use crate::table::median;

/// The tier in one direction.
#[derive(Debug, Clone)]
pub struct Row {
    /// `nvme/write`, `nvme/read`, and the same with `/encrypted`.
    pub name: String,
    /// The median over the rounds.
    pub bytes_per_s: f64,
    /// To fio's median. `None`: there is no fio, or it has no such mode.
    pub ratio: Option<f64>,
    /// By which means, or why there is no ratio.
    pub note: String,
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Where the file is made.
    pub folder: PathBuf,
    /// Bytes written and read in each round.
    pub bytes: u64,
    /// Bytes of a piece: what the transfer engine reads and writes at a time.
    pub piece: u64,
    /// How many of them are under way.
    pub depth: usize,
    /// How often each of the four takes its turn.
    pub rounds: usize,
}

impl Workload {
    /// 512 MiB five times, in pieces of 1 MiB, of which 32 are under way.
    pub fn new(folder: impl Into<PathBuf>) -> Workload {
        Workload { folder: folder.into(), bytes: 512 << 20, piece: 1 << 20, depth: 32, rounds: 5 }
    }
}

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Write, "write"), (Direction::Read, "read")];

/// A page, for memory that begins at a multiple of it.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; 4096]);

/// Measures it.
///
/// # Errors
/// What the tier says.
pub fn rows(work: &Workload) -> Result<Vec<Row>, TierError> {
    let mut rows = Vec::new();
    for encrypt in [false, true] {
        let spec = NvmeSpec { encrypt, depth: work.depth, ..NvmeSpec::new([(&work.folder, work.bytes)]) };
        let tier = open(&spec)?;
        let slot = tier.reserve(work.bytes)?;
        let mut pages = vec![Page([0; 4096]); (work.piece as usize / 4096) * work.depth];
        let (start, length) = (pages.as_mut_ptr().cast::<u8>(), (pages.len() * 4096) as u64);
        for (index, page) in pages.iter_mut().enumerate() {
            page.0.fill(index as u8);
        }
        // SAFETY: the pages are there as long as the tier is used.
        unsafe { tier.attach(start, length) };
        carry(&*tier, Direction::Write, slot, start, work)?;
        // What is encrypted costs the processor; fio has nothing like it.
        let fio = if encrypt { Err("fio does not encrypt".to_string()) } else { file_of(&work.folder) };
        let mut note = fio.clone().err();
        for (direction, verb) in DIRECTIONS {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..work.rounds {
                ours.push(carry(&*tier, direction, slot, start, work)?);
                match fio.as_ref().map_err(Clone::clone).and_then(|file| run_fio(file, verb, slot, work)) {
                    Ok(speed) => theirs.push(speed),
                    Err(reason) => note = Some(reason),
                }
            }
            ours.sort_by(f64::total_cmp);
            theirs.sort_by(f64::total_cmp);
            let bytes_per_s = median(&ours);
            let ratio = (theirs.len() == ours.len()).then(|| bytes_per_s / median(&theirs));
            let name = format!("nvme/{verb}{}", if encrypt { "/encrypted" } else { "" });
            let note = note.clone().unwrap_or_else(|| tier.describe());
            rows.push(Row { name, bytes_per_s, ratio, note });
        }
        tier.detach(start);
        tier.release(slot);
    }
    Ok(rows)
}

/// Writes or reads the whole slot, `depth` pieces at a time, each from a buffer of its own. Returns bytes a second.
fn carry(
    tier: &dyn Tier,
    direction: Direction,
    slot: Slot,
    start: *mut u8,
    work: &Workload,
) -> Result<f64, TierError> {
    let begin = Instant::now();
    let mut under_way: VecDeque<Ticket> = VecDeque::new();
    let end = |ticket| tier.finish(ticket, true).unwrap_or(Ok(()));
    let mut result = Ok(());
    for (index, offset) in (0..slot.size).step_by(work.piece as usize).enumerate() {
        if under_way.len() == work.depth
            && let Some(oldest) = under_way.pop_front()
        {
            result = end(oldest);
        }
        let buffer = start.wrapping_add(index % work.depth * work.piece as usize);
        let size = work.piece.min(slot.size - offset);
        // SAFETY: the piece that used this buffer has ended, and the buffer is not touched before this one has.
        match result.and_then(|()| unsafe { tier.start(Io { direction, slot, offset, buffer, size }) }) {
            Ok(ticket) => under_way.push_back(ticket),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
        result = Ok(());
    }
    // All end, whatever happened: the buffers are the caller's.
    for ticket in under_way {
        result = result.and(end(ticket));
    }
    result.map(|()| slot.size as f64 / begin.elapsed().as_secs_f64())
}

/// The tier's file, by the only name that it has: that of this process's descriptor.
fn file_of(folder: &Path) -> Result<PathBuf, String> {
    let folder = folder.canonicalize().map_err(|error| error.to_string())?;
    let descriptors = fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?;
    let ours = |path: &PathBuf| {
        let is_there = fs::read_link(path).is_ok_and(|target| target.parent() == Some(&folder));
        // Its name has been taken away.
        is_there && fs::metadata(path).is_ok_and(|metadata| std::os::unix::fs::MetadataExt::nlink(&metadata) == 0)
    };
    let found = descriptors.flatten().map(|entry| entry.path()).find(ours);
    let found = found.ok_or_else(|| "the tier's file is not to be found".to_string())?;
    let descriptor = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(PathBuf::from(format!("/proc/{}/fd/{descriptor}", std::process::id())))
}

/// One round of fio. Returns bytes a second.
fn run_fio(file: &Path, verb: &str, slot: Slot, work: &Workload) -> Result<f64, String> {
    let mut command = Command::new("fio");
    command.args(["--name=tier", "--ioengine=io_uring", "--direct=1", "--fixedbufs=1", "--registerfiles=1"]);
    command.args(["--allow_file_create=0", "--fallocate=none", "--overwrite=1", "--thread=1", "--output-format=json"]);
    command.arg(format!("--filename={}", file.display()));
    command.arg(format!("--rw={verb}")).arg(format!("--iodepth={}", work.depth)).arg(format!("--bs={}", work.piece));
    command.arg(format!("--offset={}", slot.offset)).arg(format!("--size={}", slot.size));
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no fio here to compare with".to_string(),
        _ => format!("fio: {error}"),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.find('{').and_then(|at| serde_json::from_str::<serde_json::Value>(&text[at..]).ok());
    let speed = report.and_then(|report| report["jobs"][0][verb]["bw_bytes"].as_f64()).filter(|&speed| speed > 0.0);
    speed.ok_or_else(|| format!("fio: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no result")))
}
