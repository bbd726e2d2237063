//! Objects of the driver that hold memory, by their handles and addresses.

use std::collections::HashMap;

use super::{Kind, Ledger};
use crate::abi::{SUCCESS, Status};

/// Something that is given back by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// Device memory, by its address.
    Pointer(u64),
    /// Host memory, by its address.
    Host(usize),
    /// Registered host memory, by its address.
    Registered(usize),
    /// An array or mipmapped array.
    Array(usize),
    /// Imported external memory.
    External(usize),
    /// A reservation of address space, by its address.
    Reservation(u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) device: usize,
    pub(super) kind: Kind,
    pub(super) bytes: u64,
    /// The context that the object goes with, or 0 if it outlives contexts.
    pub(super) context: usize,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    entries: HashMap<Object, Entry>,
}

impl Ledger {
    /// Writes an object down. One that is known by the same name has gone without a word, with its context for instance.
    pub(super) fn insert(&self, object: Object, entry: Entry) {
        let former = self.objects.lock().entries.insert(object, entry);
        if let Some(former) = former {
            self.strike(former.device, former.kind, former.bytes);
        }
    }

    /// Makes the call that gives an object back, and strikes the object out.
    ///
    /// It is taken out first and put back where the call fails: once the driver has it back, another thread may be given the same name.
    pub(crate) fn giving_back(&self, object: Object, call: impl FnOnce() -> Status) -> Status {
        let entry = self.objects.lock().entries.remove(&object);
        let code = call();
        match entry {
            Some(entry) if code == SUCCESS => self.strike(entry.device, entry.kind, entry.bytes),
            Some(entry) => self.insert(object, entry),
            None => {}
        }
        code
    }

    /// Strikes out what went with a context.
    pub(crate) fn remove_context(&self, context: usize) {
        let mut gone = Vec::new();
        self.objects.lock().entries.retain(|_, entry| {
            let stays = entry.context != context;
            if !stays {
                gone.push(*entry);
            }
            stays
        });
        gone.into_iter().for_each(|entry| self.strike(entry.device, entry.kind, entry.bytes));
    }
}
