//! Large copies past the processor's caches, as a device's copy engine makes them.
//!
//! What is copied is not looked at soon, and a plain copy of some megabytes reads its destination before it writes it. So stores go straight to
//! memory, and four pages are walked side by side, since the processor fetches ahead only within a page: as fast as the C library copies
//! hundreds of megabytes, for every piece of a transfer.

/// Below this, caches help.
const LEAST: usize = 256 << 10;

/// Copies bytes.
///
/// # Safety
/// `size` bytes at `src` may be read and as many at `dst` written; the two ranges of addresses do not overlap.
pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, size: usize) {
    #[cfg(target_arch = "x86_64")]
    if size >= LEAST && std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the caller's promise; the processor has the instructions.
        return unsafe { x86::copy(dst, src, size) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(src, dst, size) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256i, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};

    const PAGE: usize = 4096;
    /// Pages that are walked side by side.
    const PAGES: usize = 4;
    const BLOCK: usize = PAGE * PAGES;
    /// Bytes of a page at a time: two cache lines.
    const STEP: usize = 128;
    const VECTOR: usize = size_of::<__m256i>();

    /// See the module's documentation.
    ///
    /// # Safety
    /// As for [`super::copy`]; the processor has AVX.
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, size: usize) {
        let head = dst.align_offset(VECTOR).min(size);
        let whole = (size - head) / BLOCK * BLOCK;
        // SAFETY: the head, the blocks and the rest are parts of both ranges. What is stored past the caches is aligned, since the head ends
        // where the destination is.
        unsafe {
            std::ptr::copy_nonoverlapping(src, dst, head);
            for block in (head..head + whole).step_by(BLOCK) {
                for at in (block..block + PAGE).step_by(STEP) {
                    for page in 0..PAGES {
                        let (from, to) = (src.add(at + page * PAGE), dst.add(at + page * PAGE));
                        let vectors: [__m256i; STEP / VECTOR] =
                            std::array::from_fn(|n| _mm256_loadu_si256(from.add(n * VECTOR).cast()));
                        for (n, vector) in vectors.into_iter().enumerate() {
                            _mm256_stream_si256(to.add(n * VECTOR).cast(), vector);
                        }
                    }
                }
            }
            let rest = head + whole;
            std::ptr::copy_nonoverlapping(src.add(rest), dst.add(rest), size - rest);
        }
        // Such stores are ordered with nothing else before this.
        _mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_size_and_alignment_are_exact() {
        let src: Vec<u8> = (0..LEAST * 2 + 4096).map(|at| (at * 31 + at / 251) as u8).collect();
        for size in [0, 1, LEAST - 1, LEAST, LEAST + 1, LEAST + 16_383, 2 * LEAST] {
            for (from, to) in [(0, 0), (1, 0), (0, 1), (7, 33), (64, 31)] {
                let mut dst = vec![0xaa; size + to + 64];
                // SAFETY: both are parts of vectors that are long enough.
                unsafe { copy(dst.as_mut_ptr().add(to), src.as_ptr().add(from), size) };
                assert!(dst[to..to + size] == src[from..from + size], "{size} from {from} to {to}");
                assert!(dst[..to].iter().chain(&dst[to + size..]).all(|&byte| byte == 0xaa), "{size} {from} {to}");
            }
        }
    }
}
