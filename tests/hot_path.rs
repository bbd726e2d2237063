//! What a warm pair does not do: no driver call, and nothing but the thread's magazine, which has no lock.

use std::thread;

use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec, Rung, StreamId};

const PAIRS: u64 = 10_000;

fn pairs(allocator: &Allocator, size: u64, stream: StreamId) {
    for _ in 0..PAIRS {
        let ptr = allocator.raw_alloc(AllocRequest::new(size).stream(stream)).unwrap();
        allocator.raw_free(ptr).unwrap();
    }
}

/// Driver calls, and requests served by any rung but the magazine.
fn work(allocator: &Allocator) -> (u64, u64) {
    let stats = allocator.stats(0).unwrap();
    let others = stats.rungs.iter().sum::<u64>() - stats.rung(Rung::Magazine);
    (allocator.driver(0).unwrap().calls().total().count, others)
}

#[test]
fn warm_pairs_of_any_size_are_served_by_the_magazine_alone() {
    let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(8))).build().unwrap();
    for size in [512, 64 << 10, 2 << 20, 64 << 20] {
        pairs(&allocator, size, StreamId(1));
        let before = work(&allocator);
        let served = allocator.stats(0).unwrap().rung(Rung::Magazine);
        pairs(&allocator, size, StreamId(1));
        assert_eq!(work(&allocator), before, "{size}");
        assert_eq!(allocator.stats(0).unwrap().rung(Rung::Magazine), served + PAIRS, "{size}");
    }
}

#[test]
fn warm_pairs_of_two_threads_are_too() {
    let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(8))).build().unwrap();
    let run = || {
        let spawn = |stream| {
            let allocator = allocator.clone();
            thread::spawn(move || {
                pairs(&allocator, 2 << 20, stream);
                let before = work(&allocator).0;
                pairs(&allocator, 2 << 20, stream);
                before
            })
        };
        let threads = [spawn(StreamId(1)), spawn(StreamId(2))];
        threads.map(|thread| thread.join().unwrap())
    };
    // Each thread takes its first block from the pool once; whatever the other does, 20,000 pairs call the driver a handful of times.
    run();
    let (calls, others) = work(&allocator);
    assert!(others <= 2 && calls <= 40, "{calls} driver calls, {others} requests past the magazines");
}
