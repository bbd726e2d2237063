//! Places where no tier can be, files changed behind its back, and children after `fork`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

fn unusable(spec: &NvmeSpec) -> String {
    match NvmeTier::open(spec) {
        Err(TierError::Unusable { tier, reason }) => {
            assert_eq!(tier, "nvme");
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nonsense_is_refused_in_words() {
    let folder = Folder::new();
    let good = spec(&folder);
    let none: [(&str, u64); 0] = [];
    assert!(unusable(&NvmeSpec::new(none)).contains("no folder"));
    assert!(unusable(&NvmeSpec::new([(&folder.0, 4096)])).contains("too little"));
    assert!(unusable(&NvmeSpec::new([(&folder.0, u64::MAX), (&folder.0, UNIT)])).contains("add up"));
    for stripe in [0, 4096, UNIT + 1] {
        assert!(unusable(&NvmeSpec { stripe, ..good.clone() }).contains("stripe"));
    }
    for depth in [0, 5000] {
        assert!(unusable(&NvmeSpec { depth, ..good.clone() }).contains("depth"));
    }
    for piece in [0, 100, 2 << 30] {
        assert!(unusable(&NvmeSpec { piece, ..good.clone() }).contains("pieces"));
    }
}

#[test]
fn folders_that_are_none_are_refused_in_words() {
    let folder = Folder::new();
    let missing = folder.0.join("missing");
    assert!(unusable(&NvmeSpec::new([(&missing, 1 << 20)])).contains("no such folder"));
    let file = folder.0.join("file");
    fs::write(&file, "here").unwrap();
    assert!(unusable(&NvmeSpec::new([(&file, 1 << 20)])).contains("not a folder"));
    assert!(unusable(&NvmeSpec::new([("/dev/null", 1 << 20)])).contains("not a folder"));
    // Nobody makes files there, not even the superuser.
    for means in [Means::all(), Means::empty()] {
        let text = unusable(&NvmeSpec { means, ..NvmeSpec::new([("/proc/self", 1 << 20)]) });
        assert!(text.contains("/proc/self: cannot make a file there"), "{text}");
    }
    // The second of two.
    let text = unusable(&NvmeSpec::new([(&folder.0, 1 << 20), (&missing, 1 << 20)]));
    assert!(text.contains("missing"), "{text}");
    assert_eq!(fs::read(&file).unwrap(), b"here");
    assert_eq!(folder.names(), ["file"]);
}

#[test]
fn a_folder_that_is_not_ours_is_refused() {
    let folder = Folder::new();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o555)).unwrap();
    // SAFETY: it has no precondition.
    if unsafe { libc::geteuid() } == 0 {
        // The superuser may write anywhere: nothing to be seen.
        return drop(NvmeTier::open(&spec(&folder)).unwrap());
    }
    assert!(unusable(&spec(&folder)).contains("Permission denied"));
}

#[test]
fn memory_file_systems_serve_too() {
    let parent = Path::new("/dev/shm");
    if !parent.is_dir() {
        return;
    }
    let folder = Folder::within(parent);
    let tier = NvmeTier::open(&NvmeSpec { stripe: UNIT, ..NvmeSpec::new([(&folder.0, 4 << 20)]) }).unwrap();
    let slot = tier.reserve(1 << 20).unwrap();
    let (mut bytes, mut back) = (memory(1 << 20), memory(1 << 20));
    fill(bytes.bytes_mut(), 1);
    carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
    carry(&tier, Direction::Read, slot, &mut back).unwrap();
    assert!(back.bytes() == bytes.bytes());
}

/// What a process that was killed between making a file with a name and taking the name away has left.
#[test]
fn an_empty_file_that_lost_its_owner_is_removed_and_nothing_else() {
    let folder = Folder::new();
    let others = [".stratalloc-tier-full", "stratalloc-tier-", ".other"];
    fs::write(folder.0.join(".stratalloc-tier-00ff"), "").unwrap();
    fs::write(folder.0.join(others[0]), "something").unwrap();
    fs::write(folder.0.join(others[1]), "").unwrap();
    fs::write(folder.0.join(others[2]), "").unwrap();
    drop(NvmeTier::open(&NvmeSpec { means: Means::all() - Means::NAMELESS, ..spec(&folder) }).unwrap());
    let mut names = folder.names();
    names.sort();
    let mut expected = others;
    expected.sort();
    assert_eq!(names, expected);
}

/// The tier's file, as somebody with the same user id may open it.
fn behind(folder: &Folder) -> File {
    let wanted = fs::metadata(&folder.0).unwrap().dev();
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let is_ours = fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&folder.0));
        if is_ours && fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file() && metadata.dev() == wanted) {
            return OpenOptions::new().read(true).write(true).open(entry.path()).unwrap();
        }
    }
    panic!("no file of the tier is open");
}

