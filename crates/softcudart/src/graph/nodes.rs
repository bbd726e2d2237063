//! Adding nodes.

use std::ffi::{c_int, c_uint, c_void};

use super::params::{NodeParams, node_context};
use crate::driver::Table;
use crate::driver::types::{Handle, HostNodeParams, KernelNodeParams, MemsetNodeParams};
use crate::entry::{api, forward, read, write};
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

impl KernelParams {
    fn to_driver(&self, table: &Table) -> Result<KernelNodeParams, Error> {
        Ok(KernelNodeParams {
            func: std::ptr::null_mut(),
            grid: self.grid.into(),
            block: self.block.into(),
            shared_bytes: self.shared_bytes,
            params: self.params,
            extra: self.extra,
            kernel: kernel::function(table, self.host)?,
            context: std::ptr::null_mut(),
        })
    }
}

impl FillParams {
    fn to_driver(&self, context: Handle) -> MemsetNodeParams {
        MemsetNodeParams {
            dst: address(self.dst),
            pitch: self.pitch,
            value: self.value,
            element_bytes: self.element_bytes,
            width: self.width,
            height: self.height,
            context,
        }
    }
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
        table.cuGraphAddNode(spot.node, spot.graph, spot.dependencies, edges, spot.count, (&raw mut driver).cast())?;
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
        let driver = read(params)?.to_driver(table)?;
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
        let context = node_context(table)?;
        let driver = read(params)?.to_driver(context);
        table.cuGraphAddMemsetNode(node, graph, dependencies, count, &raw const driver, context)
    }

    fn cudaGraphExecKernelNodeSetParams(exec: Handle, node: Handle, params: *const KernelParams) |table| {
        let driver = read(params)?.to_driver(table)?;
        table.cuGraphExecKernelNodeSetParams(exec, node, &raw const driver)
    }

    fn cudaGraphExecMemcpyNodeSetParams(exec: Handle, node: Handle, copy: *const Copy3D) |table| {
        let copy = copy_3d::convert(table, read(copy)?)?;
        table.cuGraphExecMemcpyNodeSetParams(exec, node, &raw const copy, node_context(table)?)
    }

    fn cudaGraphExecMemcpyNodeSetParams1D(
        exec: Handle, node: Handle, dst: *mut c_void, src: *const c_void, bytes: usize, kind: c_int
    ) |table| {
        let copy = copy_3d::linear(dst, src, bytes, kind)?;
        table.cuGraphExecMemcpyNodeSetParams(exec, node, &raw const copy, node_context(table)?)
    }

    fn cudaGraphExecMemsetNodeSetParams(exec: Handle, node: Handle, params: *const FillParams) |table| {
        let context = node_context(table)?;
        let driver = read(params)?.to_driver(context);
        table.cuGraphExecMemsetNodeSetParams(exec, node, &raw const driver, context)
    }

    fn cudaGraphExecNodeSetParams(exec: Handle, node: Handle, params: *const NodeParams) |table| {
        let mut driver = read(params)?.to_driver(table)?;
        table.cuGraphExecNodeSetParams(exec, node, (&raw mut driver).cast())
    }

    fn cudaGraphNodeSetParams(node: Handle, params: *const NodeParams) |table| {
        let mut driver = read(params)?.to_driver(table)?;
        table.cuGraphNodeSetParams(node, (&raw mut driver).cast())
    }

    fn cudaGraphMemsetNodeGetParams(node: Handle, out: *mut FillParams) |table| {
        let mut driver = MemsetNodeParams::default();
        table.cuGraphMemsetNodeGetParams(node, &raw mut driver)?;
        let MemsetNodeParams { pitch, value, element_bytes, width, height, .. } = driver;
        write(out, FillParams { dst: pointer(driver.dst), pitch, value, element_bytes, width, height })
    }

    fn cudaGraphAddMemFreeNode(
        node: *mut Handle, graph: Handle, dependencies: *const Handle, count: usize, ptr: *mut c_void
    ) |table| {
        table.cuGraphAddMemFreeNode(node, graph, dependencies, count, address(ptr))
    }

    fn cudaGraphMemFreeNodeGetParams(node: Handle, out: *mut *mut c_void) |table| {
        let mut ptr = 0;
        table.cuGraphMemFreeNodeGetParams(node, &raw mut ptr)?;
        write(out, pointer(ptr))
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
