//! `stratalloc tune`: the settings that suit a trace, found by replaying it on the software device.

mod knobs;
mod search;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use stratalloc::config::Config;
use stratalloc::error::Error;
use stratalloc::units::ByteSize;

use crate::engine::{CONF_VARIABLE, Latency, Setup, configuration};
use crate::replay::once::{Stopped, once};
use crate::replay::smallest;
use crate::table::{Table, digits};
use crate::trace::Trace;
use crate::{Failed, Finish, import};
use knobs::{Knob, knobs};
use search::{Goal, Score, Tried, search, too_dear};

/// What `tune` is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Traces, PyTorch snapshots or RMM logs; of several, the settings that suit all of them best
    #[arg(required = true, value_name = "TRACE")]
    pub traces: Vec<PathBuf>,

    /// What is sought
    #[arg(long = "for", value_name = "WHAT", default_value = "memory")]
    pub sought: Sought,

    /// How many times as much of what is not sought may be spent as by the settings that are there: driver time, or with `--for speed` memory
    /// [default: 1.5; 1.1 for memory]
    #[arg(long, value_name = "TIMES")]
    pub slack: Option<f64>,

    /// Memory of the device
    #[arg(long, value_name = "SIZE", default_value = "80GiB")]
    pub capacity: ByteSize,

    /// What the device's driver calls cost, in virtual time
    #[arg(long, value_name = "MODEL", default_value = "a100")]
    pub latency: Latency,

    /// How long after its work is done an event is seen to complete, in microseconds of virtual time
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub event_lag_us: u64,

    /// Leave out the trace's empty_cache calls
    #[arg(long)]
    pub skip_empty_cache: bool,

    /// The settings to start from, key:value,key:value [default: STRATALLOC_CONF]
    #[arg(long, value_name = "SETTINGS")]
    pub config: Option<String>,

    /// Print JSON: what was tried, and the line to set
    #[arg(long)]
    pub json: bool,
}

/// What the settings are to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sought {
    /// Little memory held, with memory to spare.
    Memory,
    /// A small device on which everything completes. Takes some ten times as long.
    Capacity,
    /// Little time in the driver, as the latency model has it.
    Speed,
}

impl Sought {
    fn goal(self) -> Goal {
        if self == Sought::Speed { Goal::Speed } else { Goal::Memory }
    }
}

/// One configuration, for JSON.
#[derive(Debug, Serialize)]
struct Row<'a> {
    settings: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver_time_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Searches, and prints what was tried and the line to set.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    let slack = options.slack.unwrap_or(if options.sought == Sought::Speed { 1.1 } else { 1.5 });
    if !(1.0..=1e6).contains(&slack) {
        return Err(Failed::from(format!("--slack {slack}: a number from 1 to 1000000 is wanted")));
    }
    let base = configuration(options.config.as_deref())?;
    let traces = import::load_all(&options.traces)?;
    let setup = Setup {
        capacity: options.capacity.0,
        latency: options.latency,
        event_lag_ns: options.event_lag_us * 1000,
        config: base.clone(),
        ..Setup::default()
    };
    let streams = traces.iter().map(|trace| trace.streams).max().unwrap_or(1);
    let all_knobs: Vec<Knob> = knobs(streams).collect();
    let in_force = Config::parse(&base)?;
    let is_base = |knob: Knob, value: &str| {
        Config::parse(&with(&base, &format!("{}:{value}", knob.key))).as_ref() == Ok(&in_force)
    };
    let mut failures: Vec<(String, String)> = Vec::new();
    let score = |tried: &Tried| -> Result<Option<Score>, Error> {
        let setup = Setup { config: with(&base, &tried.text()), ..setup.clone() };
        score_of(&traces, &setup, options).or_else(|stopped| {
            if !stopped.is_out_of_memory() {
                return Err(stopped.error);
            }
            failures.push((tried.text(), stopped.error.to_string()));
            Ok(None)
        })
    };
    let (all, best) = search(&all_knobs, options.sought.goal(), slack, is_base, score)?;
    let text = with(&base, &all[best].text());
    if options.json {
        let rows: Vec<Row<'_>> = all
            .iter()
            .map(|tried| Row {
                settings: with(&base, &tried.text()),
                memory_ratio: tried.score.map(|score| score.memory),
                driver_time_us: tried.score.map(|score| score.driver_ns / 1e3),
                error: failures.iter().find(|failure| failure.0 == tried.text()).map(|failure| failure.1.as_str()),
            })
            .collect();
        let report = serde_json::json!({ "tried": rows, "best": text, "changed": best != 0 });
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        for_people(&all, best, &base, options, out)?;
    }
    match (all[best].score, failures.into_iter().next()) {
        (None, Some((_, error))) => {
            Err(Failed::from(format!("no settings make everything fit on {}: {error}", options.capacity)))
        }
        _ => Ok(Finish::Good),
    }
}

