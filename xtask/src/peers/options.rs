//! The command line of `cargo xtask peers`.

use std::fs;
use std::path::{Path, PathBuf};

use super::questions;
use crate::softcuda;

/// Settings of this allocator that lie on the curve of memory against driver time, unless others are given.
const SETTINGS: &str = "thrifty:true;cross_stream_wait:true;chunk_max:8MiB;chunk_max:32MiB;chunk:8MiB";

/// Of these, those that are asked more than what they reserve and what that costs: (setting, whether about all that memory is, or
/// about waiting for other streams only).
pub(super) const ASKED_MORE: [(&str, bool); 2] = [("thrifty:true", true), ("cross_stream_wait:true", false)];

/// What is measured.
pub(crate) struct Options {
    /// Fewer settings of the peers, no sweep over capacities, fewer rounds.
    pub(super) quick: bool,
    /// Files, or folders with them; none is those of the repository.
    traces: Vec<PathBuf>,
    /// Questions to ask; none is all.
    only: Vec<String>,
    /// Peers to ask; none is all.
    pub(super) peers: Vec<String>,
    /// Values of STRATALLOC_CONF to ask as well.
    pub(super) settings: Vec<String>,
    /// Whether nothing is asked, and the pages are written anew from the answers that there are.
    pub(super) pages: bool,
    /// Whether questions that have been answered in the folder of the answers are left out.
    pub(super) resume: bool,
    rounds: Option<usize>,
    jobs: Option<usize>,
    /// Where every change of reserved memory is written down.
    pub(super) dump: Option<PathBuf>,
    out: Option<PathBuf>,
    /// As it was typed.
    pub(super) words: String,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options {
            quick: false,
            traces: Vec::new(),
            only: Vec::new(),
            peers: Vec::new(),
            settings: list(SETTINGS, ';'),
            pages: false,
            resume: false,
            rounds: None,
            jobs: None,
            dump: None,
            out: None,
            words: words.join(" "),
        };
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            match *word {
                "--quick" => options.quick = true,
                "--resume" => options.resume = true,
                "--pages" => options.pages = true,
                "--only" => options.only = list(value()?, ','),
                "--peers" => options.peers = list(value()?, ','),
                "--settings" => options.settings = list(value()?, ';'),
                "--rounds" => options.rounds = Some(number(value()?)?),
                "--jobs" => options.jobs = Some(number(value()?)?),
                "--dump" => options.dump = Some(PathBuf::from(value()?)),
                "--out" => options.out = Some(PathBuf::from(value()?)),
                "--traces" => {
                    options.traces.push(PathBuf::from(value()?));
                    while let Some(file) = words.next_if(|word| !word.starts_with("--")) {
                        options.traces.push(PathBuf::from(file));
                    }
                }
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        for name in &options.only {
            if !questions::ALL.iter().any(|question| question.name == name) {
                let names: Vec<&str> = questions::ALL.iter().map(|question| question.name).collect();
                return Err(format!("there is no question '{name}': {}", names.join(", ")));
            }
        }
        Ok(options)
    }

    pub(super) fn asks(&self, question: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == question)
    }

    /// Whether nobody named settings.
    pub(super) fn has_usual_settings(&self) -> bool {
        self.settings == list(SETTINGS, ';')
    }

    /// Whether answers of an earlier run are kept: those of questions that are not asked now.
    pub(super) fn keeps_earlier(&self) -> bool {
        self.resume || !self.only.is_empty()
    }

    /// Turns that each peer gets where time is taken.
    pub(super) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// Replays at a time where no time is taken.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Where the answers go. Those of a part do not replace those of the whole.
    pub(super) fn out_folder(&self, root: &Path) -> PathBuf {
        let whole = !self.quick && self.traces.is_empty() && self.only.is_empty() && self.peers.is_empty();
        match &self.out {
            Some(folder) => folder.clone(),
            None if whole => root.join("benches/peers"),
            None => softcuda::target_folder(root).join("peers"),
        }
    }

    /// All traces, by name of the file.
    pub(super) fn trace_files(&self, root: &Path) -> Result<Vec<PathBuf>, String> {
        let given = if self.traces.is_empty() {
            vec![root.join("tests/traces"), root.join("tests/traces/own")]
        } else {
            self.traces.clone()
        };
        let mut files = Vec::new();
        for path in given {
            if !path.is_dir() {
                files.push(path);
                continue;
            }
            let found = fs::read_dir(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            let mut found: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
            found.retain(|path| path.to_string_lossy().ends_with(".trace.zst"));
            found.sort();
            files.extend(found);
        }
        if files.is_empty() {
            return Err("there is no trace: files that end in .trace.zst".to_string());
        }
        Ok(files)
    }
}

fn list(text: &str, separator: char) -> Vec<String> {
    text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect()
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| format!("'{text}' is no number from 1 on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let words =
            ["--traces", "a", "b c", "--quick", "--settings", "chunk:4MiB; thrifty:true", "--only", "spare,lag"];
        let options = Options::parse(&words).unwrap();
        assert_eq!(options.traces, [Path::new("a"), Path::new("b c")]);
        assert_eq!(options.settings, ["chunk:4MiB", "thrifty:true"]);
        assert!(options.quick && options.asks("lag") && !options.asks("capacity") && options.rounds() == 2);
        for words in [&["--only", "x"][..], &["--rounds", "0"], &["--out"], &["x"]] {
            assert!(Options::parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_part_does_not_replace_the_whole() {
        let folder = |words: &[&str]| Options::parse(words).unwrap().out_folder(Path::new("r"));
        assert_eq!(folder(&[]), Path::new("r/benches/peers"));
        assert_ne!(folder(&["--quick"]), folder(&[]));
        assert_eq!(folder(&["--quick", "--out", "o"]), Path::new("o"));
    }
}
