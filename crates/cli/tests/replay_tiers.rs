//! `stratalloc replay --tiers`, as a user meets it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

fn replay(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
    command.arg("replay").args(args).env_remove("STRATALLOC_CONF").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_TARGET_TMPDIR"), name].iter().collect()
}

/// A program of two streams that keeps 24 blocks of 1 to 8 MiB, and frees them in the order in which they came.
fn trace() -> String {
    // Written once: another test may be reading it.
    static WRITTEN: OnceLock<String> = OnceLock::new();
    WRITTEN.get_or_init(write_trace).clone()
}

fn write_trace() -> String {
    let path = path("tiers.trace");
    let mut text = "# stratalloc-trace 1\n# workload: small\n# streams: 2\n".to_owned();
    for id in 0..48 {
        text += &format!("a {id} {} {}\n", (1 + id % 8) * (1 << 20) - id * 100, id % 2);
        if id % 5 == 0 {
            text += &format!("r {id} {}\n", 1 - id % 2);
        }
        if id >= 24 {
            text += &format!("f {}\n", id - 24);
        }
    }
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn folder() -> String {
    let path = path("tiers.nvme");
    fs::create_dir_all(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn bytes_go_to_both_tiers_and_come_back() {
    let tiers = format!("host:32MiB,nvme:{}:512MiB", folder());
    let output = replay(&["--tiers", &tiers, "--capacity", "48MiB", "--contents", "--shrink", "1", "--json", &trace()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = &rows[0];
    let number = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"));
    assert_eq!((number("verified_blocks"), number("checker_reports")), (48, 0));
    assert!(row["completed"].as_bool().unwrap() && row["error"].is_null(), "{row}");
    assert_eq!(number("device_bytes"), 48 << 20);
    // What has gone has come back, for every block is compared before it is freed.
    assert!(number("evicted_bytes") > 32 << 20 && number("restored_bytes") > 32 << 20, "{row}");
    assert!(number("restored_bytes") <= number("evicted_bytes"), "{row}");
    // All of the time is accounted for.
    let parts = ["program_ns", "driver_ns", "pinning_ns", "transfer_wait_ns", "other_wait_ns"];
    let sum: u64 = parts.iter().map(|part| row["time"][part].as_u64().unwrap()).sum();
    assert_eq!(sum, number("tiered_ns"));
    assert_eq!(row["driver_calls"]["cuMemHostRegister"]["count"], 1);
    assert!(row["time"]["pinning_ns"].as_u64().unwrap() > 0);
}

#[test]
fn sizes_are_divided_and_people_are_told_where_the_time_went() {
    let output = replay(&["--tiers", "host:32MiB", "--capacity", "12MiB", "--contents", "--shrink", "4", &trace()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let out = text(&output.stdout);
    assert!(out.contains("48 blocks compared, checker: 0 reports"), "{out}");
    for words in ["where the time went: transfers ", "driver ", "pinning host memory ", "other waits ", "the program "]
    {
        assert!(out.contains(words), "{words}: {out}");
    }
}

#[test]
fn equal_replays_are_equal() {
    let run = || replay(&["--tiers", "host:128MiB", "--capacity", "48MiB", "--json", &trace()]).stdout;
    assert_eq!(text(&run()), text(&run()));
}

#[test]
fn a_trace_that_has_no_room_says_so() {
    let output = replay(&["--tiers", "host:4MiB", "--capacity", "48MiB", &trace()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("out of memory on device 0"), "{output:?}");
}

#[test]
fn bad_tiers_are_named() {
    let file = path("tiers.file");
    fs::write(&file, "").unwrap();
    let (file, trace) = (format!("nvme:{}:1GiB", file.display()), trace());
    for (tiers, code, words) in [
        ("tape:/dev/st0:1GiB", 2, "'tape' is no kind of tier: there are host and nvme"),
        ("host", 2, "'host' has no size"),
        ("host:lots", 2, "'lots' is not a size"),
        ("host:1KiB", 2, "too small"),
        ("nvme:/tmp:4KiB", 2, "too small"),
        ("nvme:tmp:1GiB", 2, "must begin with /"),
        ("peer:1:1GiB", 2, "a replay has one device"),
        ("host:999TiB", 1, "999 TiB cannot be pinned"),
        ("nvme:/no/such/folder:1GiB", 1, "there is no such folder; make it, or name another"),
        (file.as_str(), 1, "is not a folder; name one"),
    ] {
        let output = replay(&["--tiers", tiers, &trace]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{tiers}: {output:?}");
        assert!(error.starts_with("error: ") && error.contains(words), "{tiers}: {error}");
        assert_eq!(text(&output.stdout), "", "{tiers}");
    }
    let without = replay(&["--contents", &trace]);
    assert!(text(&without.stderr).contains("--tiers"), "{without:?}");
}
