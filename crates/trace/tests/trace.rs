//! The decoder against damaged traces: whatever the bytes, it answers, and never with a panic.

use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;
use stratalloc_trace::{Op, Trace};

fn recorded(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../tests/traces", name].iter().collect()
}

/// The first 1500 operations of a recorded trace that has every operation but `e`, as text.
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut trace = Trace::load(&recorded("vit-huge-train-prefetch.trace.zst")).unwrap();
    trace.ops.truncate(1500);
    let mut text = Vec::new();
    trace.write(&mut text).unwrap();
    text
});

static COMPRESSED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    Trace::decode(&PLAIN).unwrap().write_zst(&mut bytes).unwrap();
    bytes
});

/// What holds for every trace that decodes.
fn assert_sound(trace: &Trace) {
    let mut live = vec![];
    for op in &trace.ops {
        match *op {
            Op::Alloc { bytes, stream } => {
                assert!(bytes > 0 && stream < trace.streams);
                live.push(true);
            }
            Op::Free { id } => assert!(std::mem::replace(&mut live[id as usize], false)),
            Op::Record { id, stream } => assert!(live[id as usize] && stream < trace.streams),
            Op::Marker { label } => assert!((label as usize) < trace.labels.len()),
            Op::EmptyCache => {}
        }
    }
    assert_eq!(live.len(), trace.allocs as usize);
    assert_eq!(live.iter().filter(|live| **live).count(), trace.live_at_end.len());
}

fn assert_answers(bytes: &[u8]) {
    match Trace::decode(bytes) {
        Ok(trace) => assert_sound(&trace),
        Err(error) => assert!(error.line > 0 && error.to_string().len() < 400, "{error}"),
    }
}

#[test]
fn recorded_traces_decode_and_agree_with_their_headers() {
    for name in ["llama3-3b-train-offload", "bert-large-finetune-ragged"] {
        let trace = Trace::load(&recorded(&format!("{name}.trace.zst"))).unwrap();
        assert_eq!(trace.name, name);
        assert_sound(&trace);
        assert_eq!(trace.header["peak-requested-bytes"], trace.peak_live_bytes.to_string());
        assert_eq!(trace.header["streams"], trace.streams.to_string());
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        assert!(Trace::decode(&text).unwrap() == trace, "{name} is not the same after writing and reading");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Trace::load(&recorded("no-such.trace")).unwrap_err().to_string();
    assert!(error.contains("no-such.trace") && error.contains("cannot be read"), "{error}");
}

/// Replaces, inserts or removes a byte at a place given as a fraction of the length.
fn mutate(bytes: &mut Vec<u8>, (at, byte, kind): (f64, u8, u8)) {
    let at = (at * bytes.len() as f64) as usize;
    match kind {
        0 => bytes.insert(at.min(bytes.len()), byte),
        1 if at < bytes.len() => drop(bytes.remove(at)),
        _ if at < bytes.len() => bytes[at] = byte,
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_text(edits in prop::collection::vec((0.0..1.0, prop_oneof![any::<u8>(), prop::sample::select(b"0129afrem# \n".to_vec())], 0u8..3), 1..5)) {
        let mut bytes = PLAIN.clone();
        edits.into_iter().for_each(|edit| mutate(&mut bytes, edit));
        assert_answers(&bytes);
    }

    #[test]
    fn mutated_frame(edits in prop::collection::vec((0.0..1.0, any::<u8>(), 0u8..3), 1..5)) {
        let mut bytes = COMPRESSED.clone();
        edits.into_iter().for_each(|edit| mutate(&mut bytes, edit));
        assert_answers(&bytes);
    }

    #[test]
    fn truncated(end in 0.0..1.0) {
        let cut = |bytes: &[u8]| bytes[..(end * bytes.len() as f64) as usize].to_vec();
        assert_answers(&cut(&PLAIN));
        prop_assert!(Trace::decode(&cut(&COMPRESSED)).is_err());
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        assert_answers(&bytes);
    }

    #[test]
    fn any_trace_is_the_same_after_writing_and_reading(choices in prop::collection::vec((0u8..8, any::<u32>(), 0u16..4), 0..200)) {
        let mut text = String::from("# stratalloc-trace 1\n# workload: made up\n# streams: 4\n");
        let mut live: Vec<u32> = Vec::new();
        let mut next = 0;
        for (op, number, stream) in choices {
            let pick = (!live.is_empty()).then(|| number as usize % live.len().max(1));
            match (op, pick) {
                (0..=2, _) | (_, None) => {
                    text += &format!("a {next} {} {stream}\n", u64::from(number) + 1);
                    live.push(next);
                    next += 1;
                }
                (3 | 4, Some(pick)) => text += &format!("f {}\n", live.swap_remove(pick)),
                (5, Some(pick)) => text += &format!("r {} {stream}\n", live[pick]),
                (6, _) => text += "e\n",
                _ => text += &format!("m step {number}\n"),
            }
        }
        let trace = Trace::decode(text.as_bytes()).unwrap();
        assert_sound(&trace);
        let (mut plain, mut compressed) = (Vec::new(), Vec::new());
        trace.write(&mut plain).unwrap();
        trace.write_zst(&mut compressed).unwrap();
        prop_assert_eq!(&Trace::decode(&plain).unwrap(), &trace);
        prop_assert_eq!(&Trace::decode(&compressed).unwrap(), &trace);
    }
}
