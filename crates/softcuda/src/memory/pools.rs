//! Memory pools: blocks that were freed in stream order wait here for whoever may have them next.
//!
//! A free block is reused by its own stream at once, by others when the event recorded at its free has passed. What a pool
//! holds above its threshold goes back to the device when the program waits for it, as in CUDA.

use std::sync::Arc;

use parking_lot::Mutex;
use stratalloc::driver::{Driver, EventId, EventStatus, HostPtr};
use stratalloc::units::{DevicePtr, StreamId};

use super::space::{self, Block, Kind};
use crate::abi::codes::{Code, Res};
use crate::abi::structs::PoolProps;
use crate::handles::{Kind as HandleKind, Table};
use crate::process::contexts;
use crate::process::devices::{Device, code_of};
use crate::stream::streams::Stream;

/// Sizes are rounded up to it.
const UNIT: u64 = 512;

/// The pools of a device.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pub(crate) default: Option<Arc<Pool>>,
    /// What `cuMemAllocAsync` takes from, if not the default.
    pub(crate) current: Option<Arc<Pool>>,
    all: Vec<Arc<Pool>>,
}

/// A pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) handle: usize,
    pub(crate) device: &'static Device,
    pub(crate) props: PoolProps,
    /// Whether its memory is host memory.
    pub(crate) host: bool,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    free: Vec<Free>,
    /// Sizes of blocks in use, by address.
    used: Vec<(u64, u64)>,
    pub(crate) reserved: u64,
    pub(crate) reserved_high: u64,
    pub(crate) in_use: u64,
    pub(crate) in_use_high: u64,
    pub(crate) threshold: u64,
    /// The three switches of reuse, as set.
    pub(crate) reuse: [u32; 3],
    /// Access of other devices, by ordinal.
    pub(crate) access: Vec<(i32, u32)>,
    destroyed: bool,
}

#[derive(Debug)]
struct Free {
    ptr: u64,
    size: u64,
    stream: StreamId,
    event: EventId,
}

static POOLS: Table<Pool> = Table::new(HandleKind::Pool);

pub(crate) fn by_handle(handle: usize) -> Res<Arc<Pool>> {
    POOLS.get(handle).map_err(|_| Code::INVALID_VALUE)
}

impl Pool {
    pub(crate) fn make(device: &'static Device, props: PoolProps, host: bool) -> Res<Arc<Pool>> {
        let state = State {
            free: Vec::new(),
            used: Vec::new(),
            reserved: 0,
            reserved_high: 0,
            in_use: 0,
            in_use_high: 0,
            threshold: 0,
            reuse: [1; 3],
            access: Vec::new(),
            destroyed: false,
        };
        let made = POOLS.insert(|handle| Pool { handle, device, props, host, state: Mutex::new(state) })?;
        device.pools.lock().all.push(Arc::clone(&made));
        Ok(made)
    }

    /// Memory for a stream.
    pub(crate) fn alloc(&self, size: u64, stream: &Stream) -> Res<u64> {
        let need = size.checked_next_multiple_of(UNIT).filter(|&size| size > 0).ok_or(Code::INVALID_VALUE)?;
        let mut state = self.state.lock();
        if state.destroyed {
            return Err(Code::INVALID_VALUE);
        }
        let found = match state.best(self, need, stream.soft) {
            Some(at) => Ok(state.take_free(self, at)),
            None => self.grow(&mut state, need),
        };
        let (ptr, have) = found?;
        let at = state.used.partition_point(|&(other, _)| other < ptr);
        state.used.insert(at, (ptr, have));
        state.in_use += have;
        state.in_use_high = state.in_use_high.max(state.in_use);
        drop(state);
        space::insert(ptr, size, Kind::Pool { pool: self.handle }, self.device, Some(stream.context));
        Ok(ptr)
    }

    fn grow(&self, state: &mut State, size: u64) -> Res<(u64, u64)> {
        let limit = self.props.max_size as u64;
        if limit > 0 && state.reserved + size > limit {
            return Err(Code::OUT_OF_MEMORY);
        }
        let soft = &self.device.soft;
        let alloc = || {
            if self.host {
                soft.alloc_host(size).map(|ptr| ptr.0 as u64)
            } else {
                soft.alloc_plain(size).map(|ptr| ptr.0)
            }
        };
        let mut ptr = alloc();
        if ptr.as_ref().is_err_and(stratalloc::driver::DriverError::is_out_of_memory) {
            // What lies here idle may be what is missing; then what other pools of the device have.
            soft.synchronize_device().map_err(code_of)?;
            state.shrink(self, 0);
            for other in self.device.pools.lock().all.iter().filter(|other| other.handle != self.handle) {
                other.state.lock().shrink(other, 0);
            }
            ptr = alloc();
        }
        let ptr = ptr.map_err(code_of)?;
        state.reserved += size;
        state.reserved_high = state.reserved_high.max(state.reserved);
        self.device.account.pool_reserved.add(size);
        Ok((ptr, size))
    }

    /// Takes back what a stream gives up, once its work so far is done.
    pub(crate) fn free(&self, block: Block, stream: StreamId) -> Res {
        let soft = &self.device.soft;
        let mut state = self.state.lock();
        let size = state.take_used(block.base).ok_or(Code::INVALID_VALUE)?;
        let event = soft.create_event().and_then(|event| soft.record_event(event, stream).map(|()| event));
        let event = event.map_err(code_of)?;
        state.free.push(Free { ptr: block.base, size, stream, event });
        if state.destroyed {
            state.shrink(self, 0);
        }
        Ok(())
    }

