//! What the command `stratalloc` measures by itself, on its own software device.

use serde_json::Value;

use super::{Answers, Asking, Peer, SPARE_MEMORY, Trace};
use crate::peers::roster::{Family, Reach};
use crate::peers::runner::Figures;

/// This allocator as it is by default.
fn ours(asking: &Asking<'_>, ask: impl Fn(&Trace, &Peer) -> Result<Figures, String>) -> Result<Vec<Found>, String> {
    let is_ours = |peer: &Peer| peer.family == Family::Stratalloc && peer.reach == Reach::All;
    asking
        .pairs(|_, peer| is_ours(peer))
        .into_iter()
        .map(|(trace, peer)| Ok((trace.name.clone(), peer.name.clone(), ask(trace, peer)?)))
        .collect()
}

/// Trace, peer, what was found.
type Found = (String, String, Figures);

fn file(answers: &mut Answers, question: &str, found: Vec<Found>) {
    found.into_iter().for_each(|(trace, peer, figures)| answers.put(question, &trace, &peer, figures));
}

/// Takes numbers over from a row; `from` is a path with dots.
fn take(figures: &mut Figures, row: &Value, names: &[(&str, &str)]) {
    for (name, from) in names {
        let value = from.split('.').try_fold(row, |value, key| value.get(key));
        if let Some(value) = value.filter(|value| value.is_number()) {
            figures.set(name, value);
        }
    }
}

/// Times without the device's: what the harness cannot tell.
pub(super) fn ask_own(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let rounds = asking.options.rounds().max(2).to_string();
    let found = ours(asking, |trace, peer| {
        let row = asking.runner.replayed(&["--repeat", &rounds], &peer.conf, &trace.file)?;
        let mut figures = Figures::default();
        let names = [
            ("ns_min", "ns_per_op_min"),
            ("ns_median", "ns_per_op_median"),
            ("alloc_ns.p50", "alloc_ns.p50"),
            ("alloc_ns.p99", "alloc_ns.p99"),
            ("alloc_ns.p999", "alloc_ns.p99_9"),
        ];
        take(&mut figures, &row, &names);
        asking.say("own", trace, peer, &figures, "ns_min");
        Ok(figures)
    })?;
    file(answers, "own", found);
    Ok(())
}

/// Without plans, with plans that are learned on the way, and with the plan that this left.
pub(super) fn ask_plans(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let found = ours(asking, |trace, peer| {
        let folder = asking.runner.folder("plans")?;
        let plan = folder.join(format!("{}.plan", trace.name)).display().to_string();
        let capacity = format!("{SPARE_MEMORY}B");
        let usual = ["--repeat", "3", "--capacity", &capacity];
        let mut figures = Figures::default();
        for (name, config, more) in [
            ("off", "", &[][..]),
            ("learned", "plan:inline", &["--plan-out", &plan][..]),
            ("imported", "plan:inline", &["--plan-in", &plan][..]),
        ] {
            let words: Vec<&str> = usual.iter().chain(more).copied().collect();
            let row = asking.runner.replayed(&words, config, &trace.file)?;
            let key = |figure: &str| format!("{name}.{figure}");
            let names = [
                (key("reserved"), "peak_reserved_bytes"),
                (key("reserved_all"), "peak_reserved_bytes_all_passes"),
                (key("driver_us"), "driver_time_us"),
                (key("ns_min"), "ns_per_op_min"),
                (key("step"), "plans.step"),
                (key("hits"), "plans.hits"),
                (key("deviations"), "plans.deviations"),
                (key("dropped"), "plans.dropped"),
            ];
            let names: Vec<(&str, &str)> = names.iter().map(|(name, from)| (name.as_str(), *from)).collect();
            take(&mut figures, &row, &names);
        }
        asking.say("plans", trace, peer, &figures, "learned.reserved");
        Ok(figures)
    })?;
    file(answers, "plans", found);
    Ok(())
}

/// How many pages of small blocks could share memory, and how many chunks of large ones that are used in part.
pub(super) fn ask_mesh(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let found = ours(asking, |trace, peer| {
        let text = asking.runner.command(["defrag", "--steps", "10"], &peer.conf, &trace.file)?;
        let mut figures = Figures::default();
        if let Some(numbers) = text.lines().rev().find_map(sums) {
            for (name, number) in ["meshed", "pages", "paired", "chunks"].iter().zip(numbers) {
                figures.set(name, number);
            }
        }
        asking.say("mesh", trace, peer, &figures, "meshed");
        Ok(figures)
    })?;
    file(answers, "mesh", found);
    Ok(())
}

/// The four numbers of the line that sums up.
fn sums(line: &str) -> Option<[u64; 4]> {
    let numbers = line.strip_suffix(" chunks used in part")?.replace(" pages of small blocks,", " of");
    let numbers: Vec<u64> = numbers.split(" of ").filter_map(|number| number.trim().parse().ok()).collect();
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_defragmenting_are_read() {
        let line = "3 of 462 pages of small blocks, 2143 of 12046 chunks used in part";
        assert_eq!(sums(line), Some([3, 462, 2143, 12046]));
        assert_eq!(sums("after line"), None);
    }

    #[test]
    fn numbers_are_taken_by_their_path() {
        let row = serde_json::json!({"a": {"b": 2.5}, "c": "text"});
        let mut figures = Figures::default();
        take(&mut figures, &row, &[("x", "a.b"), ("y", "c"), ("z", "a.b.c")]);
        assert_eq!(figures.0, [("x".to_string(), "2.5".to_string())]);
    }
}
