//! The recorded traces, as the command replays them: no use of memory is out of order, and equal replays are equal.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use stratalloc_cli::trace::Trace;

/// Operations of each trace that are replayed here: the whole of them is for release builds.
const OPS: usize = 8_000;

fn recorded() -> Vec<PathBuf> {
    let traces = traces_in("../../tests/traces");
    assert!(traces.len() >= 7, "{traces:?}");
    traces
}

/// Those that were recorded with this project's own recorder.
fn own() -> Vec<PathBuf> {
    let traces = traces_in("../../tests/traces/own");
    assert!(traces.len() >= 3, "{traces:?}");
    traces
}

fn traces_in(folder: &str) -> Vec<PathBuf> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), folder].iter().collect();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut traces: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "zst")).collect();
    traces.sort();
    traces
}

/// The beginnings of all recorded traces, as files of the test `user`.
fn beginnings(user: &str) -> Vec<String> {
    let shorten = |path: PathBuf| {
        let mut trace = Trace::load(&path).unwrap();
        trace.ops.truncate(OPS);
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        let stem = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".trace.zst");
        let name = format!("{user}-{stem}.trace");
        let short: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &name].iter().collect();
        fs::write(&short, text).unwrap();
        short.to_str().unwrap().to_owned()
    };
    recorded().into_iter().map(shorten).collect()
}

/// One object a trace.
fn replay(traces: &[String], args: &[&str]) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
    command.env_remove("STRATALLOC_CONF").arg("replay").args(traces).arg("--json").args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn is_clean(rows: &[Value]) {
    for row in rows {
        let reports = row["checker_reports"].as_array().expect("the checker was on");
        assert!(reports.is_empty(), "{}: {}", row["trace"], reports[0]);
    }
}

#[test]
fn no_access_is_out_of_order_by_plan() {
    // With markers and without; the passes are the steps that repeat. One trace with one stream, two with several.
    let traces = beginnings("planned");
    let traces: Vec<String> = ["gpt2xl", "offload", "prefetch"]
        .map(|name| traces.iter().find(|trace| trace.contains(name)).unwrap().clone())
        .into();
    for args in [&["--steps"][..], &["--event-lag-us", "100"]] {
        let rows = replay(&traces, &[&["--checker", "--repeat", "4", "--config", "plan:inline"], args].concat());
        is_clean(&rows);
        for row in &rows {
            assert!(row["plans"]["hits"].as_u64() > Some(500), "{}: {}", row["trace"], row["plans"]);
        }
    }
}

#[test]
fn no_access_is_out_of_order() {
    let traces = beginnings("checked");
    is_clean(&replay(&traces, &["--checker", "--repeat", "1"]));
    is_clean(&replay(&traces, &["--checker", "--repeat", "1", "--seed", "5", "--config", "cross_stream_wait:true"]));
}

#[test]
fn no_access_is_out_of_order_where_events_lag() {
    let traces = beginnings("lagging");
    is_clean(&replay(&traces, &["--checker", "--repeat", "1", "--seed", "3", "--event-lag-us", "100"]));
}

#[test]
fn no_access_is_out_of_order_where_the_device_lags_under_pressure() {
    let traces = beginnings("pressed");
    let lags = ["--gpu-bandwidth", "2TB/s", "--pressure", "1.05", "--repeat", "1"];
    is_clean(&replay(&traces, &[&["--checker"], &lags[..]].concat()));
    // Without the checker, a kernel that finds its memory unmapped ends the replay.
    for row in replay(&traces, &lags) {
        assert!(row["virtual_time_us"].as_f64() >= row["stall_us"].as_f64(), "{row}");
    }
}

#[test]
fn debug_aids_submit_nothing_out_of_order() {
    let traces = beginnings("watched");
    let aids = "poison:check,redzone:512,quarantine:1GiB,leaks:false";
    is_clean(&replay(&traces, &["--checker", "--repeat", "1", "--seed", "2", "--config", aids]));
}

#[test]
fn the_smallest_trace_is_clean_to_its_end() {
    let smallest = recorded().into_iter().min_by_key(|path| Trace::load(path).unwrap().ops.len()).unwrap();
    is_clean(&replay(&[smallest.to_str().unwrap().to_owned()], &["--checker", "--repeat", "1", "--seed", "1"]));
}

