//! `replay --policy`: traces under PyTorch's policies, as `crates/models` has them, and under ours, side by side. What is compared is
//! memory and driver calls; time is not, since a model has none.

mod report;

use std::fs;
use std::io::Write;
use std::path::Path;

use stratalloc::driver::metered::CallKind;
use stratalloc::driver::soft::LatencyModel;
use stratalloc::error::Error;
use stratalloc::units::ByteSize;
use stratalloc_models::{Machine, Settings, replay_with};

use crate::engine::{Latency, Setup};
use crate::replay::once::once;
use crate::replay::{Options, second_half, seek};
use crate::trace::Trace;
use crate::{Failed, Finish};
pub use report::Row;

/// Whose policy a trace is replayed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// This allocator, on the software device.
    Stratalloc,
    /// PyTorch's caching allocator as it is by default: a model.
    Native,
    /// The same with `expandable_segments:True`.
    Expandable,
}

impl Policy {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Stratalloc => "stratalloc",
            Policy::Native => "native",
            Policy::Expandable => "expandable",
        }
    }
}

/// Replays all traces under all policies that are asked for, and prints what each needed.
pub(crate) fn run(options: &Options, setup: &Setup, traces: &[Trace], out: &mut impl Write) -> Result<Finish, Failed> {
    if options.checker || options.threads > 1 {
        return Err(Failed::from("--checker and --threads are for --policy stratalloc alone".to_owned()));
    }
    if options.gpu_bandwidth.is_some() || options.capacities.is_some() || options.for_passes > 1 {
        let what = "--gpu-bandwidth, --capacities and --for-passes are for --policy stratalloc alone";
        return Err(Failed::from(what.to_owned()));
    }
    let torch = match &options.torch_conf {
        Some(text) => text.parse::<Settings>().map_err(|error| Failed::from(format!("in --torch-conf: {error}")))?,
        None => Settings::default(),
    };
    let mut rows = Vec::new();
    for trace in traces {
        for &policy in &options.policy {
            rows.push(row(trace, policy, options, &options.for_trace(setup, trace), &torch)?);
        }
    }
    if options.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        let device = match options.pressure {
            Some(factor) => format!("{factor} times its peak of live bytes"),
            None => ByteSize(setup.capacity).to_string(),
        };
        report::for_people(&rows, options.min_capacity, &device, out)?;
    }
    Ok(if rows.iter().all(|row| row.fits) { Finish::Good } else { Finish::Bad })
}

fn row(trace: &Trace, policy: Policy, options: &Options, setup: &Setup, torch: &Settings) -> Result<Row, Failed> {
    let mut row = Row::new(trace, policy);
    if policy == Policy::Stratalloc {
        match once(trace, setup, options.skip_empty_cache) {
            Ok(seen) => {
                row.set_needed(seen.peak_reserved_bytes);
                let calls = &seen.spent.calls.0;
                row.set_calls(calls.iter().map(|(&name, call)| (name, call.count)).collect(), seen.spent.driver_ns);
                row.set_steady(seen.second_half.driver_ns, second_half(trace).1);
            }
            Err(stopped) if stopped.is_out_of_memory() => row.set_failure(trace, stopped.op, stopped.error.to_string()),
            Err(stopped) => return Err(stopped.error.into()),
        }
        if options.min_capacity {
            row.set_min_capacity(&seek(trace.peak_live_bytes, None, |capacity| {
                match once(trace, &Setup { capacity, ..setup.clone() }, options.skip_empty_cache) {
                    Ok(_) => Ok(true),
                    Err(stopped) if stopped.is_out_of_memory() => Ok(false),
                    Err(stopped) => Err(stopped.error),
                }
            })?);
        }
        return Ok(row);
    }

    let settings = Settings { expandable: policy == Policy::Expandable, ..torch.clone() };
    let machine = Machine {
        event_lag_ns: setup.event_lag_ns,
        skip_empty_cache: options.skip_empty_cache,
        since: second_half(trace).0,
        cost: cost(setup.latency),
        ..Machine::new(setup.capacity)
    };
    let mut changes = Changes::default();
    let outcome = replay_with(trace, &settings, &machine, |op, reserved| changes.note(op, reserved));
    if let Some(folder) = &options.changes {
        changes.write(folder, &trace.name, policy)?;
    }
    row.set_retries(outcome.retries);
    match outcome.out_of_memory {
        None => {
            row.set_needed(outcome.peak_reserved);
            row.set_calls(outcome.calls.by_name().filter(|call| call.1 > 0).collect(), outcome.driver_ns);
            row.set_steady(outcome.driver_ns_since, second_half(trace).1);
        }
        Some(oom) => row.set_failure(trace, Some(oom.op), report::words(&oom)),
    }
    if options.min_capacity {
        let fits = |capacity| replay_with(trace, &settings, &Machine { capacity, ..machine }, |_, _| {}).fits();
        row.set_min_capacity(&seek(trace.peak_live_bytes, None, |capacity| Ok::<_, Error>(fits(capacity)))?);
    }
    Ok(row)
}

/// What is held after each operation that changed it, as text.
#[derive(Default)]
struct Changes {
    lines: String,
    held: u64,
}

impl Changes {
    fn note(&mut self, op: usize, held: u64) {
        if held != self.held {
            self.held = held;
            self.lines += &format!("{op} {held}\n");
        }
    }

    fn write(&self, folder: &Path, trace: &str, policy: Policy) -> Result<(), Failed> {
        // A trace may be called anything.
        let file = format!("{}.{}.reserved", trace.replace(['/', '\0'], "_"), policy.name());
        let path = folder.join(file);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, &self.lines))
            .map_err(|error| Failed::from(format!("{}: cannot be written: {error}", path.display())))
    }
}

/// Bytes of the chunks that PyTorch maps; those of its small blocks are smaller, and mapped one by one.
const EXPANDABLE_CHUNK: u64 = 20 << 20;

/// What a driver call costs under a latency model, by its CUDA name.
fn cost(latency: Latency) -> fn(&'static str, u64) -> u64 {
    fn of(model: LatencyModel, name: &str, size: u64) -> u64 {
        let kind = CallKind::ALL.iter().find(|kind| kind.name() == name);
        kind.map_or(0, |&kind| model.call_ns(kind, size, false, size.div_ceil(EXPANDABLE_CHUNK)))
    }
    match latency {
        Latency::A100 => |name, size| of(LatencyModel::A100, name, size),
        Latency::H100 => |name, size| of(LatencyModel::H100, name, size),
        Latency::StudyA => |name, size| of(LatencyModel::StudyA, name, size),
        Latency::Off => |_, _| 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The models name calls as the software device does, so that each has its cost.
    #[test]
    fn every_call_of_the_models_has_a_cost() {
        for (name, _) in stratalloc_models::Calls::default().by_name() {
            assert!(cost(Latency::A100)(name, 2 << 20) > 0, "{name}");
            assert_eq!(cost(Latency::Off)(name, 2 << 20), 0);
        }
    }
}
