//! Transfers under way: cut into pieces that lie together in one file, a bounded number of which the disk has at a time.
//!
//! Whoever asks whether a transfer has ended moves all of them on. One of those who wait sits in the system; the others wait for that one, which
//! wakes them: an end that one thread takes from the system cannot be missed by another that way.

use std::collections::VecDeque;
use std::mem::{ManuallyDrop, take};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::{Direction, Ticket, TierError};
use super::files::private::reason;
use super::files::{Done, Files, Op};
use super::layout::Layout;
use super::spec::PAGE;
use super::{NAME, io_error};
use crate::units::{ByteSize, align_down};

/// How often a piece is tried again that the system broke off for no fault of the disk.
const TRIES_MAX: u32 = 100;

/// A transfer to be.
pub(super) struct Plan<L> {
    pub(super) direction: Direction,
    /// Where in the tier.
    pub(super) at: u64,
    pub(super) buffer: *mut u8,
    pub(super) size: u64,
    /// What the caller wants back when it has ended.
    pub(super) load: L,
}

struct Flight<L> {
    plan: Plan<L>,
    /// Bytes that have been cut into pieces so far.
    cut: u64,
    /// Pieces that the disk has.
    flying: u32,
    error: Option<TierError>,
}

impl<L> Flight<L> {
    /// Whether no more pieces will be cut.
    fn is_cut(&self) -> bool {
        self.cut == self.plan.size || self.error.is_some()
    }

    fn has_ended(&self) -> bool {
        self.flying == 0 && self.is_cut()
    }
}

/// A number for a flight, and how often it has been given.
struct Berth<L> {
    generation: u32,
    flight: Option<Flight<L>>,
}

/// What the disk has of a flight.
#[derive(Debug, Clone, Copy)]
struct Piece {
    berth: u32,
    op: Op,
    tries: u32,
}

struct Inner<L> {
    berths: Vec<Berth<L>>,
    vacant: Vec<u32>,
    /// Flights that are not all cut, oldest first.
    uncut: VecDeque<u32>,
    /// By token.
    pieces: Vec<Option<Piece>>,
    tokens: Vec<u32>,
    /// Somebody waits in the system: nobody else takes ends from there.
    led: bool,
    done: Vec<Done>,
}

/// Transfers under way.
pub(super) struct Flights<L> {
    files: ManuallyDrop<Box<dyn Files>>,
    layout: Layout,
    /// The folders of the files, for messages.
    folders: Vec<String>,
    depth: usize,
    piece: u64,
    process: u32,
    inner: Mutex<Inner<L>>,
    /// The one who waited in the system is back.
    back: Condvar,
}

// SAFETY: the buffers that flights point to are used by nobody else until they have ended, as `Flights::start` requires, on whatever thread.
unsafe impl<L: Send> Send for Flights<L> {}
// SAFETY: as above; all that changes lies behind the lock.
unsafe impl<L: Send> Sync for Flights<L> {}

impl<L> Flights<L> {
    pub(super) fn new(
        files: Box<dyn Files>,
        layout: Layout,
        folders: Vec<String>,
        depth: usize,
        piece: u64,
    ) -> Flights<L> {
        let inner = Inner {
            berths: Vec::new(),
            vacant: Vec::new(),
            uncut: VecDeque::new(),
            pieces: vec![None; depth],
            tokens: (0..depth as u32).rev().collect(),
            led: false,
            done: Vec::new(),
        };
        let (files, process) = (ManuallyDrop::new(files), std::process::id());
        Flights { files, layout, folders, depth, piece, process, inner: Mutex::new(inner), back: Condvar::new() }
    }

