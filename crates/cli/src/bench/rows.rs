//! Which workloads there are.

use std::sync::Arc;

use serde::Serialize;
use stratalloc::error::Result;
use stratalloc::units::ByteSize;

use super::work::{self, Churn, Mimalloc, Offsets, Pair, Sizes, Work};
use crate::Failed;
use crate::engine::{Engine, Latency, Setup};

/// The name of the rows that others are compared with.
pub(super) const MIMALLOC: &str = "mimalloc 512 B";

/// Large enough for two threads that churn 256 blocks of 64 MiB each.
const CAPACITY: ByteSize = ByteSize::gib(80);

/// One workload, with one worker a thread.
pub(super) struct Row {
    pub(super) name: String,
    workers: Vec<Box<dyn Work>>,
    /// Host memory for the blocks kept live.
    pub(super) metadata: Option<Metadata>,
    /// Keeps blocks live that no worker touches.
    _engine: Option<Arc<Engine>>,
}

/// Host memory that an allocator takes for its own book-keeping, with many blocks live.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Metadata {
    /// Blocks live.
    pub blocks: u64,
    /// By how much the process grew while they were allocated, the software device's own tables included.
    pub resident_bytes: u64,
    /// What the allocator knows to have touched.
    pub counted_bytes: u64,
}

impl Row {
    fn new(name: impl Into<String>, workers: Vec<Box<dyn Work>>) -> Row {
        Row { name: name.into(), workers, metadata: None, _engine: None }
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len()
    }

    /// Nanoseconds that a pair takes when every worker does so many.
    pub(super) fn time(&mut self, pairs: u64) -> std::result::Result<f64, Failed> {
        Ok(work::wall(&mut self.workers, pairs)?.as_nanos() as f64 / pairs as f64)
    }
}

/// All rows, in the order of the table, under this configuration of the allocator.
pub(super) fn all(config: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in [ByteSize(512), ByteSize::kib(64), ByteSize::mib(2), ByteSize::mib(64)] {
        for threads in [1, 2] {
            rows.push(on_one_engine(config, format!("pair {size}"), threads, |engine, _| {
                Ok(Box::new(Pair::new(engine.clone(), size.0)?))
            })?);
        }
    }
    let (small, large) = ((512, 1 << 20), (1 << 20, 64 << 20));
    let mixed = (small.0, large.1);
    for (name, (least, most), repeat) in
        [("small", small, true), ("large", large, true), ("mixed", mixed, true), ("any", mixed, false)]
    {
        for threads in [1, 2] {
            rows.push(on_one_engine(config, format!("churn {name}"), threads, |engine, seed| {
                let sizes = if repeat { Sizes::some(least, most) } else { Sizes::Any { least, most } };
                Ok(Box::new(Churn::new(engine.clone(), sizes, seed)?))
            })?);
        }
    }
    for (name, blocks) in [("1e3", 1_000), ("1e4", 10_000), ("1e5", 100_000), ("1e6", 1_000_000)] {
        let before = resident_bytes();
        let mut row = on_one_engine(config, format!("live {name}"), 1, |engine, _| {
            let pair = Pair::new(engine.clone(), 512)?;
            for _ in 0..blocks {
                engine.alloc(512, pair.stream())?;
            }
            Ok(Box::new(pair))
        })?;
        let counted = row._engine.as_ref().map_or(Ok(0), |engine| engine.metadata_bytes())?;
        let grown = resident_bytes().zip(before).map(|(now, before)| now.saturating_sub(before));
        row.metadata = grown.map(|resident_bytes| Metadata { blocks, resident_bytes, counted_bytes: counted });
        rows.push(row);
    }
    for threads in [1, 2] {
        rows.push(Row::new(
            MIMALLOC,
            (0..threads).map(|_| Box::new(Mimalloc { size: 512 }) as Box<dyn Work>).collect(),
        ));
    }
    rows.push(Row::new("offset-allocator", vec![Box::new(Offsets::new())]));
    Ok(rows)
}

/// Memory of this process that is resident, where Linux tells.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

/// A row whose workers share an allocator of their own. `worker` is given the allocator and the worker's number.
fn on_one_engine(
    config: &str,
    name: String,
    threads: u64,
    worker: impl Fn(&Arc<Engine>, u64) -> Result<Box<dyn Work>>,
) -> Result<Row> {
    let setup = Setup { capacity: CAPACITY.0, latency: Latency::Off, config: config.to_owned(), ..Setup::default() };
    let engine = Arc::new(Engine::open(&setup)?);
    let workers = (0..threads).map(|number| worker(&engine, number)).collect::<Result<_>>()?;
    Ok(Row { name, workers, metadata: None, _engine: Some(engine) })
}
