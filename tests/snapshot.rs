//! Snapshots: what they say of a device, and that they open under the rules of pytorch.org/memory_viz.

mod common;

use std::collections::{BTreeMap, HashMap};

use common::rig::{KIB, MIB, Rng, check, soft};
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::{AllocRequest, Allocator, BlockState, DevicePtr, PoolId, Snapshot, StreamId, snapshot};

struct Scene {
    device: std::sync::Arc<SoftDevice>,
    allocator: Allocator,
    streams: [StreamId; 2],
}

impl Scene {
    fn new(text: &str, vmm: bool) -> Scene {
        let builder = SoftDevice::builder(256 * MIB).backing(Backing::AddressesOnly).vmm(vmm);
        let (device, allocator) = soft(builder, text);
        let streams = [device.create_stream().unwrap(), device.create_stream().unwrap()];
        Scene { device, allocator, streams }
    }

    /// Blocks come and go; gives those that are live in the end.
    fn play(&self, seed: u64) -> BTreeMap<DevicePtr, u64> {
        let mut rng = Rng(seed);
        let mut live = BTreeMap::new();
        for step in 0..600 {
            let stream = rng.pick(&self.streams);
            if step == 200 {
                self.allocator.begin_private_pool(0, PoolId(3, 4), move |other| other == stream).unwrap();
            } else if step == 260 {
                self.allocator.end_private_pool(0, PoolId(3, 4)).unwrap();
            } else if step % 150 == 149 {
                self.allocator.empty_cache(0).unwrap();
            }
            if rng.percent(55) {
                let size = rng.pick(&[100, 512, 5 * KIB, 64 * KIB, 70 * KIB, MIB + 1, 5 * MIB]);
                if let Ok(ptr) = self.allocator.raw_alloc(AllocRequest::new(size).stream(stream)) {
                    live.insert(ptr, size);
                }
            } else if let Some((&ptr, _)) = live.iter().nth(rng.index(live.len())) {
                if rng.percent(20) {
                    self.allocator.record_stream(ptr, rng.pick(&self.streams)).unwrap();
                }
                live.remove(&ptr);
                self.allocator.raw_free(ptr).unwrap();
            }
        }
        live
    }

    fn snapshot(&self) -> Snapshot {
        self.allocator.snapshot(0).unwrap()
    }
}

#[test]
fn says_what_is_live_and_what_is_free() {
    for (seed, vmm) in [(1, true), (2, true), (3, false)] {
        let scene = Scene::new("", vmm);
        let live = scene.play(seed);
        let stats = check(&scene.allocator, 0);
        let snapshot = scene.snapshot();
        let blocks = || snapshot.segments.iter().flat_map(|segment| &segment.blocks);
        let found: BTreeMap<DevicePtr, u64> = blocks()
            .filter(|block| block.state == BlockState::Live)
            .map(|block| (block.ptr, block.requested))
            .collect();
        assert_eq!(found, live);
        let bytes = |state| snapshot.segments.iter().map(|segment| segment.bytes_in(state)).sum::<u64>();
        assert_eq!(bytes(BlockState::Live) + bytes(BlockState::Pending), stats.active.current);
        assert_eq!(bytes(BlockState::Pending), stats.pending);
        let mapped: u64 = snapshot.segments.iter().map(|segment| segment.size).sum();
        assert_eq!(mapped + stats.reserve, stats.reserved.current);
        assert!(snapshot.segments.iter().any(|segment| segment.pool == Some(PoolId(3, 4))));
        assert!(snapshot.segments.iter().all(|segment| segment.expandable == vmm));
        for segment in &snapshot.segments {
            let mut at = segment.ptr.0;
            for block in &segment.blocks {
                assert_eq!(block.ptr.0, at);
                at += block.size;
            }
            assert_eq!(at, segment.ptr.0 + segment.size);
        }
    }
}

#[test]
fn an_address_leads_to_its_block() {
    let scene = Scene::new("", true);
    let live = scene.play(5);
    for (&ptr, &size) in &live {
        for offset in [0, size / 2, size - 1] {
            let (device, block) = scene.allocator.block_at(ptr.add(offset)).unwrap();
            assert_eq!((device, block.ptr, block.requested), (0, ptr, size));
        }
    }
    let free = |snapshot: Snapshot| {
        let blocks = snapshot.segments.into_iter().flat_map(|segment| segment.blocks);
        blocks.filter(|block| block.state == BlockState::Free).map(|block| block.ptr).collect::<Vec<_>>()
    };
    for ptr in free(scene.snapshot()) {
        assert!(scene.allocator.block_at(ptr).is_none(), "{ptr} is free");
    }
    assert!(scene.allocator.block_at(DevicePtr::NULL).is_none());
    assert!(scene.allocator.block_at(DevicePtr(u64::MAX)).is_none());
}

/// A value of a pickle made of plain data.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Int(i128),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(HashMap<String, Value>),
}

impl Value {
    fn get(&self, key: &str) -> &Value {
        let Value::Dict(dict) = self else { panic!("not a dict: {self:?}") };
        dict.get(key).unwrap_or_else(|| panic!("no '{key}' in {dict:?}"))
    }

    fn list(&self) -> &[Value] {
        let Value::List(list) = self else { panic!("not a list: {self:?}") };
        list
    }

    fn int(&self) -> u64 {
        let Value::Int(int) = self else { panic!("not a number: {self:?}") };
        u64::try_from(*int).unwrap()
    }

    fn text(&self) -> &str {
        let Value::Text(text) = self else { panic!("not a string: {self:?}") };
        text
    }
}

