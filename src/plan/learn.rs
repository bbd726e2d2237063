//! Steps found in what a lane asks for, with no word from the program.
//!
//! The lane's requests are a text, their sizes its letters. As a compressor does, the learner keeps a place earlier in the text that the
//! present seems to follow, found by the last few letters. While what comes is what came there, the run grows; when it is as long as the distance
//! between there and here, the lane has done the same twice. Layers of a network repeat within a step just so. What tells a step from a layer is
//! that a step leaves as much in use as it found.
//!
//! A program that marks its steps need not do one twice: what lies between two marks and leaves as much in use as it found is taken
//! for a step at once.

use std::collections::VecDeque;

use super::step::{Block, Step};

/// Letters by which a place in the text is found.
pub(super) const CONTEXT: usize = 8;
/// Requests remembered: two of the longest steps.
const REMEMBERED: usize = 2 * Step::MAX;
/// The shortest step: below that there is nothing to gain.
const SHORTEST: u64 = CONTEXT as u64;
/// Slots of the table from contexts to places.
const SLOTS: usize = 1 << 16;
/// How far the distance may shift at a deviation for the run to go on.
const SHIFT_MAX: u64 = 16;
/// One request in so many may deviate within a run.
const DEVIATION_PART: u64 = 32;

/// A request, as remembered.
#[derive(Debug, Clone, Copy)]
struct Past {
    granules: u32,
    /// 0: in use still.
    life: u32,
    /// Granules in use in the lane before it.
    live: u64,
    /// Bytes held on the device and used by nobody, it being served.
    idle: u64,
}

/// A step that the lane has just done, the newest requests of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// What it asks for.
    pub step: Step,
    /// The number of its first request, counted from the lane's first.
    pub first: u64,
    /// The most granules in use in the lane during the step, planned or not.
    pub peak: u64,
    /// The fewest bytes that were held on the device and used by nobody.
    pub idle: u64,
    /// Requests that were not as they had been in the step before.
    pub deviations: u64,
}

/// Finds the steps of one lane.
#[derive(Debug, Default)]
pub struct Learner {
    past: VecDeque<Past>,
    /// The number of the first request remembered.
    begin: u64,
    live: u64,
    /// By hash of a context: the number of the request after it, 0 for none.
    table: Vec<u64>,
    run: Run,
    /// Where the last mark was.
    mark: Option<u64>,
}

/// How the present follows the past.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// Requests between there and here; 0 where nothing is followed.
    distance: u64,
    /// For how many requests it has been so.
    length: u64,
    /// How many of these were other ones.
    deviations: u64,
    /// Deviations in a row.
    astray: u64,
}

impl Learner {
    /// The number of the next request.
    pub fn next(&self) -> u64 {
        self.begin + self.past.len() as u64
    }

