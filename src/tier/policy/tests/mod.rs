//! The policies against models that are lists and nothing else, and what each is there for.

mod naive;

use std::collections::BTreeSet;

use naive::{Naive, NaiveArc, NaiveCost, NaiveLru, NaiveS3Fifo};
use proptest::prelude::*;

use super::*;

const CAPACITY: u64 = 400;

fn item(size: u64) -> Item {
    Item { size, frees: size, transfer_ns: size * 100, recompute_ns: None }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(Key, Item),
    Touch(Key),
    Update(Key, Item),
    Evicted(Key),
    Remove(Key),
    /// Bytes wanted, and keys that may not go.
    MakeRoom(u64, BTreeSet<Key>),
    Resize(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..24_u64;
    let item = (1..60_u64, 0..60_u64, 0..5000_u64, prop::option::of(0..5000_u64))
        .prop_map(|(size, frees, transfer_ns, recompute_ns)| Item { size, frees, transfer_ns, recompute_ns });
    let op = prop_oneof![
        6 => (key.clone(), item.clone()).prop_map(|(key, item)| Op::Insert(key, item)),
        8 => key.clone().prop_map(Op::Touch),
        1 => (key.clone(), item).prop_map(|(key, item)| Op::Update(key, item)),
        1 => key.clone().prop_map(Op::Evicted),
        1 => key.clone().prop_map(Op::Remove),
        4 => (0..150_u64, prop::collection::btree_set(key, 0..6)).prop_map(|(bytes, held)| Op::MakeRoom(bytes, held)),
        1 => (50..800_u64).prop_map(Op::Resize),
    ];
    prop::collection::vec(op, 0..200)
}

/// Does the same to both, and compares what they choose.
fn agree(mut real: Box<dyn VictimPolicy>, mut naive: Box<dyn Naive>, ops: &[Op]) -> Result<(), TestCaseError> {
    for (at, op) in ops.iter().enumerate() {
        match op {
            Op::Insert(key, item) => {
                real.insert(*key, *item);
                naive.insert(*key, *item);
            }
            Op::Touch(key) => {
                real.touch(*key);
                naive.touch(*key);
            }
            Op::Update(key, item) => {
                real.update(*key, *item);
                naive.update(*key, *item);
            }
            Op::Evicted(key) => {
                real.evicted(*key);
                naive.evicted(*key);
            }
            Op::Remove(key) => {
                real.remove(*key);
                naive.remove(*key);
            }
            Op::MakeRoom(bytes, held) => {
                let victims = real.victims(*bytes, &mut |key| !held.contains(&key));
                let expected = naive.make_room(*bytes, held);
                prop_assert_eq!(&victims, &expected, "{} at step {}", real.name(), at);
                victims.iter().for_each(|&key| real.evicted(key));
            }
            Op::Resize(capacity) => {
                real.resize(*capacity);
                naive.resize(*capacity);
            }
        }
        prop_assert_eq!(real.len(), naive.len(), "{} at step {}", real.name(), at);
    }
    Ok(())
}

proptest! {
    #[test]
    fn each_is_its_naive_model(ops in ops()) {
        agree(Policy::Lru.build(CAPACITY), Box::new(NaiveLru::default()), &ops)?;
        agree(Policy::S3Fifo.build(CAPACITY), Box::new(NaiveS3Fifo::new(CAPACITY)), &ops)?;
        agree(Policy::Arc.build(CAPACITY), Box::new(NaiveArc::new(CAPACITY)), &ops)?;
        agree(Policy::Cost.build(CAPACITY), Box::new(NaiveCost::default()), &ops)?;
    }

    #[test]
    fn victims_are_enough_or_all(ops in ops(), bytes in 0..2000_u64, held in prop::collection::btree_set(0..24_u64, 0..12)) {
        for policy in Policy::ALL {
            let mut real = policy.build(CAPACITY);
            let mut resident = std::collections::BTreeMap::new();
            for op in &ops {
                match op {
                    Op::Insert(key, item) => {
                        real.insert(*key, *item);
                        resident.insert(*key, *item);
                    }
                    Op::Touch(key) => real.touch(*key),
                    Op::Remove(key) => {
                        real.remove(*key);
                        resident.remove(key);
                    }
                    Op::Evicted(key) => {
                        real.evicted(*key);
                        resident.remove(key);
                    }
                    _ => {}
                }
            }
            let victims = real.victims(bytes, &mut |key| !held.contains(&key));
            let distinct: BTreeSet<Key> = victims.iter().copied().collect();
            prop_assert_eq!(distinct.len(), victims.len());
            prop_assert!(victims.iter().all(|key| resident.contains_key(key) && !held.contains(key)));
            let freed = |keys: &[Key]| keys.iter().map(|key| resident[key].frees).sum::<u64>();
            let movable = resident.keys().filter(|key| !held.contains(key)).count();
            prop_assert!(freed(&victims) >= bytes || victims.len() == movable, "{}", policy);
            if let Some((_, others)) = victims.split_last() {
                prop_assert!(freed(others) < bytes, "{}: one more than is needed", policy);
            }
            // A proposal is no eviction.
            prop_assert_eq!(real.len(), resident.len());
        }
    }
}

#[test]
fn names_are_read_back() {
    for policy in Policy::ALL {
        assert_eq!(policy.name().parse(), Ok(policy));
        assert_eq!(policy.build(1).name(), policy.name());
        assert!(policy.build(1).is_empty());
    }
    assert_eq!("belady".parse::<Policy>(), Err(()));
    assert_eq!(Policy::default(), Policy::Cost);
}

/// How often the ten hot objects, used twice a round, are found by the first use, while a scan goes by between rounds.
fn hot_hits_during_a_scan(policy: Policy) -> f64 {
    let mut real = policy.build(CAPACITY);
    let mut resident = BTreeSet::new();
    let (mut hits, mut uses) = (0, 0);
    for round in 0..400_u64 {
        let scanned = (0..40).map(|at| 1000 + round * 40 + at);
        for (at, key) in (0..10).chain(0..10).chain(scanned).enumerate() {
            let is_hit = resident.contains(&key);
            if at < 10 && round >= 10 {
                uses += 1;
                hits += u32::from(is_hit);
            }
            if is_hit {
                real.touch(key);
                continue;
            }
            if resident.len() as u64 * 10 >= CAPACITY {
                for key in real.victims(10, &mut |_| true) {
                    real.evicted(key);
                    resident.remove(&key);
                }
            }
            real.insert(key, item(10));
            resident.insert(key);
        }
    }
    f64::from(hits) / f64::from(uses)
}

#[test]
fn a_scan_pushes_the_hot_out_of_lru_only() {
    assert_eq!(hot_hits_during_a_scan(Policy::Lru), 0.0);
    assert!(hot_hits_during_a_scan(Policy::S3Fifo) > 0.95);
    assert!(hot_hits_during_a_scan(Policy::Arc) > 0.95);
}

#[test]
fn cost_prefers_what_is_cheap_large_and_stale() {
    let mut real = CostAware::new();
    let mut first = |items: &[Item]| {
        (0..).zip(items).for_each(|(key, item)| real.insert(key, *item));
        let victims = real.victims(1, &mut |_| true);
        (0..items.len() as Key).for_each(|key| real.remove(key));
        victims[0]
    };
    // Recompute is cheaper than transfer.
    assert_eq!(first(&[item(64), Item { recompute_ns: Some(10), ..item(64) }]), 1);
    // It costs the same and frees four times as much.
    assert_eq!(first(&[Item { frees: 16, ..item(64) }, item(64)]), 1);
    // All the same: what was used longest ago.
    assert_eq!(first(&[item(64), item(64), item(64)]), 0);
    // What frees nothing goes last, though it costs nothing.
    assert_eq!(first(&[Item { frees: 0, transfer_ns: 0, ..item(64) }, item(64)]), 1);
    // Ten times as dear a byte, but used long ago.
    real.insert(0, Item { transfer_ns: 64_000, ..item(64) });
    real.insert(1, item(64));
    assert_eq!(real.victims(1, &mut |_| true), [1]);
    (0..100).for_each(|_| real.touch(1));
    assert_eq!(real.victims(1, &mut |_| true), [0]);
    // Extremes do not overflow.
    real.insert(2, Item { size: u64::MAX, frees: 1, transfer_ns: u64::MAX, recompute_ns: Some(u64::MAX) });
    assert_eq!(real.victims(u64::MAX, &mut |_| true).len(), 3);
}
