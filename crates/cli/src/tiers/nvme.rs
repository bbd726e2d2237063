//! How fast the tier of files writes and reads, beside `fio` on the very same file.
//!
//! Both keep as many pieces of one size under way, unbuffered and from registered buffers, and take turns; what is told are medians. The file has
//! been written once before the first round, so that no run finds it fresh. The memory of both is in huge pages, as pinned memory mostly is: it
//! matters more than anything else here, since a disk is told of each piece of memory that lies apart. Disks vary from run to run, twofold and
//! more: only the ratio counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use stratalloc::tier::nvme::{NvmeSpec, open};
use stratalloc::tier::{Direction, Io, Slot, Ticket, Tier, TierError};

use super::bench::{Figure, Options};
use crate::Failed;
use crate::table::median;

/// What is measured.
#[derive(Debug, Clone)]
struct Workload {
    /// Where the file is made.
    folder: PathBuf,
    /// Bytes written and read in each round.
    bytes: u64,
    /// Bytes of a piece.
    piece: u64,
    /// How many of them are under way.
    depth: usize,
    rounds: u32,
}

/// The rows, in pieces of 1 MiB, of which 32 are under way.
pub(super) fn rows(options: &Options) -> Result<Vec<Figure>, Failed> {
    let folder = options.folder.clone().unwrap_or_else(std::env::temp_dir);
    let bytes = options.size.0.max(64 << 10);
    let work = Workload { folder, bytes, piece: 1 << 20, depth: 32, rounds: options.rounds };
    measure(&work).map_err(|error| Failed::from(error.to_string()))
}

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Write, "write"), (Direction::Read, "read")];

/// Memory in huge pages, where the system has them.
struct Memory {
    start: *mut u8,
    size: usize,
}

impl Memory {
    fn new(size: usize) -> Option<Memory> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let memory = Memory { start: start.cast(), size };
        // SAFETY: so many bytes have just been mapped there; advice changes nothing that can be seen. They are written so that they are there.
        unsafe {
            libc::madvise(start, size, libc::MADV_HUGEPAGE);
            memory.start.write_bytes(0x5A, size);
        }
        Some(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nothing is under way with it: `carry` returns when all has ended.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

fn measure(work: &Workload) -> Result<Vec<Figure>, TierError> {
    let mut rows = Vec::new();
    for encrypt in [false, true] {
        let Some(memory) = Memory::new(work.piece as usize * work.depth) else {
            let reason = "there is no memory for buffers".to_string();
            return Err(TierError::Unusable { tier: "nvme".to_string(), reason });
        };
        let spec = NvmeSpec { encrypt, depth: work.depth, ..NvmeSpec::new([(&work.folder, work.bytes)]) };
        let tier = open(&spec)?;
        let slot = tier.reserve(work.bytes)?;
        let start = memory.start;
        // SAFETY: the memory was made before the tier, and is there for longer.
        unsafe { tier.attach(start, memory.size as u64) };
        carry(&*tier, Direction::Write, slot, start, work)?;
        // What is encrypted costs the processor; fio has nothing like it.
        let fio = if encrypt { Err("fio does not encrypt".to_string()) } else { file_of(&work.folder) };
        let mut note = fio.clone().err();
        for (direction, verb) in DIRECTIONS {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..2 * work.rounds {
                // Each is as often first as second: what the disk has read once it may find faster.
                if [0, 3].contains(&(round % 4)) {
                    ours.push(carry(&*tier, direction, slot, start, work)?);
                    continue;
                }
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
            let to = note.clone().unwrap_or_else(|| format!("fio, same file; {}", tier.describe()));
            rows.push(Figure { name, bytes_per_s, ratio, to });
        }
        tier.detach(start);
        tier.release(slot);
    }
    Ok(rows)
}

/// Writes or reads the whole slot, `depth` pieces at a time, each from a buffer of its own. Returns bytes a second.
fn carry(tier: &dyn Tier, direction: Direction, slot: Slot, start: *mut u8, work: &Workload) -> Result<f64, TierError> {
    let begin = Instant::now();
    // By buffer.
    let mut under_way: Vec<Option<Ticket>> = vec![None; work.depth];
    let (mut next, mut failed) = (0, None);
    while failed.is_none() && next < slot.size || under_way.iter().any(Option::is_some) {
        let mut any = false;
        for (index, ticket) in under_way.iter_mut().enumerate() {
            if let Some(result) = ticket.and_then(|ticket| tier.finish(ticket, false)) {
                (*ticket, any) = (None, true);
                failed = failed.or(result.err());
            }
            if ticket.is_none() && failed.is_none() && next < slot.size {
                let buffer = start.wrapping_add(index * work.piece as usize);
                let io = Io { direction, slot, offset: next, buffer, size: work.piece.min(slot.size - next) };
                // SAFETY: nothing is under way with this buffer, and it is not touched before this has ended. All end before the caller, whose
                // buffers they are, gets on.
                match unsafe { tier.start(io) } {
                    Ok(started) => *ticket = Some(started),
                    Err(error) => failed = Some(error),
                }
                next += work.piece;
                any = true;
            }
        }
        // Nothing to do: wait for one.
        if !any && let Some(ticket) = under_way.iter_mut().find(|ticket| ticket.is_some()) {
            let result = ticket.take().and_then(|ticket| tier.finish(ticket, true));
            failed = failed.or(result.and_then(Result::err));
        }
    }
    failed.map_or(Ok(slot.size as f64 / begin.elapsed().as_secs_f64()), Err)
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
    // What has malloc use huge pages.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no fio here to compare with".to_string(),
        _ => format!("fio: {error}"),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.find('{').and_then(|at| serde_json::from_str::<serde_json::Value>(&text[at..]).ok());
    let speed = report.and_then(|report| report["jobs"][0][verb]["bw_bytes"].as_f64()).filter(|&speed| speed > 0.0);
    speed.ok_or_else(|| {
        format!("fio: {}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no result"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_measured_and_leaves_nothing() {
        let folder = std::env::temp_dir().join(format!("stratalloc-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let work = Workload { folder: folder.clone(), bytes: 3 << 20, piece: 1 << 18, depth: 4, rounds: 2 };
        let figures = measure(&work).unwrap();
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(names, ["nvme/write", "nvme/read", "nvme/write/encrypted", "nvme/read/encrypted"]);
        assert!(figures.iter().all(|figure| figure.bytes_per_s > 0.0));
        let has_fio = Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success());
        assert_eq!(figures[0].ratio.is_some(), has_fio, "{}", figures[0].to);
        assert_eq!(figures[0].to.contains("no fio"), !has_fio, "{}", figures[0].to);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_is_none_is_said_to_be() {
        let work = Workload { folder: "/nowhere".into(), bytes: 1 << 20, piece: 1 << 18, depth: 4, rounds: 1 };
        assert!(measure(&work).unwrap_err().to_string().contains("/nowhere: there is no such folder"));
    }
}