    /// The granules in use.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// A request, with which `idle` bytes are held on the device and used by nobody. Returns its number.
    pub fn request(&mut self, granules: u32, idle: u64) -> u64 {
        let number = self.next();
        self.follow(granules);
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
            self.begin += 1;
        }
        self.past.push_back(Past { granules, life: 0, live: self.live, idle });
        self.live += u64::from(granules);
        if let Some(hash) = self.context() {
            if self.table.is_empty() {
                self.table = vec![0; SLOTS];
            }
            if self.run.distance == 0 || self.run.astray > 0 {
                self.find(hash);
            }
            self.table[slot(hash)] = number + 1;
        }
        number
    }

    /// The block of a request is free again.
    pub fn freed(&mut self, number: u64, granules: u32) {
        self.live = self.live.saturating_sub(u64::from(granules));
        let next = self.next();
        if let Some(past) = number.checked_sub(self.begin).and_then(|index| self.past.get_mut(index as usize)) {
            past.life = (next - number).min(u64::from(u32::MAX)) as u32;
        }
    }

    /// The program says that a step begins here. Returns the step that ends, if it left as much in use as it found.
    pub fn mark(&mut self) -> Option<Period> {
        let next = self.next();
        let before = self.mark.replace(next)?;
        let len = next - before;
        let (first, now) = (self.get(before)?, self.live);
        (len >= SHORTEST && len <= Step::MAX as u64 && first.live == now).then(|| self.newest(len))?
    }

    /// The step that ends with the newest request, if the lane has done it twice and leaves as much in use as it found.
    pub fn repeated(&self) -> Option<Period> {
        self.repeats().then(|| self.newest(self.run.distance))?
    }

    /// How many requests ago the lane was where it is now, as far as can be seen: what may turn out to be the length of a step.
    pub fn period(&self) -> Option<u64> {
        Some(self.run.distance).filter(|&distance| distance > 0)
    }

    fn repeats(&self) -> bool {
        let Run { distance, length, deviations, astray } = self.run;
        if distance < SHORTEST
            || length < distance
            || self.next() - self.begin < 2 * distance
            || astray > 0
            || deviations * DEVIATION_PART > length
        {
            return false;
        }
        // Here and at three places on the way: a layer that keeps one thing and lets another go may come out even at one of them.
        (0..4).all(|quarter| {
            let now = self.next() - distance * quarter / 4;
            let live = if quarter == 0 { Some(self.live) } else { self.get(now).map(|past| past.live) };
            let Some((live, then)) = live.zip(self.get(now - distance)) else { return false };
            let change = then.live.abs_diff(live);
            // What deviates may have changed what is in use, but not by much.
            if deviations == 0 { change == 0 } else { change <= then.live >> 8 }
        })
    }

    /// What a request asked for, if it is remembered.
    pub(super) fn granules(&self, number: u64) -> Option<u32> {
        self.get(number).map(|past| past.granules)
    }

    /// For how many requests the block of this request was in use, or would be if freed now and never before.
    pub(super) fn life(&self, number: u64) -> Option<u32> {
        self.get(number).map(|past| past.life).filter(|&life| life > 0)
    }

    /// What the newest `len` requests ask for. Where a block has been in use for different times, the longer one counts.
    fn newest(&self, len: u64) -> Option<Period> {
        let first = self.next() - len;
        let block = |number: u64| {
            let Past { granules, life, .. } = *self.get(number)?;
            let before = number.checked_sub(len).and_then(|number| self.get(number));
            let before = before.filter(|before| before.granules == granules).map_or(0, |before| before.life);
            // Still in use, and not seen to end before: nobody knows. Longer than a step: there are two at one time.
            let life = life.max(before);
            Some(Block { granules, life: if u64::from(life) <= len { life } else { 0 } })
        };
        let step = Step::new((first..self.next()).map(block).collect::<Option<_>>()?)?;
        let in_use = |number| self.get(number).map(|past| past.live + u64::from(past.granules));
        let peak = (first..self.next()).filter_map(in_use).max()?;
        let idle = (first..self.next()).filter_map(|number| Some(self.get(number)?.idle)).min()?;
        Some(Period { step, first, peak, idle, deviations: self.run.deviations })
    }

    fn get(&self, number: u64) -> Option<&Past> {
        self.past.get(number.checked_sub(self.begin)? as usize)
    }

    /// Looks whether a request is the one that came then.
    fn follow(&mut self, granules: u32) {
        let Run { distance, .. } = self.run;
        if distance == 0 {
            return;
        }
        let then = self.get(self.next() - distance).map(|past| past.granules);
        let run = &mut self.run;
        run.length += 1;
        match then {
            Some(then) if then == granules => run.astray = 0,
            Some(_) if run.astray < SHIFT_MAX + CONTEXT as u64 => {
                run.astray += 1;
                run.deviations += 1;
            }
            _ => *run = Run::default(),
        }
    }

    /// The hash of the newest letters.
    fn context(&self) -> Option<u64> {
        let len = self.past.len();
        (len >= CONTEXT).then(|| context_hash(self.past.range(len - CONTEXT..).map(|past| past.granules)))
    }

    /// Looks for the place in the past with the same context, the newest.
    fn find(&mut self, hash: u64) {
        let there = self.table[slot(hash)];
        let next = self.next();
        let same = |back: u64| self.get(next - back).map(|past| past.granules);
        let distance = next - there;
        let is_there = there >= self.begin + CONTEXT as u64
            && (1..=CONTEXT as u64).all(|back| same(back) == same(back + distance) && same(back).is_some());
        if !is_there {
            return;
        }
        let shift = distance.abs_diff(self.run.distance);
        self.run = if self.run.distance > 0 && shift <= SHIFT_MAX {
            Run { distance, astray: 0, ..self.run }
        } else {
            Run { distance, length: CONTEXT as u64, deviations: 0, astray: 0 }
        };
    }
}