/// Reads what the page's own unpickler reads, of the opcodes that occur here; any other is a failure.
fn unpickle(bytes: &[u8]) -> Value {
    let mut stack: Vec<Value> = Vec::new();
    let mut marks: Vec<usize> = Vec::new();
    let mut memo: HashMap<u32, Value> = HashMap::new();
    let mut at = 0;
    let mut take = |count: usize| {
        at += count;
        &bytes[at - count..at]
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0i128, |sum, &byte| sum << 8 | i128::from(byte));
    assert_eq!(take(2), [0x80, 2]);
    loop {
        match take(1)[0] {
            b'}' => stack.push(Value::Dict(HashMap::new())),
            b']' => stack.push(Value::List(Vec::new())),
            b'(' => marks.push(stack.len()),
            b'K' => stack.push(Value::Int(number(take(1)))),
            b'M' => stack.push(Value::Int(number(take(2)))),
            b'J' => stack.push(Value::Int(i128::from(i32::from_le_bytes(take(4).try_into().unwrap())))),
            0x8a => {
                let length = take(1)[0] as usize;
                let bytes = take(length);
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                stack.push(Value::Int(number(bytes) - if negative { 1 << (8 * length) } else { 0 }));
            }
            b'X' => {
                let length = number(take(4)) as usize;
                stack.push(Value::Text(String::from_utf8(take(length).to_vec()).unwrap()));
            }
            b'r' => {
                memo.insert(number(take(4)) as u32, stack.last().unwrap().clone());
            }
            b'j' => stack.push(memo[&(number(take(4)) as u32)].clone()),
            0x86 => {
                let items = stack.split_off(stack.len() - 2);
                stack.push(Value::Tuple(items));
            }
            0x88 => stack.push(Value::Bool(true)),
            0x89 => stack.push(Value::Bool(false)),
            b'e' => {
                let items = stack.split_off(marks.pop().unwrap());
                assert!(items.len() <= 1000, "batches of 1,000");
                let Some(Value::List(list)) = stack.last_mut() else { panic!("APPENDS to no list") };
                list.extend(items);
            }
            b'u' => {
                let items = stack.split_off(marks.pop().unwrap());
                let Some(Value::Dict(dict)) = stack.last_mut() else { panic!("SETITEMS of no dict") };
                for pair in items.chunks(2) {
                    dict.insert(pair[0].text().to_string(), pair[1].clone());
                }
            }
            b'.' => break,
            other => panic!("opcode {other:#x}"),
        }
    }
    assert_eq!((at, stack.len()), (bytes.len(), 1));
    stack.remove(0)
}

#[test]
fn pickles_open_under_the_rules_of_memory_viz() {
    let scene = Scene::new("trace:100000", true);
    let live = scene.play(9);
    let mut bytes = Vec::new();
    snapshot::write_pickle(&[scene.snapshot()], &mut bytes).unwrap();
    let top = unpickle(&bytes);
    let mut mapped: BTreeMap<u64, u64> = BTreeMap::new();
    let mut active: BTreeMap<u64, u64> = BTreeMap::new();
    for segment in top.get("segments").list() {
        let (mut at, total) = (segment.get("address").int(), segment.get("total_size").int());
        mapped.insert(at, total);
        let end = at + total;
        for block in segment.get("blocks").list() {
            assert_eq!(block.get("address").int(), at, "blocks tile their segment");
            if block.get("state").text() != "inactive" {
                active.insert(at, block.get("requested_size").int());
            }
            at += block.get("size").int();
        }
        assert_eq!(at, end);
        assert!(["large", "small"].contains(&segment.get("segment_type").text()));
        assert!(matches!(segment.get("segment_pool_id"), Value::Tuple(pool) if pool.len() == 2));
        assert_eq!(*segment.get("is_expandable"), Value::Bool(true));
    }
    let at_end = active.clone();
    let traces = top.get("device_traces").list();
    assert_eq!(traces.len(), 1);
    // The page plays events backwards from the state in the segments.
    for entry in traces[0].list().iter().rev() {
        let at = || entry.get("addr").int();
        let size = entry.get("size").int();
        match entry.get("action").text() {
            "alloc" => assert_eq!(active.remove(&at()), Some(size), "an allocation that is not there any more"),
            "free_completed" => {
                assert_eq!(active.insert(at(), size), None);
                let inside = mapped.iter().any(|(&start, &bytes)| start <= at() && at() + size <= start + bytes);
                assert!(inside, "a block outside every segment");
            }
            "segment_map" => unmap(&mut mapped, at(), size),
            "segment_unmap" => map(&mut mapped, at(), size),
            "free_requested" | "oom" => {}
            other => panic!("action '{other}'"),
        }
    }
    assert!(active.is_empty() && mapped.is_empty(), "{} blocks, {} ranges", active.len(), mapped.len());
    assert!(live.keys().all(|ptr| at_end.contains_key(&ptr.0)));
    drop(scene.device);
}

/// Adds a range, joined with its neighbours.
fn map(mapped: &mut BTreeMap<u64, u64>, at: u64, size: u64) {
    let (mut at, mut size) = (at, size);
    if let Some((&before, &bytes)) = mapped.range(..at).next_back().filter(|(before, bytes)| *before + *bytes == at) {
        mapped.remove(&before);
        (at, size) = (before, bytes + size);
    }
    if let Some(bytes) = mapped.remove(&(at + size)) {
        size += bytes;
    }
    assert!(mapped.insert(at, size).is_none());
}

/// Takes a range out, which is mapped.
fn unmap(mapped: &mut BTreeMap<u64, u64>, at: u64, size: u64) {
    let (&start, &bytes) = mapped.range(..=at).next_back().expect("mapped");
    assert!(start <= at && at + size <= start + bytes, "{at:#x} is not mapped");
    mapped.remove(&start);
    if start < at {
        mapped.insert(start, at - start);
    }
    if at + size < start + bytes {
        mapped.insert(at + size, start + bytes - at - size);
    }
}
