//! One replay: a process of its own, and the figures that it prints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use super::roster::{Family, Peer};
use super::setup::Place;

/// A replay that takes longer hangs.
const SECONDS_MAX: u32 = 900;

/// The program's exit status where the allocator had no room.
const NO_ROOM: i32 = 3;

/// What is replayed and how: `benches/peers/harness/harness.h` has the same options.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    /// The trace, decoded.
    pub(super) ops: PathBuf,
    /// The device's memory.
    pub(super) memory: u64,
    /// Whether calls and memory are watched, in virtual time; if not, real time is taken.
    pub(super) watch: bool,
    /// Whether calls take virtual time.
    pub(super) latency: bool,
    /// How late events are seen to complete, in microseconds of virtual time.
    pub(super) event_lag_us: u64,
    /// What an operation takes of the host's virtual time.
    pub(super) op_ns: u64,
    /// A kernel over each block that is allocated or recorded: how many bytes it does in a nanosecond; 0 is no kernels.
    pub(super) kernel_bytes_per_ns: u64,
    pub(super) passes: usize,
    pub(super) threads: usize,
    /// Whether each allocation is timed on its own.
    pub(super) each: bool,
    pub(super) dump: Option<PathBuf>,
}

/// What a replay printed: names and numbers, names more than once where there are several.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures(pub(super) Vec<(String, String)>);

impl Figures {
    pub(super) fn parse(text: &str) -> Figures {
        let pair = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_string(), value.to_string()));
        Figures(text.lines().filter_map(pair).collect())
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.numbers(name).next()
    }

    pub(super) fn numbers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = f64> + 'a {
        self.0.iter().filter(move |(found, _)| found == name).filter_map(|(_, value)| value.parse().ok())
    }

    pub(super) fn set(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_string(), value.to_string()));
    }

    /// Whether the trace ran to its end.
    pub(super) fn completed(&self) -> bool {
        self.number("no_room").is_none()
    }
}

/// Runs replays.
pub(super) struct Runner<'a> {
    place: &'a Place,
    jobs: usize,
}

impl<'a> Runner<'a> {
    pub(super) fn new(place: &'a Place, jobs: usize) -> Runner<'a> {
        Runner { place, jobs }
    }

    /// Replays. An error is a fault of somebody's; that there was no room is none.
    pub(super) fn replay(&self, peer: &Peer, replay: &Replay) -> Result<Figures, String> {
        let mut command = Command::new("timeout");
        command.arg(SECONDS_MAX.to_string()).arg(self.place.program(peer.family)).arg("--trace").arg(&replay.ops);
        command.args(["--setting", &peer.setting, "--passes", &replay.passes.to_string()]);
        command.args(["--threads", &replay.threads.to_string()]);
        for (name, given) in [("--watch", replay.watch), ("--each", replay.each)] {
            if given {
                command.arg(name);
            }
        }
        if replay.op_ns > 0 {
            command.args(["--op-ns", &replay.op_ns.to_string()]);
        }
        if replay.kernel_bytes_per_ns > 0 {
            command.args(["--kernel-bytes-per-ns", &replay.kernel_bytes_per_ns.to_string()]);
        }
        if let Some(dump) = &replay.dump {
            command.arg("--dump").arg(dump);
        }
        self.environment(peer, replay, &mut command);
        let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
        let mut figures = Figures::parse(&String::from_utf8_lossy(&output.stdout));
        match output.status.code() {
            Some(0) => Ok(figures),
            Some(NO_ROOM) => {
                if figures.completed() {
                    figures.set("no_room", 1);
                }
                Ok(figures)
            }
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last: Vec<&str> = said.lines().rev().take(12).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                Err(format!("{} on {}: {}\n{}", peer.name, replay.ops.display(), output.status, last.join("\n")))
            }
        }
    }