/// A number for the last few letters.
pub(super) fn context_hash(letters: impl Iterator<Item = u32>) -> u64 {
    letters.fold(0xcbf2_9ce4_8422_2325, |hash, letter| {
        (hash ^ u64::from(letter)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

fn slot(hash: u64) -> usize {
    (hash >> (u64::BITS - SLOTS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network of so many layers, forward and backward; what forward keeps, backward frees.
    fn network(learner: &mut Learner, layers: u32, scale: u32, extra: bool) -> Option<Period> {
        let mut found = None;
        let mut ask = |learner: &mut Learner, granules| {
            let number = learner.request(granules, 0);
            found = learner.repeated().or(found.take());
            number
        };
        let mut kept = Vec::new();
        for _ in 0..layers {
            for size in [300, 200, 150] {
                let number = ask(learner, size * scale);
                learner.freed(number, size * scale);
            }
            kept.push(ask(learner, 100 * scale));
        }
        if extra {
            let number = ask(learner, 7777);
            learner.freed(number, 7777);
        }
        for number in kept.into_iter().rev() {
            for size in [350, 250] {
                let number = ask(learner, size * scale);
                learner.freed(number, size * scale);
            }
            learner.freed(number, 100 * scale);
        }
        found
    }

    #[test]
    fn a_step_is_found_at_its_second_time_and_layers_are_not_taken_for_one() {
        let mut learner = Learner::default();
        assert_eq!(network(&mut learner, 12, 1, false), None);
        assert_eq!(network(&mut learner, 12, 2, false), None, "other sizes");
        network(&mut learner, 12, 2, false);
        let found = network(&mut learner, 12, 2, false).expect("it has been done twice");
        assert_eq!((found.step.len(), found.step.planned(), found.deviations), (72, 72, 0));
        // Forward holds all that is kept, and one more.
        assert_eq!(found.step.bound(), (12 * 100 + 350) * 2);
        assert_eq!(found.peak, found.step.bound());
    }

    #[test]
    fn a_request_more_now_and_then_does_not_hide_the_step() {
        let mut learner = Learner::default();
        network(&mut learner, 12, 2, false);
        network(&mut learner, 12, 2, true);
        let found = (0..3).find_map(|_| network(&mut learner, 12, 2, false)).expect("found in spite of it");
        assert!((72..=73).contains(&found.step.len()), "{found:?}");
    }

    #[test]
    fn a_marked_step_is_taken_at_its_first_time() {
        let mut learner = Learner::default();
        assert_eq!(learner.mark(), None);
        network(&mut learner, 12, 1, false);
        let found = learner.mark().expect("it leaves nothing in use");
        assert_eq!(found.step.len(), 72);
        learner.request(4096, 0);
        network(&mut learner, 12, 1, false);
        assert_eq!(learner.mark(), None, "something stays in use");
    }

    #[test]
    fn what_grows_is_no_step() {
        let mut learner = Learner::default();
        for _ in 0..40 {
            for size in 1..=20 {
                learner.request(size * 100, 0);
            }
            assert_eq!(learner.repeated(), None);
        }
    }

    #[test]
    fn what_stays_into_the_next_step_has_the_life_it_had_before() {
        let mut learner = Learner::default();
        let mut gradient = None;
        let mut found = None;
        for _ in 0..4 {
            for at in 0..20 {
                let number = learner.request(1000 + at, 0);
                found = learner.repeated().or(found);
                if at == 5
                    && let Some(gradient) = gradient.take()
                {
                    learner.freed(gradient, 1015);
                }
                if at == 15 {
                    gradient = Some(number);
                } else {
                    learner.freed(number, 1000 + at);
                }
            }
        }
        let step = found.unwrap().step;
        let block = step.blocks().iter().find(|block| block.granules == 1015).unwrap();
        assert_eq!((block.life, step.planned()), (11, 20));
    }
}
