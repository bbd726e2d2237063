//! A step: what a lane asks for before it begins again.

use std::fmt;

/// One request of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Block {
    /// Its size in granules of 512 bytes.
    pub granules: u32,
    /// For how many requests its memory is taken, its own included: at most the step's. 0: not to be planned, since it stays longer, or for
    /// no fixed time.
    pub life: u32,
}

/// The requests of a step, in order. After the last one the first one comes again.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Step {
    blocks: Vec<Block>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Step of {} requests", self.blocks.len())
    }
}

impl Step {
    /// The most requests that a step may have.
    pub const MAX: usize = 1 << 17;

    /// A step of these requests. `None` where there are none or more than [`Step::MAX`], a size is 0, or a life longer than the step.
    pub fn new(blocks: Vec<Block>) -> Option<Step> {
        let sound = |block: &Block| block.granules > 0 && block.life as usize <= blocks.len();
        (!blocks.is_empty() && blocks.len() <= Step::MAX && blocks.iter().all(sound)).then_some(Step { blocks })
    }

    /// The requests.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// How many requests there are.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many of them are planned.
    pub fn planned(&self) -> usize {
        self.blocks.iter().filter(|block| block.life > 0).count()
    }

    /// The granules in use by planned blocks at each request, over and over.
    pub fn load(&self) -> Vec<u64> {
        let len = self.len();
        // Differences, summed up after a lead of what reaches in from the step before.
        let mut change = vec![0_i64; len + 1];
        let mut carried = 0;
        for (at, block) in self.blocks.iter().enumerate().filter(|(_, block)| block.life > 0) {
            let (size, end) = (i64::from(block.granules), at + block.life as usize);
            change[at] += size;
            if end <= len {
                change[end] -= size;
            } else {
                carried += size;
                change[end - len] -= size;
            }
        }
        let sum = change[..len].iter().scan(carried, |load, change| {
            *load += change;
            Some(*load as u64)
        });
        sum.collect()
    }

    /// The most granules in use at one time: no layout needs less.
    pub fn bound(&self) -> u64 {
        self.load().into_iter().max().unwrap_or(0)
    }

    /// The request, before its own block counts, at which the least is in use.
    pub fn low(&self) -> usize {
        let len = self.len();
        let load = self.load();
        // What stays from the request before: its load less what begins here.
        let before = |at: usize| {
            let block = self.blocks[at];
            load[at] - if block.life > 0 { u64::from(block.granules) } else { 0 }
        };
        (0..len).min_by_key(|&at| before(at)).unwrap_or(0)
    }

    /// Whether the blocks of two requests are in use at one time.
    pub fn overlap(&self, a: usize, b: usize) -> bool {
        let span = |at: usize| Span { start: at as u32, life: self.blocks[at].life };
        span(a).meets(span(b), self.len() as u32)
    }
}

/// A part of the circle of a step's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) life: u32,
}

impl Span {
    /// Whether two parts have a request in common, in a step of `len`.
    #[inline]
    pub(super) fn meets(self, other: Span, len: u32) -> bool {
        let ahead = |from: u32, to: u32| if to >= from { to - from } else { to + (len - from) };
        let reaches = ahead(self.start, other.start) < self.life || ahead(other.start, self.start) < other.life;
        reaches && self.life > 0 && other.life > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(blocks: &[(u32, u32)]) -> Step {
        Step::new(blocks.iter().map(|&(granules, life)| Block { granules, life }).collect()).unwrap()
    }

    #[test]
    fn what_is_no_step_is_refused() {
        assert_eq!(Step::new(Vec::new()), None);
        assert_eq!(Step::new(vec![Block { granules: 0, life: 1 }]), None);
        assert_eq!(Step::new(vec![Block { granules: 1, life: 2 }]), None);
        assert_eq!(Step::new(vec![Block::default(); Step::MAX + 1]), None);
        assert!(Step::new(vec![Block { granules: 1, life: 0 }]).is_some());
    }

    #[test]
    fn the_load_goes_round() {
        // The third stays until the next step's second request; the fourth is not planned.
        let step = step(&[(10, 1), (20, 2), (5, 3), (100, 0)]);
        assert_eq!(step.load(), [15, 20, 25, 5]);
        assert_eq!((step.bound(), step.planned()), (25, 3));
        assert_eq!(step.low(), 1, "nothing stays when the second comes");
        assert!(step.overlap(0, 2) && step.overlap(1, 2) && !step.overlap(0, 1) && !step.overlap(3, 2));
    }

    #[test]
    fn what_lives_a_whole_step_meets_everything() {
        let step = step(&[(1, 4), (1, 1), (1, 1), (1, 1)]);
        assert!((1..4).all(|other| step.overlap(0, other) && step.overlap(other, 0)));
        assert_eq!(step.load(), [1, 2, 2, 2]);
    }
}
