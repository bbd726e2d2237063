//! Real threads: blocks change hands, magazines are emptied by others, threads and allocators end in any order.

mod common;

use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use common::rig::{KIB, MIB, Rng, check, check_empties, request, soft, stats};
use parking_lot::Mutex;
use stratalloc::driver::soft::{Backing, SoftDevice};
use stratalloc::tier::Evictable;
use stratalloc::{Allocator, DevicePtr, Error, EventKind, StreamId};

fn open(mib: u64, text: &str) -> Allocator {
    soft(SoftDevice::builder(mib * MIB).backing(Backing::AddressesOnly), text).1
}

/// Who owns which block: one owner at a time, or the test fails.
#[derive(Default)]
struct Owners {
    shards: [Mutex<HashMap<u64, u64>>; 16],
    /// Requested bytes in anybody's hands.
    bytes: AtomicU64,
}

impl Owners {
    fn shard(&self, ptr: DevicePtr) -> &Mutex<HashMap<u64, u64>> {
        &self.shards[(ptr.0 >> 9) as usize % 16]
    }

    fn take(&self, ptr: DevicePtr, size: u64) {
        assert!(self.shard(ptr).lock().insert(ptr.0, size).is_none(), "{ptr} was handed out twice");
        self.bytes.fetch_add(size, Relaxed);
    }

    fn give(&self, ptr: DevicePtr) {
        let size = self.shard(ptr).lock().remove(&ptr.0).expect("it was handed out");
        self.bytes.fetch_sub(size, Relaxed);
    }
}

/// One thread's part: allocates, frees its own and what others sent, sends some to the next.
fn churn(
    allocator: &Allocator,
    owners: &Owners,
    seed: u64,
    steps: u64,
    size_max: u64,
    (next, inbox): (Sender<DevicePtr>, Receiver<DevicePtr>),
) {
    let (mut rng, mut held) = (Rng(seed), Vec::new());
    let free = |ptr| {
        owners.give(ptr);
        allocator.raw_free(ptr).unwrap();
    };
    for _ in 0..steps {
        match rng.below(10) {
            0..5 => match allocator.raw_alloc(request(rng.size(size_max), StreamId(0))) {
                Ok(ptr) => {
                    owners.take(ptr, allocator.usable_size(ptr).unwrap());
                    held.push(ptr);
                }
                Err(Error::OutOfMemory(_)) => held.drain(..).for_each(free),
                Err(error) => panic!("{error}"),
            },
            5..7 if !held.is_empty() => free(held.swap_remove(rng.index(held.len()))),
            7..9 if !held.is_empty() => {
                let ptr = held.swap_remove(rng.index(held.len()));
                if next.send(ptr).is_err() {
                    free(ptr);
                }
            }
            _ => inbox.try_iter().for_each(free),
        }
    }
    drop(next);
    held.into_iter().for_each(free);
    inbox.iter().for_each(free);
}

fn run_churn(allocator: &Allocator, threads: u64, steps: u64, size_max: u64, seed: u64) {
    let owners = Owners::default();
    let (senders, mut inboxes): (Vec<_>, Vec<_>) = (0..threads).map(|_| channel()).unzip();
    let mut ends: Vec<_> = senders
        .into_iter()
        .zip({
            inboxes.rotate_left(1);
            inboxes
        })
        .collect();
    // Sender i goes to thread i + 1; each thread sends on its own channel and reads its neighbour's.
    thread::scope(|scope| {
        let spawn = |(index, ends)| {
            let owners = &owners;
            scope.spawn(move || churn(allocator, owners, seed + index as u64, steps, size_max, ends))
        };
        let handles: Vec<_> = ends.drain(..).enumerate().map(spawn).collect();
        // The end of a scope does not wait for what threads do on their way out.
        handles.into_iter().for_each(|handle| handle.join().unwrap());
    });
    assert_eq!(owners.bytes.load(Relaxed), 0);
    let stats = check(allocator, 0);
    assert_eq!((stats.live.current, stats.active.current), (0, 0), "{stats:#?}");
    assert_eq!(stats.allocs, stats.frees);
    assert_eq!(stats.magazines, 0, "threads that ended have brought their blocks back");
}

#[test]
fn blocks_change_hands() {
    for (threads, text) in [(2, ""), (4, ""), (4, "magazine:0"), (3, "trace:100"), (8, "magazine:0.01")] {
        let allocator = open(256, text);
        run_churn(&allocator, threads, 20_000, 300 * KIB, 1);
        run_churn(&allocator, threads, 20_000, 4 * KIB, 2);
        check_empties(&allocator, 0);
    }
}

#[test]
fn magazines_are_emptied_under_pressure() {
    for text in ["magazine:1", "magazine:1,limit:0.5", ""] {
        let allocator = open(16, text);
        run_churn(&allocator, 4, 20_000, 2 * MIB, 3);
        assert!(stats(&allocator).out_of_memory > 0, "the device is small enough to be full");
        check_empties(&allocator, 0);
    }
}

