//! What each rung of a climb tried and gained. Kept while a request climbs, read only if it finds no room.

use crate::driver::DriverError;
use crate::error::OomRung;
use crate::telemetry::Rung;

#[derive(Debug, Clone, Copy, Default)]
struct Note {
    tried: bool,
    gained: u64,
    /// Whether the driver refused something.
    refused: bool,
}

/// Notes of the climb under way, or of the last one.
#[derive(Debug, Default)]
pub(in crate::pool) struct Notes {
    rungs: [Note; Rung::ALL.len()],
    /// Bytes at hand when the last rung had been tried.
    at_hand: u64,
    refusals: bool,
}

impl Notes {
    /// A climb begins with so many bytes at hand.
    pub(in crate::pool) fn begin(&mut self, at_hand: u64) {
        *self = Notes { at_hand, ..Notes::default() };
    }

    /// A rung has been tried, and so many bytes are at hand now.
    pub(in crate::pool) fn tried(&mut self, rung: Rung, at_hand: u64, refusal: bool) {
        let note = &mut self.rungs[rung as usize];
        note.tried = true;
        note.gained += at_hand.saturating_sub(self.at_hand);
        note.refused |= refusal && !self.refusals;
        self.refusals |= refusal;
        self.at_hand = at_hand;
    }

    /// The rungs that were tried.
    pub(super) fn rungs(&self, refusal: Option<&DriverError>) -> Vec<OomRung> {
        let tried = Rung::ALL.iter().zip(self.rungs).filter(|(_, note)| note.tried);
        let tell = |(rung, note): (&Rung, Note)| OomRung {
            name: rung.name(),
            gained: note.gained,
            error: refusal.filter(|_| note.refused).map(ToString::to_string),
        };
        tried.map(tell).collect()
    }
}
