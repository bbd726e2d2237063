//! Adding nodes.

use std::ffi::{c_int, c_uint, c_void};

use super::params::{NodeParams, node_context};
use crate::driver::Table;
use crate::driver::types::{Handle, HostNodeParams, KernelNodeParams, MemsetNodeParams};
use crate::entry::{api, forward, read};
use crate::error::{Error, Outcome};
use crate::kernel::{self, Dim3};
use crate::memory::copy_3d::{self, Copy3D};
use crate::memory::{address, pointer};

/// `cudaKernelNodeParams`.
#[repr(C)]
struct KernelParams {
    host: *const c_void,
    grid: Dim3,
    block: Dim3,
    shared_bytes: c_uint,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
}

/// `cudaMemsetParams`.
#[repr(C)]
struct FillParams {
    dst: *mut c_void,
    pitch: usize,
    value: c_uint,
    element_bytes: c_uint,
    width: usize,
    height: usize,
}

/// Where a node goes: its graph, and what it comes after.
struct Spot {
    node: *mut Handle,
    graph: Handle,
    dependencies: *const Handle,
    count: usize,
}

/// # Safety
/// The spot's pointers are as CUDA's documentation says, `params` is null or valid for reads and writes.
unsafe fn add(table: &Table, spot: &Spot, edges: *const c_void, params: *mut NodeParams) -> Outcome {
    // SAFETY: as the caller promises.
    let Some(given) = (unsafe { params.as_mut() }) else { return Err(Error::INVALID_VALUE) };
    let mut driver = given.to_driver(table)?;
    // SAFETY: as the caller promises; the parameters are a local.
    unsafe {
        table.cuGraphAddNode(
            spot.node,
            spot.graph,
            spot.dependencies,
            edges,
            spot.count,
            (&raw mut driver).cast(),
        )?;
    }
    given.take_results(&driver);
    Ok(())
}

api! {
    fn softcudart13_cudaGraphAddNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, edges: *const c_void, count: usize,
        params: *mut NodeParams
    ) |table| {
        add(table, &Spot { node, graph, dependencies, count }, edges, params)
    }

    fn softcudart12_cudaGraphAddNode_v2(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, edges: *const c_void, count: usize,
        params: *mut NodeParams
    ) |table| {
        add(table, &Spot { node, graph, dependencies, count }, edges, params)
    }

    fn softcudart12_cudaGraphAddNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *mut NodeParams
    ) |table| {
        add(table, &Spot { node, graph, dependencies, count }, std::ptr::null(), params)
    }

    fn cudaGraphAddKernelNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const KernelParams
    ) |table| {
        let given = read(params)?;
        let driver = KernelNodeParams {
            func: std::ptr::null_mut(),
            grid: given.grid.into(),
            block: given.block.into(),
            shared_bytes: given.shared_bytes,
            params: given.params,
            extra: given.extra,
            kernel: kernel::function(table, given.host)?,
            context: std::ptr::null_mut(),
        };
        table.cuGraphAddKernelNode(node, graph, dependencies, count, &raw const driver)
    }

    fn cudaGraphAddMemcpyNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, copy: *const Copy3D
    ) |table| {
        let copy = copy_3d::convert(table, read(copy)?)?;
        table.cuGraphAddMemcpyNode(node, graph, dependencies, count, &raw const copy, node_context(table)?)
    }

    fn cudaGraphAddMemcpyNode1D(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, dst: *mut c_void,
        src: *const c_void, bytes: usize, kind: c_int
    ) |table| {
        let copy = copy_3d::linear(dst, src, bytes, kind)?;
        table.cuGraphAddMemcpyNode(node, graph, dependencies, count, &raw const copy, node_context(table)?)
    }

    fn cudaGraphAddMemsetNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const FillParams
    ) |table| {
        let given = read(params)?;
        let context = node_context(table)?;
        let driver = MemsetNodeParams {
            dst: address(given.dst),
            pitch: given.pitch,
            value: given.value,
            element_bytes: given.element_bytes,
            width: given.width,
            height: given.height,
            context,
        };
        table.cuGraphAddMemsetNode(node, graph, dependencies, count, &raw const driver, context)
    }

    fn cudaGraphAddMemFreeNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, ptr: *mut c_void
    ) |table| {
        table.cuGraphAddMemFreeNode(node, graph, dependencies, count, address(ptr))
    }

    fn cudaGraphMemFreeNodeGetParams(node: Handle, out: *mut *mut c_void) |table| {
        let mut ptr = 0;
        table.cuGraphMemFreeNodeGetParams(node, &raw mut ptr)?;
        crate::entry::write(out, pointer(ptr))
    }
}

forward! {
    cudaGraphAddHostNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *const HostNodeParams
    ) => cuGraphAddHostNode(node, graph, dependencies, count, params);
    cudaGraphAddChildGraphNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, child: Handle
    ) => cuGraphAddChildGraphNode(node, graph, dependencies, count, child);
    cudaGraphAddEmptyNode(node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize)
        => cuGraphAddEmptyNode(node, graph, dependencies, count);
    cudaGraphAddEventRecordNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, event: Handle
    ) => cuGraphAddEventRecordNode(node, graph, dependencies, count, event);
    cudaGraphAddEventWaitNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, event: Handle
    ) => cuGraphAddEventWaitNode(node, graph, dependencies, count, event);
    cudaGraphAddMemAllocNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, params: *mut c_void
    ) => cuGraphAddMemAllocNode(node, graph, dependencies, count, params);
    cudaGraphMemAllocNodeGetParams(node: Handle, params: *mut c_void) => cuGraphMemAllocNodeGetParams(node, params);
}
