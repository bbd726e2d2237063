//! Graphs: made, looked at, instantiated, launched.

mod nodes;
mod params;

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr::null_mut;

use crate::context;
use crate::driver::types::{Handle, HostFn, HostNodeParams};
use crate::entry::{api, forward, forward_stream};

forward! {
    cudaGraphCreate(graph: *mut Handle, flags: c_uint) => cuGraphCreate(graph, flags);
    cudaGraphDestroy(graph: Handle) => cuGraphDestroy(graph);
    cudaGraphClone(clone: *mut Handle, graph: Handle) => cuGraphClone(clone, graph);
    cudaGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize) => cuGraphGetNodes(graph, nodes, count);
    cudaGraphGetRootNodes(graph: Handle, nodes: *mut Handle, count: *mut usize)
        => cuGraphGetRootNodes(graph, nodes, count);
    cudaGraphNodeGetType(node: Handle, kind: *mut c_int) => cuGraphNodeGetType(node, kind);
    cudaGraphDestroyNode(node: Handle) => cuGraphDestroyNode(node);
    cudaGraphDebugDotPrint(graph: Handle, path: *const c_char, flags: c_uint)
        => cuGraphDebugDotPrint(graph, path, flags);
    cudaGraphInstantiate(exec: *mut Handle, graph: Handle, flags: c_ulonglong)
        => cuGraphInstantiateWithFlags(exec, graph, flags);
    cudaGraphInstantiateWithFlags(exec: *mut Handle, graph: Handle, flags: c_ulonglong)
        => cuGraphInstantiateWithFlags(exec, graph, flags);
    cudaGraphInstantiateWithParams(exec: *mut Handle, graph: Handle, params: *mut c_void)
        => cuGraphInstantiateWithParams(exec, graph, params);
    cudaGraphExecUpdate(exec: Handle, graph: Handle, result: *mut c_void) => cuGraphExecUpdate(exec, graph, result);
    cudaGraphExecGetFlags(exec: Handle, flags: *mut c_ulonglong) => cuGraphExecGetFlags(exec, flags);
    cudaGraphExecDestroy(exec: Handle) => cuGraphExecDestroy(exec);
    cudaGraphRetainUserObject(graph: Handle, object: Handle, count: c_uint, flags: c_uint)
        => cuGraphRetainUserObject(graph, object, count, flags);
    cudaGraphReleaseUserObject(graph: Handle, object: Handle, count: c_uint)
        => cuGraphReleaseUserObject(graph, object, count);
    cudaUserObjectCreate(object: *mut Handle, data: *mut c_void, destroy: HostFn, count: c_uint, flags: c_uint)
        => cuUserObjectCreate(object, data, destroy, count, flags);
    cudaUserObjectRetain(object: Handle, count: c_uint) => cuUserObjectRetain(object, count);
    cudaUserObjectRelease(object: Handle, count: c_uint) => cuUserObjectRelease(object, count);

    cudaGraphChildGraphNodeGetGraph(node: Handle, graph: *mut Handle) => cuGraphChildGraphNodeGetGraph(node, graph);
    cudaGraphEventRecordNodeGetEvent(node: Handle, event: *mut Handle) => cuGraphEventRecordNodeGetEvent(node, event);
    cudaGraphEventWaitNodeGetEvent(node: Handle, event: *mut Handle) => cuGraphEventWaitNodeGetEvent(node, event);
    cudaGraphHostNodeGetParams(node: Handle, params: *mut HostNodeParams) => cuGraphHostNodeGetParams(node, params);
    cudaGraphNodeFindInClone(node: *mut Handle, original: Handle, clone: Handle)
        => cuGraphNodeFindInClone(node, original, clone);
    cudaGraphNodeSetEnabled(exec: Handle, node: Handle, enabled: c_uint) => cuGraphNodeSetEnabled(exec, node, enabled);
    cudaGraphNodeGetEnabled(exec: Handle, node: Handle, enabled: *mut c_uint)
        => cuGraphNodeGetEnabled(exec, node, enabled);
    cudaGraphExecHostNodeSetParams(exec: Handle, node: Handle, params: *const HostNodeParams)
        => cuGraphExecHostNodeSetParams(exec, node, params);

    // CUDA 12 has each of these with and without data on edges; CUDA 13 with.
    softcudart12_cudaGraphGetEdges(graph: Handle, from: *mut Handle, to: *mut Handle, count: *mut usize)
        => cuGraphGetEdges(graph, from, to, null_mut(), count);
    softcudart12_cudaGraphGetEdges_v2(
        graph: Handle, from: *mut Handle, to: *mut Handle, edges: *mut c_void, count: *mut usize
    ) => cuGraphGetEdges(graph, from, to, edges, count);
    softcudart13_cudaGraphGetEdges(
        graph: Handle, from: *mut Handle, to: *mut Handle, edges: *mut c_void, count: *mut usize
    ) => cuGraphGetEdges(graph, from, to, edges, count);
    softcudart12_cudaGraphNodeGetDependencies(node: Handle, dependencies: *mut Handle, count: *mut usize)
        => cuGraphNodeGetDependencies(node, dependencies, null_mut(), count);
    softcudart12_cudaGraphNodeGetDependencies_v2(
        node: Handle, dependencies: *mut Handle, edges: *mut c_void, count: *mut usize
    ) => cuGraphNodeGetDependencies(node, dependencies, edges, count);
    softcudart13_cudaGraphNodeGetDependencies(
        node: Handle, dependencies: *mut Handle, edges: *mut c_void, count: *mut usize
    ) => cuGraphNodeGetDependencies(node, dependencies, edges, count);
    softcudart12_cudaGraphNodeGetDependentNodes(node: Handle, dependents: *mut Handle, count: *mut usize)
        => cuGraphNodeGetDependentNodes(node, dependents, null_mut(), count);
    softcudart12_cudaGraphNodeGetDependentNodes_v2(
        node: Handle, dependents: *mut Handle, edges: *mut c_void, count: *mut usize
    ) => cuGraphNodeGetDependentNodes(node, dependents, edges, count);
    softcudart13_cudaGraphNodeGetDependentNodes(
        node: Handle, dependents: *mut Handle, edges: *mut c_void, count: *mut usize
    ) => cuGraphNodeGetDependentNodes(node, dependents, edges, count);
    softcudart12_cudaGraphRemoveDependencies(graph: Handle, from: *const Handle, to: *const Handle, count: usize)
        => cuGraphRemoveDependencies(graph, from, to, std::ptr::null(), count);
    softcudart12_cudaGraphRemoveDependencies_v2(
        graph: Handle, from: *const Handle, to: *const Handle, edges: *const c_void, count: usize
    ) => cuGraphRemoveDependencies(graph, from, to, edges, count);
    softcudart13_cudaGraphRemoveDependencies(
        graph: Handle, from: *const Handle, to: *const Handle, edges: *const c_void, count: usize
    ) => cuGraphRemoveDependencies(graph, from, to, edges, count);
    softcudart12_cudaGraphAddDependencies(graph: Handle, from: *const Handle, to: *const Handle, count: usize)
        => cuGraphAddDependencies(graph, from, to, std::ptr::null(), count);
    softcudart12_cudaGraphAddDependencies_v2(
        graph: Handle, from: *const Handle, to: *const Handle, edges: *const c_void, count: usize
    ) => cuGraphAddDependencies(graph, from, to, edges, count);
    softcudart13_cudaGraphAddDependencies(
        graph: Handle, from: *const Handle, to: *const Handle, edges: *const c_void, count: usize
    ) => cuGraphAddDependencies(graph, from, to, edges, count);
}

forward_stream! {
    cudaGraphLaunch / cudaGraphLaunch_ptsz(exec: Handle, stream: Handle) => cuGraphLaunch(exec, stream);
    cudaGraphUpload / cudaGraphUpload_ptsz(exec: Handle, stream: Handle) => cuGraphUpload(exec, stream);
}

api! {
    fn cudaGraphConditionalHandleCreate(handle: *mut u64, graph: Handle, default: c_uint, flags: c_uint) |table| {
        let context = context::primary(table, context::device(table)?)?;
        table.cuGraphConditionalHandleCreate(handle, graph, context, default, flags)
    }
}
