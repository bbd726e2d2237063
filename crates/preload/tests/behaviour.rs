//! What programs see with the shim: the limit, the order of work, threads and processes, exports, traces. Each is a C program that looks
//! its functions up as a static CUDA runtime does.

mod common;

use std::fs;
use std::process::Command;

use common::{command, libraries, passes, program, scratch, shim, with_driver};

/// `stratalloc run` with these options, of a program that was prepared with [`with_driver`].
fn run(options: &[&str], prepared: &Command) -> Command {
    let mut run = program(command(), libraries());
    run.env("STRATALLOC_PRELOAD_LIB", shim()).arg("run").args(options).arg("--").arg(prepared.get_program());
    run
}

#[test]
fn a_limit_holds_over_all_kinds_and_is_what_the_program_is_told() {
    let prepared = with_driver("limit.c", "limit", false);
    passes(with_driver("limit.c", "unlimited", false).arg("0").env("SOFTCUDA_MEMORY", "1GiB"));
    passes(with_driver("limit.c", "unlimited-shim", true).arg("0").env("SOFTCUDA_MEMORY", "1GiB"));
    for limit in ["0.5", "512MiB"] {
        passes(run(&["--limit", limit], &prepared).arg("1").env("SOFTCUDA_MEMORY", "1GiB"));
    }
}

#[test]
fn no_byte_is_used_by_two_before_its_time() {
    for seed in 1..=6 {
        for lag in ["0", "300"] {
            let mut command = with_driver("order.c", &format!("order-{seed}-{lag}"), true);
            command
                .env("SOFTCUDA_CHECKER", "1")
                .env("SOFTCUDA_SEED", seed.to_string())
                .env("SOFTCUDA_EVENT_LAG_US", lag);
            passes(command.args([&seed.to_string(), "0"]));
        }
    }
}

#[test]
fn the_checker_sees_through_the_shim() {
    for seed in 1..=3 {
        let mut command = with_driver("order.c", &format!("wrong-{seed}"), true);
        command.env("SOFTCUDA_CHECKER", "1").env("SOFTCUDA_SEED", seed.to_string());
        let (out, _) = passes(command.args([&seed.to_string(), "1"]));
        assert!(out.contains("not ordered after"), "{out}");
    }
}

#[test]
fn threads_free_while_they_end_and_programs_while_they_exit() {
    let (_, err) = passes(with_driver("process.c", "threads", true).arg("threads"));
    assert_eq!(err, "fine at exit\n");
}

#[test]
fn a_forked_child_neither_hangs_nor_touches_its_parent() {
    passes(with_driver("process.c", "forks", true).arg("forks"));
}

#[test]
fn a_child_of_a_process_without_cuda_and_a_program_after_exec_are_served() {
    let reports = scratch().join("early-fork-reports");
    let _ = fs::remove_dir_all(&reports);
    fs::create_dir_all(&reports).unwrap();
    let mut early = with_driver("process.c", "early-fork", true);
    passes(early.arg("early-fork").env("STRATALLOC_PRELOAD_REPORT", reports.join("%p")));
    let mut said = 0;
    for report in fs::read_dir(&reports).unwrap().map(Result::unwrap) {
        let process = format!("process {}\n", report.file_name().to_string_lossy());
        assert!(fs::read_to_string(report.path()).unwrap().contains(&process), "{process}");
        said += 1;
    }
    assert_eq!(said, 2, "the parent's and the child's, which was forked after the settings were read");
    passes(with_driver("process.c", "exec", true).arg("exec"));
}

#[test]
fn a_capture_goes_with_its_context() {
    for (name, shimmed) in [("reset", false), ("reset-shim", true)] {
        passes(with_driver("reset.c", name, shimmed).env("SOFTCUDA_MEMORY", "1GiB"));
    }
}

#[test]
fn a_peer_reaches_blocks_from_before_and_after_it_was_let_in() {
    passes(with_driver("peers.c", "peers", true).env("SOFTCUDA_DEVICES", "2"));
}

#[test]
fn a_part_of_a_chunk_is_not_exported_and_the_setting_that_helps_is_said() {
    let (_, err) = passes(with_driver("share.c", "parts", true).arg("parts"));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("cuIpcGetMemHandle") && err.contains("STRATALLOC_PRELOAD_OWN"), "{err}");
    let own = with_driver("share.c", "own", false);
    let (_, err) = passes(run(&["--own", "*"], &own).arg("own"));
    assert_eq!(err, "");
    // By the library that asks: here, the program itself.
    let (_, err) = passes(run(&["--own", "libnccl, own-share"], &own).arg("own"));
    assert_eq!(err, "");
}

