/* Work on several streams, frees while it is under way, captures in between: libsoftcuda's checker watches every byte. The arguments are a
   seed, and 1 to make the mistake that the checker is there for. */
#include "cuda.h"

#define STREAMS 4
#define BLOCKS 24

static u64 random_state;

static u64 next(u64 below)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (random_state >> 33) % below;
}

struct block { u64 ptr, size; int home, touched[STREAMS]; };

static u64 streams[STREAMS];
static struct block blocks[BLOCKS];

/* Work of `stream` on a block: filled, so that every byte of it counts. */
static void touch(struct block *block, int stream)
{
    IS(CALL(cuMemsetD8Async, block->ptr, next(256), block->size, streams[stream]), 0);
    block->touched[stream] = 1;
}

/* Makes `to` wait for what `from` has been given so far. */
static void order(int from, int to)
{
    u64 event = 0;
    if (from == to) return;
    IS(CALL(cuEventCreate, P(&event), 2), 0);
    IS(CALL(cuEventRecord, event, streams[from]), 0);
    IS(CALL(cuStreamWaitEvent, streams[to], event, 0), 0);
    IS(CALL(cuEventDestroy_v2, event), 0);
}

static void make(struct block *block)
{
    memset(block, 0, sizeof *block);
    block->size = (next(4) ? next(200) + 1 : next(40) * 1024 + 1) * 512;
    if (next(2)) {
        block->home = -1;
        IS(CALL(cuMemAlloc_v2, P(&block->ptr), block->size), 0);
        /* Usable everywhere at once. What several streams write is ordered among them. */
        int first = next(STREAMS), second = next(STREAMS);
        touch(block, first);
        order(first, second);
        touch(block, second);
    } else {
        block->home = next(STREAMS);
        IS(CALL(cuMemAllocAsync, P(&block->ptr), block->size, streams[block->home]), 0);
        touch(block, block->home);
        int other = next(STREAMS);
        order(block->home, other);
        touch(block, other);
    }
}

static void release(struct block *block)
{
    if (block->home < 0 ? next(4) != 0 : next(8) == 0) {
        /* No wait, whatever is under way. */
        IS(CALL(cuMemFree_v2, block->ptr), 0);
    } else {
        int stream = next(STREAMS);
        for (int i = 0; i < STREAMS; i++)
            if (block->touched[i]) order(i, stream);
        if (block->home >= 0) order(block->home, stream);
        IS(CALL(cuMemFreeAsync, block->ptr, streams[stream]), 0);
    }
    block->ptr = 0;
}

/* A capture on one stream while blocks come and go on the others. */
static void capture(void)
{
    u64 graph = 0, exec = 0, inside = 0, stream = 0, fixed = 0, block = 0;
    int relaxed = 2;
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    IS(CALL(cuMemAlloc_v2, P(&fixed), 64 * 512), 0);
    IS(CALL(cuThreadExchangeStreamCaptureMode, P(&relaxed)), 0);
    IS(CALL(cuStreamBeginCapture_v2, stream, 2), 0);
    IS(CALL(cuMemsetD8Async, fixed, 7, 64 * 512, stream), 0);
    IS(CALL(cuMemAllocAsync, P(&inside), 512, stream), 0);
    IS(CALL(cuMemFreeAsync, inside, stream), 0);
    for (int i = 0; i < 3; i++) {
        IS(CALL(cuMemAlloc_v2, P(&block), (next(100) + 1) * 512), 0);
        IS(CALL(cuMemsetD8Async, block, 1, 512, streams[next(STREAMS)]), 0);
        IS(CALL(cuMemFree_v2, block), 0);
        u64 own = next(STREAMS);
        IS(CALL(cuMemAllocAsync, P(&block), 4096, streams[own]), 0);
        IS(CALL(cuMemsetD8Async, block, 1, 4096, streams[own]), 0);
        IS(CALL(cuMemFreeAsync, block, streams[own]), 0);
    }
    IS(CALL(cuStreamEndCapture, stream, P(&graph)), 0);
    relaxed = 0;
    IS(CALL(cuThreadExchangeStreamCaptureMode, P(&relaxed)), 0);
    IS(CALL(cuGraphInstantiateWithFlags, P(&exec), graph, 0), 0);
    IS(CALL(cuGraphLaunch, exec, stream), 0);
    IS(CALL(cuMemFree_v2, fixed), 0);
    IS(CALL(cuGraphExecDestroy, exec), 0);
    IS(CALL(cuGraphDestroy, graph), 0);
    IS(CALL(cuStreamDestroy_v2, stream), 0);
}

int main(int argc, char **argv)
{
    u64 context = 0;
    random_state = strtoull(argv[1], NULL, 10);
    int wrong = atoi(argv[2]);
    open_driver();
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
    for (int i = 0; i < STREAMS; i++) IS(CALL(cuStreamCreate, P(&streams[i]), i & 1), 0);
    for (int step = 0; step < 1500; step++) {
        struct block *block = &blocks[next(BLOCKS)];
        if (block->ptr) release(block); else make(block);
        if (step % 300 == 150) capture();
        if (step % 100 == 50) {
            /* A stream goes while its work is under way, and another comes, which may get its handle. What it did is ordered before a third. */
            int gone = next(STREAMS), heir = (gone + 1) % STREAMS;
            order(gone, heir);
            IS(CALL(cuStreamDestroy_v2, streams[gone]), 0);
            IS(CALL(cuStreamCreate, P(&streams[gone]), gone & 1), 0);
            for (int i = 0; i < BLOCKS; i++) {
                blocks[i].touched[heir] |= blocks[i].touched[gone];
                blocks[i].touched[gone] = 0;
                if (blocks[i].home == gone) blocks[i].home = heir;
            }
        }
    }
    if (wrong) {
        /* Freed on one stream while another still writes, and used again by the first. */
        u64 a = 0, b = 0;
        IS(CALL(cuMemAllocAsync, P(&a), 512 * 1024, streams[0]), 0);
        IS(CALL(cuStreamSynchronize, streams[0]), 0);
        IS(CALL(cuMemsetD8Async, a, 1, 512 * 1024, streams[1]), 0);
        IS(CALL(cuMemFreeAsync, a, streams[0]), 0);
        IS(CALL(cuMemAllocAsync, P(&b), 512 * 1024, streams[0]), 0);
        IS(CALL(cuMemsetD8Async, b, 2, 512 * 1024, streams[0]), 0);
    }
    for (int i = 0; i < BLOCKS; i++) if (blocks[i].ptr) release(&blocks[i]);
    IS(CALL(cuCtxSynchronize), 0);
    u64 (*count)(void) = (u64 (*)(void))dlsym(driver, "softcudaReportCount");
    size_t (*report)(u64, char *, size_t) = (size_t (*)(u64, char *, size_t))dlsym(driver, "softcudaReport");
    u64 reports = count();
    char text[1000] = "";
    if (reports) report(0, text, sizeof text);
    printf("%llu reports\n%s\n", (unsigned long long)reports, text);
    if (wrong) CHECK(reports > 0); else CHECK(reports == 0);
    if (shimmed() && !wrong) {
        SAME(ledger(0).live_bytes + ledger(0).live_count, 0, "at the end");
        CHECK(ledger(0).set_aside == 0);
        agree(0, "at the end");
    }
    return failures ? 1 : 0;
}
