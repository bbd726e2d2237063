//! Contexts: primary ones, others, and the stack of each thread.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use stratalloc::driver::Driver;

use super::devices::{self, Device};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::handles::{Kind, Table};
use crate::memory::space;
use crate::stream::{capture, events, streams};

/// A context. Contexts are few and live on when destroyed, so that threads may hold on to them.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) handle: usize,
    pub(crate) device: &'static Device,
    pub(crate) id: u64,
    primary: bool,
    flags: AtomicU32,
    alive: AtomicBool,
    limits: [AtomicU64; LIMITS],
}

/// A device's primary context.
#[derive(Debug, Default)]
pub(crate) struct Primary {
    context: Option<&'static Context>,
    retained: u32,
    flags: u32,
}

/// What handles stand for.
#[derive(Debug)]
pub(crate) struct ContextRef(&'static Context);

const LIMITS: usize = 10;
const DEFAULT_LIMITS: [u64; LIMITS] = [1024, 1 << 20, 8 << 20, 2, 2048, 128, 0, 232_448, 0, 0];
/// The flags that `cuCtxCreate` takes.
const FLAGS: u32 = 0xff;

static CONTEXTS: Table<ContextRef> = Table::new(Kind::Context);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static CURRENT: Cell<Option<&'static Context>> = const { Cell::new(None) };
    /// What lies below the current context.
    static BELOW: RefCell<Vec<Option<&'static Context>>> = const { RefCell::new(Vec::new()) };
}

impl Context {
    fn make(device: &'static Device, flags: u32, primary: bool) -> Res<&'static Context> {
        let made = CONTEXTS.insert(|handle| {
            ContextRef(Box::leak(Box::new(Context {
                handle,
                device,
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                primary,
                flags: AtomicU32::new(flags),
                alive: AtomicBool::new(true),
                limits: DEFAULT_LIMITS.map(AtomicU64::new),
            })))
        })?;
        Ok(made.0)
    }

    /// Gives back whatever was made in the context.
    fn clear(&self) -> Res {
        self.device.wait_idle()?;
        streams::destroy_all_of(self);
        events::destroy_all_of(self);
        space::free_all_of(self);
        Ok(())
    }
}

/// The calling thread's context.
#[inline]
pub(crate) fn current() -> Res<&'static Context> {
    let context = CURRENT.try_with(Cell::get).ok().flatten().ok_or(Code::INVALID_CONTEXT)?;
    if context.alive.load(Ordering::Relaxed) { Ok(context) } else { Err(Code::CONTEXT_IS_DESTROYED) }
}

/// The device of the calling thread's context.
#[inline]
pub(crate) fn device() -> Res<&'static Device> {
    Ok(current()?.device)
}

/// The context that a handle stands for. Null is the current one.
pub(crate) fn by_handle(handle: usize) -> Res<&'static Context> {
    if handle == 0 {
        return current();
    }
    let context = CONTEXTS.get(handle).map_err(|_| Code::INVALID_CONTEXT)?.0;
    if context.alive.load(Ordering::Relaxed) { Ok(context) } else { Err(Code::CONTEXT_IS_DESTROYED) }
}

fn set(context: Option<&'static Context>) {
    // A thread that is ending has no current context any more.
    let _ = CURRENT.try_with(|current| current.set(context));
}

// ---- primary contexts -----------------------------------------------------------------------------------------------

