//! The tier itself: slots, transfers, and what encryption puts between them.

use std::fmt;

use parking_lot::Mutex;

use super::super::{Direction, Io, Slot, Ticket, Tier, TierError};
use super::cipher::{Altered, Cipher, Seal};
use super::files::Files;
use super::files::memory::Memory;
use super::files::private::reason;
use super::flights::{Flights, Plan};
use super::layout::Layout;
use super::places::Places;
use super::spec::{NvmeSpec, PAGE, UNIT};
use super::{NAME, io_error, probe, unusable};
use crate::units::ByteSize;

/// What is done when a transfer of an encrypted tier has ended.
enum Load {
    /// Nothing.
    Plain,
    /// The seals are kept, and the buffer is used again.
    Write { seals: Vec<Seal>, buffer: Memory },
    /// The buffer, or what was read beside it, is opened, and what was asked for is copied there.
    Read { seals: Vec<Seal>, at: u64, buffer: *mut u8, size: u64, beside: Option<Memory> },
}

// SAFETY: the pointer is to a buffer that nobody else touches until its transfer has been told to have ended, as `Tier::start` requires.
unsafe impl Send for Load {}

/// How far the files reach.
struct Room {
    places: Places,
    /// By file.
    lengths: Vec<u64>,
}

/// Files on NVMe disks.
pub(super) struct NvmeTier {
    flights: Flights<Load>,
    room: Mutex<Room>,
    cipher: Option<Cipher>,
    capacity: u64,
    note: Option<String>,
}

impl NvmeTier {
    /// By the best means that work.
    ///
    /// # Errors
    /// [`TierError::Unusable`].
    pub(super) fn open(spec: &NvmeSpec) -> Result<NvmeTier, TierError> {
        spec.check().map_err(unusable)?;
        let opened = probe::open(spec).map_err(unusable)?;
        NvmeTier::over(spec, opened.files, opened.folders, opened.note)
    }

    /// Over files that work.
    pub(super) fn over(
        spec: &NvmeSpec,
        files: Box<dyn Files>,
        folders: Vec<String>,
        note: Option<String>,
    ) -> Result<NvmeTier, TierError> {
        let cipher = if spec.encrypt { Some(Cipher::new().map_err(unusable)?) } else { None };
        let lengths: Vec<u64> = spec.paths.iter().map(|path| path.bytes / UNIT * UNIT).collect();
        let layout = Layout::new(spec.stripe, &lengths);
        let capacity = layout.capacity();
        let room = Mutex::new(Room { places: Places::new(capacity), lengths: vec![0; lengths.len()] });
        let flights = Flights::new(files, layout, folders, spec.depth, spec.piece);
        Ok(NvmeTier { flights, room, cipher, capacity, note })
    }

    fn check_process(&self, what: &str) -> Result<(), TierError> {
        if self.flights.is_ours() {
            return Ok(());
        }
        Err(io_error(what.to_string(), "the tier is that of the process that forked this one", 0))
    }

    /// Whether a transfer is within a slot that is taken, and its buffer where the disk can reach it.
    fn check(&self, io: &Io) -> Result<(), TierError> {
        let within = io.offset.checked_add(io.size).is_some_and(|end| end <= io.slot.size);
        let wrong = if !within {
            "it is not within the slot"
        } else if !io.offset.is_multiple_of(PAGE) {
            "it does not begin at a multiple of the tier's alignment"
        } else if !(io.buffer as u64).is_multiple_of(PAGE) {
            "its buffer is not aligned to 4 KiB"
        } else if !self.room.lock().places.contains(io.slot) {
            "there is no such slot"
        } else {
            return Ok(());
        };
        let (size, offset) = (ByteSize(io.size), io.offset);
        Err(io_error(format!("{:?} {size} at {offset} of {:?}", io.direction, io.slot), wrong, 0))
    }

    /// Makes the tier's first `end` bytes exist.
    fn back(&self, lengths: &mut [u64], end: u64) -> Result<(), TierError> {
        let wanted = self.flights.layout().lengths(end, lengths.len());
        for (file, (length, wanted)) in lengths.iter_mut().zip(wanted).enumerate() {
            if wanted > *length {
                self.flights.files().extend(file, *length, wanted).map_err(|errno| {
                    let folder = &self.flights.folders()[file];
                    io_error(format!("make the file in {folder} {} long", ByteSize(wanted)), &reason(errno), errno)
                })?;
                *length = wanted;
            }
        }
        Ok(())
    }

    /// Checks slots and room.
    #[cfg(test)]
    pub(super) fn validate(&self) -> Result<(), String> {
        self.room.lock().places.validate()
    }
}

impl Tier for NvmeTier {
    fn name(&self) -> &str {
        NAME
    }

