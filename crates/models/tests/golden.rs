//! The models against recordings of PyTorch's own allocator: as many bytes held after every operation, and as many calls of the driver.
//!
//! A recording is made by `golden/record.py`. It says which operations changed how much is held.

use std::fs;
use std::path::{Path, PathBuf};

use stratalloc_models::{Machine, Settings, replay_with};
use stratalloc_trace::Trace;

/// One program's run on torch.
#[derive(Default)]
struct Run {
    capacity: u64,
    conf: String,
    out_of_memory: Option<usize>,
    peak: u64,
    retries: u64,
    changes: Vec<(usize, u64)>,
    calls: Vec<(String, u64)>,
}

impl Run {
    fn has(&self, name: &str, count: u64) -> bool {
        self.calls.iter().any(|call| call.0 == name && call.1 == count)
    }
}

fn recording(path: &Path) -> Vec<Run> {
    let text = zstd::decode_all(fs::File::open(path).unwrap()).unwrap();
    let mut runs: Vec<Run> = Vec::new();
    let sum = |last: u64, step: &str| last.checked_add_signed(step.parse().unwrap()).unwrap();
    for line in str::from_utf8(&text).unwrap().lines().filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(' ').unwrap();
        if key == "run" {
            let (capacity, conf) = value.split_once(' ').unwrap();
            let conf = if conf == "-" { "" } else { conf };
            runs.push(Run { capacity: capacity.parse().unwrap(), conf: conf.to_owned(), ..Run::default() });
            continue;
        }
        let run = runs.last_mut().unwrap();
        match key {
            "c" => {
                let (name, count) = value.split_once(' ').unwrap();
                run.calls.push((name.to_owned(), count.parse().unwrap()));
            }
            "oom" => run.out_of_memory = Some(value.parse().unwrap()),
            "peak" => run.peak = value.parse().unwrap(),
            "retries" => run.retries = value.parse().unwrap(),
            "r" => {
                let (ops, bytes) = value.split_once(' ').unwrap();
                let (op, held) = run.changes.last().copied().unwrap_or((0, 0));
                run.changes.push((op + ops.parse::<usize>().unwrap(), sum(held, bytes)));
            }
            other => panic!("{path:?}: {other}"),
        }
    }
    runs
}

/// Replays a trace as recorded. What differs, in words.
fn difference(trace: &Trace, run: &Run) -> Option<String> {
    let settings: Settings = run.conf.parse().unwrap();
    let mut expected = run.changes.iter().peekable();
    let (mut held, mut first) = (0, None);
    let outcome = replay_with(trace, &settings, &Machine::new(run.capacity), |op, reserved| {
        if let Some((_, bytes)) = expected.next_if(|change| change.0 == op) {
            held = *bytes;
        }
        if reserved != held {
            first.get_or_insert(format!("operation {op}: {reserved} bytes held where torch held {held}"));
        }
    });
    let seen = (outcome.out_of_memory.map(|oom| oom.op), outcome.peak_reserved, outcome.retries);
    let torch = (run.out_of_memory, run.peak, run.retries);
    if let Some((name, count)) = outcome.calls.by_name().find(|(name, count)| !run.has(name, *count)) {
        first.get_or_insert(format!("{count} calls of {name}, torch {:?}", run.calls));
    }
    if run.changes.last().is_none_or(|change| change.1 != outcome.reserved) {
        first.get_or_insert(format!("{} bytes held at the end", outcome.reserved));
    }
    first.or_else(|| (seen != torch).then(|| format!("out of memory at, peak, retries: {seen:?}, torch {torch:?}")))
}

fn check(name: &str) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let trace = Trace::load(&root.join("../../tests/traces").join(format!("{name}.trace.zst"))).unwrap();
    let runs = recording(&root.join("tests/golden").join(format!("{name}.zst")));
    assert!(runs.len() >= 5, "{}", runs.len());
    let mut wrong = String::new();
    for run in &runs {
        assert!(run.changes.len() > 100, "an empty recording");
        if let Some(difference) = difference(&trace, run) {
            wrong += &format!("\n'{}', {} bytes: {difference}", run.conf, run.capacity);
        }
    }
    assert!(wrong.is_empty(), "{name}: {wrong}");
}

macro_rules! traces {
    ($($test:ident $name:literal,)*) => { $( #[test] fn $test() { check($name) } )* };
}

traces! {
    bert "bert-large-finetune-ragged",
    gpt2xl "gpt2xl-train-ragged",
    llama3_3b "llama3-3b-train-offload",
    kvcat "llama3-8b-generate-kvcat",
    lora "llama3-8b-lora-ckpt-ragged",
    sdxl "sdxl-unet-train-multires",
    vit "vit-huge-train-prefetch",
}

/// That the comparison can fail.
#[test]
fn a_difference_is_seen() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let trace = Trace::load(&root.join("../../tests/traces/vit-huge-train-prefetch.trace.zst")).unwrap();
    let mut run = recording(&root.join("tests/golden/vit-huge-train-prefetch.zst")).remove(0);
    assert_eq!(difference(&trace, &run), None);
    run.conf = "large_segment_size_mb:22".to_owned();
    assert!(difference(&trace, &run).is_some());
    run.conf = String::new();
    run.changes[50].1 += 512;
    assert!(difference(&trace, &run).unwrap().contains("bytes held where torch held"));
}