/// Retains a device's primary context.
pub(crate) fn retain(device: &'static Device) -> Res<&'static Context> {
    let mut primary = device.primary.lock();
    let context = match primary.context {
        Some(context) => context,
        None => Context::make(device, primary.flags, true)?,
    };
    primary.context = Some(context);
    primary.retained += 1;
    context.alive.store(true, Ordering::Relaxed);
    Ok(context)
}

pub(crate) fn primary_retain(context: Out<usize>, device: i32) -> Res {
    context.check()?;
    context.set(retain(devices::by_ordinal(device)?)?.handle)
}

pub(crate) fn primary_release(device: i32) -> Res {
    let device = devices::by_ordinal(device)?;
    let mut primary = device.primary.lock();
    let context = primary.context.filter(|_| primary.retained > 0).ok_or(Code::INVALID_CONTEXT)?;
    primary.retained -= 1;
    if primary.retained == 0 {
        drop(primary);
        context.clear()?;
        context.alive.store(false, Ordering::Relaxed);
    }
    Ok(())
}

pub(crate) fn primary_reset(device: i32) -> Res {
    let device = devices::by_ordinal(device)?;
    let context = device.primary.lock().context;
    context.map_or(Ok(()), Context::clear)
}

pub(crate) fn primary_set_flags(device: i32, flags: u32) -> Res {
    let device = devices::by_ordinal(device)?;
    if flags & !FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let mut primary = device.primary.lock();
    primary.flags = flags;
    if let Some(context) = primary.context {
        context.flags.store(flags, Ordering::Relaxed);
    }
    Ok(())
}

pub(crate) fn primary_state(device: i32, flags: Out<u32>, active: Out<i32>) -> Res {
    let device = devices::by_ordinal(device)?;
    let primary = device.primary.lock();
    flags.set(primary.flags)?;
    active.set(i32::from(primary.retained > 0))
}

// ---- other contexts ---------------------------------------------------------------------------------------------------

pub(crate) fn create(context: Out<usize>, flags: u32, device: i32) -> Res {
    context.check()?;
    let device = devices::by_ordinal(device)?;
    if flags & !FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let made = Context::make(device, flags, false)?;
    push(made);
    context.set(made.handle)
}

pub(crate) fn create_v3(context: Out<usize>, affinity: usize, count: i32, flags: u32, device: i32) -> Res {
    if affinity != 0 || count != 0 {
        return Err(Code::UNSUPPORTED_EXEC_AFFINITY);
    }
    create(context, flags, device)
}

pub(crate) fn create_v4(context: Out<usize>, params: usize, flags: u32, device: i32) -> Res {
    if params != 0 {
        return Err(Code::NOT_SUPPORTED);
    }
    create(context, flags, device)
}

pub(crate) fn destroy(context: usize) -> Res {
    let found = CONTEXTS.get(context).map_err(|_| Code::INVALID_CONTEXT)?.0;
    if found.primary {
        return Err(Code::INVALID_CONTEXT);
    }
    found.clear()?;
    found.alive.store(false, Ordering::Relaxed);
    CONTEXTS.remove(context).map_err(|_| Code::INVALID_CONTEXT)?;
    if CURRENT.try_with(Cell::get).ok().flatten().is_some_and(|current| std::ptr::eq(current, found)) {
        pop();
    }
    Ok(())
}

pub(crate) fn attach(_context: Out<usize>, _flags: u32) -> Res {
    // Deprecated since CUDA 2.
    Err(Code::NOT_SUPPORTED)
}

pub(crate) fn detach(context: usize) -> Res {
    destroy(context)
}

// ---- the stack ----------------------------------------------------------------------------------------------------------

fn push(context: &'static Context) {
    let current = CURRENT.try_with(Cell::get).ok().flatten();
    let _ = BELOW.try_with(|below| below.borrow_mut().push(current));
    set(Some(context));
}

fn pop() -> Option<&'static Context> {
    let current = CURRENT.try_with(Cell::get).ok().flatten();
    let below = BELOW.try_with(|below| below.borrow_mut().pop()).ok().flatten();
    set(below.flatten());
    current
}

pub(crate) fn get_current(context: Out<usize>) -> Res {
    context.set(CURRENT.try_with(Cell::get).ok().flatten().map_or(0, |context| context.handle))
}

pub(crate) fn set_current(context: usize) -> Res {
    if context == 0 {
        pop();
        return Ok(());
    }
    // The common case: a runtime sets the context that is set.
    if CURRENT.try_with(Cell::get).ok().flatten().is_some_and(|current| current.handle == context) {
        return current().map(|_| ());
    }
    set(Some(by_handle(context)?));
    Ok(())
}