    /// What the command `stratalloc` prints for a trace.
    pub(super) fn command<'w>(
        &self,
        words: impl IntoIterator<Item = &'w str>,
        config: &str,
        trace: &Path,
    ) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.arg(SECONDS_MAX.to_string()).arg(&self.place.stratalloc).args(words).arg(trace);
        command.env("STRATALLOC_CONF", config);
        let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
        // 1 is a trace that did not complete, of which the output tells.
        match output.status.code() {
            Some(0 | 1) if !output.stdout.is_empty() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            _ => Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// What `stratalloc replay --json` says of a trace.
    pub(super) fn replayed(&self, words: &[&str], config: &str, trace: &Path) -> Result<Value, String> {
        let words = ["replay", "--json"].into_iter().chain(words.iter().copied());
        let text = self.command(words, config, trace)?;
        let rows: Value = serde_json::from_str(&text).map_err(|error| format!("stratalloc replay --json: {error}"))?;
        rows.get(0).cloned().ok_or_else(|| "stratalloc replay --json printed no row".to_string())
    }

    fn environment(&self, peer: &Peer, replay: &Replay, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["SOFTCUDA_", "PYTORCH_", "STRATALLOC_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name.as_ref());
            }
        }
        if let Ok(folders) = std::env::join_paths(&self.place.libraries) {
            command.env("LD_LIBRARY_PATH", folders);
        }
        command.env("SOFTCUDA_BACKING", "none").env("SOFTCUDA_MEMORY", replay.memory.to_string());
        if replay.watch {
            command
                .env("SOFTCUDA_CLOCK", "virtual")
                .env("SOFTCUDA_LATENCY", if replay.latency { "a100" } else { "off" });
            command.env("SOFTCUDA_EVENT_LAG_US", replay.event_lag_us.to_string());
        }
        let variable = match peer.family {
            Family::Stratalloc => "STRATALLOC_CONF",
            Family::Torch => "PYTORCH_ALLOC_CONF",
            Family::Rmm | Family::Floor => return,
        };
        if !peer.conf.is_empty() {
            command.env(variable, &peer.conf);
        }
    }

    /// A folder for what programs leave.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.place.ops.with_file_name("left").join(name);
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        Ok(folder)
    }

    /// Does something with each item, several at a time, and gives what came of it in order. The first error, if there is one.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<R, String> + Sync,
    ) -> Result<Vec<R>, String> {
        let next = &AtomicUsize::new(0);
        let work = &work;
        let mut done: Vec<(usize, Result<R, String>)> = thread::scope(|scope| {
            let worker = move || {
                let mut done = Vec::new();
                while let Some((index, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|index| Some((index, items.get(index)?)))
                {
                    let outcome = work(item);
                    if outcome.is_err() {
                        // The others stop after what they are at.
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    done.push((index, outcome));
                }
                done
            };
            let threads: Vec<_> = (0..self.jobs.min(items.len())).map(|_| scope.spawn(worker)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Vec<(usize, Result<R, String>)>>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().flat_map(join).collect()
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_names_and_numbers() {
        let figures = Figures::parse("pass_ns 12.5\npass_ns 10\nno_room 1\nhash 00ff\n");
        assert_eq!(figures.numbers("pass_ns").collect::<Vec<_>>(), [12.5, 10.0]);
        assert!(!figures.completed() && figures.number("absent").is_none() && figures.0.len() == 4);
    }

    #[test]
    fn work_is_done_in_any_order_and_given_in_the_items() {
        let place =
            Place { bin: PathBuf::new(), stratalloc: PathBuf::new(), ops: PathBuf::new(), libraries: Vec::new() };
        let runner = Runner::new(&place, 3);
        let items: Vec<u64> = (0..100).collect();
        assert_eq!(runner.each(&items, |item| Ok(item * 2)).unwrap()[99], 198);
        let fails = |item: &u64| if *item == 7 { Err("seven".to_string()) } else { Ok(()) };
        assert_eq!(runner.each(&items, fails).unwrap_err(), "seven");
    }
}
