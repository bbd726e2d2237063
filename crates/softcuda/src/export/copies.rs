//! Copies and fills.

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{Memcpy2D, Memcpy3D};
use crate::memory::{copies, fills};

exports! {
    ptds fn cuMemcpy(dst: u64, src: u64, size: usize) = copies::any;
    ptds fn cuMemcpyHtoD_v2(dst: u64, src: u64, size: usize) = copies::any;
    ptds fn cuMemcpyDtoH_v2(dst: u64, src: u64, size: usize) = copies::any;
    ptds fn cuMemcpyDtoD_v2(dst: u64, src: u64, size: usize) = copies::any;
    ptds fn cuMemcpyPeer(dst: u64, dst_context: usize, src: u64, src_context: usize, size: usize) = copies::peer;
    ptds fn cuMemcpy2D_v2(copy: In<Memcpy2D>) = copies::two_d;
    ptds fn cuMemcpy2DUnaligned_v2(copy: In<Memcpy2D>) = copies::two_d;
    ptds fn cuMemcpy3D_v2(copy: In<Memcpy3D>) = copies::three_d;
    ptds fn cuMemcpy3DPeer(copy: In<Memcpy3D>) = copies::three_d;
    ptsz(stream) fn cuMemcpyAsync(dst: u64, src: u64, size: usize, stream: usize) = copies::any_async;
    ptsz(stream) fn cuMemcpyHtoDAsync_v2(dst: u64, src: u64, size: usize, stream: usize) = copies::any_async;
    ptsz(stream) fn cuMemcpyDtoHAsync_v2(dst: u64, src: u64, size: usize, stream: usize) = copies::any_async;
    ptsz(stream) fn cuMemcpyDtoDAsync_v2(dst: u64, src: u64, size: usize, stream: usize) = copies::any_async;
    ptsz(stream) fn cuMemcpyPeerAsync(dst: u64, dst_context: usize, src: u64, src_context: usize, size: usize, stream: usize) = copies::peer_async;
    ptsz(stream) fn cuMemcpy2DAsync_v2(copy: In<Memcpy2D>, stream: usize) = copies::two_d_async;
    ptsz(stream) fn cuMemcpy3DAsync_v2(copy: In<Memcpy3D>, stream: usize) = copies::three_d_async;
    ptsz(stream) fn cuMemcpy3DPeerAsync(copy: In<Memcpy3D>, stream: usize) = copies::three_d_async;
    ptsz(stream) fn cuMemcpyBatchAsync(dsts: In<u64>, srcs: In<u64>, sizes: In<usize>, count: usize, attributes: usize, indices: In<usize>, attribute_count: usize, failed: Out<usize>, stream: usize) [12080] = copies::batch_v1;
    ptsz(stream) fn cuMemcpyBatchAsync_v2(dsts: In<u64>, srcs: In<u64>, sizes: In<usize>, count: usize, attributes: usize, indices: In<usize>, attribute_count: usize, stream: usize) [13000] = copies::batch;
    ptsz(stream) fn cuMemcpyWithAttributesAsync(dst: u64, src: u64, size: usize, attributes: usize, stream: usize) [13020] = copies::with_attributes;

    ptds fn cuMemsetD8_v2(dst: u64, value: u8, count: usize) = fills::d8;
    ptds fn cuMemsetD16_v2(dst: u64, value: u16, count: usize) = fills::d16;
    ptds fn cuMemsetD32_v2(dst: u64, value: u32, count: usize) = fills::d32;
    ptds fn cuMemsetD2D8_v2(dst: u64, pitch: usize, value: u8, width: usize, height: usize) = fills::two_d8;
    ptds fn cuMemsetD2D16_v2(dst: u64, pitch: usize, value: u16, width: usize, height: usize) = fills::two_d16;
    ptds fn cuMemsetD2D32_v2(dst: u64, pitch: usize, value: u32, width: usize, height: usize) = fills::two_d32;
    ptsz(stream) fn cuMemsetD8Async(dst: u64, value: u8, count: usize, stream: usize) = fills::d8_async;
    ptsz(stream) fn cuMemsetD16Async(dst: u64, value: u16, count: usize, stream: usize) = fills::d16_async;
    ptsz(stream) fn cuMemsetD32Async(dst: u64, value: u32, count: usize, stream: usize) = fills::d32_async;
    ptsz(stream) fn cuMemsetD2D8Async(dst: u64, pitch: usize, value: u8, width: usize, height: usize, stream: usize) = fills::two_d8_async;
    ptsz(stream) fn cuMemsetD2D16Async(dst: u64, pitch: usize, value: u16, width: usize, height: usize, stream: usize) = fills::two_d16_async;
    ptsz(stream) fn cuMemsetD2D32Async(dst: u64, pitch: usize, value: u32, width: usize, height: usize, stream: usize) = fills::two_d32_async;
}
