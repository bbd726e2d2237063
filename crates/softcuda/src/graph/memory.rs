//! Memory of graphs: allocated with its node, and kept as long as a graph or an executable graph has the node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stratalloc::driver::Driver;

use crate::abi::codes::Res;
use crate::memory::space::{self, Kind};
use crate::process::devices::{Device, code_of};

/// One such allocation.
#[derive(Debug)]
pub(crate) struct GraphMemory {
    pub(crate) ptr: u64,
    pub(crate) size: u64,
    device: &'static Device,
}

impl GraphMemory {
    pub(crate) fn allocate(device: &'static Device, size: u64) -> Res<Arc<GraphMemory>> {
        let ptr = device.soft.alloc_plain(size).map_err(code_of)?.0;
        space::insert(ptr, size, Kind::Graph, device, None);
        let used = device.graph_used.fetch_add(size, Ordering::Relaxed) + size;
        device.graph_used_high.fetch_max(used, Ordering::Relaxed);
        Ok(Arc::new(GraphMemory { ptr, size, device }))
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        self.device.graph_used.fetch_sub(self.size, Ordering::Relaxed);
        // A broken device keeps its memory; there is nobody to tell.
        let _ = space::take(self.ptr, |block| block.kind == Kind::Graph).and_then(space::release);
    }
}
