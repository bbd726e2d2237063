//! Physical memory and its mappings. Memory is held as long as it has a handle *or* a mapping: releasing the last handle while it is mapped
//! frees nothing.

use std::collections::{BTreeMap, HashMap};

use super::{Kind, Ledger};
use crate::abi::{SUCCESS, Status};

/// The number of a physical allocation, given here: the driver may have several handles for one, and use a handle's value again.
type Physical = u64;

#[derive(Debug)]
struct Chunk {
    device: usize,
    kind: Kind,
    bytes: u64,
    handles: u64,
    mappings: u64,
}

#[derive(Debug, Default)]
pub(super) struct Vmm {
    next: Physical,
    chunks: HashMap<Physical, Chunk>,
    /// Which allocation a handle is of. A handle may be held several times.
    handles: HashMap<u64, (Physical, u64)>,
    /// Mappings by address: how long, and of which allocation.
    mappings: BTreeMap<u64, (u64, Physical)>,
}

impl Vmm {
    fn add(&mut self, handle: u64, chunk: Chunk) -> Physical {
        let physical = self.next;
        self.next += 1;
        self.chunks.insert(physical, chunk);
        self.handles.insert(handle, (physical, 1));
        physical
    }

    /// Takes one hold of a handle away. Returns the allocation, which still counts it.
    fn take_handle(&mut self, handle: u64) -> Option<Physical> {
        let entry = self.handles.get_mut(&handle)?;
        entry.1 -= 1;
        let (physical, held) = *entry;
        if held == 0 {
            self.handles.remove(&handle);
        }
        Some(physical)
    }

    /// Strikes an allocation out if nothing holds it any more.
    fn settle(&mut self, physical: Physical) -> Option<Chunk> {
        let chunk = self.chunks.get(&physical)?;
        if chunk.handles == 0 && chunk.mappings == 0 { self.chunks.remove(&physical) } else { None }
    }
}

impl Ledger {
    /// Physical memory was created or imported; its bytes are charged and kept already.
    pub(crate) fn add_chunk(&self, handle: u64, device: usize, kind: Kind, bytes: u64) {
        self.vmm.lock().add(handle, Chunk { device, kind, bytes, handles: 1, mappings: 0 });
    }

    /// A handle was given out for what is mapped at `address`.
    pub(crate) fn retain_chunk(&self, handle: u64, address: u64) {
        let mut vmm = self.vmm.lock();
        let below = vmm.mappings.range(..=address).next_back();
        let Some(physical) = below.filter(|(start, (size, _))| address - **start < *size).map(|(_, (_, p))| *p) else {
            return;
        };
        vmm.handles.entry(handle).or_insert((physical, 0)).1 += 1;
        if let Some(chunk) = vmm.chunks.get_mut(&physical) {
            chunk.handles += 1;
        }
    }

    /// Makes the call that gives a handle back. The handle is taken out first, and put back where the call fails: once the driver has it back,
    /// another thread may be given the same one.
    pub(crate) fn releasing_chunk(&self, handle: u64, call: impl FnOnce() -> Status) -> Status {
        let physical = self.vmm.lock().take_handle(handle);
        let code = call();
        let Some(physical) = physical else { return code };
        let gone = {
            let mut vmm = self.vmm.lock();
            if code != SUCCESS {
                vmm.handles.entry(handle).or_insert((physical, 0)).1 += 1;
                return code;
            }
            if let Some(chunk) = vmm.chunks.get_mut(&physical) {
                chunk.handles -= 1;
            }
            vmm.settle(physical)
        };
        if let Some(chunk) = gone {
            self.strike(chunk.device, chunk.kind, chunk.bytes);
        }
        code
    }

    /// `size` bytes at `address` were mapped. Handles that came from elsewhere are not known, and need not be.
    pub(crate) fn map_chunk(&self, address: u64, size: u64, handle: u64) {
        let device = {
            let mut vmm = self.vmm.lock();
            let Some(&(physical, _)) = vmm.handles.get(&handle) else { return };
            let Some(chunk) = vmm.chunks.get_mut(&physical) else { return };
            chunk.mappings += 1;
            let device = chunk.device;
            vmm.mappings.insert(address, (size, physical));
            device
        };
        self.charge_anyway(device, Kind::Mapped, size).keep();
    }

