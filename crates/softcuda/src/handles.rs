//! Handles: numbers that stand for objects, so that any number may come from C and none is dereferenced.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::abi::codes::{Code, Res};

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
    Library,
    Graph,
    Node,
    Exec,
    Pool,
    Array,
    UserObject,
    Green,
    Link,
    Descriptor,
}

/// Handles look like addresses, since programs keep their low bits for themselves.
const BASE: usize = 0x6c << 40;
const INDEX_BITS: u32 = 22;
const GENERATION_BITS: u32 = 10;

#[derive(Debug)]
struct Slot<T> {
    generation: usize,
    value: Option<Arc<T>>,
}

/// All objects of a kind. Slots are used again, with another generation, so that an old handle is told from a new one.
#[derive(Debug)]
pub(crate) struct Table<T> {
    kind: Kind,
    slots: RwLock<(Vec<Slot<T>>, Vec<usize>)>,
}

impl<T> Table<T> {
    pub(crate) const fn new(kind: Kind) -> Table<T> {
        Table { kind, slots: RwLock::new((Vec::new(), Vec::new())) }
    }

    fn handle(&self, index: usize, generation: usize) -> usize {
        let generation = generation & ((1 << GENERATION_BITS) - 1);
        let number = (self.kind as usize) << (INDEX_BITS + GENERATION_BITS) | generation << INDEX_BITS | index;
        BASE | number << 4
    }

    fn index(&self, handle: usize) -> Option<(usize, usize)> {
        let number = handle.checked_sub(BASE)? >> 4;
        let (index, generation) =
            (number & ((1 << INDEX_BITS) - 1), number >> INDEX_BITS & ((1 << GENERATION_BITS) - 1));
        (self.handle(index, generation) == handle).then_some((index, generation))
    }

    /// Adds an object, which is made with its own handle. Fails when all four million are in use.
    pub(crate) fn insert(&self, make: impl FnOnce(usize) -> T) -> Res<Arc<T>> {
        let (slots, free) = &mut *self.slots.write();
        let index = free.pop().unwrap_or(slots.len());
        if index >= 1 << INDEX_BITS {
            return Err(Code::OUT_OF_MEMORY);
        }
        if index == slots.len() {
            slots.push(Slot { generation: 0, value: None });
        }
        let slot = &mut slots[index];
        let value = Arc::new(make(self.handle(index, slot.generation)));
        slot.value = Some(value.clone());
        Ok(value)
    }

    pub(crate) fn get(&self, handle: usize) -> Res<Arc<T>> {
        let (index, generation) = self.index(handle).ok_or(Code::INVALID_HANDLE)?;
        let slots = self.slots.read();
        match slots.0.get(index) {
            Some(slot) if slot.generation & ((1 << GENERATION_BITS) - 1) == generation => {
                slot.value.clone().ok_or(Code::INVALID_HANDLE)
            }
            _ => Err(Code::INVALID_HANDLE),
        }
    }

    /// Takes an object out. Its handle is unknown from then on.
    pub(crate) fn remove(&self, handle: usize) -> Res<Arc<T>> {
        let (index, generation) = self.index(handle).ok_or(Code::INVALID_HANDLE)?;
        let (slots, free) = &mut *self.slots.write();
        let slot = slots.get_mut(index).ok_or(Code::INVALID_HANDLE)?;
        if slot.generation & ((1 << GENERATION_BITS) - 1) != generation {
            return Err(Code::INVALID_HANDLE);
        }
        let value = slot.value.take().ok_or(Code::INVALID_HANDLE)?;
        slot.generation += 1;
        free.push(index);
        Ok(value)
    }

    /// All objects that satisfy a condition.
    pub(crate) fn all(&self, keep: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let slots = self.slots.read();
        slots.0.iter().filter_map(|slot| slot.value.clone()).filter(|value| keep(value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_wrong_handles_are_refused() {
        let streams: Table<usize> = Table::new(Kind::Stream);
        let events: Table<usize> = Table::new(Kind::Event);
        let first = *streams.insert(|handle| handle).unwrap();
        assert_eq!(first % 16, 0);
        assert_eq!(events.get(first).unwrap_err(), Code::INVALID_HANDLE);
        streams.remove(first).unwrap();
        let second = *streams.insert(|handle| handle).unwrap();
        assert_ne!(first, second);
        assert_eq!(streams.get(first).unwrap_err(), Code::INVALID_HANDLE);
        assert_eq!(streams.remove(first).unwrap_err(), Code::INVALID_HANDLE);
        assert_eq!(*streams.get(second).unwrap(), second);
        for wild in [0, 1, 2, 0x1000, usize::MAX, second + 1, second + (1 << 30)] {
            assert_eq!(streams.get(wild).unwrap_err(), Code::INVALID_HANDLE);
        }
    }
}