#[test]
fn the_file_is_for_its_owner_only() {
    for means in [Means::all(), Means::all() - Means::NAMELESS] {
        let folder = Folder::new();
        let _tier = NvmeTier::open(&NvmeSpec { means, ..spec(&folder) }).unwrap();
        let metadata = behind(&folder).metadata().unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.nlink()), (0o600, 0));
    }
}

#[test]
fn a_file_cut_off_or_altered_is_found_out() {
    for encrypt in [false, true] {
        let folder = Folder::new();
        let tier = NvmeTier::open(&NvmeSpec { encrypt, ..spec(&folder) }).unwrap();
        let slot = tier.reserve(4 * UNIT).unwrap();
        let (mut bytes, mut back) = (memory(4 * UNIT), memory(4 * UNIT));
        fill(bytes.bytes_mut(), 9);
        carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
        let file = behind(&folder);
        let mut stored = vec![0; UNIT as usize];
        file.read_exact_at(&mut stored, slot.offset + UNIT).unwrap();
        let plain = &bytes.bytes()[UNIT as usize..][..UNIT as usize];
        assert_eq!(stored != plain, encrypt);
        if encrypt {
            // One bit of it. Without encryption the transfer's checksum finds it, which is not the tier's.
            stored[77] ^= 4;
            file.write_all_at(&stored, slot.offset + UNIT).unwrap();
            let error = carry(&tier, Direction::Read, slot, &mut back).unwrap_err();
            let TierError::Corrupt { what, expected, found, .. } = &error else { panic!("{error}") };
            assert!(what.starts_with("256 KiB from 0 of the file in") && expected != found, "{error}");
        }
        file.set_len(slot.offset + 2 * UNIT).unwrap();
        let error = carry(&tier, Direction::Read, slot, &mut back).unwrap_err();
        assert!(error.to_string().contains("the file ends before it"), "{error}");
        // What is written again is whole again.
        carry(&tier, Direction::Write, slot, &mut bytes).unwrap();
        carry(&tier, Direction::Read, slot, &mut back).unwrap();
        assert!(back.bytes() == bytes.bytes());
    }
}

/// Runs `child` in a child process, where it may only make system calls and look at what is there, and returns what it says.
fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `child`, which takes no lock that another thread may hold, and ends without unwinding or cleaning up.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::_exit(if child() { 0 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

#[test]
fn a_child_after_fork_touches_nothing() {
    for means in [Means::all(), Means::all() - Means::RING] {
        let folder = Folder::new();
        let tier = NvmeTier::open(&NvmeSpec { means, piece: 64 << 10, ..spec(&folder) }).unwrap();
        let size = 8 << 20;
        let slot = tier.reserve(size).unwrap();
        let (mut bytes, mut back) = (memory(size), memory(size));
        fill(bytes.bytes_mut(), 4);
        let ticket = begin(&tier, Direction::Write, slot, 0, size, &mut bytes).unwrap();
        let mut other = memory(size);
        let fine = in_child(|| {
            let refused = begin(&tier, Direction::Write, slot, 0, size, &mut other).is_err();
            let told = matches!(tier.finish(ticket, true), Some(Err(_)));
            let none = tier.reserve(4096).is_err() && tier.used() == 0;
            tier.release(slot);
            // SAFETY: the child has its own copy, and never comes back to it.
            drop(unsafe { std::ptr::read(&tier) });
            refused && told && none
        });
        assert!(fine, "the child could use the tier, or died of it");
        tier.finish(ticket, true).unwrap().unwrap();
        carry(&tier, Direction::Read, slot, &mut back).unwrap();
        assert!(back.bytes() == bytes.bytes());
    }
}
