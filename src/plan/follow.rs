//! One lane and its plan: where in its step it is, what it is advised, and whether that pays.
//!
//! A plan is a guess about what comes next, and asks to be proved wrong: a request that is not the step's next one goes to the heap, and the
//! place in the step is found again, from one of the next few requests or from the last few as a context. A plan that finds its places taken is
//! laid out anew with the lives as they are now. One that is lost for most of a step, that is of use for less than half of one, or with which more memory is
//! held than without, is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use super::learn::{CONTEXT, Learner, Period, context_hash};
use super::solve::{Guest, Layout, Room, solve_until};
use super::step::{Block, Step};
use crate::units::GRANULE;

/// Requests that may be missing for the place in the step to be found from a single one.
const SKIP_MAX: usize = 4;
/// A plan is laid out anew, at most so often in a row, when more than one in [`MISSED_PART`] of its places were taken.
const LAYOUTS_MAX: u32 = 4;
const MISSED_PART: u64 = 64;
/// So much more held for nothing than without the plan, as a part of what the lane has in use at its peak, is too much: 1/64.
const WASTE_SHIFT: u32 = 6;
/// So much is never too much: some chunks, 32 MiB.
const WASTE_MIN: u64 = 32 << 20;
/// Steps for which a lane goes without a plan after one that did not pay; twice as many after each further one.
const REST_STEPS: u64 = 8;
/// A request of the step that has not come yet.
const NOT_SEEN: u64 = u64::MAX;
/// For so many failures in a row does the rest grow.
const FAILURES_MAX: u32 = 10;

/// A step to look out for, and where in it a few requests in a row are found, if nowhere else.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) step: Arc<Step>,
    /// Hash of a context, and the request after it; ascending.
    contexts: Vec<(u64, u32)>,
}

impl Known {
    pub(super) fn new(step: Arc<Step>) -> Known {
        let blocks = step.blocks();
        let len = blocks.len();
        let hash = |next: usize| {
            let letters = (0..CONTEXT).map(|at| blocks[(next + len * CONTEXT - CONTEXT + at) % len].granules);
            (context_hash(letters), next as u32)
        };
        let mut all: Vec<(u64, u32)> = (0..len).map(hash).collect();
        all.sort_unstable();
        let contexts = all.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() == 1).map(|same| same[0]).collect();
        Known { step, contexts }
    }

    /// The request after a context that is nowhere else in the step.
    pub(super) fn after(&self, context: u64) -> Option<usize> {
        let index = self.contexts.binary_search_by_key(&context, |&(hash, _)| hash).ok()?;
        Some(self.contexts[index].1 as usize)
    }
}

/// A layout that is being worked out on a thread of its own.
#[derive(Debug)]
pub(super) struct Job {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Layout>,
}

impl Job {
    fn start(step: Arc<Step>, rooms: Vec<Room>, guests: Vec<Guest>) -> std::io::Result<Job> {
        let enough = Arc::new(AtomicBool::new(false));
        let told = enough.clone();
        let work = move || solve_until(&step, &rooms, &guests, &told);
        let thread = std::thread::Builder::new().name("stratalloc-plan".to_string()).spawn(work)?;
        Ok(Job { enough, thread })
    }

    /// Waits for the thread, which has nothing left to do.
    pub(super) fn end(self) {
        self.cancel();
        let _ = self.thread.join();
    }

    fn cancel(&self) {
        self.enough.store(true, Relaxed);
    }
}

/// What a layout may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// What is mapped.
    Mapped,
    /// Addresses too at which nothing is, where memory is mapped as it is asked for.
    Holes,
    /// And before it is asked for: nearly all that the program needs has a place in the plan, so that nobody else will want the memory.
    Ahead,
}

/// What a plan is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// The program does something else now.
    Lost,
    /// It does not pay.
    Poor,
}

