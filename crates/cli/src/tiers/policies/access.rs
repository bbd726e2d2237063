//! Traces as what policies see of them: objects that are made, used and freed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use stratalloc::tier::policy::{Item, Key};

use crate::Failed;
use crate::trace::{Op, Trace};

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Access {
    /// An object is made, where it is used.
    Make(Key),
    /// It is used.
    Use(Key),
    /// It is gone for good.
    Free(Key),
    /// Blocks of a prompt, the first first: of use are those before the first that is missing. All are there afterwards.
    Prompt(Vec<Key>),
}

/// A trace.
#[derive(Debug)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// What happens.
    pub accesses: Vec<Access>,
    /// The objects.
    pub items: HashMap<Key, Item>,
    /// Whether a prompt's blocks are used from the last to the first, so that the last go first.
    pub leaf_first: bool,
    /// What a room of 1 is: the most bytes that live at once, or one block.
    pub unit: u64,
    /// Rooms worth trying.
    pub rooms: Vec<f64>,
}

/// Nanoseconds that a copy takes to begin, and bytes a nanosecond.
const COPY_NS: u64 = 10_000;
const LINK_BYTES_PER_NS: u64 = 25;
/// Computing the first block of 512 tokens, for 7e10 weights at 4e14 operations a second; and how much more the next one takes, in parts of a
/// hundred thousand, for attention in 80 layers of 8192.
const BLOCK_NS: u64 = 179_000_000;
const BLOCK_GROWTH: u64 = 960;

/// The workloads of a file.
pub fn load(path: &Path) -> Result<Vec<Workload>, Failed> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !name.contains(".jsonl") {
        return Ok(vec![of_program(&Trace::load(path)?)]);
    }
    let failed = |what: &dyn std::fmt::Display| Failed::from(format!("{}: {what}", path.display()));
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    let bytes =
        if name.ends_with(".zst") { zstd::decode_all(&bytes[..]).map_err(|error| failed(&error))? } else { bytes };
    let mut prompts = Vec::new();
    for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let request: Request =
            serde_json::from_slice(line).map_err(|error| failed(&format_args!("line {}: {error}", at + 1)))?;
        prompts.push(request.hash_ids);
    }
    Ok([false, true].map(|leaf_first| of_prompts(&name, &prompts, leaf_first)).into())
}

#[derive(Deserialize)]
struct Request {
    hash_ids: Vec<Key>,
}

fn of_prompts(name: &str, prompts: &[Vec<Key>], leaf_first: bool) -> Workload {
    let mut items = HashMap::new();
    for (at, key) in prompts.iter().flat_map(|prompt| (0..).zip(prompt)) {
        let recompute_ns = BLOCK_NS + BLOCK_NS / 100_000 * BLOCK_GROWTH * at;
        items.entry(*key).or_insert(Item {
            size: 1,
            frees: 1,
            transfer_ns: u64::MAX,
            recompute_ns: Some(recompute_ns),
        });
    }
    Workload {
        name: format!("{name}, {} first", if leaf_first { "leaf" } else { "root" }),
        accesses: prompts.iter().cloned().map(Access::Prompt).collect(),
        items,
        leaf_first,
        unit: 1,
        rooms: vec![1e3, 5e3, 1e4, 3e4, 5e4, 1e5],
    }
}

fn of_program(trace: &Trace) -> Workload {
    let (mut accesses, mut items) = (Vec::new(), HashMap::new());
    let (mut live, mut peak) = (0, 0);
    for op in &trace.ops {
        match *op {
            Op::Alloc { bytes, .. } => {
                let (key, size) = (items.len() as Key, bytes.max(1));
                let transfer_ns = COPY_NS + size / LINK_BYTES_PER_NS;
                items.insert(key, Item { size, frees: size, transfer_ns, recompute_ns: None });
                accesses.push(Access::Make(key));
                live += size;
                peak = live.max(peak);
            }
            Op::Free { id } => {
                let key = Key::from(id);
                live -= items[&key].size;
                accesses.extend([Access::Use(key), Access::Free(key)]);
            }
            Op::Record { id, .. } => accesses.push(Access::Use(id.into())),
            Op::EmptyCache | Op::Marker { .. } => {}
        }
    }
    Workload {
        name: trace.name.clone(),
        accesses,
        items,
        leaf_first: false,
        unit: peak,
        rooms: vec![0.3, 0.5, 0.7, 0.9],
    }
}
