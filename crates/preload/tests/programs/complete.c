/* Every entry point that the shim interposes, with its account compared to libsoftcuda's at every step. The arguments are the entry points'
   names: each must have been called in the end. */
#include "cuda.h"

struct location { int kind, id; };
struct allocation { int kind, handles; struct location location; void *security; unsigned char flags[8]; };
struct access { struct location location; int flags; };
struct pool_props { int kind, handles; struct location location; void *security; unsigned char reserved[64]; };
struct array { size_t width, height; int format; unsigned channels; };
struct array3d { size_t width, height, depth; int format; unsigned channels, flags; };
struct alloc_node { struct pool_props pool; void *access; size_t access_count, bytes; u64 ptr; };
struct graph_node { int kind, reserved[3]; union { struct alloc_node alloc; long long size[29]; } of; long long reserved2; };

static u64 context;

static void plain(void)
{
    u64 a = 0, b = 0, c = 0, base = 0;
    size_t pitch = 0, size = 0;
    IS(CALL(cuMemAlloc_v2, P(&a), MIB), 0);
    agree(0, "plain 1");
    IS(CALL(cuMemAlloc_v2, P(&b), 3 * MIB), 0);
    agree(0, "plain 2");
    IS(CALL(cuMemAllocPitch_v2, P(&c), P(&pitch), 1000, 1024, 4), 0);
    CHECK(pitch == 1024);
    agree(0, "pitched");
    IS(CALL(cuMemAllocPitch_v2, P(&base), P(&pitch), 1000, 1024, 3), 1);
    IS(CALL(cuMemAlloc_v2, P(&base), 0), 1);
    IS(CALL(cuMemAlloc_v2, 0, MIB), 1);
    agree(0, "refused");
    /* A pointer into the middle belongs to its block, and to nothing else. */
    IS(CALL(cuMemGetAddressRange_v2, P(&base), P(&size), b + 5), 0);
    CHECK(base == b && size == 3 * MIB);
    IS(CALL(cuMemGetAddressRange_v2, 0, P(&size), b + 3 * MIB - 1), 0);
    CHECK(size == 3 * MIB);
    u64 start = 0, length = 0, id = 0, id_b = 0, of = 0;
    IS(CALL(cuPointerGetAttribute, P(&start), 11, a + 100), 0);
    IS(CALL(cuPointerGetAttribute, P(&length), 12, a + 100), 0);
    CHECK(start == a && length == MIB);
    IS(CALL(cuPointerGetAttribute, P(&of), 1, a), 0);
    CHECK(of == context);
    IS(CALL(cuPointerGetAttribute, P(&id), 7, a), 0);
    IS(CALL(cuPointerGetAttribute, P(&id_b), 7, b), 0);
    CHECK(id && id != id_b);
    int wanted[] = {11, 2, 12, 9};
    int type = 0, ordinal = -1;
    void *to[] = {&start, &type, &length, &ordinal};
    IS(CALL(cuPointerGetAttributes, 4, P(wanted), P(to), b + 7), 0);
    CHECK(start == b && length == 3 * MIB && type == 2 && ordinal == 0);
    /* The bytes are there, and one block's are not another's. */
    char out[16] = "through memory", in[16] = "";
    IS(CALL(cuMemcpyHtoD_v2, b, P(out), 16), 0);
    IS(CALL(cuMemsetD8_v2, a, 0x55, MIB), 0);
    IS(CALL(cuMemcpyDtoH_v2, P(in), b, 16), 0);
    CHECK(!strcmp(in, out));
    IS(CALL(cuMemFree_v2, b), 0);
    agree(0, "one freed");
    /* Freed twice, freed in the middle, never given out. */
    CHECK(CALL(cuMemFree_v2, b) != 0);
    CHECK(CALL(cuMemFree_v2, a + 512) != 0);
    CHECK(CALL(cuMemFree_v2, 0xdead0000) != 0);
    agree(0, "wrong frees");
    IS(CALL(cuMemFree_v2, a), 0);
    IS(CALL(cuMemFree_v2, c), 0);
    agree(0, "plain gone");
    IS(CALL(cuMemAllocManaged, P(&a), 2 * MIB, 1), 0);
    agree(0, "managed");
    IS(CALL(cuMemFree_v2, a), 0);
    agree(0, "managed gone");
}