/// How a lane was followed for a step.
#[derive(Debug, Clone, Copy)]
struct Score {
    requests: u64,
    /// Requests that had a planned place and got it.
    hits: u64,
    /// Planned places that were taken.
    misses: u64,
    deviations: u64,
    /// The most granules in use.
    peak: u64,
    /// The fewest bytes held on the device and used by nobody.
    idle: u64,
}

/// More than a step needs that is too much, in bytes.
pub(super) fn waste(needed: u64) -> u64 {
    (needed >> WASTE_SHIFT).max(WASTE_MIN)
}

impl Score {
    const NONE: Score = Score { requests: 0, hits: 0, misses: 0, deviations: 0, peak: 0, idle: u64::MAX };
}

/// A step that the lane is in.
#[derive(Debug)]
struct Follow {
    known: Arc<Known>,
    /// The request that is expected next.
    at: usize,
    /// Requests in a row that were not the step's.
    astray: u64,
    /// By request of the step: the number of the newest that was it, or [`NOT_SEEN`].
    numbers: Vec<u64>,
    /// The number of a request from before the step was followed, and which request of the step it was.
    anchor: (u64, usize),
    /// Where the program's marks come.
    mark: Option<usize>,
    /// Whether it was learned in another run.
    imported: bool,
    layout: Option<Layout>,
    job: Option<Job>,
    /// The request before which a layout is to be made; any, for what was learned in another run.
    lay_out_at: Option<usize>,
    wants_layout: bool,
    layouts: u32,
    /// Of the layout that is made or followed.
    reach: Reach,
    /// The fewest bytes in a step that are held on the device and used by nobody without the plan.
    idle: u64,
    score: Score,
    /// Steps in a row that were of little use.
    poor: u32,
}

/// What a plan has done on a lane.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) deviations: u64,
    pub(super) learned: u64,
    pub(super) layouts: u64,
    pub(super) dropped: u64,
}

/// One lane.
#[derive(Debug, Default)]
pub(super) struct LanePlan {
    learner: Learner,
    follow: Option<Follow>,
    /// The newest letters, oldest first.
    recent: [u32; CONTEXT],
    /// The request in hand: its number, what it is in the step, and the place for it.
    current: Current,
    rest_until: u64,
    failures: u32,
    /// The program's marks are not followed by the same requests each time: steps are then learned as if there were none.
    marks_mislead: bool,
    pub(super) tally: Tally,
    /// Layouts that nobody waits for any more.
    pub(super) stray: Vec<Job>,
}

/// The request in hand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Current {
    pub(super) number: u64,
    /// Which request of the step it is.
    pub(super) ordinal: Option<u32>,
    place: Option<u64>,
}

impl LanePlan {
    /// A request comes, with which `idle` bytes are held on the device and used by nobody. Returns whether a layout is wanted before it is served.
    pub(super) fn request(&mut self, granules: u32, idle: u64, book: &[Arc<Known>]) -> bool {
        let number = self.learner.request(granules, idle);
        self.recent.rotate_left(1);
        self.recent[CONTEXT - 1] = granules;
        self.current = Current { number, ordinal: None, place: None };
        if self.follow.is_none() && number >= self.rest_until {
            if let Some(period) = self.learner.repeated() {
                self.adopt(&period, None);
                return false;
            }
            self.look_up(book);
        }
        let context = context_hash(self.recent.into_iter());
        let Some(follow) = &mut self.follow else { return false };
        follow.score.requests += 1;
        follow.score.peak = follow.score.peak.max(self.learner.live());
        follow.score.idle = follow.score.idle.min(idle);
        let ordinal = follow.advance(granules, context);
        if let Some(ordinal) = ordinal {
            follow.numbers[ordinal] = number;
            self.current.ordinal = Some(ordinal as u32);
        }
        let laid_out = follow.take_layout(&mut self.tally);
        self.current.place =
            ordinal.and_then(|ordinal| follow.layout.as_ref().and_then(|layout| layout.place(ordinal)));
        let len = follow.known.step.len() as u64;
        let verdict = if laid_out != Verdict::Good {
            laid_out
        } else if follow.astray > len {
            Verdict::Lost
        } else if follow.score.requests >= len {
            follow.judge(&mut self.tally)
        } else {
            Verdict::Good
        };
        if verdict != Verdict::Good {
            self.marks_mislead |= verdict == Verdict::Lost && follow.mark.is_some();
            self.give_up(verdict == Verdict::Poor);
            return false;
        }
        let wants =
            |follow: &Follow| ordinal.is_some() && (follow.lay_out_at.is_none() || follow.lay_out_at == ordinal);
        self.follow.as_ref().is_some_and(|follow| follow.wants_layout && follow.job.is_none() && wants(follow))
    }

