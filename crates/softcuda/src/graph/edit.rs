//! Making, copying and changing graphs.

use super::{Edge, Graph, Node, add, by_handle, node_by_handle};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{EdgeData, HostParams, KernelParams, KernelParamsV2, Memcpy3D, MemsetParams};
use crate::stream::work::Op;

pub(crate) fn create(graph: Out<usize>, flags: u32) -> Res {
    graph.check()?;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    graph.set(Graph::make()?.handle)
}

pub(crate) fn destroy(graph: usize) -> Res {
    by_handle(graph)?.destroy();
    Ok(())
}

pub(crate) fn clone(clone: Out<usize>, graph: usize) -> Res {
    clone.check()?;
    clone.set(by_handle(graph)?.copy()?.handle)
}

pub(crate) fn destroy_node(node: usize) -> Res {
    let node = node_by_handle(node)?;
    let graph = by_handle(node.graph)?;
    super::NODES.remove(node.handle)?;
    let mut parts = graph.parts.lock();
    parts.nodes.retain(|other| other.handle != node.handle);
    parts.after.remove(&node.handle);
    for after in parts.after.values_mut() {
        after.retain(|edge| edge.node != node.handle);
    }
    Ok(())
}

/// Pairs of nodes of one graph.
fn pairs(graph: &Graph, from: In<usize>, to: In<usize>, count: usize) -> Res<Vec<(usize, usize)>> {
    let (from, to) = (from.all(count)?, to.all(count)?);
    for &node in from.iter().chain(&to) {
        if node_by_handle(node)?.graph != graph.handle {
            return Err(Code::INVALID_VALUE);
        }
    }
    Ok(from.into_iter().zip(to).collect())
}

pub(crate) fn add_dependencies_v1(graph: usize, from: In<usize>, to: In<usize>, count: usize) -> Res {
    add_dependencies(graph, from, to, In(std::ptr::null()), count)
}

pub(crate) fn add_dependencies(graph: usize, from: In<usize>, to: In<usize>, edges: In<EdgeData>, count: usize) -> Res {
    let graph = by_handle(graph)?;
    let pairs = pairs(&graph, from, to, count)?;
    let data = if edges.is_null() { vec![EdgeData::default(); count] } else { edges.all(count)? };
    let mut parts = graph.parts.lock();
    let known =
        |from: usize, to: usize| parts.after.get(&to).is_some_and(|after| after.iter().any(|edge| edge.node == from));
    if pairs.iter().any(|&(from, to)| from == to || known(from, to)) {
        return Err(Code::INVALID_VALUE);
    }
    for (&(node, to), &data) in pairs.iter().zip(&data) {
        parts.after.entry(to).or_default().push(Edge { node, data });
    }
    Ok(())
}

pub(crate) fn remove_dependencies_v1(graph: usize, from: In<usize>, to: In<usize>, count: usize) -> Res {
    remove_dependencies(graph, from, to, In(std::ptr::null()), count)
}

pub(crate) fn remove_dependencies(
    graph: usize,
    from: In<usize>,
    to: In<usize>,
    _edges: In<EdgeData>,
    count: usize,
) -> Res {
    let graph = by_handle(graph)?;
    let pairs = pairs(&graph, from, to, count)?;
    let mut parts = graph.parts.lock();
    let known =
        |from: usize, to: usize| parts.after.get(&to).is_some_and(|after| after.iter().any(|edge| edge.node == from));
    if !pairs.iter().all(|&(from, to)| known(from, to)) {
        return Err(Code::INVALID_VALUE);
    }
    for (from, to) in pairs {
        if let Some(after) = parts.after.get_mut(&to) {
            after.retain(|edge| edge.node != from);
        }
    }
    Ok(())
}

/// A number for a condition; only kernels set it, so nothing ever asks for its value.
pub(crate) fn conditional_handle(handle: Out<u64>, graph: usize, _context: usize, _default: u32, flags: u32) -> Res {
    handle.check()?;
    let graph = by_handle(graph)?;
    if flags > 1 {
        return Err(Code::INVALID_VALUE);
    }
    let mut parts = graph.parts.lock();
    parts.conditionals += 1;
    handle.set((graph.handle as u64) << 16 | parts.conditionals)
}

/// Puts other work of the same kind in a node's place.
fn replace(node: &Node, op: Op) -> Res {
    let mut place = node.op.lock();
    if place.kind() != op.kind() {
        return Err(Code::INVALID_VALUE);
    }
    *place = op;
    Ok(())
}

pub(crate) fn set_kernel_params_v1(node: usize, params: In<KernelParams>) -> Res {
    let params = KernelParamsV2 { first: params.get()?, kernel: 0, context: 0 };
    replace(&*node_by_handle(node)?, add::kernel_op(params)?)
}

pub(crate) fn set_kernel_params(node: usize, params: In<KernelParamsV2>) -> Res {
    replace(&*node_by_handle(node)?, add::kernel_op(params.get()?)?)
}

pub(crate) fn set_copy_params(node: usize, params: In<Memcpy3D>) -> Res {
    replace(&*node_by_handle(node)?, add::copy_op(params.get()?)?)
}

pub(crate) fn set_fill_params(node: usize, params: In<MemsetParams>) -> Res {
    replace(&*node_by_handle(node)?, add::fill_op(params.get()?)?)
}

pub(crate) fn set_host_params(node: usize, params: In<HostParams>) -> Res {
    replace(&*node_by_handle(node)?, add::host_op(params.get()?)?)
}
