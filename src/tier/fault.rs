//! A tier that makes reads and writes of another fail: for tests, as [`crate::driver::fault`] is for drivers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{Direction, Io, Slot, Ticket, Tier, TierError};
use crate::driver::fault::When;
use crate::driver::rng::Rng;
use crate::units::DevicePtr;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierFaultKind {
    /// There is no room, whatever the other tier says.
    Full,
    /// A read or write is refused when it is to begin, with this error number.
    Refused(i32),
    /// A read or write begins, and fails with this error number.
    Failed(i32),
    /// Half of the bytes are read or written, and then the file ends.
    Short,
    /// A read gives other bytes than were written.
    Altered,
    /// A read or write takes so many looks longer.
    Slow(u32),
}

/// A failure to inject. Calls are counted from 1, from when it is injected: reservations for [`TierFaultKind::Full`], reads for
/// [`TierFaultKind::Altered`], reads and writes for all others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TierFault {
    /// Which calls.
    pub when: When,
    /// What goes wrong.
    pub kind: TierFaultKind,
    /// Only reads, or only writes, where given.
    pub only: Option<Direction>,
}

#[derive(Debug)]
struct Injected {
    fault: TierFault,
    seen: u64,
    rng: Rng,
}

/// A read or write under way.
#[derive(Debug)]
struct Begun {
    inner: Ticket,
    io: Io,
    kind: Option<TierFaultKind>,
    looks: u32,
}

/// Passes calls on to another tier, except those that a [`TierFault`] makes fail. The device does not reach it by itself, so that every byte
/// goes through [`Tier::start`].
#[derive(Debug)]
pub struct FaultTier {
    inner: Arc<dyn Tier>,
    faults: Mutex<Vec<Injected>>,
    begun: Mutex<HashMap<u64, Begun>>,
    next: AtomicU64,
    failures: AtomicU64,
}

impl FaultTier {
    /// A tier in which nothing fails until a fault is injected.
    pub fn new(inner: Arc<dyn Tier>) -> FaultTier {
        let (faults, begun) = (Mutex::default(), Mutex::default());
        FaultTier { inner, faults, begun, next: AtomicU64::new(0), failures: AtomicU64::new(0) }
    }

    /// Makes calls fail from now on. The first fault that applies to a call decides.
    pub fn inject(&self, fault: TierFault) {
        let seed = if let When::Random { seed, .. } = fault.when { seed } else { 0 };
        self.faults.lock().push(Injected { fault, seen: 0, rng: Rng::new(seed) });
    }

    /// Takes all faults back.
    pub fn clear(&self) {
        self.faults.lock().clear();
    }

    /// How many calls were made to fail.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// The tier behind this one.
    pub fn inner(&self) -> &Arc<dyn Tier> {
        &self.inner
    }

    /// What happens to a call, if something does: `direction` of a read or write, none for a reservation.
    fn hit(&self, direction: Option<Direction>) -> Option<TierFaultKind> {
        let mut hit = None;
        for injected in self.faults.lock().iter_mut() {
            let TierFault { when, kind, only } = injected.fault;
            let concerns = match (kind, direction) {
                (TierFaultKind::Full, direction) => direction.is_none(),
                (TierFaultKind::Altered, direction) => direction == Some(Direction::Read),
                (_, direction) => direction.is_some_and(|direction| only.is_none_or(|only| only == direction)),
            };
            if !concerns {
                continue;
            }
            injected.seen += 1;
            let applies = match when {
                When::Nth(n) => injected.seen == n,
                When::From(n) => injected.seen >= n,
                When::Random { probability, .. } => injected.rng.chance(probability),
            };
            if applies && hit.is_none() {
                hit = Some(kind);
            }
        }
        if hit.is_some() {
            self.failures.fetch_add(1, Relaxed);
        }
        hit
    }

    fn error(&self, io: &Io, errno: i32, reason: &str) -> TierError {
        let verb = if io.direction == Direction::Read { "read" } else { "write" };
        let what = format!("{verb} {} at {} of slot {}", io.size, io.offset, io.slot.offset);
        TierError::Io { tier: self.name().to_string(), what, reason: format!("injected fault: {reason}"), errno }
    }
}

impl Tier for FaultTier {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }

    fn used(&self) -> u64 {
        self.inner.used()
    }

    fn alignment(&self) -> u64 {
        self.inner.alignment()
    }

    fn reserve(&self, size: u64) -> Result<Slot, TierError> {
        match self.hit(None) {
            Some(_) => Err(TierError::Full {
                tier: self.name().to_string(),
                size,
                used: self.used(),
                capacity: self.capacity(),
            }),
            None => self.inner.reserve(size),
        }
    }

    fn release(&self, slot: Slot) {
        self.inner.release(slot);
    }

    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        self.inner.shrink(slot, size)
    }

    fn address(&self, _: Slot) -> Option<DevicePtr> {
        None
    }

    fn seam(&self) -> u64 {
        self.inner.seam()
    }

    /// # Safety
    /// As [`Tier::attach`] says.
    unsafe fn attach(&self, memory: *mut u8, size: u64) {
        // SAFETY: the caller's promise is what the other tier asks for.
        unsafe { self.inner.attach(memory, size) }
    }

    fn detach(&self, memory: *mut u8) {
        self.inner.detach(memory);
    }

    /// # Safety
    /// As [`Tier::start`] says.
    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError> {
        let kind = self.hit(Some(io.direction));
        if let Some(TierFaultKind::Refused(errno)) = kind {
            return Err(self.error(&io, errno, "refused"));
        }
        let half = if kind == Some(TierFaultKind::Short) { (io.size / 2).max(1) } else { io.size };
        // Rounded down to what the tier takes; a read of less than that is whole.
        let size = if half >= self.alignment() { half / self.alignment() * self.alignment() } else { io.size };
        let part = if kind == Some(TierFaultKind::Short) { Io { size, ..io } } else { io };
        // SAFETY: the caller's promise holds for a part of what it is about.
        let inner = unsafe { self.inner.start(part) }?;
        let looks = if let Some(TierFaultKind::Slow(looks)) = kind { looks } else { 0 };
        let number = self.next.fetch_add(1, Relaxed);
        self.begun.lock().insert(number, Begun { inner, io, kind, looks });
        Ok(Ticket(number))
    }

    fn finish(&self, ticket: Ticket, wait: bool) -> Option<Result<(), TierError>> {
        let mut begun = self.begun.lock();
        let entry = begun.get_mut(&ticket.0)?;
        if entry.looks > 0 && !wait {
            entry.looks -= 1;
            return None;
        }
        let ended = self.inner.finish(entry.inner, wait)?;
        let Begun { io, kind, .. } = begun.remove(&ticket.0)?;
        Some(ended.and_then(|()| match kind {
            Some(TierFaultKind::Failed(errno)) => Err(self.error(&io, errno, "failed")),
            Some(TierFaultKind::Short) => Err(self.error(&io, 0, "the file ends too early")),
            Some(TierFaultKind::Altered) => {
                // SAFETY: the buffer holds so many bytes and is ours until this returns that the read has ended (the contract of `start`).
                unsafe { *io.buffer.add(io.size as usize / 2) ^= 0x10 };
                Ok(())
            }
            _ => Ok(()),
        }))
    }
}
