//! The tier of files, as processes see it: killed at any moment, forbidden this and that, with a hundred thousand slots.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped, and what was counted")]
#![cfg(all(feature = "nvme", target_os = "linux"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stratalloc::driver::soft::SoftDevice;
use stratalloc::driver::{Driver, Location};
use stratalloc::tier::nvme::{Means, NvmeSpec, open};
use stratalloc::tier::transfer::{Engine, EngineConfig};
use stratalloc::tier::{Direction, Io, Slot, Tier, TierError};

/// Bytes that each thread has allocated and not freed.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: all of it is the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait says.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|live| live.set(live.get() + layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the trait says.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|live| live.set(live.get() - layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Page-aligned bytes.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; 4096]);

struct Pages(Vec<Page>);

impl Pages {
    fn new(size: u64) -> Pages {
        Pages(vec![Page([0; 4096]); size.next_multiple_of(4096) as usize / 4096])
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: pages are bytes, one after another.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 4096) }
    }

    fn fill(&mut self, seed: u64) {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for word in self.bytes().chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }
}

fn carry(tier: &dyn Tier, direction: Direction, slot: Slot, pages: &mut Pages) -> Result<(), TierError> {
    let buffer = pages.bytes().as_mut_ptr();
    // SAFETY: the pages have room for the slot, and are left alone until the transfer has ended.
    let ticket = unsafe { tier.start(Io { direction, slot, offset: 0, buffer, size: slot.size }) }?;
    tier.finish(ticket, true).expect("it waits")
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = env::temp_dir().join(format!("stratalloc-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a child of a test is to do, and where.
const ROLE: &str = "NVME_TEST_ROLE";
const FOLDER: &str = "NVME_TEST_FOLDER";

/// This program again, as a child with a role.
fn child_command(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(FOLDER, folder).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Runs a child to its end and returns what it printed.
fn run_child(role: &str, folder: &Path) -> (ExitStatus, String) {
    let output = child_command(role, folder).output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
#[ignore = "what other tests run in processes of their own"]
fn child() {
    let (Ok(role), Ok(folder)) = (env::var(ROLE), env::var(FOLDER)) else { return };
    match role.as_str() {
        "work" => work(&folder, Means::all()),
        "work, named" => work(&folder, Means::all() - Means::NAMELESS),
        "work, threads" => work(&folder, Means::all() - Means::RING),
        "without io_uring" => {
            forbid_io_uring();
            report(&folder, 16 << 20);
        }
        "small files" => {
            limit_file_size(1 << 20);
            report(&folder, 16 << 20);
        }
        "small disk" => fill_a_small_disk(&folder),
        other => panic!("no such role: {other}"),
    }
}

/// Says what the tier is, if it works.
fn report(folder: &str, bytes: u64) {
    match open(&NvmeSpec::new([(folder, bytes)])) {
        Ok(tier) => {
            let slot = tier.reserve(1 << 20).unwrap();
            let (mut pages, mut back) = (Pages::new(1 << 20), Pages::new(1 << 20));
            pages.fill(8);
            carry(&*tier, Direction::Write, slot, &mut pages).unwrap();
            carry(&*tier, Direction::Read, slot, &mut back).unwrap();
            assert!(pages.bytes() == back.bytes());
            println!("works: {}", tier.describe());
        }
        Err(error) => println!("does not: {error}"),
    }
}

/// Works until it is killed.
fn work(folder: &str, means: Means) {
    let tier = open(&NvmeSpec { means, encrypt: true, ..NvmeSpec::new([(folder, 64 << 20)]) }).unwrap();
    let (mut pages, mut back) = (Pages::new(3 << 20), Pages::new(3 << 20));
    for round in 0u64.. {
        let slot = tier.reserve((1 + round % 3) << 20).unwrap();
        pages.fill(round);
        carry(&*tier, Direction::Write, slot, &mut pages).unwrap();
        if round == 0 {
            println!("at work");
        }
        carry(&*tier, Direction::Read, slot, &mut back).unwrap();
        let size = slot.size as usize;
        assert!(pages.bytes()[..size] == back.bytes()[..size]);
        if round % 2 == 0 {
            tier.release(slot);
        }
        if round % 20 == 19 {
            return work(folder, means);
        }
    }
}

/// Ends a child that works after some time, `runs` times. Nothing is left of it, and nothing of others' is harmed.
fn kill(name: &str, runs: u64) {
    let folder = Folder::new(name);
    let neighbour = folder.0.join("neighbour");
    let contents: Vec<u8> = (0..1 << 20).map(|index: u32| ((index * 7) >> 5) as u8).collect();
    fs::write(&neighbour, &contents).unwrap();
    let ours = open(&NvmeSpec::new([(&folder.0, 16 << 20)])).unwrap();
    let slot = ours.reserve(4 << 20).unwrap();
    let (mut pages, mut back) = (Pages::new(4 << 20), Pages::new(4 << 20));
    pages.fill(1);
    carry(&*ours, Direction::Write, slot, &mut pages).unwrap();
    let mut at_work = 0;
    let mut random = 88_172_645_463_325_252u64;
    for run in 0..runs {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let role = ["work", "work, named", "work, threads"][run as usize % 3];
        let mut child = child_command(role, &folder.0).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        // Half of them while they set themselves up, half of them at work.
        if random.is_multiple_of(2) {
            let mut line = String::new();
            while line != "at work\n" && output.read_line(&mut line).unwrap() > 0 {
                line = line.split_inclusive('\n').next_back().unwrap_or_default().to_string();
            }
        }
        std::thread::sleep(Duration::from_micros(random % 30_000));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_none(), "run {run} ({role}) ended by itself: {status}");
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        at_work += u64::from(random.is_multiple_of(2));
        let names = folder.names();
        // Of one that was killed between making a named file and taking the name away there is an empty file, which the next one removes.
        let strange = names.iter().find(|name| {
            let is_empty = fs::metadata(folder.0.join(name)).is_ok_and(|metadata| metadata.len() == 0);
            *name != "neighbour" && !(role == "work, named" && is_empty)
        });
        assert_eq!(strange, None, "run {run} ({role})");
        assert!(fs::read(&neighbour).unwrap() == contents, "run {run} ({role})");
    }
    assert!(at_work > runs / 4 && at_work < runs, "{at_work} of {runs} were at work");
    carry(&*ours, Direction::Read, slot, &mut back).unwrap();
    assert!(pages.bytes() == back.bytes());
    drop(open(&NvmeSpec { means: Means::empty(), ..NvmeSpec::new([(&folder.0, 1 << 20)]) }).unwrap());
    assert_eq!(folder.names(), ["neighbour"]);
}

#[test]
fn a_killed_process_leaves_no_file_and_harms_none() {
    kill("kill", 18);
}

#[test]
#[ignore = "long: `cargo xtask validate` runs it"]
fn long_two_hundred_killed_processes_leave_no_file_and_harm_none() {
    kill("kill-long", 200);
}

/// Has the kernel answer EPERM to io_uring_setup, as containers do.
fn forbid_io_uring() {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is whole and lives until the call returns; it binds this thread and those that it makes.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

#[test]
fn where_io_uring_is_forbidden_threads_do_its_work() {
    let folder = Folder::new("seccomp");
    let (status, text) = run_child("without io_uring", &folder.0);
    let told = text.contains("works: nvme") && text.contains("no io_uring: Operation not permitted");
    assert!(status.success() && told && text.contains("threads"), "{status}: {text}");
}

fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit64 { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the structure is ours.
    assert_eq!(unsafe { libc::setrlimit64(libc::RLIMIT_FSIZE, &limit) }, 0);
}

/// Writing beyond the limit would end the process.
#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
    let folder = Folder::new("ulimit");
    let (status, text) = run_child("small files", &folder.0);
    assert!(status.success() && text.contains("does not: tier nvme cannot be used"), "{status}: {text}");
    assert!(text.contains("ulimit -f"), "{text}");
}

/// Mounts a file system of 8 MiB over the folder, for this process alone, and fills it.
fn fill_a_small_disk(folder: &str) {
    let target = std::ffi::CString::new(folder).unwrap();
    // SAFETY: all strings end with a zero; the mount is this process's own.
    let mounted = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(c"none".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=8m".as_ptr().cast()) == 0
    };
    if !mounted {
        return println!("cannot mount");
    }
    for means in [Means::all(), Means::all() - Means::PREALLOCATED] {
        let tier = open(&NvmeSpec { means, ..NvmeSpec::new([(folder, 64 << 20)]) }).unwrap();
        println!("{}", tier.describe());
        let mut pages = Pages::new(1 << 20);
        let mut slots = Vec::new();
        let full = loop {
            assert!(slots.len() < 20, "8 MiB hold as much as that");
            let slot = match tier.reserve(1 << 20) {
                Ok(slot) => slot,
                Err(error) => break error,
            };
            pages.fill(slots.len() as u64);
            if let Err(error) = carry(&*tier, Direction::Write, slot, &mut pages) {
                tier.release(slot);
                break error;
            }
            slots.push(slot);
        };
        println!("full after {}: {full}", slots.len());
        assert!(full.is_full() && full.to_string().contains(folder) && slots.len() >= 6, "{full}");
        // All that was stored is there.
        let mut back = Pages::new(1 << 20);
        for (seed, &slot) in (0..).zip(&slots) {
            pages.fill(seed);
            carry(&*tier, Direction::Read, slot, &mut back).unwrap();
            assert!(pages.bytes() == back.bytes());
        }
        // What is given back serves again.
        tier.release(slots.pop().unwrap());
        let again = tier.reserve(1 << 20).unwrap();
        carry(&*tier, Direction::Write, again, &mut pages).unwrap();
    }
    println!("all is well");
}

#[test]
fn a_full_disk_loses_nothing() {
    let folder = Folder::new("full");
    let (status, text) = run_child("small disk", &folder.0);
    if text.contains("cannot mount") {
        return eprintln!("skipped: no right to mount a small file system");
    }
    assert!(status.success() && text.contains("all is well"), "{status}: {text}");
}

fn go_and_come_back(tier: &Arc<dyn Tier>, size: u64) {
    let slot = tier.reserve(size).unwrap();
    let mut pages = Pages::new(size);
    pages.fill(size);
    carry(&**tier, Direction::Write, slot, &mut pages).unwrap();
    let mut back = Pages::new(size);
    carry(&**tier, Direction::Read, slot, &mut back).unwrap();
    let size = size as usize;
    assert!(pages.bytes()[..size] == back.bytes()[..size]);
    tier.release(slot);
}

#[test]
fn slots_of_4_kib_to_64_mib() {
    let folder = Folder::new("sizes");
    let tier = open(&NvmeSpec::new([(&folder.0, 128 << 20)])).unwrap();
    for doublings in 12..=26 {
        go_and_come_back(&tier, 1 << doublings);
    }
}

#[test]
#[ignore = "long: `cargo xtask validate` runs it"]
fn long_a_slot_of_1_gib() {
    let folder = Folder::new("gibibyte");
    let tier = open(&NvmeSpec::new([(&folder.0, 1 << 30)])).unwrap();
    go_and_come_back(&tier, 1 << 30);
}

/// The tier's file, by the only name that it has.
fn file_of(folder: &Folder) -> fs::File {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target.starts_with(&folder.0));
    fs::OpenOptions::new().read(true).write(true).open(descriptors.into_iter().find(ours).unwrap()).unwrap()
}

/// From a device to the disk and back, by the transfer engine; with one changed byte it is an error, and the device's memory is left alone.
#[test]
fn the_engine_saves_there_and_loads_from_there_and_finds_changes() {
    for encrypt in [false, true] {
        let folder = Folder::new(if encrypt { "engine-encrypted" } else { "engine" });
        let tier = open(&NvmeSpec { encrypt, ..NvmeSpec::new([(&folder.0, 64 << 20)]) }).unwrap();
        let driver: Arc<dyn Driver> = SoftDevice::builder(64 << 20).checker(true).build().unwrap();
        let (unit, room) = (driver.properties().granularity, 16 << 20);
        let memory = driver.reserve(2 * room, unit).unwrap();
        let chunk = driver.create(2 * room, Location::Device).unwrap();
        driver.map(memory, 2 * room, chunk, 0).unwrap();
        driver.set_access(memory, 2 * room).unwrap();
        let (engine, stream) =
            (Engine::new(driver.clone(), EngineConfig::default()).unwrap(), driver.create_stream().unwrap());
        let back = memory.add(room);
        for size in [4096, 10_000, 2 << 20, (5 << 20) + 4097] {
            let mut pages = Pages::new(size);
            pages.fill(size);
            let bytes = &pages.bytes()[..size as usize];
            driver.write(memory, bytes, stream).unwrap();
            let saved = engine.save(memory, size, &tier, None, &[stream]).unwrap();
            let place = saved.wait().unwrap().unwrap();
            let load = |expected: bool| {
                let loaded = engine.load(&place, back, &[stream]).unwrap();
                let result = loaded.wait();
                assert_eq!(result.is_ok(), expected, "{result:?}");
                if expected {
                    engine.order(&loaded, stream).unwrap();
                }
                result.err()
            };
            load(true);
            let mut read = vec![0; size as usize];
            driver.read(&mut read, back, stream).unwrap();
            assert!(read == bytes, "{size}");
            let (file, at, mut byte) = (file_of(&folder), place.slot().offset + size / 2, [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
            let error = load(false).unwrap();
            assert!(matches!(error, TierError::Corrupt { .. }), "{error}");
        }
    }
}

/// Stated in DESIGN.md.
#[test]
fn a_slot_costs_under_a_hundred_and_sixty_bytes_of_memory() {
    const COUNT: usize = 100_000;
    let folder = Folder::new("memory");
    let tier =
        open(&NvmeSpec { means: Means::all() - Means::PREALLOCATED, ..NvmeSpec::new([(&folder.0, 8 << 30)]) }).unwrap();
    let mut slots = Vec::with_capacity(COUNT);
    let before = LIVE.get();
    for index in 0..COUNT as u64 {
        slots.push(tier.reserve(4096 + index % 16 * 4096).unwrap());
    }
    let packed = (LIVE.get() - before) as usize / COUNT;
    // The worst case: a free gap beside every slot.
    let (kept, released): (Vec<_>, Vec<_>) = (0..).zip(slots).partition(|(index, _): &(usize, Slot)| index % 2 == 0);
    for (_, slot) in released {
        tier.release(slot);
    }
    let gaps = (LIVE.get() - before) as usize / kept.len();
    println!("{packed} bytes a slot; {gaps} with a gap beside each");
    assert!(packed <= 160 && gaps <= 320, "{packed}, {gaps}");
    for (_, slot) in kept {
        tier.release(slot);
    }
    assert_eq!(tier.used(), 0);
}
