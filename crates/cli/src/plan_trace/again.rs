//! A step as a trace of its own, done over and over: a program whose batches are all alike.

use std::collections::BTreeMap;
use std::fmt::Write;

use stratalloc::plan::Step;
use stratalloc::units::GRANULE;

/// The text of a trace that does the step so many times, with a marker before each. What is not planned is asked for once, and stays.
pub(super) fn trace(name: &str, step: &Step, times: u32) -> String {
    let mut text = format!("# stratalloc-trace 1\n# workload: {}\n# streams: 1\n", name.replace(['\n', '\r'], " "));
    let mut line = |args: std::fmt::Arguments<'_>| {
        text.write_fmt(args).and_then(|()| text.write_char('\n')).expect("a string takes everything");
    };
    // By the request before which they are freed.
    let mut ends: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut id = 0;
    for time in 0..times {
        line(format_args!("m step {time}"));
        for (at, block) in step.blocks().iter().enumerate() {
            let now = u64::from(time) * step.len() as u64 + at as u64;
            ends.remove(&now).into_iter().flatten().for_each(|id| line(format_args!("f {id}")));
            if block.life > 0 || time == 0 {
                line(format_args!("a {id} {} 0", u64::from(block.granules) * GRANULE));
                if block.life > 0 {
                    ends.entry(now + u64::from(block.life)).or_default().push(id);
                }
                id += 1;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use stratalloc::plan::Block;

    use super::*;
    use crate::trace::{Op, Trace};

    #[test]
    fn a_step_again_and_again_is_a_trace() {
        let block = |granules, life| Block { granules, life };
        let step = Step::new(vec![block(3, 1), block(4, 2), block(9, 0), block(5, 3)]).unwrap();
        let again = Trace::decode(trace("a step", &step, 3).as_bytes()).unwrap();
        assert_eq!((again.allocs, again.labels.len(), again.peak_live_bytes), (10, 3, 18 * 512));
        // Two of the first step's four blocks are freed within it.
        let ops = &again.ops[7..9];
        assert_eq!(ops[0], Op::Marker { label: 1 });
        assert_eq!(ops[1], Op::Alloc { bytes: 3 * 512, stream: 0 });
    }
}
