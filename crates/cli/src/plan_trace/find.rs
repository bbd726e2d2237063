//! Steps of a trace: those that the library finds by itself, and what lies between markers.

use stratalloc::plan::{Block, Learner, PLANNED_ABOVE, Period, Step};
use stratalloc::units::GRANULE;

use crate::trace::{Op, Trace};

/// The source of steps that were found without markers.
pub(super) const REPEATED: &str = "repeated";

/// A step.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) source: String,
    pub(super) stream: u16,
    /// Its first request in the stream.
    pub(super) first: u64,
    /// The most granules in use in the stream.
    pub(super) peak: u64,
    pub(super) step: Step,
}

/// One stream's requests for large blocks.
#[derive(Default)]
struct Stream {
    learner: Learner,
    /// Granules, how long the block stayed (0: to the end), and what was in use with it.
    requests: Vec<(u32, u64, u64)>,
    /// How long the steps are that were found to repeat.
    lengths: Vec<usize>,
    /// The last marker: its label, and the number of the next request.
    marker: Option<(u32, usize)>,
    marked: Vec<(u32, std::ops::Range<usize>)>,
}

/// A large block in use: its stream, request and size.
type Live = Option<(usize, u64, u32)>;

/// All steps: first those that repeat, each length once, then those between markers of the first pass.
pub(super) fn steps(trace: &Trace, passes: u32) -> Vec<Found> {
    let mut streams: Vec<Stream> = (0..trace.streams).map(|_| Stream::default()).collect();
    let mut found = Vec::new();
    for pass in 0..passes {
        let mut live: Vec<Live> = Vec::with_capacity(trace.allocs as usize);
        for op in &trace.ops {
            match *op {
                Op::Alloc { bytes, stream } => {
                    let granules = u32::try_from(bytes.div_ceil(GRANULE)).unwrap_or(u32::MAX);
                    let large = u64::from(granules) * GRANULE > PLANNED_ABOVE;
                    live.push(large.then(|| streams[usize::from(stream)].request(granules, stream, &mut found)));
                }
                Op::Free { id } => free(&mut streams, live[id as usize].take()),
                Op::Marker { label } if pass == 0 => streams.iter_mut().for_each(|stream| stream.mark(label)),
                _ => {}
            }
        }
        trace.live_at_end.iter().for_each(|&id| free(&mut streams, live[id as usize].take()));
    }
    for (number, stream) in (0..).zip(&mut streams) {
        for (label, range) in std::mem::take(&mut stream.marked) {
            let source = trace.labels[label as usize].clone();
            found.extend(stream.between(range).map(|found| Found { source, stream: number, ..found }));
        }
    }
    found
}

fn free(streams: &mut [Stream], live: Live) {
    if let Some((stream, number, granules)) = live {
        let stream = &mut streams[stream];
        stream.learner.freed(number, granules);
        stream.requests[number as usize].1 = stream.requests.len() as u64 - number;
    }
}

impl Stream {
    fn request(&mut self, granules: u32, stream: u16, found: &mut Vec<Found>) -> (usize, u64, u32) {
        let number = self.learner.request(granules, 0);
        self.requests.push((granules, 0, self.learner.live()));
        let known = self.learner.period().is_some_and(|len| self.lengths.contains(&(len as usize)));
        if !known && let Some(Period { step, first, peak, .. }) = self.learner.repeated() {
            self.lengths.push(step.len());
            found.push(Found { source: REPEATED.to_owned(), stream, first, peak, step });
        }
        (usize::from(stream), number, granules)
    }

    fn mark(&mut self, label: u32) {
        let next = self.requests.len();
        if let Some((label, first)) = self.marker.replace((label, next))
            && next > first
        {
            self.marked.push((label, first..next));
        }
    }

    /// The step of these requests, if it is one. Blocks that stay longer than it are not planned.
    fn between(&self, range: std::ops::Range<usize>) -> Option<Found> {
        let len = range.len() as u64;
        let requests = &self.requests[range.clone()];
        let life = |life: u64| if life <= len { life as u32 } else { 0 };
        let blocks = requests.iter().map(|&(granules, stays, _)| Block { granules, life: life(stays) });
        let step = Step::new(blocks.collect())?;
        let peak = requests.iter().map(|&(_, _, live)| live).max()?;
        Some(Found { source: String::new(), stream: 0, first: range.start as u64, peak, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_by_repetition_and_between_markers() {
        let mut text = String::from("# stratalloc-trace 1\na 0 900000 0\n");
        let mut id = 1;
        for step in 0..3 {
            text += &format!("m step {step}\n");
            for layer in 0..10 {
                text += &format!("a {id} {} 0\na {} 600 0\nf {}\n", 1_000_000 + layer * 5000, id + 1, id + 1);
                id += 2;
            }
            (0..10).for_each(|layer| text += &format!("f {}\n", id - 20 + 2 * layer));
        }
        let found = steps(&Trace::decode(text.as_bytes()).unwrap(), 1);
        let brief: Vec<_> = found.iter().map(|f| (f.source.as_str(), f.first, f.step.len())).collect();
        assert_eq!(brief[0].0, REPEATED);
        assert_eq!(brief[0].2, 10);
        // What follows the last marker has no end.
        assert_eq!(brief[1..], [("step 0", 1, 10), ("step 1", 11, 10)]);
        assert!(found.iter().all(|f| f.step.planned() == 10 && f.step.bound() > 10 * 1_000_000 / 512));
        assert_eq!(found[1].peak, found[1].step.bound() + 900_000_u64.div_ceil(512));
    }
}
