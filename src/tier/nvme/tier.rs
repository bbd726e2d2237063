//! The tier itself: slots, transfers, and what encryption puts between them.

use std::fmt;

use parking_lot::Mutex;

use super::super::{Direction, Io, Slot, Ticket, Tier, TierError};
use super::cipher::{Cipher, Seal, Unopened};
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
    /// The seals are kept, which lie at this place, and the buffer is used again.
    Sealed { at: u64, seals: Vec<Seal>, buffer: Memory },
    /// What was read is opened.
    Opened { at: u64, buffer: *mut u8, size: u64 },
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
        let places = Places::new(capacity, if spec.encrypt { UNIT } else { PAGE });
        let room = Mutex::new(Room { places, lengths: vec![0; lengths.len()] });
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
        let unit = self.alignment();
        let within = io.offset.checked_add(io.size).is_some_and(|end| end <= io.slot.size);
        let wrong = if !within {
            "it is not within the slot"
        } else if !io.offset.is_multiple_of(unit) {
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
        if self.cipher.is_some() { UNIT } else { PAGE }
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

    unsafe fn start(&self, io: Io) -> Result<Ticket, TierError> {
        self.check_process("start")?;
        self.check(&io)?;
        let (at, direction) = (io.slot.offset + io.offset, io.direction);
        // The slot has room for it, and so has the buffer.
        let size = io.size.next_multiple_of(self.alignment());
        let mut buffer = io.buffer;
        let load = match (&self.cipher, direction) {
            (Some(cipher), Direction::Write) if size > 0 => {
                // SAFETY: the buffer holds `size` bytes that nobody writes now, as the caller promises.
                let plain = unsafe { std::slice::from_raw_parts(io.buffer, size as usize) };
                let Some((mut sealed, seals)) = cipher.seal(at, plain) else {
                    return Err(io_error(format!("encrypt {}", ByteSize(size)), "out of memory", libc::ENOMEM));
                };
                buffer = sealed.start();
                Load::Sealed { at, seals, buffer: sealed }
            }
            (Some(_), Direction::Read) => Load::Opened { at, buffer, size },
            _ => Load::Plain,
        };
        // SAFETY: the buffer is the caller's, who promises it, or ours, which the load keeps until the transfer has ended.
        unsafe { self.flights.start(Plan { direction, at, buffer, size, load }) }.map_err(|(error, load)| {
            if let (Some(cipher), Load::Sealed { buffer, .. }) = (&self.cipher, load) {
                cipher.recycle(buffer);
            }
            error
        })
    }

    fn finish(&self, ticket: Ticket, wait: bool) -> Option<Result<(), TierError>> {
        if let Err(error) = self.check_process("finish") {
            return Some(Err(error));
        }
        let (result, load) = self.flights.finish(ticket, wait)?;
        let (Some(cipher), Some(load)) = (&self.cipher, load) else { return Some(result) };
        Some(match load {
            Load::Plain => result,
            Load::Sealed { at, seals, buffer } => {
                cipher.recycle(buffer);
                result.map(|()| cipher.keep(at, seals))
            }
            Load::Opened { at, buffer, size } => result.and_then(|()| {
                // SAFETY: the transfer has ended, and the caller has not been told so yet: the buffer's `size` bytes are still ours.
                let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, size as usize) };
                cipher.open(at, bytes).map_err(|(at, unopened)| self.unopened(at, &unopened))
            }),
        })
    }
}

impl NvmeTier {
    #[cold]
    fn unopened(&self, at: u64, unopened: &Unopened) -> TierError {
        let part = self.flights.layout().part(at, UNIT);
        let (size, folder) = (ByteSize(part.size), &self.flights.folders()[part.file]);
        let what = format!("{size} at {} of the file in {folder}", part.offset);
        match *unopened {
            Unopened::Empty => io_error(format!("read {what}"), "nothing was ever stored there", 0),
            Unopened::Altered { expected, found } => {
                TierError::Corrupt { tier: NAME.to_string(), what, expected, found }
            }
        }
    }
}

impl fmt::Debug for NvmeTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
