/* Exports. The argument says whether blocks are to be exportable: "own" or "parts". */
#include "cuda.h"

int main(int argc, char **argv)
{
    int own = !strcmp(argv[1], "own");
    u64 context = 0, ptr = 0, ordered = 0, handle = 0;
    char ipc[64] = "", pool_data[64] = "";
    int fd = -1;
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    IS(CALL(cuMemAlloc_v2, P(&ptr), 2 * MIB), 0);
    int code = CALL(cuIpcGetMemHandle, P(ipc), ptr);
    printf("ipc %d\n", code);
    if (own) {
        SAME(ledger(0).bytes[PLAIN], 2 * MIB, "own");
        SAME(ledger(0).live_bytes, 0, "own");
    } else {
        CHECK(code == 1);
        IS(CALL(cuIpcGetMemHandle, P(ipc), ptr + 100), 1);
        IS(CALL(cuMemRetainAllocationHandle, P(&handle), ptr), 1);
        CHECK(handle == 0);
        IS(CALL(cuMemGetHandleForAddressRange, P(&fd), ptr, 2 * MIB, 1, 0), 801);
        IS(CALL(cuMemAllocAsync, P(&ordered), MIB, 0), 0);
        IS(CALL(cuMemPoolExportPointer, P(pool_data), ordered), 1);
        IS(CALL(cuMemFreeAsync, ordered, 0), 0);
    }
    IS(CALL(cuMemFree_v2, ptr), 0);
    agree(0, "at the end");
    return failures ? 1 : 0;
}
