//! Debug aids: red zones behind blocks, poison in freed ones, a quarantine before they are used again. All off by default.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | what is known of each watched block, and of each poisoned range |
//! | `checks.rs` | comparisons on the device, whose results are looked at later |
//! | `report.rs` | what users are told |
//!
//! The pool says what happens to blocks (`src/pool/watch.rs`); nothing here knows of lanes or arenas. Memory is filled and compared by
//! kernels in the order of the block's stream ([`Driver::fill_words`], [`Driver::check_words`]), so nobody waits for anything. What a
//! comparison found is looked at when the next block is handed out or freed after it has run, or by `Allocator::check_memory`.
//!
//! Private pools and captures are left alone: a captured kernel would run again with each replay.

mod checks;
mod report;

use std::collections::{BTreeMap, VecDeque};

use crate::config::{Config, Poison};
use crate::driver::{CaptureStatus, Driver, DriverErrorKind, DriverResult};
use crate::units::{DevicePtr, StreamId};
use checks::{Checks, Suspect};
pub use report::{Leaks, MemoryFault, MemoryFaultKind, MemoryObserver, MemoryReport, Share};

/// What a freed block is filled with: the bytes ef be ad de.
pub(crate) const POISON: u32 = 0xdead_beef;
/// What a red zone is filled with: the bytes fd fc fb fa, no two alike.
pub(crate) const ZONE: u32 = 0xfafb_fcfd;

/// Faults that are remembered, so that none is told twice.
const KNOWN: usize = 64;

/// A block of which the aids know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) ptr: DevicePtr,
    /// What the caller asked for, and the whole block.
    pub(crate) requested: u64,
    pub(crate) size: u64,
    pub(crate) stream: StreamId,
    pub(crate) tag: u8,
    /// Tells it from others that have been there.
    serial: u64,
    /// Whether its red zone is there.
    zoned: bool,
}

/// A range that was poisoned when a block was freed, or what is left of it.
#[derive(Debug, Clone, Copy)]
struct Patch {
    end: u64,
    of: Watched,
}

/// A freed block that is held back.
#[derive(Debug)]
pub(crate) struct Held<B> {
    /// The pool's name for it.
    pub(crate) block: B,
    of: Watched,
    poisoned: bool,
}

/// The aids of one device. `B` is the pool's name for a block.
#[derive(Debug)]
pub(crate) struct Aids<B> {
    poison: Poison,
    redzone: u64,
    quarantine_max: u64,
    next_serial: u64,
    /// By address.
    live: BTreeMap<u64, Watched>,
    /// By address; they do not overlap.
    patches: BTreeMap<u64, Patch>,
    held: VecDeque<Held<B>>,
    held_bytes: u64,
    checks: Checks,
    /// Found, and not told yet.
    reports: Vec<MemoryReport>,
    /// The last few that were found, by block and address: one damage may be seen by two comparisons that are under way at once.
    known: VecDeque<(u64, DevicePtr)>,
    /// Driver calls that failed.
    failures: u64,
}

impl<B> Aids<B> {
    /// The aids that are configured, if any are.
    pub(crate) fn new(device: usize, config: &Config) -> Option<Box<Aids<B>>> {
        let (poison, redzone, quarantine) = (config.poison, config.redzone.0, config.quarantine.0);
        if !config.works_on_blocks() && quarantine == 0 {
            return None;
        }
        Some(Box::new(Aids {
            poison,
            redzone,
            quarantine_max: quarantine,
            next_serial: 0,
            live: BTreeMap::new(),
            patches: BTreeMap::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            checks: Checks::new(device),
            reports: Vec::new(),
            known: VecDeque::new(),
            failures: 0,
        }))
    }

    /// Bytes that are held back.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Driver calls of the aids that failed.
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether a block at `ptr` would be held back if it were freed now.
    pub(crate) fn would_hold(&self, ptr: DevicePtr) -> bool {
        self.quarantine_max > 0 && self.live.get(&ptr.0).is_some_and(|block| block.size <= self.quarantine_max)
    }

    /// A block has been handed out: what is left of poison in it is compared, and its red zone drawn.
    pub(crate) fn handed_out(
        &mut self,
        driver: &dyn Driver,
        ptr: DevicePtr,
        (requested, size): (u64, u64),
        stream: StreamId,
        tag: u8,
    ) {
        self.look(driver);
        self.next_serial += 1;
        let mut block = Watched { ptr, requested, size, stream, tag, serial: self.next_serial, zoned: false };
        let captured = !self.compare_patches(driver, ptr, size, stream);
        if !captured && self.redzone > 0 && size > requested {
            let drawn = driver.fill_words(ptr.add(requested), size - requested, ZONE, stream);
            block.zoned = self.note(drawn);
        }
        self.live.insert(ptr.0, block);
    }