    /// Follows a step that the lane has done. `mark`: it begins where the program's marks are.
    fn adopt(&mut self, period: &Period, mark: Option<usize>) {
        let known = Arc::new(Known::new(Arc::new(period.step.clone())));
        let mut follow = Follow::new(known);
        let len = period.step.len();
        follow.numbers = (period.first..).take(len).collect();
        follow.anchor = (period.first + len as u64 - 1, len - 1);
        follow.mark = mark;
        follow.lay_out_at = Some(period.step.low());
        follow.idle = period.idle;
        self.follow = Some(follow);
        self.tally.learned += 1;
    }

    /// Follows a step of the book that the lane seems to be in.
    fn look_up(&mut self, book: &[Arc<Known>]) {
        if book.is_empty() || self.learner.next() < CONTEXT as u64 {
            return;
        }
        let context = context_hash(self.recent.into_iter());
        let Some((known, next)) = book.iter().find_map(|known| Some((known, known.after(context)?))) else { return };
        let mut follow = Follow::new(known.clone());
        follow.imported = true;
        // As if the request in hand were still to come. Those by which it was found are known, too.
        let len = known.step.len();
        follow.at = (next + len - 1) % len;
        follow.anchor = (self.current.number, follow.at);
        for back in 1..len {
            let (number, at) = (self.current.number.wrapping_sub(back as u64), (follow.at + len - back) % len);
            if self.learner.granules(number) != Some(known.step.blocks()[at].granules) {
                break;
            }
            follow.numbers[at] = number;
        }
        self.follow = Some(follow);
    }

    /// The program says that a step begins.
    pub(super) fn mark(&mut self) {
        let period = self.learner.mark();
        match &mut self.follow {
            Some(follow) if follow.astray == 0 && follow.mark.is_none() => follow.mark = Some(follow.at),
            Some(follow) => {
                if let Some(mark) = follow.mark.filter(|&mark| mark != follow.at) {
                    follow.at = mark;
                    follow.score.deviations += 1;
                }
            }
            None => {
                let rested = self.learner.next() >= self.rest_until && !self.marks_mislead;
                if let Some(period) = period.filter(|_| rested) {
                    self.adopt(&period, Some(0));
                }
            }
        }
    }

    /// Goes without a plan: for a while, if it did not pay.
    fn give_up(&mut self, did_not_pay: bool) {
        let Some(mut follow) = self.follow.take() else { return };
        self.tally.dropped += 1;
        self.current = Current { ordinal: None, place: None, ..self.current };
        if let Some(job) = follow.job.take() {
            job.cancel();
            self.stray.push(job);
        }
        if did_not_pay {
            let steps = REST_STEPS << self.failures;
            self.rest_until = self.learner.next() + steps * follow.known.step.len() as u64;
            self.failures = (self.failures + 1).min(FAILURES_MAX);
        }
    }

    /// What the request in hand is.
    pub(super) fn current(&self) -> Current {
        self.current
    }

    /// The place planned for the request in hand.
    pub(super) fn place(&self) -> Option<u64> {
        self.current.place
    }

