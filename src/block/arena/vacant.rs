//! Numbers of nodes that are not in use.

use super::{NIL, NodeId};

/// So many numbers rest before they are used again. What is known of a block by its node, such as that it was freed, is known until then.
const RESTING: usize = 64;

/// The numbers that may be used again: those that have rested, the last to come first.
#[derive(Debug, Clone)]
pub(super) struct Vacant {
    rested: Vec<NodeId>,
    resting: [NodeId; RESTING],
    /// The one that rests the longest.
    oldest: usize,
}

impl Default for Vacant {
    fn default() -> Vacant {
        Vacant { rested: Vec::new(), resting: [NIL; RESTING], oldest: 0 }
    }
}

impl Vacant {
    #[inline]
    pub(super) fn pop(&mut self) -> Option<NodeId> {
        self.rested.pop()
    }

    #[inline]
    pub(super) fn push(&mut self, id: NodeId) {
        let rested = std::mem::replace(&mut self.resting[self.oldest], id);
        self.oldest = (self.oldest + 1) % RESTING;
        if rested != NIL {
            self.rested.push(rested);
        }
    }
}