    /// Gives idle memory back to the device, as long as more than `keep` bytes are reserved.
    pub(crate) fn trim(&self, keep: u64) {
        self.state.lock().shrink(self, keep);
    }
}

impl State {
    /// The smallest free block that a stream may have, if one is not much too large.
    fn best(&self, pool: &Pool, need: u64, stream: StreamId) -> Option<usize> {
        let fits = |free: &Free| free.size >= need && free.size <= need.saturating_mul(2).max(need + (1 << 20));
        let mut best: Option<usize> = None;
        for (at, free) in self.free.iter().enumerate().filter(|(_, free)| fits(free)) {
            let better = best.is_none_or(|best| free.size < self.free[best].size);
            if better && (free.stream == stream || passed(pool.device, free.event)) {
                best = Some(at);
            }
        }
        best
    }

    fn take_free(&mut self, pool: &Pool, at: usize) -> (u64, u64) {
        let free = self.free.swap_remove(at);
        // It exists: this pool has made it, and only this destroys it.
        let _ = pool.device.soft.destroy_event(free.event);
        (free.ptr, free.size)
    }

    fn take_used(&mut self, ptr: u64) -> Option<u64> {
        let at = self.used.binary_search_by_key(&ptr, |&(ptr, _)| ptr).ok()?;
        let (_, size) = self.used.remove(at);
        self.in_use -= size;
        Some(size)
    }

    fn shrink(&mut self, pool: &Pool, keep: u64) {
        let mut at = 0;
        while at < self.free.len() && self.reserved > keep {
            if !passed(pool.device, self.free[at].event) {
                at += 1;
                continue;
            }
            let (ptr, size) = self.take_free(pool, at);
            let soft = &pool.device.soft;
            let freed = if pool.host {
                soft.free_host(HostPtr(ptr as usize))
            } else {
                soft.free_plain_unsynchronized(DevicePtr(ptr))
            };
            if freed.is_ok() {
                self.reserved -= size;
                pool.device.account.pool_reserved.remove(size);
            }
        }
    }
}

fn passed(device: &Device, event: EventId) -> bool {
    matches!(device.soft.query_event(event), Ok(EventStatus::Complete))
}

/// Takes back memory that is freed without a stream: after a wait for the device.
pub(crate) fn take_back(pool: usize, block: Block) -> Res {
    let pool = by_handle(pool)?;
    block.device.wait_idle()?;
    pool.free(block, StreamId::DEFAULT)?;
    after_wait(block.device);
    Ok(())
}

/// A device's own pool.
pub(crate) fn default_of(device: &'static Device) -> Res<Arc<Pool>> {
    if let Some(pool) = device.pools.lock().default.clone() {
        return Ok(pool);
    }
    let made = Pool::make(device, default_props(device), false)?;
    let mut pools = device.pools.lock();
    Ok(Arc::clone(pools.default.get_or_insert(made)))
}

/// What `cuMemAllocAsync` takes from.
pub(crate) fn current_of(device: &'static Device) -> Res<Arc<Pool>> {
    let current = device.pools.lock().current.clone();
    current.map_or_else(|| default_of(device), Ok)
}

fn default_props(device: &Device) -> PoolProps {
    let location =
        crate::abi::structs::MemLocation { kind: crate::abi::structs::LOCATION_DEVICE, id: device.ordinal as i32 };
    PoolProps { kind: 1, handle_types: 0, location, win32: 0, max_size: 0, usage: 0, reserved: [0; 54] }
}

/// Ends a pool: its memory goes back now, or as it is freed.
pub(crate) fn destroy(handle: usize) -> Res {
    let pool = by_handle(handle)?;
    let device = pool.device;
    let mut pools = device.pools.lock();
    if pools.default.as_ref().is_some_and(|default| default.handle == handle) {
        return Err(Code::INVALID_VALUE);
    }
    if pools.current.as_ref().is_some_and(|current| current.handle == handle) {
        pools.current = None;
    }
    drop(pools);
    let in_use = {
        let mut state = pool.state.lock();
        state.destroyed = true;
        state.shrink(&pool, 0);
        state.reserved > 0
    };
    if !in_use {
        forget(&pool);
    }
    Ok(())
}

/// Strikes a destroyed pool that holds nothing from the lists.
fn forget(pool: &Pool) {
    // It may have been struck already, by whoever freed its last block.
    let _ = POOLS.remove(pool.handle);
    pool.device.pools.lock().all.retain(|other| other.handle != pool.handle);
}

/// What happens when the program has waited for a device: pools keep no more than their thresholds.
pub(crate) fn after_wait(device: &'static Device) {
    let all: Vec<Arc<Pool>> = {
        let pools = device.pools.lock();
        if pools.all.is_empty() {
            return;
        }
        pools.all.clone()
    };
    for pool in all {
        let done = {
            let mut state = pool.state.lock();
            let keep = if state.destroyed { 0 } else { state.threshold };
            state.shrink(&pool, keep);
            state.destroyed && state.reserved == 0
        };
        if done {
            forget(&pool);
        }
    }
}

/// Gives everything idle in a device's pools back, for an allocation that found no memory. Whether that freed anything.
pub(crate) fn give_up_idle(device: &'static Device) -> bool {
    let before = contexts::memory_of(device).map_or(0, |(free, _)| free);
    if device.pools.lock().all.is_empty() || device.wait_idle().is_err() {
        return false;
    }
    let all = device.pools.lock().all.clone();
    all.iter().for_each(|pool| pool.trim(0));
    contexts::memory_of(device).is_ok_and(|(free, _)| free > before)
}
