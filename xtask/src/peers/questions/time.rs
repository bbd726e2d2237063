//! Real time: what an operation costs, alone and with a second thread, and what single allocations do.

use super::{Answers, Asking, Peer, SPARE_MEMORY};
use crate::peers::roster::{Family, Reach};
use crate::peers::runner::Figures;

/// The first pass of each process is cold and not counted.
const PASSES: usize = 4;

fn is_asked(peer: &Peer) -> bool {
    peer.reach == Reach::All
}

/// Peers take turns, round after round, so that whatever else the machine does falls on all of them.
pub(super) fn ask_passes(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    for trace in asking.traces {
        for threads in [1, 2] {
            // offset-allocator is for one thread.
            let takes_part = |peer: &Peer| is_asked(peer) && (threads == 1 || peer.setting != "offset-allocator");
            let asked = asking.pairs(|other, peer| other.name == trace.name && takes_part(peer));
            let mut samples: Vec<Vec<f64>> = vec![Vec::new(); asked.len()];
            for round in 0..asking.options.rounds() {
                for ((trace, peer), samples) in asked.iter().zip(&mut samples) {
                    // Minutes each time: once has to do.
                    if peer.is_slow && (round > 0 || threads > 1) {
                        continue;
                    }
                    let mut replay = trace.plain(SPARE_MEMORY);
                    replay.threads = threads;
                    replay.passes = if peer.is_slow { 2 } else { PASSES };
                    let figures = asking.runner.replay(peer, &replay)?;
                    samples.extend(figures.numbers("pass_ns").skip(1).map(|ns| ns / trace.calls as f64));
                }
            }
            for ((trace, peer), mut samples) in asked.into_iter().zip(samples) {
                let mut figures = Figures::default();
                samples.sort_by(f64::total_cmp);
                if let (Some(least), Some(middle)) = (samples.first(), samples.get(samples.len() / 2)) {
                    figures.set("ns_min", format!("{least:.1}"));
                    figures.set("ns_median", format!("{middle:.1}"));
                    let question = format!("time {threads}");
                    asking.say(&question, trace, peer, &figures, "ns_min");
                    answers.add(&question, trace, peer, figures);
                }
            }
        }
    }
    Ok(())
}

/// Single allocations of a warm pass. Of several rounds, the one with the middle p99.9 of each peer counts.
pub(super) fn ask_each(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let asked = asking.pairs(|_, peer| is_asked(peer) && !peer.is_slow && peer.family != Family::Floor);
    let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); asked.len()];
    for _ in 0..asking.options.rounds() {
        for ((trace, peer), rounds) in asked.iter().zip(&mut rounds) {
            let mut replay = trace.plain(SPARE_MEMORY);
            replay.passes = PASSES;
            replay.each = true;
            rounds.push(asking.runner.replay(peer, &replay)?);
        }
    }
    for ((trace, peer), mut rounds) in asked.into_iter().zip(rounds) {
        let tail = |figures: &Figures| figures.number("alloc_ns.p999").unwrap_or(f64::INFINITY);
        rounds.sort_by(|one, other| tail(one).total_cmp(&tail(other)));
        let middle = rounds.len() / 2;
        asking.say("latency", trace, peer, &rounds[middle], "alloc_ns.p999");
        answers.add("latency", trace, peer, rounds.swap_remove(middle));
    }
    Ok(())
}
