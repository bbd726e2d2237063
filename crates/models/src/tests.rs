//! What the recordings do not show: events that lag, and the structure after any sequence of requests.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stratalloc_trace::Trace;

use crate::allocator::Allocator;
use crate::blocks::BlockId;
use crate::device::Device;
use crate::{Machine, Outcome, Policy, Settings, replay_with};

const MIB: u64 = 1 << 20;

fn allocator(settings: Settings, machine: &Machine) -> Allocator {
    Allocator::new(settings, Device::new(machine))
}

fn replay_text(ops: &str, settings: &str, machine: &Machine) -> Outcome {
    let trace = Trace::decode(format!("# stratalloc-trace 1\n{ops}").as_bytes()).unwrap();
    replay_with(&trace, &settings.parse().unwrap(), machine, |_, _| {})
}

#[test]
fn a_recorded_block_comes_back_when_its_event_has_lagged() {
    let ops = |between: usize| {
        let pairs: String = (1..=between).map(|id| format!("a {id} 512 0\nf {id}\n")).collect();
        format!("a 0 20971520 0\nr 0 1\nf 0\n{pairs}a {} 20971520 0\n", between + 1)
    };
    let machine = Machine { event_lag_ns: 3_000, op_ns: 300, ..Machine::new(100 * MIB) };
    // Ten operations pass between the event and the request, on small blocks from a segment of their own, or none.
    assert_eq!(replay_text(&ops(5), "", &machine).reserved, 22 * MIB);
    assert_eq!(replay_text(&ops(0), "", &machine).reserved, 40 * MIB);
    // Where there is no room for a second, the event is waited for.
    let tight = Machine { capacity: 30 * MIB, ..machine };
    let outcome = replay_text(&ops(0), "", &tight);
    assert!(outcome.fits());
    assert_eq!((outcome.reserved, outcome.retries, outcome.calls.count("cuEventSynchronize")), (20 * MIB, 1, 1));
    assert!(outcome.calls.waits() == 2, "the event, and the free of what it held");
    // Its own stream's use needs no event.
    assert_eq!(replay_text("a 0 512 0\nr 0 0\nf 0\n", "", &machine).calls.count("cuEventRecord"), 0);
}

#[test]
fn empty_cache_may_be_left_out() {
    let ops = "a 0 5000000 0\nf 0\ne\n";
    let machine = Machine::new(100 * MIB);
    for (settings, back) in [("", "cuMemFree"), ("expandable_segments:True", "cuMemUnmap")] {
        let outcome = replay_text(ops, settings, &machine);
        assert_eq!((outcome.reserved, outcome.peak_reserved, outcome.releases), (0, 20 * MIB, 1));
        assert_eq!(outcome.calls.count(back), 1);
        let without = Machine { skip_empty_cache: true, ..machine };
        assert_eq!(replay_text(ops, settings, &without).reserved, 20 * MIB);
    }
}

#[test]
fn what_fails_says_what_is_held() {
    for policy in [Policy::Native, Policy::Expandable] {
        let trace = Trace::decode(b"# stratalloc-trace 1\na 0 30000000 0\na 1 30000000 0\na 2 600 0\n").unwrap();
        let outcome = crate::replay(&trace, policy, 45 * MIB);
        let oom = outcome.out_of_memory.unwrap();
        assert_eq!((oom.op, oom.requested, oom.allocated), (1, 30_000_000, 30_000_128));
        assert_eq!(oom.reserved + oom.device_free, 45 * MIB);
        assert!(!outcome.fits() && outcome.retries == 1);
    }
}

/// One call of a program.
#[derive(Debug, Clone)]
enum Call {
    Alloc { bytes: u64, stream: u16 },
    Free { which: usize },
    Record { which: usize, stream: u16 },
    EmptyCache,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let size = prop_oneof![1..3000u64, 1..3 * MIB, MIB / 2..40 * MIB];
    let call = prop_oneof![
        6 => (size, 0..3u16).prop_map(|(bytes, stream)| Call::Alloc { bytes, stream }),
        5 => any::<usize>().prop_map(|which| Call::Free { which }),
        2 => (any::<usize>(), 0..3u16).prop_map(|(which, stream)| Call::Record { which, stream }),
        1 => Just(Call::EmptyCache),
    ];
    prop::collection::vec(call, 1..200)
}

fn settings() -> impl Strategy<Value = Settings> {
    let conf = prop_oneof![
        Just(""),
        Just("max_split_size_mb:20"),
        Just("roundup_power2_divisions:4"),
        Just("per_process_memory_fraction:0.8,garbage_collection_threshold:0.5"),
    ];
    (conf, any::<bool>()).prop_map(|(conf, expandable)| Settings { expandable, ..conf.parse().unwrap() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is asked: blocks do not overlap, what is held is what was taken, and it never exceeds the device.
    #[test]
    fn the_structure_holds(calls in calls(), settings in settings(), lag in prop_oneof![Just(0), Just(20_000u64)]) {
        let machine = Machine { event_lag_ns: lag, ..Machine::new(150 * MIB) };
        let mut allocator = allocator(settings, &machine);
        let mut live: Vec<BlockId> = Vec::new();
        for call in calls {
            allocator.device.advance(300);
            match call {
                Call::Alloc { bytes, stream } => live.extend(allocator.malloc(bytes, stream)),
                Call::Free { .. } | Call::Record { .. } if live.is_empty() => {}
                Call::Free { which } => allocator.free(live.swap_remove(which % live.len())),
                Call::Record { which, stream } => allocator.record_stream(live[which % live.len()], stream),
                Call::EmptyCache => allocator.empty_cache(),
            }
            check(&mut allocator, &live)?;
        }
        // With nothing live, everything goes back.
        live.into_iter().for_each(|id| allocator.free(id));
        allocator.empty_cache();
        prop_assert_eq!((allocator.reserved(), allocator.allocated()), (0, 0));
        prop_assert_eq!(allocator.device.free_bytes(), machine.capacity);
    }
}

fn check(allocator: &mut Allocator, live: &[BlockId]) -> Result<(), TestCaseError> {
    prop_assert!(allocator.allocated() <= allocator.reserved());
    prop_assert_eq!(allocator.reserved() + allocator.device.free_bytes(), allocator.device.capacity());
    prop_assert!(allocator.reserved() <= allocator.peak_reserved());
    let free: Vec<BlockId> =
        [true, false].into_iter().flat_map(|small| allocator.pool(small).all().collect::<Vec<_>>()).collect();
    let blocks = &allocator.blocks;
    let mut ranges = BTreeMap::new();
    for &id in free.iter().chain(live) {
        let block = &blocks[id];
        prop_assert!(ranges.insert(block.address, block.size).is_none(), "two blocks at one address");
        for (neighbour, back) in [(block.prev, false), (block.next, true)] {
            let Some(other) = neighbour else { continue };
            let other_block = &blocks[other];
            prop_assert_eq!(if back { other_block.prev } else { other_block.next }, Some(id));
            let end = if back { block.address + block.size } else { other_block.address + other_block.size };
            prop_assert_eq!(end, if back { other_block.address } else { block.address });
            // Two free neighbours that are alike are one.
            let alike = block.is_idle() && other_block.is_idle() && block.mapped == other_block.mapped;
            prop_assert!(!alike, "{block:?} and {other_block:?} are not merged");
        }
    }
    let sum: u64 = ranges.values().sum();
    prop_assert!(sum <= allocator.reserved());
    let mut end = 0;
    for (address, size) in ranges {
        prop_assert!(address >= end, "blocks overlap");
        end = address + size;
    }
    Ok(())
}