    /// Compares what is left of poison in a range, which is about to be written to by work of a stream, and forgets it. Not where the stream is
    /// being captured; returns whether it is not.
    pub(crate) fn compare_patches(&mut self, driver: &dyn Driver, ptr: DevicePtr, size: u64, stream: StreamId) -> bool {
        let patches = self.take_patches(ptr.0, ptr.0 + size);
        if is_captured(driver, stream) {
            return false;
        }
        let suspects = patches.into_iter().map(|(at, patch)| Suspect::freed(patch.of, at, patch.end - at));
        let suspects: Vec<Suspect> = suspects.collect();
        let checked = self.checks.begin(driver, stream, suspects);
        self.note(checked);
        true
    }

    /// A block is free, and so its red zone is compared, and it is poisoned. Gives it back where it is not to be held back.
    pub(crate) fn freed(&mut self, driver: &dyn Driver, block: B, ptr: DevicePtr) -> Option<B> {
        self.look(driver);
        let Some(of) = self.live.remove(&ptr.0) else { return Some(block) };
        let mut poisoned = false;
        if !is_captured(driver, of.stream) {
            if of.zoned {
                let checked = self.checks.begin(driver, of.stream, vec![Suspect::zone(of)]);
                self.note(checked);
            }
            if self.poison != Poison::Off {
                let filled = driver.fill_words(ptr, of.size, POISON, of.stream);
                poisoned = self.note(filled);
                if poisoned && self.poison == Poison::Check {
                    self.patches.insert(ptr.0, Patch { end: ptr.0 + of.size, of });
                }
            }
        }
        if of.size > self.quarantine_max {
            return Some(block);
        }
        self.held_bytes += of.size;
        self.held.push_back(Held { block, of, poisoned });
        None
    }

    /// A block is freed while nothing may be submitted for it.
    pub(crate) fn abandon(&mut self, ptr: DevicePtr) {
        self.live.remove(&ptr.0);
    }

    /// The block that has been held back longest, where more than `keep` bytes are: it is compared with its poison.
    pub(crate) fn release(&mut self, driver: &dyn Driver, keep: Option<u64>) -> Option<B> {
        if self.held_bytes <= keep.unwrap_or(self.quarantine_max) {
            return None;
        }
        let held = self.held.pop_front()?;
        self.held_bytes -= held.of.size;
        if held.poisoned && !is_captured(driver, held.of.stream) {
            let suspect = Suspect::freed(held.of, held.of.ptr.0, held.of.size);
            let checked = self.checks.begin(driver, held.of.stream, vec![suspect]);
            self.note(checked);
        }
        Some(held.block)
    }

    /// What lies at these addresses is no longer what was written there: other memory is mapped, or none.
    pub(crate) fn forget(&mut self, from: u64, to: u64) {
        self.take_patches(from, to);
    }

    /// Takes the parts of poisoned ranges that lie in a range.
    fn take_patches(&mut self, from: u64, to: u64) -> Vec<(u64, Patch)> {
        let mut taken = Vec::new();
        if let Some((&start, &patch)) = self.patches.range(..from).next_back()
            && patch.end > from
        {
            self.patches.insert(start, Patch { end: from, ..patch });
            self.patches.insert(from, patch);
        }
        while let Some((&start, &patch)) = self.patches.range(from..to).next() {
            self.patches.remove(&start);
            if patch.end > to {
                self.patches.insert(to, patch);
            }
            taken.push((start, Patch { end: patch.end.min(to), ..patch }));
        }
        taken
    }

    /// Looks at the comparisons that have run.
    fn look(&mut self, driver: &dyn Driver) {
        let found = self.checks.poll(driver);
        self.found(found);
    }

    fn found(&mut self, found: Vec<(Suspect, MemoryFault)>) {
        for (suspect, fault) in found {
            // Damage is told once.
            let of = suspect.of;
            match self.live.get_mut(&of.ptr.0).filter(|block| block.serial == of.serial) {
                Some(block) => block.zoned = false,
                None => {
                    let (from, to) = (suspect.at, suspect.at + suspect.size);
                    self.patches.retain(|&at, patch| !(patch.of.serial == of.serial && from <= at && patch.end <= to));
                    let held = self.held.iter_mut().filter(|held| held.of.serial == of.serial);
                    held.for_each(|held| held.poisoned = false);
                }
            }
            if self.known.contains(&(of.serial, fault.at)) {
                continue;
            }
            if self.known.len() == KNOWN {
                self.known.pop_front();
            }
            self.known.push_back((of.serial, fault.at));
            self.reports.push(MemoryReport::Fault(fault));
        }
    }

