//! What this allocator is to reach, and whether it does.

use crate::peers::questions::DEVICES;
use crate::peers::questions::{Answers, LAGS_US, Trace, lag_question, models_question};

use super::markdown::{geometric_mean, ms};
use crate::peers::runner::Figures;

const OURS: &str = "stratalloc";
const THRIFTY: &str = "stratalloc thrifty:true";
const WAITING: &str = "stratalloc cross_stream_wait:true";
const EXPANDABLE: &str = "expandable";

/// One bound.
pub(super) struct Verdict {
    pub(super) what: String,
    pub(super) bound: &'static str,
    pub(super) measured: String,
    pub(super) met: bool,
}

/// Those whose questions were asked.
pub(super) fn all(traces: &[Trace], answers: &Answers) -> Vec<Verdict> {
    let judge = Judge { traces, answers };
    let mut all = Vec::new();
    all.extend(judge.smallest());
    all.extend(judge.thrifty());
    all.extend(judge.robust());
    all.extend(judge.spare());
    all.extend(judge.driver_time());
    all.extend(judge.steps());
    all.extend(judge.repeated());
    all.extend(judge.syncs());
    all.extend(judge.stall());
    all.extend(judge.lags(OURS));
    all.extend(judge.lags(WAITING));
    all.extend(judge.below(
        "own",
        "ns_min",
        "ns an operation, warm, on a device whose calls do nothing",
        "40 on every trace",
        40.0,
    ));
    all.extend(judge.below(
        "own",
        "alloc_ns.p999",
        "p99.9 of an allocation in steady state, own time, ns",
        "1000 on every trace",
        1000.0,
    ));
    all.extend(judge.models());
    all
}

pub(in crate::peers) fn print(traces: &[Trace], answers: &Answers) {
    for verdict in all(traces, answers) {
        let met = if verdict.met { "met    " } else { "NOT MET" };
        eprintln!("{met} {} ({}): {}", verdict.what, verdict.bound, verdict.measured);
    }
}

struct Judge<'a> {
    traces: &'a [Trace],
    answers: &'a Answers,
}

/// A trace's first word, by which it is told from the others.
pub(super) fn short(name: &str) -> &str {
    ["llama3-3b", "llama3-8b-generate", "llama3-8b-lora", "gpt-small", "kv-concat"]
        .into_iter()
        .find(|known| name.starts_with(known))
        .unwrap_or_else(|| name.split('-').next().unwrap_or(name))
}

/// The traces that are told of, or all as it should be.
fn told(those: &[String]) -> String {
    if those.is_empty() { String::new() } else { format!("; not {}", those.join(", ")) }
}

