//! The command as a user meets it: what it prints, where, and with which exit status.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

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

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

/// A file of this test run.
fn file(name: &str, text: &str) -> String {
    let path: PathBuf = [env!("CARGO_TARGET_TMPDIR"), name].iter().collect();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const GOOD: &str = "# stratalloc-trace 1\n# workload: small\n# streams: 2\n\
    a 0 3000000 0\nm 0\na 1 512 1\nr 1 0\nf 0\nm 1\ne\na 2 100000 0\nm 2\nf 2\nm 3\n";

/// One line `error: ...` on stderr, nothing on stdout.
fn assert_one_error(output: &Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(stdout(output), "");
    let message = stderr(output);
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
    for words in words {
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn without_arguments_it_says_what_it_can_do() {
    let output = stratalloc(&[]);
    assert_eq!(output.status.code(), Some(0));
    for words in ["stratalloc replay", "stratalloc bench", "stratalloc doctor", "--checker", "STRATALLOC_CONF"] {
        assert!(stdout(&output).contains(words), "{words}");
    }
    assert_eq!(stderr(&output), "");
}

#[test]
fn every_example_it_gives_is_understood() {
    let overview = stratalloc(&[]);
    let examples = stdout(&overview).lines().filter_map(|line| line.strip_prefix("  stratalloc "));
    let mut count = 0;
    for example in examples {
        let command = example.split("  ").next().unwrap();
        // Help after all the arguments: they are parsed, and nothing is run.
        let mut args: Vec<&str> = command.split_whitespace().collect();
        let end = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        args.insert(end, "--help");
        assert_eq!(stratalloc(&args).status.code(), Some(0), "{command}");
        count += 1;
    }
    assert!(count >= 5);
}

#[test]
fn version() {
    let output = stratalloc(&["--version"]);
    assert_eq!(stdout(&output).trim(), concat!("stratalloc ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn bad_arguments_exit_with_2_and_name_what_is_wrong() {
    for (args, words) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["replay"], "<TRACE>"),
        (&["replay", "x", "--colour"], "--colour"),
        (&["replay", "x", "--capacity", "8parsec"], "is not a size"),
        (&["replay", "x", "--repeat", "0"], "0"),
        (&["replay", "x", "--latency", "h900"], "studyA"),
        (&["replay", "x", "--device", "gpu"], "cuda:1"),
        (&["replay", "x", "--threads", "2", "--min-capacity"], "cannot be used with"),
        (&["replay", "x", "--gpu-bandwidth", "2TB"], "2TB/s"),
        (&["replay", "x", "--pressure", "tight"], "such as 1.02"),
        (&["replay", "x", "--pressure", "1.02", "--capacity", "8GiB"], "cannot be used with"),
        (&["replay", "x", "--capacities", "40"], "--min-capacity"),
        (&["replay", "x", "--columns", "ops"], "default, all"),
        (&["bench", "--seconds", "soon"], "number of seconds"),
        (&["tiers", "bench", "--size", "1"], "4 KiB to 64 GiB"),
        (&["doctor", "me"], "me"),
        (&["run"], "<PROGRAM>"),
    ] {
        let output = stratalloc(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_corrupt_trace_is_one_line_that_names_the_line() {
    let path = file("corrupt.trace", "# stratalloc-trace 1\na 0 512 0\nf 0\nf 0\n");
    assert_one_error(&stratalloc(&["replay", &path]), &["corrupt.trace", "line 4", "freed on line 3"]);
    assert_one_error(&stratalloc(&["replay", &path, "--json"]), &["line 4"]);
    assert_one_error(&stratalloc(&["replay", "no-such.trace"]), &["no-such.trace", "cannot be read"]);
}

#[test]
fn a_refused_configuration_is_an_error() {
    let path = file("conf.trace", GOOD);
    assert_one_error(&stratalloc(&["replay", &path, "--config", "nonsense"]), &["configuration", "nonsense"]);
}

#[test]
fn replay_prints_json_and_nothing_else() {
    let path = file("json.trace", GOOD);
    let output = stratalloc(&["replay", &path, &path, "--json", "--min-capacity", "--repeat", "3"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let rows = json(&output);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let row = &rows[0];
    assert_eq!(row["trace"], "small");
    assert_eq!((&row["ops"], &row["allocs"], &row["frees"]), (&7.into(), &3.into(), &2.into()));
    assert_eq!(row["peak_live_bytes"], 3_000_512);
    let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    assert!(number("peak_reserved_bytes") >= number("peak_live_bytes"));
    assert!((0.0..1.0).contains(&number("fragmentation")));
    assert!(number("ns_per_op_min") <= number("ns_per_op_median"));
    assert!(number("driver_time_steady_us") <= number("driver_time_us"));
    assert!(number("min_capacity_bytes") >= number("peak_live_bytes") && number("min_capacity_ratio") >= 1.0);
    assert!(row["driver_calls"].is_object());
    assert!(row["second_pass_chunk_calls"]["created"].is_u64());
    assert!(row["address_hash"].is_string() && row["address_hash"] == rows[1]["address_hash"]);
    assert!(row.get("error").is_none());
}

#[test]
fn two_replays_with_one_seed_are_identical() {
    let path = file("seed.trace", GOOD);
    let hash = || json(&stratalloc(&["replay", &path, "--json", "--seed", "7"]))[0]["address_hash"].clone();
    assert_eq!(hash(), hash());
}

#[test]
fn replay_for_people_and_with_threads_and_checker() {
    let path = file("people.trace", GOOD);
    for args in [
        &[][..],
        &["--threads", "2"],
        &["--checker"],
        &["--event-lag-us", "100"],
        &["--skip-empty-cache", "--latency", "studyA"],
        &["--gpu-bandwidth", "2TB/s", "--columns", "all"],
        &["--gpu-bandwidth", "2TB/s", "--checker", "--event-lag-us", "5"],
    ] {
        let output = stratalloc(&[&["replay", &path], args].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(stdout(&output).starts_with("trace") && stdout(&output).contains("Look at"), "{args:?}");
    }
}

#[test]
fn the_table_fits_into_120_columns() {
    let name = "a-workload-with-a-long-name";
    let text = GOOD.replace("workload: small", &format!("workload: {name}"));
    let path = file("wide.trace", &text);
    for args in [&[][..], &["--min-capacity", "--capacities", "40"], &["--gpu-bandwidth", "1MB/s"]] {
        let output = stratalloc(&[&["replay", &path], args].concat());
        let widest = stdout(&output).lines().filter(|line| line.starts_with(name) || line.starts_with("trace"));
        assert!(widest.clone().count() >= 2 && widest.map(str::len).max() <= Some(120), "{}", stdout(&output));
    }
}

#[test]
fn stall_and_pressure_are_in_the_json() {
    let path = file("stall.trace", GOOD);
    let args = ["--json", "--repeat", "2", "--latency", "off", "--gpu-bandwidth", "1GB/s", "--pressure", "1.5"];
    let row = &json(&stratalloc(&[&["replay", &path], &args[..]].concat()))[0];
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    let ns = |row: &Value, key: &str| (number(row, key) * 1e3).round() as u64;
    // The trace's empty_cache is its fifth operation, at 1500. A kernel over 3,000,000 B began at 300 on the first stream, and
    // comes before one over the 512 B that are recorded there.
    let stall_ns = 300 + 3_000_000 + 512 - 1_500;
    assert_eq!((ns(row, "stall_us"), ns(row, "driver_time_us")), (stall_ns, 0));
    assert_eq!(ns(row, "virtual_time_us"), 7 * 300 + stall_ns);
    assert!(number(row, "device_syncs") + number(row, "stream_waits") > 0.0);
    assert!(number(&row["second_pass"], "stall_us") > 0.0 && row["second_pass"]["driver_calls"].is_object());
    // 4.5 MB are three pages of 2 MiB.
    assert!(number(row, "peak_reserved_bytes") <= 6_291_456.0 && row.get("alloc_ns").is_none(), "{row}");
    assert_eq!(number(row, "driver_time_us_per_step_second_half"), 0.0);
}

#[test]
fn policies_take_pressure_and_refuse_a_device_that_lags() {
    let path = file("pressed.trace", &GOOD.replace("a 0 3000000 0", "a 0 300000000 0"));
    let output = stratalloc(&["replay", &path, "--policy", "expandable,stratalloc", "--pressure", "1.05"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).contains("fits on 1.05 times its peak"), "{}", stdout(&output));
    let too_tight = stratalloc(&["replay", &path, "--policy", "expandable", "--pressure", "0.9"]);
    assert_eq!(too_tight.status.code(), Some(1));
    for refused in [&["--gpu-bandwidth", "2TB/s"][..], &["--min-capacity", "--capacities", "2"]] {
        let output = stratalloc(&[&["replay", &path, "--policy", "native"], refused].concat());
        assert_one_error(&output, &["--policy stratalloc", refused[refused.len() - 2]]);
    }
}

#[test]
fn single_allocations_are_in_the_json() {
    let path = file("single.trace", GOOD);
    let row = &json(&stratalloc(&["replay", &path, "--json"]))[0];
    for key in ["alloc_ns", "alloc_ns_first_pass"] {
        let [p50, p99, p99_9] = ["p50", "p99", "p99_9"].map(|part| row[key][part].as_f64().unwrap());
        assert!(p50 <= p99 && p99 <= p99_9, "{row}");
    }
    assert!(row["alloc_ns_timer"].as_u64().unwrap() < 100_000);
}

#[test]
fn capacities_are_all_tried() {
    let path = file("capacities.trace", &GOOD.replace("a 0 3000000 0", "a 0 300000000 0"));
    let output = stratalloc(&["replay", &path, "--min-capacity", "--capacities", "40", "--repeat", "1", "--json"]);
    let row = &json(&output)[0];
    assert_eq!((&row["capacities_tried"], &row["fails_above_min_capacity"]), (&40.into(), &Value::Array(Vec::new())));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_trace_that_does_not_fit_is_an_error_row() {
    let path = file("tight.trace", "# stratalloc-trace 1\na 0 512 0\na 1 999999999999 0\n");
    let output = stratalloc(&["replay", &path, "--capacity", "64MiB", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let row = &json(&output)[0];
    assert_eq!((&row["op"], &row["line"]), (&1.into(), &3.into()));
    assert!(row["error"].is_string() && row.get("fragmentation").is_none(), "{row}");
    let output = stratalloc(&["replay", &path, "--capacity", "64MiB"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("failed at operation 1 (line 3)"), "{}", stdout(&output));
}

#[test]
fn plan_trace_prints_a_table_and_json_and_draws() {
    let mut text = String::from("# stratalloc-trace 1\n# workload: steps\n");
    for step in 0..4 {
        text += &format!("m step {step}\n");
        (0..12).for_each(|n| text += &format!("a {} {} 0\n", step * 12 + n, 1_000_000 + n * 4096));
        (0..12).for_each(|n| text += &format!("f {}\n", step * 12 + n));
    }
    let path = file("steps.trace", &text);
    let svg = format!("{path}.svg");
    let output = stratalloc(&["plan-trace", &path, "-o", &svg]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for words in ["repeated", "step 0", "step 2", "/ bound", "1.0000 at worst", "is drawn in"] {
        assert!(stdout(&output).contains(words), "{words}: {}", stdout(&output));
    }
    let drawn = fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>") && drawn.matches("<rect").count() > 12);
    let rows = json(&stratalloc(&["plan-trace", &path, "--json"]));
    let rows = rows.as_array().unwrap();
    assert_eq!((&rows[0]["source"], &rows[0]["requests"]), (&"repeated".into(), &12.into()));
    assert!(rows.iter().all(|row| row["ratio"] == 1.0 && row["planned"] == 12), "{rows:?}");
    assert_one_error(&stratalloc(&["plan-trace", &path, "--json", "-o", &svg, "--step", "99"]), &["no step 99"]);
}

#[test]
fn a_plan_goes_from_one_replay_to_the_next() {
    let mut text = String::from("# stratalloc-trace 1\n# workload: again\n");
    for step in 0..4 {
        (0..20).for_each(|n| text += &format!("a {} {} 0\n", step * 20 + n, 1_000_000 + n * 50_000));
        (0..20).rev().for_each(|n| text += &format!("f {}\n", step * 20 + n));
    }
    let (path, plan) = (file("again.trace", &text), file("again.plan", ""));
    let base = ["replay", &path, "--repeat", "1", "--json", "--config"];
    let first = json(&stratalloc(&[&base[..], &["plan:inline", "--plan-out", &plan]].concat()));
    assert_eq!((&first[0]["plans"]["learned"], &first[0]["plans"]["step"]), (&1.into(), &20.into()), "{first}");
    let second = json(&stratalloc(&[&base[..], &["plan:inline", "--plan-in", &plan]].concat()));
    assert_eq!(second[0]["plans"]["learned"], 0, "{second}");
    assert!(second[0]["plans"]["hits"].as_u64() > Some(20), "{second}");
    let off = stratalloc(&[&base[..], &["plan:off", "--plan-in", &plan]].concat());
    assert_eq!(off.status.code(), Some(1));
    assert!(stdout(&off).contains("plans are off"), "{}", stdout(&off));
    let damaged = file("damaged.plan", "stplan\r\n and then nothing of the kind");
    let refused = stratalloc(&[&base[..], &["plan:inline", "--plan-in", &damaged]].concat());
    assert!(refused.status.code() == Some(1) && stdout(&refused).contains("version"), "{}", stdout(&refused));
    let missing = stratalloc(&[&base[..], &["plan:inline", "--plan-in", "/nowhere.plan"]].concat());
    assert_one_error(&missing, &["/nowhere.plan"]);
}

#[test]
fn a_plan_that_cannot_be_written_is_an_error() {
    let (path, other) = (file("small.trace", GOOD), file("other.trace", GOOD));
    let base = ["replay", &path, "--repeat", "1", "--json", "--config"];
    let nowhere = stratalloc(&[&base[..], &["plan:inline", "--plan-out", "/nowhere/a.plan"]].concat());
    assert!(nowhere.status.code() == Some(1) && stderr(&nowhere).contains("/nowhere/a.plan"), "{nowhere:?}");
    assert_eq!(json(&nowhere).as_array().map(Vec::len), Some(1), "what was measured is printed all the same");
    let plan = file("small.plan", "");
    let off = stratalloc(&[&base[..], &["plan:off", "--plan-out", &plan]].concat());
    assert!(off.status.code() == Some(1) && stderr(&off).contains("plan:on"), "{off:?}");
    assert_one_error(&stratalloc(&["replay", &path, &other, "--plan-out", &plan]), &["one trace"]);
    let policy = stratalloc(&["replay", &path, "--policy", "native", "--plan-out", &plan]);
    assert_one_error(&policy, &["--policy stratalloc"]);
}

#[test]
fn bench_prints_json_and_nothing_else() {
    let output = stratalloc(&["bench", "--seconds", "0", "--json"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let rows = json(&output);
    let rows = rows.as_array().unwrap();
    for (name, threads) in [("pair 512 B", 1), ("churn mixed", 2), ("live 1e4", 1), ("mimalloc 512 B", 1)] {
        let row = rows.iter().find(|row| row["name"] == name && row["threads"] == threads);
        let row = row.unwrap_or_else(|| panic!("no {name} with {threads}"));
        assert!(row["ns_min"].as_f64() > Some(0.0) && row["ns_min"].as_f64() <= row["ns_median"].as_f64(), "{row}");
    }
}

#[test]
fn tiers_bench_prints_json_and_nothing_else() {
    let output = stratalloc(&["tiers", "bench", "--size", "1MiB", "--rounds", "3", "--only", "device", "--json"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let rows = json(&output);
    for name in ["device/out/1 MiB", "device/in/1 MiB", "device/out/64 KiB", "device/in/64 KiB"] {
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name);
        let row = row.unwrap_or_else(|| panic!("no {name} in {rows}"));
        assert!(row["bytes_per_s"].as_f64() > Some(0.0) && row["ratio"].as_f64() > Some(0.0), "{row}");
        assert!(row["to"].as_str().is_some_and(|to| to.starts_with("memcpy")), "{row}");
    }
    let unknown = stratalloc(&["tiers", "bench", "--only", "tape"]);
    assert_one_error(&unknown, &["tape", "device", "codec"]);
}

#[test]
fn doctor_speaks_and_prints_json() {
    let output = stratalloc(&["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for words in ["io_uring", "membarrier", "open files", "Will be used", "Settings in force"] {
        assert!(stdout(&output).contains(words), "{words}");
    }
    let diagnosis = json(&stratalloc(&["doctor", "--json"]));
    assert!(diagnosis["device"] == "cuda" || diagnosis["device"] == "software");
    assert!(diagnosis["findings"].as_array().is_some_and(|findings| findings.len() > 5));
}

#[test]
fn doctor_tells_of_refused_settings() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
    let output = command.arg("doctor").env("STRATALLOC_CONF", "nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("PROBLEM") && stdout(&output).contains("nonsense"));
}

/// A file that passes for the preload library where nothing is loaded: any ELF file of this machine.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
    command.arg("run").args(args).env_remove("STRATALLOC_CONF").env_remove("LD_PRELOAD");
    command.env("STRATALLOC_PRELOAD_LIB", env!("CARGO_BIN_EXE_stratalloc")).output().unwrap()
}

#[test]
fn run_prints_the_environment_it_would_make() {
    let output =
        run(&["--limit", "0.5", "--conf", "chunk:32MiB,", "--trace", "t-%p", "--report", "-", "--print", "--", "env"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text.contains(&format!("LD_PRELOAD={}\n", env!("CARGO_BIN_EXE_stratalloc"))), "{text}");
    assert!(text.contains("STRATALLOC_CONF=chunk:32MiB,limit:0.5\n"), "{text}");
    assert!(text.contains("STRATALLOC_PRELOAD_REPORT=-\n"), "{text}");
    let trace = text.lines().find_map(|line| line.strip_prefix("STRATALLOC_PRELOAD_TRACE=")).unwrap();
    assert!(trace.starts_with('/') && trace.ends_with("/t-%p"), "{trace}");
}

#[test]
fn run_says_why_a_program_cannot_be_hooked() {
    let script = file("script", "#!/nonexistent/interpreter\n");
    let text = file("text", "no program\n");
    for path in [&script, &text] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_one_error(&run(&["--", "no-such-program"]), &["no-such-program", "not found in PATH"]);
    assert_one_error(&run(&["--", &file("plain", "")]), &["plain", "not an executable"]);
    assert_one_error(&run(&["--", &script]), &["/nonexistent/interpreter", "No such file"]);
    assert_one_error(&run(&["--", &text]), &["not an ELF file", "cannot be hooked"]);
    assert_one_error(&run(&["--limit", "1.5", "--", "env"]), &["limit", "'1.5'"]);
    let source = file("static.c", "int main(void) { return 0; }\n");
    let binary = format!("{source}.bin");
    let compiled = Command::new("cc").args(["-static", "-o", &binary, &source]).status();
    assert!(compiled.unwrap().success(), "cc -static failed: it needs the C library's archive");
    assert_one_error(&run(&["--", &binary]), &["statically", "cannot be hooked"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratalloc"));
    let output = command.args(["run", "--", "env"]).env("STRATALLOC_PRELOAD_LIB", "/nonexistent.so").output().unwrap();
    assert_one_error(&output, &["STRATALLOC_PRELOAD_LIB", "/nonexistent.so"]);
}
