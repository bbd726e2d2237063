//! The plots, as SVG.

use std::fmt::Write;

use super::markdown::geometric_mean;
use crate::peers::questions::{Answers, Trace};
use crate::peers::roster::{Family, Peer, Reach};

const WIDTH: f64 = 820.0;
const LEFT: f64 = 220.0;
const RIGHT: f64 = 30.0;
const ROW: f64 = 30.0;

/// Colours that the colour-blind tell apart (Okabe and Ito), this allocator's first.
const COLOURS: [&str; 8] = ["#d55e00", "#0072b2", "#009e73", "#56b4e9", "#cc79a7", "#e69f00", "#f0e442", "#555555"];

/// A scale of tens.
struct Log {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Log {
    fn place(&self, value: f64) -> f64 {
        let part = (value.max(self.least).ln() - self.least.ln()) / (self.most.ln() - self.least.ln());
        self.from + part.min(1.0) * (self.to - self.from)
    }

    /// The powers of ten that are on it.
    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let tens = (-12..=12).map(|exponent| 10f64.powi(exponent));
        tens.filter(|ten| (self.least * 0.999..=self.most * 1.001).contains(ten))
    }
}

struct Svg(String);

impl Svg {
    fn new(height: f64) -> Svg {
        Svg(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        ))
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ =
            writeln!(self.0, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>");
    }

    fn text(&mut self, at: (f64, f64), anchor: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let (x, y) = at;
        let _ =
            writeln!(self.0, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{text}</text>");
    }

    /// A dot with words that appear when it is pointed at.
    fn dot(&mut self, at: (f64, f64), radius: f64, colour: &str, title: &str) {
        let title = title.replace('&', "&amp;").replace('<', "&lt;");
        let (x, y) = at;
        let _ = writeln!(
            self.0,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\" stroke=\"#ffffff\"><title>{title}</title></circle>"
        );
    }

    fn end(mut self) -> String {
        self.0 += "</svg>\n";
        self.0
    }
}

/// How it is written on an axis of percent.
fn percent(value: f64) -> String {
    if value < 1.0 { format!("{value} %") } else { format!("{value:.0} %") }
}

/// How it is written on an axis of milliseconds.
fn time(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) }
}

/// For each trace a row, for each peer a dot: how much more is reserved than is live, with memory to spare.
pub(super) fn ratios(traces: &[Trace], peers: &[Peer], answers: &Answers) -> String {
    let over = |trace: &Trace, peer: &Peer| {
        let reserved = answers.number("spare", &trace.name, &peer.name, "peak_reserved")?;
        Some((reserved / trace.peak_live as f64 - 1.0) * 100.0)
    };
    let shown: Vec<&Peer> = peers
        .iter()
        .filter(|peer| peer.reach == Reach::All && traces.iter().any(|trace| over(trace, peer).is_some()))
        .collect();
    if shown.is_empty() {
        return String::new();
    }
    let top = 74.0;
    let bottom = top + ROW * traces.len() as f64;
    let scale = Log { least: 0.1, most: 200.0, from: LEFT, to: WIDTH - RIGHT };
    let mut svg = Svg::new(bottom + 40.0);
    svg.text(
        (LEFT, 22.0),
        "start",
        "Reserved beyond what is live, at the peak (device with memory to spare): less is better",
    );
    for (index, peer) in shown.iter().enumerate() {
        let x = 20.0 + (WIDTH - 40.0) / shown.len() as f64 * index as f64;
        svg.dot((x, 45.0), 6.0, COLOURS[index % COLOURS.len()], &peer.name);
        svg.text((x + 11.0, 49.5), "start", &peer.name);
    }
    for tick in scale.ticks() {
        svg.line((scale.place(tick), top), (scale.place(tick), bottom), "#dddddd");
        svg.text((scale.place(tick), bottom + 20.0), "middle", &percent(tick));
    }
    for (row, trace) in traces.iter().enumerate() {
        let y = top + ROW * (row as f64 + 0.5);
        svg.text((LEFT - 12.0, y + 4.5), "end", &trace.name);
        svg.line((LEFT, y), (WIDTH - RIGHT, y), "#eeeeee");
        // This allocator's last, so that nothing covers it.
        for (index, peer) in shown.iter().enumerate().rev() {
            if let Some(over) = over(trace, peer) {
                let title = format!("{} on {}: {over:.2} %", peer.name, trace.name);
                // A little apart, so that equal ones are all seen.
                let y = y + 3.0 * (index as f64 - (shown.len() - 1) as f64 / 2.0);
                let radius = if peer.family == Family::Stratalloc { 7.5 } else { 6.0 };
                svg.dot((scale.place(over), y), radius, COLOURS[index % COLOURS.len()], &title);
            }
        }
    }
    svg.end()
}