    pub(super) fn files(&self) -> &dyn Files {
        &**self.files
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn folders(&self) -> &[String] {
        &self.folders
    }

    /// Whether this is the process that set the tier up. A child after `fork` shares its files with the parent, and touches nothing.
    pub(super) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// Starts a transfer. The plan comes back where there are too many.
    ///
    /// # Safety
    /// Nobody else touches the buffer's `size` bytes until [`Flights::finish`] has said that this ended.
    pub(super) unsafe fn start(&self, plan: Plan<L>) -> Result<Ticket, (TierError, L)> {
        let mut inner = self.inner.lock();
        let berth = match inner.vacant.pop() {
            Some(berth) => berth,
            None if inner.berths.len() < self.depth => {
                inner.berths.push(Berth { generation: 0, flight: None });
                inner.berths.len() as u32 - 1
            }
            None => return Err((TierError::Busy { tier: NAME.to_string(), depth: self.depth }, plan.load)),
        };
        let place = &mut inner.berths[berth as usize];
        place.generation = place.generation.wrapping_add(1);
        place.flight = Some(Flight { plan, cut: 0, flying: 0, error: None });
        let ticket = Ticket(u64::from(place.generation) << 32 | u64::from(berth));
        inner.uncut.push_back(berth);
        self.pump(&mut inner, Vec::new());
        Ok(ticket)
    }

    /// How a transfer ended.
    pub(super) fn finish(&self, ticket: Ticket, wait: bool) -> Option<(Result<(), TierError>, Option<L>)> {
        let (berth, generation) = (ticket.0 as u32, (ticket.0 >> 32) as u32);
        let mut inner = self.inner.lock();
        loop {
            let place = inner.berths.get_mut(berth as usize).filter(|place| place.generation == generation);
            let Some(Berth { flight: slot @ Some(_), .. }) = place else {
                let error = io_error(format!("finish {ticket:?}"), "no such transfer, or it has been told already", 0);
                return Some((Err(error), None));
            };
            if let Some(flight) = slot.take_if(|flight| flight.has_ended()) {
                inner.vacant.push(berth);
                return Some((flight.error.map_or(Ok(()), Err), Some(flight.plan.load)));
            }
            if inner.led {
                if !wait {
                    return None;
                }
                self.back.wait(&mut inner);
                continue;
            }
            if self.gather(&mut inner) {
                continue;
            }
            if !wait {
                return None;
            }
            self.lead(&mut inner);
        }
    }

    /// Waits in the system until something may have ended.
    fn lead(&self, inner: &mut MutexGuard<'_, Inner<L>>) {
        inner.led = true;
        MutexGuard::unlocked(inner, || self.files.wait());
        inner.led = false;
        self.gather(inner);
        self.back.notify_all();
    }

    /// Takes what has ended from the files, and moves on what goes on. Whether anything had ended.
    fn gather(&self, inner: &mut Inner<L>) -> bool {
        let mut done = take(&mut inner.done);
        self.files.reap(&mut done);
        let any = !done.is_empty();
        let mut again = Vec::new();
        for end in done.drain(..) {
            self.settle(inner, end, &mut again);
        }
        inner.done = done;
        self.pump(inner, again);
        any
    }

    /// What a result means for its piece: it is complete, it failed, or what is left of it is done `again`.
    fn settle(&self, inner: &mut Inner<L>, Done { token, result }: Done, again: &mut Vec<Op>) {
        let slot = inner.pieces.get_mut(token as usize);
        let Some(slot @ Some(_)) = slot else { return debug_assert!(false, "token {token} is not under way") };
        let mut piece = slot.take().expect("matched above");
        let mut error = None;
        match result {
            // Broken off: by a signal, for want of memory, or because the thread that began it has ended.
            code if [libc::EINTR, libc::EAGAIN, libc::ECANCELED].contains(&-code) && piece.tries < TRIES_MAX => {
                piece.tries += 1;
            }
            code if code < 0 => error = Some(self.error(&piece.op, &reason(-code), -code)),
            count => {
                // What follows begins where the disk can begin.
                let count = (count as u32).min(piece.op.size);
                let whole = if count < piece.op.size { align_down(count.into(), PAGE) as u32 } else { count };
                if whole == 0 {
                    piece.tries += 1;
                    if count == 0 && piece.op.direction == Direction::Read {
                        error = Some(self.error(&piece.op, "the file ends before it: somebody has cut it off", 0));
                    } else if piece.tries >= TRIES_MAX {
                        error = Some(self.error(&piece.op, "the system does not get on with it", 0));
                    }
                }
                piece.op.buffer = piece.op.buffer.wrapping_add(whole as usize);
                piece.op.offset += u64::from(whole);
                piece.op.size -= whole;
            }
        }
        let complete = piece.op.size == 0 || error.is_some();
        if !complete {
            inner.pieces[token as usize] = Some(piece);
            return again.push(piece.op);
        }
        inner.tokens.push(token);
        if let Some(flight) = &mut inner.berths[piece.berth as usize].flight {
            flight.flying -= 1;
            if flight.error.is_none() {
                flight.error = error;
            }
        }
    }

    /// Gives the disk what it may have: `ops`, and pieces of the oldest flights.
    fn pump(&self, inner: &mut Inner<L>, mut ops: Vec<Op>) {
        while let Some(&berth) = inner.uncut.front() {
            let flight = inner.berths[berth as usize].flight.as_mut().filter(|flight| !flight.is_cut());
            let Some(flight) = flight else {
                inner.uncut.pop_front();
                continue;
            };
            let Some(token) = inner.tokens.pop() else { break };
            let Plan { direction, at, buffer, size, .. } = flight.plan;
            let part = self.layout.part(at + flight.cut, self.piece.min(size - flight.cut));
            let buffer = buffer.wrapping_add(flight.cut as usize);
            let op = Op { token, direction, file: part.file, offset: part.offset, buffer, size: part.size as u32 };
            flight.cut += part.size;
            flight.flying += 1;
            inner.pieces[token as usize] = Some(Piece { berth, op, tries: 0 });
            ops.push(op);
        }
        if !ops.is_empty() {
            // SAFETY: the pieces lie in the buffers of flights that have not ended, which are ours until then, as `Flights::start` requires.
            unsafe { self.files.submit(&ops) };
        }
    }

    fn error(&self, op: &Op, reason: &str, errno: i32) -> TierError {
        let verb = match op.direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        let (size, offset) = (ByteSize(op.size.into()), op.offset);
        io_error(format!("{verb} {size} at {offset} of the file in {}", self.folders[op.file]), reason, errno)
    }
}

impl<L> Drop for Flights<L> {
    /// Waits for the disk: it would write into buffers that are somebody else's by then.
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        let mut inner = self.inner.lock();
        inner.uncut.clear();
        // Nobody else is here, so that nobody leads.
        while inner.tokens.len() < self.depth {
            if !self.gather(&mut inner) {
                self.files.wait();
            }
        }
        drop(inner);
        // SAFETY: this is the last use.
        unsafe { ManuallyDrop::drop(&mut self.files) };
    }
}