#[test]
fn what_an_idle_thread_caches_serves_another() {
    let allocator = open(16, "magazine:1");
    let (filled, done) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let held: Vec<_> = (0..12).map(|_| allocator.raw_alloc(request(MIB, StreamId(0))).unwrap()).collect();
            held.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
            let small: Vec<_> = (0..100).map(|_| allocator.raw_alloc(request(9 * KIB, StreamId(0))).unwrap()).collect();
            small.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
            filled.wait();
            done.wait();
        });
        filled.wait();
        assert!(stats(&allocator).magazines > MIB / 2, "{:#?}", stats(&allocator));
        let ptr = allocator.raw_alloc(request(16 * MIB, StreamId(0))).unwrap();
        check(&allocator, 0);
        allocator.raw_free(ptr).unwrap();
        done.wait();
    });
    check_empties(&allocator, 0);
}

#[test]
fn threads_that_end_bring_their_blocks_back() {
    let allocator = open(64, "magazine:1");
    for round in 0..200 {
        let left = thread::scope(|scope| {
            let work = || {
                let sizes = [100, 5000, 100 * KIB, 3 * MIB];
                let held = sizes.map(|size| allocator.raw_alloc(request(size, StreamId(0))).unwrap());
                allocator.raw_free(held[0]).unwrap();
                allocator.raw_free(held[2]).unwrap();
                [held[1], held[3]]
            };
            scope.spawn(work).join().unwrap()
        });
        let now = check(&allocator, 0);
        assert_eq!((now.magazines, now.live.current), (0, 5000 + 3 * MIB), "round {round}");
        thread::scope(|scope| {
            let free = || left.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
            scope.spawn(free).join().unwrap();
        });
    }
    assert!(stats(&allocator).reserved.peak <= 16 * MIB, "{:#?}", stats(&allocator));
    check_empties(&allocator, 0);
}

#[test]
fn an_allocator_may_go_before_the_threads_that_used_it() {
    let (go, gone) = (Barrier::new(4), Barrier::new(4));
    thread::scope(|scope| {
        let allocator = open(64, "");
        for _ in 0..3 {
            let (allocator, go, gone) = (allocator.clone(), &go, &gone);
            scope.spawn(move || {
                for _ in 0..10 {
                    allocator.raw_free(allocator.raw_alloc(request(5000, StreamId(0))).unwrap()).unwrap();
                }
                drop(allocator);
                go.wait();
                gone.wait();
                // The cache of the allocator that went serves the next.
                let other = open(32, "");
                other.raw_free(other.raw_alloc(request(5000, StreamId(0))).unwrap()).unwrap();
                check_empties(&other, 0);
            });
        }
        go.wait();
        drop(allocator);
        gone.wait();
    });
}

#[test]
fn allocators_and_threads_end_at_the_same_time() {
    for _ in 0..300 {
        let allocator = open(16, "");
        let start = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..2 {
                let (allocator, start) = (allocator.clone(), &start);
                scope.spawn(move || {
                    let ptr = allocator.raw_alloc(request(9000, StreamId(0))).unwrap();
                    allocator.raw_free(ptr).unwrap();
                    start.wait();
                });
            }
            start.wait();
            drop(allocator);
        });
    }
}

#[test]
fn many_allocators_one_after_another_do_not_grow() {
    let metadata = |allocator: &Allocator| stats(allocator).metadata;
    let mut first = None;
    for _ in 0..1000 {
        let allocator = open(16, "");
        let ptr = allocator.raw_alloc(request(3000, StreamId(0))).unwrap();
        allocator.raw_free(ptr).unwrap();
        let fresh = check(&allocator, 0);
        assert_eq!((fresh.allocs, fresh.frees), (1, 1), "nothing is left of the one before");
        assert_eq!(metadata(&allocator), *first.get_or_insert(metadata(&allocator)));
    }
}

/// A thread outlives an allocator that it used. The cache that it had there must not go to another thread as long as it knows of it.
#[test]
fn no_two_threads_share_a_cache_after_an_allocator_has_gone() {
    let (jobs, inbox) = channel::<Allocator>();
    let (done, results) = channel();
    let worker = thread::spawn(move || {
        for allocator in inbox {
            drop(allocator.alloc(request(512, StreamId::DEFAULT)).unwrap());
            drop(allocator);
            done.send(()).unwrap();
        }
    });
    jobs.send(open(64, "")).unwrap();
    results.recv().unwrap();
    let second = open(64, "");
    drop(second.alloc(request(512, StreamId::DEFAULT)).unwrap());
    let one_cache = stats(&second).metadata;
    jobs.send(second.clone()).unwrap();
    results.recv().unwrap();
    assert!(stats(&second).metadata > one_cache, "two threads, one cache");
    drop(jobs);
    worker.join().unwrap();
    assert_eq!(stats(&second).metadata, one_cache, "the worker's has been given back");
    check_empties(&second, 0);
}

