//! What is asked of each allocator on each trace.

mod capacity;
mod command;
mod models;
mod pressure;
mod spare;
mod time;

pub(super) use capacity::{STEP, STEPS_ABOVE};
pub(super) use models::{DEVICES, models_question};
pub(super) use pressure::{GPU_BYTES_PER_NS, LAGS_US, PRESSURE, lag_question};

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::options::Options;
use super::roster::{Family, Peer};
use super::runner::{Figures, Replay, Runner};
use super::setup::Place;

/// More than any peer takes: with memory to spare.
const SPARE_MEMORY: u64 = 256 << 30;

/// What the devices have that these programs were recorded on.
const USUAL_MEMORY: u64 = 80 << 30;

/// Physical memory comes in such pieces.
const PAGE: u64 = 2 << 20;

/// A recorded program.
#[derive(Clone)]
pub(super) struct Trace {
    pub(super) name: String,
    /// As it was recorded.
    pub(super) file: PathBuf,
    /// Decoded.
    pub(super) ops: PathBuf,
    /// The most requested bytes that are live at one time.
    pub(super) peak_live: u64,
    /// Calls of the allocator.
    pub(super) calls: u64,
    /// How often a block is recorded on a stream other than its own.
    pub(super) records: u64,
    pub(super) streams: u64,
}

impl Trace {
    /// Decodes the trace for the programs.
    pub(super) fn load(place: &Place, file: &Path) -> Result<Trace, String> {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
        let name = name.trim_end_matches(".zst").trim_end_matches(".trace").to_string();
        let ops = place.ops.join(&name);
        let output = Command::new(place.program(Family::Floor)).arg("decode").arg(file).arg(&ops).output();
        let output = output.map_err(|error| format!("cannot run peer-floor: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
        }
        let figures = Figures::parse(&String::from_utf8_lossy(&output.stdout));
        let number =
            |key: &str| figures.number(key).map(|value| value as u64).ok_or_else(|| format!("no {key} of {name}"));
        let (peak_live, calls) = (number("peak_live")?, number("calls")?);
        let (records, streams) = (number("records")?, number("streams")?);
        Ok(Trace { peak_live, calls, records, streams, ops, file: file.to_path_buf(), name })
    }

    /// A watched replay on a device with this memory.
    fn watched(&self, memory: u64) -> Replay {
        Replay { watch: true, ..self.plain(memory) }
    }

    /// A replay in real time.
    fn plain(&self, memory: u64) -> Replay {
        Replay {
            ops: self.ops.clone(),
            memory,
            watch: false,
            latency: true,
            event_lag_us: 0,
            op_ns: 0,
            kernel_bytes_per_ns: 0,
            passes: 1,
            threads: 1,
            each: false,
            dump: None,
        }
    }

    /// A part of the peak of live bytes, in whole pages, rounded as `stratalloc replay --pressure` does.
    fn part(&self, part: f64) -> u64 {
        ((self.peak_live as f64 * part).ceil() as u64).next_multiple_of(PAGE)
    }
}

/// Who is asked, about what, how.
pub(super) struct Asking<'a> {
    pub(super) runner: &'a Runner<'a>,
    pub(super) options: &'a Options,
    pub(super) traces: &'a [Trace],
    pub(super) peers: &'a [Peer],
    pub(super) since: Instant,
}

impl<'a> Asking<'a> {
    /// Says that something has been found out, and one figure of it.
    fn say(&self, question: &str, trace: &Trace, peer: &Peer, figures: &Figures, name: &str) {
        let seconds = self.since.elapsed().as_secs();
        let found = match figures.0.iter().find(|(found, _)| found == name) {
            _ if !figures.completed() => "no room".to_string(),
            Some((name, value)) => match value.parse::<f64>() {
                Ok(number) if number.fract() != 0.0 => format!("{name} {number:.4}"),
                _ => format!("{name} {value}"),
            },
            None => "done".to_string(),
        };
        eprintln!("  {:02}:{:02} {question}: {}, {}: {found}", seconds / 60, seconds % 60, trace.name, peer.name);
    }

