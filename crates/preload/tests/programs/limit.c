/* A limit of half the device, over all kinds of memory. The argument is 1 if it is in force. */
#include "cuda.h"

struct location { int kind, id; };
struct allocation { int kind, handles; struct location location; void *security; unsigned char flags[8]; };
struct array { size_t width, height; int format; unsigned channels; };

#define OOM 2

int main(int argc, char **argv)
{
    int limited = atoi(argv[1]);
    u64 context = 0, a = 0, b = 0, c = 0, stream = 0;
    size_t free_now = 0, total = 0, all = 0;
    struct allocation prop = {1, 0, {1, 0}};
    open_driver();
    IS(CALL(cuInit, 0), 0);
    /* Before any context: what the program is told of the device. */
    IS(CALL(cuDeviceTotalMem_v2, P(&all), 0), 0);
    SAME(all, limited ? 512 * MIB : 1024 * MIB, "device");
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    IS(CALL(cuMemGetInfo_v2, P(&free_now), P(&total)), 0);
    SAME(total, all, "info");
    CHECK(free_now <= total && free_now >= total - 8 * MIB);
    if (!limited) {
        IS(CALL(cuMemAlloc_v2, P(&a), 600 * MIB), 0);
        return failures ? 1 : 0;
    }
    IS(CALL(cuMemAlloc_v2, P(&a), 513 * MIB), OOM);
    IS(CALL(cuMemAllocAsync, P(&a), 513 * MIB, stream), OOM);
    IS(CALL(cuMemAllocManaged, P(&a), 513 * MIB, 1), OOM);
    IS(CALL(cuMemCreate, P(&a), 514 * MIB, P(&prop), 0), OOM);
    /* All kinds together, and the device still has plenty. */
    IS(CALL(cuMemAlloc_v2, P(&a), 300 * MIB), 0);
    IS(CALL(cuMemGetInfo_v2, P(&free_now), P(&total)), 0);
    SAME(free_now, 212 * MIB, "after 300 MiB");
    IS(CALL(cuMemCreate, P(&b), 200 * MIB, P(&prop), 0), 0);
    IS(CALL(cuMemGetInfo_v2, P(&free_now), P(&total)), 0);
    SAME(free_now, 12 * MIB, "after 200 MiB more");
    struct array desc = {2048, 2048, 0x20, 4};
    IS(CALL(cuArrayCreate_v2, P(&c), P(&desc)), OOM);
    IS(CALL(cuMemAlloc_v2, P(&c), 16 * MIB), OOM);
    IS(CALL(cuMemAllocAsync, P(&c), 16 * MIB, stream), OOM);
    IS(CALL(cuMemAllocManaged, P(&c), 16 * MIB, 1), OOM);
    IS(CALL(cuMemAllocPitch_v2, P(&c), P(&all), 4096, 4096, 4), OOM);
    /* Host memory is no device's. */
    IS(CALL(cuMemAllocHost_v2, P(&c), 64 * MIB), 0);
    IS(CALL(cuMemFreeHost, c), 0);
    /* The next smaller one succeeds. */
    IS(CALL(cuMemAllocAsync, P(&c), 8 * MIB, stream), 0);
    IS(CALL(cuMemFreeAsync, c, stream), 0);
    /* What the allocator keeps is given up for what it does not serve. */
    IS(CALL(cuMemFree_v2, a), 0);
    IS(CALL(cuMemGetInfo_v2, P(&free_now), P(&total)), 0);
    SAME(free_now, 312 * MIB, "freed");
    IS(CALL(cuMemCreate, P(&a), 300 * MIB, P(&prop), 0), 0);
    IS(CALL(cuMemRelease, a), 0);
    IS(CALL(cuMemAllocManaged, P(&a), 312 * MIB, 1), 0);
    IS(CALL(cuMemFree_v2, a), 0);
    IS(CALL(cuMemRelease, b), 0);
    /* All of it, again and again. */
    for (int i = 0; i < 3; i++) {
        IS(CALL(cuMemAlloc_v2, P(&a), 512 * MIB), 0);
        IS(CALL(cuMemFree_v2, a), 0);
        IS(CALL(cuMemCreate, P(&b), 512 * MIB, P(&prop), 0), 0);
        IS(CALL(cuMemRelease, b), 0);
    }
    agree(0, "at the end");
    SAME(ledger(0).limit, 512 * MIB, "ledger");
    return failures ? 1 : 0;
}
