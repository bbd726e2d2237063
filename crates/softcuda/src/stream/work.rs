//! Work of a stream as a value: what graphs keep, and how it is run.

use std::ffi::c_void;
use std::sync::Arc;

use stratalloc::driver::kernels::Call;
use stratalloc::driver::soft::Comparison;
use stratalloc::units::DevicePtr;

use super::streams::Stream;
use super::{events, host_functions, values};
use crate::abi::codes::Res;
use crate::abi::structs::{HostFn, KernelParamsV2, Memcpy3D, MemsetParams, PoolProps};
use crate::graph::Step;
use crate::graph::memory::GraphMemory;
use crate::memory::copies::{self, Row};
use crate::memory::fills;
use crate::process::devices::code_of;

/// A function of the host and what it is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostCall {
    pub(crate) function: HostFn,
    pub(crate) data: usize,
}

impl HostCall {
    pub(crate) fn run(self) {
        (self.function)(self.data as *mut c_void);
    }
}

/// A piece of work. It runs in stream order.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Empty,
    Kernel(KernelParamsV2),
    /// One of the library's own, which runs.
    OwnKernel(KernelParamsV2, Arc<Call>),
    /// Copies, captured.
    Rows(Vec<Row>),
    /// A copy as a node was told.
    Copy(Box<Memcpy3D>),
    Fill(MemsetParams),
    Host(HostCall),
    Child {
        graph: usize,
        steps: Arc<Vec<Step>>,
    },
    Record {
        event: usize,
    },
    Wait {
        event: usize,
    },
    Alloc {
        memory: Arc<GraphMemory>,
        props: PoolProps,
    },
    Free {
        ptr: u64,
    },
    WriteValue {
        ptr: u64,
        value: u64,
        width: u64,
    },
    WaitValue {
        ptr: u64,
        value: u64,
        width: u64,
        comparison: Comparison,
    },
    /// Bodies that run on a condition which only kernels change: they are graphs of their own, and do not run.
    Conditional,
}

impl Op {
    /// The number of the node's kind (`CUgraphNodeType`).
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Op::Kernel(_) | Op::OwnKernel(..) => 0,
            Op::Rows(_) | Op::Copy(_) => 1,
            Op::Fill(_) => 2,
            Op::Host(_) => 3,
            Op::Child { .. } => 4,
            Op::Empty => 5,
            Op::Wait { .. } => 6,
            Op::Record { .. } => 7,
            Op::Alloc { .. } => 10,
            Op::Free { .. } => 11,
            Op::WriteValue { .. } | Op::WaitValue { .. } => 12,
            Op::Conditional => 13,
        }
    }

    /// Queues the work on a stream that is not captured.
    pub(crate) fn run(&self, stream: &Stream) -> Res {
        match self {
            Op::Empty | Op::Alloc { .. } | Op::Free { .. } | Op::Conditional => Ok(()),
            Op::Kernel(_) => stream.device.soft.launch(stream.soft, &[], 0).map_err(code_of),
            Op::OwnKernel(_, call) => stream.device.soft.launch_own((**call).clone(), stream.soft).map_err(code_of),
            Op::Rows(rows) => copies::run(stream, rows),
            Op::Copy(copy) => copies::run(stream, &copies::rows_of(copy)?),
            Op::Fill(fill) => fills::run(stream, fill),
            Op::Host(call) => host_functions::queue(stream, *call),
            Op::Child { steps, .. } => {
                steps.iter().filter(|step| step.enabled).try_for_each(|step| step.op.run(stream))
            }
            Op::Record { event } => events::record_on(*event, stream),
            Op::Wait { event } => events::wait_on(stream, *event),
            Op::WriteValue { ptr, value, width } => values::write_on(stream, *ptr, *value, *width),
            Op::WaitValue { ptr, value, width, comparison } => stream
                .device
                .soft
                .wait_value(stream.soft, DevicePtr(*ptr), *width, *value, *comparison)
                .map_err(code_of),
        }
    }
}
