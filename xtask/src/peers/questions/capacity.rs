//! The smallest device on which a trace completes, and whether it completes on every larger one as well.

use super::{Answers, Asking, PAGE, Trace};
use crate::peers::roster::Family;
use crate::peers::runner::Figures;

/// How finely the smallest capacity is sought, as a part of the peak of live bytes.
pub(in crate::peers) const STEP: f64 = 0.0005;

/// A trace that needs more than so many times its peak is given up.
const MOST: u64 = 8;

/// So many capacities above the smallest are tried, evenly spread over so much of it.
pub(in crate::peers) const STEPS_ABOVE: u32 = 40;
const ABOVE: f64 = 0.3;

pub(super) fn ask(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    // mimalloc has no device that could be too small.
    let asked =
        asking.pairs(|_, peer| peer.is_tight() && (peer.family != Family::Floor || peer.setting == "offset-allocator"));
    let found = asking.runner.each(&asked, |(trace, peer)| {
        let completes =
            |memory: u64| asking.runner.replay(peer, &trace.plain(memory)).map(|figures| figures.completed());
        let mut figures = Figures::default();
        let Some(smallest) = smallest(trace.peak_live, completes)? else {
            figures.set("no_room", 1);
            return Ok(figures);
        };
        figures.set("bytes", smallest);
        figures.set("ratio", smallest as f64 / trace.peak_live as f64);
        if !asking.options.quick && !peer.is_slow {
            sweep(trace, smallest, completes, &mut figures)?;
        }
        asking.say("capacity", trace, peer, &figures, "ratio");
        if peer.has_device() {
            // What it takes to get by with so little.
            let there = asking.runner.replay(peer, &trace.watched(smallest))?;
            figures.0.extend(there.0.into_iter().filter(|(name, _)| name != "no_room"));
        }
        Ok(figures)
    })?;
    for ((trace, peer), figures) in asked.into_iter().zip(found) {
        answers.add("capacity", trace, peer, figures);
    }
    Ok(())
}

/// Tries larger devices. `robust_ratio` is that of the smallest from which on all complete.
fn sweep(
    trace: &Trace,
    smallest: u64,
    completes: impl Fn(u64) -> Result<bool, String>,
    figures: &mut Figures,
) -> Result<(), String> {
    let mut robust = Some(smallest);
    for step in 1..=STEPS_ABOVE {
        let larger = 1.0 + ABOVE * f64::from(step) / f64::from(STEPS_ABOVE);
        let memory = (smallest as f64 * larger) as u64 / PAGE * PAGE;
        if !completes(memory)? {
            figures.set("fails_at", format!("{larger:.4}"));
            robust = None;
        } else if robust.is_none() {
            robust = Some(memory);
        }
    }
    figures.set("robust", u8::from(robust == Some(smallest)));
    // Where the largest fails, no ratio is robust.
    if let Some(robust) = robust {
        figures.set("robust_ratio", robust as f64 / trace.peak_live as f64);
    }
    Ok(())
}

/// The smallest multiple of a page, to within [`STEP`] of the peak, that `completes`: up from the peak in steps that double, then
/// by halves.
fn smallest(peak: u64, completes: impl Fn(u64) -> Result<bool, String>) -> Result<Option<u64>, String> {
    let start = peak.next_multiple_of(PAGE);
    let step = ((peak as f64 * STEP) as u64 / PAGE * PAGE).max(PAGE);
    let (mut fails, mut works, mut stride) = (start - PAGE, start, step);
    while !completes(works)? {
        fails = works;
        works += stride;
        stride *= 2;
        if works > start.saturating_mul(MOST) {
            return Ok(None);
        }
    }
    while works - fails > step {
        let middle = (fails + (works - fails) / 2) / PAGE * PAGE;
        if completes(middle)? {
            works = middle;
        } else {
            fails = middle;
        }
    }
    Ok(Some(works))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_is_found_to_within_a_step() {
        const PEAK: u64 = 10 << 30;
        for needed in [PEAK, PEAK + PAGE, PEAK + (PEAK >> 5) + 12345, 3 * PEAK] {
            let found = smallest(PEAK, |memory| Ok(memory >= needed)).unwrap().unwrap();
            assert!(found >= needed && (found - needed) as f64 <= STEP * PEAK as f64, "{needed}: {found}");
        }
        assert_eq!(smallest(PEAK, |_| Ok(false)).unwrap(), None);
        assert!(smallest(PEAK, |_| Err("broken".to_string())).is_err());
    }

    #[test]
    fn a_failure_above_the_smallest_is_found() {
        let peak_live = 10 << 30;
        let trace =
            Trace { name: String::new(), file: "".into(), ops: "".into(), peak_live, calls: 0, records: 0, streams: 1 };
        let mut figures = Figures::default();
        sweep(&trace, peak_live, |memory| Ok(memory > peak_live / 10 * 12), &mut figures).unwrap();
        assert!(figures.number("robust_ratio").unwrap() > 1.2);
        assert!(figures.numbers("fails_at").count() > 20);
    }
}
