/* The kernels for the software device and for tests: each thread in turn. */
#include "checksum.h"
#include "copy_blocks.h"
#include "quantize.h"
#include "words.h"

#define EACH_THREAD(t) for (struct thread t = {0, threads}; t.index < t.count; t.index++)

void stratalloc_kernel_copy_blocks(u64 threads, const struct copy_op *ops, u64 count) {
    for (u64 i = 0; i < count; i++) EACH_THREAD(t) copy_block(t, ops[i]);
}

void stratalloc_kernel_fill_words(u64 threads, u64 ptr, u64 size, u32 pattern) {
    EACH_THREAD(t) fill_words(t, ptr, size, pattern);
}

void stratalloc_kernel_check_words(u64 threads, u64 ptr, u64 size, u32 pattern, struct finding *result) {
    EACH_THREAD(t) check_words(t, ptr, size, pattern, result);
}

void stratalloc_kernel_checksum(u64 threads, u64 ptr, u64 size, u64 *result) {
    EACH_THREAD(t) checksum(t, ptr, size, result);
}

void stratalloc_kernel_quantize(u64 threads, u64 src, u64 dst, u64 size, u32 format) {
    EACH_THREAD(t) quantize(t, src, dst, size, format);
}

void stratalloc_kernel_dequantize(u64 threads, u64 src, u64 dst, u64 size, u32 format) {
    EACH_THREAD(t) dequantize(t, src, dst, size, format);
}