    fn describe(&self) -> String {
        let note = self.note.as_ref().map_or(String::new(), |note| format!("; {note}"));
        let encrypted = if self.cipher.is_some() { ", AES-256-GCM" } else { "" };
        let capacity = ByteSize(self.capacity);
        format!("{NAME}: {capacity} by {}{encrypted}{note}", self.flights.files().describe())
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn used(&self) -> u64 {
        if self.flights.is_ours() { self.room.lock().places.used() } else { 0 }
    }

    fn alignment(&self) -> u64 {
        PAGE
    }

    fn reserve(&self, size: u64) -> Result<Slot, TierError> {
        self.check_process("reserve")?;
        let Room { places, lengths } = &mut *self.room.lock();
        places.reserve(size, |end| self.back(lengths, end))
    }

    fn release(&self, slot: Slot) {
        if !self.flights.is_ours() {
            return;
        }
        if let Some(cipher) = &self.cipher {
            // Before the slot can be somebody else's.
            cipher.forget(slot.offset, slot.size);
        }
        self.room.lock().places.release(slot);
    }

    fn shrink(&self, slot: Slot, size: u64) -> Slot {
        if !self.flights.is_ours() {
            return slot;
        }
        let (kept, whole) = (size.saturating_add(PAGE - 1) / PAGE * PAGE, slot.size);
        if let Some(cipher) = self.cipher.as_ref().filter(|_| kept < whole) {
            // Before it can be somebody else's.
            cipher.forget(slot.offset + kept, whole - kept);
        }
        self.room.lock().places.shrink(slot, size)
    }

    // SAFETY: as the trait says.
    unsafe fn attach(&self, memory: *mut u8, size: u64) {
        // What an encrypted tier writes is in buffers of its own.
        if self.flights.is_ours() {
            // SAFETY: as the caller promises.
            unsafe { self.flights.files().attach(memory, size) };
        }
    }

    fn detach(&self, memory: *mut u8) {
        if self.flights.is_ours() {
            self.flights.files().detach(memory);
        }
    }

    // SAFETY: as the trait says.
    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError> {
        self.check_process("start")?;
        self.check(&io)?;
        // The slot has room for whole pages, and so has the buffer.
        let (at, size) = (io.slot.offset + io.offset, io.size.next_multiple_of(PAGE));
        let plan = match &self.cipher {
            // SAFETY: the buffer holds `size` bytes that nobody else touches, as the caller promises.
            Some(cipher) if size > 0 => unsafe { Self::encrypted(cipher, io.direction, at, io.buffer, size) }?,
            _ => Plan { direction: io.direction, at, buffer: io.buffer, size, load: Load::Plain },
        };
        // SAFETY: the buffer is the caller's, who promises it, or ours, which the load keeps until the transfer has ended.
        unsafe { self.flights.start(plan) }.map_err(|(error, load)| {
            self.recycle(load);
            error
        })
    }

    fn finish(&self, ticket: Ticket, wait: bool) -> Option<Result<(), TierError>> {
        if let Err(error) = self.check_process("finish") {
            return Some(Err(error));
        }
        let (result, load) = self.flights.finish(ticket, wait)?;
        let (Some(cipher), Some(mut load)) = (&self.cipher, load) else { return Some(result) };
        let result = result.and_then(|()| match &mut load {
            Load::Plain => Ok(()),
            Load::Write { seals, .. } => {
                cipher.keep(std::mem::take(seals));
                Ok(())
            }
            Load::Read { seals, at, buffer, size, beside } => {
                // SAFETY: the transfer has ended, and the caller has not been told so yet: the buffer's `size` bytes are still ours.
                let bytes = unsafe { std::slice::from_raw_parts_mut(*buffer, *size as usize) };
                let read = beside.as_mut().map_or(&mut *bytes, Memory::bytes_mut);
                cipher.open(seals, read).map_err(|altered| self.altered(&altered))?;
                if let Some(beside) = beside {
                    bytes.copy_from_slice(&beside.bytes()[(*at - seals[0].at) as usize..][..*size as usize]);
                }
                Ok(())
            }
        });
        self.recycle(load);
        Some(result)
    }
}

impl NvmeTier {
    /// A transfer of an encrypted tier.
    ///
    /// # Safety
    /// The buffer holds `size` bytes that nobody else touches.
    unsafe fn encrypted(
        cipher: &Cipher,
        direction: Direction,
        at: u64,
        buffer: *mut u8,
        size: u64,
    ) -> Result<Plan<Load>, TierError> {
        let memory =
            || io_error(format!("a buffer of {} to encrypt in", ByteSize(size)), "out of memory", libc::ENOMEM);
        if direction == Direction::Write {
            // SAFETY: as the caller promises.
            let plain = unsafe { std::slice::from_raw_parts(buffer, size as usize) };
            let (mut sealed, seals) = cipher.seal(at, plain).ok_or_else(memory)?;
            let buffer = sealed.start();
            return Ok(Plan { direction, at, buffer, size, load: Load::Write { seals, buffer: sealed } });
        }
        let what = || format!("read {} at {at} of the tier", ByteSize(size));
        let seals = cipher.covering(at, size).ok_or_else(|| io_error(what(), "nothing was ever stored there", 0))?;
        let (first, whole) = (seals[0].at, seals.iter().map(|seal| seal.size).sum::<u64>());
        if (first, whole) == (at, size) {
            return Ok(Plan {
                direction,
                at,
                buffer,
                size,
                load: Load::Read { seals, at, buffer, size, beside: None },
            });
        }
        let mut beside = cipher.buffer(whole as usize).ok_or_else(memory)?;
        let theirs = beside.start();
        let load = Load::Read { seals, at, buffer, size, beside: Some(beside) };
        Ok(Plan { direction, at: first, buffer: theirs, size: whole, load })
    }

    fn recycle(&self, load: Load) {
        if let (Some(cipher), Load::Write { buffer, .. } | Load::Read { beside: Some(buffer), .. }) =
            (&self.cipher, load)
        {
            cipher.recycle(buffer);
        }
    }

    #[cold]
    fn altered(&self, altered: &Altered) -> TierError {
        let Altered { at, size, expected, found } = *altered;
        let part = self.flights.layout().part(at, size);
        let (size, folder) = (ByteSize(size), &self.flights.folders()[part.file]);
        let what = format!("{size} from {} of the file in {folder}", part.offset);
        TierError::Corrupt { tier: NAME.to_string(), what, expected, found }
    }
}

impl fmt::Debug for NvmeTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