#[test]
fn what_is_recorded_replays() {
    let trace = scratch().join("recorded.trace");
    let report = scratch().join("report.txt");
    let prepared = with_driver("order.c", "recorded", false);
    let options = ["--trace", trace.to_str().unwrap(), "--report", report.to_str().unwrap(), "--conf", "limit:0.9"];
    passes(run(&options, &prepared).args(["5", "0"]));
    let recorded = stratalloc_trace::Trace::load(&trace).unwrap();
    assert_eq!(recorded.name, "recorded-order");
    assert!(recorded.allocs > 500 && recorded.allocs == recorded.frees && recorded.live_at_end.is_empty());
    assert!(
        recorded.records > 50 && recorded.streams >= 5,
        "{} records, {} streams",
        recorded.records,
        recorded.streams
    );
    let mut replay = program(command(), libraries());
    let (out, _) = passes(replay.args(["replay", "--checker"]).arg(&trace));
    assert!(out.contains("recorded-order"), "{out}");
    let report = fs::read_to_string(&report).unwrap();
    for words in ["device 0: ", " in 0 live blocks", "served by: ", "  cuMemAlloc_v2 ", "  cuMemFreeAsync "] {
        assert!(report.contains(words), "{words}: {report}");
    }
}

#[test]
fn strict_settings_that_cannot_be_understood_keep_cuda_from_starting() {
    let mut command = with_driver("process.c", "strict", true);
    let output = command.arg("threads").env("STRATALLOC_CONF", "limt:0.5,strict:true").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{err}");
    let said = err.lines().filter(|line| line.starts_with("stratalloc: ")).collect::<Vec<_>>();
    assert!(said.len() == 1 && said[0].contains("unknown key 'limt'") && said[0].contains("does not start"), "{err}");
    let mut command = with_driver("process.c", "strict-good", true);
    passes(command.arg("threads").env("STRATALLOC_CONF", "limit:0.5,strict:true"));
}

#[test]
fn bad_settings_are_one_line_each_and_the_program_goes_on() {
    for (name, value, words) in [
        ("STRATALLOC_CONF", "limit:2.5", "limit: '2.5' is not allowed"),
        ("STRATALLOC_CONF", "limt:0.5", "unknown key 'limt'"),
        ("STRATALLOC_CONF", "cross_stream_wait:true", "cross_stream_wait cannot be used"),
        ("STRATALLOC_PRELOAD_TRACE", "/nonexistent/folder/x.trace", "/nonexistent/folder/x.trace"),
        ("STRATALLOC_PRELOAD_REPORT", "/nonexistent/folder/report", "the report is not written"),
    ] {
        let mut command = with_driver("process.c", "settings", true);
        let (_, err) = passes(command.arg("threads").env(name, value));
        let said: Vec<&str> = err.lines().filter(|line| *line != "fine at exit").collect();
        assert!(said.len() == 1 && said[0].starts_with("stratalloc: ") && said[0].contains(words), "{name}: {err}");
    }
}

/// The kernels run by way of the CUDA driver, on its stand-in.
#[test]
fn debug_aids_find_what_is_wrong_in_any_program() {
    // With some seeds the device fills the freed block only after the program has written to it, which then is not seen.
    for (wrong, seed) in [("0", "1"), ("0", "3"), ("1", "0"), ("1", "2")] {
        let mut command = with_driver("aids.c", &format!("aids-{wrong}-{seed}"), true);
        command.env("STRATALLOC_CONF", "poison:check,redzone:512,leaks:true").env("SOFTCUDA_SEED", seed);
        let (_, err) = passes(command.arg(wrong));
        let said: Vec<&str> = err.lines().filter(|line| line.starts_with("stratalloc: ")).collect();
        if wrong == "0" {
            assert!(said.is_empty(), "{err}");
            continue;
        }
        assert_eq!(said.len(), 3, "{err}");
        assert!(said[0].contains("overflow: 3 byte(s)") && said[0].contains("0x64 in place of 0xfd"), "{err}");
        assert!(said[1].contains("write after free: 1 byte(s)") && said[1].contains("offset 7"), "{err}");
        assert!(said[2].contains("1 block(s) of 4.88 KiB still in use on device 0"), "{err}");
    }
}
