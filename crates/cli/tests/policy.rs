//! `replay --policy`, `import` and `tune` as a user meets them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn stratalloc(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
    command.args(args).env_remove("STRATALLOC_CONF").output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = stratalloc(args);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn data(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../trace/tests/data").join(name);
    path.to_str().unwrap().to_owned()
}

fn temporary(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_TARGET_TMPDIR"), name].iter().collect();
    path.to_str().unwrap().to_owned()
}

/// Three blocks that fill 60 MiB, of which the outer two go, and one that has no room between them.
const HOLES: &str = "# stratalloc-trace 1\n# workload: holes\na 0 20971520 0\na 1 20971520 0\na 2 20971520 0\nf 0\nf 2\na 3 41943040 0\n";

#[test]
fn policies_stand_side_by_side() {
    let trace = temporary("holes.trace");
    fs::write(&trace, HOLES).unwrap();
    let args = ["replay", "--policy", "native,expandable,stratalloc", "--capacity", "80MiB", "--min-capacity", &trace];
    let output = stratalloc(&args);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for words in ["native", "expandable", "stratalloc", "min capacity", "Everything fits on 80"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let rows = json(&[&args[..], &["--json"]].concat());
    let of = |policy: &str, key: &str| {
        rows.as_array().unwrap().iter().find(|row| row["policy"] == policy).unwrap()[key].as_u64().unwrap()
    };
    // The native policy gives two segments back and takes one of 40 MiB, after a failure; the others move or extend.
    assert_eq!((of("native", "peak_reserved_bytes"), of("native", "retries")), (60 << 20, 1));
    assert_eq!(of("native", "min_capacity_bytes"), 60 << 20);
    assert!(of("stratalloc", "min_capacity_bytes") <= 62 << 20);
    assert!(rows[0]["driver_calls"]["cuMemFree"] == 2 && rows[1]["driver_calls"]["cuMemCreate"].as_u64() >= Some(4));
    assert!(rows[0]["driver_time_us"].as_f64() > Some(2_000.0), "two frees wait for the device");
}

#[test]
fn what_does_not_fit_is_told_and_is_no_success() {
    let trace = temporary("tight.trace");
    fs::write(&trace, HOLES).unwrap();
    let output = stratalloc(&["replay", "--policy", "native", "--capacity", "50MiB", &trace]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    for words in ["Does not fit on 50", "holes under native at operation 2 (line 5)", "20 MiB asked for"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn settings_of_torch_reach_its_models() {
    let trace = temporary("split.trace");
    fs::write(&trace, "# stratalloc-trace 1\na 0 67108864 0\nf 0\na 1 30000000 0\n").unwrap();
    let reserved = |conf: &str| {
        json(&["replay", "--policy", "native", "--json", "--torch-conf", conf, &trace])[0]["peak_reserved_bytes"]
            .clone()
    };
    assert_eq!(reserved("max_split_size_mb:64"), (64 << 20) + (30 << 20));
    assert_eq!(reserved(""), 64 << 20);
    let output = stratalloc(&["replay", "--policy", "native", "--torch-conf", "max_split:64", &trace]);
    assert!(stderr(&output).starts_with("error: in --torch-conf: unknown key 'max_split'"), "{output:?}");
    let folder = temporary("changes");
    let output = stratalloc(&["replay", "--policy", "native", "--changes", &folder, &trace]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fs::read_to_string(format!("{folder}/split.native.reserved")).unwrap(), format!("0 {}\n", 64 << 20));
    let output = stratalloc(&["replay", "--changes", &folder, &trace]);
    assert!(stderr(&output).contains("for --policy native and expandable"), "{output:?}");
    let output = stratalloc(&["replay", "--policy", "native", "--checker", &trace]);
    assert!(stderr(&output).contains("for --policy stratalloc alone"), "{output:?}");
}

#[test]
fn a_snapshot_is_replayed_and_imported() {
    let snapshot = data("native.pickle");
    let output = stratalloc(&["replay", "--policy", "stratalloc,native", "--capacity", "96MiB", &snapshot]);
    // The program failed with a request of 90 MiB, and so does every policy.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("from a PyTorch snapshot; 2 allocated before"), "{output:?}");
    assert_eq!(stratalloc(&["replay", "--policy", "native", &snapshot]).status.code(), Some(0));
    for name in ["imported.trace", "imported.trace.zst"] {
        let trace = temporary(name);
        let output = stratalloc(&["import", &snapshot, "-o", &trace]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(stdout(&output).contains("2 streams\nfrom a PyTorch snapshot; 2 allocated before"), "{output:?}");
        let ops = |trace: &str| json(&["replay", "--repeat", "1", "--json", trace])[0]["ops"].clone();
        assert_eq!(ops(&trace), ops(&data("native.trace")));
    }
}

#[test]
fn traces_and_snapshots_may_come_from_a_pipe() {
    for (name, ops) in [("native.trace", 56), ("native.pickle", 56)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
        command.args(["replay", "--repeat", "1", "--json", "/dev/stdin"]).env_remove("STRATALLOC_CONF");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&fs::read(data(name)).unwrap()).unwrap();
        let rows: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(rows[0]["ops"], ops, "{name}");
    }
}

#[test]
fn bad_imports_are_one_line() {
    let hostile = temporary("hostile.pickle");
    fs::write(&hostile, b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.").unwrap();
    let target = temporary("never.trace");
    for (file, output, words) in [
        (hostile.as_str(), target.as_str(), "it would call posix.system; nothing was run"),
        ("/does/not/exist", &target, "/does/not/exist: cannot be read"),
        (&data("native.pickle"), "/does/not/exist/a.trace", "/does/not/exist/a.trace: cannot be written"),
    ] {
        let output = stratalloc(&["import", file, "-o", output]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{output:?}");
        assert!(stderr(&output).starts_with("error: ") && stderr(&output).contains(words), "{output:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    }
    assert!(!PathBuf::from(target).exists());
    let output = stratalloc(&["import", &data("native.pickle"), "--device", "5", "-o", "/dev/null/x"]);
    assert!(stderr(&output).contains("no events of device 5; there are some of 0"), "{output:?}");
}

#[test]
fn tune_says_what_it_tried_and_the_line_to_set() {
    let trace = temporary("tune.trace");
    // Many blocks of 33 MiB that stay: small chunks hold them tightly, large ones cost fewer calls.
    let blocks: String = (0..40).map(|id| format!("a {id} {} 0\n", 33 << 20)).collect();
    fs::write(&trace, format!("# stratalloc-trace 1\n# workload: blocks\n{blocks}")).unwrap();
    let small = "magazine:0.25,chunk:2MiB,chunk_max:2MiB";
    let args = ["tune", "--for", "speed", "--config", small, &trace];
    let report = json(&[&args[..], &["--json"]].concat());
    let tried = report["tried"].as_array().unwrap();
    assert!(tried.len() > 5 && tried[0]["settings"] == small, "{report}");
    let best = report["best"].as_str().unwrap();
    assert!(report["changed"] == true && best.contains("chunk"), "{report}");
    let of = |settings: &str| tried.iter().find(|row| row["settings"] == settings).unwrap();
    let time = |settings: &str| of(settings)["driver_time_us"].as_f64().unwrap();
    assert!(time(best) < time(small) / 2.0, "{report}");
    assert!(of(best)["memory_ratio"].as_f64() <= of(small)["memory_ratio"].as_f64().map(|ratio| ratio * 1.1));
    // The same again, for people: the same line, and what is better.
    let output = stratalloc(&args);
    let text = stdout(&output);
    assert!(text.ends_with(&format!("export STRATALLOC_CONF={best}\n")), "{text}");
    assert!(text.contains("Best of ") && text.contains("driver time"), "{text}");
    // From there, nothing is better.
    let output = stratalloc(&["tune", "--for", "speed", "--config", best, &trace]);
    assert!(stdout(&output).contains("is best: nothing to set"), "{output:?}");
    let output = stratalloc(&["tune", "--capacity", "64MiB", &trace]);
    assert!(stderr(&output).contains("no settings make everything fit"), "{output:?}");
    assert_eq!(stratalloc(&["tune", "--slack", "0.5", &trace]).status.code(), Some(1));
}
