//! The search: from the default, one key after the other, each value, keeping what is better, until a round changes nothing. Every
//! configuration is tried once, and nothing depends on time, so that equal calls give equal answers.
//!
//! *Why not all combinations?* They are hundreds, at a replay each; the keys hardly depend on each other.

use super::knobs::Knob;

/// What a configuration came to, over all traces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Score {
    /// Memory over the peak of live bytes, the mean of all traces: what is held, or the smallest device.
    pub(super) memory: f64,
    /// Driver time on the virtual clock, in nanoseconds, the sum of all traces.
    pub(super) driver_ns: f64,
}

/// What is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Memory,
    Speed,
}

impl Goal {
    /// What is sought, and the other.
    fn sought(self, score: Score) -> (f64, f64) {
        match self {
            Goal::Memory => (score.memory, score.driver_ns),
            Goal::Speed => (score.driver_ns, score.memory),
        }
    }
}

/// How much better what is sought has to be to be worth a setting; and how much the other, where what is sought stays as it is.
const WORTH: f64 = 0.001;
const OTHER_WORTH: f64 = 0.05;

/// Driver time below this is never too much: it is less than a thousandth of any step.
const NEGLIGIBLE_NS: f64 = 1e6;

/// One configuration that was tried.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tried {
    /// What differs from the base, in the order of the knobs.
    pub(super) settings: Vec<(&'static str, &'static str)>,
    /// None where a trace did not complete.
    pub(super) score: Option<Score>,
}

impl Tried {
    /// As `STRATALLOC_CONF` has it.
    pub(super) fn text(&self) -> String {
        self.settings.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(",")
    }
}

/// Tries configurations with `score`, the unchanged one first. Returns all in the order in which they were tried, and the best one's index.
pub(super) fn search<E>(
    knobs: &[Knob],
    goal: Goal,
    slack: f64,
    is_base: impl Fn(Knob, &str) -> bool,
    mut score: impl FnMut(&Tried) -> Result<Option<Score>, E>,
) -> Result<(Vec<Tried>, usize), E> {
    let mut all = vec![Tried { settings: Vec::new(), score: None }];
    all[0].score = score(&all[0])?;
    let bound = all[0].score;
    let mut best = 0;
    loop {
        let before = best;
        for &knob in knobs {
            for &value in knob.values {
                let mut settings = all[best].settings.clone();
                settings.retain(|setting| setting.0 != knob.key);
                if !is_base(knob, value) {
                    settings.push((knob.key, value));
                    settings.sort_by_key(|setting| knobs.iter().position(|knob| knob.key == setting.0));
                }
                if all.iter().any(|tried| tried.settings == settings) {
                    continue;
                }
                let mut tried = Tried { settings, score: None };
                tried.score = score(&tried)?;
                all.push(tried);
                let (new, old) = (all[all.len() - 1].score, all[best].score);
                if new.is_some_and(|new| old.is_none_or(|old| is_better(new, old, bound, goal, slack))) {
                    best = all.len() - 1;
                }
            }
        }
        if best == before {
            return Ok((all, best));
        }
    }
}

/// The best of those that were tried and cost too much of the other, if one is worth more than the best that was found: with how many times
/// the other it wants.
pub(super) fn too_dear(all: &[Tried], best: usize, goal: Goal) -> Option<(&Tried, f64)> {
    let (base, best) = (all[0].score?, all[best].score?);
    let better = all.iter().filter(|tried| tried.score.is_some_and(|score| is_better(score, best, None, goal, 1.0)));
    let sought = |tried: &&Tried| tried.score.map_or(f64::INFINITY, |score| goal.sought(score).0);
    let found = better.min_by(|a, b| sought(a).total_cmp(&sought(b)))?;
    Some((found, goal.sought(found.score?).1 / goal.sought(base).1))
}