/// Settings behind others: of a key that is set twice, the last counts, so the earlier one is left out.
fn with(base: &str, settings: &str) -> String {
    let key = |setting: &str| setting.split(':').next().unwrap_or_default().trim().to_owned();
    let added: Vec<String> = settings.split(',').map(key).collect();
    let kept = base.split(',').map(str::trim).filter(|setting| !setting.is_empty() && !added.contains(&key(setting)));
    kept.chain(settings.split(',').filter(|setting| !setting.is_empty())).collect::<Vec<_>>().join(",")
}

/// Replays all traces under one configuration.
fn score_of(traces: &[Trace], setup: &Setup, options: &Options) -> Result<Option<Score>, Stopped> {
    let mut score = Score { memory: 0.0, driver_ns: 0.0 };
    for trace in traces {
        let seen = once(trace, setup, options.skip_empty_cache)?;
        let needed = if options.sought == Sought::Capacity {
            smallest(trace.peak_live_bytes.max(1), |capacity| {
                match once(trace, &Setup { capacity, ..setup.clone() }, options.skip_empty_cache) {
                    Ok(_) => Ok(true),
                    Err(stopped) if stopped.is_out_of_memory() => Ok(false),
                    Err(stopped) => Err(stopped),
                }
            })?
        } else {
            seen.peak_reserved_bytes
        };
        score.memory += needed as f64 / trace.peak_live_bytes.max(1) as f64 / traces.len() as f64;
        score.driver_ns += (seen.spent.driver_ns + seen.spent.stall_ns) as f64;
    }
    Ok(Some(score))
}

fn for_people(all: &[Tried], best: usize, base: &str, options: &Options, out: &mut impl Write) -> Result<(), Failed> {
    let memory = if options.sought == Sought::Capacity { "min capacity / live" } else { "reserved / live" };
    let mut table = Table::new(&["settings", memory, "driver ms", ""]);
    let start = if base.is_empty() { "the default".to_owned() } else { base.to_owned() };
    for (index, tried) in all.iter().enumerate() {
        let name = if index == 0 { start.clone() } else { tried.text() };
        match tried.score {
            Some(score) => table.row(vec![
                name,
                format!("{:.4}", score.memory),
                digits(score.driver_ns / 1e6),
                if index == best { "best".to_owned() } else { String::new() },
            ]),
            None => table.row(vec![name, "does not fit".to_owned()]),
        }
    }
    writeln!(out, "{table}")?;
    let (Some(first), Some(found)) = (all[0].score, all[best].score) else {
        if all[best].score.is_some() {
            writeln!(out, "Only with this does everything fit on {}:\n", options.capacity)?;
            writeln!(out, "export {CONF_VARIABLE}={}", with(base, &all[best].text()))?;
        }
        return Ok(());
    };
    if let Some((dear, times)) = too_dear(all, best, options.sought.goal()) {
        let (sought, other) =
            if options.sought == Sought::Speed { ("faster", "memory") } else { ("smaller", "driver time") };
        writeln!(out, "{} is {sought} and takes {times:.1} times the {other}: --slack allows it.", dear.text())?;
    }
    if best == 0 {
        writeln!(
            out,
            "{} of {} is best: nothing to set.",
            if base.is_empty() { "The default" } else { base },
            all.len()
        )?;
        return Ok(());
    }
    let change = |new: f64, old: f64| (new / old - 1.0) * 100.0;
    writeln!(
        out,
        "Best of {}: {memory} {:.4} instead of {:.4} ({:+.2} %), driver time {} ms instead of {} ms.\n",
        all.len(),
        found.memory,
        first.memory,
        change(found.memory, first.memory),
        digits(found.driver_ns / 1e6),
        digits(first.driver_ns / 1e6),
    )?;
    writeln!(out, "export {CONF_VARIABLE}={}", with(base, &all[best].text()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_behind_others_and_replace_them() {
        assert_eq!(with("", ""), "");
        assert_eq!(with("chunk:2MiB, limit:0.5", "chunk:4MiB"), "limit:0.5,chunk:4MiB");
        assert_eq!(with("limit:0.5", ""), "limit:0.5");
        assert_eq!(with("", "chunk:4MiB,magazine:0"), "chunk:4MiB,magazine:0");
    }
}