static void host(void)
{
    void *a = NULL, *b = NULL;
    IS(CALL(cuMemAllocHost_v2, P(&a), MIB), 0);
    IS(CALL(cuMemHostAlloc, P(&b), 2 * MIB, 3), 0);
    agree(0, "host");
    IS(CALL(cuMemFreeHost, P(a)), 0);
    CHECK(CALL(cuMemFreeHost, P(a)) != 0);
    agree(0, "host, one gone");
    IS(CALL(cuMemFreeHost, P(b)), 0);
    void *own = aligned_alloc(4096, MIB);
    IS(CALL(cuMemHostRegister_v2, P(own), MIB, 1), 0);
    agree(0, "registered");
    IS(CALL(cuMemHostUnregister, P(own)), 0);
    CHECK(CALL(cuMemHostUnregister, P(own)) != 0);
    agree(0, "host gone");
    free(own);
}

static void arrays(void)
{
    u64 flat = 0, deep = 0, levels = 0;
    struct array desc = {256, 128, 0x20, 4};
    struct array3d desc3d = {64, 64, 16, 0x01, 2, 0};
    IS(CALL(cuArrayCreate_v2, P(&flat), P(&desc)), 0);
    agree(0, "array");
    IS(CALL(cuArray3DCreate_v2, P(&deep), P(&desc3d)), 0);
    agree(0, "array 3d");
    IS(CALL(cuMipmappedArrayCreate, P(&levels), P(&desc3d), 3), 0);
    agree(0, "mipmapped");
    IS(CALL(cuArrayDestroy, flat), 0);
    agree(0, "array gone");
    IS(CALL(cuArrayDestroy, deep), 0);
    IS(CALL(cuMipmappedArrayDestroy, levels), 0);
    agree(0, "arrays gone");
}

static void vmm(void)
{
    struct allocation prop = {1, 1, {1, 0}};
    struct access access = {{1, 0}, 3};
    u64 range = 0, handle = 0, again = 0, flags = 0;
    IS(CALL(cuMemAddressReserve, P(&range), 8 * MIB, 0, 0, 0), 0);
    agree(0, "reserved");
    IS(CALL(cuMemCreate, P(&handle), 4 * MIB, P(&prop), 0), 0);
    agree(0, "created");
    IS(CALL(cuMemMap, range, 4 * MIB, 0, handle, 0), 0);
    agree(0, "mapped");
    IS(CALL(cuMemSetAccess, range, 4 * MIB, P(&access), 1), 0);
    IS(CALL(cuMemGetAccess, P(&flags), P(&access.location), range), 0);
    CHECK(flags == 3);
    struct allocation found = {0};
    IS(CALL(cuMemGetAllocationPropertiesFromHandle, P(&found), handle), 0);
    CHECK(found.location.kind == 1 && found.location.id == 0);
    IS(CALL(cuMemRetainAllocationHandle, P(&again), range + MIB), 0);
    agree(0, "retained");
    IS(CALL(cuMemRelease, handle), 0);
    agree(0, "released once");
    IS(CALL(cuMemRelease, again), 0);
    agree(0, "released, still mapped");
    IS(CALL(cuMemUnmap, range, 4 * MIB), 0);
    agree(0, "unmapped");
    IS(CALL(cuMemCreate, P(&handle), 2 * MIB, P(&prop), 0), 0);
    IS(CALL(cuMemMap, range, 2 * MIB, 0, handle, 0), 0);
    IS(CALL(cuMemUnmap, range, 2 * MIB), 0);
    agree(0, "unmapped, still held");
    IS(CALL(cuMemRelease, handle), 0);
    IS(CALL(cuMemAddressFree, range, 8 * MIB), 0);
    agree(0, "virtual memory gone");
    prop.location.kind = 2;
    prop.location.id = 0;
    int code = CALL(cuMemCreate, P(&handle), 2 * MIB, P(&prop), 0);
    if (code == 0) {
        agree(0, "host chunk");
        IS(CALL(cuMemRelease, handle), 0);
    }
    prop.location.kind = 1;
    prop.location.id = 99;
    CHECK(CALL(cuMemCreate, P(&handle), 2 * MIB, P(&prop), 0) != 0);
    agree(0, "no such place");
}

