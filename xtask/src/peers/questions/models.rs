//! The models of PyTorch's policies (`crates/models`) beside PyTorch's own allocator: whether they hold as many bytes after every operation.

use std::fs;
use std::path::PathBuf;

use super::pressure::PRESSURE;
use super::{Answers, Asking, Peer, SPARE_MEMORY, Trace};
use crate::peers::roster::Family;
use crate::peers::runner::Figures;

/// On a device with memory to spare, and on one with little.
pub(in crate::peers) const DEVICES: [&str; 2] = ["spare", "tight"];

pub(super) fn ask(asking: &Asking<'_>, answers: &mut Answers) -> Result<(), String> {
    let pairs = asking.pairs(|_, peer| peer.family == Family::Torch);
    for device in DEVICES {
        let found = asking.runner.each(&pairs, |(trace, peer)| {
            let memory = if device == "spare" { SPARE_MEMORY } else { trace.part(PRESSURE) };
            let figures = compare(asking, trace, peer, memory)?;
            asking.say(&models_question(device), trace, peer, &figures, "same");
            Ok(figures)
        })?;
        for ((trace, peer), figures) in pairs.iter().zip(found) {
            answers.add(&models_question(device), trace, peer, figures);
        }
    }
    Ok(())
}

/// What the answers are filed under.
pub(in crate::peers) fn models_question(device: &str) -> String {
    format!("models {device}")
}

fn compare(asking: &Asking<'_>, trace: &Trace, peer: &Peer, memory: u64) -> Result<Figures, String> {
    let folder = asking.runner.folder(&format!("{}.{}.{memory}", trace.name, peer.name.replace([' ', ':'], "-")))?;
    let mut replay = trace.watched(memory);
    replay.dump = Some(folder.join("real"));
    let real = asking.runner.replay(peer, &replay)?;

    let is_expandable = peer.conf.contains("expandable");
    let policy = if is_expandable { "expandable" } else { "native" };
    let (capacity, changes) = (format!("{memory}B"), folder.join("model"));
    let changes_text = changes.display().to_string();
    let mut words = vec!["--policy", policy, "--repeat", "1", "--capacity", &capacity, "--changes", &changes_text];
    if !is_expandable && !peer.conf.is_empty() {
        words.extend(["--torch-conf", &peer.conf]);
    }
    let row = asking.runner.replayed(&words, "", &trace.file)?;

    let read =
        |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    let model = fs::read_dir(&changes).ok().and_then(|mut entries| entries.next()?.ok()).map(|entry| entry.path());
    let model = read(model.ok_or_else(|| format!("nothing was written to {}", changes.display()))?)?;
    let here = read(folder.join("real.reserved"))?;
    let mut figures = Figures::default();
    figures.set("changes", here.lines().count());
    let fits = row["fits"].as_bool() == Some(real.completed());
    figures.set("same", u8::from(here == model && fits));
    if let Some((line, (one, other))) =
        here.lines().zip(model.lines()).enumerate().find(|(_, (one, other))| one != other)
    {
        figures.set("differs_at", format!("change {line}: {one} really, {other} in the model"));
    }
    if real.completed() && fits {
        let calls_agree = row["driver_calls"].as_object().into_iter().flatten().all(|(name, count)| {
            let of = |name: String| real.number(&format!("calls.first.{name}"));
            of(name.clone()).or_else(|| of(format!("{name}_v2"))) == count.as_f64()
        });
        figures.set("same_calls", u8::from(calls_agree));
        figures.set("driver_ns.real", real.number("driver_ns.first").unwrap_or_default());
        figures.set("driver_ns.model", row["driver_time_us"].as_f64().unwrap_or_default() * 1e3);
    }
    // Megabytes each: only those that tell of a difference are kept.
    if here == model {
        let _ = fs::remove_dir_all(&folder);
    }
    Ok(figures)
}
