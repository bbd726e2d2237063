//! With memory to spare: what is reserved at most, which driver calls are made and what they would cost.

use std::fs;
use std::path::Path;

use super::{Answers, Asking, SPARE_MEMORY, USUAL_MEMORY};
use crate::peers::roster::Family;

/// The part of the peak that a device has for the second dump.
const TIGHT: f64 = 1.02;

/// Two passes: a program that has been through all it does once shows what it does for ever after.
const PASSES: usize = 2;

pub(super) fn ask(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let asked = asking.pairs(|_, peer| peer.has_device() && !peer.is_told);
    let found = asking.runner.each(&asked, |(trace, peer)| {
        let mut replay = trace.watched(SPARE_MEMORY);
        replay.passes = PASSES;
        let mut figures = asking.runner.replay(peer, &replay)?;
        if peer.family == Family::Stratalloc && figures.completed() {
            let capacity = format!("{SPARE_MEMORY}B");
            let words = ["--repeat", "1", "--capacity", &capacity];
            let row = asking.runner.replayed(&words, &peer.conf, &trace.file)?;
            figures.set("replay_reserved", row["peak_reserved_bytes"].as_u64().unwrap_or_default());
        }
        asking.say("spare", trace, peer, &figures, "peak_reserved");
        Ok(figures)
    })?;
    for ((trace, peer), figures) in asked.into_iter().zip(found) {
        answers.add("spare", trace, peer, figures);
    }
    if let Some(folder) = &asking.options.dump {
        fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        dump(asking, folder)?;
    }
    Ok(())
}

/// The same on the device that most programs have, which is no more than most of them need: what a step costs there.
pub(super) fn ask_steady(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let asked = asking.pairs(|_, peer| peer.has_device() && peer.is_tight() && !peer.is_told);
    let found = asking.runner.each(&asked, |(trace, peer)| {
        let mut replay = trace.watched(USUAL_MEMORY);
        replay.passes = PASSES;
        let figures = asking.runner.replay(peer, &replay)?;
        asking.say("steady", trace, peer, &figures, "driver_ns.steady");
        Ok(figures)
    })?;
    for ((trace, peer), figures) in asked.into_iter().zip(found) {
        answers.add("steady", trace, peer, figures);
    }
    Ok(())
}

/// Writes every change of reserved memory down, on a large device and on one that is tight.
fn dump(asking: &Asking<'_>, folder: &Path) -> Result<(), String> {
    let asked = asking.pairs(|_, peer| peer.has_device() && !peer.is_slow);
    asking.runner.each(&asked, |(trace, peer)| {
        for (name, memory) in [("unlimited", SPARE_MEMORY), ("tight", trace.part(TIGHT))] {
            let file = format!("{}.{}.{name}", trace.name, peer.name.replace([' ', ':'], "-"));
            let mut replay = trace.watched(memory);
            replay.dump = Some(folder.join(file));
            asking.runner.replay(peer, &replay)?;
        }
        Ok(())
    })?;
    Ok(())
}
