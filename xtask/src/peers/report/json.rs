//! All figures, for programs.

use std::fmt::Write;

use super::About;
use crate::peers::questions::{Answers, Trace};

/// One object: what was run, the traces, and an array with an object for each question, trace and peer.
pub(super) fn all(about: &About, traces: &[Trace], answers: &Answers) -> String {
    let mut text = String::from("{\n");
    for (name, value) in [("command", &about.command), ("machine", &about.machine), ("versions", &about.versions)] {
        let _ = writeln!(text, "  {}: {},", quoted(name), quoted(value));
    }
    let _ = writeln!(text, "  \"rounds\": {},", about.rounds);
    let traces: Vec<String> = traces
        .iter()
        .map(|trace| {
            let Trace { name, peak_live, calls, records, streams, .. } = trace;
            let name = quoted(name);
            format!(
                "    {{\"name\": {name}, \"peak_live\": {peak_live}, \"calls\": {calls}, \"records\": {records}, \"streams\": {streams}}}"
            )
        })
        .collect();
    let _ = writeln!(text, "  \"traces\": [\n{}\n  ],", traces.join(",\n"));
    let asked: Vec<String> = answers
        .asked
        .iter()
        .map(|asked| {
            let (question, versions) = (quoted(&asked.question), quoted(&asked.versions));
            format!("    {{\"question\": {question}, \"versions\": {versions}, \"seconds\": {}}}", asked.seconds)
        })
        .collect();
    let _ = writeln!(text, "  \"asked\": [\n{}\n  ],", asked.join(",\n"));
    let answers: Vec<String> = answers
        .all
        .iter()
        .map(|answer| {
            let (question, trace, peer) = (quoted(&answer.question), quoted(&answer.trace), quoted(&answer.peer));
            let figures = grouped(&answer.figures.0);
            format!("    {{\"question\": {question}, \"trace\": {trace}, \"peer\": {peer}, {}}}", figures.join(", "))
        })
        .collect();
    let _ = writeln!(text, "  \"answers\": [\n{}\n  ]\n}}", answers.join(",\n"));
    text
}

/// `"name": value`, and `"name": [values]` where a name comes more than once.
fn grouped(figures: &[(String, String)]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    figures.iter().map(|(name, _)| name.as_str()).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    let values_of = |name: &str| -> Vec<String> {
        figures.iter().filter(|(found, _)| found == name).map(|(_, value)| number_or_text(value)).collect()
    };
    let pair = |name: &str| match values_of(name).as_slice() {
        [one] => format!("{}: {one}", quoted(name)),
        several => format!("{}: [{}]", quoted(name), several.join(", ")),
    };
    names.into_iter().map(pair).collect()
}

/// Hashes are text even where they have digits only.
fn number_or_text(value: &str) -> String {
    let is_number = !(value.len() > 1 && value.starts_with('0') && !value.contains('.'))
        && value.len() < 16
        && value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && value.parse::<f64>().is_ok();
    if is_number { value.to_string() } else { quoted(value) }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbers_or_text() {
        assert_eq!(quoted("a\"b\\\n"), "\"a\\\"b\\\\\\u000a\"");
        let texts = ["12", "1.5", "0", "0123", "12e4", "1234567890123456", ""];
        let numbers: Vec<bool> = texts.iter().map(|text| !number_or_text(text).starts_with('"')).collect();
        assert_eq!(numbers, [true, true, true, false, false, false, false]);
    }

    #[test]
    fn a_name_that_comes_twice_is_an_array() {
        let figures = [("a", "1"), ("b", "x"), ("a", "2")].map(|(name, value)| (name.to_string(), value.to_string()));
        assert_eq!(grouped(&figures), ["\"a\": [1, 2]", "\"b\": \"x\""]);
    }
}
