//! Which victims the policies choose on recorded traces: how often what is used is still there, and what bringing it back costs.
//!
//! Of a PyTorch trace, an allocation is used last right before it is freed, and when another stream is recorded on it: what lies between is not in
//! the trace. Bringing it back takes as long as its bytes on a link of 25 GB/s, and 10 us. Of a serving trace, each block of 512
//! tokens is an object, found if all blocks before it are; what is not found is computed again, the later in the prompt the dearer.

mod access;
mod simulate;

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use stratalloc::tier::policy::Policy;

use self::access::Workload;
use self::simulate::{Chooser, Tally};
use crate::table::Table;
use crate::{Failed, Finish};

/// Options of `stratalloc tiers policies`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Recorded traces: of PyTorch programs, or of requests as Mooncake has them (`.jsonl`, `.jsonl.zst`)
    #[arg(required = true)]
    pub traces: Vec<PathBuf>,
    /// Rooms to try: parts of the most that lives at once (0.5), or blocks of a serving trace (10000)
    #[arg(long, value_delimiter = ',')]
    pub room: Vec<f64>,
    /// Print JSON, one line a figure
    #[arg(long)]
    pub json: bool,
}

/// One policy on one trace with one room.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The trace, and for a serving trace the order in which a prompt's blocks are used.
    pub trace: String,
    /// As in [`Options::room`].
    pub room: f64,
    /// The policy's name; with `again`, behind `tier_admission:again`; or `oracle`: what will be used last goes first.
    pub policy: &'static str,
    /// The part of what is used (bytes or blocks) that was there.
    pub found: f64,
    /// The part of the cost of bringing everything back each time that was not paid.
    pub saved: f64,
    /// What was stored, as a part of what is used.
    pub stored: f64,
}

/// Compares, and prints.
pub fn run(options: &Options, out: &mut impl Write) -> Result<Finish, Failed> {
    if let Some(room) = options.room.iter().find(|room| !room.is_finite() || **room <= 0.0) {
        return Err(Failed::from(format!("--room {room}: a room is above 0")));
    }
    for path in &options.traces {
        for workload in access::load(path)? {
            let rows = compare(&workload, &options.room);
            if options.json {
                for row in &rows {
                    serde_json::to_writer(&mut *out, row)?;
                    writeln!(out)?;
                }
            } else {
                print(&workload.name, &rows, out)?;
            }
        }
    }
    Ok(Finish::Good)
}

/// Every policy and the oracle in each room, those of `rooms` or the workload's own.
pub fn compare(workload: &Workload, rooms: &[f64]) -> Vec<Row> {
    let rooms = if rooms.is_empty() { &workload.rooms } else { rooms };
    let choosers = || {
        let policies = Policy::ALL.into_iter();
        policies.clone().map(Chooser::Policy).chain(policies.map(Chooser::Again)).chain([Chooser::Oracle])
    };
    let pairs = rooms.iter().flat_map(|&room| choosers().map(move |chooser| (room, chooser)));
    pairs
        .map(|(room, chooser)| {
            let tally = simulate::run(workload, (room * workload.unit as f64) as u64, chooser);
            let part = |of: u128, all: u128| if all == 0 { 1.0 } else { of as f64 / all as f64 };
            let Tally { used, found, cost, paid, stored } = tally;
            let (trace, policy) = (workload.name.clone(), chooser.name());
            Row {
                trace,
                room,
                policy,
                found: part(found, used),
                saved: 1.0 - part(paid, cost),
                stored: part(stored, used),
            }
        })
        .collect()
}

fn print(name: &str, rows: &[Row], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{name}: % found / % of the cost saved / % stored")?;
    let per_room = 2 * Policy::ALL.len() + 1;
    let names: Vec<&str> = rows.iter().take(per_room).map(|row| row.policy).collect();
    let mut table = Table::new(&[&["room"], &names[..]].concat());
    for rows in rows.chunks(per_room) {
        let cells = rows
            .iter()
            .map(|row| format!("{:.1} / {:.1} / {:.0}", 100.0 * row.found, 100.0 * row.saved, 100.0 * row.stored));
        table.row([rows[0].room.to_string()].into_iter().chain(cells).collect());
    }
    writeln!(out, "{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving() -> Vec<Workload> {
        let path = [env!("CARGO_MANIFEST_DIR"), "../../tests/traces/serving/mooncake-conversation.jsonl.zst"];
        access::load(&path.iter().collect::<PathBuf>()).unwrap()
    }

    /// Figures that were counted elsewhere, with another program.
    #[test]
    fn lru_finds_what_it_is_known_to_find() {
        let [root_first, _] = &serving()[..] else { panic!("two orders") };
        for (room, percent) in [(1e3, 4.4), (1e4, 21.1)] {
            let tally = simulate::run(root_first, room as u64, Chooser::Policy(Policy::Lru));
            assert_eq!(tally.used, 288_500);
            let found = 100.0 * tally.found as f64 / tally.used as f64;
            assert!((found - percent).abs() < 0.06, "{room}: {found}");
        }
    }

    /// Most blocks of a conversation are wanted once.
    #[test]
    fn what_nobody_wants_again_is_better_kept_out_of_a_small_tier() {
        let [root_first, _] = &serving()[..] else { panic!("two orders") };
        let run = |chooser| simulate::run(root_first, 1000, chooser);
        let (all, again) = (run(Chooser::Policy(Policy::Lru)), run(Chooser::Again(Policy::Lru)));
        assert!(again.found > all.found && again.stored * 2 < all.stored, "{all:?}, {again:?}");
    }

    #[test]
    fn nobody_finds_more_than_there_is() {
        for mut workload in serving() {
            workload.accesses.truncate(1000);
            let rows = compare(&workload, &[3000.0, 200_000.0]);
            let (small, large) = rows.split_at(rows.len() / 2);
            // All of it fits: whoever chooses, nothing has to go.
            assert!(large.iter().all(|row| row.found == large[0].found && row.found > 0.1), "{large:?}");
            assert!(small.iter().all(|row| row.found <= large[0].found && row.saved <= large[0].saved), "{small:?}");
            let (oracle, policies) = small.split_last().unwrap();
            assert!(policies.iter().all(|row| row.found < large[0].found && row.found <= oracle.found), "{small:?}");
            assert!(small.iter().any(|row| row.found != small[0].found), "{small:?}");
        }
    }
}
