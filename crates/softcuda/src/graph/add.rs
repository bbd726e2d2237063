//! Adding nodes.

use std::sync::Arc;

use super::memory::GraphMemory;
use super::{Graph, by_handle, edges_from};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{
    BatchMemOp, ConditionalParams, EdgeData, HostParams, KernelParams, KernelParamsV2, LOCATION_DEVICE, MemAllocParams,
    Memcpy3D, MemsetParams, NodeParams,
};
use crate::memory::{copies, fills, space};
use crate::process::devices;
use crate::stream::values;
use crate::stream::work::{HostCall, Op};

const NO_EDGES: In<EdgeData> = In(std::ptr::null());

/// Adds what `make` makes, once the rest was found to be right.
fn add(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    edges: In<EdgeData>,
    count: usize,
    make: impl FnOnce(&Graph) -> Res<Op>,
) -> Res {
    node.check()?;
    let graph = by_handle(graph)?;
    let after = edges_from(&graph, dependencies, edges, count)?;
    node.set(graph.add(make(&graph)?, after)?)
}

pub(crate) fn empty(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize) -> Res {
    add(node, graph, dependencies, NO_EDGES, count, |_| Ok(Op::Empty))
}

pub(crate) fn kernel_op(params: KernelParamsV2) -> Res<Op> {
    let first = params.first;
    let some = |size: [u32; 3]| size.iter().all(|&n| n > 0);
    if !some(first.grid) || !some(first.block) || (first.function == 0 && params.kernel == 0) {
        return Err(Code::INVALID_VALUE);
    }
    // The parameters lie in memory of the caller's, which need not outlive the call.
    let first = KernelParams { params: 0, extra: 0, ..first };
    Ok(Op::Kernel(KernelParamsV2 { first, ..params }))
}

pub(crate) fn kernel_v1(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: In<KernelParams>,
) -> Res {
    let first = params.get()?;
    add(node, graph, dependencies, NO_EDGES, count, |_| kernel_op(KernelParamsV2 { first, kernel: 0, context: 0 }))
}

pub(crate) fn kernel(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: In<KernelParamsV2>,
) -> Res {
    let params = params.get()?;
    add(node, graph, dependencies, NO_EDGES, count, |_| kernel_op(params))
}

pub(crate) fn copy_op(params: Memcpy3D) -> Res<Op> {
    copies::rows_of(&params)?;
    Ok(Op::Copy(Box::new(params)))
}

pub(crate) fn copy(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: In<Memcpy3D>,
    _context: usize,
) -> Res {
    let params = params.get()?;
    add(node, graph, dependencies, NO_EDGES, count, |_| copy_op(params))
}

pub(crate) fn fill_op(params: MemsetParams) -> Res<Op> {
    fills::check(&params)?;
    if space::find(params.dst).is_none() || params.width == 0 || params.height == 0 {
        return Err(Code::INVALID_VALUE);
    }
    Ok(Op::Fill(params))
}

pub(crate) fn fill(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: In<MemsetParams>,
    _context: usize,
) -> Res {
    let params = params.get()?;
    add(node, graph, dependencies, NO_EDGES, count, |_| fill_op(params))
}

pub(crate) fn host_op(params: HostParams) -> Res<Op> {
    let function = params.function.ok_or(Code::INVALID_VALUE)?;
    Ok(Op::Host(HostCall { function, data: params.data as usize }))
}

pub(crate) fn host(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: In<HostParams>,
) -> Res {
    let params = params.get()?;
    add(node, graph, dependencies, NO_EDGES, count, |_| host_op(params))
}

fn child_op(into: &Graph, child: usize) -> Res<Op> {
    if child == into.handle {
        return Err(Code::INVALID_VALUE);
    }
    let copy = by_handle(child)?.copy()?;
    into.parts.lock().held.extend(copy.parts.lock().held.iter().cloned());
    Ok(Op::Child { graph: copy.handle, steps: Arc::new(copy.steps()?) })
}

pub(crate) fn child(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, child: usize) -> Res {
    add(node, graph, dependencies, NO_EDGES, count, |into| child_op(into, child))
}

pub(crate) fn event_record(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, event: usize) -> Res {
    add(node, graph, dependencies, NO_EDGES, count, |_| Ok(Op::Record { event }))
}

pub(crate) fn event_wait(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, event: usize) -> Res {
    add(node, graph, dependencies, NO_EDGES, count, |_| Ok(Op::Wait { event }))
}

