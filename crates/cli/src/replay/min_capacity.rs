//! The smallest device on which a trace completes, and whether it completes on every larger one as well.
//!
//! Whether a trace completes need not be monotone in the capacity: a little more memory may lead to other decisions, and those to
//! failure. What is found is an edge: the trace completes there, and not a step below. It is sought upwards from the peak of
//! live bytes, so every smaller capacity that was tried fails, but others between them may not. The capacities above that are
//! tried then say how far the edge can be trusted.

use stratalloc::error::Error;
use stratalloc::units::PAGE;

use super::follow::{Failure, Manner};
use super::passes::{Plan, measure_once};
use crate::engine::Setup;
use crate::trace::Trace;

/// How finely the smallest capacity is sought, as a part of the peak of live bytes.
const STEP: f64 = 0.0005;

/// Percent above the smallest capacity that are tried where nobody asks for more.
const ABOVE: [u32; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 25, 30];

/// The most that is tried above the smallest capacity, as a part of it.
const MOST_ABOVE: f64 = 0.3;

/// A trace that needs more than so many times its peak of live bytes, plus [`ALLOWANCE`], is given up.
const MOST: u64 = 8;

/// What a tiny trace may need above all reason, since memory comes in large pieces.
const ALLOWANCE: u64 = 1 << 30;

/// The smallest capacity of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct MinCapacity {
    /// Below this by a step, the trace runs out of memory.
    pub bytes: u64,
    /// That, over the peak of live bytes.
    pub ratio: f64,
    /// The smallest capacity tried from which on every larger one tried completes, over the peak of live bytes.
    pub robust_ratio: f64,
    /// How many capacities above the smallest were tried.
    pub tried_above: usize,
    /// Those on which the trace fails all the same, as multiples of the smallest.
    pub fails_above: Vec<f64>,
}

/// Capacities above the smallest, ascending: `count` of them, evenly up to [`MOST_ABOVE`], or the usual ones. Fewer where the
/// device is so small that some are the same.
fn above(smallest: u64, count: Option<u32>) -> Vec<u64> {
    let parts: Vec<f64> = match count {
        None => ABOVE.iter().map(|&percent| f64::from(percent) / 100.0).collect(),
        Some(count) => (1..=count).map(|n| MOST_ABOVE * f64::from(n) / f64::from(count)).collect(),
    };
    let pages = |part: &f64| (smallest as f64 * (1.0 + part)) as u64 / PAGE * PAGE;
    let mut capacities: Vec<u64> = parts.iter().map(pages).filter(|&capacity| capacity > smallest).collect();
    capacities.dedup();
    capacities
}

/// Seeks the smallest capacity of a trace: all passes of the plan on a fresh device each time.
pub(super) fn find(
    trace: &Trace,
    setup: &Setup,
    plan: &Plan,
    count: Option<u32>,
    say: &dyn Fn(String),
) -> Result<MinCapacity, Failure> {
    let manner = if plan.manner == Manner::Checked { Manner::Plain } else { plan.manner };
    let plan = Plan { threads: 1, manner, ..plan.clone() };
    let peak = trace.peak_live_bytes.max(1);
    seek(trace.peak_live_bytes, count, |capacity| {
        say(format!("on {:.4} times the peak of live bytes", capacity as f64 / peak as f64));
        let setup = Setup { capacity, checker: false, ..setup.clone() };
        match measure_once(trace, &setup, &plan) {
            Ok(_) => Ok(true),
            Err(Failure { error: Error::OutOfMemory(_) | Error::NeverFits { .. }, .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    })
}

/// Seeks the smallest capacity on which something `completes` whose peak of live bytes is `peak`, and tries `count` or the usual
/// number above it.
pub(crate) fn seek<E: From<Error>>(
    peak: u64,
    count: Option<u32>,
    mut completes: impl FnMut(u64) -> Result<bool, E>,
) -> Result<MinCapacity, E> {
    let peak = peak.max(1);
    let bytes = smallest(peak, &mut completes)?;
    let mut robust = bytes;
    let mut fails_above = Vec::new();
    let larger = above(bytes, count);
    for &capacity in &larger {
        if !completes(capacity)? {
            fails_above.push(capacity as f64 / bytes as f64);
            robust = 0;
        } else if robust == 0 {
            robust = capacity;
        }
    }
    let ratio = |capacity: u64| capacity as f64 / peak as f64;
    // All of them fail from some point on: the largest tried is a lower bound.
    let robust_ratio = if robust == 0 { f64::INFINITY } else { ratio(robust) };
    Ok(MinCapacity { bytes, ratio: ratio(bytes), robust_ratio, tried_above: larger.len(), fails_above })
}

/// The smallest multiple of a page, to within [`STEP`], that `completes`. Goes up from the peak in steps that double, then bisects.
pub(crate) fn smallest<E: From<Error>>(peak: u64, mut completes: impl FnMut(u64) -> Result<bool, E>) -> Result<u64, E> {
    let start = peak.next_multiple_of(PAGE);
    let step = ((peak as f64 * STEP) as u64 / PAGE * PAGE).max(PAGE);
    let most = start.saturating_mul(MOST).saturating_add(ALLOWANCE);
    let (mut fails, mut works) = (start - PAGE, start);
    let mut stride = step;
    while !completes(works)? {
        fails = works;
        works += stride;
        stride *= 2;
        if works > most {
            // Not even there: say so with the error of one last try.
            return completes(most).and_then(|done| if done { Ok(most) } else { Err(E::from(gives_up(most))) });
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
    Ok(works)
}

fn gives_up(capacity: u64) -> Error {
    Error::NeverFits { size: capacity, capacity, limit: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_is_found_to_within_a_step() {
        const PEAK: u64 = 10 << 30;
        for needed in [PEAK, PEAK + PAGE, PEAK + (PEAK >> 5) + 12345, 3 * PEAK] {
            let found = smallest(PEAK, |capacity| Ok::<_, Error>(capacity >= needed)).unwrap();
            assert!(found >= needed && (found - needed) as f64 <= STEP * PEAK as f64, "{needed}: {found}");
            assert_eq!(found % PAGE, 0);
        }
    }

    #[test]
    fn an_edge_is_found_where_completion_has_gaps() {
        const PEAK: u64 = 10 << 30;
        // It works from 1.05 on, in a gap from 1.01 to 1.02 it works too, and it may be found or not.
        let works = |capacity: u64| {
            let ratio = capacity as f64 / PEAK as f64;
            (1.01..1.02).contains(&ratio) || ratio >= 1.05
        };
        let found = smallest(PEAK, |capacity| Ok::<_, Error>(works(capacity))).unwrap();
        let step = (PEAK as f64 * STEP) as u64;
        assert!(works(found) && !works(found - step), "{found}");
    }

    #[test]
    fn capacities_above_are_even_and_end_at_thirty_percent() {
        let (smallest, page) = (100 * PAGE * 100, PAGE as f64);
        let forty = above(smallest, Some(40));
        assert_eq!((forty.len(), forty[0], forty[39]), (40, smallest / 10_000 * 10_075, smallest / 10 * 13));
        assert!(forty.windows(2).all(|pair| (pair[1] as f64 - pair[0] as f64 - 75.0 * page).abs() <= page));
        assert_eq!(above(smallest, None).len(), 16);
        assert!(above(2 * PAGE, Some(40)).is_empty(), "a third of two pages is less than a page");
    }

    #[test]
    fn it_gives_up_in_the_end() {
        assert!(smallest(1, |_| Ok::<_, Error>(false)).is_err());
    }
}
