//! Memory of graphs: the driver's own, passed on. The limit is checked where a graph is given memory, with what graphs hold already.

use std::ffi::{c_int, c_void};

use crate::abi::*;
use crate::device::current_ordinal;
use crate::state::Shim;

/// Memory that graphs hold on a device, in bytes: the driver knows.
pub(crate) fn reserved(shim: &Shim, device: usize) -> u64 {
    if shim.ledger.graph_nodes(device) == 0 {
        return 0;
    }
    let mut bytes = 0u64;
    let out = std::ptr::from_mut(&mut bytes).cast::<c_void>();
    // SAFETY: for this attribute the driver writes a 64-bit number, to a local.
    let code = unsafe { shim.driver.cuDeviceGetGraphMemAttribute(device as CUdevice, GRAPH_RESERVED_CURRENT, out) };
    if code == SUCCESS { bytes } else { 0 }
}

/// Does `real` if so many bytes more would keep the limit.
fn within_limit(shim: &Shim, device: Option<usize>, bytes: u64, real: impl Fn() -> Status) -> Status {
    let Some(device) = device else { return real() };
    if shim.ledger.is_limited() {
        super::learn_total(shim, device);
        let limit = shim.ledger.limit_of(shim.ledger.total(device));
        let fits = || {
            let held = shim.ledger.held(device).saturating_add(reserved(shim, device));
            held.saturating_add(bytes) <= limit
        };
        if !fits() {
            super::make_room(shim, device);
            if !fits() {
                return OUT_OF_MEMORY;
            }
        }
    }
    let code = super::plain::retried(shim, device, real);
    if code == SUCCESS {
        shim.ledger.note_graph(device);
    }
    code
}

/// An allocation on a stream under capture: a node of the graph.
pub(super) fn captured_alloc(shim: &Shim, bytes: u64, real: impl Fn() -> Status) -> Status {
    within_limit(shim, current_ordinal(shim.driver), bytes, real)
}

/// The device and size of an allocation node.
fn wanted(params: &CUDA_MEM_ALLOC_NODE_PARAMS) -> (Option<usize>, u64) {
    let location = params.pool_head.location;
    let device = usize::try_from(location.id).ok().filter(|_| location.kind == LOCATION_DEVICE);
    (device, params.bytes as u64)
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn add_alloc(
    shim: &'static Shim,
    node: *mut Opaque,
    graph: Opaque,
    dependencies: *const Opaque,
    count: usize,
    params: *mut CUDA_MEM_ALLOC_NODE_PARAMS,
) -> Status {
    // SAFETY: the program's own arguments; parameters that are not null are valid.
    unsafe {
        let (device, bytes) = params.as_ref().map_or((None, 0), wanted);
        let real = || shim.driver.cuGraphAddMemAllocNode(node, graph, dependencies, count, params);
        within_limit(shim, device, bytes, real)
    }
}

/// The same, where a node of any kind is added.
///
/// # Safety
/// `params` is null or valid for a node of its kind.
unsafe fn wanted_by_node(params: *const CUgraphNodeParams) -> Option<(Option<usize>, u64)> {
    // SAFETY: the kind comes first in every node's parameters, and tells what follows.
    unsafe {
        let kind: *const c_int = params.cast();
        if kind.is_null() || *kind != GRAPH_NODE_MEM_ALLOC {
            return None;
        }
        Some(wanted(&(*params).alloc))
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn add_node(
    shim: &'static Shim,
    node: *mut Opaque,
    graph: Opaque,
    dependencies: *const Opaque,
    count: usize,
    params: *mut CUgraphNodeParams,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        let real = || shim.driver.cuGraphAddNode(node, graph, dependencies, count, params);
        match wanted_by_node(params) {
            Some((device, bytes)) => within_limit(shim, device, bytes, real),
            None => real(),
        }
    }
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn add_node_v2(
    shim: &'static Shim,
    node: *mut Opaque,
    graph: Opaque,
    dependencies: *const Opaque,
    data: *const c_void,
    count: usize,
    params: *mut CUgraphNodeParams,
) -> Status {
    // SAFETY: the program's own arguments.
    unsafe {
        let real = || shim.driver.cuGraphAddNode_v2(node, graph, dependencies, data, count, params);
        match wanted_by_node(params) {
            Some((device, bytes)) => within_limit(shim, device, bytes, real),
            None => real(),
        }
    }
}