fn alloc_op(params: &mut MemAllocParams) -> Res<Op> {
    let location = params.props.location;
    if params.props.kind != 1 || location.kind != LOCATION_DEVICE || params.size == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let memory = GraphMemory::allocate(devices::by_ordinal(location.id)?, params.size as u64)?;
    params.ptr = memory.ptr;
    Ok(Op::Alloc { memory, props: params.props })
}

pub(crate) fn alloc(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: Out<MemAllocParams>,
) -> Res {
    let mut wanted = params.get()?;
    add(node, graph, dependencies, NO_EDGES, count, |_| alloc_op(&mut wanted))?;
    params.set(wanted)
}

fn free_op(ptr: u64) -> Res<Op> {
    let block = space::find(ptr).filter(|block| block.base == ptr && block.kind == space::Kind::Graph);
    block.map(|_| Op::Free { ptr }).ok_or(Code::INVALID_VALUE)
}

pub(crate) fn free(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, ptr: u64) -> Res {
    add(node, graph, dependencies, NO_EDGES, count, |_| free_op(ptr))
}

pub(crate) fn batch_mem_op(
    _node: Out<usize>,
    graph: usize,
    _dependencies: In<usize>,
    _count: usize,
    params: In<BatchMemOp>,
) -> Res {
    by_handle(graph)?;
    params.get()?;
    Err(Code::NOT_SUPPORTED)
}

// ---- one function for all kinds ---------------------------------------------------------------------------------------------

pub(crate) fn node_v1(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    count: usize,
    params: Out<NodeParams>,
) -> Res {
    self::node(node, graph, dependencies, NO_EDGES, count, params)
}

pub(crate) fn node(
    node: Out<usize>,
    graph: usize,
    dependencies: In<usize>,
    edges: In<EdgeData>,
    count: usize,
    params: Out<NodeParams>,
) -> Res {
    let mut wanted = params.get()?;
    add(node, graph, dependencies, edges, count, |into| op_of(into, &mut wanted))?;
    // Some kinds give something back.
    params.set(wanted)
}

/// The structure at the start of a node's parameters, behind `skip` numbers.
fn body<T: Copy>(params: &NodeParams, skip: usize) -> Res<T> {
    In(params.body[skip..].as_ptr().cast::<T>()).get()
}

fn op_of(into: &Graph, params: &mut NodeParams) -> Res<Op> {
    match params.kind {
        0 => kernel_op(body(params, 0)?),
        // Flags and a context come first.
        1 => copy_op(body(params, 2)?),
        2 => fill_op(body(params, 0)?),
        3 => host_op(body(params, 0)?),
        4 => child_op(into, body(params, 0)?),
        5 => Ok(Op::Empty),
        6 => Ok(Op::Wait { event: body(params, 0)? }),
        7 => Ok(Op::Record { event: body(params, 0)? }),
        10 => {
            let mut wanted: MemAllocParams = body(params, 0)?;
            let op = alloc_op(&mut wanted)?;
            Out(params.body.as_mut_ptr().cast::<MemAllocParams>()).set(wanted)?;
            Ok(op)
        }
        11 => free_op(body(params, 0)?),
        12 => {
            // A context, a count, an array of operations, flags.
            let (count, ops): (u32, usize) = (body(params, 1)?, body(params, 2)?);
            let ops = In(ops as *const BatchMemOp).all(count as usize)?;
            let mut ops = ops.iter().map(values::op_of).collect::<Res<Vec<_>>>()?.into_iter().flatten();
            match (ops.next(), ops.next()) {
                (Some(op), None) => Ok(op),
                (None, _) => Ok(Op::Empty),
                _ => Err(Code::NOT_SUPPORTED),
            }
        }
        13 => {
            let wanted: ConditionalParams = body(params, 0)?;
            if wanted.kind > 2 || wanted.size == 0 || wanted.size > 64 {
                return Err(Code::INVALID_VALUE);
            }
            let bodies: Vec<usize> = (0..wanted.size).map(|_| Ok(Graph::make()?.handle)).collect::<Res<_>>()?;
            // The driver gives the array of bodies; it lives as long as the process.
            let shown: &'static [usize] = Box::leak(bodies.into_boxed_slice());
            let given = ConditionalParams { graphs: shown.as_ptr() as usize, ..wanted };
            Out(params.body.as_mut_ptr().cast::<ConditionalParams>()).set(given)?;
            Ok(Op::Conditional)
        }
        8 | 9 => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_VALUE),
    }
}
