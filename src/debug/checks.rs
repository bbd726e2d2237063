//! Comparisons on the device: each writes what it finds to a slot in pinned memory, and an event says when that may be read.

use std::collections::VecDeque;

use super::report::{MemoryFault, MemoryFaultKind};
use super::{POISON, Watched, ZONE};
use crate::driver::kernels::Finding;
use crate::driver::{Driver, DriverResult, EventId, EventStatus, HostPtr};
use crate::units::{DevicePtr, StreamId};

/// Comparisons that may be under way: 4096, a page's worth of slots sixteen times over.
pub(super) const SLOTS: u32 = 4096;

/// A range in which something should be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    kind: MemoryFaultKind,
    pub(super) of: Watched,
    /// Where the range begins, and its size.
    pub(super) at: u64,
    pub(super) size: u64,
}

impl Suspect {
    /// The red zone of a block.
    pub(super) fn zone(of: Watched) -> Suspect {
        let (at, size) = (of.ptr.0 + of.requested, of.size - of.requested);
        Suspect { kind: MemoryFaultKind::Overflow, of, at, size }
    }

    /// A part of a freed block, from `at` on.
    pub(super) fn freed(of: Watched, at: u64, size: u64) -> Suspect {
        Suspect { kind: MemoryFaultKind::WriteAfterFree, of, at, size }
    }

    fn pattern(&self) -> u32 {
        match self.kind {
            MemoryFaultKind::Overflow => ZONE,
            MemoryFaultKind::WriteAfterFree => POISON,
        }
    }
}

/// Comparisons that were submitted together.
#[derive(Debug)]
struct Open {
    event: EventId,
    suspects: Vec<(u32, Suspect)>,
}

#[derive(Debug)]
pub(super) struct Checks {
    device: usize,
    /// The slots, once there was something to compare.
    host: Option<HostPtr>,
    vacant: Vec<u32>,
    /// Oldest first.
    open: VecDeque<Open>,
    idle: Vec<EventId>,
}

impl Checks {
    pub(super) fn new(device: usize) -> Checks {
        Checks { device, host: None, vacant: (0..SLOTS).rev().collect(), open: VecDeque::new(), idle: Vec::new() }
    }

    pub(super) fn device(&self) -> usize {
        self.device
    }

    fn slot(host: HostPtr, slot: u32) -> HostPtr {
        HostPtr(host.0 + slot as usize * size_of::<Finding>())
    }

    fn host(&mut self, driver: &dyn Driver) -> DriverResult<HostPtr> {
        if self.host.is_none() {
            self.host = Some(driver.alloc_host(u64::from(SLOTS) * size_of::<Finding>() as u64)?);
        }
        Ok(self.host.unwrap_or(HostPtr(0)))
    }

    /// Submits comparisons to a stream. Those for which there is no slot are left out: so much is under way only where the device is far
    /// behind, and nobody is to wait for it. On a failure, those that were submitted are none the less looked at.
    pub(super) fn begin(&mut self, driver: &dyn Driver, stream: StreamId, suspects: Vec<Suspect>) -> DriverResult<()> {
        if suspects.is_empty() {
            return Ok(());
        }
        let host = self.host(driver)?;
        let event = self.idle.pop().map_or_else(|| driver.create_event(), Ok)?;
        let mut submitted = Vec::new();
        let mut result = Ok(());
        for suspect in suspects {
            let Some(slot) = self.vacant.pop() else { break };
            let at = Checks::slot(host, slot);
            // SAFETY: the slot lies in the pinned memory of `host`, aligned to a page, and nothing under way uses it, since it was vacant.
            unsafe { (at.0 as *mut Finding).write(Finding::NONE) };
            result = driver.check_words(DevicePtr(suspect.at), suspect.size, suspect.pattern(), at, stream);
            if result.is_err() {
                self.vacant.push(slot);
                break;
            }
            submitted.push((slot, suspect));
        }
        if submitted.is_empty() {
            self.idle.push(event);
            return result;
        }
        if let Err(error) = driver.record_event(event, stream) {
            // Nothing says when these have run: their slots are not used again.
            self.idle.push(event);
            return Err(error);
        }
        self.open.push_back(Open { event, suspects: submitted });
        result
    }

    /// What the comparisons found that have run by now.
    pub(super) fn poll(&mut self, driver: &dyn Driver) -> Vec<(Suspect, MemoryFault)> {
        let mut found = Vec::new();
        while let Some(front) = self.open.front()
            && driver.query_event(front.event) == Ok(EventStatus::Complete)
        {
            found.extend(self.close_front());
        }
        found
    }

    /// What all found, once the host has waited for them.
    pub(super) fn finish(&mut self, driver: &dyn Driver) -> Vec<(Suspect, MemoryFault)> {
        let mut found = Vec::new();
        while let Some(front) = self.open.front()
            && driver.synchronize_event(front.event).is_ok()
        {
            found.extend(self.close_front());
        }
        found
    }

    fn close_front(&mut self) -> Vec<(Suspect, MemoryFault)> {
        let (Some(open), Some(host)) = (self.open.pop_front(), self.host) else { return Vec::new() };
        self.idle.push(open.event);
        let mut found = Vec::new();
        for (slot, suspect) in open.suspects {
            self.vacant.push(slot);
            // SAFETY: as in `begin`; the event says that the comparison, which wrote this, has run.
            let finding = unsafe { (Checks::slot(host, slot).0 as *const Finding).read() };
            if let Some((offset, byte)) = finding.first() {
                found.push((suspect, self.fault(&suspect, finding.count, offset, byte)));
            }
        }
        found
    }

    fn fault(&self, suspect: &Suspect, count: u64, offset: u64, found: u8) -> MemoryFault {
        let Watched { ptr, requested, size, stream, tag, .. } = suspect.of;
        MemoryFault {
            device: self.device,
            kind: suspect.kind,
            ptr,
            size: requested,
            block_size: size,
            stream,
            tag,
            tag_name: None,
            at: DevicePtr(suspect.at + offset),
            count,
            found,
            expected: suspect.pattern().to_le_bytes()[(offset % 4) as usize],
        }
    }

    /// Gives events and slots back.
    pub(super) fn close(&mut self, driver: &dyn Driver) {
        for event in self.idle.drain(..).chain(self.open.drain(..).map(|open| open.event)) {
            // One that cannot be destroyed belongs to a context that is gone; so does the memory.
            let _ = driver.destroy_event(event);
        }
        if let Some(host) = self.host.take() {
            let _ = driver.free_host(host);
        }
    }
}
