//! A layout as a picture: requests from left to right, addresses upwards, a rectangle a block.

use std::fmt::Write;

use stratalloc::plan::{Layout, Step};
use stratalloc::units::{ByteSize, GRANULE};

use super::Row;

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
/// Rectangles smaller than this both ways are left out: nobody sees them, and they are most of a long step's.
const VISIBLE: f64 = 0.3;

/// The picture.
pub(super) fn draw(trace: &str, row: &Row, step: &Step, layout: &Layout) -> String {
    let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
    let mut svg = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("a string takes everything");
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        right + 20.0,
        bottom + 40.0
    ));
    let height = layout.top.max(1) as f64;
    let (x, y) = (WIDTH / step.len() as f64, HEIGHT / height);
    let mut small = 0;
    for (at, block) in step.blocks().iter().enumerate() {
        let Some(addr) = layout.place(at) else { continue };
        let bytes = (u64::from(block.granules) * GRANULE) as f64;
        let end = at + block.life as usize;
        // What stays into the next step comes round.
        for (from, to) in [(at, end.min(step.len())), (0, end.saturating_sub(step.len()))] {
            let (wide, high) = ((to - from) as f64 * x, bytes * y);
            if wide < VISIBLE && high < VISIBLE {
                small += usize::from(to > from);
                continue;
            }
            if to > from {
                put(format_args!(
                    "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{wide:.2}\" height=\"{high:.2}\" fill=\"{}\" \
                     stroke=\"#fff\" stroke-width=\"0.1\"/>\n",
                    LEFT + from as f64 * x,
                    bottom - addr as f64 * y - high,
                    colour(block.life, step.len())
                ));
            }
        }
    }
    let bound = bottom - row.bound_bytes as f64 * y;
    put(format_args!(
        "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bound:.2}\" y2=\"{bound:.2}\" stroke=\"#000\" stroke-dasharray=\"6 4\"/>\n\
         <path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#444\"/>\n"
    ));
    put(format_args!(
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"14\">{}: {} requests of stream {} from {} on ({}), packed into {}, \
         {:.4} of the bound (dashed)</text>\n",
        escape(trace),
        row.requests,
        row.stream,
        row.first,
        escape(&row.source),
        ByteSize(layout.top),
        row.ratio
    ));
    for part in 0..=4 {
        let bytes = height * f64::from(part) / 4.0;
        put(format_args!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 6.0,
            bottom - bytes * y + 4.0,
            ByteSize(bytes as u64)
        ));
        let request = step.len() * part as usize / 4;
        put(format_args!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{request}</text>\n",
            LEFT + request as f64 * x,
            bottom + 16.0
        ));
    }
    put(format_args!(
        "<text x=\"{LEFT}\" y=\"{}\" fill=\"#666\">green: gone after a few requests; red: stays for most of the step; {small} too \
         small to see</text>\n</svg>\n",
        bottom + 34.0
    ));
    svg
}

/// From green for what goes at once to red for what stays.
fn colour(life: u32, len: usize) -> String {
    let part = f64::from(life).ln() / (len.max(2) as f64).ln();
    format!("hsl({:.0},60%,55%)", 140.0 * (1.0 - part.clamp(0.0, 1.0)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
