/* A byte too far, a write after a free, and a block that is never freed: what the debug aids are for. With the argument 0, none of it. */
#include "cuda.h"

int main(int argc, char **argv)
{
    int wrong = atoi(argv[1]);
    u64 context = 0, a = 0, b = 0, stream = 0, kept = 0;
    unsigned char bytes[1000];
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    for (int i = 0; i < 200; i++) {
        /* Any stream may use it at once, whatever the allocator has just done to it. */
        IS(CALL(cuMemAlloc_v2, P(&a), 1000), 0);
        IS(CALL(cuMemsetD8Async, a, i, 1000, stream), 0);
        IS(CALL(cuMemAllocAsync, P(&b), 4 * MIB, stream), 0);
        IS(CALL(cuMemsetD8Async, b, i, 4 * MIB, stream), 0);
        IS(CALL(cuStreamSynchronize, stream), 0);
        IS(CALL(cuMemcpyDtoH_v2, P(bytes), b + 4 * MIB - 1000, 1000), 0);
        CHECK(bytes[0] == i && bytes[999] == i);
        IS(CALL(cuMemFreeAsync, b, stream), 0);
        IS(CALL(cuMemcpyDtoH_v2, P(bytes), a, 1000), 0);
        for (int at = 0; at < 1000; at++) CHECK(bytes[at] == i);
        if (wrong && i == 100) IS(CALL(cuMemsetD8_v2, a, i, 1003), 0);
        IS(CALL(cuMemFree_v2, a), 0);
        if (wrong && i == 150) IS(CALL(cuMemsetD8_v2, a + 7, 1, 1), 0);
    }
    IS(CALL(cuMemAlloc_v2, P(&kept), 5000), 0);
    if (!wrong) IS(CALL(cuMemFree_v2, kept), 0);
    return failures ? 1 : 0;
}
