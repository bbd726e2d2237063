//! The columns of the table for people.

use stratalloc::units::ByteSize;

use super::Options;
use super::fields::Smallest;
use super::report::{Figures, Report};
use crate::table::digits;

/// Which columns the table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Columns {
    /// Those that matter most, in 120 characters.
    #[default]
    Default,
    /// All of them.
    All,
}

/// A column whose cells come from figures.
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) cell: fn(&Report, &Figures) -> String,
    when: When,
}

/// When a column is shown, if not all are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Where the smallest device is not sought, whose columns need the room.
    Plain,
    MinCapacity,
    Capacities,
    /// Only with all.
    Never,
}

const fn column(heading: &'static str, when: When, cell: fn(&Report, &Figures) -> String) -> Column {
    Column { heading, cell, when }
}

fn ms(us: f64) -> String {
    digits(us / 1e3)
}

fn or_dash(number: Option<f64>, show: fn(f64) -> String) -> String {
    number.map_or("-".to_owned(), show)
}

/// One of the columns of the smallest device.
fn smallest(row: &Report, column: usize) -> String {
    Smallest::cells(row.smallest.as_ref())[column].clone()
}

/// All columns but the first, which name the trace and what it asks. Those that end in `2nd` are of the second pass, the others of
/// the first.
const COLUMNS: &[Column] = &[
    column("reserved", When::Always, |_, f| ByteSize(f.peak_reserved_bytes).to_string()),
    column("/ live", When::Always, |_, f| format!("{:.4}", f.reserved_ratio)),
    column("frag", When::Never, |_, f| format!("{:.2}%", f.fragmentation * 100.0)),
    column("ns/op", When::Always, |_, f| digits(f.ns_per_op_median)),
    column("ns/op min", When::Never, |_, f| digits(f.ns_per_op_min)),
    column("with device", When::Never, |_, f| digits(f.ns_per_op_with_device_min)),
    column("alloc p50", When::Never, |_, f| or_dash(f.alloc_ns.map(|ns| ns.p50), digits)),
    column("p99", When::Never, |_, f| or_dash(f.alloc_ns.map(|ns| ns.p99), digits)),
    column("p99.9", When::Plain, |_, f| or_dash(f.alloc_ns.map(|ns| ns.p99_9), digits)),
    column("calls", When::Never, |_, f| f.driver_calls.values().sum::<u64>().to_string()),
    column("driver ms", When::Always, |_, f| ms(f.driver_time_us)),
    column("steady ms", When::Never, |_, f| ms(f.driver_time_steady_us)),
    column("driver 2nd", When::Never, |_, f| or_dash(f.second_pass.as_ref().map(|pass| pass.driver_time_us), ms)),
    column("ms/step", When::Plain, |_, f| or_dash(f.driver_time_us_per_step_second_half, ms)),
    column("ms/step 2nd", When::Never, |_, f| or_dash(f.driver_time_us_per_step_second_pass, ms)),
    column("syncs", When::Plain, |_, f| f.device_syncs.to_string()),
    column("waits", When::Plain, |_, f| f.stream_waits.to_string()),
    column("stall ms", When::Plain, |_, f| ms(f.stall_us)),
    column("stall 2nd", When::Never, |_, f| or_dash(f.second_pass.as_ref().map(|pass| pass.stall_us), ms)),
    column("min capacity", When::MinCapacity, |row, _| smallest(row, 0)),
    column("/ live", When::MinCapacity, |row, _| smallest(row, 1)),
    column("robust", When::MinCapacity, |row, _| smallest(row, 2)),
    column("fail", When::Capacities, |row, _| {
        format!("{} of {}", row.fails_above().len(), row.capacities_tried.unwrap_or(0))
    }),
];

/// The columns that are asked for.
pub(super) fn chosen(options: &Options) -> impl Iterator<Item = &'static Column> {
    let (all, min_capacity) = (options.columns == Columns::All, options.min_capacity);
    let capacities = options.capacities.is_some();
    COLUMNS.iter().filter(move |column| match column.when {
        When::Always => true,
        When::Plain => all || !min_capacity,
        When::MinCapacity => min_capacity,
        When::Capacities => capacities,
        When::Never => all,
    })
}

/// Whether the table says how many operations a trace has.
pub(super) fn shows_ops(options: &Options) -> bool {
    options.columns == Columns::All || !options.min_capacity
}
