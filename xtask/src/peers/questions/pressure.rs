//! A device that lags its host: how long the host is held up where memory is tight, and what is reserved where events complete late.

use super::{Answers, Asking, SPARE_MEMORY};
use crate::peers::roster::{Family, Reach};

/// The device's memory, as a part of the peak of live bytes.
pub(in crate::peers) const PRESSURE: f64 = 1.02;

/// A kernel goes over each block that is allocated or recorded, at so many bytes in a nanosecond: 2 TB/s.
pub(in crate::peers) const GPU_BYTES_PER_NS: u64 = 2000;

/// What an operation takes of the host's time: about what it takes PyTorch.
const OP_NS: u64 = 300;

/// How late events are seen to complete.
pub(in crate::peers) const LAGS_US: [u64; 3] = [0, 100, 1000];

pub(super) fn ask_pressure(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let asked = asking.pairs(|_, peer| peer.has_device() && !peer.is_slow && peer.reach != Reach::Curve);
    let found = asking.runner.each(&asked, |(trace, peer)| {
        let mut replay = trace.watched(trace.part(PRESSURE));
        replay.op_ns = OP_NS;
        replay.kernel_bytes_per_ns = GPU_BYTES_PER_NS;
        let mut figures = asking.runner.replay(peer, &replay)?;
        if peer.family == Family::Stratalloc && figures.completed() {
            let pressure = PRESSURE.to_string();
            let words = ["--repeat", "1", "--pressure", &pressure, "--gpu-bandwidth", "2TB/s"];
            let row = asking.runner.replayed(&words, &peer.conf, &trace.file)?;
            if let Some(us) = row["stall_us"].as_f64() {
                figures.set("replay_stall_ns", (us * 1e3).round());
            }
        }
        asking.say("pressure", trace, peer, &figures, "stall_ns");
        Ok(figures)
    })?;
    for ((trace, peer), figures) in asked.into_iter().zip(found) {
        answers.add("pressure", trace, peer, figures);
    }
    Ok(())
}

pub(super) fn ask_lag(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    // Without recorded streams, nobody looks at events.
    let asked = asking
        .pairs(|trace, peer| trace.records > 0 && peer.has_device() && !peer.is_told && peer.reach != Reach::Curve);
    for lag in LAGS_US {
        // Once nothing but the host's own work moves the clock, or a peer that calls the driver often would wait less; and once as it
        // would be, with calls that take time.
        for latency in [false, true] {
            let found = asking.runner.each(&asked, |(trace, peer)| {
                let mut replay = trace.watched(SPARE_MEMORY);
                replay.op_ns = OP_NS;
                replay.event_lag_us = lag;
                replay.latency = latency;
                let figures = asking.runner.replay(peer, &replay)?;
                asking.say(&lag_question(lag, latency), trace, peer, &figures, "peak_reserved");
                Ok(figures)
            })?;
            for ((trace, peer), figures) in asked.iter().zip(found) {
                answers.add(&lag_question(lag, latency), trace, peer, figures);
            }
        }
    }
    Ok(())
}

/// What the answers are filed under.
pub(in crate::peers) fn lag_question(lag_us: u64, latency: bool) -> String {
    format!("lag {lag_us}{}", if latency { " a100" } else { "" })
}
