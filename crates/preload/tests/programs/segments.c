/* A driver without virtual memory management: blocks lie in segments from cuMemAlloc. */
#include "cuda.h"

int main(int argc, char **argv)
{
    u64 context = 0, first = 0, second = 0, again = 0;
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    IS(CALL(cuMemAlloc_v2, P(&first), 4 * MIB), 0);
    IS(CALL(cuMemAlloc_v2, P(&second), MIB), 0);
    struct ledger l = ledger(0);
    SAME(l.live_bytes, 5 * MIB, "live");
    SAME(l.bytes[SERVED], account(0).plain.bytes, "segments");
    SAME(l.bytes[PLAIN], 0, "passed on");
    if (l.bytes[SERVED]) printf("served from segments\n");
    IS(CALL(cuMemFree_v2, first), 0);
    /* The segment is not the program's to free, whether or not the block has its address. */
    IS(CALL(cuMemFree_v2, first), 1);
    IS(CALL(cuMemFree_v2, second + 512), 1);
    SAME(ledger(0).bytes[SERVED], account(0).plain.bytes, "after wrong frees");
    IS(CALL(cuMemAlloc_v2, P(&again), 4 * MIB), 0);
    CHECK(again == first);
    IS(CALL(cuMemFree_v2, again), 0);
    IS(CALL(cuMemFree_v2, second), 0);
    SAME(ledger(0).live_count, 0, "at the end");
    return failures ? 1 : 0;
}
