//! Memory that runs out, limits, and allocators that come and go.

use stratalloc::driver::Driver;
use stratalloc::units::{ByteSize, DevicePtr, StreamId};
use stratalloc::{AllocFlags, AllocRequest, Allocator, Error, Limit, OomCause, OomRemedy, OutOfMemory};

use crate::kit::{Bench, Checks, GIB, KIB, MIB, Rng, Streams, drag, ends_empty, fill, sound};

/// Blocks of an allocator with known contents.
struct Held<'a> {
    bench: &'a Bench<'a>,
    allocator: Allocator,
    checks: Checks<'a>,
    blocks: Vec<(DevicePtr, u64, u32, StreamId)>,
    seed: u32,
}

impl<'a> Held<'a> {
    fn new(bench: &'a Bench<'a>, allocator: Allocator) -> Held<'a> {
        Held { bench, allocator, checks: Checks::new(bench.driver), blocks: Vec::new(), seed: 1 }
    }

    fn ask(&mut self, request: AllocRequest) -> stratalloc::Result<()> {
        let ptr = self.allocator.raw_alloc(request)?;
        self.seed += 1;
        fill(self.bench.driver, ptr, request.size, self.seed, request.stream);
        self.blocks.push((ptr, request.size, self.seed, request.stream));
        Ok(())
    }

    /// Asks until there is no room, and says why there is none.
    fn fill_up(&mut self, request: AllocRequest) -> Box<OutOfMemory> {
        loop {
            match self.ask(request) {
                Ok(()) => {}
                Err(Error::OutOfMemory(shortage)) => return shortage,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn free(&mut self, index: usize) {
        self.free_under_way(index, 2);
    }

    /// Checks and frees a block to which junk is still being written.
    fn free_under_way(&mut self, index: usize, times: u32) {
        let (ptr, size, seed, stream) = self.blocks.swap_remove(index);
        self.checks.check(ptr, size, seed, stream, "before it is freed");
        drag(self.bench.driver, ptr, size, times, stream);
        self.allocator.raw_free(ptr).unwrap();
    }

    fn verify(&mut self) {
        for &(ptr, size, seed, stream) in &self.blocks {
            self.checks.check(ptr, size, seed, stream, "held");
        }
        self.checks.settle();
    }

    /// Does what an explanation proposes, and asks again.
    fn follow(&mut self, shortage: &OutOfMemory, mut request: AllocRequest) {
        let explanation = &shortage.explanation;
        let remedy = explanation.remedy().unwrap_or_else(|| panic!("no remedy: {explanation}")).clone();
        println!("  {:?}: {:.160}", explanation.cause, format!("{remedy:?}"));
        assert!(!explanation.to_string().is_empty());
        match &remedy {
            OomRemedy::Retry => {}
            OomRemedy::Synchronize(streams) => {
                streams.iter().for_each(|&stream| self.bench.driver.synchronize_stream(stream).unwrap());
            }
            OomRemedy::AllowGrowth => request.flags -= AllocFlags::NO_GROW,
            OomRemedy::EmptyCache => _ = self.allocator.empty_cache(0).unwrap(),
            &OomRemedy::RaiseLimit(to) => self.allocator.set_limit(0, Limit::from(to)).unwrap(),
            OomRemedy::Free(blocks) | OomRemedy::FreePins(blocks) => {
                for block in blocks {
                    let index = self.blocks.iter().position(|known| known.0 == block.ptr).unwrap();
                    self.free(index);
                }
            }
            &OomRemedy::AskForLess(size) | &OomRemedy::Split(size) => request.size = size,
            other => panic!("{other:?} is not expected here: {explanation}"),
        }
        self.ask(request).unwrap_or_else(|error| panic!("after {remedy:?}: {error}"));
    }

    fn finish(mut self) {
        self.verify();
        while !self.blocks.is_empty() {
            self.free(0);
        }
        self.checks.settle();
        sound(&self.allocator);
        ends_empty(&self.allocator);
    }
}

pub fn a_limit_is_kept_and_its_remedy_works(bench: &Bench<'_>) {
    let streams = Streams::new(bench.driver, 2);
    let (a, b) = (streams.all[0], streams.all[1]);
    let unit = bench.bytes(128 * MIB);
    let limit = bench.bytes(2 * GIB);
    let mut held = Held::new(bench, bench.limited(2 * GIB, "magazine:0"));
    let request = AllocRequest::new(unit).stream(a);
    let shortage = held.fill_up(request);
    assert_eq!((shortage.explanation.cause, held.blocks.len() as u64), (OomCause::Limit, limit / unit));
    held.verify();
    held.follow(&shortage, request);
    // What one stream has freed and is still writing to is not another's without a wait.
    let shortage = held.fill_up(request);
    held.follow(&shortage, request);
    for _ in 0..4 {
        held.free_under_way(0, 60);
    }
    let other = AllocRequest::new(unit).stream(b).flags(AllocFlags::NO_GROW);
    let mut served = 0;
    loop {
        match held.ask(other) {
            Ok(()) => served += 1,
            Err(Error::OutOfMemory(shortage)) => break held.follow(&shortage, other),
            Err(error) => panic!("{error}"),
        }
        assert!(served <= 4 + 2);
    }
    held.verify();
    // Limits below what is in use are refused, and keep what they were.
    let refused = held.allocator.set_limit(0, Limit::from(unit)).unwrap_err();
    assert!(matches!(refused, Error::LimitBelowUse { .. }), "{refused}");
    assert!(held.allocator.stats(0).unwrap().limit >= limit);
    while held.blocks.len() > 2 {
        held.free(0);
    }
    held.allocator.set_limit(0, Limit::from(4 * unit)).unwrap();
    let stats = sound(&held.allocator);
    assert!(stats.reserved.current <= 4 * unit, "{stats:#?}");
    held.verify();
    let refused = held.ask(AllocRequest::new(5 * unit)).unwrap_err();
    assert!(matches!(refused, Error::NeverFits { .. }), "{refused}");
    let shortage = held.fill_up(request);
    assert_eq!(held.blocks.len(), 4, "{}", shortage.explanation);
    held.finish();
}

/// Somebody else has nearly all of the device.
pub fn the_device_runs_out(bench: &Bench<'_>) {
    let streams = Streams::new(bench.driver, 1);
    let stream = streams.all[0];
    let free = bench.free();
    let hog = bench.driver.alloc_plain(free - bench.bytes(4 * GIB)).unwrap();
    let mut held = Held::new(bench, bench.allocator(""));
    let unit = bench.bytes(256 * MIB);
    let request = AllocRequest::new(unit).stream(stream);
    let shortage = held.fill_up(request);
    println!("  after {} of {}: {:.400}", held.blocks.len(), ByteSize(unit), shortage.explanation.to_string());
    assert!(held.blocks.len() >= 8, "{}", shortage.explanation);
    // A driver may also keep back some of what it calls free.
    let cause = shortage.explanation.cause;
    assert!(matches!(cause, OomCause::OtherProcesses | OomCause::DriverRefused), "{}", shortage.explanation);
    assert!(shortage.driver.is_some() || shortage.explanation.driver.is_some());
    held.verify();
    // Small ones find room in what is there, and what is freed serves again.
    held.free(0);
    held.ask(request).unwrap();
    let shortage = held.fill_up(AllocRequest::new(64 * KIB).stream(stream));
    assert_eq!(shortage.size, 64 * KIB);
    held.verify();
    bench.driver.free_plain(hog).unwrap();
    held.ask(request).unwrap();
    let total = bench.driver.properties().total_memory;
    let refused = held.ask(AllocRequest::new(2 * total)).unwrap_err();
    assert!(matches!(refused, Error::NeverFits { .. }), "{refused}");
    held.finish();
}

/// Two at a time, dropped with blocks in use and work under way.
pub fn allocators_come_and_go(bench: &Bench<'_>) {
    let streams = Streams::new(bench.driver, 2);
    let mut rng = Rng(7);
    let free = bench.free();
    for round in 0..50 {
        let mut pair = [0, 1].map(|_| Held::new(bench, bench.limited(GIB, "")));
        for step in 0..24 {
            let held = &mut pair[step % 2];
            let size = rng.size(1, bench.bytes(64 * MIB));
            held.ask(AllocRequest::new(size).stream(streams.all[step / 2 % 2])).unwrap();
            if rng.percent(40) {
                held.free(rng.below(held.blocks.len() as u64) as usize);
            }
        }
        for held in &mut pair {
            held.verify();
            // Still being written when the allocator goes, which waits for it.
            let (ptr, size, _, stream) = held.blocks[0];
            drag(bench.driver, ptr, size, 10, stream);
        }
        drop(pair);
        let left = free.saturating_sub(bench.free());
        assert!(left < 64 * MIB, "round {round}: {} did not come back", ByteSize(left));
    }
}
