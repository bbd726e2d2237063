//! User objects: what a program has destroyed when the last graph that refers to it is.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::abi::structs::HostFn;
use crate::handles::{Kind, Table};
use crate::stream::work::HostCall;

#[derive(Debug)]
struct UserObject {
    handle: usize,
    destroy: HostCall,
    count: AtomicU32,
}

static OBJECTS: Table<UserObject> = Table::new(Kind::UserObject);

impl UserObject {
    fn retain(&self, count: u32) {
        self.count.fetch_add(count, Ordering::AcqRel);
    }

    /// Gives references up. Fails where there are not so many.
    fn release(&self, count: u32) -> Res {
        let less = |held: u32| held.checked_sub(count);
        let before = self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if before.map_err(|_| Code::INVALID_VALUE)? == count {
            OBJECTS.remove(self.handle)?;
            self.destroy.run();
        }
        Ok(())
    }
}

/// References that a graph holds, shared with its copies and executable graphs.
#[derive(Debug)]
pub(crate) struct Held {
    object: Arc<UserObject>,
    count: u32,
}

impl Drop for Held {
    fn drop(&mut self) {
        // They were counted when they were taken.
        let _ = self.object.release(self.count);
    }
}

const NO_DESTRUCTOR_SYNC: u32 = 1;
const MOVE: u32 = 1;

pub(crate) fn create(object: Out<usize>, data: *mut c_void, destroy: Option<HostFn>, count: u32, flags: u32) -> Res {
    object.check()?;
    let function = destroy.ok_or(Code::INVALID_VALUE)?;
    if flags != NO_DESTRUCTOR_SYNC || count == 0 || count > i32::MAX as u32 {
        return Err(Code::INVALID_VALUE);
    }
    let destroy = HostCall { function, data: data as usize };
    let made = OBJECTS.insert(|handle| UserObject { handle, destroy, count: AtomicU32::new(count) })?;
    object.set(made.handle)
}

fn checked(object: usize, count: u32) -> Res<Arc<UserObject>> {
    let object = OBJECTS.get(object).map_err(|_| Code::INVALID_VALUE)?;
    if count == 0 || count > i32::MAX as u32 { Err(Code::INVALID_VALUE) } else { Ok(object) }
}

pub(crate) fn retain(object: usize, count: u32) -> Res {
    checked(object, count)?.retain(count);
    Ok(())
}

pub(crate) fn release(object: usize, count: u32) -> Res {
    checked(object, count)?.release(count)
}

pub(crate) fn graph_retain(graph: usize, object: usize, count: u32, flags: u32) -> Res {
    let graph = super::by_handle(graph)?;
    let object = checked(object, count)?;
    if flags & !MOVE != 0 {
        return Err(Code::INVALID_VALUE);
    }
    if flags & MOVE == 0 {
        object.retain(count);
    } else if object.count.load(Ordering::Acquire) < count {
        return Err(Code::INVALID_VALUE);
    }
    graph.parts.lock().held.push(Arc::new(Held { object, count }));
    Ok(())
}

pub(crate) fn graph_release(graph: usize, object: usize, count: u32) -> Res {
    let graph = super::by_handle(graph)?;
    let object = checked(object, count)?;
    let mut parts = graph.parts.lock();
    let at = parts.held.iter().position(|held| Arc::ptr_eq(&held.object, &object) && held.count >= count);
    let held = parts.held.remove(at.ok_or(Code::INVALID_VALUE)?);
    if held.count > count {
        object.retain(held.count - count);
        parts.held.push(Arc::new(Held { object, count: held.count - count }));
    }
    // What it releases may call a function of the program's.
    drop(parts);
    drop(held);
    Ok(())
}
