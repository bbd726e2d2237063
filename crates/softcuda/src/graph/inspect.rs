//! Questions about graphs and nodes.

use std::sync::Arc;

use super::{Edge, Graph, Node, by_handle, node_by_handle};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{
    EdgeData, HostParams, KernelParams, KernelParamsV2, MemAllocParams, Memcpy3D, MemsetParams, Text,
};
use crate::process::devices;
use crate::stream::work::Op;

/// Where a part of each item goes.
type Place<'a, T> = (Out<usize>, &'a dyn Fn(&T) -> usize);

/// Writes a list as CUDA does: without a place for it, only how many there are; with one, as many as fit, and null after them.
fn give<T: Copy>(items: &[T], places: &[Place<'_, T>], count: Out<usize>) -> Res {
    count.check()?;
    if places.iter().all(|(place, _)| place.is_null()) {
        return count.set(items.len());
    }
    let room = count.get()?;
    for (place, part) in places.iter().filter(|(place, _)| !place.is_null()) {
        let padding = room.saturating_sub(items.len()).min(1 << 20);
        place.set_all(items.iter().take(room).map(part).chain((0..padding).map(|_| 0)))?;
    }
    count.set(room.min(items.len()))
}

pub(crate) fn nodes(graph: usize, nodes: Out<usize>, count: Out<usize>) -> Res {
    let found: Vec<usize> = by_handle(graph)?.parts.lock().nodes.iter().map(|node| node.handle).collect();
    give(&found, &[(nodes, &|node| *node)], count)
}

pub(crate) fn root_nodes(graph: usize, nodes: Out<usize>, count: Out<usize>) -> Res {
    let graph = by_handle(graph)?;
    let parts = graph.parts.lock();
    let is_root = |node: &usize| parts.after.get(node).is_none_or(Vec::is_empty);
    let found: Vec<usize> = parts.nodes.iter().map(|node| node.handle).filter(is_root).collect();
    give(&found, &[(nodes, &|node| *node)], count)
}

/// All pairs of a node and one that comes after it.
fn pairs(graph: &Graph) -> Vec<(Edge, usize)> {
    let parts = graph.parts.lock();
    let of = |node: &Arc<Node>| {
        let after = parts.after.get(&node.handle).cloned().unwrap_or_default();
        let to = node.handle;
        after.into_iter().map(move |edge| (edge, to))
    };
    parts.nodes.iter().flat_map(of).collect()
}

fn give_data(data: Out<EdgeData>, edges: &[EdgeData], room: usize) -> Res {
    if data.is_null() { Ok(()) } else { data.set_all(edges.iter().copied().take(room)) }
}

pub(crate) fn edges_v1(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) -> Res {
    edges(graph, from, to, Out(std::ptr::null_mut()), count)
}

pub(crate) fn edges(graph: usize, from: Out<usize>, to: Out<usize>, data: Out<EdgeData>, count: Out<usize>) -> Res {
    let found = pairs(&*by_handle(graph)?);
    if !from.is_null() {
        let data_of: Vec<EdgeData> = found.iter().map(|(edge, _)| edge.data).collect();
        give_data(data, &data_of, count.get()?)?;
    }
    give(&found, &[(from, &|(edge, _)| edge.node), (to, &|(_, to)| *to)], count)
}

pub(crate) fn node_kind(node: usize, kind: Out<u32>) -> Res {
    kind.check()?;
    kind.set(node_by_handle(node)?.op.lock().kind())
}

fn give_edges(found: &[Edge], nodes: Out<usize>, data: Out<EdgeData>, count: Out<usize>) -> Res {
    if !nodes.is_null() {
        let data_of: Vec<EdgeData> = found.iter().map(|edge| edge.data).collect();
        give_data(data, &data_of, count.get()?)?;
    }
    give(found, &[(nodes, &|edge| edge.node)], count)
}

pub(crate) fn dependencies_v1(node: usize, dependencies: Out<usize>, count: Out<usize>) -> Res {
    self::dependencies(node, dependencies, Out(std::ptr::null_mut()), count)
}

pub(crate) fn dependencies(node: usize, dependencies: Out<usize>, edges: Out<EdgeData>, count: Out<usize>) -> Res {
    let node = node_by_handle(node)?;
    let found = by_handle(node.graph)?.parts.lock().after.get(&node.handle).cloned().unwrap_or_default();
    give_edges(&found, dependencies, edges, count)
}

pub(crate) fn dependents_v1(node: usize, dependents: Out<usize>, count: Out<usize>) -> Res {
    self::dependents(node, dependents, Out(std::ptr::null_mut()), count)
}

pub(crate) fn dependents(node: usize, dependents: Out<usize>, edges: Out<EdgeData>, count: Out<usize>) -> Res {
    let node = node_by_handle(node)?;
    let found: Vec<Edge> = pairs(&*by_handle(node.graph)?)
        .into_iter()
        .filter(|(edge, _)| edge.node == node.handle)
        .map(|(edge, to)| Edge { node: to, data: edge.data })
        .collect();
    give_edges(&found, dependents, edges, count)
}

pub(crate) fn find_in_clone(node: Out<usize>, original: usize, clone: usize) -> Res {
    node.check()?;
    let clone = by_handle(clone)?;
    let found = clone.parts.lock().nodes.iter().find(|node| node.original == Some(original)).map(|node| node.handle);
    node.set(found.ok_or(Code::INVALID_VALUE)?)
}

// ---- parameters -------------------------------------------------------------------------------------------------------------

/// A part of a node's work, if it is work of the kind asked for.
fn part<T>(node: usize, pick: impl FnOnce(&Op) -> Option<T>) -> Res<T> {
    pick(&node_by_handle(node)?.op.lock()).ok_or(Code::INVALID_VALUE)
}

fn kernel_of(op: &Op) -> Option<KernelParamsV2> {
    if let Op::Kernel(params) | Op::OwnKernel(params, _) = op { Some(*params) } else { None }
}

pub(crate) fn kernel_params(node: usize, params: Out<KernelParamsV2>) -> Res {
    params.set(part(node, kernel_of)?)
}

pub(crate) fn kernel_params_v1(node: usize, params: Out<KernelParams>) -> Res {
    params.set(part(node, kernel_of)?.first)
}

/// A captured copy of one row is told as one; what was captured in another shape has none.
pub(crate) fn copy_params(node: usize, params: Out<Memcpy3D>) -> Res {
    let found = part(node, |op| match op {
        Op::Copy(copy) => Some(**copy),
        Op::Rows(rows) => match rows[..] {
            [row] => {
                // SAFETY: plain C data, all of whose fields are numbers.
                let mut copy: Memcpy3D = unsafe { std::mem::zeroed() };
                (copy.src_kind, copy.src_device) = (4, row.src);
                (copy.dst_kind, copy.dst_device) = (4, row.dst);
                (copy.width, copy.height, copy.depth) = (row.size as usize, 1, 1);
                Some(copy)
            }
            _ => None,
        },
        _ => None,
    });
    params.set(found?)
}

pub(crate) fn fill_params(node: usize, params: Out<MemsetParams>) -> Res {
    params.set(part(node, |op| if let Op::Fill(fill) = op { Some(*fill) } else { None })?)
}

pub(crate) fn host_params(node: usize, params: Out<HostParams>) -> Res {
    let call = part(node, |op| if let Op::Host(call) = op { Some(*call) } else { None })?;
    params.set(HostParams { function: Some(call.function), data: call.data as *mut _ })
}

pub(crate) fn child_graph(node: usize, graph: Out<usize>) -> Res {
    graph.check()?;
    graph.set(part(node, |op| if let Op::Child { graph, .. } = op { Some(*graph) } else { None })?)
}

pub(crate) fn alloc_params(node: usize, params: Out<MemAllocParams>) -> Res {
    let (memory, props) =
        part(node, |op| if let Op::Alloc { memory, props } = op { Some((memory.clone(), *props)) } else { None })?;
    let (size, ptr) = (memory.size as usize, memory.ptr);
    params.set(MemAllocParams { props, access: std::ptr::null(), access_count: 0, size, ptr })
}

pub(crate) fn free_params(node: usize, ptr: Out<u64>) -> Res {
    ptr.set(part(node, |op| if let Op::Free { ptr } = op { Some(*ptr) } else { None })?)
}

pub(crate) fn record_event(node: usize, event: Out<usize>) -> Res {
    event.set(part(node, |op| if let Op::Record { event } = op { Some(*event) } else { None })?)
}

pub(crate) fn wait_event(node: usize, event: Out<usize>) -> Res {
    event.set(part(node, |op| if let Op::Wait { event } = op { Some(*event) } else { None })?)
}

/// Attributes say how a kernel runs, which none does.
pub(crate) fn kernel_attribute(node: usize, _attribute: u32, value: Out<[u64; 8]>) -> Res {
    value.check()?;
    part(node, kernel_of)?;
    value.set([0; 8])
}

pub(crate) fn set_kernel_attribute(node: usize, _attribute: u32, value: In<[u64; 8]>) -> Res {
    value.get()?;
    part(node, kernel_of).map(|_| ())
}

pub(crate) fn copy_kernel_attributes(dst: usize, src: usize) -> Res {
    part(dst, kernel_of)?;
    part(src, kernel_of).map(|_| ())
}

/// Writes the graph in the language of Graphviz.
pub(crate) fn dot(graph: usize, path: Text, _flags: u32) -> Res {
    use std::fmt::Write;
    let graph = by_handle(graph)?;
    let path = path.text()?;
    devices::by_ordinal(0)?;
    let mut text = String::from("digraph graph_ {\n");
    for node in &graph.parts.lock().nodes {
        let kind = node.op.lock().kind();
        // Writing to a string does not fail.
        let _ = writeln!(text, "  n{:x} [label=\"kind {kind}\"];", node.handle);
    }
    for (edge, to) in pairs(&graph) {
        let _ = writeln!(text, "  n{:x} -> n{to:x};", edge.node);
    }
    text.push_str("}\n");
    std::fs::write(path, text).map_err(|_| Code::OPERATING_SYSTEM)
}
