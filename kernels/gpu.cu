/* The kernels as the device has them. A thread's number is along x; copies have a row of the grid each, along y. */
#include "checksum.h"
#include "copy_blocks.h"
#include "quantize.h"
#include "words.h"

DEVICE struct thread this_thread() {
    struct thread t = {(u64)blockIdx.x * blockDim.x + threadIdx.x, (u64)gridDim.x * blockDim.x};
    return t;
}

extern "C" __global__ void stratalloc_copy_blocks(const __grid_constant__ struct copy_table table) {
    if (blockIdx.y < table.count) copy_block(this_thread(), table.ops[blockIdx.y]);
}

extern "C" __global__ void stratalloc_fill_words(u64 ptr, u64 size, u32 pattern) {
    fill_words(this_thread(), ptr, size, pattern);
}

extern "C" __global__ void stratalloc_check_words(u64 ptr, u64 size, u32 pattern, struct finding *result) {
    check_words(this_thread(), ptr, size, pattern, result);
}

extern "C" __global__ void stratalloc_checksum(u64 ptr, u64 size, u64 *result) {
    checksum(this_thread(), ptr, size, result);
}

extern "C" __global__ void stratalloc_quantize(u64 src, u64 dst, u64 size, u32 format) {
    quantize(this_thread(), src, dst, size, format);
}

extern "C" __global__ void stratalloc_dequantize(u64 src, u64 dst, u64 size, u32 format) {
    dequantize(this_thread(), src, dst, size, format);
}
