//! Graphs.

use std::ffi::c_void;

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{
    BatchMemOp, EdgeData, HostFn, HostParams, InstantiateParams, KernelParams, KernelParamsV2, MemAllocParams,
    Memcpy3D, MemsetParams, NodeParams, OutText, UpdateResult,
};
use crate::graph::{add, edit, exec, inspect, user_objects};

exports! {
    plain fn cuGraphCreate(graph: Out<usize>, flags: u32) = edit::create;
    plain fn cuGraphDestroy(graph: usize) = edit::destroy;
    plain fn cuGraphClone(clone: Out<usize>, graph: usize) = edit::clone;
    plain fn cuGraphDestroyNode(node: usize) = edit::destroy_node;
    plain fn cuGraphAddDependencies(graph: usize, from: In<usize>, to: In<usize>, count: usize) = edit::add_dependencies_v1;
    plain fn cuGraphAddDependencies_v2(graph: usize, from: In<usize>, to: In<usize>, edges: In<EdgeData>, count: usize) [12030] = edit::add_dependencies;
    plain fn cuGraphRemoveDependencies(graph: usize, from: In<usize>, to: In<usize>, count: usize) = edit::remove_dependencies_v1;
    plain fn cuGraphRemoveDependencies_v2(graph: usize, from: In<usize>, to: In<usize>, edges: In<EdgeData>, count: usize) [12030] = edit::remove_dependencies;
    plain fn cuGraphConditionalHandleCreate(handle: Out<u64>, graph: usize, context: usize, default: u32, flags: u32) = edit::conditional_handle;

    plain fn cuGraphAddEmptyNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize) = add::empty;
    plain fn cuGraphAddKernelNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: In<KernelParams>) = add::kernel_v1;
    plain fn cuGraphAddKernelNode_v2(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: In<KernelParamsV2>) [12000] = add::kernel;
    plain fn cuGraphAddMemcpyNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: In<Memcpy3D>, context: usize) = add::copy;
    plain fn cuGraphAddMemsetNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: In<MemsetParams>, context: usize) = add::fill;
    plain fn cuGraphAddHostNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: In<HostParams>) = add::host;
    plain fn cuGraphAddChildGraphNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, child: usize) = add::child;
    plain fn cuGraphAddEventRecordNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, event: usize) = add::event_record;
    plain fn cuGraphAddEventWaitNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, event: usize) = add::event_wait;
    plain fn cuGraphAddMemAllocNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: Out<MemAllocParams>) = add::alloc;
    plain fn cuGraphAddMemFreeNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, ptr: u64) = add::free;
    plain fn cuGraphAddNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: Out<NodeParams>) = add::node_v1;
    plain fn cuGraphAddNode_v2(node: Out<usize>, graph: usize, dependencies: In<usize>, edges: In<EdgeData>, count: usize, params: Out<NodeParams>) [12030] = add::node;

    plain fn cuGraphGetNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) = inspect::nodes;
    plain fn cuGraphGetRootNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) = inspect::root_nodes;
    plain fn cuGraphGetEdges(graph: usize, from: Out<usize>, to: Out<usize>, count: Out<usize>) = inspect::edges_v1;
    plain fn cuGraphGetEdges_v2(graph: usize, from: Out<usize>, to: Out<usize>, data: Out<EdgeData>, count: Out<usize>) [12030] = inspect::edges;
    plain fn cuGraphNodeGetType(node: usize, kind: Out<u32>) = inspect::node_kind;
    plain fn cuGraphNodeGetDependencies(node: usize, dependencies: Out<usize>, count: Out<usize>) = inspect::dependencies_v1;
    plain fn cuGraphNodeGetDependencies_v2(node: usize, dependencies: Out<usize>, edges: Out<EdgeData>, count: Out<usize>) [12030] = inspect::dependencies;
    plain fn cuGraphNodeGetDependentNodes(node: usize, dependents: Out<usize>, count: Out<usize>) = inspect::dependents_v1;
    plain fn cuGraphNodeGetDependentNodes_v2(node: usize, dependents: Out<usize>, edges: Out<EdgeData>, count: Out<usize>) [12030] = inspect::dependents;
    plain fn cuGraphNodeFindInClone(node: Out<usize>, original: usize, clone: usize) = inspect::find_in_clone;
    plain fn cuGraphKernelNodeGetParams(node: usize, params: Out<KernelParams>) = inspect::kernel_params_v1;
    plain fn cuGraphKernelNodeGetParams_v2(node: usize, params: Out<KernelParamsV2>) [12000] = inspect::kernel_params;
    plain fn cuGraphKernelNodeSetParams(node: usize, params: In<KernelParams>) = edit::set_kernel_params_v1;
    plain fn cuGraphKernelNodeSetParams_v2(node: usize, params: In<KernelParamsV2>) [12000] = edit::set_kernel_params;
    plain fn cuGraphMemcpyNodeGetParams(node: usize, params: Out<Memcpy3D>) = inspect::copy_params;
    plain fn cuGraphMemcpyNodeSetParams(node: usize, params: In<Memcpy3D>) = edit::set_copy_params;
    plain fn cuGraphMemsetNodeGetParams(node: usize, params: Out<MemsetParams>) = inspect::fill_params;
    plain fn cuGraphMemsetNodeSetParams(node: usize, params: In<MemsetParams>) = edit::set_fill_params;
    plain fn cuGraphHostNodeGetParams(node: usize, params: Out<HostParams>) = inspect::host_params;
    plain fn cuGraphHostNodeSetParams(node: usize, params: In<HostParams>) = edit::set_host_params;
    plain fn cuGraphChildGraphNodeGetGraph(node: usize, graph: Out<usize>) = inspect::child_graph;
    plain fn cuGraphMemAllocNodeGetParams(node: usize, params: Out<MemAllocParams>) = inspect::alloc_params;
    plain fn cuGraphMemFreeNodeGetParams(node: usize, ptr: Out<u64>) = inspect::free_params;
    plain fn cuGraphEventRecordNodeGetEvent(node: usize, event: Out<usize>) = inspect::record_event;
    plain fn cuGraphEventWaitNodeGetEvent(node: usize, event: Out<usize>) = inspect::wait_event;
    plain fn cuGraphKernelNodeGetAttribute(node: usize, attribute: u32, value: Out<[u64; 8]>) = inspect::kernel_attribute;
    plain fn cuGraphKernelNodeSetAttribute(node: usize, attribute: u32, value: In<[u64; 8]>) = inspect::set_kernel_attribute;
    plain fn cuGraphKernelNodeCopyAttributes(dst: usize, src: usize) = inspect::copy_kernel_attributes;
    plain fn cuGraphDebugDotPrint(graph: usize, path: crate::abi::structs::Text, flags: u32) = inspect::dot;
    plain fn cuGraphAddBatchMemOpNode(node: Out<usize>, graph: usize, dependencies: In<usize>, count: usize, params: In<BatchMemOp>) = add::batch_mem_op;

    plain fn cuGraphInstantiate(exec: Out<usize>, graph: usize, error: Out<usize>, log: OutText, size: usize) = exec::instantiate_v1;
    plain fn cuGraphInstantiate_v2(exec: Out<usize>, graph: usize, error: Out<usize>, log: OutText, size: usize) [11000] = exec::instantiate_v1;
    plain fn cuGraphInstantiateWithFlags(exec: Out<usize>, graph: usize, flags: u64) = exec::instantiate;
    plain fn cuGraphInstantiateWithParams(exec: Out<usize>, graph: usize, params: Out<InstantiateParams>) = exec::instantiate_with_params;
    plain fn cuGraphExecGetFlags(exec: usize, flags: Out<u64>) = exec::flags;
    plain fn cuGraphExecDestroy(exec: usize) = exec::destroy;
    plain fn cuGraphExecUpdate(exec: usize, graph: usize, error: Out<usize>, result: Out<u32>) = exec::update_v1;
    plain fn cuGraphExecUpdate_v2(exec: usize, graph: usize, result: Out<UpdateResult>) [12000] = exec::update;
    plain fn cuGraphNodeSetEnabled(exec: usize, node: usize, enabled: u32) = exec::set_enabled;
    plain fn cuGraphNodeGetEnabled(exec: usize, node: usize, enabled: Out<u32>) = exec::get_enabled;
    ptsz(stream) fn cuGraphLaunch(exec: usize, stream: usize) = exec::launch;
    ptsz(stream) fn cuGraphUpload(exec: usize, stream: usize) = exec::upload;

    plain fn cuUserObjectCreate(object: Out<usize>, data: *mut c_void, destroy: Option<HostFn>, count: u32, flags: u32) = user_objects::create;
    plain fn cuUserObjectRetain(object: usize, count: u32) = user_objects::retain;
    plain fn cuUserObjectRelease(object: usize, count: u32) = user_objects::release;
    plain fn cuGraphRetainUserObject(graph: usize, object: usize, count: u32, flags: u32) = user_objects::graph_retain;
    plain fn cuGraphReleaseUserObject(graph: usize, object: usize, count: u32) = user_objects::graph_release;
}
