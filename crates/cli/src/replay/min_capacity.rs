//! The smallest device on which a trace completes, and whether it completes on every larger one as well.

use stratalloc::error::Error;
use stratalloc::units::PAGE;

use super::follow::{Failure, Manner};
use super::passes::{Plan, measure_once};
use crate::engine::Setup;
use crate::trace::Trace;

/// How finely the smallest capacity is sought, as a part of the peak of live bytes.
const STEP: f64 = 0.002;

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
    /// Capacities tried above the smallest on which the trace fails all the same, as multiples of the smallest.
    pub fails_above: Vec<f64>,
}

/// Seeks the smallest capacity: one pass on a fresh device each time.
pub(super) fn find(trace: &Trace, setup: &Setup, plan: &Plan, say: &dyn Fn(String)) -> Result<MinCapacity, Failure> {
    let manner = if plan.manner == Manner::Checked { Manner::Plain } else { plan.manner };
    let plan = Plan { threads: 1, passes: 1, manner, ..plan.clone() };
    let peak = trace.peak_live_bytes.max(1);
    seek(trace.peak_live_bytes, |capacity| {
        say(format!("on {:.4} times the peak of live bytes", capacity as f64 / peak as f64));
        let setup = Setup { capacity, checker: false, ..setup.clone() };
        match measure_once(trace, &setup, &plan) {
            Ok(_) => Ok(true),
            Err(Failure { error: Error::OutOfMemory(_) | Error::NeverFits { .. }, .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    })
}

/// Seeks the smallest capacity on which something `completes` whose peak of live bytes is `peak`.
pub(crate) fn seek<E: From<Error>>(
    peak: u64,
    mut completes: impl FnMut(u64) -> Result<bool, E>,
) -> Result<MinCapacity, E> {
    let peak = peak.max(1);
    let bytes = smallest(peak, &mut completes)?;
    let mut robust = bytes;
    let mut fails_above = Vec::new();
    for percent in (1..=12).chain([15, 20, 25, 30]) {
        let larger = 1.0 + f64::from(percent) / 100.0;
        let capacity = (bytes as f64 * larger) as u64 / PAGE * PAGE;
        if !completes(capacity)? {
            fails_above.push(larger);
            robust = 0;
        } else if robust == 0 {
            robust = capacity;
        }
    }
    let ratio = |capacity: u64| capacity as f64 / peak as f64;
    // All of them fail from some point on: the largest tried is a lower bound.
    let robust_ratio = if robust == 0 { f64::INFINITY } else { ratio(robust) };
    Ok(MinCapacity { bytes, ratio: ratio(bytes), robust_ratio, fails_above })
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
    fn it_gives_up_in_the_end() {
        assert!(smallest(1, |_| Ok::<_, Error>(false)).is_err());
    }
}