/// An allocator on all traces: what it reserves, and what that costs.
pub(super) struct Point {
    pub(super) name: String,
    pub(super) family: Family,
    /// Reserved over live: the geometric mean.
    pub(super) mean: f64,
    pub(super) worst: f64,
    pub(super) driver_ns: f64,
    pub(super) driver_later_ns: f64,
}

/// Those that completed all traces.
pub(super) fn points(traces: &[Trace], peers: &[Peer], answers: &Answers) -> Vec<Point> {
    let point = |peer: &Peer| {
        let each = |name: &str| -> Option<Vec<f64>> {
            traces.iter().map(|trace| answers.number("spare", &trace.name, &peer.name, name)).collect()
        };
        let ratios: Vec<f64> = each("peak_reserved")?
            .iter()
            .zip(traces)
            .map(|(reserved, trace)| reserved / trace.peak_live as f64)
            .collect();
        Some(Point {
            name: peer.name.clone(),
            family: peer.family,
            mean: geometric_mean(&ratios),
            worst: ratios.iter().copied().fold(0.0, f64::max),
            driver_ns: each("driver_ns.first")?.iter().sum(),
            driver_later_ns: each("driver_ns.later")?.iter().sum(),
        })
    };
    peers.iter().filter_map(point).collect()
}

/// Memory against driver time, both on a scale of tens: low and left is better.
pub(super) fn pareto(traces: &[Trace], peers: &[Peer], answers: &Answers) -> String {
    const HEIGHT: f64 = 460.0;
    let points = points(traces, peers, answers);
    if points.is_empty() {
        return String::new();
    }
    let times = points.iter().map(|point| point.driver_ns / 1e6);
    let (least, most) = (times.clone().fold(f64::INFINITY, f64::min), times.fold(0.0, f64::max));
    let tens = |value: f64, up: f64| 10f64.powf((value.max(1e-3).log10() + up * 0.999).floor());
    let across = Log {
        least: tens(least, 0.0),
        most: tens(most, 1.0).max(tens(least, 0.0) * 10.0),
        from: 70.0,
        to: WIDTH - 130.0,
    };
    let over = |point: &Point| (point.mean - 1.0) * 100.0;
    let up = Log { least: 0.1, most: 100.0, from: HEIGHT - 60.0, to: 50.0 };
    let mut svg = Svg::new(HEIGHT);
    svg.text(
        (70.0, 24.0),
        "start",
        "Reserved beyond what is live (mean of the traces) against modelled driver time (all first passes)",
    );
    for tick in across.ticks() {
        svg.line((across.place(tick), up.to), (across.place(tick), up.from), "#dddddd");
        svg.text((across.place(tick), up.from + 20.0), "middle", &time(tick));
    }
    for tick in up.ticks() {
        svg.line((across.from, up.place(tick)), (across.to, up.place(tick)), "#dddddd");
        svg.text((across.from - 8.0, up.place(tick) + 4.5), "end", &percent(tick));
    }
    let mut labels: Vec<(f64, f64)> = Vec::new();
    for point in &points {
        let at = (across.place(point.driver_ns / 1e6), up.place(over(point)));
        let colour = match point.family {
            Family::Stratalloc => COLOURS[0],
            Family::Torch => COLOURS[1],
            Family::Rmm | Family::Floor => COLOURS[2],
        };
        svg.dot(at, 6.5, colour, &format!("{}: {:.2} %, {:.0} ms", point.name, over(point), point.driver_ns / 1e6));
        // Below the labels that it would lie on.
        let mut label = (at.0 + 10.0, at.1 + 4.5);
        while let Some(other) = labels.iter().find(|(x, y)| (x - label.0).abs() < 140.0 && (y - label.1).abs() < 14.0) {
            label.1 = other.1 + 14.5;
        }
        labels.push(label);
        svg.text(label, "start", point.name.strip_prefix("stratalloc ").unwrap_or(&point.name));
    }
    svg.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_of_tens() {
        let scale = Log { least: 0.1, most: 100.0, from: 10.0, to: 40.0 };
        let places: Vec<f64> = [0.0, 0.1, 1.0, 100.0, 1000.0].iter().map(|value| scale.place(*value).round()).collect();
        assert_eq!(places, [10.0, 10.0, 20.0, 40.0, 40.0]);
        assert_eq!(scale.ticks().count(), 4);
    }

    #[test]
    fn no_answers_no_plot() {
        assert_eq!(ratios(&[], &[], &Answers::default()) + &pareto(&[], &[], &Answers::default()), "");
    }
}