static void ordered(void)
{
    u64 one = 0, two = 0, a = 0, b = 0, c = 0, pool = 0, own = 0;
    IS(CALL(cuStreamCreate, P(&one), 1), 0);
    IS(CALL(cuStreamCreate, P(&two), 0), 0);
    IS(CALL(cuMemAllocAsync, P(&a), MIB, one), 0);
    agree(0, "ordered");
    IS(CALL(cuMemAllocAsync, P(&b), MIB, 0), 0);
    IS(CALL(cuMemAllocAsync, P(&c), MIB, 1), 0);
    agree(0, "on the legacy stream");
    IS(CALL(cuMemFreeAsync, a, one), 0);
    IS(CALL(cuMemFreeAsync, b, two), 0);
    CHECK(CALL(cuMemFreeAsync, b, two) != 0);
    IS(CALL(cuMemFree_v2, c), 0);
    IS(CALL(cuCtxSynchronize), 0);
    agree(0, "ordered gone");
    /* The per-thread stream, by both of its names, and a free of the one kind by the other. */
    IS(CALL(cuMemAllocAsync_ptsz, P(&a), MIB, 0), 0);
    IS(CALL(cuMemAllocAsync, P(&b), MIB, 2), 0);
    IS(CALL(cuMemAllocAsync_ptsz, P(&c), MIB, one), 0);
    agree(0, "on the thread's stream");
    IS(CALL(cuMemFreeAsync_ptsz, a, 0), 0);
    IS(CALL(cuMemFreeAsync, b, 2), 0);
    IS(CALL(cuMemFreeAsync_ptsz, c, 0), 0);
    IS(CALL(cuCtxSynchronize), 0);
    agree(0, "the thread's stream gone");
    IS(CALL(cuMemAlloc_v2, P(&a), MIB), 0);
    IS(CALL(cuMemFreeAsync, a, one), 0);
    IS(CALL(cuCtxSynchronize), 0);
    agree(0, "plain, freed in order");
    /* Pools: the default one is stood in for, others are the driver's. */
    struct pool_props props = {1, 0, {1, 0}};
    IS(CALL(cuDeviceGetDefaultMemPool, P(&pool), 0), 0);
    IS(CALL(cuMemAllocFromPoolAsync, P(&a), MIB, pool, one), 0);
    agree(0, "default pool");
    u64 used = 0;
    IS(CALL(cuMemPoolGetAttribute, pool, 7, P(&used)), 0);
    CHECK(used == MIB);
    IS(CALL(cuMemPoolCreate, P(&own), P(&props)), 0);
    IS(CALL(cuMemAllocFromPoolAsync, P(&b), 2 * MIB, own, one), 0);
    IS(CALL(cuMemAllocFromPoolAsync_ptsz, P(&c), 2 * MIB, own, 0), 0);
    agree(0, "own pool");
    IS(CALL(cuMemFreeAsync, a, one), 0);
    IS(CALL(cuMemFreeAsync, b, one), 0);
    IS(CALL(cuMemFreeAsync_ptsz, c, 0), 0);
    IS(CALL(cuDeviceSetMemPool, 0, own), 0);
    IS(CALL(cuMemAllocAsync, P(&a), MIB, one), 0);
    agree(0, "own pool is current");
    IS(CALL(cuMemFreeAsync, a, one), 0);
    IS(CALL(cuDeviceSetMemPool, 0, pool), 0);
    IS(CALL(cuMemAllocAsync, P(&a), MIB, one), 0);
    agree(0, "default pool is current");
    IS(CALL(cuMemFreeAsync, a, one), 0);
    IS(CALL(cuCtxSynchronize), 0);
    IS(CALL(cuMemPoolTrimTo, own, 0), 0);
    IS(CALL(cuMemPoolTrimTo, pool, 0), 0);
    IS(CALL(cuMemPoolDestroy, own), 0);
    agree(0, "pools gone");
    if (shimmed()) {
        CHECK(ledger(0).bytes[SERVED] == 0);
    }
    IS(CALL(cuStreamDestroy_v2, one), 0);
    IS(CALL(cuStreamDestroy_v2, two), 0);
    agree(0, "streams gone");
}

