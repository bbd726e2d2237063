//! CRC-32C of stored bytes, and where the device puts its own sums.

use crate::driver::{Driver, DriverResult, HostPtr};

/// The CRC-32C (Castagnoli) of some bytes.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A number in pinned memory to which a kernel adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SumAt(usize);

impl SumAt {
    pub(super) fn ptr(self) -> HostPtr {
        HostPtr(self.0)
    }

    /// What is there. The kernels that add to it are done.
    pub(super) fn read(self) -> u64 {
        // SAFETY: the address is that of an aligned number in a page of `SumSlots`, which lives as long as the engine; volatile because
        // the device wrote it.
        unsafe { std::ptr::read_volatile(self.0 as *const u64) }
    }
}

/// Bytes of pinned memory taken at a time.
const PAGE_BYTES: u64 = 4096;

/// Pinned numbers for the device's sums.
#[derive(Debug, Default)]
pub(super) struct SumSlots {
    pages: Vec<HostPtr>,
    free: Vec<SumAt>,
}

impl SumSlots {
    /// A number that is 0.
    pub(super) fn take(&mut self, driver: &dyn Driver) -> DriverResult<SumAt> {
        if self.free.is_empty() {
            let page = driver.alloc_host(PAGE_BYTES)?;
            self.pages.push(page);
            self.free.extend((0..PAGE_BYTES as usize / 8).rev().map(|at| SumAt(page.0 + at * 8)));
        }
        let slot = self.free.pop().unwrap_or(SumAt(self.pages[0].0));
        // SAFETY: as in `SumAt::read`; a number that is free is nobody's.
        unsafe { std::ptr::write_volatile(slot.0 as *mut u64, 0) };
        Ok(slot)
    }

    /// Takes a number back that no kernel will touch.
    pub(super) fn give(&mut self, slot: SumAt) {
        self.free.push(slot);
    }

    /// Frees the memory.
    pub(super) fn clear(&mut self, driver: &dyn Driver) {
        self.free.clear();
        for page in self.pages.drain(..) {
            // Memory that cannot be freed belongs to a context that is gone.
            let _ = driver.free_host(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