impl Judge<'_> {
    /// A figure of each trace that has it, in `question` for `peer`.
    fn each(&self, question: &str, peer: &str, value: impl Fn(&Trace) -> Option<f64>) -> Option<Vec<(&str, f64)>> {
        self.traces.iter().find(|trace| self.answers.of(question, &trace.name, peer).is_some())?;
        Some(self.traces.iter().filter_map(|trace| Some((trace.name.as_str(), value(trace)?))).collect())
    }

    fn number(&self, question: &str, trace: &Trace, peer: &str, name: &str) -> Option<f64> {
        self.answers.number(question, &trace.name, peer, name)
    }

    fn completes(&self, question: &str, trace: &Trace, peer: &str) -> bool {
        self.answers.of(question, &trace.name, peer).is_some_and(Figures::completed)
    }

    /// Traces that did not complete, of those that are meant.
    fn missing(&self, question: &str, peer: &str, is_meant: impl Fn(&Trace) -> bool) -> Vec<String> {
        let failed = |trace: &&Trace| {
            is_meant(trace) && self.answers.of(question, &trace.name, peer).is_some_and(|figures| !figures.completed())
        };
        self.traces.iter().filter(failed).map(|trace| format!("{} (no room)", short(&trace.name))).collect()
    }

    fn smallest(&self) -> Option<Verdict> {
        let ratio = |trace: &Trace, peer: &str| self.number("capacity", trace, peer, "ratio");
        let ours = self.each("capacity", OURS, |trace| Some(ratio(trace, OURS)? - ratio(trace, EXPANDABLE)?))?;
        // The search cannot tell what is less than a step apart.
        let worse: Vec<String> = ours
            .iter()
            .filter(|(_, apart)| *apart > crate::peers::questions::STEP)
            .map(|(name, apart)| format!("{} (+{apart:.4})", short(name)))
            .collect();
        let means = [OURS, EXPANDABLE].map(|peer| {
            let ratios: Vec<f64> = self.traces.iter().filter_map(|trace| ratio(trace, peer)).collect();
            geometric_mean(&ratios)
        });
        Some(Verdict {
            what: "smallest device / peak live, by default".to_string(),
            bound: "expandable's on every trace",
            measured: format!("mean {:.4}, expandable {:.4}{}", means[0], means[1], told(&worse)),
            met: worse.is_empty(),
        })
    }

    fn thrifty(&self) -> Option<Verdict> {
        let ratios = self.each("capacity", THRIFTY, |trace| self.number("capacity", trace, THRIFTY, "ratio"))?;
        let values: Vec<f64> = ratios.iter().map(|(_, ratio)| *ratio).collect();
        let mut over: Vec<String> = ratios
            .iter()
            .filter(|(_, ratio)| *ratio > 1.005)
            .map(|(name, ratio)| format!("{} ({ratio:.4})", short(name)))
            .collect();
        over.extend(self.missing("capacity", THRIFTY, |_| true));
        let mean = geometric_mean(&values);
        Some(Verdict {
            what: "smallest device / peak live, `thrifty:true`".to_string(),
            bound: "1.005 on every trace, 1.003 in the mean",
            measured: format!("mean {mean:.4}, worst {:.4}{}", values.iter().copied().fold(0.0, f64::max), told(&over)),
            met: over.is_empty() && mean <= 1.003,
        })
    }

    fn robust(&self) -> Option<Verdict> {
        let failed = |trace: &Trace| {
            let figures = self.answers.of("capacity", &trace.name, OURS)?;
            figures.number("robust").map(|_| figures.numbers("fails_at").count() as f64)
        };
        let failures = self.each("capacity", OURS, failed)?;
        if failures.is_empty() {
            return None;
        }
        let some: Vec<String> = failures
            .iter()
            .filter(|(_, count)| *count > 0.0)
            .map(|(name, count)| format!("{} ({count} fail)", short(name)))
            .collect();
        Some(Verdict {
            what: "40 devices, from the smallest to 1.3 times that".to_string(),
            bound: "all traces complete on all",
            measured: format!("{} of {} traces{}", failures.len() - some.len(), failures.len(), told(&some)),
            met: some.is_empty(),
        })
    }

    fn spare(&self) -> Option<Verdict> {
        let ratio = |trace: &Trace| Some(self.number("spare", trace, OURS, "peak_reserved")? / trace.peak_live as f64);
        self.ratios("spare", OURS, "memory to spare: peak reserved / peak live", "1.01 on every trace", 1.01, ratio)
    }

    fn ratios(
        &self,
        question: &str,
        peer: &str,
        what: &str,
        bound: &'static str,
        most: f64,
        ratio: impl Fn(&Trace) -> Option<f64>,
    ) -> Option<Verdict> {
        let ratios = self.each(question, peer, ratio)?;
        let mut over: Vec<String> = ratios
            .iter()
            .filter(|(_, ratio)| *ratio > most)
            .map(|(name, ratio)| format!("{} ({ratio:.4})", short(name)))
            .collect();
        over.extend(self.missing(question, peer, |_| true));
        let values: Vec<f64> = ratios.iter().map(|(_, ratio)| *ratio).collect();
        let worst = values.iter().copied().fold(0.0, f64::max);
        let measured = format!("mean {:.4}, worst {worst:.4}{}", geometric_mean(&values), told(&over));
        Some(Verdict { what: what.to_string(), bound, measured, met: over.is_empty() })
    }

    fn driver_time(&self) -> Option<Verdict> {
        let total = |peer: &str| -> Option<f64> {
            let of = |trace: &Trace| self.number("spare", trace, peer, "driver_ns.first");
            self.traces.iter().map(of).sum()
        };
        let (ours, theirs) = (total(OURS)?, total(EXPANDABLE)?);
        Some(Verdict {
            what: "memory to spare: modelled driver time of all first passes".to_string(),
            bound: "expandable's",
            measured: format!("{} ms, expandable {} ms", ms(ours), ms(theirs)),
            met: ours <= theirs,
        })
    }

    fn steps(&self) -> Option<Verdict> {
        let step = |trace: &Trace, peer: &str| {
            let steps = self.number("steady", trace, peer, "steady_steps")?.max(1.0);
            Some(self.number("steady", trace, peer, "driver_ns.steady")? / steps)
        };
        let over = self.each("steady", OURS, |trace| {
            let (ours, theirs) = (step(trace, OURS)?, step(trace, EXPANDABLE)?);
            Some(if ours <= theirs / 10.0 { 0.0 } else { 1.0 })
        })?;
        let cell = |name: &str| {
            let trace = self.traces.iter().find(|trace| trace.name == name)?;
            Some(format!("{} ({} / {})", short(name), ms(step(trace, OURS)?), ms(step(trace, EXPANDABLE)?)))
        };
        let those: Vec<String> =
            over.iter().filter(|(_, over)| *over > 0.0).filter_map(|(name, _)| cell(name)).collect();
        Some(Verdict {
            what: "modelled driver time of a step on 80 GiB, second half of the first pass, ms".to_string(),
            bound: "a tenth of expandable's",
            measured: format!("{} of {} traces{}", over.len() - those.len(), over.len(), told(&those)),
            met: those.is_empty(),
        })
    }

    fn repeated(&self) -> Option<Verdict> {
        let total = |peer: &str| -> Option<f64> {
            self.traces.iter().map(|trace| self.number("spare", trace, peer, "driver_ns.later")).sum()
        };
        let (ours, theirs) = (total(OURS)?, total(EXPANDABLE)?);
        Some(Verdict {
            what: "memory to spare: modelled driver time of all second passes, when all has happened once".to_string(),
            bound: "a tenth of expandable's",
            measured: format!("{} ms, expandable {} ms", ms(ours), ms(theirs)),
            met: ours <= theirs / 10.0,
        })
    }

    fn syncs(&self) -> Option<Verdict> {
        let syncs = self.each("pressure", OURS, |trace| {
            let figures = self.answers.of("pressure", &trace.name, OURS).filter(|figures| figures.completed())?;
            Some(super::markdown::device_waits(figures))
        })?;
        let mut some: Vec<String> = syncs
            .iter()
            .filter(|(_, count)| *count > 0.0)
            .map(|(name, count)| format!("{} ({count})", short(name)))
            .collect();
        // A trace that its peer completes is to complete.
        some.extend(self.missing("pressure", OURS, |trace| self.completes("pressure", trace, EXPANDABLE)));
        let nobody = self.missing("pressure", OURS, |trace| !self.completes("pressure", trace, EXPANDABLE));
        let free = syncs.iter().filter(|(_, count)| *count == 0.0).count();
        let mut measured = format!("none on {free} of {} traces{}", self.traces.len(), told(&some));
        if !nobody.is_empty() {
            measured += &format!("; nor has expandable room: {}", nobody.join(", "));
        }
        Some(Verdict {
            what: "under pressure: calls that wait for the device".to_string(),
            bound: "none, on every trace",
            measured,
            met: some.is_empty(),
        })
    }

    fn stall(&self) -> Option<Verdict> {
        let both = |trace: &&Trace| {
            [OURS, EXPANDABLE].iter().all(|peer| self.number("pressure", trace, peer, "stall_ns").is_some())
        };
        let both: Vec<&Trace> = self.traces.iter().filter(both).collect();
        if both.is_empty() {
            return None;
        }
        let sum = |peer: &str, name: &str| -> f64 {
            both.iter().filter_map(|trace| self.number("pressure", trace, peer, name)).sum()
        };
        let (ours, theirs) = (sum(OURS, "stall_ns"), sum(EXPANDABLE, "stall_ns"));
        let asked = [OURS, EXPANDABLE].map(|peer| sum(peer, "stall_ns.empty_cache"));
        Some(Verdict {
            what: "under pressure: stall, virtual ms".to_string(),
            bound: "a tenth of expandable's",
            measured: format!(
                "{}, expandable {}, on the {} traces that both complete; without what the program's own empty_cache calls wait: {}, {}",
                ms(ours),
                ms(theirs),
                both.len(),
                ms(ours - asked[0]),
                ms(theirs - asked[1])
            ),
            met: ours <= theirs / 10.0,
        })
    }

    /// On the traces with three streams.
    fn lags(&self, peer: &str) -> Option<Verdict> {
        let mut cells = Vec::new();
        let mut met = true;
        for lag in LAGS_US.into_iter().filter(|&lag| lag > 0) {
            for trace in self.traces.iter().filter(|trace| trace.streams > 2) {
                let ratio = |peer: &str, latency: bool| {
                    let question = lag_question(lag, latency);
                    Some(self.number(&question, trace, peer, "peak_reserved")? / trace.peak_live as f64)
                };
                let ours = ratio(peer, true)?;
                met &= ours <= 1.05;
                let also = |ratio: Option<f64>| ratio.map_or("–".to_string(), |ratio| format!("{ratio:.4}"));
                cells.push(format!(
                    "{} us: {ours:.4}, expandable {} (calls that take no time: {}, {})",
                    lag,
                    also(ratio(EXPANDABLE, true)),
                    also(ratio(peer, false)),
                    also(ratio(EXPANDABLE, false))
                ));
            }
        }
        if cells.is_empty() {
            return None;
        }
        Some(Verdict {
            what: format!(
                "late events, three streams: reserved / live, {}",
                peer.strip_prefix("stratalloc ").unwrap_or("by default")
            ),
            bound: "1.05",
            measured: cells.join("; "),
            met,
        })
    }

    fn below(&self, question: &str, name: &str, what: &str, bound: &'static str, most: f64) -> Option<Verdict> {
        let found = self.each(question, OURS, |trace| self.number(question, trace, OURS, name))?;
        let over: Vec<String> = found
            .iter()
            .filter(|(_, value)| *value > most)
            .map(|(trace, value)| format!("{} ({value:.0})", short(trace)))
            .collect();
        let values = found.iter().map(|(_, value)| *value);
        let (least, worst) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        let measured = format!("{least:.0} to {worst:.0}{}", told(&over));
        Some(Verdict { what: what.to_string(), bound, measured, met: over.is_empty() })
    }

    fn models(&self) -> Option<Verdict> {
        let (mut compared, mut changes, mut apart) = (0, 0.0, Vec::new());
        for device in DEVICES {
            let question = models_question(device);
            for answer in self.answers.all.iter().filter(|answer| answer.question == question) {
                compared += 1;
                changes += answer.figures.number("changes").unwrap_or_default();
                if answer.figures.number("same") != Some(1.0) || answer.figures.number("same_calls") == Some(0.0) {
                    apart.push(format!("{} {} {device}", short(&answer.trace), answer.peer));
                }
            }
        }
        (compared > 0).then(|| Verdict {
            what: "models of PyTorch's policies beside PyTorch: bytes held after every operation, driver calls"
                .to_string(),
            bound: "equal to the byte",
            measured: format!("{} of {compared} replays, {changes} changes{}", compared - apart.len(), told(&apart)),
            met: apart.is_empty(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(name: &str) -> Trace {
        let (file, ops) = Default::default();
        Trace { name: name.to_string(), file, ops, peak_live: 1000, calls: 1, records: 0, streams: 3 }
    }

    #[test]
    fn bounds_are_held_against_what_was_found() {
        let traces = [trace("bert-large"), trace("vit-huge")];
        let mut answers = Answers::default();
        assert!(all(&traces, &answers).is_empty());
        for (name, ours, theirs) in [("bert-large", "1.004", "1.002"), ("vit-huge", "1.001", "1.004")] {
            for (peer, ratio) in [(OURS, ours), (EXPANDABLE, theirs)] {
                answers.put("capacity", name, peer, Figures(vec![("ratio".to_string(), ratio.to_string())]));
            }
        }
        let verdicts = all(&traces, &answers);
        assert_eq!(verdicts.len(), 1);
        assert!(!verdicts[0].met && verdicts[0].measured.ends_with("not bert (+0.0020)"), "{}", verdicts[0].measured);
        let stall = |ns: &str| Figures(vec![("stall_ns".to_string(), ns.to_string())]);
        answers.put("pressure", "bert-large", OURS, stall("10"));
        answers.put("pressure", "bert-large", EXPANDABLE, stall("100"));
        let verdicts = all(&traces, &answers);
        assert_eq!(verdicts.iter().filter(|verdict| verdict.met).count(), 2, "no waits for the device, and a tenth");
        assert_eq!(["llama3-8b-lora-ckpt", "sdxl-unet"].map(short), ["llama3-8b-lora", "sdxl"]);
    }
}
