//! Executable graphs.

use std::sync::Arc;

use parking_lot::Mutex;

use super::user_objects::Held;
use super::{Step, by_handle};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::abi::structs::{InstantiateParams, OutText, UpdateResult};
use crate::handles::{Kind, Table};
use crate::stream::work::Op;
use crate::stream::{capture, streams};

/// Free on launch, upload, launch from the device, node priorities.
const FLAGS: u64 = 0xf;

#[derive(Debug)]
struct Exec {
    handle: usize,
    flags: u64,
    graph: usize,
    steps: Mutex<Vec<Step>>,
    /// What the graph kept; kept as long.
    held: Mutex<Vec<Arc<Held>>>,
}

static EXECS: Table<Exec> = Table::new(Kind::Exec);

fn make(graph: usize, flags: u64) -> Res<usize> {
    let graph = by_handle(graph)?;
    if flags & !FLAGS != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let steps = Mutex::new(graph.steps()?);
    let held = Mutex::new(graph.parts.lock().held.clone());
    Ok(EXECS.insert(|handle| Exec { handle, flags, graph: graph.handle, steps, held })?.handle)
}

pub(crate) fn instantiate(exec: Out<usize>, graph: usize, flags: u64) -> Res {
    exec.check()?;
    exec.set(make(graph, flags)?)
}

pub(crate) fn instantiate_v1(exec: Out<usize>, graph: usize, error: Out<usize>, log: OutText, size: usize) -> Res {
    exec.check()?;
    error.set_if(0);
    if !log.is_null() && size > 0 {
        log.set_text("", 1)?;
    }
    exec.set(make(graph, 0)?)
}

pub(crate) fn instantiate_with_params(exec: Out<usize>, graph: usize, params: Out<InstantiateParams>) -> Res {
    const ERROR: u32 = 1;
    exec.check()?;
    let wanted = params.get()?;
    let made = make(graph, wanted.flags);
    params.set(InstantiateParams { error_node: 0, result: if made.is_ok() { 0 } else { ERROR }, ..wanted })?;
    exec.set(made?)
}

pub(crate) fn flags(exec: usize, flags: Out<u64>) -> Res {
    flags.check()?;
    flags.set(EXECS.get(exec).map_err(|_| Code::INVALID_VALUE)?.flags)
}

pub(crate) fn destroy(exec: usize) -> Res {
    EXECS.remove(exec).map(drop).map_err(|_| Code::INVALID_VALUE)
}

/// Takes another graph's work over, if it has the same shape: as many nodes, of the same kinds in the same order.
fn take_over(exec: usize, graph: usize) -> Res<bool> {
    let exec = EXECS.get(exec).map_err(|_| Code::INVALID_VALUE)?;
    let graph = by_handle(graph)?;
    let fresh = graph.steps()?;
    let mut steps = exec.steps.lock();
    let same = steps.len() == fresh.len() && steps.iter().zip(&fresh).all(|(old, new)| old.op.kind() == new.op.kind());
    // A graph's own memory cannot be exchanged.
    let memory = fresh.iter().any(|step| matches!(step.op, Op::Alloc { .. } | Op::Free { .. }));
    if !same || memory {
        return Ok(false);
    }
    for (old, new) in steps.iter_mut().zip(fresh) {
        old.op = new.op;
    }
    exec.held.lock().extend(graph.parts.lock().held.iter().cloned());
    Ok(true)
}

pub(crate) fn update(exec: usize, graph: usize, result: Out<UpdateResult>) -> Res {
    const TOPOLOGY_CHANGED: u32 = 2;
    result.check()?;
    let taken = take_over(exec, graph)?;
    let code = if taken { 0 } else { TOPOLOGY_CHANGED };
    result.set(UpdateResult { result: code, error_node: 0, error_from_node: 0 })?;
    if taken { Ok(()) } else { Err(Code::GRAPH_EXEC_UPDATE_FAILURE) }
}

pub(crate) fn update_v1(exec: usize, graph: usize, error: Out<usize>, result: Out<u32>) -> Res {
    let mut full = UpdateResult { result: 1, error_node: 0, error_from_node: 0 };
    let done = update(exec, graph, Out(&raw mut full));
    error.set_if(full.error_node);
    result.set_if(full.result);
    done
}

/// Whether a node of the graph that an executable graph was made from runs: kernels, copies and fills can be left out.
pub(crate) fn set_enabled(exec: usize, node: usize, enabled: u32) -> Res {
    let exec = EXECS.get(exec).map_err(|_| Code::INVALID_VALUE)?;
    let mut steps = exec.steps.lock();
    let step = steps.iter_mut().find(|step| step.node == node && step.op.kind() <= 2).ok_or(Code::INVALID_VALUE)?;
    if enabled > 1 {
        return Err(Code::INVALID_VALUE);
    }
    step.enabled = enabled == 1;
    Ok(())
}

pub(crate) fn get_enabled(exec: usize, node: usize, enabled: Out<u32>) -> Res {
    enabled.check()?;
    let exec = EXECS.get(exec).map_err(|_| Code::INVALID_VALUE)?;
    let found = exec.steps.lock().iter().find(|step| step.node == node).map(|step| step.enabled);
    enabled.set(u32::from(found.ok_or(Code::INVALID_VALUE)?))
}

/// All work in order on one stream: one of the orders that the graph permits.
pub(crate) fn launch(exec: usize, stream: usize) -> Res {
    let exec = EXECS.get(exec).map_err(|_| Code::INVALID_VALUE)?;
    let stream = streams::for_work(stream)?;
    let steps: Vec<Step> = exec.steps.lock().clone();
    if stream.is_capturing() {
        return capture::record(&stream, Op::Child { graph: exec.graph, steps: Arc::new(steps) });
    }
    steps.iter().filter(|step| step.enabled).try_for_each(|step| step.op.run(&stream))
}

pub(crate) fn upload(exec: usize, stream: usize) -> Res {
    EXECS.get(exec).map_err(|_| Code::INVALID_VALUE)?;
    streams::for_work(stream).map(|_| ())
}
