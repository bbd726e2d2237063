/* Contexts that go while a capture is open: the capture goes with them, and what is freed afterwards is free. The driver's functions are asked
   for by the versions that NVIDIA's runtime asks by. */
#include "cuda.h"

typedef int (*on_device)(int);

static u64 primary(void)
{
    u64 context = 0;
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    return context;
}

/* More memory than there is, unless what is freed is free. */
static void use(const char *when)
{
    u64 ptr = 0;
    for (int i = 0; i < 60 && !failures; i++) {
        IS(CALL(cuMemAlloc_v2, P(&ptr), 64 * MIB), 0);
        IS(CALL(cuMemFree_v2, ptr), 0);
    }
    if (failures) fprintf(stderr, "%s\n", when);
    if (shimmed()) {
        SAME(ledger(0).set_aside, 0, when);
        agree(0, when);
    }
}

static u64 captured_stream(void)
{
    u64 stream = 0;
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    IS(CALL(cuStreamBeginCapture_v2, stream, 2), 0);
    return stream;
}

int main(void)
{
    void *reset = NULL, *release = NULL;
    u64 ptr = 0, own = 0;
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(get_proc("cuDevicePrimaryCtxReset", &reset, 7000, 0, NULL), 0);
    IS(get_proc("cuDevicePrimaryCtxRelease", &release, 7000, 0, NULL), 0);

    primary();
    IS(CALL(cuMemAlloc_v2, P(&ptr), MIB), 0);
    captured_stream();
    IS(((on_device)release)(0), 0);
    if (shimmed()) SAME(ledger(0).live_count, 0, "after the release");
    primary();
    use("after the release");

    IS(CALL(cuMemAlloc_v2, P(&ptr), MIB), 0);
    captured_stream();
    IS(CALL(cuDevicePrimaryCtxReset_v2, 0), 0);
    primary();
    use("after a reset");

    IS(CALL(cuMemAlloc_v2, P(&ptr), MIB), 0);
    captured_stream();
    IS(((on_device)reset)(0), 0);
    primary();
    use("after a reset of the first version");

    /* A context of the program's own, beside the primary one. */
    IS(CALL(cuCtxCreate_v2, P(&own), 0, 0), 0);
    captured_stream();
    IS(CALL(cuCtxDestroy_v2, own), 0);
    primary();
    use("after a context of its own");
    return failures ? 1 : 0;
}