    /// Counts a failed call, which costs no more than what it would have found. Where there are no kernels at all, that is said once.
    fn note(&mut self, result: DriverResult<()>) -> bool {
        let Err(error) = result else { return true };
        self.failures += 1;
        if error.kind == DriverErrorKind::NotSupported && (self.redzone > 0 || self.poison != Poison::Off) {
            (self.redzone, self.poison) = (0, Poison::Off);
            self.reports.push(MemoryReport::Off { device: self.checks.device(), reason: error.to_string() });
        }
        false
    }

    /// Waits for the device, and compares every red zone and all poison. No stream need exist any more but the default one, on which this
    /// is done.
    pub(crate) fn check_all(&mut self, driver: &dyn Driver) -> DriverResult<()> {
        driver.synchronize_device()?;
        let found = self.checks.finish(driver);
        self.found(found);
        let zones = self.live.values().filter(|block| block.zoned).map(|&block| Suspect::zone(block));
        let patches = self.patches.iter().map(|(&at, patch)| Suspect::freed(patch.of, at, patch.end - at));
        // With `poison:check` these are patches already.
        let held = self.held.iter().filter(|held| held.poisoned && self.poison != Poison::Check);
        let held = held.map(|held| Suspect::freed(held.of, held.of.ptr.0, held.of.size));
        let suspects: Vec<Suspect> = zones.chain(patches).chain(held).collect();
        for some in suspects.chunks(checks::SLOTS as usize) {
            if let Err(error) = self.checks.begin(driver, StreamId::DEFAULT, some.to_vec()) {
                // What was submitted reads memory that no stream's clock guards.
                let _ = driver.synchronize_device();
                return Err(error);
            }
            let found = self.checks.finish(driver);
            self.found(found);
        }
        Ok(())
    }

    /// What has been found and not told.
    pub(crate) fn take_reports(&mut self) -> Vec<MemoryReport> {
        std::mem::take(&mut self.reports)
    }

    /// Takes reports back that were not told after all.
    pub(crate) fn give_back(&mut self, reports: Vec<MemoryReport>) {
        self.reports.splice(0..0, reports);
    }

    /// Gives back what the aids hold of the device. Nothing of theirs is under way.
    pub(crate) fn close(&mut self, driver: &dyn Driver) {
        self.checks.close(driver);
    }
}

/// Whether work submitted to the stream now would become part of a graph, or may.
fn is_captured(driver: &dyn Driver, stream: StreamId) -> bool {
    !matches!(driver.capture_status(stream), Ok(CaptureStatus::None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aids() -> Box<Aids<u32>> {
        Aids::new(0, &Config::parse("poison:check").unwrap()).unwrap()
    }

    fn poisoned(aids: &mut Aids<u32>, from: u64, to: u64, serial: u64) {
        let (ptr, size) = (DevicePtr(from), to - from);
        let of = Watched { ptr, requested: size, size, stream: StreamId(0), tag: 0, serial, zoned: false };
        aids.patches.insert(from, Patch { end: to, of });
    }

    fn ranges(patches: impl IntoIterator<Item = (u64, Patch)>) -> Vec<(u64, u64, u64)> {
        patches.into_iter().map(|(from, patch)| (from, patch.end, patch.of.serial)).collect()
    }

    #[test]
    fn poisoned_ranges_are_cut_where_they_are_used_again() {
        let mut aids = aids();
        poisoned(&mut aids, 0x1000, 0x3000, 1);
        poisoned(&mut aids, 0x3000, 0x4000, 2);
        poisoned(&mut aids, 0x5000, 0x6000, 3);
        assert_eq!(ranges(aids.take_patches(0x1800, 0x2000)), [(0x1800, 0x2000, 1)]);
        assert_eq!(
            ranges(aids.take_patches(0x2800, 0x5800)),
            [(0x2800, 0x3000, 1), (0x3000, 0x4000, 2), (0x5000, 0x5800, 3)]
        );
        assert_eq!(
            ranges(std::mem::take(&mut aids.patches)),
            [(0x1000, 0x1800, 1), (0x2000, 0x2800, 1), (0x5800, 0x6000, 3)]
        );
        assert!(aids.take_patches(0, u64::MAX).is_empty());
    }

    #[test]
    fn nothing_configured_is_nothing() {
        assert!(Aids::<u32>::new(0, &Config::parse("leaks:true").unwrap()).is_none());
    }
}
