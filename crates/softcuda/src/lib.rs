//! A CUDA driver in host memory: what a program finds as `libcuda.so.1` on a machine without a GPU.
//!
//! Memory, streams, events, captures and graphs behave as on a device, by way of stratalloc's software device; copies move
//! bytes; kernels do nothing. README.md says how to use it and what can be set.
//!
//! | folder | what |
//! |---|---|
//! | `export/` | the C functions, as lists; the look-up by name |
//! | `abi/` | result codes, structures, pointers from C |
//! | `process/` | start-up, devices, contexts, green contexts, the report at exit |
//! | `memory/` | allocations, addresses, copies and fills, virtual memory, pools, arrays, sharing |
//! | `stream/` | streams, events, functions of the host, captures, work as a value |
//! | `graph/` | graphs, executable graphs, user objects |
//! | `code/` | modules, libraries, kernels that do not run |
//! | `options.rs` | the environment |
//! | `handles.rs` | numbers that stand for objects |
//! | `tests_api.rs` | accounts and counts for tests |
//! | `time_api.rs` | virtual time, for replays |

mod abi;
mod code;
mod export;
mod graph;
mod handles;
mod memory;
mod options;
mod process;
mod stream;
mod tests_api;
mod time_api;

pub use tests_api::{
    Account, softcudaAccount, softcudaCallCount, softcudaFunctionName, softcudaReport, softcudaReportCount,
    softcudaResetCallCounts,
};
pub use time_api::{
    softcuda_advance, softcuda_busy, softcuda_calls, softcuda_clock_ns, softcuda_driver_ns, softcuda_stall_ns,
};