/// Of the small traces that make one, with one stream and with two: what a plan from an earlier run makes better, and what it cannot.
#[test]
#[ignore = "whole traces, many times: run by `cargo xtask validate`"]
fn long_a_plan_from_an_earlier_run_takes_no_more_memory() {
    for path in own() {
        let trace = [path.to_str().unwrap().to_owned()];
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let plan: PathBuf = [env!("CARGO_TARGET_TMPDIR"), &format!("{name}.plan")].iter().collect();
        let plan = plan.to_str().unwrap();
        let held = |args: &[&str]| {
            let rows =
                replay(&trace, &[&["--repeat", "3", "--capacity", "256GiB", "--latency", "a100"], args].concat());
            let number = |field: &str| rows[0][field].as_u64().unwrap();
            let ratio = number("peak_reserved_bytes_all_passes") as f64 / number("peak_live_bytes") as f64;
            (ratio, rows[0]["driver_time_us"].as_f64().unwrap(), rows[0]["plans"].clone())
        };
        let (off, off_us, _) = held(&["--config", "plan:off"]);
        held(&["--config", "plan:inline", "--plan-out", plan]);
        let (imported, imported_us, plans) = held(&["--config", "plan:inline", "--plan-in", plan]);
        assert!(imported < off + 0.01, "{name}: {imported} with the plan, {off} without; {plans}");
        if name.starts_with("gpt-small") {
            assert!(
                imported < 1.005 && off > 1.01 && imported_us < off_us / 2.0,
                "{imported} {off} {imported_us} {off_us}"
            );
            assert!(plans["misses"] == 0 && plans["dropped"] == 0, "{plans}");
        }
    }
}

#[test]
fn equal_replays_give_equal_addresses() {
    let traces = beginnings("hashed");
    for args in [&["--repeat", "2", "--seed", "11"][..], &["--repeat", "1", "--seed", "11", "--event-lag-us", "50"]] {
        let hashes = || replay(&traces, args).iter().map(|row| row["address_hash"].clone()).collect::<Vec<_>>();
        let first = hashes();
        assert!(first.iter().all(Value::is_string));
        assert_eq!(first, hashes());
    }
}

#[test]
#[ignore = "whole traces, a minute: run by `cargo xtask validate`"]
fn long_a_second_pass_takes_next_to_nothing_from_the_device() {
    // Whole traces, with memory to spare: less than half of it is needed. Few chunks are created a second time, and what is mapped
    // once more, which costs little, comes to a fiftieth of the first pass's time in the driver.
    let traces: Vec<String> = recorded().iter().map(|path| path.to_str().unwrap().to_owned()).collect();
    for row in replay(&traces, &["--repeat", "2", "--skip-empty-cache", "--capacity", "160GiB"]) {
        let calls = row["second_pass_chunk_calls"].as_object().unwrap();
        assert!(calls.len() >= 3);
        let before = row["driver_calls"]["cuMemCreate"].as_u64().unwrap();
        assert!(calls["created"].as_u64().unwrap() * 50 <= before, "{}: {calls:?}, {before} before", row["trace"]);
        assert_eq!(calls["released"], 0, "{}", row["trace"]);
        let [first, second] =
            [&row["driver_time_us"], &row["second_pass"]["driver_time_us"]].map(|us| us.as_f64().unwrap());
        assert!(second * 50.0 <= first, "{}: {second} us in the driver, {first} before", row["trace"]);
    }
}

#[test]
#[ignore = "whole traces on one device after the other, two minutes: run by `cargo xtask validate`"]
fn long_the_smallest_device_for_expandable_segments_is_large_enough() {
    // Those that have been the closest; `cargo xtask peers` asks all.
    let closest = recorded().into_iter().filter(|path| path.to_str().unwrap().contains("lora"));
    let traces: Vec<String> = closest.chain(own()).map(|path| path.to_str().unwrap().to_owned()).collect();
    let rows = replay(&traces, &["--policy", "expandable", "--min-capacity", "--repeat", "1"]);
    assert_eq!(rows.len(), traces.len());
    for (trace, row) in traces.into_iter().zip(rows) {
        let capacity = format!("{}B", row["min_capacity_bytes"].as_u64().unwrap());
        // Without room it fails. The second pass begins with what the first has left: on the short traces.
        let passes = if trace.contains("lora") { "1" } else { "2" };
        let ours = replay(&[trace], &["--capacity", &capacity, "--repeat", passes]);
        assert_eq!(ours[0]["trace"], row["trace"]);
    }
}