#[test]
fn a_thread_changes_between_allocators() {
    for count in [2, 3, 12] {
        let allocators: Vec<_> = (0..count).map(|_| open(16, "")).collect();
        let (mut rng, mut held) = (Rng(5), Vec::new());
        for step in 0..20_000 {
            let index = step % count;
            if rng.percent(60) {
                if let Ok(ptr) = allocators[index].raw_alloc(request(rng.size(20 * KIB), StreamId(0))) {
                    held.push((index, ptr));
                }
            } else if !held.is_empty() {
                let (index, ptr) = held.swap_remove(rng.index(held.len()));
                allocators[index].raw_free(ptr).unwrap();
            }
        }
        for (index, allocator) in allocators.iter().enumerate() {
            let live = held.iter().filter(|block| block.0 == index).count() as u64;
            let stats = check(allocator, 0);
            assert_eq!(stats.allocs - stats.frees, live);
        }
        held.into_iter().for_each(|(index, ptr)| allocators[index].raw_free(ptr).unwrap());
        allocators.iter().for_each(|allocator| check_empties(allocator, 0));
    }
}

#[test]
fn statistics_and_settings_may_be_used_while_threads_work() {
    let allocator = open(64, "");
    let stop = AtomicU64::new(0);
    thread::scope(|scope| {
        for seed in 0..3 {
            let (allocator, stop) = (&allocator, &stop);
            scope.spawn(move || {
                churn(allocator, &Owners::default(), seed, 5_000, 100 * KIB, channel());
                stop.fetch_add(1, Relaxed);
            });
        }
        while stop.load(Relaxed) < 3 {
            let now = stats(&allocator);
            assert!(now.reserved.current <= now.limit);
            allocator.reset_peaks(0).unwrap();
            allocator.empty_cache(0).unwrap();
            thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    check_empties(&allocator, 0);
}

#[test]
fn traced_events_are_in_order() {
    let allocator = open(64, "trace:1000000");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20_000).for_each(|_| drop(allocator.alloc(request(3 * MIB, StreamId(0))).unwrap())));
        }
    });
    let mut live = std::collections::HashSet::new();
    for event in allocator.events(0).unwrap() {
        let in_order = match event.kind {
            EventKind::Alloc => live.insert(event.ptr),
            EventKind::Free => live.remove(&event.ptr),
            _ => true,
        };
        assert!(in_order, "{event:?}");
    }
}

#[test]
fn a_tags_limit_holds_from_when_it_is_set() {
    const BLOCK: u64 = 4 * KIB;
    let allocator = open(64, "");
    let tag = allocator.tag("cache").unwrap();
    let done = AtomicU64::new(0);
    let barrier = Barrier::new(3);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                barrier.wait();
                let mut held = Vec::new();
                while done.load(Relaxed) == 0 {
                    match allocator.raw_alloc(request(BLOCK, StreamId(0)).tag(tag)) {
                        Ok(ptr) => held.push(ptr),
                        Err(Error::OverLimit { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if held.len() > 20 {
                        held.drain(..).for_each(|ptr| allocator.raw_free(ptr).unwrap());
                    }
                }
                held.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
            });
        }
        barrier.wait();
        // Where more were handed out than a limit allowed, the same limit would be refused when it is set again.
        let set = |blocks: u64| allocator.set_tag_limit(0, tag, Some((blocks * BLOCK).into()));
        let broken = (0..10_000).find_map(|_| {
            let least = (0..43).find(|&blocks| set(blocks).is_ok())?;
            let again = set(least);
            allocator.set_tag_limit(0, tag, None).unwrap();
            again.err()
        });
        done.store(1, Relaxed);
        assert_eq!(broken, None);
    });
    check_empties(&allocator, 0);
}

#[test]
fn two_evictable_blocks_do_not_both_get_the_last_of_a_limit() {
    let allocator = open(64, "tiers:host=64MiB");
    let tag = allocator.tag("cache").unwrap();
    allocator.set_tag_limit(0, tag, Some((2 * MIB).into())).unwrap();
    let barrier = Barrier::new(2);
    let worker = || {
        let mut wins = Vec::new();
        for round in 0..10_000 {
            barrier.wait();
            let asked = request(2 * MIB, StreamId(0)).tag(tag);
            let ptr = allocator.alloc_evictable(asked, Evictable::default()).ok();
            wins.extend(ptr.map(|_| round));
            barrier.wait();
            ptr.into_iter().for_each(|ptr| allocator.raw_free(ptr).unwrap());
        }
        wins
    };
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(worker);
        (worker(), one.join().unwrap())
    });
    assert!(one.iter().all(|round| !other.contains(round)), "both had it");
    assert_eq!(one.len() + other.len(), 10_000, "somebody had it");
    assert_eq!(stats(&allocator).tags, [], "none of it is left");
    check_empties(&allocator, 0);
}
