//! The trace decoder never panics, and what is written decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratalloc_cli::trace::Trace;

fuzz_target!(|bytes: &[u8]| {
    let Ok(trace) = Trace::decode(bytes) else { return };
    assert_eq!(trace.calls() + trace.labels.len(), trace.ops.len());
    let mut text = Vec::new();
    trace.write(&mut text).expect("a vector takes everything");
    assert_eq!(Trace::decode(&text).as_ref(), Ok(&trace));
});
