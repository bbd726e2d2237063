//! A trace put together from addresses and streams as other programs name them.

use std::collections::HashMap;

use super::ImportFault;
use crate::{MAX_BYTES, MAX_OPS, MAX_STREAMS, Op, Trace};

/// What is live at an address.
#[derive(Clone, Copy)]
pub(super) struct Live {
    id: u32,
    bytes: u64,
    stream: u16,
}

/// A trace under construction.
pub(super) struct Builder {
    trace: Trace,
    live: HashMap<u64, Live>,
    live_bytes: u64,
    streams: HashMap<u64, u16>,
}

impl Builder {
    pub(super) fn new(name: &str, source: &str) -> Builder {
        let mut trace = Trace { name: name.trim().to_owned(), ..Trace::default() };
        trace.header.insert("imported from".to_owned(), source.to_owned());
        if !trace.name.is_empty() {
            trace.header.insert("workload".to_owned(), trace.name.clone());
        }
        Builder { trace, live: HashMap::new(), live_bytes: 0, streams: HashMap::new() }
    }

    fn push(&mut self, op: Op) -> Result<(), ImportFault> {
        if self.trace.ops.len() == MAX_OPS {
            return Err(ImportFault::TooManyOps);
        }
        self.trace.ops.push(op);
        Ok(())
    }

    /// The number of a stream, by first use. Those beyond the format's bound share the last.
    pub(super) fn stream(&mut self, key: u64) -> u16 {
        let next = u16::try_from(self.streams.len()).unwrap_or(u16::MAX).min(MAX_STREAMS - 1);
        let stream = *self.streams.entry(key).or_insert(next);
        self.trace.streams = self.trace.streams.max(stream + 1);
        stream
    }

    pub(super) fn is_live(&self, address: u64) -> bool {
        self.live.contains_key(&address)
    }

    /// An allocation. Nothing may be live at its address.
    pub(super) fn alloc(&mut self, address: u64, bytes: u64, stream: u64) -> Result<(), ImportFault> {
        let stream = self.stream(stream);
        let live_bytes = self.live_bytes.checked_add(bytes).filter(|&sum| sum < MAX_BYTES);
        self.live_bytes = live_bytes.ok_or(ImportFault::Absurd)?;
        self.trace.peak_live_bytes = self.trace.peak_live_bytes.max(self.live_bytes);
        self.push(Op::Alloc { bytes, stream })?;
        self.live.insert(address, Live { id: self.trace.allocs, bytes, stream });
        self.trace.allocs += 1;
        Ok(())
    }

    /// A request that failed: allocated and freed.
    pub(super) fn failed(&mut self, bytes: u64, stream: u64) -> Result<(), ImportFault> {
        let stream = self.stream(stream);
        let sum = self.live_bytes.checked_add(bytes).filter(|&sum| sum < MAX_BYTES).ok_or(ImportFault::Absurd)?;
        self.trace.peak_live_bytes = self.trace.peak_live_bytes.max(sum);
        self.push(Op::Alloc { bytes, stream })?;
        self.push(Op::Free { id: self.trace.allocs })?;
        self.trace.allocs += 1;
        self.trace.frees += 1;
        Ok(())
    }

    /// A free. Whether anything was live there.
    pub(super) fn free(&mut self, address: u64) -> Result<bool, ImportFault> {
        let Some(live) = self.live.remove(&address) else { return Ok(false) };
        self.live_bytes -= live.bytes;
        self.trace.frees += 1;
        self.push(Op::Free { id: live.id })?;
        Ok(true)
    }

    /// The home stream of what is live at an address.
    pub(super) fn home(&self, address: u64) -> Option<u16> {
        self.live.get(&address).map(|live| live.stream)
    }

    /// A use on another stream than its own.
    pub(super) fn record(&mut self, address: u64, stream: u16) -> Result<(), ImportFault> {
        let Some(&live) = self.live.get(&address) else { return Ok(()) };
        self.trace.records += 1;
        self.trace.streams = self.trace.streams.max(stream + 1);
        self.push(Op::Record { id: live.id, stream })
    }

    pub(super) fn empty_cache(&mut self) -> Result<(), ImportFault> {
        self.trace.empty_caches += 1;
        self.push(Op::EmptyCache)
    }

    pub(super) fn finish(mut self) -> Trace {
        let mut live: Vec<u32> = self.live.into_values().map(|live| live.id).collect();
        live.sort_unstable();
        self.trace.live_at_end = live;
        self.trace.streams = self.trace.streams.max(1);
        self.trace.header.insert("streams".to_owned(), self.trace.streams.to_string());
        self.trace
    }
}