pub(crate) fn push_current(context: usize) -> Res {
    if context == 0 {
        return Err(Code::INVALID_CONTEXT);
    }
    push(by_handle(context)?);
    Ok(())
}

pub(crate) fn pop_current(context: Out<usize>) -> Res {
    let popped = pop().ok_or(Code::INVALID_CONTEXT)?;
    context.set_if(popped.handle);
    Ok(())
}

// ---- questions ----------------------------------------------------------------------------------------------------------

fn synchronize_device(device: &'static Device) -> Res {
    capture::refuse_device_wait(device)?;
    device.wait_idle()?;
    crate::memory::pools::after_wait(device);
    Ok(())
}

pub(crate) fn synchronize() -> Res {
    synchronize_device(device()?)
}

pub(crate) fn synchronize_v2(context: usize) -> Res {
    synchronize_device(by_handle(context)?.device)
}

pub(crate) fn get_device(device: Out<i32>) -> Res {
    device.check()?;
    device.set(current()?.device.ordinal as i32)
}

pub(crate) fn get_device_v2(device: Out<i32>, context: usize) -> Res {
    device.check()?;
    device.set(by_handle(context)?.device.ordinal as i32)
}

pub(crate) fn get_flags(flags: Out<u32>) -> Res {
    flags.check()?;
    flags.set(current()?.flags.load(Ordering::Relaxed))
}

pub(crate) fn set_flags(flags: u32) -> Res {
    let context = current()?;
    if flags & !FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    context.flags.store(flags, Ordering::Relaxed);
    Ok(())
}

pub(crate) fn get_id(context: usize, id: Out<u64>) -> Res {
    id.check()?;
    id.set(by_handle(context)?.id)
}

pub(crate) fn api_version(context: usize, version: Out<u32>) -> Res {
    version.check()?;
    by_handle(context)?;
    version.set(3020)
}

pub(crate) fn get_limit(value: Out<usize>, limit: u32) -> Res {
    value.check()?;
    let limit = current()?.limits.get(limit as usize).ok_or(Code::UNSUPPORTED_LIMIT)?;
    value.set(limit.load(Ordering::Relaxed) as usize)
}

pub(crate) fn set_limit(limit: u32, value: usize) -> Res {
    let limit = current()?.limits.get(limit as usize).ok_or(Code::UNSUPPORTED_LIMIT)?;
    limit.store(value as u64, Ordering::Relaxed);
    Ok(())
}

pub(crate) fn get_cache_config(config: Out<u32>) -> Res {
    config.check()?;
    current()?;
    config.set(0)
}

pub(crate) fn set_cache_config(config: u32) -> Res {
    current()?;
    if config > 3 { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

pub(crate) fn stream_priority_range(least: Out<i32>, greatest: Out<i32>) -> Res {
    current()?;
    least.set_if(0);
    greatest.set_if(streams::GREATEST_PRIORITY);
    Ok(())
}

pub(crate) fn reset_l2() -> Res {
    current().map(|_| ())
}

pub(crate) fn enable_peer(peer: usize, flags: u32) -> Res {
    let peer = by_handle(peer)?;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    if peer.device.ordinal == current()?.device.ordinal { Err(Code::INVALID_CONTEXT) } else { Ok(()) }
}

pub(crate) fn disable_peer(peer: usize) -> Res {
    by_handle(peer)?;
    current().map(|_| ())
}

pub(crate) fn record_event(context: usize, event: usize) -> Res {
    by_handle(context)?;
    events::record(event, crate::stream::LEGACY)
}

pub(crate) fn wait_event(context: usize, event: usize) -> Res {
    by_handle(context)?;
    events::wait(crate::stream::LEGACY, event, 0)
}

/// Free and total bytes of a device.
pub(crate) fn memory_of(device: &Device) -> Res<(u64, u64)> {
    let info = device.soft.memory_info().map_err(devices::code_of)?;
    Ok((info.free, info.total))
}