static void graphs(void)
{
    u64 stream = 0, graph = 0, exec = 0, node = 0, a = 0, b = 0, c = 0;
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    IS(CALL(cuMemAlloc_v2, P(&b), MIB), 0);
    agree(0, "before the capture");
    IS(CALL(cuStreamBeginCapture_v2, stream, 2), 0);
    IS(CALL(cuMemAllocAsync, P(&a), MIB, stream), 0);
    IS(CALL(cuMemsetD8Async, a, 1, MIB, stream), 0);
    IS(CALL(cuMemFreeAsync, a, stream), 0);
    /* A block that is freed during a capture stays out of reach until it is over. */
    int relaxed = 2;
    IS(CALL(cuThreadExchangeStreamCaptureMode, P(&relaxed)), 0);
    if (shimmed()) {
        IS(CALL(cuMemFree_v2, b), 0);
        CHECK(ledger(0).set_aside == 1);
        IS(CALL(cuMemAlloc_v2, P(&c), MIB), 0);
        CHECK(c != b);
    } else {
        IS(CALL(cuMemAlloc_v2, P(&c), MIB), 0);
    }
    IS(CALL(cuThreadExchangeStreamCaptureMode, P(&relaxed)), 0);
    IS(CALL(cuStreamEndCapture, stream, P(&graph)), 0);
    if (!shimmed()) IS(CALL(cuMemFree_v2, b), 0);
    agree(0, "captured");
    IS(CALL(cuMemFree_v2, c), 0);
    if (shimmed()) CHECK(ledger(0).set_aside == 0);
    IS(CALL(cuGraphInstantiateWithFlags, P(&exec), graph, 0), 0);
    IS(CALL(cuGraphLaunch, exec, stream), 0);
    IS(CALL(cuStreamSynchronize, stream), 0);
    IS(CALL(cuGraphExecDestroy, exec), 0);
    IS(CALL(cuGraphDestroy, graph), 0);
    agree(0, "replayed");
    /* Captures that do not begin, or are not ended here. */
    CHECK(CALL(cuStreamEndCapture, stream, P(&graph)) != 0);
    CHECK(CALL(cuStreamBeginCapture_v2, stream, 77) != 0);
    IS(CALL(cuMemAllocAsync, P(&a), MIB, stream), 0);
    IS(CALL(cuMemFreeAsync, a, stream), 0);
    struct graph_node params;
    IS(CALL(cuGraphCreate, P(&graph), 0), 0);
    memset(&params, 0, sizeof params);
    params.of.alloc.pool.kind = 1;
    params.of.alloc.pool.location.kind = 1;
    params.of.alloc.bytes = MIB;
    IS(CALL(cuGraphAddMemAllocNode, P(&node), graph, 0, 0, P(&params.of.alloc)), 0);
    CHECK(params.of.alloc.ptr != 0);
    u64 alloc = node;
    IS(CALL(cuGraphAddMemFreeNode, P(&node), graph, P(&alloc), 1, params.of.alloc.ptr), 0);
    IS(CALL(cuGraphDestroy, graph), 0);
    IS(CALL(cuDeviceGraphMemTrim, 0), 0);
    IS(CALL(cuStreamSynchronize, stream), 0);
    IS(CALL(cuStreamDestroy_v2, stream), 0);
    agree(0, "graphs gone");
}