    /// Makes the call that unmaps whole mappings in `size` bytes from `address` on. They are taken out first, and put back where the call
    /// fails, as handles are.
    pub(crate) fn unmapping_chunks(&self, address: u64, size: u64, call: impl FnOnce() -> Status) -> Status {
        let taken: Vec<(u64, (u64, Physical))> = {
            let mut vmm = self.vmm.lock();
            let inside = vmm.mappings.range(address..address.saturating_add(size));
            let inside: Vec<_> = inside.map(|(start, mapping)| (*start, *mapping)).collect();
            for (start, _) in &inside {
                vmm.mappings.remove(start);
            }
            inside
        };
        let code = call();
        let (mut unmapped, mut gone) = (Vec::new(), Vec::new());
        {
            let mut vmm = self.vmm.lock();
            if code != SUCCESS {
                vmm.mappings.extend(taken);
                return code;
            }
            for (_, (size, physical)) in taken {
                if let Some(chunk) = vmm.chunks.get_mut(&physical) {
                    chunk.mappings -= 1;
                    unmapped.push((chunk.device, size));
                }
                gone.extend(vmm.settle(physical));
            }
        }
        unmapped.into_iter().for_each(|(device, size)| self.strike(device, Kind::Mapped, size));
        gone.into_iter().for_each(|chunk| self.strike(chunk.device, chunk.kind, chunk.bytes));
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger_with_chunk() -> Ledger {
        let ledger = Ledger::new(None);
        ledger.charge(0, Kind::Chunk, 100).unwrap().keep();
        ledger.add_chunk(9, 0, Kind::Chunk, 100);
        ledger
    }

    #[test]
    fn released_memory_is_held_while_it_is_mapped() {
        let ledger = ledger_with_chunk();
        ledger.map_chunk(0x1000, 50, 9);
        ledger.map_chunk(0x2000, 100, 9);
        assert_eq!(ledger.releasing_chunk(9, || 1), 1, "refused, so it is still there");
        assert_eq!(ledger.releasing_chunk(9, || 0), 0);
        assert_eq!((ledger.held(0), ledger.figure(0, Kind::Mapped)), (100, (150, 2)));
        assert_eq!(ledger.unmapping_chunks(0x1000, 0x2000, || 1), 1, "refused, so they are still there");
        assert_eq!(ledger.unmapping_chunks(0x1000, 0x10, || 0), 0);
        assert_eq!((ledger.held(0), ledger.figure(0, Kind::Mapped)), (100, (100, 1)));
        ledger.unmapping_chunks(0x1000, 0x2000, || 0);
        assert_eq!((ledger.held(0), ledger.figure(0, Kind::Mapped)), (0, (0, 0)));
        assert_eq!(ledger.figure(0, Kind::Chunk), (0, 0));
    }

    #[test]
    fn names_that_are_given_out_again_during_the_call_are_the_new_owners() {
        let ledger = ledger_with_chunk();
        ledger.map_chunk(0x1000, 100, 9);
        ledger.releasing_chunk(9, || {
            // Another thread's chunk, with the handle that the driver has just got back.
            ledger.charge(0, Kind::Chunk, 30).unwrap().keep();
            ledger.add_chunk(9, 0, Kind::Chunk, 30);
            0
        });
        assert_eq!(ledger.held(0), 130, "the first is mapped yet");
        ledger.unmapping_chunks(0x1000, 100, || {
            ledger.map_chunk(0x1000, 30, 9);
            0
        });
        assert_eq!((ledger.held(0), ledger.figure(0, Kind::Mapped)), (30, (30, 1)));
        ledger.releasing_chunk(9, || 0);
        ledger.unmapping_chunks(0x1000, 30, || 0);
        assert_eq!((ledger.held(0), ledger.figure(0, Kind::Mapped)), (0, (0, 0)));
    }

    #[test]
    fn a_handle_retained_from_an_address_holds_it_too() {
        for other in [9, 10] {
            let ledger = ledger_with_chunk();
            ledger.map_chunk(0x1000, 100, 9);
            ledger.retain_chunk(other, 0x1063);
            ledger.retain_chunk(77, 0x1064);
            ledger.unmapping_chunks(0x1000, 100, || 0);
            ledger.releasing_chunk(9, || 0);
            assert_eq!(ledger.held(0), 100, "handle {other} is left");
            ledger.releasing_chunk(77, || 0);
            ledger.releasing_chunk(other, || 0);
            ledger.releasing_chunk(other, || 0);
            assert_eq!(ledger.held(0), 0);
        }
    }
}
