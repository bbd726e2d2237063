//! Memory: what was allocated and where, copies and fills, virtual memory, pools, arrays, sharing between processes.

pub(crate) mod account;
pub(crate) mod arrays;
pub(crate) mod copies;
pub(crate) mod fills;
pub(crate) mod host;
pub(crate) mod ipc;
pub(crate) mod plain;
pub(crate) mod pointers;
pub(crate) mod pool_calls;
pub(crate) mod pools;
pub(crate) mod space;
pub(crate) mod virtual_memory;
