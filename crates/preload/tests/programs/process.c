/* Threads, forks, exec, exit. The first argument says what. */
#include "cuda.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

static u64 context;
static atomic_int stop;
static pthread_key_t at_thread_exit;

static void start(void)
{
    IS(CALL(cuInit, 0), 0);
    IS(CALL(cuDevicePrimaryCtxRetain, P(&context), 0), 0);
    IS(CALL(cuCtxSetCurrent, context), 0);
}

/* Runs when a thread's own data is torn down, after that of libraries. */
static void free_late(void *ptr)
{
    u64 more = 0;
    IS(CALL(cuMemFree_v2, P(ptr)), 0);
    IS(CALL(cuMemAlloc_v2, P(&more), MIB), 0);
    IS(CALL(cuMemFree_v2, more), 0);
}

static void *work(void *argument)
{
    u64 stream = 0, ptrs[16] = {0}, kept = 0;
    u64 state = P(argument) + 1;
    IS(CALL(cuCtxSetCurrent, context), 0);
    IS(CALL(cuStreamCreate, P(&stream), 1), 0);
    for (int i = 0; i < 2000 || (argument == NULL && !stop); i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        u64 slot = (state >> 40) % 16, size = ((state >> 50) % 4000 + 1) * 512;
        if (ptrs[slot]) {
            IS(slot & 1 ? CALL(cuMemFreeAsync, ptrs[slot], stream) : CALL(cuMemFree_v2, ptrs[slot]), 0);
            ptrs[slot] = 0;
        } else {
            IS(slot & 2 ? CALL(cuMemAllocAsync, P(&ptrs[slot]), size, stream) : CALL(cuMemAlloc_v2, P(&ptrs[slot]), size), 0);
        }
    }
    for (int i = 0; i < 16; i++) if (ptrs[i]) IS(CALL(cuMemFree_v2, ptrs[i]), 0);
    IS(CALL(cuStreamDestroy_v2, stream), 0);
    IS(CALL(cuMemAlloc_v2, P(&kept), MIB), 0);
    pthread_setspecific(at_thread_exit, (void *)(uintptr_t)kept);
    return NULL;
}

static u64 until_exit;

static void at_exit(void)
{
    u64 more = 0;
    int failed = CALL(cuMemFree_v2, until_exit) | CALL(cuMemAlloc_v2, P(&more), MIB) | CALL(cuMemFree_v2, more);
    fprintf(stderr, failed || failures ? "failed at exit\n" : "fine at exit\n");
    if (failed || failures) _exit(1);
}

static void threads(void)
{
    pthread_t many[4];
    pthread_key_create(&at_thread_exit, free_late);
    start();
    stop = 1;
    for (u64 i = 0; i < 4; i++) pthread_create(&many[i], NULL, work, (void *)(uintptr_t)i);
    for (int i = 0; i < 4; i++) pthread_join(many[i], NULL);
    IS(CALL(cuCtxSynchronize), 0);
    agree(0, "threads");
    IS(CALL(cuMemAlloc_v2, P(&until_exit), MIB), 0);
    atexit(at_exit);
}

/* Waits for a child, at most 20 seconds: one that hangs is a failure. */
static void reap(pid_t child)
{
    int status = 0;
    for (int i = 0; i < 2000; i++) {
        if (waitpid(child, &status, WNOHANG) == child) {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            return;
        }
        usleep(10000);
    }
    CHECK(!"the child hangs");
    kill(child, 9);
}

/* Children of a process that uses CUDA, while its threads are inside the shim. */
static void forks(void)
{
    pthread_t thread;
    pthread_key_create(&at_thread_exit, free_late);
    start();
    u64 own = 0;
    IS(CALL(cuMemAlloc_v2, P(&own), MIB), 0);
    pthread_create(&thread, NULL, work, NULL);
    for (int i = 0; i < 40; i++) {
        pid_t child = fork();
        if (child == 0) {
            u64 ptr = 0;
            size_t some = 0, total = 0;
            failures = 0;
            CHECK(CALL(cuMemAlloc_v2, P(&ptr), MIB) != 0);
            CHECK(CALL(cuMemAllocAsync, P(&ptr), MIB, 0) != 0);
            CHECK(CALL(cuMemFree_v2, own) != 0);
            CHECK(CALL(cuMemGetInfo_v2, P(&some), P(&total)) != 0);
            CHECK(dlsym(driver, "cuMemAlloc_v2") != NULL);
            struct ledger view = {sizeof view};
            if (shimmed()) IS(ask_ledger(0, &view), 3);
            /* Handlers at exit run in the child as well. */
            exit(failures ? 1 : 0);
        }
        reap(child);
    }
    stop = 1;
    pthread_join(thread, NULL);
    IS(CALL(cuMemFree_v2, own), 0);
    agree(0, "forks");
}

/* A child of a process that has only looked around uses CUDA as if it were the first. */
static void early_fork(void)
{
    CHECK(function("cuMemAlloc_v2") != NULL);
    void *found = NULL;
    IS(get_proc("cuMemAlloc", &found, 12080, 0, NULL), 0);
    pid_t child = fork();
    if (child == 0) {
        u64 ptr = 0;
        start();
        IS(CALL(cuMemAlloc_v2, P(&ptr), MIB), 0);
        if (shimmed()) SAME(ledger(0).live_bytes, MIB, "in the child");
        IS(CALL(cuMemFree_v2, ptr), 0);
        exit(failures ? 1 : 0);
    }
    reap(child);
}

int main(int argc, char **argv)
{
    open_driver();
    if (!strcmp(argv[1], "threads")) threads();
    else if (!strcmp(argv[1], "forks")) forks();
    else if (!strcmp(argv[1], "early-fork")) early_fork();
    else if (!strcmp(argv[1], "exec")) {
        start();
        u64 ptr = 0;
        IS(CALL(cuMemAlloc_v2, P(&ptr), MIB), 0);
        execl("/proc/self/exe", argv[0], "early-fork", (char *)NULL);
        CHECK(!"exec");
    } else return 2;
    return failures ? 1 : 0;
}
