//! Answers of an earlier run, from its `results.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::About;
use crate::peers::questions::{Answers, Trace};
use crate::peers::runner::Figures;

pub(super) const FILE: &str = "results.json";

/// What was found out earlier, in that folder; nothing where nothing was.
pub(in crate::peers) fn read(folder: &Path) -> Result<(Vec<Trace>, Answers), String> {
    let path = folder.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    parse(&text).map_err(|what| format!("{} is not of this version ({what}): delete it", path.display()))
}

/// What was run, as it says.
pub(in crate::peers) fn about(folder: &Path) -> Result<About, String> {
    let path = folder.join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let all: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = |name: &str| all[name].as_str().map(str::to_string).ok_or_else(|| format!("no {name}"));
    Ok(About {
        command: text("command")?,
        machine: text("machine")?,
        versions: text("versions")?,
        rounds: all["rounds"].as_u64().unwrap_or_default() as usize,
    })
}

fn parse(text: &str) -> Result<(Vec<Trace>, Answers), String> {
    let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let list = |name: &str| all[name].as_array().ok_or_else(|| format!("no {name}"));
    let text = |value: &Value, name: &str| value[name].as_str().map(str::to_string).ok_or_else(|| format!("no {name}"));
    let number = |value: &Value, name: &str| value[name].as_u64().ok_or_else(|| format!("no {name}"));
    let mut traces = Vec::new();
    for trace in list("traces")? {
        traces.push(Trace {
            name: text(trace, "name")?,
            file: PathBuf::new(),
            ops: PathBuf::new(),
            peak_live: number(trace, "peak_live")?,
            calls: number(trace, "calls")?,
            records: number(trace, "records")?,
            streams: number(trace, "streams")?,
        });
    }
    let mut answers = Answers::default();
    for asked in list("asked")? {
        answers.end(&text(asked, "question")?, &text(asked, "versions")?, number(asked, "seconds")?);
    }
    for answer in list("answers")? {
        let mut figures = Figures::default();
        for (name, value) in answer.as_object().into_iter().flatten() {
            if ["question", "trace", "peer"].contains(&name.as_str()) {
                continue;
            }
            match value {
                Value::Array(several) => several.iter().for_each(|value| figures.set(name, plain(value))),
                one => figures.set(name, plain(one)),
            }
        }
        answers.put(&text(answer, "question")?, &text(answer, "trace")?, &text(answer, "peer")?, figures);
    }
    Ok((traces, answers))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::report::json;

    #[test]
    fn what_was_written_is_read() {
        let trace = Trace {
            name: "t".to_string(),
            file: PathBuf::new(),
            ops: PathBuf::new(),
            peak_live: 80 << 30,
            calls: 7,
            records: 3,
            streams: 2,
        };
        let mut answers = Answers::default();
        let pairs = [("fails_at", "1.1"), ("fails_at", "1.2"), ("hash", "00ff"), ("ratio", "1.004")];
        let pairs = pairs.map(|(name, value)| (name.to_string(), value.to_string()));
        answers.put("capacity", "t", "native", Figures(pairs.to_vec()));
        answers.end("capacity", "stratalloc 1", 12);
        let words = || "words".to_string();
        let about = About { command: words(), machine: words(), versions: words(), rounds: 5 };
        let text = json::all(&about, std::slice::from_ref(&trace), &answers);
        let (traces, read) = parse(&text).unwrap();
        assert_eq!((traces[0].peak_live, traces[0].streams), (80 << 30, 2));
        assert!(read.has("capacity") && read.asked[0].seconds == 12);
        let figures = read.of("capacity", "t", "native").unwrap();
        assert_eq!(figures.numbers("fails_at").collect::<Vec<_>>(), [1.1, 1.2]);
        assert_eq!(figures.number("ratio"), Some(1.004));
        assert_eq!(json::all(&about, &traces, &read).len(), text.len());
        assert!(parse("{}").is_err());
    }
}
