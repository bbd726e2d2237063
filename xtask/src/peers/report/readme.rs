//! The table of the README.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::markdown::{geometric_mean, ms};
use crate::peers::questions::{Answers, Trace};

const BEGIN: &str = "<!-- Begin of what `cargo xtask peers` writes -->\n";
const END: &str = "<!-- End of it -->\n";

/// Columns: name, heading.
const SHOWN: [(&str, &str); 5] = [
    ("stratalloc", "stratalloc"),
    ("stratalloc thrifty:true", "`thrifty:true`"),
    ("native", "PyTorch"),
    ("expandable", "its expandable segments"),
    ("rmm pool", "RMM pool"),
];

/// Replaces what stands between the two marks.
pub(in crate::peers) fn write(root: &Path, traces: &[Trace], answers: &Answers) -> Result<PathBuf, String> {
    let path = root.join("README.md");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let text = replaced(&text, &table(traces, answers)).ok_or("README.md lacks the marks of `cargo xtask peers`")?;
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(path)
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

fn table(traces: &[Trace], answers: &Answers) -> String {
    let mut text = format!("| {} traces |", traces.len());
    SHOWN.iter().for_each(|(_, heading)| text += &format!(" {heading} |"));
    text += &format!("\n|---|{}\n", "--:|".repeat(SHOWN.len()));
    let mut row = |title: &str, cell: &dyn Fn(&str) -> Option<String>| {
        let cells = SHOWN.map(|(peer, _)| cell(peer));
        if cells.iter().any(Option::is_some) {
            let _ = write!(text, "| {title} |");
            for cell in cells {
                let _ = write!(text, " {} |", cell.unwrap_or("–".to_string()));
            }
            text.push('\n');
        }
    };
    // Of all traces, or of none.
    let each = |question: &str, peer: &str, name: &str| -> Option<Vec<f64>> {
        traces.iter().map(|trace| answers.number(question, &trace.name, peer, name)).collect()
    };
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let mean_and_worst = |values: Vec<f64>| format!("{:.4}, {:.4}", geometric_mean(&values), worst(&values));
    row("memory to spare, 256 GiB: peak reserved / peak live, mean and worst", &|peer| {
        let reserved = each("spare", peer, "peak_reserved")?;
        Some(mean_and_worst(reserved.iter().zip(traces).map(|(bytes, trace)| bytes / trace.peak_live as f64).collect()))
    });
    for (question, device) in [("spare", "256 GiB"), ("steady", "80 GiB")] {
        row(&format!("driver time of all first passes on {device}, modelled as on an A100, ms"), &|peer| {
            Some(ms(each(question, peer, "driver_ns.first")?.iter().sum()))
        });
    }
    row("smallest device / peak live, mean and worst", &|peer| Some(mean_and_worst(each("capacity", peer, "ratio")?)));
    row("with 2 % to spare and kernels at 2 TB/s: traces that complete; stall, ms", &|peer| {
        let stall = |trace: &Trace| answers.number("pressure", &trace.name, peer, "stall_ns");
        traces.iter().find(|trace| answers.of("pressure", &trace.name, peer).is_some())?;
        let stalls: Vec<f64> = traces.iter().filter_map(stall).collect();
        Some(format!("{}; {}", stalls.len(), ms(stalls.iter().sum())))
    });
    for threads in [1, 2] {
        row(&format!("ns an operation, warm, {threads} thread{}, mean", if threads > 1 { "s" } else { "" }), &|peer| {
            Some(format!("{:.0}", geometric_mean(&each(&format!("time {threads}"), peer, "ns_min")?)))
        });
    }
    row("p99.9 of an allocation, warm, ns, worst trace", &|peer| {
        Some(format!("{:.0}", worst(&each("latency", peer, "alloc_ns.p999")?)))
    });
    text + "\n![Reserved beyond what is live, by trace and allocator](benches/peers/ratios.svg)\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        let once = replaced(&text, "| new |\n").unwrap();
        assert!(once.starts_with("a\n") && once.ends_with("b\n") && once.contains("| new |") && !once.contains("old"));
        assert_eq!(replaced(&once, "| new |\n").unwrap(), once);
        assert_eq!(replaced("a\n", "x"), None);
    }
}