    /// Each trace with each peer that is meant.
    fn pairs(&self, is_meant: impl Fn(&Trace, &Peer) -> bool) -> Vec<(&'a Trace, &'a Peer)> {
        let (traces, peers) = (self.traces, self.peers);
        let all = traces.iter().flat_map(|trace| peers.iter().map(move |peer| (trace, peer)));
        all.filter(|(trace, peer)| is_meant(trace, peer)).collect()
    }
}

/// One thing to find out.
pub(super) struct Question {
    pub(super) name: &'static str,
    /// Said when it begins.
    pub(super) what: &'static str,
    pub(super) ask: fn(&Asking<'_>, &mut Answers) -> Result<(), String>,
}

pub(super) const ALL: &[Question] = &[
    Question { name: "spare", what: "memory to spare: what is reserved, driver calls and time", ask: spare::ask },
    Question { name: "steady", what: "driver time of a step, on 80 GiB", ask: spare::ask_steady },
    Question { name: "models", what: "the models of PyTorch's policies beside PyTorch", ask: models::ask },
    Question { name: "pressure", what: "a tight device that lags its host", ask: pressure::ask_pressure },
    Question { name: "lag", what: "events that complete late", ask: pressure::ask_lag },
    Question { name: "plans", what: "what plans add", ask: command::ask_plans },
    Question { name: "mesh", what: "what sharing of memory gives", ask: command::ask_mesh },
    Question {
        name: "own",
        what: "this allocator's own time, on a device whose calls do nothing",
        ask: command::ask_own,
    },
    Question { name: "time", what: "time an operation", ask: time::ask_passes },
    Question { name: "latency", what: "time of single allocations", ask: time::ask_each },
    Question { name: "capacity", what: "the smallest device, and larger ones", ask: capacity::ask },
];

/// What came of a question, for one peer and trace.
pub(super) struct Answer {
    pub(super) question: String,
    pub(super) trace: String,
    pub(super) peer: String,
    pub(super) figures: Figures,
}

/// When a question was asked, and of what.
pub(super) struct Asked {
    pub(super) question: String,
    pub(super) versions: String,
    pub(super) seconds: u64,
}

/// All that was found out.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) all: Vec<Answer>,
    pub(super) asked: Vec<Asked>,
}

impl Answers {
    fn add(&mut self, question: &str, trace: &Trace, peer: &Peer, figures: Figures) {
        self.put(question, &trace.name, &peer.name, figures);
    }

    /// In the place of an earlier one, if there is one.
    pub(super) fn put(&mut self, question: &str, trace: &str, peer: &str, figures: Figures) {
        let is_it = |answer: &&mut Answer| answer.question == question && answer.trace == trace && answer.peer == peer;
        match self.all.iter_mut().find(is_it) {
            Some(answer) => answer.figures = figures,
            None => self.all.push(Answer {
                question: question.to_string(),
                trace: trace.to_string(),
                peer: peer.to_string(),
                figures,
            }),
        }
    }

    /// A question was asked to its end.
    pub(super) fn end(&mut self, question: &str, versions: &str, seconds: u64) {
        self.asked.retain(|asked| asked.question != question);
        let (question, versions) = (question.to_string(), versions.to_string());
        self.asked.push(Asked { question, versions, seconds });
    }

    pub(super) fn has(&self, question: &str) -> bool {
        self.asked.iter().any(|asked| asked.question == question)
    }

    pub(super) fn of(&self, question: &str, trace: &str, peer: &str) -> Option<&Figures> {
        let is_it = |answer: &&Answer| answer.question == question && answer.trace == trace && answer.peer == peer;
        self.all.iter().find(is_it).map(|answer| &answer.figures)
    }

    /// One number of a replay that completed.
    pub(super) fn number(&self, question: &str, trace: &str, peer: &str, name: &str) -> Option<f64> {
        self.of(question, trace, peer).filter(|figures| figures.completed())?.number(name)
    }
}
