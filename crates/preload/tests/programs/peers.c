/* Two devices. What one is given access to, blocks of the other are accessible to as well, those from before and those from after. */
#include "cuda.h"

/* How often ranges were given access to. libsoftcuda lets every device reach everything, so who may is seen by the calls. */
static u64 grants(void)
{
    u64 (*count)(const char *) = (u64 (*)(const char *))dlsym(driver, "softcudaCallCount");
    return count("cuMemSetAccess");
}

int main(int argc, char **argv)
{
    u64 one = 0, two = 0, before = 0, after = 0, other = 0, more = 0;
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&one), 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&two), 1), 0);
    IS(CALL(cuCtxSetCurrent, two), 0);
    IS(CALL(cuMemAlloc_v2, P(&before), 4 * MIB), 0);
    IS(CALL(cuCtxSetCurrent, one), 0);
    IS(CALL(cuMemAlloc_v2, P(&other), 4 * MIB), 0);
    SAME(ledger(0).live_bytes, 4 * MIB, "device 0");
    SAME(ledger(1).live_bytes, 4 * MIB, "device 1");
    u64 seen = grants();
    IS(CALL(cuCtxEnablePeerAccess, two, 0), 0);
    CHECK(grants() > seen);
    IS(CALL(cuCtxSetCurrent, two), 0);
    seen = grants();
    IS(CALL(cuMemAlloc_v2, P(&after), 64 * MIB), 0);
    u64 with_peer = grants() - seen;
    /* One way only. */
    IS(CALL(cuCtxSetCurrent, one), 0);
    seen = grants();
    IS(CALL(cuMemAlloc_v2, P(&more), 64 * MIB), 0);
    SAME(with_peer, 2 * (grants() - seen), "twice as many with a peer");
    CHECK(with_peer > 0);
    IS(CALL(cuMemFree_v2, more), 0);
    /* Freed with the other device's context current. */
    IS(CALL(cuCtxSetCurrent, one), 0);
    IS(CALL(cuMemFree_v2, before), 0);
    IS(CALL(cuMemFree_v2, after), 0);
    IS(CALL(cuMemFree_v2, other), 0);
    agree(0, "device 0");
    agree(1, "device 1");
    SAME(ledger(0).live_count + ledger(1).live_count, 0, "at the end");
    return failures ? 1 : 0;
}