static void contexts(void)
{
    u64 other = 0, a = 0, b = 0, stream = 0;
    IS(CALL(cuCtxCreate_v2, P(&other), 0, 0), 0);
    IS(CALL(cuMemAlloc_v2, P(&a), MIB), 0);
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    IS(CALL(cuMemAllocAsync, P(&b), MIB, stream), 0);
    agree(0, "another context");
    IS(CALL(cuMemFreeAsync, b, stream), 0);
    IS(CALL(cuStreamSynchronize, stream), 0);
    IS(CALL(cuStreamDestroy_v2, stream), 0);
    IS(CALL(cuMemAllocManaged, P(&b), MIB, 1), 0);
    agree(0, "another context, managed");
    IS(CALL(cuCtxDestroy_v2, other), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    agree(0, "the other context gone");
}

static void what_is_said(void)
{
    size_t free_before = 0, total = 0, free_after = 0, all = 0;
    u64 a = 0;
    IS(CALL(cuMemGetInfo_v2, P(&free_before), P(&total)), 0);
    IS(CALL(cuDeviceTotalMem_v2, P(&all), 0), 0);
    CHECK(all == total);
    IS(CALL(cuMemAlloc_v2, P(&a), 64 * MIB), 0);
    IS(CALL(cuMemGetInfo_v2, P(&free_after), 0), 0 + CALL(cuMemGetInfo_v2, P(&free_after), 0));
    IS(CALL(cuMemGetInfo_v2, P(&free_after), P(&total)), 0);
    printf("64 MiB more take %zu\n", free_before - free_after);
    IS(CALL(cuMemFree_v2, a), 0);
    IS(CALL(cuMemGetInfo_v2, P(&free_after), P(&total)), 0);
    printf("and when freed %zu\n", free_before - free_after);
}

int main(int argc, char **argv)
{
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    plain();
    host();
    arrays();
    vmm();
    ordered();
    graphs();
    contexts();
    what_is_said();
    agree(0, "all freed");

    /* Every entry point once more, with nothing in its arguments: none may crash, whatever it returns. Resets and releases of device 0 come last. */
    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "cuDevicePrimaryCtxRe", 20) && strcmp(argv[i], "cuDevicePrimaryCtxRetain")) continue;
        if (function(argv[i])) call_with(argv[i], (u64[9]){0});
        else printf("absent %s\n", argv[i]);
    }
    IS(CALL(cuCtxSetCurrent, context), 0);
    agree(0, "after calls with nothing");

    /* What a program leaves behind goes with its context. */
    u64 left = 0, array = 0;
    struct array desc = {256, 128, 0x20, 4};
    IS(CALL(cuMemAlloc_v2, P(&left), 8 * MIB), 0);
    IS(CALL(cuArrayCreate_v2, P(&array), P(&desc)), 0);
    agree(0, "left behind");
    IS(CALL(cuDevicePrimaryCtxReset_v2, 0), 0);
    agree(0, "reset");
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    IS(CALL(cuMemAlloc_v2, P(&left), 8 * MIB), 0);
    agree(0, "after the reset");
    IS(CALL(cuDevicePrimaryCtxReset, 0), 0);
    agree(0, "reset by the first version");
    IS(CALL(cuDevicePrimaryCtxRelease, 0), 0);
    IS(CALL(cuMemAlloc_v2, P(&left), 8 * MIB), 0);
    agree(0, "released by the first version, and held yet");
    IS(CALL(cuCtxSetCurrent, 0), 0);
    while (CALL(cuDevicePrimaryCtxRelease_v2, 0) == 0) {
        int flags = 0, active = 0;
        IS(CALL(cuDevicePrimaryCtxGetState, 0, P(&flags), P(&active)), 0);
        if (!active) break;
    }
    agree(0, "released");
    struct account a = account(0);
    SAME(a.plain.bytes + a.chunks.bytes + a.mapped.bytes + a.reserved.bytes + a.arrays.bytes, 0, "at the end");
    if (shimmed()) {
        struct ledger l = ledger(0);
        SAME(l.held + l.live_bytes + l.served_mapped + l.served_reserved, 0, "at the end");
        unsigned long long (*calls)(const char *) =
            (unsigned long long (*)(const char *))dlsym(RTLD_DEFAULT, "stratalloc_preload_calls");
        for (int i = 1; i < argc; i++) {
            if (function(argv[i]) && calls(argv[i]) == 0) { failures++; fprintf(stderr, "%s was never seen\n", argv[i]); }
            if (calls(argv[i]) == (unsigned long long)-1) { failures++; fprintf(stderr, "%s is not interposed\n", argv[i]); }
        }
        CHECK(calls("cuNothing") == (unsigned long long)-1 && calls(NULL) == (unsigned long long)-1);
    }
    return failures ? 1 : 0;
}
