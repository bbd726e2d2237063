//! The movable blocks of a device: where each lies now, and who holds on to it.
//!
//! A pass takes three steps, and a block may be pinned or freed between any two. Each block therefore remembers which pass is moving it, and
//! forgets that when it is pinned: whoever pinned it may have begun to write to where it lies.

use crate::sync::Mutex;
use crate::units::DevicePtr;

/// A movable block's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Handle(u32);

/// One movable block.
#[derive(Debug, Clone, Copy)]
struct Entry {
    ptr: DevicePtr,
    alignment: u64,
    pins: u32,
    /// The pass that moves it.
    pass: Option<u64>,
    /// It stays where it is, since streams use it that a move would not be ordered with.
    stays: bool,
}

/// A block that a pass may move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    pub(crate) handle: Handle,
    pub(crate) ptr: DevicePtr,
    pub(crate) alignment: u64,
}

/// The movable blocks of a device. Locked before the pool, where both are.
#[derive(Debug, Default)]
pub(crate) struct Movables {
    table: Mutex<Table>,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub(crate) struct Table {
    list: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    passes: u64,
}

impl Movables {
    /// Keeps everything as it is while `work` runs.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.table.lock())
    }

    /// A new block.
    pub(crate) fn add(&self, ptr: DevicePtr, alignment: u64) -> Handle {
        let table = &mut *self.table.lock();
        let entry = Some(Entry { ptr, alignment, pins: 0, pass: None, stays: false });
        match table.vacant.pop() {
            Some(index) => {
                table.list[index as usize] = entry;
                Handle(index)
            }
            None => {
                table.list.push(entry);
                Handle(table.list.len() as u32 - 1)
            }
        }
    }

    /// The block is its owner's no more. Returns where it lies.
    pub(crate) fn remove(&self, handle: Handle) -> Option<DevicePtr> {
        let table = &mut *self.table.lock();
        let entry = table.list[handle.0 as usize].take()?;
        table.vacant.push(handle.0);
        Some(entry.ptr)
    }

    /// Holds a block where it is, until [`Movables::unpin`]. A pass that is moving it does not.
    pub(crate) fn pin(&self, handle: Handle) -> DevicePtr {
        self.table.lock().change(handle, |entry| {
            entry.pins += 1;
            entry.pass = None;
            entry.ptr
        })
    }

    pub(crate) fn unpin(&self, handle: Handle) {
        self.table.lock().change(handle, |entry| entry.pins -= 1);
    }

    /// Holds a block where it is for good.
    pub(crate) fn keep(&self, handle: Handle) {
        self.table.lock().change(handle, |entry| entry.stays = true);
    }
}

impl Table {
    fn change<T>(&mut self, handle: Handle, change: impl FnOnce(&mut Entry) -> T) -> T {
        change(self.list[handle.0 as usize].as_mut().expect("its owner holds the handle"))
    }

    /// The blocks that nobody holds on to.
    pub(crate) fn idle(&self) -> Vec<Idle> {
        let entries = (0..).zip(&self.list).filter_map(|(index, entry)| Some((index, (*entry)?)));
        let idle = entries.filter(|(_, entry)| entry.pins == 0 && entry.pass.is_none() && !entry.stays);
        idle.map(|(index, Entry { ptr, alignment, .. })| Idle { handle: Handle(index), ptr, alignment }).collect()
    }

    /// The number of a new pass.
    pub(crate) fn begin(&mut self) -> u64 {
        self.passes += 1;
        self.passes
    }

    /// A pass moves this block.
    pub(crate) fn set_moving(&mut self, handle: Handle, pass: u64) {
        self.change(handle, |entry| entry.pass = Some(pass));
    }

    /// Whether the pass still moves the block.
    pub(crate) fn is_moving(&self, handle: Handle, pass: u64) -> bool {
        self.list[handle.0 as usize].is_some_and(|entry| entry.pass == Some(pass))
    }

    /// The block lies at `ptr` now, or stays where it was. No pass moves it any more.
    pub(crate) fn settle(&mut self, handle: Handle, ptr: Option<DevicePtr>) {
        self.change(handle, |entry| {
            entry.pass = None;
            entry.ptr = ptr.unwrap_or(entry.ptr);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_or_a_free_ends_a_move() {
        let movables = Movables::default();
        let [a, b, c] = [1, 2, 3].map(|at| movables.add(DevicePtr(at << 20), 512));
        let pass = movables.with(|table| {
            assert_eq!(table.idle().len(), 3);
            let pass = table.begin();
            [a, b, c].into_iter().for_each(|handle| table.set_moving(handle, pass));
            assert_eq!(table.idle().len(), 0, "no second pass moves them");
            pass
        });
        assert_eq!(movables.pin(a), DevicePtr(1 << 20));
        assert_eq!(movables.remove(b), Some(DevicePtr(2 << 20)));
        // The number is used again, by a block that the pass does not know.
        let d = movables.add(DevicePtr(4 << 20), 512);
        assert_eq!(d, b);
        movables.unpin(a);
        movables.with(|table| {
            assert_eq!([a, b, c].map(|handle| table.is_moving(handle, pass)), [false, false, true]);
            table.settle(c, Some(DevicePtr(5 << 20)));
            assert_eq!(table.idle().len(), 3);
        });
        assert_eq!(movables.pin(c), DevicePtr(5 << 20));
        movables.keep(a);
        assert_eq!(movables.with(|table| table.idle().len()), 1);
    }
}
