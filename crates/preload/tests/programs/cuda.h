/* What the test programs share: functions looked up as a static CUDA runtime does, the two accounts, and checks. */
#ifndef TEST_CUDA_H
#define TEST_CUDA_H
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t u64;

/* Sizes are multiples of this: what the driver rounds to. */
#define MIB ((u64)1 << 20)

static int failures;
#define CHECK(what) do { if (!(what)) { failures++; fprintf(stderr, "%s line %d: %s\n", __FILE__, __LINE__, #what); } } while (0)
#define IS(code, wanted) do { int code_ = (int)(code); if (code_ != (wanted)) { failures++; \
    fprintf(stderr, "line %d: %s is %d, not %d\n", __LINE__, #code, code_, (int)(wanted)); } } while (0)

static void *driver;
static int (*get_proc)(const char *, void **, int, u64, int *);

/* A function by its exported name; by cuGetProcAddress where the name is a current one. */
static void *function(const char *name)
{
    void *found = dlsym(driver, name);
    return found;
}

typedef int (*any)(u64, u64, u64, u64, u64, u64, u64, u64, u64);

/* Calls a function of integers and pointers. More arguments than it has do no harm. */
static int call_with(const char *name, const u64 *a)
{
    any found = (any)function(name);
    if (!found) {
        fprintf(stderr, "there is no %s\n", name);
        return -1;
    }
    return found(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
}

#define P(pointer) ((u64)(uintptr_t)(pointer))
#define CALL(name, ...) call_with(#name, (u64[9]){__VA_ARGS__})

static void open_driver(void)
{
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    get_proc = (int (*)(const char *, void **, int, u64, int *))dlsym(driver, "cuGetProcAddress_v2");
}

/* libsoftcuda's own account. */
struct account {
    size_t size;
    struct { u64 bytes, count; } plain, chunks, mapped, reserved, pool_used, pool_reserved, managed, arrays, host, registered, graph, shared;
    u64 free, total;
};

static struct account account(int device)
{
    struct account found = {sizeof found};
    int (*ask)(int, struct account *) = (int (*)(int, struct account *))dlsym(driver, "softcudaAccount");
    IS(ask(device, &found), 0);
    return found;
}

/* The shim's ledger. */
enum { SERVED, PLAIN, POOLED, MANAGED, ARRAYS, CHUNKS, HOST_CHUNKS, MAPPED, RESERVED, PINNED, REGISTERED, IMPORTED, KINDS };
struct ledger {
    size_t size;
    u64 limit, held, live_count, live_bytes, set_aside, served_mapped, served_reserved;
    u64 bytes[KINDS], counts[KINDS];
};

static int (*ask_ledger)(int, struct ledger *);

static int shimmed(void)
{
    ask_ledger = (int (*)(int, struct ledger *))dlsym(RTLD_DEFAULT, "stratalloc_preload_ledger");
    return ask_ledger != NULL;
}

static struct ledger ledger(int device)
{
    struct ledger found = {sizeof found};
    if (!shimmed()) {
        fprintf(stderr, "the shim is not loaded\n");
        exit(2);
    }
    IS(ask_ledger(device, &found), 0);
    return found;
}

#define SAME(a, b, where) do { u64 a_ = (a), b_ = (b); if (a_ != b_) { failures++; \
    fprintf(stderr, "%s: %s is %llu, %s is %llu\n", where, #a, (unsigned long long)a_, #b, (unsigned long long)b_); } } while (0)

/* Compares both accounts of a device, kind by kind, and prints what the program has: the same with the shim and without. */
static void agree(int device, const char *where)
{
    struct account a = account(device);
    u64 has = a.plain.bytes + a.pool_used.bytes;
    u64 chunks = a.chunks.bytes, mapped = a.mapped.bytes, reserved = a.reserved.bytes;
    if (shimmed()) {
        struct ledger l = ledger(device);
        SAME(a.plain.bytes, l.bytes[PLAIN], where);
        SAME(a.plain.count, l.counts[PLAIN], where);
        SAME(a.pool_used.bytes, l.bytes[POOLED], where);
        SAME(a.managed.bytes, l.bytes[MANAGED], where);
        SAME(a.managed.count, l.counts[MANAGED], where);
        SAME(a.arrays.bytes, l.bytes[ARRAYS], where);
        SAME(a.arrays.count, l.counts[ARRAYS], where);
        SAME(a.chunks.bytes, l.bytes[SERVED] + l.bytes[CHUNKS] + l.bytes[HOST_CHUNKS], where);
        SAME(a.mapped.bytes, l.served_mapped + l.bytes[MAPPED], where);
        SAME(a.reserved.bytes, l.served_reserved + l.bytes[RESERVED], where);
        SAME(a.host.bytes, l.bytes[PINNED], where);
        SAME(a.host.count, l.counts[PINNED], where);
        SAME(a.registered.bytes, l.bytes[REGISTERED], where);
        SAME(l.held, l.bytes[SERVED] + l.bytes[PLAIN] + l.bytes[POOLED] + l.bytes[MANAGED] + l.bytes[ARRAYS] + l.bytes[CHUNKS], where);
        CHECK(l.live_bytes <= l.bytes[SERVED]);
        has += l.live_bytes;
        chunks -= l.bytes[SERVED];
        mapped -= l.served_mapped;
        reserved -= l.served_reserved;
    }
    printf("%s: has %llu chunks %llu mapped %llu reserved %llu managed %llu arrays %llu host %llu registered %llu\n", where,
        (unsigned long long)has, (unsigned long long)chunks, (unsigned long long)mapped, (unsigned long long)reserved,
        (unsigned long long)a.managed.bytes, (unsigned long long)a.arrays.bytes, (unsigned long long)a.host.bytes,
        (unsigned long long)a.registered.bytes);
}
#endif