    /// The step followed, if there is a layout for it: whether it is from another run.
    pub(super) fn laid_out(&self) -> Option<bool> {
        self.follow.as_ref().filter(|follow| follow.layout.is_some()).map(|follow| follow.imported)
    }

    /// Up to where memory may be mapped before the layout wants it; 0 for nowhere.
    pub(super) fn maps_to(&self) -> u64 {
        let follow = self.follow.as_ref().filter(|follow| follow.reach == Reach::Ahead);
        follow.and_then(|follow| follow.layout.as_ref()).map_or(0, |layout| layout.top)
    }

    /// The request in hand was served at this address.
    pub(super) fn placed(&mut self, at: u64) {
        if let (Some(place), Some(follow)) = (self.current.place, &mut self.follow) {
            let hit = u64::from(place == at);
            follow.score.hits += hit;
            follow.score.misses += 1 - hit;
            self.tally.hits += hit;
            self.tally.misses += 1 - hit;
        }
    }

    /// The block of a request is free again.
    pub(super) fn freed(&mut self, number: u64, granules: u32) {
        self.learner.freed(number, granules);
    }

    /// The block of a request of the step as a guest of a layout made now: one that is expected to be free again before the step comes to it.
    pub(super) fn guest(&self, at: u64, granules: u32, ordinal: u32, number: u64) -> Option<Guest> {
        let follow = self.follow.as_ref()?;
        // One of an earlier step has no end that anybody knows.
        if follow.numbers.get(ordinal as usize) != Some(&number) {
            return None;
        }
        let (len, now) = (follow.known.step.len() as u32, self.current.ordinal?);
        let block = follow.known.step.blocks()[ordinal as usize];
        let elapsed = if now > ordinal { now - ordinal } else { now + len - ordinal };
        (block.granules == granules && block.life > elapsed).then_some(Guest { at, request: ordinal })
    }

    /// Which request of the step one of the newest is.
    pub(super) fn ordinal_of(&self, number: u64) -> Option<u32> {
        let follow = self.follow.as_ref()?;
        let (len, (anchor, at)) = (follow.numbers.len(), follow.anchor);
        let back = anchor.checked_sub(number).filter(|&back| back < len as u64)?;
        let ordinal = (at + len - back as usize) % len;
        (follow.numbers[ordinal] == number).then_some(ordinal as u32)
    }

    /// Works out a layout for the step, at once or on a thread of its own; `idle` bytes will be used by nobody at its fullest moment if nothing
    /// is mapped for it.
    pub(super) fn lay_out(&mut self, rooms: Vec<Room>, guests: Vec<Guest>, reach: Reach, idle: u64, background: bool) {
        let Some(follow) = &mut self.follow else { return };
        follow.refresh(&self.learner);
        follow.wants_layout = false;
        follow.reach = reach;
        if follow.layout.is_none() {
            follow.idle = follow.idle.max(idle);
        }
        let step = follow.known.step.clone();
        if background {
            match Job::start(step, rooms, guests) {
                Ok(job) => follow.job = Some(job),
                // No threads to be had: the heap does.
                Err(_) => self.give_up(true),
            }
            return;
        }
        let layout = solve_until(&step, &rooms, &guests, &AtomicBool::new(false));
        if follow.set_layout(layout, &mut self.tally) == Verdict::Poor {
            return self.give_up(true);
        }
        let place = |ordinal: u32| follow.layout.as_ref()?.place(ordinal as usize);
        self.current.place = self.current.ordinal.and_then(place);
    }

    /// The step that is followed, and its layout.
    pub(super) fn followed(&self) -> Option<(&Arc<Step>, Option<&Layout>)> {
        self.follow.as_ref().map(|follow| (&follow.known.step, follow.layout.as_ref()))
    }

    /// Ends what is under way.
    pub(super) fn end(&mut self) {
        self.give_up(false);
        self.stray.drain(..).for_each(Job::end);
    }
}

