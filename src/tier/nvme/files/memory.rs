//! Memory at an address that the disk can reach.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::super::spec::PAGE;

/// Bytes that begin at a multiple of a page. They are zero at first.
pub(in super::super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for Memory {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Memory {}

impl Memory {
    /// `None` where there is none, or for no bytes.
    pub(in super::super) fn new(size: usize) -> Option<Memory> {
        let layout = Layout::from_size_align(size, PAGE as usize).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|start| Memory { start, layout })
    }

    /// Where it begins, for the disk.
    pub(in super::super) fn start(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(in super::super) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated there, zero at first.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    pub(in super::super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