/// Whether `new` is worth more than `old`, within what the unchanged configuration bounds: of what is not sought, at most `slack` times as
/// much as there.
fn is_better(new: Score, old: Score, base: Option<Score>, goal: Goal, slack: f64) -> bool {
    let allowed = base.map_or(f64::INFINITY, |base| match goal {
        Goal::Memory => (base.driver_ns * slack).max(NEGLIGIBLE_NS),
        Goal::Speed => base.memory * slack,
    });
    let ((new, new_other), (old, old_other)) = (goal.sought(new), goal.sought(old));
    let improves = new < old * (1.0 - WORTH) || (new <= old && new_other < old_other * (1.0 - OTHER_WORTH));
    improves && new_other <= allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOBS: [Knob; 2] = [
        Knob { key: "a", values: &["1", "2", "3"], streams: false },
        Knob { key: "b", values: &["x", "y"], streams: false },
    ];

    /// A world in which `of` says what settings come to.
    fn found(goal: Goal, slack: f64, of: impl Fn(&str) -> Option<(f64, f64)>) -> (Vec<String>, String) {
        let is_base = |knob: Knob, value: &str| value == knob.values[0];
        let score =
            |tried: &Tried| Ok::<_, ()>(of(&tried.text()).map(|(memory, driver_ns)| Score { memory, driver_ns }));
        let (all, best) = search(&KNOBS, goal, slack, is_base, score).unwrap();
        (all.iter().map(Tried::text).collect(), all[best].text())
    }

    #[test]
    fn each_configuration_is_tried_once_and_the_best_is_found() {
        let of = |text: &str| {
            Some(match text {
                "" => (1.10, 100e6),
                "a:2" => (1.05, 110e6),
                // Better, and too dear.
                "a:3" => (1.01, 900e6),
                "a:2,b:y" => (1.02, 120e6),
                _ => (1.2, 1e6),
            })
        };
        let (all, best) = found(Goal::Memory, 1.5, of);
        assert_eq!(best, "a:2,b:y");
        assert_eq!(all, ["", "a:2", "a:3", "a:2,b:y", "b:y", "a:3,b:y"]);
        let (_, best) = found(Goal::Memory, 10.0, of);
        assert_eq!(best, "a:3");
    }

    #[test]
    fn what_is_better_and_too_dear_is_told() {
        let tried = |memory, driver_ns| Tried { settings: Vec::new(), score: Some(Score { memory, driver_ns }) };
        let all = [tried(1.1, 100e6), tried(1.05, 110e6), tried(1.01, 900e6), tried(1.04, 300e6)];
        let (found, times) = too_dear(&all, 1, Goal::Memory).unwrap();
        assert_eq!((found, times), (&all[2], 9.0));
        assert_eq!(too_dear(&all, 2, Goal::Memory), None);
    }

    #[test]
    fn the_default_stays_where_nothing_is_worth_it() {
        let of = |text: &str| Some((if text.is_empty() { 1.0 } else { 0.9995 }, 100e6));
        assert_eq!(found(Goal::Memory, 1.5, of).1, "");
        // As much memory, and less time: worth it.
        let of = |text: &str| Some((1.0, if text == "b:y" { 50e6 } else { 100e6 }));
        assert_eq!(found(Goal::Memory, 1.5, of).1, "b:y");
    }

    #[test]
    fn speed_may_cost_so_much_memory_and_no_more() {
        let of = |text: &str| {
            Some(match text {
                "a:2" => (1.09, 20e6),
                "a:3" => (1.30, 1e6),
                _ => (1.0, 100e6),
            })
        };
        assert_eq!(found(Goal::Speed, 1.1, of).1, "a:2");
    }

    #[test]
    fn what_completes_is_better_than_what_does_not() {
        let of = |text: &str| (text == "a:3").then_some((2.0, 1e9));
        assert_eq!(found(Goal::Memory, 1.5, of).1, "a:3");
        assert_eq!(found(Goal::Memory, 1.5, |_| None).1, "");
    }
}
