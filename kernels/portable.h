/* What the kernels are written in: the part that CUDA C++ and C11 have in common.
 *
 * A kernel is a function of one thread, which is told its number and how many there are, and takes every so-manieth piece of
 * the work. gpu.cu starts it on the device, in blocks of whole warps; cpu.c calls it for each thread in turn. So kernels have no
 * __syncthreads, no shared memory and no warp operation: threads meet in the functions below, and nowhere else. */
#ifndef STRATALLOC_PORTABLE_H
#define STRATALLOC_PORTABLE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define ALIGNED(bytes) __align__(bytes)
DEVICE void add_atomically(u64 *sum, u64 value) { atomicAdd(sum, value); }
DEVICE void lower_atomically(u64 *least, u64 value) { atomicMin(least, value); }
/* Every thread of a block comes here. One atomic a block: `sum` may lie in memory of the host, where each takes its way over the bus. */
DEVICE void add_of_all(u64 *sum, u64 value) {
    __shared__ u64 of_block;
    if (threadIdx.x == 0) of_block = 0;
    __syncthreads();
    for (int apart = 16; apart > 0; apart /= 2) value += __shfl_down_sync(0xffffffffu, value, apart);
    if (threadIdx.x % 32 == 0) atomicAdd(&of_block, value);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(sum, of_block);
}
DEVICE u32 bits_of(float number) { return __float_as_uint(number); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
#else
#define DEVICE static inline
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
/* The software device runs one kernel at a time. */
DEVICE void add_atomically(u64 *sum, u64 value) { *sum += value; }
DEVICE void lower_atomically(u64 *least, u64 value) { if (value < *least) *least = value; }
DEVICE void add_of_all(u64 *sum, u64 value) { *sum += value; }
union float_bits {
    float number;
    u32 bits;
};
DEVICE u32 bits_of(float number) {
    union float_bits both = {.number = number};
    return both.bits;
}
DEVICE float float_of(u32 bits) {
    union float_bits both = {.bits = bits};
    return both.number;
}
#endif

/* One thread of so many. */
struct thread {
    u64 index, count;
};

/* What is moved at once where the addresses allow it. */
struct ALIGNED(16) wide {
    u64 low, high;
};

/* Addresses are numbers, as they are in the allocator. */
#define AT(type, address) ((type *)(address))

/* Bytes before the first multiple of `width` (a power of two), but no more than there are. */
DEVICE u64 bytes_to_boundary(u64 address, u64 width, u64 size) {
    u64 head = (0 - address) & (width - 1);
    return head < size ? head : size;
}

#endif
