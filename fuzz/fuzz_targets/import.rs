//! Imports never panic, whatever the bytes are, and what is imported is a sound trace, which the models replay.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratalloc_cli::trace::Trace;
use stratalloc_cli::trace::import::decode;
use stratalloc_models::{Policy, replay};

fuzz_target!(|bytes: &[u8]| {
    let Ok(imported) = decode(bytes, "fuzz", None) else { return };
    let mut text = Vec::new();
    imported.trace.write(&mut text).expect("a vector takes everything");
    let read = Trace::decode(&text).expect("what is imported is a trace");
    assert_eq!(read, imported.trace);
    for policy in [Policy::Native, Policy::Expandable] {
        let outcome = replay(&imported.trace, policy, 8 << 30);
        assert!(outcome.peak_reserved <= 8 << 30);
    }
});