impl Follow {
    fn new(known: Arc<Known>) -> Follow {
        let numbers = vec![NOT_SEEN; known.step.len()];
        Follow {
            known,
            at: 0,
            astray: 0,
            numbers,
            anchor: (0, 0),
            mark: None,
            imported: false,
            layout: None,
            job: None,
            lay_out_at: None,
            wants_layout: true,
            layouts: 0,
            reach: Reach::Mapped,
            idle: 0,
            score: Score::NONE,
            poor: 0,
        }
    }

    /// Which request of the step this one is.
    fn advance(&mut self, granules: u32, context: u64) -> Option<usize> {
        let blocks = self.known.step.blocks();
        let ahead = |skip: usize| (self.at + skip) % blocks.len();
        let found = (0..=SKIP_MAX.min(blocks.len() - 1)).find(|&skip| blocks[ahead(skip)].granules == granules);
        let ordinal = match found {
            Some(skip) => {
                self.score.deviations += skip as u64;
                ahead(skip)
            }
            None => {
                self.score.deviations += 1;
                self.astray += 1;
                let next = self.known.after(context)?;
                (next + blocks.len() - 1) % blocks.len()
            }
        };
        self.astray = 0;
        self.at = (ordinal + 1) % blocks.len();
        Some(ordinal)
    }

    /// Takes over what the thread has worked out.
    fn take_layout(&mut self, tally: &mut Tally) -> Verdict {
        let Some(job) = self.job.take_if(|job| job.thread.is_finished()) else { return Verdict::Good };
        job.thread.join().map_or(Verdict::Poor, |layout| self.set_layout(layout, tally))
    }

    /// Follows a layout from now on, unless it would have more mapped than its blocks need.
    fn set_layout(&mut self, layout: Layout, tally: &mut Tally) -> Verdict {
        let bound = self.known.step.bound() * GRANULE;
        if self.reach != Reach::Mapped && layout.footprint > bound + waste(bound) {
            self.reach = Reach::Mapped;
            return if self.layout.is_some() { Verdict::Good } else { Verdict::Poor };
        }
        self.layout = Some(layout);
        self.layouts += 1;
        tally.layouts += 1;
        self.score = Score::NONE;
        Verdict::Good
    }

    /// After as many requests as a step has: what the plan is worth.
    fn judge(&mut self, tally: &mut Tally) -> Verdict {
        let score = std::mem::replace(&mut self.score, Score::NONE);
        tally.deviations += score.deviations;
        if score.deviations * 2 > score.requests {
            return Verdict::Lost;
        }
        if self.layout.is_none() {
            return Verdict::Good;
        }
        if score.idle.saturating_sub(self.idle) > waste(score.peak * GRANULE) {
            return Verdict::Poor;
        }
        self.poor = if score.hits * 2 < self.known.step.len() as u64 { self.poor + 1 } else { 0 };
        if score.misses * MISSED_PART > score.hits + score.misses {
            self.wants_layout = self.layouts < LAYOUTS_MAX;
            self.lay_out_at = Some(self.known.step.low());
        } else {
            self.layouts = 0;
        }
        if self.poor < 2 || self.wants_layout { Verdict::Good } else { Verdict::Poor }
    }

    /// Takes over how long blocks stay now.
    fn refresh(&mut self, learner: &Learner) {
        let step = &self.known.step;
        let len = step.len() as u32;
        let block = |(&number, block): (&u64, &Block)| {
            let life = learner.life(number).unwrap_or(0).max(block.life);
            Block { life: if life <= len { life } else { 0 }, ..*block }
        };
        let blocks: Vec<Block> = self.numbers.iter().zip(step.blocks()).map(block).collect();
        if blocks != step.blocks()
            && let Some(step) = Step::new(blocks)
        {
            // The sizes are the same, and so are the contexts.
            let contexts = self.known.contexts.clone();
            self.known = Arc::new(Known { step: Arc::new(step), contexts });
        }
    }
}
