//! A fresh start: when next to nothing is in use and memory is full, free ranges are put together, in stream order and without a wait.

mod common;

use std::sync::Arc;

use common::rig::{MIB, Rng, check, check_empties, pattern, probes, request, soft, stats};
use stratalloc::driver::Driver;
use stratalloc::driver::soft::{Access, Backing, SoftDevice};
use stratalloc::{Allocator, BlockState, DevicePtr, Error, Rung, StreamId};

const CAPACITY: u64 = 256 * MIB;
/// As long as it takes the host to make hundreds of calls: the device always lags.
const KERNEL_NS: u64 = 200_000;

/// A program whose every block is written by kernels, and compared before it is freed.
struct Program {
    device: Arc<SoftDevice>,
    allocator: Allocator,
    stream: StreamId,
    rng: Rng,
    blocks: Vec<(DevicePtr, u64, u64)>,
}

impl Program {
    fn new(seed: u64) -> Program {
        let builder = SoftDevice::builder(CAPACITY).backing(Backing::Memfd).seed(seed).checker(true);
        let (device, allocator) = soft(builder, "");
        let stream = device.create_stream().unwrap();
        Program { device, allocator, stream, rng: Rng(seed), blocks: Vec::new() }
    }

    fn alloc(&mut self, size: u64) -> Result<(), Error> {
        let ptr = self.allocator.raw_alloc(request(size, self.stream))?;
        self.device.note_alloc(ptr, size, self.stream);
        self.device.launch(self.stream, &[Access::write(ptr, size)], KERNEL_NS).unwrap();
        let seed = self.rng.bits();
        for (at, len) in probes(ptr, size) {
            self.device.write(at, &pattern(seed ^ at.0, len), self.stream).unwrap();
        }
        self.blocks.push((ptr, size, seed));
        Ok(())
    }

    fn free(&mut self, index: usize) {
        let (ptr, size, seed) = self.blocks.swap_remove(index);
        for (at, len) in probes(ptr, size) {
            let mut found = vec![0; len];
            self.device.read(&mut found, at, self.stream).unwrap();
            assert_eq!(found, pattern(seed ^ at.0, len), "{at} has changed");
        }
        self.device.note_free(ptr, size);
        self.allocator.raw_free(ptr).unwrap();
    }

    /// Blocks come and go at random until the device has been full for a while; then all go but the first `kept`.
    fn phase(&mut self, kept: usize) {
        let mut refused = 0;
        while refused < 40 {
            let size = (1 + self.rng.below(24)) * MIB + self.rng.below(MIB / 512) * 512;
            match self.alloc(size) {
                Ok(()) => {}
                Err(Error::OutOfMemory(_)) => {
                    refused += 1;
                    for _ in 0..=self.rng.below(6) {
                        let index = kept + self.rng.index(self.blocks.len() - kept);
                        self.free(index);
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        while self.blocks.len() > kept {
            self.free(self.blocks.len() - 1);
        }
    }

    /// The free ranges of a chunk and more.
    fn free_ranges(&self) -> usize {
        let segments = self.allocator.snapshot(0).unwrap().segments;
        let blocks = segments.iter().flat_map(|segment| &segment.blocks);
        blocks.filter(|block| block.state == BlockState::Free && block.size >= 2 * MIB).count()
    }
}

#[test]
fn what_is_free_comes_together() {
    let mut came_apart = 0;
    for seed in 0..8 {
        let mut program = Program::new(seed);
        // Somebody else has a part of the device: the limit is out of reach, and what is left is as full.
        let taken = (seed % 2 == 1).then(|| program.device.alloc_plain(24 * MIB).unwrap());
        for kept in 0..3 {
            if kept > 0 {
                // In use throughout, and where it was.
                program.alloc(3 * MIB).unwrap();
                let last = program.blocks.len() - 1;
                program.blocks.swap(kept - 1, last);
            }
            program.phase(kept);
            let before = program.free_ranges();
            came_apart = came_apart.max(before);
            let waits = stats(&program.allocator).rung(Rung::Wait);
            // The next large request finds all that is free in one piece, besides what lies among the blocks that stay.
            program.alloc(5 * MIB).unwrap();
            let after = program.free_ranges();
            assert!(after <= 1 + kept, "{after} free ranges of {before} are left beside {kept} blocks, seed {seed}");
            program.alloc(CAPACITY - 64 * MIB).unwrap();
            assert_eq!(stats(&program.allocator).rung(Rung::Wait), waits, "nothing was waited for");
            check(&program.allocator, 0);
            (0..2).for_each(|_| program.free(program.blocks.len() - 1));
            assert_eq!(program.device.reports(), []);
        }
        (0..program.blocks.len()).for_each(|_| program.free(0));
        check_empties(&program.allocator, 0);
        assert_eq!(program.device.reports(), []);
        taken.into_iter().for_each(|ptr| program.device.free_plain(ptr).unwrap());
    }
    assert!(came_apart > 4, "the program is too tame: {came_apart} free ranges");
}

#[test]
fn nothing_is_gathered_while_there_is_room() {
    let mut program = Program::new(1);
    // Three quarters of the device, in ranges that stay apart.
    program.allocator.set_limit(0, stratalloc::Limit::Fraction(0.5)).unwrap();
    program.phase(0);
    program.allocator.set_limit(0, stratalloc::Limit::Fraction(1.0)).unwrap();
    let before = program.free_ranges();
    program.alloc(5 * MIB).unwrap();
    assert!(program.free_ranges() >= before.saturating_sub(1), "{before}, {}", program.free_ranges());
    program.free(0);
    assert_eq!(program.device.reports(), []);
    check_empties(&program.allocator, 0);
}
