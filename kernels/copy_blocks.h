/* Copies of a batch, each by all threads of its row of the grid: as wide as both addresses allow, with the bytes before and
 * behind one by one. Addresses that differ by a multiple of 16 are copied 16 bytes at a time whatever they are. */
#ifndef STRATALLOC_COPY_BLOCKS_H
#define STRATALLOC_COPY_BLOCKS_H
#include "portable.h"

/* As many as fit into a kernel's parameters, of which there may be 4 KiB: no table in memory has to outlive the launch. */
#define COPY_OPS 128

struct copy_op {
    u64 dst, src, size;
};

struct copy_table {
    u64 count;
    struct copy_op ops[COPY_OPS];
};

#define COPY_AS(type) \
    do { \
        u64 head = bytes_to_boundary(op.dst, sizeof(type), op.size); \
        u64 pieces = (op.size - head) / sizeof(type); \
        u64 tail = head + pieces * sizeof(type); \
        for (u64 i = t.index; i < pieces; i += t.count) \
            AT(type, op.dst + head)[i] = AT(const type, op.src + head)[i]; \
        for (u64 i = t.index; i < head + (op.size - tail); i += t.count) { \
            u64 at = i < head ? i : tail + (i - head); \
            AT(u8, op.dst)[at] = AT(const u8, op.src)[at]; \
        } \
    } while (0)

DEVICE void copy_block(struct thread t, struct copy_op op) {
    u64 apart = op.dst - op.src;
    if (apart % 16 == 0) COPY_AS(struct wide);
    else if (apart % 8 == 0) COPY_AS(u64);
    else if (apart % 4 == 0) COPY_AS(u32);
    else COPY_AS(u8);
}

#endif
